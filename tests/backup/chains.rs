//! Chains that are broken, and what retention does to chains.

use cinderblock::backup::{Keep, Store, delete, list, prune, verify};
use cinderblock::transfer::{Error, Job};

use crate::field::{
    Folder, Ground, MIB, back_up, backup_snapshots, on_both, try_bring_back, volume, volumes,
    whole, write,
};

/// A volume with a full restore point and two increments.
fn chain(ground: &dyn Ground, store: &Store) -> Vec<String> {
    let volumes = volumes(ground);
    volume(&volumes, "vm", 3 * MIB);
    let points = (0..3).map(|number| {
        write(&volumes, "vm", number * MIB, &[u8::try_from(number).unwrap() + 1; 5000]);
        back_up(&volumes, store, "vm").point
    });
    points.collect()
}

/// The newest restore point is refused by `restore` and found by `verify`, each with these words.
fn assert_broken(ground: &dyn Ground, store: &Store, newest: &str, words: &str) {
    let next = volumes(ground);
    let refused = try_bring_back(&next, store, newest, "back").unwrap_err();
    assert!(refused.to_string().contains(words), "{refused}");
    assert!(next.catalogue().volume("back").unwrap().is_none(), "{refused}");
    assert!(next.pool().image_id("back").unwrap().is_none(), "{refused}");
    let verified = verify(store, None, &Job::default()).unwrap();
    let of = verified.iter().find(|point| point.point == newest).unwrap();
    assert!(of.wrong.as_ref().is_some_and(|why| why.contains(words)), "{of:?}");
    let alone = verify(store, Some(newest), &Job::default()).unwrap();
    assert_eq!(alone.len(), 1);
    assert!(alone[0].wrong.is_some(), "{alone:?}");
}

#[test]
fn a_broken_or_missing_link_is_found_and_refused() {
    type Break = fn(&Folder, &[String]);
    let breaks: [(&str, Break); 6] = [
        ("manifest.json", |folder, points| {
            std::fs::remove_file(folder.file(&format!("{}/manifest.json", points[1]))).unwrap();
        }),
        ("is missing", |folder, points| {
            std::fs::remove_file(folder.file(&format!("{}/000000.zst", points[0]))).unwrap();
        }),
        ("has the checksum", |folder, points| {
            let file = folder.file(&format!("{}/000000.zst", points[1]));
            let mut bytes = std::fs::read(&file).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            std::fs::write(file, bytes).unwrap();
        }),
        ("000000.zst", |folder, points| {
            let file = folder.file(&format!("{}/000000.zst", points[1]));
            let bytes = std::fs::read(&file).unwrap();
            std::fs::write(file, &bytes[..bytes.len() - 1]).unwrap();
        }),
        ("whose manifest was changed since", |folder, points| {
            let file = folder.file(&format!("{}/manifest.json", points[1]));
            let text = std::fs::read_to_string(&file).unwrap();
            std::fs::write(file, text.replace("\"order\": 20", "\"order\": 21")).unwrap();
        }),
        ("whose manifest cannot be read", |folder, points| {
            std::fs::write(folder.file(&format!("{}/manifest.json", points[1])), "{").unwrap();
        }),
    ];
    for (words, cause) in breaks {
        on_both(|ground| {
            let folder = Folder::new();
            let store = folder.store();
            let points = chain(ground, &store);
            assert!(
                verify(&store, None, &Job::default()).unwrap().iter().all(|p| p.wrong.is_none())
            );
            cause(&folder, &points);
            let words = if words == "manifest.json" { "which is missing" } else { words };
            assert_broken(ground, &store, &points[2], words);
            // The next one is based on none of it, unless only an object is broken, which a backup does
            // not read.
            let next = volumes(ground);
            let made = back_up(&next, &store, "vm");
            if words.starts_with("wh") {
                assert_eq!(made.parent, None, "{words}");
                try_bring_back(&next, &store, &made.point, "back").unwrap();
            }
        });
    }
}

