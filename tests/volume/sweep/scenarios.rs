//! The operations that are killed, each on a cluster in which it has much to do.

use cinderblock::rbd::CloneFormat;
use cinderblock::volume::{FlattenTarget, Result};

use super::Scenario;
use crate::lab::{BLOCK, Controller, Cut, Lab, OTHER_NAMESPACE, OTHER_POOL, RBD, Wish};
use crate::rest::Notes;

/// A snapshot by name, as its holder knows it; one that is gone has forgotten its image.
fn cut(lab: &Lab, name: &str) -> Cut {
    let notes = Notes::of(&lab.graph());
    let record = notes.snapshots.get(&(("rbd".to_owned(), String::new()), name.to_owned()));
    let image_id = record.map_or_else(String::new, |record| record.image_id.clone());
    Cut { home: RBD, image_id, name: name.to_owned() }
}

fn make(controller: &Controller, wish: &Wish) -> Result<String> {
    controller
        .create(wish)
        .map(|record| format!("{} {} {:?}", record.id, record.size, record.image_id))
}

fn delete(controller: &Controller, name: &str) -> Result<String> {
    controller.delete(RBD, name).map(|()| "gone".to_owned())
}

fn snapshot(controller: &Controller, volume: &str, name: &str) -> Result<String> {
    controller.snapshot(RBD, volume, name, 450).map(|cut| cut.id())
}

fn nothing(_: &Lab) {}

fn holds(name: &'static str, texts: &[&'static str]) -> impl Fn(&Lab) {
    move |lab| lab.assert_holds(RBD, name, texts)
}

/// A volume A whose blocks hold "A".
fn a(format: CloneFormat) -> Lab {
    let mut lab = Lab::new();
    lab.plain.format = format;
    lab.create("A");
    lab
}

/// A, B cloned of A, C cloned of B.
fn a_b_c(format: CloneFormat) -> Lab {
    let lab = a(format);
    lab.clone("A", "B");
    lab.clone("B", "C");
    lab
}

/// A with the snapshot s.
fn a_s(format: CloneFormat) -> Lab {
    let lab = a(format);
    lab.snapshot("A", "s");
    lab
}

/// A with the snapshot s, from which B was restored; A was written since.
fn a_s_b(format: CloneFormat) -> Lab {
    let lab = a_s(format);
    lab.restore(&cut(&lab, "s"), "B");
    lab.write(RBD, "A", 0, "later");
    lab
}

const V1: CloneFormat = CloneFormat::V1;
const V2: CloneFormat = CloneFormat::V2;

fn wish(name: &str, format: CloneFormat) -> Wish {
    Wish::new(name).format(format)
}

/// All of them.
pub(super) fn all() -> Vec<Scenario> {
    let mut all = creations();
    all.extend(restores());
    all.extend(deletions());
    all.extend(snapshots());
    all.extend(groups());
    all.extend(others());
    all.extend(golden());
    all.extend(trash());
    all
}

/// A, filled, whose class has a trash.
fn with_trash(format: CloneFormat) -> Lab {
    let mut lab = Lab::new();
    lab.plain.format = format;
    lab.plain = lab.plain.clone().parked();
    lab.create("A");
    lab
}

/// A in the trash, with the clone B of it.
fn a_in_trash(format: CloneFormat) -> Lab {
    let lab = with_trash(format);
    lab.clone("A", "B");
    lab.delete("A");
    lab
}

fn in_trash(lab: &Lab, names: &[&str]) {
    let parked = lab.controller.trash(RBD);
    let parked: Vec<_> = parked.iter().map(|parked| parked.image.as_str()).collect();
    assert_eq!(parked, names, "{}", lab.graph());
}

