//! The omap of plain objects.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread;

use cinderblock::rbd::{Errno, Guard, OmapUpdate, Pool};

use crate::tools::{Place, errno};

const OBJECT: &str = "test-object";

fn set(entries: &[(&str, &[u8])]) -> OmapUpdate {
    let set = entries.iter().map(|(key, value)| ((*key).to_owned(), value.to_vec())).collect();
    OmapUpdate { set, ..OmapUpdate::default() }
}

fn guarded(guards: &[Guard], update: OmapUpdate) -> OmapUpdate {
    OmapUpdate { guards: guards.to_vec(), ..update }
}

fn absent(key: &str) -> Guard {
    Guard::Absent(key.to_owned())
}

fn equals(key: &str, value: &[u8]) -> Guard {
    Guard::Equals(key.to_owned(), value.to_vec())
}

fn all(pool: &Arc<dyn Pool>) -> BTreeMap<String, Vec<u8>> {
    let page = pool.omap_list(OBJECT, "", 1000).unwrap();
    assert!(!page.more);
    page.entries.into_iter().collect()
}

pub(crate) fn entries_are_set_read_and_removed(place: &Place) {
    let pool = &place.pool;
    let binary = [0, 255, 10, 0];
    pool.omap_update(OBJECT, &set(&[("a", b"1"), ("b", &binary), ("c", b"3")])).unwrap();
    let got = place.other.omap_get(OBJECT, &["a", "b", "missing"]).unwrap();
    assert_eq!(
        got,
        BTreeMap::from([("a".to_owned(), b"1".to_vec()), ("b".to_owned(), binary.to_vec())])
    );
    let change =
        OmapUpdate { remove: vec!["a".to_owned(), "missing".to_owned()], ..set(&[("c", b"4")]) };
    pool.omap_update(OBJECT, &change).unwrap();
    assert_eq!(
        all(pool),
        BTreeMap::from([("b".to_owned(), binary.to_vec()), ("c".to_owned(), b"4".to_vec())])
    );
    assert_eq!(pool.omap_get(OBJECT, &[]).unwrap(), BTreeMap::new());
    pool.remove_object(OBJECT).unwrap();
    assert_eq!(all(pool), BTreeMap::new());
}

pub(crate) fn a_missing_object_is_an_empty_omap(place: &Place) {
    let pool = &place.pool;
    assert_eq!(pool.omap_get(OBJECT, &["a"]).unwrap(), BTreeMap::new());
    assert_eq!(all(pool), BTreeMap::new());
    assert_eq!(errno(pool.remove_object(OBJECT)), Errno::ENOENT);
    // Any update makes the object, an empty one too.
    pool.omap_update(OBJECT, &OmapUpdate::default()).unwrap();
    pool.omap_update(OBJECT, &OmapUpdate::default()).unwrap();
    pool.remove_object(OBJECT).unwrap();
    assert_eq!(errno(pool.remove_object(OBJECT)), Errno::ENOENT);
}

pub(crate) fn guards_hold_on_a_missing_object(place: &Place) {
    let pool = &place.pool;
    let refused = guarded(&[equals("a", b"1")], set(&[("b", b"2")]));
    assert_eq!(errno(pool.omap_update(OBJECT, &refused)), Errno::ECANCELED);
    assert_eq!(
        errno(pool.remove_object(OBJECT)),
        Errno::ENOENT,
        "a refused update makes no object"
    );
    pool.omap_update(OBJECT, &guarded(&[absent("a"), absent("b")], set(&[("a", b"1")]))).unwrap();
    assert_eq!(all(pool), BTreeMap::from([("a".to_owned(), b"1".to_vec())]));
    pool.remove_object(OBJECT).unwrap();
}

