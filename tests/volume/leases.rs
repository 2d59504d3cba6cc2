//! A controller that is at work on a record is left at it for as long as it is alive. One that
//! takes its work over fences it first.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use cinderblock::rbd::model::{Fault, Model};
use cinderblock::rbd::{Errno, OmapUpdate};
use cinderblock::volume::catalogue::State;
use cinderblock::volume::{Activity, Error, Result};

use crate::lab::{Controller, Lab, RBD};
use crate::rest::Notes;

/// Longer than any test.
const FOR_EVER: Duration = Duration::from_hours(1);

/// What a controller is asked.
type Ask = fn(&Controller, &Lab) -> Result<()>;

fn said_to_be_at_work(outcome: &Result<()>) -> bool {
    matches!(outcome, Err(Error::Conflict(why)) if why.contains("another controller, process"))
}

/// Before each call of `first`, another controller is asked for `second`. While the first has begun
/// and not ended, it is told so at every call; and the first comes to its end.
fn left_at_it(set_up: impl Fn(&Lab), first: Ask, second: Ask) {
    let mut told = 0;
    for at in 1.. {
        let lab = Lab::new();
        set_up(&lab);
        let lab = Arc::new(lab);
        let controller = Controller::patient(&lab.model, FOR_EVER);
        let other = Controller::patient(&lab.model, FOR_EVER);
        let heard = Arc::new(Mutex::new(None));
        controller.session.on_call({
            let (heard, lab) = (heard.clone(), lab.clone());
            move |call| {
                if call.number == at {
                    let notes = Notes::of(&lab.graph());
                    let volumes = notes.volumes.values().map(|record| record.state);
                    let states = volumes.chain(notes.snapshots.values().map(|record| record.state));
                    let unfinished = states.into_iter().any(|state| state != State::Ready);
                    let outcome = second(&other, &lab);
                    *heard.lock().unwrap() = Some((unfinished, outcome));
                }
            }
        });
        let outcome = first(&controller, &lab);
        let Some((unfinished, other)) = heard.lock().unwrap().take() else { break };
        assert_eq!(said_to_be_at_work(&other), unfinished, "at call {at}: {other:?}");
        if unfinished {
            outcome.unwrap_or_else(|error| panic!("the first is disturbed at call {at}: {error}"));
            told += 1;
        }
    }
    assert!(told > 1, "the other came {told} times while the first was at work");
}

#[test]
fn a_creation_is_neither_repeated_nor_deleted() {
    let create: Ask = |controller, lab| controller.create(&lab.wish("v")).map(drop);
    left_at_it(|_| (), create, create);
    left_at_it(|_| (), create, |controller, _| controller.delete(RBD, "v"));
    let clone: Ask = |controller, lab| controller.create(&lab.wish("v").of("source")).map(drop);
    left_at_it(|lab| lab.create("source"), clone, |controller, _| controller.delete(RBD, "v"));
}

#[test]
fn a_deletion_is_neither_repeated_nor_followed_by_a_creation() {
    let delete: Ask = |controller, _| controller.delete(RBD, "v");
    left_at_it(
        |lab| lab.create("v"),
        delete,
        |controller, lab| {
            // While it is there it is what is asked for.
            controller.create(&lab.wish("v")).map(drop)
        },
    );
}

#[test]
fn a_snapshot_is_neither_repeated_nor_deleted() {
    let cut: Ask = |controller, _| controller.snapshot(RBD, "v", "s", 100).map(drop);
    left_at_it(|lab| lab.create("v"), cut, cut);
}

/// A creation of `v` that has come as far as making the image, when `fault` happens.
fn half_made(fault: Fault) -> Lab {
    let lab = Lab::new();
    let victim = Controller::patient(&lab.model, FOR_EVER);
    let session = victim.session.clone();
    victim.session.on_call(move |call| {
        if call.method == "create_image" {
            session.inject(call.number, fault);
        }
    });
    victim.create(&lab.wish("v")).unwrap_err();
    let notes = Notes::of(&lab.graph());
    assert!(notes.volumes.values().any(|record| record.state == State::Creating));
    lab
}

