//! Volumes made from golden images: nothing of these is changed but librbd's list of their clones.

use std::collections::BTreeMap;

use cinderblock::rbd::model::{Fault, Graph, ImageGraph};
use cinderblock::rbd::{CloneFormat, Errno, Features, ImageOptions, SnapshotKind};
use cinderblock::volume::catalogue::Source;
use cinderblock::volume::{Error, FlattenTarget, ImageLocation, Sizes, VolumeSource};

use crate::lab::{BLOCK, BLOCKS, Controller, Home, Lab, OTHER_NAMESPACE, OTHER_POOL, RBD, Wish};

const GGG: &[&str] = &["G", "G", "G"];

/// A lab with the golden image G at `home`, whose controller may only read there, if that is a
/// place of its own.
fn lab_with_golden(home: Home) -> Lab {
    let lab = Lab::new();
    lab.golden(home, "G");
    if home != RBD {
        lab.controller.session.read_only(home.pool, home.namespace);
    }
    lab
}

/// All of a golden image and its place, without the lists of clones.
fn untouched(graph: &Graph, home: Home) -> String {
    let mut pool = graph.pools[&(home.pool.to_owned(), home.namespace.to_owned())].clone();
    let id = pool.names["G"].clone();
    pool.images.retain(|image, _| *image == id);
    for snapshot in pool.images.get_mut(&id).unwrap().snapshots.values_mut() {
        snapshot.children.clear();
    }
    let objects: BTreeMap<_, _> =
        pool.objects.iter().filter(|(_, omap)| !omap.is_empty()).collect();
    let objects = if home == RBD { String::new() } else { format!("{objects:?}") };
    format!("{:?} {objects}", pool.images)
}

#[test]
fn a_golden_image_is_cloned_and_grown_wherever_it_is_and_stays_as_it_is() {
    for home in [RBD, OTHER_POOL, OTHER_NAMESPACE] {
        let lab = lab_with_golden(home);
        let before = untouched(&lab.graph(), home);
        let made = lab.make(&lab.wish("a").of_image(&lab, home, "G", "v1"));
        assert_eq!(made.size, BLOCKS * BLOCK);
        assert!(matches!(made.source, Some(Source::Image(_))), "{made:?}");
        let larger = Sizes { required: (BLOCKS + 1) * BLOCK, limit: 0 };
        lab.make(&Wish { sizes: larger, ..lab.wish("b").of_image(&lab, home, "G", "v1") });
        lab.assert_holds(RBD, "a", GGG);
        lab.assert_holds(RBD, "b", &["G", "G", "G", ""]);
        assert_eq!(untouched(&lab.graph(), home), before);
        lab.assert_at_rest();
        for name in ["a", "b"] {
            lab.delete(name);
        }
        assert_eq!(untouched(&lab.graph(), home), before);
        lab.assert_at_rest();
        assert!(!lab.picture().contains("<-"), "{}", lab.picture());
        assert!(lab.has_no_records(), "{}", lab.graph());
    }
}

#[test]
fn it_is_never_shrunk() {
    let lab = lab_with_golden(OTHER_POOL);
    for sizes in
        [Sizes { required: BLOCK, limit: 0 }, Sizes { required: 0, limit: BLOCKS * BLOCK - 512 }]
    {
        let wish = Wish { sizes, ..lab.wish("a").of_image(&lab, OTHER_POOL, "G", "v1") };
        let error = lab.refused(|controller| controller.create(&wish));
        assert!(matches!(error, Error::OutOfRange(_)), "{error:?}");
    }
}

/// A device has whole sectors, so the tail of an image would be cut off.
#[test]
fn a_volume_has_whole_sectors_whatever_the_image_has() {
    let lab = Lab::new();
    let options = ImageOptions { order: Some(12), ..ImageOptions::default() };
    lab.pool(RBD).create_image("odd", 1000, &options).unwrap();
    lab.open(RBD, "odd").create_snapshot("v1").unwrap();
    let made = lab.make(&lab.wish("a").of_image(&lab, RBD, "odd", "v1"));
    assert_eq!(made.size, 1024);
    let tight = Sizes { required: 0, limit: 1000 };
    let wish = Wish { sizes: tight, ..lab.wish("b").of_image(&lab, RBD, "odd", "v1") };
    let error = lab.controller.create(&wish).unwrap_err();
    assert!(matches!(error, Error::OutOfRange(_)), "{error:?}");
}