#[test]
fn an_increment_to_what_was_damaged_names_the_damage() {
    on_both(|ground| {
        let folder = Folder::new();
        let store = folder.store();
        let points = chain(ground, &store);
        let file = folder.file(&format!("{}/000000.zst", points[0]));
        let mut bytes = std::fs::read(&file).unwrap();
        bytes[20] ^= 0xff;
        std::fs::write(file, bytes).unwrap();
        let error = try_bring_back(&volumes(ground), &store, &points[2], "back").unwrap_err();
        assert!(matches!(error, Error::Checksum { .. }), "{error}");
        assert!(volumes(ground).catalogue().volume("back").unwrap().is_none());
    });
}

#[test]
fn a_chain_goes_as_a_whole_and_the_newest_stays() {
    on_both(|ground| {
        let folder = Folder::new();
        let store = folder.store();
        let mut points = chain(ground, &store);
        let volumes = volumes(ground);
        let job = Job::default();
        let refused = delete(&store, &points[2], false, &job).unwrap_err().to_string();
        assert!(refused.contains("3 restore points") && refused.contains("--chain"), "{refused}");
        let keep = |last| Keep { last, ..Keep::default() };
        // One of the chain is kept, and so all are.
        assert!(prune(&store, None, &keep(1), true, &job).unwrap().points.is_empty());
        for _ in 0..2 {
            let mut full = whole("vm");
            full.full = true;
            let made = cinderblock::backup::create(&volumes, &store, &full, &job).unwrap();
            assert_eq!(made.parent, None);
            points.push(made.point);
        }
        points.push(back_up(&volumes, &store, "vm").point);
        let would = prune(&store, None, &keep(2), false, &job).unwrap();
        assert_eq!(would.points, points[..4]);
        assert_eq!(list(&store, None).unwrap().len(), 6, "it was only asked");
        assert_eq!(prune(&store, None, &keep(2), true, &job).unwrap(), would);
        let left: Vec<_> = list(&store, None).unwrap().into_iter().map(|one| one.point).collect();
        assert_eq!(left, points[4..]);
        assert!(prune(&store, None, &Keep::default(), true, &job).is_err());
        delete(&store, &points[4], true, &job).unwrap();
        assert_eq!(folder.files(), ["cinderblock-backup.json"]);
        // Nothing to be based on is left.
        assert_eq!(back_up(&volumes, &store, "vm").parent, None);
        assert_eq!(backup_snapshots(&volumes, "vm").len(), 1);
    });
}

#[test]
fn a_full_one_is_made_after_so_many_increments() {
    on_both(|ground| {
        let folder = Folder::new();
        let (volumes, store) = (volumes(ground), folder.store());
        volume(&volumes, "vm", MIB);
        let mut request = whole("vm");
        request.increments = 2;
        let is_full = |_| {
            let made = cinderblock::backup::create(&volumes, &store, &request, &Job::default());
            made.unwrap().parent.is_none()
        };
        let full: Vec<_> = (0..7).map(is_full).collect();
        assert_eq!(full, [true, false, false, true, false, false, true]);
    });
}

#[test]
fn what_is_left_of_a_deletion_goes_with_the_next_run() {
    on_both(|ground| {
        let folder = Folder::new();
        let store = folder.store();
        let points = chain(ground, &store);
        // Killed after the manifests.
        for point in &points {
            std::fs::remove_file(folder.file(&format!("{point}/manifest.json"))).unwrap();
        }
        assert!(list(&store, None).unwrap().is_empty());
        let keep = Keep { last: 1, ..Keep::default() };
        let removed = prune(&store, None, &keep, true, &Job::default()).unwrap();
        assert_eq!((removed.points.len(), removed.leftovers.len()), (0, 3));
        assert_eq!(folder.files(), ["cinderblock-backup.json"]);
    });
}
