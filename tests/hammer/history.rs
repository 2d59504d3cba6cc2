//! Which answers are legal, given those before.
//!
//! What a call may answer at all while the cluster is well ([`legal`]):
//!
//! | call | besides OK and ABORTED |
//! |---|---|
//! | CreateVolume | ALREADY_EXISTS when another request made the name; NOT_FOUND when its source is gone |
//! | DeleteVolume | FAILED_PRECONDITION while a clone or a snapshot is being made of it, which opens it |
//! | CreateSnapshot | ALREADY_EXISTS when it is of another volume, or of an earlier one of that name; NOT_FOUND when the volume is gone |
//! | DeleteSnapshot | |
//! | ValidateVolumeCapabilities, GetSnapshot | NOT_FOUND; never ABORTED |
//! | any, with a short deadline | DEADLINE_EXCEEDED, CANCELLED |
//!
//! INTERNAL, UNKNOWN and UNAVAILABLE are never legal, and neither is the claim that an image was
//! made by another client.
//!
//! And of those since all stood still, for each name ([`check`]). A call takes effect at one moment
//! between its beginning and its end; one that was given up, or was told ABORTED in the middle of
//! its work, takes effect whenever it likes, or never:
//!
//! 1. Two creations that found different things have a deletion of the first between them.
//! 2. What was created is absent only after a deletion that began since.
//! 3. What was deleted is present only after a creation that ended since.
//! 4. ALREADY_EXISTS needs a creation by another request, of what was not deleted before.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Instant;

use tonic::{Code, Status};

/// Of which kind a name is, and its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Name {
    Volume(usize),
    Snapshot(usize),
}

/// What a call did, or saw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// A creation by `request` found or made the incarnation `identity`, which has the id `id`.
    Made { request: String, identity: String, id: String },
    /// A creation by `request` that may have an effect later.
    MaybeMade { request: String },
    /// The deletion of `id` was granted.
    Deleted { id: String },
    /// It may have an effect later.
    MaybeDeleted { id: String },
    /// `id` was seen to be there.
    Present { id: String },
    /// `id` was seen not to be there.
    Absent { id: String },
    /// `request` heard ALREADY_EXISTS.
    Taken { request: String },
    /// Nothing happened, and nothing is to be learnt of it.
    Nothing,
}

/// One call.
#[derive(Debug, Clone)]
pub struct Event {
    pub name: Name,
    pub what: What,
    pub begun: Instant,
    pub ended: Instant,
}

impl Event {
    /// The last moment it may have its effect at; `None` is not known.
    fn latest(&self) -> Option<Instant> {
        let open = matches!(self.what, What::MaybeMade { .. } | What::MaybeDeleted { .. });
        (!open).then_some(self.ended)
    }

    /// Whether its effect may lie between the beginning of `first` and the end of `last`.
    fn may_lie_between(&self, first: &Event, last: &Event) -> bool {
        self.begun < last.ended && self.latest().is_none_or(|latest| latest > first.begun)
    }

    /// Whether its effect lies before that of `later`, whatever happened.
    fn is_before(&self, later: &Event) -> bool {
        self.latest().is_some_and(|latest| latest < later.begun)
    }

    fn deletes(&self, wanted: &str) -> bool {
        matches!(&self.what, What::Deleted { id } | What::MaybeDeleted { id } if id == wanted)
    }

    fn creates(&self) -> Option<&str> {
        match &self.what {
            What::Made { request, .. } | What::MaybeMade { request } => Some(request),
            _ => None,
        }
    }
}

/// Whether the drivers are of two versions.
pub fn is_mixed() -> bool {
    std::env::var_os("HAMMER_SECOND").is_some()
}

/// Whether a driver refuses a lease or a record that a newer one wrote.
pub fn is_of_another_version(status: &Status) -> bool {
    is_mixed()
        && status.code() == Code::FailedPrecondition
        && status.message().contains("nothing was changed")
}

/// Fails when a status is none that `rpc` may give while the cluster is well. `short` is a call
/// with a deadline it may miss.
pub fn legal(rpc: &str, status: &Status, short: bool) {
    let code = status.code();
    let message = status.message();
    let wanted = match rpc {
        "CreateVolume" | "CreateSnapshot" => {
            matches!(code, Code::Aborted | Code::AlreadyExists | Code::NotFound)
                && !message.contains("another tool made")
        }
        "DeleteVolume" => {
            code == Code::Aborted
                || code == Code::FailedPrecondition && message.contains("is open at")
        }
        "DeleteSnapshot" => code == Code::Aborted,
        _ => code == Code::NotFound,
    };
    let late = short && matches!(code, Code::DeadlineExceeded | Code::Cancelled);
    assert!(
        (wanted || late || is_of_another_version(status))
            && status.details().is_empty()
            && !message.is_empty(),
        "{rpc}: {status:?}"
    );
}

/// Fails when the answers contradict each other.
pub fn check(events: &[Event]) {
    let mut names: BTreeMap<Name, Vec<&Event>> = BTreeMap::new();
    for event in events.iter().filter(|event| event.what != What::Nothing) {
        names.entry(event.name).or_default().push(event);
    }
    for events in names.values() {
        for event in events {
            check_one(event, events);
        }
    }
}