#[test]
fn protected_or_not_both_formats_clone_what_they_can() {
    for home in [RBD, OTHER_POOL] {
        let lab = lab_with_golden(home);
        let wish =
            |name: &str, format| lab.wish(name).format(format).of_image(&lab, home, "G", "v1");
        let error = lab.refused(|controller| controller.create(&wish("a", CloneFormat::V1)));
        let spec = if home == RBD { "rbd/G@v1" } else { "two/G@v1" };
        assert!(
            matches!(&error, Error::Invalid(why) if why.contains(&format!("rbd snap protect {spec}"))),
            "{error:?}"
        );
        lab.make(&wish("b", CloneFormat::V2));
        lab.open(home, "G").protect_snapshot("v1").unwrap();
        let before = untouched(&lab.graph(), home);
        lab.make(&wish("a", CloneFormat::V1));
        lab.make(&wish("c", CloneFormat::V2));
        for name in ["a", "b", "c"] {
            lab.assert_holds(RBD, name, GGG);
        }
        lab.assert_at_rest();
        for name in ["a", "b", "c"] {
            lab.delete(name);
        }
        assert_eq!(untouched(&lab.graph(), home), before, "it stays protected");
        lab.assert_at_rest();
    }
    let lab = Lab::format_1();
    lab.golden(OTHER_NAMESPACE, "G");
    let wish = lab.wish("a").of_image(&lab, OTHER_NAMESPACE, "G", "v1");
    let error = lab.refused(|controller| controller.create(&wish));
    assert!(matches!(&error, Error::Invalid(why) if why.contains("cloneFormat=2")), "{error:?}");
}

#[test]
fn each_image_that_cannot_be_cloned_has_a_message_of_its_own() {
    let lab = lab_with_golden(OTHER_POOL);
    let fsid = lab.fsid();
    let pool = lab.pool(OTHER_POOL);
    let layering = ImageOptions { features: Some(Features(0)), ..ImageOptions::default() };
    pool.create_image("plain", BLOCK, &layering).unwrap();
    pool.create_image("nothing", 0, &ImageOptions::default()).unwrap();
    pool.create_image("short", 10, &ImageOptions::default()).unwrap();
    for image in ["plain", "nothing", "short"] {
        lab.open(OTHER_POOL, image).create_snapshot("v1").unwrap();
    }
    lab.open(OTHER_POOL, "short").create_snapshot("x.clone_snap").unwrap();
    let invalid = |error: &Error| matches!(error, Error::Invalid(_));
    let missing = |error: &Error| matches!(error, Error::NotFound(_));
    let cases: &[(String, &dyn Fn(&Error) -> bool, &str)] = &[
        ("rbd://other/two/G/v1".to_owned(), &invalid, "is in the Ceph cluster \"other\""),
        (format!("rbd://{fsid}/none/G/v1"), &missing, "no pool is named \"none\""),
        (format!("rbd://{fsid}/two/none/v1"), &missing, "the pool \"two\" has no image \"none\""),
        (format!("rbd://{fsid}/two/none/G/v1"), &missing, "no RADOS namespace \"none\""),
        (
            format!("rbd://{fsid}/rbd/tenant/none/v1"),
            &missing,
            "the RADOS namespace \"tenant\" of the pool \"rbd\" has no image \"none\"",
        ),
        (format!("rbd://{fsid}/two/G/v2"), &missing, "has no snapshot \"v2\""),
        (format!("rbd://{fsid}/two/plain/v1"), &invalid, "lacks the feature layering"),
        (format!("rbd://{fsid}/two/nothing/v1"), &invalid, "has no byte"),
        (format!("rbd://{fsid}/two/short/x.clone_snap"), &invalid, "cut for a clone"),
    ];
    for (location, is_it, words) in cases {
        let source = VolumeSource::Image(ImageLocation::parse(location).unwrap());
        let wish = Wish { source: Some(source), sizes: Sizes::default(), ..lab.wish("a") };
        let error = lab.refused(|controller| controller.create(&wish));
        assert!(is_it(&error), "{location}: {error:?}");
        let message = error.to_string();
        assert!(message.contains(words) && message.contains(location.as_str()), "{message}");
    }
    let upper = format!("rbd://{}/two/G/v1", fsid.to_uppercase());
    let source = VolumeSource::Image(ImageLocation::parse(&upper).unwrap());
    lab.make(&Wish { source: Some(source), sizes: Sizes::default(), ..lab.wish("a") });
}

