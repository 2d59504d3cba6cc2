//! Every way to die: each mutating operation is killed before and after every call to Ceph, and
//! inside every call after each write librbd sends; then a new controller goes on in different
//! ways, and all must come to the same end.
//!
//! The same operations also meet an error, or lose the reply, at every call: an answer that ends
//! the matter for the caller must have left nothing behind.

mod scenarios;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use cinderblock::csi::ids::Location;
use cinderblock::csi::status::Scope;
use cinderblock::rbd::Errno;
use cinderblock::rbd::model::Fault;
use cinderblock::volume::{Error, Result};
use tonic::Code;

use crate::lab::{Controller, Lab};
use crate::picture::picture;
use crate::rest::Notes;

/// One operation on one cluster.
#[derive(Clone, Copy)]
pub(crate) struct Scenario {
    /// What it is called in messages.
    pub(crate) name: &'static str,
    /// Makes the cluster as it is before the operation.
    pub(crate) before: fn() -> Lab,
    /// The operation; the text is what it answered.
    pub(crate) ask: fn(&Lab, &Controller) -> Result<String>,
    /// The request that takes the operation back, if there is one.
    pub(crate) opposite: Option<fn(&Lab, &Controller) -> Result<()>>,
    /// Checks bytes once the operation is done.
    pub(crate) done: fn(&Lab),
}

/// How things go on after the kill.
#[derive(Debug, Clone, Copy)]
enum Then {
    /// A new controller starts, which finishes what it finds, and gets the same request.
    RecoverAndRetry,
    /// A new controller gets the same request at once.
    Retry,
    /// A new controller gets the same request while the dead one's watches still stand.
    RetryWatched,
    /// A new controller gets the opposite request.
    Opposite,
    /// A new controller starts, which finishes what it finds, and gets the opposite request.
    RecoverAndOpposite,
}

/// What a run without a fault is like.
struct Reference {
    points: Vec<(usize, Fault)>,
    calls: usize,
    before: String,
    after: String,
    undone: String,
}

impl Scenario {
    fn reference(&self) -> Reference {
        let lab = (self.before)();
        lab.assert_at_rest();
        let before = lab.picture();
        let victim = Controller::new(&lab.model);
        self.expect(&lab, (self.ask)(&lab, &victim), "without a fault");
        let mut points = Vec::new();
        for record in victim.session.log() {
            let number = record.info.number;
            points.push((number, Fault::CrashBefore));
            points.extend((1..=record.steps).map(|step| (number, Fault::CrashInside(step))));
            points.push((number, Fault::CrashAfter));
        }
        lab.assert_at_rest();
        (self.done)(&lab);
        let after = lab.picture();
        let mut undone = String::new();
        if let Some(opposite) = self.opposite {
            self.expect(
                &lab,
                opposite(&lab, &Controller::new(&lab.model)),
                "the opposite, without a fault",
            );
            lab.assert_at_rest();
            undone = lab.picture();
        }
        clear(&lab);
        Reference { points, calls: victim.session.calls(), before, after, undone }
    }

    fn expect<T>(&self, lab: &Lab, answer: Result<T>, what: &str) -> T {
        answer.unwrap_or_else(|error| panic!("{}: {what}: {error}\n{}", self.name, lab.graph()))
    }

