//! Two controllers at work on the same volumes: before each call of a request in turn, another
//! controller carries out a whole other request. However that ends, both callers ask again until
//! they have their answer; then everything that is handed out holds what it should, all that must
//! hold at rest holds, and once everything is deleted nothing is left.
//!
//! The first stands still for as long as its lease lasts, so that the other fences it and takes its
//! work over, or for so short that the other respects the lease.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cinderblock::rbd::model::{Fault, Graph};
use cinderblock::rbd::{CloneFormat, OmapUpdate};
use cinderblock::volume::catalogue::State;
use cinderblock::volume::{Error, FlattenTarget, Policy, Result};

use crate::lab::{BLOCK, Controller, Cut, Lab, RBD, Wish, home};
use crate::rest::{Exempt, Notes, broken};

/// A request, asked of a controller, about the volumes of [`set_up`].
type Ask = fn(&Controller, &Known) -> Result<()>;

/// What the callers know.
#[derive(Debug, Clone)]
struct Known {
    plain: Wish,
    /// The snapshot `s` of `a`.
    cut: Cut,
}

impl Known {
    fn wish(&self, name: &str) -> Wish {
        Wish { name: name.to_owned(), ..self.plain.clone() }
    }
}

const REQUESTS: [(&str, Ask); 17] = [
    ("create n", |controller, known| controller.create(&known.wish("n")).map(drop)),
    ("create h", |controller, known| controller.create(&known.wish("h")).map(drop)),
    ("clone c of a", |controller, known| controller.create(&known.wish("c").of("a")).map(drop)),
    ("copy c of a", |controller, known| {
        controller.create(&known.wish("c").of("a").depth(0)).map(drop)
    }),
    ("clone d of a", |controller, known| controller.create(&known.wish("d").of("a")).map(drop)),
    ("clone d of b at the limit, b flattened", |controller, known| {
        controller
            .create(&known.wish("d").of("b").depth(1).flatten(FlattenTarget::Source))
            .map(drop)
    }),
    ("clone d of b at the limit, d flattened", |controller, known| {
        controller.create(&known.wish("d").of("b").depth(1).flatten(FlattenTarget::Clone)).map(drop)
    }),
    ("clone d of r at the limit, r flattened", |controller, known| {
        controller
            .create(&known.wish("d").of("r").depth(1).flatten(FlattenTarget::Source))
            .map(drop)
    }),
    ("restore e", |controller, known| {
        controller.create(&known.wish("e").of_snapshot(&known.cut)).map(drop)
    }),
    ("restore e, larger", |controller, known| {
        controller.create(&known.wish("e").of_snapshot(&known.cut).blocks(5)).map(drop)
    }),
    ("snapshot t of a", |controller, _| snapshot(controller, "t")),
    ("snapshot s of a", |controller, _| snapshot(controller, "s")),
    ("delete s", |controller, known| controller.delete_snapshot(&known.cut)),
    ("delete a", |controller, _| controller.delete(RBD, "a")),
    ("delete b", |controller, _| controller.delete(RBD, "b")),
    ("grow a", |controller, _| controller.grow(RBD, "a", 4).map(drop)),
    ("start", |controller, _| controller.recover()),
];

fn snapshot(controller: &Controller, name: &str) -> Result<()> {
    controller.snapshot(RBD, "a", name, Policy::default().max_snapshots).map(drop)
}

/// The volume `a` with a snapshot `s`; `b`, a clone of `a`; `r`, restored from `s`; and `h`, whose
/// deletion was killed.
fn set_up(format: CloneFormat) -> (Lab, Known) {
    let mut lab = Lab::new();
    lab.plain.format = format;
    lab.create("a");
    lab.clone("a", "b");
    let cut = lab.snapshot("a", "s");
    lab.restore(&cut, "r");
    lab.create("h");
    let victim = Controller::new(&lab.model);
    victim.session.inject(12, Fault::CrashBefore);
    victim.delete(RBD, "h").unwrap_err();
    let known = Known { plain: lab.plain.clone(), cut };
    (lab, known)
}

/// For how long the victim stands still, as the intruder sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stands {
    /// Its leases have expired.
    ForLong,
    /// Its leases hold.
    Shortly,
}