#[test]
fn a_file_of_another_format_is_refused_by_its_first_bytes() {
    let lab = Lab::new();
    lab.golden(RBD, "G");
    for (format, offset, bytes) in [
        ("qcow2", 0, &b"QFI\xfb\0\0\0\x03"[..]),
        ("qed", 0, b"QED\0"),
        ("vmdk", 0, b"KDMV\x01"),
        ("vhdx", 0, b"vhdxfile"),
        ("vpc", 0, b"conectix"),
        ("vdi", 64, b"\x7f\x10\xda\xbe"),
    ] {
        lab.golden(OTHER_POOL, format);
        let image = lab.open(OTHER_POOL, format);
        image.write_at(offset, bytes).unwrap();
        image.create_snapshot("v2").unwrap();
        let wish = lab.wish("a").of_image(&lab, OTHER_POOL, format, "v2");
        let error = lab.refused(|controller| controller.create(&wish));
        let words = format!("in the format {format}");
        assert!(matches!(&error, Error::Invalid(why) if why.contains(&words)), "{error:?}");
        // The snapshot counts, not the head, and not the name.
        lab.make(&lab.wish(format).of_image(&lab, OTHER_POOL, format, "v1"));
    }
}

#[test]
fn a_user_who_may_not_read_it_is_told_so() {
    let lab = lab_with_golden(OTHER_POOL);
    let session = lab.controller.session.clone();
    lab.controller.session.on_call(move |call| {
        if call.method == "open_image" && call.object.starts_with("two/") {
            session.inject(call.number, Fault::Fail(Errno::EPERM));
        }
    });
    let wish = lab.wish("a").of_image(&lab, OTHER_POOL, "G", "v1");
    let error = lab.refused(|controller| controller.create(&wish));
    assert!(
        matches!(&error, Error::MayNotClone { pool, namespace, .. } if pool == "two" && namespace.is_empty()),
        "{error:?}"
    );
    assert!(error.is_final());
}

#[test]
fn a_repeated_request_must_name_the_same_image() {
    let lab = lab_with_golden(OTHER_POOL);
    lab.golden(OTHER_POOL, "H");
    let wish = lab.wish("a").of_image(&lab, OTHER_POOL, "G", "v1");
    let made = lab.make(&wish);
    assert_eq!(lab.make(&wish), made);
    let other = lab.wish("a").of_image(&lab, OTHER_POOL, "H", "v1");
    for wish in [other, lab.wish("a")] {
        let error = lab.refused(|controller| controller.create(&wish));
        let words = "it was made from the image rbd://";
        assert!(matches!(&error, Error::AlreadyExists(why) if why.contains(words)), "{error:?}");
    }
}