fn trash() -> Vec<Scenario> {
    let a_is_back = |lab: &Lab| {
        in_trash(lab, &[]);
        holds("A", &["A", "A", "A"])(lab);
        holds("B", &["A", "A", "A"])(lab);
    };
    let back = |name, before| Scenario {
        name,
        before,
        ask: |_, controller| {
            controller.take_back(RBD, "A").map(|record| format!("{} {:?}", record.id, record.state))
        },
        opposite: Some(|_, controller| controller.delete(RBD, "A")),
        done: a_is_back,
    };
    let purge = |name, before| Scenario {
        name,
        before,
        ask: |_, controller| controller.purge(RBD, "A").map(|()| String::new()),
        opposite: None,
        done: |lab| in_trash(lab, &[]),
    };
    vec![
        Scenario {
            name: "delete, into the trash",
            before: || with_trash(V2),
            ask: |_, controller| delete(controller, "A"),
            opposite: None,
            done: |lab| in_trash(lab, &["A"]),
        },
        Scenario {
            name: "delete with a snapshot, into the trash",
            before: || {
                let lab = with_trash(V2);
                lab.snapshot("A", "s");
                lab.restore(&cut(&lab, "s"), "B");
                lab
            },
            ask: |_, controller| delete(controller, "A"),
            opposite: None,
            done: |lab| in_trash(lab, &["A"]),
        },
        Scenario {
            name: "delete a clone, into the trash, 1",
            before: || {
                let lab = with_trash(V1);
                lab.clone("A", "B");
                lab
            },
            ask: |_, controller| delete(controller, "B"),
            opposite: None,
            done: |lab| in_trash(lab, &["B"]),
        },
        Scenario {
            name: "delete the source of what is in the trash",
            before: || {
                let lab = with_trash(V2);
                lab.clone("A", "B");
                lab.delete("B");
                lab
            },
            ask: |_, controller| delete(controller, "A"),
            opposite: None,
            done: |lab| in_trash(lab, &["A", "B"]),
        },
        back("back from the trash, 1", || a_in_trash(V1)),
        back("back from the trash, 2", || a_in_trash(V2)),
        purge("purge", || {
            let lab = with_trash(V2);
            lab.delete("A");
            lab
        }),
        purge("purge of a volume with a clone", || a_in_trash(V1)),
        purge("purge of a clone, walking up", || {
            let lab = Lab::new();
            lab.create("P");
            lab.make(&Wish::new("A").of("P").parked());
            lab.delete("P");
            lab.delete("A");
            lab
        }),
        Scenario {
            name: "the sweeper purges what is over",
            before: || {
                let lab = a_in_trash(V2);
                lab.delete("B");
                let volumes = lab.controller.volumes(RBD).unwrap();
                for parked in volumes.trash().unwrap() {
                    let id = &parked.image_id;
                    let stored = volumes.catalogue().silent(&parked.image, id).unwrap().unwrap();
                    let mut over = stored.record.clone();
                    over.trash.as_mut().unwrap().until = 0;
                    volumes.catalogue().replace(&parked.image, &stored, over).unwrap();
                }
                lab
            },
            ask: |_, controller| controller.recover().map(|()| String::new()),
            opposite: None,
            done: |lab| in_trash(lab, &[]),
        },
    ]
}

/// A lab with a golden image in a pool that the user may only read, and volumes made of it.
fn with_golden(format: CloneFormat, volumes: &[&str]) -> Lab {
    let mut lab = Lab::new();
    lab.plain.format = format;
    lab.golden(OTHER_POOL, "G");
    lab.open(OTHER_POOL, "G").protect_snapshot("v1").unwrap();
    for name in volumes {
        lab.make(&golden_wish(&lab, name, format));
    }
    lab
}

fn golden_wish(lab: &Lab, name: &str, format: CloneFormat) -> Wish {
    wish(name, format).of_image(lab, OTHER_POOL, "G", "v1")
}

/// A controller whose user may only read the golden image's pool.
fn reader(controller: &Controller) -> &Controller {
    controller.session.read_only(OTHER_POOL.pool, OTHER_POOL.namespace);
    controller
}

fn golden() -> Vec<Scenario> {
    fn make_d(
        lab: &Lab,
        controller: &Controller,
        format: CloneFormat,
        depth: u32,
    ) -> Result<String> {
        make(reader(controller), &larger(golden_wish(lab, "d", format).depth(depth)))
    }
    let opposite: fn(&Lab, &Controller) -> Result<()> =
        |_, controller| reader(controller).delete(RBD, "d");
    let done: fn(&Lab) = |lab| holds("d", &["G", "G", "G", ""])(lab);
    vec![
        Scenario {
            name: "from a golden image, format 2, larger",
            before: || with_golden(V2, &[]),
            ask: |lab, controller| make_d(lab, controller, V2, 5),
            opposite: Some(opposite),
            done,
        },
        Scenario {
            name: "from a golden image, format 1, larger",
            before: || with_golden(V1, &[]),
            ask: |lab, controller| make_d(lab, controller, V1, 5),
            opposite: Some(opposite),
            done,
        },
        Scenario {
            name: "from a golden image, full copy",
            before: || with_golden(V2, &[]),
            ask: |lab, controller| make_d(lab, controller, V2, 0),
            opposite: Some(opposite),
            done,
        },
        Scenario {
            name: "clone at the depth limit of a clone of a golden image",
            before: || with_golden(V2, &["b"]),
            ask: |_, controller| {
                let wish = wish("d", V2).of("b").depth(1).flatten(FlattenTarget::Source);
                make(reader(controller), &wish)
            },
            opposite: Some(opposite),
            done: |lab| holds("d", &["G", "G", "G"])(lab),
        },
        Scenario {
            name: "delete a clone of a golden image",
            before: || with_golden(V2, &["d", "b"]),
            ask: |_, controller| delete(reader(controller), "d"),
            opposite: None,
            done: |lab| holds("b", &["G", "G", "G"])(lab),
        },
    ]
}

