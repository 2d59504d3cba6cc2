//! What sequences are made of.

use cinderblock::rbd::Errno;
use cinderblock::volume::FlattenTarget;
use proptest::prelude::*;

/// One thing that happens. Volumes and snapshots are numbers: the world chooses by them among those
/// that fit, and now and then among all there may be.
#[derive(Debug, Clone)]
pub(super) enum Op {
    Create {
        volume: usize,
        shape: Shape,
    },
    Clone {
        volume: usize,
        source: usize,
        shape: Shape,
    },
    Restore {
        volume: usize,
        snapshot: usize,
        shape: Shape,
    },
    Snapshot {
        snapshot: usize,
        volume: usize,
        most: usize,
    },
    Delete {
        volume: usize,
    },
    DeleteSnapshot {
        snapshot: usize,
    },
    Grow {
        volume: usize,
        blocks: u64,
    },
    Publish {
        volume: usize,
    },
    Unpublish {
        volume: usize,
    },
    /// A controller starts.
    Start,
    /// A client writes a block of an attached volume.
    Write {
        volume: usize,
        block: u64,
    },
    /// A backup tool cuts a snapshot of its own.
    Backup {
        volume: usize,
    },
    /// A client opens a volume.
    Hold {
        volume: usize,
    },
    /// No client has anything open any more.
    Release,
    /// An administrator flattens a volume by hand.
    Flatten {
        volume: usize,
    },
    /// Another client makes an image of a volume's name.
    Foreign {
        volume: usize,
    },
}

/// How a volume is asked for.
#[derive(Debug, Clone)]
pub(super) struct Shape {
    pub(super) format_1: bool,
    pub(super) deep_flatten: bool,
    pub(super) refuse: bool,
    pub(super) depth: u32,
    pub(super) target: FlattenTarget,
    pub(super) flatten_on_restore: bool,
    pub(super) most: usize,
    pub(super) larger: u64,
}

/// What goes wrong at one call of a request.
#[derive(Debug, Clone)]
pub(super) struct Trouble {
    /// Which call, from 1.
    pub(super) call: usize,
    pub(super) kind: Kind,
    /// How things go on.
    pub(super) then: Then,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    Crash,
    /// After this write of the call.
    CrashInside(usize),
    /// As [`Kind::CrashInside`], and the dead process's watches stand for a while.
    Linger(usize),
    CrashAfter,
    Fail(Errno),
    LoseReply(Errno),
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Then {
    StartAndRetry,
    Retry,
    Opposite,
    Start,
    Nothing,
}

/// A request or an outsider's act, what goes wrong in it, and what another controller does
/// meanwhile.
#[derive(Debug, Clone)]
pub(super) struct Step {
    pub(super) op: Op,
    pub(super) trouble: Option<Trouble>,
    /// Before which call of the request another controller gets which requests.
    pub(super) meanwhile: Option<(usize, Vec<(Op, Option<Trouble>)>)>,
}

const VOLUMES: std::ops::Range<usize> = 0..64;
const SNAPSHOTS: std::ops::Range<usize> = 0..64;

fn shape() -> impl Strategy<Value = Shape> {
    let target = prop_oneof![
        Just(FlattenTarget::Auto),
        Just(FlattenTarget::Source),
        Just(FlattenTarget::Clone)
    ];
    let depth = prop_oneof![2 => Just(5), 2 => Just(1), 1 => Just(2), 1 => Just(0)];
    let most = prop_oneof![4 => Just(450_usize), 1 => Just(2), 1 => Just(3)];
    let rarely = prop::bool::weighted(0.1);
    let larger = prop_oneof![3 => Just(0_u64), 1 => Just(1)];
    (any::<bool>(), prop::bool::weighted(0.7), rarely, depth, target, rarely, most, larger)
        .prop_map(
            |(format_1, deep_flatten, refuse, depth, target, flatten_on_restore, most, larger)| {
                Shape {
                    format_1,
                    deep_flatten,
                    refuse,
                    depth,
                    target,
                    flatten_on_restore,
                    most,
                    larger,
                }
            },
        )
}

/// A request to a controller.
fn request() -> impl Strategy<Value = Op> {
    let most = prop_oneof![4 => Just(450_usize), 1 => Just(2)];
    prop_oneof![
        3 => (VOLUMES, shape()).prop_map(|(volume, shape)| Op::Create { volume, shape }),
        8 => (VOLUMES, VOLUMES, shape())
            .prop_map(|(volume, source, shape)| Op::Clone { volume, source, shape }),
        4 => (VOLUMES, SNAPSHOTS, shape())
            .prop_map(|(volume, snapshot, shape)| Op::Restore { volume, snapshot, shape }),
        4 => (SNAPSHOTS, VOLUMES, most)
            .prop_map(|(snapshot, volume, most)| Op::Snapshot { snapshot, volume, most }),
        7 => VOLUMES.prop_map(|volume| Op::Delete { volume }),
        3 => SNAPSHOTS.prop_map(|snapshot| Op::DeleteSnapshot { snapshot }),
        1 => (VOLUMES, 1..6_u64).prop_map(|(volume, blocks)| Op::Grow { volume, blocks }),
        1 => VOLUMES.prop_map(|volume| Op::Publish { volume }),
        1 => VOLUMES.prop_map(|volume| Op::Unpublish { volume }),
        1 => Just(Op::Start),
    ]
}

/// What other clients do.
fn outside() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (VOLUMES, 0..4_u64).prop_map(|(volume, block)| Op::Write { volume, block }),
        2 => VOLUMES.prop_map(|volume| Op::Backup { volume }),
        1 => VOLUMES.prop_map(|volume| Op::Hold { volume }),
        2 => Just(Op::Release),
        1 => VOLUMES.prop_map(|volume| Op::Flatten { volume }),
        1 => VOLUMES.prop_map(|volume| Op::Foreign { volume }),
    ]
}