/// At the limit the clone is flattened, whatever the policy says of sources.
#[test]
fn it_is_never_flattened() {
    for target in [FlattenTarget::Auto, FlattenTarget::Source, FlattenTarget::Clone] {
        for home in [RBD, OTHER_POOL] {
            let lab = Lab::new();
            lab.golden(home, "base");
            let spec = cinderblock::rbd::SnapshotSpec {
                pool: home.pool.to_owned(),
                namespace: String::new(),
                image: "base".to_owned(),
                snapshot: "v1".to_owned(),
            };
            lab.pool(home).clone_image(&spec, "G", &ImageOptions::default()).unwrap();
            lab.open(home, "G").create_snapshot("v1").unwrap();
            if home != RBD {
                lab.controller.session.read_only(home.pool, home.namespace);
            }
            let before = untouched(&lab.graph(), home);
            let wish = |name: &str, depth| {
                lab.wish(name).depth(depth).flatten(target).of_image(&lab, home, "G", "v1")
            };
            lab.make(&wish("a", 1));
            lab.make(&wish("b", 2));
            lab.make(&wish("c", 0));
            assert_eq!(untouched(&lab.graph(), home), before);
            let texts = ["base", "base", "base"];
            for (name, is_clone) in [("a", false), ("b", true), ("c", false)] {
                lab.assert_holds(RBD, name, &texts);
                let parent = lab.open(RBD, name).parent(None).unwrap();
                assert_eq!(parent.is_some(), is_clone, "{name}, {target:?}");
            }
            lab.golden.lock().unwrap().push((home, "G".to_owned()));
            lab.assert_at_rest();
        }
    }
}

/// The option is about restores.
#[test]
fn flatten_on_restore_leaves_it_shared() {
    let lab = lab_with_golden(OTHER_POOL);
    let mut wish = lab.wish("a").of_image(&lab, OTHER_POOL, "G", "v1");
    wish.policy.flatten_on_restore = true;
    lab.make(&wish);
    assert_eq!(lab.picture(), "a <- two/G@v1 ; two/G [v1]");
}

/// Clones, snapshots and restores of such a volume are the driver's own, and go by its rules.
#[test]
fn what_is_made_of_its_volumes_lives_and_goes_as_ever() {
    for home in [RBD, OTHER_POOL, OTHER_NAMESPACE] {
        for format in [CloneFormat::V1, CloneFormat::V2] {
            if format == CloneFormat::V1 && home == OTHER_NAMESPACE {
                continue;
            }
            let mut lab = lab_with_golden(home);
            lab.plain.format = format;
            lab.open(home, "G").protect_snapshot("v1").unwrap();
            let before = untouched(&lab.graph(), home);
            lab.make(&lab.wish("a").of_image(&lab, home, "G", "v1"));
            let s = lab.snapshot("a", "s");
            lab.restore(&s, "r");
            lab.clone("a", "c");
            // Deeper than allowed: `a` is flattened, and lets go of the golden image.
            lab.make(&lab.wish("d").of("a").depth(1).flatten(FlattenTarget::Source));
            assert!(lab.open(RBD, "a").parent(None).unwrap().is_none());
            lab.make(&lab.wish("e").of_image(&lab, home, "G", "v1"));
            let t = lab.snapshot("e", "t");
            for name in ["a", "d", "c", "e"] {
                lab.delete(name);
            }
            lab.assert_at_rest();
            lab.assert_holds(RBD, "r", GGG);
            lab.delete_snapshot(&s);
            lab.delete("r");
            lab.delete_snapshot(&t);
            lab.assert_at_rest();
            assert_eq!(untouched(&lab.graph(), home), before);
            assert!(!lab.picture().contains("<-"), "{}", lab.picture());
            assert!(lab.has_no_records(), "{}", lab.graph());
        }
    }
}

/// The driver's own volumes can be golden images, too: their snapshots are parked when they are
/// deleted, and go with the last clone.
#[test]
fn a_volume_of_the_driver_is_a_golden_image_that_is_collected_once_it_is_deleted() {
    for format in [CloneFormat::V1, CloneFormat::V2] {
        let mut lab = Lab::new();
        lab.plain.format = format;
        lab.create("G");
        let s = lab.snapshot("G", "s");
        lab.make(&lab.wish("a").of_image(&lab, RBD, "G", "s"));
        lab.assert_at_rest();
        lab.delete_snapshot(&s);
        lab.delete("G");
        lab.assert_holds(RBD, "a", GGG);
        lab.assert_at_rest();
        lab.delete("a");
        lab.assert_empty();
    }
}