    /// Kills the operation at one point, and goes on in one way.
    fn kill(&self, reference: &Reference, point: (usize, Fault), then: Then) {
        let lab = (self.before)();
        let what = format!("{point:?}, then {then:?}");
        let victim = Controller::new(&lab.model);
        victim.session.inject(point.0, point.1);
        if matches!(then, Then::RetryWatched) {
            victim.session.linger();
        }
        let _killed = (self.ask)(&lab, &victim);
        assert!(victim.session.is_dead(), "{}: {what}: it did not die", self.name);
        drop(victim.session.log());

        let next = Controller::new(&lab.model);
        if matches!(then, Then::RecoverAndRetry | Then::RecoverAndOpposite) {
            self.expect(&lab, next.recover(), &what);
        }
        let mut done = true;
        match then {
            Then::Opposite | Then::RecoverAndOpposite => {
                let Some(opposite) = self.opposite else { return };
                self.expect(&lab, opposite(&lab, &next), &what);
                done = false;
            }
            Then::RetryWatched => {
                if let Err(error) = (self.ask)(&lab, &next) {
                    assert!(
                        !is_final(&error) || matches!(error, Error::InUse(_)),
                        "{}: {what}: {error}",
                        self.name
                    );
                }
                lab.model.expire_watchers(&victim.session);
                self.retry(&lab, &next, &what);
            }
            Then::Retry | Then::RecoverAndRetry => self.retry(&lab, &next, &what),
        }
        if !matches!(then, Then::RecoverAndRetry | Then::RecoverAndOpposite) {
            if done {
                (self.done)(&lab);
            }
            self.expect(&lab, next.recover(), &what);
        }
        self.assert_end(&lab, reference, done, &what);
    }

    /// The operation is done, or it is undone: nothing of it is left but perhaps a shorter chain or
    /// a protection.
    fn assert_end(&self, lab: &Lab, reference: &Reference, done: bool, what: &str) {
        let graph = lab.graph();
        let now = picture(&graph);
        let right = if done {
            now == reference.after
        } else {
            now == reference.undone || now == reference.before
        };
        assert!(right, "{}: {what}: not as without a fault: {now}\n{graph}", self.name);
        let broken = crate::rest::broken(&graph, &lab.exempt());
        assert!(broken.is_empty(), "{}: {what}:\n  {}\n{graph}", self.name, broken.join("\n  "));
        if done {
            (self.done)(lab);
        }
        clear(lab);
    }

    /// The same request again, and once more: the second answer is the first one's, and a volume or
    /// snapshot that was ready stays the same one.
    fn retry(&self, lab: &Lab, next: &Controller, what: &str) {
        let ready = Notes::of(&lab.graph());
        let answer = self.expect(lab, (self.ask)(lab, next), what);
        let again = self.expect(lab, (self.ask)(lab, next), &format!("{what}, asked once more"));
        assert_eq!(answer, again, "{}: {what}: another answer", self.name);
        let now = Notes::of(&lab.graph());
        for (key, record) in &ready.snapshots {
            if let Some(later) = now.snapshots.get(key)
                && record.state == cinderblock::volume::State::Ready
            {
                assert_eq!(
                    record.snapshot_id, later.snapshot_id,
                    "{}: {what}: another snapshot",
                    self.name
                );
            }
        }
    }

    /// Lets one call fail, or lose its reply, and asks again.
    fn fail(&self, reference: &Reference, call: usize, fault: Fault) {
        let lab = (self.before)();
        let what = format!("call {call}: {fault:?}");
        let controller = Controller::new(&lab.model);
        controller.session.inject(call, fault);
        if let Err(error) = (self.ask)(&lab, &controller)
            && is_final(&error)
        {
            self.assert_end(
                &lab,
                reference,
                false,
                &format!("{what}, finally answered with {error:?}"),
            );
            return;
        }
        self.retry(&lab, &controller, &what);
        self.expect(&lab, controller.recover(), &what);
        self.assert_end(&lab, reference, true, &what);
    }
}

/// Whether the caller hears that the matter is over.
fn is_final(error: &Error) -> bool {
    let location = Location { cluster: "lab".into(), pool: "rbd".into(), namespace: String::new() };
    let code = Scope { user: "csi".into(), key: None, location }.status(error).code();
    !matches!(code, Code::Aborted | Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled)
}