fn creations() -> Vec<Scenario> {
    vec![
        Scenario {
            name: "create empty",
            before: Lab::new,
            ask: |_, controller| make(controller, &Wish::new("d")),
            opposite: Some(|_, controller| controller.delete(RBD, "d")),
            done: holds_zeros_d,
        },
        Scenario {
            name: "create empty, hashed name",
            before: Lab::new,
            ask: |_, controller| {
                let mut request = Wish::new("d").request();
                "a/b".clone_into(&mut request.name);
                let made = controller.volumes(RBD)?.create(&request)?;
                Ok(format!("{:?}", made.into_record().image_id))
            },
            opposite: Some(|_, controller| controller.delete(RBD, "d")),
            done: holds_zeros_d,
        },
        Scenario {
            name: "clone, format 2",
            before: || a(V2),
            ask: |_, controller| make(controller, &wish("d", V2).of("A")),
            opposite: Some(|_, controller| controller.delete(RBD, "d")),
            done: |lab| holds("d", &["A", "A", "A"])(lab),
        },
        Scenario {
            name: "clone, format 1, larger",
            before: || a(V1),
            ask: |_, controller| make(controller, &larger(wish("d", V1).of("A"))),
            opposite: Some(|_, controller| controller.delete(RBD, "d")),
            done: |lab| holds("d", &["A", "A", "A", ""])(lab),
        },
        Scenario {
            name: "clone at the limit, flatten the source, 1",
            before: || a_b_c(V1),
            ask: |_, controller| {
                make(controller, &wish("d", V1).of("B").depth(1).flatten(FlattenTarget::Source))
            },
            opposite: Some(|_, controller| controller.delete(RBD, "d")),
            done: |lab| holds("d", &["A", "A", "A"])(lab),
        },
        Scenario {
            name: "clone at the limit, flatten the source, 2",
            before: || {
                let lab = a_b_c(V2);
                lab.delete("A");
                lab
            },
            ask: |_, controller| {
                make(controller, &wish("d", V2).of("B").depth(1).flatten(FlattenTarget::Source))
            },
            opposite: Some(|_, controller| controller.delete(RBD, "d")),
            done: |lab| holds("d", &["A", "A", "A"])(lab),
        },
        Scenario {
            name: "clone at the limit, flatten the clone, 1",
            before: || a_b_c(V1),
            ask: |_, controller| {
                make(controller, &wish("d", V1).of("C").depth(2).flatten(FlattenTarget::Clone))
            },
            opposite: Some(|_, controller| controller.delete(RBD, "d")),
            done: |lab| holds("d", &["A", "A", "A"])(lab),
        },
        Scenario {
            name: "clone at the limit, flatten the clone, 2",
            before: || a_b_c(V2),
            ask: |_, controller| {
                make(controller, &wish("d", V2).of("C").depth(2).flatten(FlattenTarget::Clone))
            },
            opposite: Some(|_, controller| controller.delete(RBD, "d")),
            done: |lab| holds("d", &["A", "A", "A"])(lab),
        },
        Scenario {
            name: "full copy",
            before: || a(V2),
            ask: |_, controller| make(controller, &larger(wish("d", V2).of("A").depth(0))),
            opposite: Some(|_, controller| controller.delete(RBD, "d")),
            done: |lab| holds("d", &["A", "A", "A", ""])(lab),
        },
        Scenario {
            name: "full copy of a snapshot",
            before: || a_s(V1),
            ask: |lab, controller| {
                make(controller, &wish("d", V1).of_snapshot(&cut(lab, "s")).depth(0))
            },
            opposite: Some(|_, controller| controller.delete(RBD, "d")),
            done: |lab| holds("d", &["A", "A", "A"])(lab),
        },
        Scenario {
            name: "clone at the snapshot limit",
            before: || {
                let lab = a(V2);
                lab.clone("A", "B");
                lab.clone("A", "C");
                lab
            },
            ask: |_, controller| make(controller, &wish("d", V2).of("A").max_snapshots(2)),
            opposite: Some(|_, controller| controller.delete(RBD, "d")),
            done: |lab| holds("d", &["A", "A", "A"])(lab),
        },
        Scenario {
            name: "clone into another pool",
            before: || a(V1),
            ask: |_, controller| {
                make(controller, &wish("d", V1).home(OTHER_POOL).of_volume_in(RBD, "A"))
            },
            opposite: Some(|_, controller| controller.delete(OTHER_POOL, "d")),
            done: |lab| lab.assert_holds(OTHER_POOL, "d", &["A", "A", "A"]),
        },
        Scenario {
            name: "clone into another namespace",
            before: || a(V2),
            ask: |_, controller| {
                make(controller, &wish("d", V2).home(OTHER_NAMESPACE).of_volume_in(RBD, "A"))
            },
            opposite: Some(|_, controller| controller.delete(OTHER_NAMESPACE, "d")),
            done: |lab| lab.assert_holds(OTHER_NAMESPACE, "d", &["A", "A", "A"]),
        },
        Scenario {
            name: "clone while a same-named one's child lives",
            before: || {
                let lab = a(V2);
                lab.clone("A", "d");
                lab.clone("d", "E");
                lab.delete("d");
                lab
            },
            ask: |_, controller| make(controller, &wish("d", V2).of("A")),
            opposite: Some(|_, controller| controller.delete(RBD, "d")),
            done: |lab| holds("d", &["A", "A", "A"])(lab),
        },
    ]
}