fn trouble() -> impl Strategy<Value = Trouble> {
    let errno = || {
        prop_oneof![
            Just(Errno::EIO),
            Just(Errno::ETIMEDOUT),
            Just(Errno::EPERM),
            Just(Errno::EDQUOT)
        ]
    };
    let kind = prop_oneof![
        2 => Just(Kind::Crash),
        6 => (1..8_usize).prop_map(Kind::CrashInside),
        1 => (1..8_usize).prop_map(Kind::Linger),
        1 => Just(Kind::CrashAfter),
        2 => errno().prop_map(Kind::Fail),
        1 => prop_oneof![Just(Errno::EIO), Just(Errno::ETIMEDOUT)].prop_map(Kind::LoseReply),
    ];
    let then = prop_oneof![
        Just(Then::StartAndRetry),
        Just(Then::Retry),
        Just(Then::Opposite),
        Just(Then::Start),
        Just(Then::Nothing)
    ];
    (1..40_usize, kind, then).prop_map(|(call, kind, then)| Trouble { call, kind, then })
}

fn perhaps_in_trouble(
    request: impl Strategy<Value = Op>,
) -> impl Strategy<Value = (Op, Option<Trouble>)> {
    (request, prop::option::weighted(0.4, trouble()))
}

/// A step with one controller.
pub(super) fn step() -> impl Strategy<Value = Step> {
    let of = |(op, trouble)| Step { op, trouble, meanwhile: None };
    prop_oneof![
        5 => perhaps_in_trouble(request()).prop_map(of),
        1 => outside().prop_map(move |op| of((op, None))),
    ]
}

/// A step during which a second controller may be at work.
pub(super) fn step_of_two() -> impl Strategy<Value = Step> {
    let meanwhile = (1..40_usize, prop::collection::vec(perhaps_in_trouble(request()), 1..4));
    let two = (perhaps_in_trouble(request()), meanwhile)
        .prop_map(|((op, trouble), meanwhile)| Step { op, trouble, meanwhile: Some(meanwhile) });
    prop_oneof![2 => step(), 3 => two]
}