/// Deletes everything the driver knows, as its users would, and checks that nothing is left.
pub(crate) fn clear(lab: &Lab) {
    let controller = Controller::new(&lab.model);
    let notes = Notes::of(&lab.graph());
    let done = |what: &str, answer: Result<()>| {
        answer.unwrap_or_else(|error| panic!("at the end, {what}: {error}\n{}", lab.graph()));
    };
    for (place, name) in notes.volumes.keys() {
        done(name, controller.unpublish(crate::lab::home(place), name));
        done(name, controller.delete(crate::lab::home(place), name));
    }
    for (place, name) in notes.groups.keys() {
        done(name, controller.delete_group(crate::lab::home(place), name));
    }
    for ((place, name), record) in
        notes.snapshots.iter().filter(|(_, record)| record.group.is_none())
    {
        let cut = crate::lab::Cut {
            home: crate::lab::home(place),
            image_id: record.image_id.clone(),
            name: name.clone(),
        };
        done(name, controller.delete_snapshot(&cut));
    }
    for home in crate::lab::HOMES {
        for parked in controller.trash(home) {
            done(&parked.image, controller.purge(home, &parked.image));
        }
    }
    done("recovery", controller.recover());
    lab.remove_golden();
    lab.assert_empty();
}

/// Runs `check` for each item on both cores; how often it panicked, with the first few messages.
fn each<T: Send + Sync>(items: &[T], check: impl Fn(&T) + Sync) -> (usize, Vec<String>) {
    let next = AtomicUsize::new(0);
    let failures = std::sync::Mutex::new((0, Vec::new()));
    let work = || {
        while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
            let checked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| check(item)));
            if let Err(panic) = checked {
                let message = panic.downcast_ref::<String>().cloned().unwrap_or_default();
                let mut failures = failures.lock().unwrap();
                failures.0 += 1;
                failures.1.push(message);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(work);
        }
    });
    failures.into_inner().unwrap()
}

#[test]
fn killed_anywhere_every_operation_comes_to_one_end() {
    let (mut calls, mut points, mut runs) = (0, 0, 0);
    let mut failed = Vec::new();
    for scenario in scenarios::all() {
        let reference = Arc::new(scenario.reference());
        let mut thens = vec![Then::RecoverAndRetry, Then::Retry, Then::RetryWatched];
        if scenario.opposite.is_some() {
            thens.extend([Then::Opposite, Then::RecoverAndOpposite]);
        }
        let cases: Vec<_> = reference
            .points
            .iter()
            .flat_map(|point| thens.iter().map(|then| (*point, *then)))
            .collect();
        let (count, messages) =
            each(&cases, |(point, then)| scenario.kill(&reference, *point, *then));
        println!(
            "{:<44} {:>4} calls {:>4} points {:>5} runs {count:>4} failed",
            scenario.name,
            reference.calls,
            reference.points.len(),
            cases.len()
        );
        calls += reference.calls;
        points += reference.points.len();
        runs += cases.len();
        failed.extend(messages.into_iter().take(2));
    }
    println!("{points} crash points in {calls} calls, {runs} runs");
    assert!(failed.is_empty(), "{}", failed.join("\n\n"));
}

#[test]
fn an_error_at_any_call_leaves_nothing_behind_a_final_answer() {
    let faults = [
        Fault::Fail(Errno::EIO),
        Fault::Fail(Errno::ETIMEDOUT),
        Fault::Fail(Errno::EPERM),
        Fault::Fail(Errno::EDQUOT),
        Fault::LoseReply(Errno::ETIMEDOUT),
        Fault::LoseReply(Errno::EIO),
    ];
    let mut runs = 0;
    let mut failed = Vec::new();
    for scenario in scenarios::all() {
        let reference = scenario.reference();
        let cases: Vec<_> = (1..=reference.calls)
            .flat_map(|call| faults.iter().map(move |fault| (call, *fault)))
            .collect();
        let (count, messages) =
            each(&cases, |(call, fault)| scenario.fail(&reference, *call, *fault));
        println!("{:<44} {:>5} runs {count:>4} failed", scenario.name, cases.len());
        runs += cases.len();
        failed.extend(messages.into_iter().take(2));
    }
    println!("{runs} runs");
    assert!(failed.is_empty(), "{}", failed.join("\n\n"));
}