/// Plays `intruder` before call `at` of `victim`. Whether there was such a call.
fn play(
    format: CloneFormat,
    stands: Stands,
    victim: (&str, Ask),
    intruder: (&str, Ask),
    at: usize,
) -> bool {
    let (lab, known) = set_up(format);
    let patience = if stands == Stands::Shortly { Duration::from_hours(1) } else { Duration::ZERO };
    forget_leases(&lab);
    let first = Controller::patient(&lab.model, patience);
    let second = Controller::patient(&lab.model, patience);
    let met = Arc::new(Mutex::new(None));
    first.session.on_call({
        let (met, second, known, model) =
            (met.clone(), second.clone(), known.clone(), lab.model.clone());
        move |call| {
            if call.number == at {
                let _ = intruder.1(&second, &known);
                *met.lock().unwrap() = Some(ready_volumes(&model.graph()));
            }
        }
    });
    let _ = victim.1(&first, &known);
    let context =
        format!("{format:?}, {stands:?}, {}, and before call {at}: {}", victim.0, intruder.0);
    handed_out(&context, &lab);
    let met = met.lock().unwrap().take();
    if let (Some(before), false) = (&met, victim.0.starts_with("delete")) {
        let now = ready_volumes(&lab.graph());
        assert!(before.is_subset(&now), "{context}: of {before:?} remain {now:?}");
    }
    let last = Controller::new(&lab.model);
    for (what, ask) in [intruder, victim] {
        insist(&context, what, &lab, || ask(&last, &known));
    }
    check(&context, &lab, &last);
    clear(&context, &lab, &last);
    met.is_some()
}

/// Each with what tells it from another of its name.
fn ready_volumes(graph: &Graph) -> BTreeSet<(String, String)> {
    let volumes = Notes::of(graph).volumes.into_iter();
    let ready = volumes.filter(|(_, record)| record.state == State::Ready);
    ready.map(|((_, name), record)| (name, record.attempt)).collect()
}

/// Asks until there is an answer that does not call for another attempt.
fn insist(context: &str, what: &str, lab: &Lab, ask: impl Fn() -> Result<()>) {
    for _ in 0..4 {
        match ask() {
            Ok(()) => return,
            Err(error) if error.is_final() => return,
            Err(_) => {}
        }
    }
    panic!("{context}: {what} does not come to an end\n{}", lab.graph());
}

/// Everything that is recorded as handed out is there, and holds what it should.
fn handed_out(context: &str, lab: &Lab) {
    let graph = lab.graph();
    let notes = Notes::of(&graph);
    for ((place, name), _) in
        notes.volumes.iter().filter(|(_, record)| record.state == State::Ready)
    {
        let text = if ["n", "h"].contains(&name.as_str()) { "" } else { "a" };
        let image = &graph.pools[place].images[&graph.pools[place].names[name]];
        let blocks = usize::try_from(image.size / BLOCK).unwrap();
        let mut texts = vec![text; blocks.min(3)];
        texts.resize(blocks, "");
        lab.assert_holds(home(place), name, &texts);
    }
    for ((place, name), record) in
        notes.snapshots.iter().filter(|(_, record)| record.state == State::Ready)
    {
        let found = graph.pools[place].images[&record.image_id].snapshots.get(&record.snapshot_id);
        assert!(
            found.is_some_and(|found| found.name == *name),
            "{context}: {name} is {found:?}\n{graph}"
        );
    }
}

fn check(context: &str, lab: &Lab, controller: &Controller) {
    controller.recover().unwrap();
    handed_out(context, lab);
    let graph = lab.graph();
    let broken = broken(&graph, &Exempt::default());
    assert!(broken.is_empty(), "{context}: not at rest:\n  {}\n{graph}", broken.join("\n  "));
}

fn clear(context: &str, lab: &Lab, controller: &Controller) {
    let notes = Notes::of(&lab.graph());
    for ((place, name), record) in &notes.snapshots {
        let cut = Cut { home: home(place), image_id: record.image_id.clone(), name: name.clone() };
        controller.delete_snapshot(&cut).unwrap();
    }
    for (place, name) in notes.volumes.keys() {
        let deleted = controller.delete(home(place), name);
        deleted.unwrap_or_else(|error: Error| {
            panic!("{context}: deleting {name}: {error}\n{}", lab.graph())
        });
    }
    controller.recover().unwrap();
    lab.assert_empty();
}

