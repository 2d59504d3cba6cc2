//! Who is at work on a record is left at it, for as long as it is alive.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use cinderblock::rbd::Errno;
use cinderblock::rbd::model::Fault;
use cinderblock::volume::catalogue::State;
use cinderblock::volume::{Error, Result};

use crate::lab::{Controller, Lab, RBD};
use crate::rest::Notes;

/// Longer than any test.
const FOR_EVER: Duration = Duration::from_hours(1);

/// What a controller is asked.
type Ask = fn(&Controller, &Lab) -> Result<()>;

fn said_to_be_at_work(outcome: &Result<()>) -> bool {
    matches!(outcome, Err(Error::Conflict(why)) if why.contains("another controller, process"))
}

/// Before each call of `first`, another controller is asked for `second`. While the first has begun and not ended, it is told so
/// at every call; and the first comes to its end.
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

#[test]
fn a_lease_that_nobody_renews_expires() {
    let lab = half_made(Fault::CrashBefore);
    let patience = Duration::from_millis(200);
    let next = Controller::patient(&lab.model, patience);
    let begun = Instant::now();
    assert!(said_to_be_at_work(&next.delete(RBD, "v")));
    while let Err(error) = next.delete(RBD, "v") {
        assert!(matches!(error, Error::Conflict(_)), "{error}");
        assert!(begun.elapsed() < Duration::from_mins(5), "it never expires");
        std::thread::sleep(Duration::from_millis(10));
    }
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
fn who_has_failed_lets_go() {
    let lab = half_made(Fault::Fail(Errno::ETIMEDOUT));
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