/// Deletes `v` as soon as no other has it, within five minutes. Says how long that took. Until
/// then each refusal is one that `may_be`.
fn deleted_in_the_end(controller: &Controller, may_be: fn(&Result<()>) -> bool) -> Duration {
    let begun = Instant::now();
    loop {
        let outcome = controller.delete(RBD, "v");
        if outcome.is_ok() {
            return begun.elapsed();
        }
        assert!(may_be(&outcome), "{outcome:?}");
        assert!(begun.elapsed() < Duration::from_mins(5), "it is at work for ever: {outcome:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn is_conflict(outcome: &Result<()>) -> bool {
    matches!(outcome, Err(Error::Conflict(_)))
}

#[test]
fn a_lease_that_nobody_renews_expires() {
    let lab = half_made(Fault::CrashBefore);
    let patience = Duration::from_millis(200);
    let next = Controller::patient(&lab.model, patience);
    let begun = Instant::now();
    assert!(said_to_be_at_work(&next.delete(RBD, "v")));
    deleted_in_the_end(&next, is_conflict);
    assert!(begun.elapsed() >= patience, "it was taken over after {:?}", begun.elapsed());
    lab.assert_empty();
}

#[test]
fn a_lease_that_is_renewed_does_not_expire() {
    let patience = Duration::from_secs(3);
    let lab = Lab::new();
    let slow = Controller::patient(&lab.model, patience);
    let other = Controller::patient(&lab.model, patience);
    let met = Arc::new(Mutex::new(0));
    slow.session.on_call({
        let met = met.clone();
        move |call| {
            if call.method == "create_image" {
                let begun = Instant::now();
                while begun.elapsed() < patience * 2 {
                    let outcome = other.delete(RBD, "v");
                    assert!(said_to_be_at_work(&outcome), "{outcome:?}");
                    *met.lock().unwrap() += 1;
                    std::thread::sleep(Duration::from_millis(20));
                }
            }
        }
    });
    slow.create(&lab.wish("v")).unwrap();
    assert!(*met.lock().unwrap() > 1);
}

#[test]
fn a_failed_operation_lets_go() {
    let lab = half_made(Fault::Fail(Errno::EIO));
    Controller::patient(&lab.model, FOR_EVER).create(&lab.wish("v")).unwrap();
}

/// The renewal is applied, and its holder hears that it timed out: the lease is held all the same.
#[test]
fn a_renewal_whose_reply_is_lost_does_not_cost_the_lease() {
    let patience = Duration::from_secs(2);
    let lab = Lab::new();
    let slow = Controller::patient(&lab.model, patience);
    let other = Controller::patient(&lab.model, patience);
    let session = slow.session.clone();
    slow.session.on_call({
        move |call| {
            if call.method == "create_image" {
                let before = session.calls();
                session.inject(before + 1, Fault::LoseReply(Errno::ETIMEDOUT));
                let begun = Instant::now();
                // The renewal that loses its reply, and some more.
                while session.calls() < before + 4 || begun.elapsed() < patience * 2 {
                    assert!(begun.elapsed() < Duration::from_mins(1), "it is not renewed any more");
                    let outcome = other.delete(RBD, "v");
                    assert!(said_to_be_at_work(&outcome), "{outcome:?}");
                    std::thread::sleep(Duration::from_millis(10));
                }
            }
        }
    });
    slow.create(&lab.wish("v")).unwrap();
    lab.controller.delete(RBD, "v").unwrap();
    lab.assert_empty();
}

/// The lease of the one record that has one: the object and the key it is in, and what is stored.
fn lease_of(model: &Model) -> (String, String, serde_json::Value) {
    let pool = model.connect().cluster().pool(RBD.pool, RBD.namespace).unwrap();
    for shard in 0..16 {
        let object = format!("cinderblock.test.catalogue.{shard:02}");
        for (key, value) in pool.omap_list(&object, "lease/", 10).unwrap().entries {
            if key.starts_with("lease/") {
                return (object, key, serde_json::from_slice(&value).unwrap());
            }
        }
    }
    panic!("nothing has a lease");
}

/// The one that stood still is at a call of its own again, and that call changes nothing.
#[test]
fn a_controller_that_was_overtaken_changes_nothing_any_more() {
    for method in ["create_image", "omap_update", "remove_image"] {
        let lab = Lab::new();
        if method == "remove_image" {
            lab.create("v");
        }
        let first = Controller::new(&lab.model);
        let met = Arc::new(Mutex::new(None));
        first.session.on_call({
            let (met, model, plain) = (met.clone(), lab.model.clone(), lab.wish("v"));
            move |call| {
                let unfinished =
                    Notes::of(&model.graph()).volumes.values().any(|v| v.state != State::Ready);
                if call.method == method && unfinished && met.lock().unwrap().is_none() {
                    let second = Controller::new(&model);
                    second.delete(RBD, "v").unwrap();
                    second.create(&plain).unwrap();
                    *met.lock().unwrap() = Some(model.graph());
                }
            }
        });
        let outcome = if method == "remove_image" {
            first.delete(RBD, "v")
        } else {
            first.create(&lab.wish("v")).map(drop)
        };
        assert!(
            matches!(&outcome, Err(error) if error.is(Errno::ESHUTDOWN)),
            "{method}: {outcome:?}"
        );
        assert!(first.session.is_blocklisted());
        let after = met.lock().unwrap().take().expect("the other came in between");
        assert_eq!(after, lab.graph(), "{method}: it changed something");
        lab.controller.delete(RBD, "v").unwrap();
        lab.assert_empty();
    }
}

#[test]
fn without_the_right_to_blocklist_nothing_is_taken_over() {
    let lab = half_made(Fault::CrashBefore);
    let powerless = Controller::new(&lab.model);
    powerless.session.on_call({
        let session = powerless.session.clone();
        move |call| {
            if call.method == "blocklist" {
                session.inject(call.number, Fault::Fail(Errno::EPERM));
            }
        }
    });
    let before = lab.graph();
    for outcome in [powerless.delete(RBD, "v"), powerless.create(&lab.wish("v")).map(drop)] {
        let error = outcome.unwrap_err();
        assert!(matches!(error, Error::MayNotFence(_)), "{error}");
    }
    assert_eq!(before, lab.graph());
    lab.controller.delete(RBD, "v").unwrap();
    lab.assert_empty();
}

/// Both controllers lose Ceph for longer than a lease lasts. The one that asks has seen the lease
/// before.
#[test]
fn an_outage_is_not_taken_for_silence() {
    let patience = Duration::from_secs(1);
    let lab = half_made(Fault::CrashBefore);
    let asks = Controller::patient(&lab.model, patience);
    assert!(said_to_be_at_work(&asks.delete(RBD, "v")));
    let first = asks.session.calls() + 1;
    for call in first..first + 100_000 {
        asks.session.inject(call, Fault::Fail(Errno::ETIMEDOUT));
    }
    std::thread::sleep(patience * 2);
    assert!(
        matches!(asks.delete(RBD, "v"), Err(Error::Rbd(error)) if error.errno == Errno::ETIMEDOUT)
    );
    let back = Instant::now();
    asks.session.forget_faults();
    assert!(said_to_be_at_work(&asks.delete(RBD, "v")));
    deleted_in_the_end(&asks, is_conflict);
    assert!(back.elapsed() >= patience, "it was taken over after {:?}", back.elapsed());
    lab.assert_empty();
}

/// A caller asks once, and again when the lease has expired: the controller has looked at it in
/// between.
#[test]
fn a_lease_expires_though_its_record_is_asked_for_seldom() {
    let patience = Duration::from_secs(1);
    let lab = half_made(Fault::CrashBefore);
    let asks = Controller::patient(&lab.model, patience);
    let begun = Instant::now();
    let mut asked = 0;
    while asks.delete(RBD, "v").is_err() {
        asked += 1;
        assert!(begun.elapsed() < Duration::from_mins(5), "it never expires");
        std::thread::sleep(patience * 3);
    }
    assert!(asked > 0);
    lab.assert_empty();
}

/// A call hangs, and the connection is given up: the next operation of the same process fences it
/// and goes on.
#[test]
fn an_operation_whose_connection_hangs_is_overtaken_in_its_own_process() {
    let patience = Duration::from_secs(1);
    let lab = Lab::new();
    let stuck = Controller::patient(&lab.model, patience);
    let next = stuck.reconnected(&lab.model);
    stuck.session.on_call({
        let (session, next) = (stuck.session.clone(), next.clone());
        move |call| {
            if call.method != "create_image" {
                return;
            }
            // No renewal comes through any more.
            for later in call.number + 1..call.number + 10_000 {
                session.inject(later, Fault::Fail(Errno::ETIMEDOUT));
            }
            assert!(deleted_in_the_end(&next, is_conflict) >= patience);
        }
    });
    let outcome = stuck.create(&lab.wish("v"));
    assert!(matches!(&outcome, Err(error) if error.is(Errno::ESHUTDOWN)), "{outcome:?}");
    assert!(stuck.session.is_blocklisted() && !next.session.is_blocklisted());
    lab.assert_empty();
}

/// A call hangs for ever, on a connection on which others get through.
#[test]
fn an_operation_that_is_given_up_does_not_renew_its_lease() {
    let patience = Duration::from_secs(1);
    let lab = Lab::new();
    let hangs = Controller::patient(&lab.model, patience);
    let next = Controller::patient(&lab.model, patience);
    let activity = Arc::new(Activity::default());
    hangs.session.on_call({
        let (next, activity) = (next.clone(), activity.clone());
        move |call| {
            if call.method != "create_image" {
                return;
            }
            activity.give_up();
            deleted_in_the_end(&next, is_conflict);
        }
    });
    let outcome = hangs.volumes_for(RBD, activity).unwrap().create(&lab.wish("v").request());
    assert!(matches!(&outcome, Err(error) if error.is(Errno::ESHUTDOWN)), "{outcome:?}");
    assert!(hangs.session.is_blocklisted());
    lab.assert_empty();
}

#[test]
fn an_operation_on_the_same_connection_is_never_overtaken() {
    let lab = Lab::new();
    let slow = Controller::new(&lab.model);
    slow.session.on_call({
        let slow = slow.clone();
        move |call| {
            if call.method == "create_image" {
                let outcome = slow.delete(RBD, "v");
                let said = "another operation of this driver is at work";
                assert!(
                    matches!(&outcome, Err(Error::Conflict(why)) if why.contains(said)),
                    "{outcome:?}"
                );
            }
        }
    });
    slow.create(&lab.wish("v")).unwrap();
    lab.controller.delete(RBD, "v").unwrap();
    lab.assert_empty();
}

/// Snapshots that are cut at one moment have a connection of their own.
#[test]
fn a_further_connection_is_written_into_the_lease_before_it_works() {
    let lab = Lab::new();
    lab.create("a");
    lab.create("b");
    let cuts = Controller::patient(&lab.model, FOR_EVER);
    let clients = Arc::new(Mutex::new(0));
    cuts.session.on_call({
        let (clients, model) = (clients.clone(), lab.model.clone());
        move |call| {
            if call.method == "create_snapshots" {
                *clients.lock().unwrap() = lease_of(&model).2["clients"].as_array().unwrap().len();
            }
        }
    });
    cuts.group(RBD, "g", &["a", "b"]).unwrap();
    assert_eq!(*clients.lock().unwrap(), 2);
    lab.controller.delete_group(RBD, "g").unwrap();
    for name in ["a", "b"] {
        lab.controller.delete(RBD, name).unwrap();
    }
    lab.assert_empty();
}

/// A version before names no clients. It does not know what this one calls the renewals, so it
/// cannot read this one's leases.
#[test]
fn leases_of_the_version_before_are_taken_over_and_it_cannot_read_these() {
    let lab = half_made(Fault::CrashBefore);
    let (object, key, mut lease) = lease_of(&lab.model);
    let fields = lease.as_object_mut().unwrap();
    assert_eq!(fields["version"], 2);
    assert!(!fields.contains_key("renewed"));
    fields["version"] = 1.into();
    fields.remove("clients").unwrap();
    let renewals = fields.remove("renewals").unwrap();
    fields.insert("renewed".to_owned(), renewals);
    let pool = lab.model.connect().cluster().pool(RBD.pool, RBD.namespace).unwrap();
    let set = vec![(key, serde_json::to_vec(&lease).unwrap())];
    pool.omap_update(&object, &OmapUpdate { set, ..OmapUpdate::default() }).unwrap();
    assert!(said_to_be_at_work(&Controller::patient(&lab.model, FOR_EVER).delete(RBD, "v")));
    let next = Controller::new(&lab.model);
    next.delete(RBD, "v").unwrap();
    assert!(!next.session.log().iter().any(|call| call.info.method == "blocklist"));
    lab.assert_empty();
}

/// Ceph refuses writes when an operation ends: its lease is given back when Ceph takes them again,
/// and its controller is not fenced.
#[test]
fn a_lease_that_could_not_be_given_back_is_given_back_later() {
    let patience = Duration::from_secs(6);
    let lab = Lab::new();
    let healthy = Controller::patient(&lab.model, patience);
    healthy.session.on_call({
        let session = healthy.session.clone();
        move |call| {
            if call.method == "create_image" {
                for later in call.number..call.number + 10_000 {
                    session.inject(later, Fault::Fail(Errno::EIO));
                }
            }
        }
    });
    healthy.create(&lab.wish("v")).unwrap_err();
    assert_eq!(lease_of(&lab.model).2["clients"].as_array().unwrap().len(), 1);
    healthy.session.forget_faults();
    let other = Controller::patient(&lab.model, patience);
    assert!(deleted_in_the_end(&other, said_to_be_at_work) < Duration::from_mins(1));
    assert!(!healthy.session.is_blocklisted());
    lab.assert_empty();
}

/// The lease is taken, and the reply is lost: no operation has it, and it is given back.
#[test]
fn a_lease_whose_taking_lost_its_reply_is_given_back() {
    let patience = Duration::from_secs(6);
    let lab = Lab::new();
    let healthy = Controller::patient(&lab.model, patience);
    healthy.session.on_call({
        let session = healthy.session.clone();
        move |call| {
            if call.method == "omap_update" {
                session.inject(call.number, Fault::LoseReply(Errno::EIO));
            }
        }
    });
    healthy.create(&lab.wish("v")).unwrap_err();
    // It may be given back by now.
    healthy.session.on_call(|_| ());
    let other = Controller::patient(&lab.model, patience);
    assert!(deleted_in_the_end(&other, said_to_be_at_work) < Duration::from_mins(1));
    assert!(!healthy.session.is_blocklisted());
    lab.assert_empty();
}

/// The call can be on its way still. No controller waits for the lease to expire: its operation is
/// over.
#[test]
fn a_call_that_timed_out_is_fenced_before_its_work_is_done_again() {
    let lab = half_made(Fault::Fail(Errno::ETIMEDOUT));
    assert_eq!(lease_of(&lab.model).2["over"], true);
    let next = Controller::patient(&lab.model, FOR_EVER);
    next.delete(RBD, "v").unwrap();
    let fenced =
        next.session.log().into_iter().filter(|call| call.info.method == "blocklist").count();
    assert_eq!(fenced, 1);
    lab.assert_empty();
}

/// Leases can be read and not be written: the holder cannot renew it either.
#[test]
fn while_nothing_can_be_written_no_controller_is_taken_for_silent() {
    let lab = half_made(Fault::CrashBefore);
    let asks = Controller::new(&lab.model);
    asks.session.on_call({
        let session = asks.session.clone();
        move |call| {
            if call.method == "omap_update" && session.calls() > 1 {
                session.inject(call.number, Fault::Fail(Errno::EROFS));
            }
        }
    });
    asks.delete(RBD, "v").unwrap_err();
    assert!(!asks.session.log().iter().any(|call| call.info.method == "blocklist"));
    lab.controller.delete(RBD, "v").unwrap();
    lab.assert_empty();
}
