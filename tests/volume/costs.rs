//! What each operation asks of Ceph, call by call, in order.
//!
//! Left out is what an open image answers by itself: its id, size, features, snapshots and locks.
//! `open` is one librbd open; `parent` and `children` at a snapshot are one more open each inside
//! librbd's binding, of the same image set to that snapshot.

use cinderblock::rbd::OmapUpdate;
use cinderblock::rbd::model::CallRecord;
use cinderblock::volume::Sizes;

use crate::lab::{BLOCK, Controller, Lab, RBD};

/// The calls that `act` makes with the volumes of the default pool, open already.
fn calls(lab: &Lab, act: impl FnOnce(&cinderblock::volume::Volumes)) -> Vec<&'static str> {
    let controller = Controller::new(&lab.model);
    let volumes = controller.volumes(RBD).unwrap();
    let before = controller.session.log().len();
    act(&volumes);
    let asked =
        |call: &CallRecord| !matches!(call.info.method, "id" | "info" | "snapshots" | "hold");
    controller.session.log()[before..]
        .iter()
        .filter(|call| asked(call))
        .map(|call| call.info.method)
        .collect()
}

fn create(lab: &Lab, wish: &crate::lab::Wish) -> Vec<&'static str> {
    calls(lab, |volumes| {
        volumes.create(&wish.request()).unwrap();
    })
}

/// A with the snapshot s, and B cloned of A.
fn cluster(lab: Lab) -> Lab {
    lab.create("A");
    lab.snapshot("A", "s");
    lab.clone("A", "B");
    lab
}

#[test]
fn create_an_empty_volume() {
    let lab = Lab::new();
    // `image_id` is the look that keeps foreign images safe: one read.
    let wanted = ["omap_get", "image_id", "omap_update", "create_image", "image_id", "omap_update"];
    assert_eq!(create(&lab, &lab.wish("A")), wanted);
    assert_eq!(create(&lab, &lab.wish("A")), ["omap_get", "image_id"], "asked again");
}

#[test]
fn create_a_volume_from_a_snapshot() {
    let lab = cluster(Lab::new());
    let s = lab.snapshot("A", "s");
    let look = ["omap_get", "omap_get", "open_image", "image_id", "omap_update", "parent"];
    // `metadata_list` shows what librbd copies that is the source's own.
    let clone =
        ["name", "clone_image", "metadata_list", "open_image", "parent", "children", "omap_update"];
    assert_eq!(create(&lab, &lab.wish("C").of_snapshot(&s)), [&look[..], &clone[..]].concat());
    let larger = [
        "name",
        "clone_image",
        "metadata_list",
        "open_image",
        "parent",
        "children",
        "resize",
        "omap_update",
    ];
    assert_eq!(
        create(&lab, &lab.wish("D").of_snapshot(&s).blocks(9)),
        [&look[..], &larger[..]].concat()
    );
    assert_eq!(
        create(&lab, &lab.wish("C").of_snapshot(&s)),
        ["omap_get", "image_id"],
        "asked again"
    );
}

#[test]
fn create_a_volume_from_a_golden_image() {
    let lab = Lab::new();
    lab.golden(RBD, "G");
    let wanted = [
        "omap_get",
        "fsid",
        "open_image",
        "read_at",
        "image_id",
        "omap_update",
        "parent",
        "name",
        "clone_image",
        "metadata_list",
        "open_image",
        "parent",
        "omap_update",
    ];
    let wish = lab.wish("a").of_image(&lab, RBD, "G", "v1");
    assert_eq!(create(&lab, &wish), wanted);
    assert_eq!(create(&lab, &wish), ["omap_get", "image_id"], "asked again");
}

#[test]
fn create_a_volume_from_a_volume() {
    for (lab, protect) in
        [(Lab::new(), &[][..]), (Lab::format_1(), &["children", "protect_snapshot"])]
    {
        let lab = cluster(lab);
        let wanted = ["omap_get", "omap_get", "open_image", "image_id", "omap_update", "parent"]
            .into_iter()
            .chain(["open_image", "create_snapshot"])
            .chain(protect.iter().copied())
            .chain(["name", "clone_image", "metadata_list", "open_image"])
            .chain(["parent", "children", "omap_update"]);
        assert_eq!(create(&lab, &lab.wish("C").of("A")), wanted.collect::<Vec<_>>());
    }
}