fn check_one(event: &Event, events: &[&Event]) {
    let deleted_since = |first: &Event, id: &str| {
        events.iter().any(|other| other.deletes(id) && other.may_lie_between(first, event))
    };
    let earlier = || events.iter().filter(|other| other.is_before(event));
    match &event.what {
        What::Made { identity, .. } => {
            for first in earlier() {
                if let What::Made { identity: other, id, .. } = &first.what {
                    let fine = other == identity || deleted_since(first, id);
                    assert!(
                        fine,
                        "rule 1: two incarnations and no deletion:\n{first:?}\n{event:?}"
                    );
                }
            }
        }
        What::Absent { id: gone } => {
            for first in earlier() {
                if let What::Made { id, .. } = &first.what {
                    let fine = id != gone || deleted_since(first, id);
                    assert!(fine, "rule 2: gone without a deletion:\n{first:?}\n{event:?}");
                }
            }
        }
        What::Present { id: there } => {
            for first in earlier() {
                if let What::Deleted { id } = &first.what {
                    let fine = id != there || made_since(events, first, event, |_| true);
                    assert!(fine, "rule 3: there without a creation:\n{first:?}\n{event:?}");
                }
            }
        }
        // An earlier version compares requests by a digest that it alone makes.
        What::Taken { .. } if is_mixed() => {}
        What::Taken { request } => {
            let by_another = |other: &str| other != request;
            let any = events
                .iter()
                .any(|other| other.creates().is_some_and(by_another) && other.begun < event.ended);
            assert!(any, "rule 4: nobody else asked for it:\n{event:?}");
            for first in earlier().filter(|_| matches!(event.name, Name::Volume(_))) {
                if let What::Deleted { .. } = &first.what {
                    let fine = made_since(events, first, event, by_another);
                    assert!(fine, "rule 4: taken by what was deleted:\n{first:?}\n{event:?}");
                }
            }
        }
        _ => {}
    }
}

fn made_since(events: &[&Event], first: &Event, last: &Event, by: impl Fn(&str) -> bool) -> bool {
    events
        .iter()
        .any(|other| other.creates().is_some_and(&by) && other.may_lie_between(first, last))
}

/// How much was done.
#[derive(Debug, Default)]
pub struct Tally(BTreeMap<&'static str, usize>);

impl Tally {
    pub fn add(&mut self, events: &[Event]) {
        for event in events {
            let kind = match event.what {
                What::Made { .. } => "created",
                What::MaybeMade { .. } => "creations given up",
                What::Deleted { .. } => "deleted",
                What::MaybeDeleted { .. } => "deletions given up",
                What::Present { .. } => "seen",
                What::Absent { .. } => "not found",
                What::Taken { .. } => "taken",
                What::Nothing => "held by another",
            };
            *self.0.entry(kind).or_default() += 1;
        }
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let total: usize = self.0.values().sum();
        write!(formatter, "{total} calls")?;
        self.0.iter().try_for_each(|(kind, count)| write!(formatter, ", {count} {kind}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// Events of one name at these moments.
    fn history(events: Vec<(u64, u64, What)>) -> Vec<Event> {
        let start = Instant::now();
        let at = |moment| start + Duration::from_millis(moment);
        let event = |(begun, ended, what)| Event {
            name: Name::Volume(0),
            what,
            begun: at(begun),
            ended: at(ended),
        };
        events.into_iter().map(event).collect()
    }

    fn made(request: &str, identity: &str) -> What {
        What::Made { request: request.into(), identity: identity.into(), id: "v".into() }
    }

    fn deleted() -> What {
        What::Deleted { id: "v".into() }
    }

    #[test]
    fn histories_that_happen_are_legal() {
        let absent = || What::Absent { id: "v".into() };
        let present = || What::Present { id: "v".into() };
        for events in [
            vec![(0, 1, made("a", "1")), (2, 3, made("a", "1"))],
            vec![(0, 1, made("a", "1")), (2, 3, deleted()), (4, 5, made("b", "2"))],
            vec![(0, 9, made("a", "1")), (1, 8, made("b", "2"))],
            vec![
                (0, 1, made("a", "1")),
                (2, 3, What::MaybeDeleted { id: "v".into() }),
                (8, 9, absent()),
            ],
            vec![
                (0, 1, deleted()),
                (0, 1, What::MaybeMade { request: "a".into() }),
                (8, 9, present()),
            ],
            vec![(0, 1, made("a", "1")), (2, 3, What::Taken { request: "b".into() })],
        ] {
            check(&history(events));
        }
    }

    #[test]
    fn histories_that_cannot_be_are_found() {
        for events in [
            vec![(0, 1, made("a", "1")), (2, 3, made("a", "2"))],
            vec![(0, 1, deleted()), (2, 3, made("a", "1")), (4, 5, made("a", "2"))],
            vec![(0, 1, made("a", "1")), (2, 3, What::Absent { id: "v".into() })],
            vec![
                (0, 1, made("a", "1")),
                (2, 3, deleted()),
                (4, 5, What::Present { id: "v".into() }),
            ],
            vec![(0, 1, made("a", "1")), (2, 3, What::Taken { request: "a".into() })],
            vec![
                (0, 1, made("a", "1")),
                (2, 3, deleted()),
                (4, 5, What::Taken { request: "b".into() }),
            ],
        ] {
            let events = history(events);
            assert!(std::panic::catch_unwind(|| check(&events)).is_err(), "{events:?}");
        }
    }
}