pub(crate) fn a_guard_that_fails_changes_nothing(place: &Place) {
    let pool = &place.pool;
    pool.omap_update(OBJECT, &set(&[("a", b"1"), ("b", b"2")])).unwrap();
    let before = all(pool);
    let change = || OmapUpdate { remove: vec!["b".to_owned()], ..set(&[("a", b"9"), ("c", b"9")]) };
    for guards in [
        vec![absent("a")],
        vec![equals("a", b"2")],
        vec![equals("a", b"")],
        vec![equals("a", b"1"), absent("b")],
        vec![equals("missing", b"1")],
    ] {
        let expected = if guards == [equals("a", b"")] { Errno::EINVAL } else { Errno::ECANCELED };
        assert_eq!(
            errno(pool.omap_update(OBJECT, &guarded(&guards, change()))),
            expected,
            "{guards:?}"
        );
        assert_eq!(all(pool), before);
    }
    let held = guarded(&[equals("a", b"1"), equals("b", b"2"), absent("c")], change());
    pool.omap_update(OBJECT, &held).unwrap();
    assert_eq!(
        all(pool),
        BTreeMap::from([("a".to_owned(), b"9".to_vec()), ("c".to_owned(), b"9".to_vec())])
    );
    pool.remove_object(OBJECT).unwrap();
}

pub(crate) fn empty_values_are_refused(place: &Place) {
    assert_eq!(errno(place.pool.omap_update(OBJECT, &set(&[("a", b"")]))), Errno::EINVAL);
    assert_eq!(errno(place.pool.remove_object(OBJECT)), Errno::ENOENT);
}

pub(crate) fn long_omaps_come_in_pages(place: &Place) {
    let pool = &place.pool;
    let keys: Vec<String> = (0..2500).map(|number| format!("key {number:04}")).collect();
    for part in keys.chunks(1000) {
        let entries: Vec<(&str, &[u8])> =
            part.iter().map(|key| (key.as_str(), key.as_bytes())).collect();
        pool.omap_update(OBJECT, &set(&entries)).unwrap();
    }
    for limit in [7, 1000, 100_000] {
        let mut seen = Vec::new();
        loop {
            let after = seen.last().map_or("", String::as_str);
            let page = pool.omap_list(OBJECT, after, limit).unwrap();
            assert!(page.entries.len() as u64 <= limit);
            assert!(page.entries.iter().all(|(key, value)| key.as_bytes() == value));
            seen.extend(page.entries.into_iter().map(|(key, _)| key));
            if !page.more {
                break;
            }
        }
        assert_eq!(seen, keys);
    }
    let first = pool.omap_list(OBJECT, "key 2497", 1).unwrap();
    assert_eq!(
        (first.entries[0].0.as_str(), first.entries.len(), first.more),
        ("key 2498", 1, true)
    );
    let last = pool.omap_list(OBJECT, "key 2498", 1).unwrap();
    assert_eq!((last.entries[0].0.as_str(), last.more), ("key 2499", false));
    pool.remove_object(OBJECT).unwrap();
}

pub(crate) fn one_of_two_rivals_wins(place: &Place) {
    let claim = |pool: &Arc<dyn Pool>, owner: &str, key: &str| {
        pool.omap_update(OBJECT, &guarded(&[absent(key)], set(&[(key, owner.as_bytes())])))
    };
    for number in 0..20 {
        let key = number.to_string();
        let (one, other) = thread::scope(|scope| {
            let one = scope.spawn(|| claim(&place.pool, "one", &key));
            let other = scope.spawn(|| claim(&place.other, "other", &key));
            (one.join().unwrap(), other.join().unwrap())
        });
        let winner = &place.pool.omap_get(OBJECT, &[&key]).unwrap()[&key];
        match (one, other) {
            (Ok(()), Err(lost)) => {
                assert_eq!((lost.errno, winner.as_slice()), (Errno::ECANCELED, &b"one"[..]));
            }
            (Err(lost), Ok(())) => {
                assert_eq!((lost.errno, winner.as_slice()), (Errno::ECANCELED, &b"other"[..]));
            }
            both => panic!("{both:?}"),
        }
    }
    place.pool.remove_object(OBJECT).unwrap();
}