fn holds_zeros_d(lab: &Lab) {
    lab.assert_holds(RBD, "d", &["", "", ""]);
}

fn larger(wish: Wish) -> Wish {
    wish.blocks(4)
}

fn restores() -> Vec<Scenario> {
    vec![
        Scenario {
            name: "restore, format 2",
            before: || a_s(V2),
            ask: |lab, controller| make(controller, &wish("d", V2).of_snapshot(&cut(lab, "s"))),
            opposite: Some(|_, controller| controller.delete(RBD, "d")),
            done: |lab| holds("d", &["A", "A", "A"])(lab),
        },
        Scenario {
            name: "restore, format 1, larger, deleted volume",
            before: || {
                let lab = a_s(V1);
                lab.delete("A");
                lab
            },
            ask: |lab, controller| {
                make(controller, &larger(wish("d", V1).of_snapshot(&cut(lab, "s"))))
            },
            opposite: Some(|_, controller| controller.delete(RBD, "d")),
            done: |lab| holds("d", &["A", "A", "A", ""])(lab),
        },
        Scenario {
            name: "restore in format 1 of an unprotected snapshot",
            before: || a_s(V2),
            ask: |lab, controller| make(controller, &wish("d", V1).of_snapshot(&cut(lab, "s"))),
            opposite: Some(|_, controller| controller.delete(RBD, "d")),
            done: |lab| holds("d", &["A", "A", "A"])(lab),
        },
        Scenario {
            name: "restore, flattenOnRestore",
            before: || a_s(V2),
            ask: |lab, controller| {
                let mut wish = larger(wish("d", V2).of_snapshot(&cut(lab, "s")));
                wish.policy.flatten_on_restore = true;
                make(controller, &wish)
            },
            opposite: Some(|_, controller| controller.delete(RBD, "d")),
            done: |lab| holds("d", &["A", "A", "A", ""])(lab),
        },
        Scenario {
            name: "restore into another pool, format 1",
            before: || a_s(V1),
            ask: |lab, controller| {
                make(controller, &wish("d", V1).home(OTHER_POOL).of_snapshot(&cut(lab, "s")))
            },
            opposite: Some(|_, controller| controller.delete(OTHER_POOL, "d")),
            done: |lab| lab.assert_holds(OTHER_POOL, "d", &["A", "A", "A"]),
        },
        Scenario {
            name: "restore at the limit, flatten the source",
            before: || {
                let lab = a(V2);
                lab.clone("A", "B");
                lab.snapshot("B", "s");
                lab
            },
            ask: |lab, controller| {
                make(
                    controller,
                    &wish("d", V2)
                        .of_snapshot(&cut(lab, "s"))
                        .depth(1)
                        .flatten(FlattenTarget::Source),
                )
            },
            opposite: Some(|_, controller| controller.delete(RBD, "d")),
            done: |lab| holds("d", &["A", "A", "A"])(lab),
        },
    ]
}