#[test]
fn take_and_delete_a_snapshot() {
    let lab = cluster(Lab::new());
    let take = |name: &'static str| {
        let request = cinderblock::volume::CreateSnapshot {
            name: name.to_owned(),
            snapshot: name.to_owned(),
            volume_id: crate::lab::volume_id(RBD, "A"),
            image: "A".to_owned(),
            max_snapshots: 450,
        };
        calls(&lab, |volumes| {
            volumes.create_snapshot(&request).unwrap();
        })
    };
    let wanted =
        ["omap_get", "omap_get", "open_image", "omap_update", "create_snapshot", "omap_update"];
    assert_eq!(take("t"), wanted);
    assert_eq!(take("t"), ["omap_get", "omap_get"], "asked again");

    let t = lab.snapshot("A", "t");
    let delete = || calls(&lab, |volumes| volumes.delete_snapshot(&t.image_id, &t.name).unwrap());
    let wanted = [
        "omap_get",
        "open_image",
        "omap_update",
        "name",
        "rename_snapshot",
        // The journal, and the end of the record. The snapshot itself goes in the background.
        "omap_update",
        "omap_update",
    ];
    assert_eq!(delete(), wanted);
    assert_eq!(delete(), ["omap_get"], "asked again");
}

#[test]
fn delete_a_volume() {
    let lab = cluster(Lab::new());
    lab.create("C");
    let delete = |name: &'static str| calls(&lab, |volumes| drop(volumes.delete(name).unwrap()));
    let wanted = ["omap_get", "open_image", "watchers", "group", "omap_update", "parent"]
        .into_iter()
        // The pool may be set up to keep what is removed in its trash.
        .chain(["remove_image", "trash_get", "omap_update"]);
    assert_eq!(delete("C"), wanted.collect::<Vec<_>>());
    assert_eq!(delete("C"), ["omap_get", "image_id"], "asked again");
}

#[test]
fn delete_a_volume_with_a_snapshot() {
    let lab = Lab::new();
    lab.create("A");
    lab.snapshot("A", "s");
    // One more open, after the rename: a snapshot that went in between would leave a silent parent
    // that no snapshot needs.
    let wanted = [
        "omap_get",
        "open_image",
        "watchers",
        "group",
        "omap_update",
        "rename_image",
        "open_image",
    ]
    .into_iter()
    // Whether the snapshot is the driver's own.
    .chain(["omap_get", "omap_update"]);
    assert_eq!(
        calls(&lab, |volumes| drop(volumes.delete("A").unwrap())),
        wanted.collect::<Vec<_>>()
    );
}

#[test]
fn grow_publish_and_unpublish() {
    let lab = cluster(Lab::new());
    let grow = || {
        calls(&lab, |volumes| {
            volumes.grow("A", Sizes { required: 9 * BLOCK, limit: 0 }).unwrap();
        })
    };
    assert_eq!(grow(), ["omap_get", "open_image", "resize", "omap_update"]);
    assert_eq!(grow(), ["omap_get"], "asked again");
    let request = crate::lab::publish_volume("A", "n", false);
    let publish = || {
        calls(&lab, |volumes| {
            volumes.publish(&request).unwrap();
        })
    };
    assert_eq!(
        publish(),
        ["omap_get", "image_id", "omap_list", "open_image", "watchers", "omap_update"]
    );
    assert_eq!(publish(), ["omap_get", "image_id"], "asked again");
    let unpublish = || {
        calls(&lab, |volumes| {
            if let Some(leaving) = volumes.leaving("A", None, true).unwrap() {
                volumes.unpublish(leaving).unwrap();
            }
        })
    };
    assert_eq!(unpublish(), ["omap_get", "omap_get", "omap_update"]);
    assert_eq!(unpublish(), ["omap_get"], "asked again");
}

/// What others left in the journal, readable or not, costs no operation a call.
#[test]
fn nothing_costs_more_when_the_journal_is_full() {
    let counts = |full: bool| {
        let lab = cluster(Lab::new());
        if full {
            let stuck = |number| (format!("1@{number}#2"), b"written by another version".to_vec());
            let set = (0..1000).map(stuck).collect();
            let update = OmapUpdate { set, ..OmapUpdate::default() };
            lab.pool(RBD).omap_update("cinderblock.test.journal", &update).unwrap();
        }
        let s = lab.snapshot("A", "s");
        let count = |act: &dyn Fn(&Controller)| {
            let controller = Controller::new(&lab.model);
            act(&controller);
            controller.session.calls()
        };
        vec![
            count(&|controller| drop(controller.create(&lab.wish("C").of("A")).unwrap())),
            count(&|controller| drop(controller.create(&lab.wish("D").of_snapshot(&s)).unwrap())),
            count(&|controller| drop(controller.snapshot(RBD, "A", "t", 450).unwrap())),
            count(&|controller| controller.delete(RBD, "B").unwrap()),
            count(&|controller| controller.delete(RBD, "C").unwrap()),
            count(&|controller| controller.delete(RBD, "A").unwrap()),
            count(&|controller| controller.delete(RBD, "D").unwrap()),
            count(&|controller| controller.delete_snapshot(&s).unwrap()),
        ]
    };
    assert_eq!(counts(false), counts(true));
}