/// The same where the user may only read: nothing there is written, and the volume goes.
#[test]
fn a_volume_of_the_driver_in_a_pool_that_is_only_read_is_one_too() {
    let lab = Lab::new();
    let writer = Controller::new(&lab.model);
    writer.create(&lab.wish("G").home(OTHER_POOL)).unwrap();
    let s = writer.snapshot(OTHER_POOL, "G", "s", 450).unwrap();
    lab.controller.session.read_only(OTHER_POOL.pool, OTHER_POOL.namespace);
    for depth in [5, 0] {
        lab.make(&lab.wish("a").depth(depth).of_image(&lab, OTHER_POOL, "G", "s"));
        lab.assert_at_rest();
        lab.delete("a");
        lab.assert_at_rest();
    }
    writer.delete_snapshot(&s).unwrap();
    writer.delete(OTHER_POOL, "G").unwrap();
    lab.assert_empty();
}

/// An administrator removes the snapshot of the golden image while it has clones.
#[test]
fn its_snapshot_may_go_before_its_clones() {
    let lab = lab_with_golden(OTHER_POOL);
    lab.make(&lab.wish("a").of_image(&lab, OTHER_POOL, "G", "v1"));
    lab.open(OTHER_POOL, "G").remove_snapshot("v1").unwrap();
    let error = lab.refused(|controller| {
        controller.create(&lab.wish("b").of_image(&lab, OTHER_POOL, "G", "v1"))
    });
    assert!(matches!(error, Error::NotFound(_)), "{error:?}");
    lab.assert_holds(RBD, "a", GGG);
    lab.clone("a", "c");
    lab.delete("a");
    lab.delete("c");
    let graph = lab.graph();
    let (.., image) = graph.images().next().unwrap();
    let mut parked = image.snapshots.values();
    assert!(parked.all(|snapshot| matches!(snapshot.kind, SnapshotKind::Trash { .. })));
    assert!(lab.has_no_records(), "{graph}");
}

/// A flatten that was killed between the two ends of the link to the golden image: the child still
/// needs a snapshot that does not list it any more. It is finished, although the golden image's
/// pool has no journal.
#[test]
fn a_killed_flatten_is_finished_by_the_next_sweep() {
    for home in [RBD, OTHER_POOL] {
        let halves = (1..).map_while(|step| kill_flatten(home, step));
        assert_eq!(halves.filter(|half| *half).count(), 1, "no kill left a half of a link");
    }
}

/// Kills the flatten of a clone of a golden image after this step. Says whether that left a half of
/// the link; `None` when there is no such step.
fn kill_flatten(home: Home, step: usize) -> Option<bool> {
    let lab = lab_with_golden(home);
    lab.make(&lab.wish("a").of_image(&lab, home, "G", "v1"));
    let controller = || {
        let controller = Controller::new(&lab.model);
        if home != RBD {
            controller.session.read_only(home.pool, home.namespace);
        }
        controller
    };
    let victim = controller();
    let session = victim.session.clone();
    victim.session.on_call(move |call| {
        if call.method == "flatten" {
            session.inject(call.number, Fault::CrashInside(step));
        }
    });
    victim.create(&lab.wish("d").of("a").depth(1).flatten(FlattenTarget::Source)).err()?;
    let graph = lab.graph();
    let named = |name: &str| {
        let is_it = |image: &ImageGraph| image.name.as_deref() == Some(name);
        graph.images().find(|(.., image)| is_it(image)).unwrap().3
    };
    let is_listed = named("G").snapshots.values().any(|snapshot| !snapshot.children.is_empty());
    let is_half = !is_listed && named("a").link.is_some();
    controller().recover().unwrap();
    if is_half {
        assert!(lab.open(RBD, "a").parent(None).unwrap().is_none(), "it is finished");
    }
    controller().delete(RBD, "d").unwrap();
    lab.assert_holds(RBD, "a", GGG);
    lab.delete("a");
    controller().recover().unwrap();
    lab.assert_at_rest();
    assert!(lab.has_no_records(), "{}", lab.graph());
    Some(is_half)
}