const WALK_INTO_ANOTHER_POOL: &str = "delete, walking up into another pool";
const SNAPSHOT_AT_THE_LIMIT: &str = "snapshot at the snapshot limit";

fn deletions() -> Vec<Scenario> {
    let delete_c = |name, before| Scenario {
        name,
        before,
        ask: |_, controller| delete(controller, "C"),
        opposite: None,
        done: nothing,
    };
    vec![
        Scenario {
            name: "delete plain",
            before: || a(V2),
            ask: |_, controller| delete(controller, "A"),
            opposite: Some(|_, controller| make(controller, &Wish::new("A")).map(drop)),
            done: nothing,
        },
        delete_c("delete a clone, format 1", || a_b_c(V1)),
        delete_c("delete a clone, format 2", || a_b_c(V2)),
        delete_c("delete, walking up two silent parents, 1", || {
            let lab = a_b_c(V1);
            lab.delete("A");
            lab.delete("B");
            lab
        }),
        delete_c("delete, walking up two silent parents, 2", || {
            let lab = a_b_c(V2);
            lab.delete("A");
            lab.delete("B");
            lab
        }),
        delete_c(WALK_INTO_ANOTHER_POOL, || {
            let lab = Lab::new();
            lab.make(&Wish::new("A").home(OTHER_POOL));
            lab.make(&Wish::new("B").of_volume_in(OTHER_POOL, "A"));
            lab.make(&Wish::new("C").of("B"));
            lab.controller.delete(OTHER_POOL, "A").unwrap();
            lab.delete("B");
            lab
        }),
        Scenario {
            name: "delete with a clone, becomes silent, 1",
            before: || a_b_c(V1),
            ask: |_, controller| delete(controller, "B"),
            opposite: None,
            done: |lab| holds("C", &["A", "A", "A"])(lab),
        },
        Scenario {
            name: "delete with a clone, becomes silent, 2",
            before: || a_b_c(V2),
            ask: |_, controller| delete(controller, "B"),
            opposite: Some(|_, controller| make(controller, &Wish::new("B").of("A")).map(drop)),
            done: |lab| holds("C", &["A", "A", "A"])(lab),
        },
        Scenario {
            name: "delete with a snapshot, becomes silent",
            before: || a_s_b(V1),
            ask: |_, controller| delete(controller, "A"),
            opposite: None,
            done: |lab| holds("B", &["A", "A", "A"])(lab),
        },
        Scenario {
            name: "delete where the silent name is taken",
            before: || {
                let lab = a_s(V2);
                lab.delete("A");
                lab.create("A");
                lab.snapshot("A", "t");
                lab
            },
            ask: |_, controller| delete(controller, "A"),
            opposite: None,
            done: nothing,
        },
        Scenario {
            name: "delete with backup snapshots and a parent",
            before: || {
                let lab = a(V2);
                lab.make(&Wish::new("B").of("A").shallow_flatten());
                lab.open(RBD, "B").create_snapshot("backup.1.snap.1").unwrap();
                lab.open(RBD, "B").create_snapshot("backup.1.snap.2").unwrap();
                lab.flatten_outside("B");
                lab
            },
            ask: |_, controller| delete(controller, "B"),
            opposite: None,
            done: nothing,
        },
    ]
}