fn every_pair(format: CloneFormat, stands: Stands) {
    let mut plays = 0;
    for victim in REQUESTS {
        for intruder in REQUESTS {
            let mut at = 1;
            while play(format, stands, victim, intruder, at) {
                plays += 1;
                at += 1;
            }
        }
    }
    assert!(plays > 2000, "{plays} plays");
}

#[test]
fn requests_to_two_controllers_lose_and_leak_nothing_whichever_comes_between_which_calls() {
    every_pair(CloneFormat::V2, Stands::ForLong);
}

#[test]
fn nor_do_they_in_format_1() {
    every_pair(CloneFormat::V1, Stands::ForLong);
}

#[test]
fn nor_while_leases_hold_between_any_two_calls() {
    every_pair(CloneFormat::V2, Stands::Shortly);
}

/// The removal has put the image into the trash, and dies. A creation that has the image open cuts
/// its snapshot there still.
#[test]
fn a_killed_removal_is_finished_although_a_creation_cut_its_snapshot_too_late() {
    let mut met = 0;
    for (at, call, step) in
        (1..12).flat_map(|at| (10..18).flat_map(move |call| [(at, call, 1), (at, call, 2)]))
    {
        let (lab, known) = set_up(CloneFormat::V2);
        let first = Controller::new(&lab.model);
        let second = Controller::new(&lab.model);
        second.session.inject(call, Fault::CrashInside(step));
        first.session.on_call(move |info| {
            if info.number == at {
                let _ = second.delete(RBD, "b");
            }
        });
        let wish = known.wish("c").of("b");
        let _ = first.create(&wish);
        let graph = lab.graph();
        let place = (RBD.pool.to_owned(), RBD.namespace.to_owned());
        let in_trash = graph.pools[&place].trash.keys().next();
        met += usize::from(
            in_trash.is_some_and(|id| !graph.pools[&place].images[id].snapshots.is_empty()),
        );
        let context =
            format!("b removed before call {at}, and that killed in step {step} of call {call}");
        let third = Controller::new(&lab.model);
        insist(&context, "delete b", &lab, || third.delete(RBD, "b"));
        insist(&context, "clone c of b", &lab, || third.create(&wish).map(drop));
        handed_out(&context, &lab);
        clear(&context, &lab, &third);
    }
    assert!(met > 0, "no snapshot came too late");
}

/// A snapshot is removed by another operation after it was listed, and before its clones are asked for.
#[test]
fn a_snapshot_that_has_just_gone_has_no_clones() {
    type Act = fn(&Controller, &Lab) -> Result<()>;
    let requests: [(&str, Act); 2] = [
        ("clone", |controller, lab| controller.create(&lab.wish("c").of("a")).map(drop)),
        ("delete", |controller, _| controller.delete(RBD, "a")),
    ];
    for (what, ask) in requests {
        let lab = Arc::new(Lab::new());
        lab.create("a");
        lab.open(RBD, "a").create_snapshot("c.clone_snap").unwrap();
        let controller = Controller::new(&lab.model);
        let met = Arc::new(Mutex::new(false));
        controller.session.on_call({
            let (lab, met) = (lab.clone(), met.clone());
            move |call| {
                if call.method == "children" && !std::mem::replace(&mut *met.lock().unwrap(), true)
                {
                    lab.open(RBD, "a").remove_snapshot("c.clone_snap").unwrap();
                }
            }
        });
        ask(&controller, &lab).unwrap_or_else(|error| panic!("{what}: {error}"));
        assert!(*met.lock().unwrap(), "{what} asked for no clones");
        let _ = lab.controller.delete(RBD, "c");
        lab.controller.delete(RBD, "a").unwrap();
        lab.controller.recover().unwrap();
        lab.assert_empty();
    }
}

/// Takes away all leases, as if those whom they are of had given them back.
fn forget_leases(lab: &Lab) {
    for (place, pool) in lab.graph().pools {
        let leases = pool.objects.iter().flat_map(|(object, omap)| {
            let keys = omap.keys().filter(|key| key.starts_with("lease/"));
            keys.map(move |key| (object, key.clone()))
        });
        for (object, key) in leases {
            let update = OmapUpdate { remove: vec![key], ..OmapUpdate::default() };
            let pool = lab.outsider.cluster().pool(&place.0, &place.1).unwrap();
            pool.omap_update(object, &update).unwrap();
        }
    }
}