fn snapshots() -> Vec<Scenario> {
    let delete_s = |name, before, done| Scenario {
        name,
        before,
        ask: |lab, controller| {
            controller.delete_snapshot(&cut(lab, "s")).map(|()| "gone".to_owned())
        },
        opposite: None,
        done,
    };
    vec![
        Scenario {
            name: "snapshot, format 1",
            before: || a(V1),
            ask: |_, controller| snapshot(controller, "A", "s"),
            opposite: Some(|lab, controller| controller.delete_snapshot(&cut(lab, "s"))),
            done: nothing,
        },
        Scenario {
            name: "snapshot, format 2",
            before: || a(V2),
            ask: |_, controller| snapshot(controller, "A", "s"),
            opposite: Some(|lab, controller| controller.delete_snapshot(&cut(lab, "s"))),
            done: nothing,
        },
        Scenario {
            name: SNAPSHOT_AT_THE_LIMIT,
            before: || {
                let lab = a(V1);
                lab.clone("A", "B");
                lab.clone("A", "C");
                lab
            },
            ask: |_, controller| controller.snapshot(RBD, "A", "s", 2).map(|cut| cut.id()),
            opposite: Some(|lab, controller| controller.delete_snapshot(&cut(lab, "s"))),
            done: |lab| holds("B", &["A", "A", "A"])(lab),
        },
        delete_s("delete snapshot, format 1", || a_s(V1), nothing),
        delete_s("delete snapshot, format 2", || a_s(V2), nothing),
        delete_s(
            "delete snapshot with a clone, format 1",
            || a_s_b(V1),
            |lab| {
                lab.assert_holds(RBD, "B", &["A", "A", "A"]);
            },
        ),
        delete_s(
            "delete snapshot with a clone, format 2",
            || a_s_b(V2),
            |lab| {
                lab.assert_holds(RBD, "B", &["A", "A", "A"]);
            },
        ),
        delete_s(
            "delete the last snapshot of a silent parent, 1",
            || {
                let lab = a(V1);
                lab.clone("A", "B");
                lab.snapshot("B", "s");
                lab.delete("A");
                lab.delete("B");
                lab
            },
            nothing,
        ),
        delete_s(
            "delete the last snapshot of a silent parent, 2",
            || {
                let lab = a(V2);
                lab.clone("A", "B");
                lab.snapshot("B", "s");
                lab.delete("A");
                lab.delete("B");
                lab
            },
            nothing,
        ),
        delete_s(
            "delete a cloned snapshot that alone holds a parent",
            || {
                let lab = a(V2);
                lab.make(&Wish::new("B").of("A").shallow_flatten());
                let s = lab.snapshot("B", "s");
                lab.restore(&s, "C");
                lab.flatten_outside("B");
                lab
            },
            |lab| lab.assert_holds(RBD, "C", &["A", "A", "A"]),
        ),
    ]
}

/// A, and B cloned of it, both in the group snapshot g; A was written since.
fn a_b_g(format: CloneFormat) -> Lab {
    let lab = a(format);
    lab.clone("A", "B");
    lab.controller.group(RBD, "g", &["A", "B"]).unwrap();
    lab.write(RBD, "A", 0, "later");
    lab
}

fn group(controller: &Controller, name: &str) -> Result<String> {
    controller
        .group(RBD, name, &["A", "B"])
        .map(|group| format!("{:?} {:?}", group.state, group.members))
}

fn groups() -> Vec<Scenario> {
    let create = |name, before| Scenario {
        name,
        before,
        ask: |_, controller| group(controller, "h"),
        opposite: Some(|_, controller| controller.delete_group(RBD, "h")),
        done: nothing,
    };
    let delete = |name, before, done| Scenario {
        name,
        before,
        ask: |_, controller| controller.delete_group(RBD, "g").map(|()| "gone".to_owned()),
        opposite: None,
        done,
    };
    vec![
        create("group snapshot, format 1", || a_b_g(V1)),
        create("group snapshot, format 2", || a_b_g(V2)),
        delete("delete group snapshot, format 1", || a_b_g(V1), nothing),
        delete(
            "delete group snapshot with a clone, deleted volume",
            || {
                let lab = a_b_g(V2);
                lab.restore(&cut(&lab, "g-B"), "C");
                lab.delete("B");
                lab
            },
            |lab| lab.assert_holds(RBD, "C", &["A", "A", "A"]),
        ),
    ]
}

fn others() -> Vec<Scenario> {
    vec![
        Scenario {
            name: "grow",
            before: || a(V2),
            ask: |_, controller| {
                controller.grow(RBD, "A", 5).map(|size| (size / BLOCK).to_string())
            },
            opposite: None,
            done: |lab| holds("A", &["A", "A", "A", "", ""])(lab),
        },
        Scenario {
            name: "publish",
            before: || a(V2),
            ask: |_, controller| controller.publish(RBD, "A", "n").map(|()| String::new()),
            opposite: Some(|_, controller| controller.unpublish(RBD, "A")),
            done: nothing,
        },
        Scenario {
            name: "unpublish",
            before: || {
                let lab = a(V2);
                lab.controller.publish(RBD, "A", "n").unwrap();
                lab
            },
            ask: |_, controller| controller.unpublish(RBD, "A").map(|()| String::new()),
            opposite: None,
            done: nothing,
        },
        Scenario {
            name: "recovery after a killed walk up",
            before: || a(V2),
            ask: |_, controller| controller.recover().map(|()| String::new()),
            opposite: None,
            done: nothing,
        },
    ]
}
