//! The protocol by which a controller takes over what another one has begun: two controllers, one
//! name, and at every step a freeze, a crash, an outage or a lost reply. A frozen controller is one
//! that makes no step while the other does and time passes, and then goes on. A call by name is
//! sent in one step and lands in a later one, perhaps after its sender has given it up.
//!
//! A step of the model is one guarded write, one call by name, one look at a lease, or one entry on
//! the blocklist. The tests leave out one rule at a time, and show that the protocol needs each of
//! them.

use std::collections::BTreeSet;

use stateright::{Checker, HasDiscoveries, Model, Property};

/// Volumes that are begun, leases that are taken, connections, and crashes, freezes, outages and
/// lost replies, in one run.
const ATTEMPTS: u8 = 2;
const LEASES: u8 = 5;
const CONNECTIONS: u8 = 4;
const MISHAPS: u8 = 2;

type Attempt = u8;
type Connection = u8;

/// A rule of the protocol that is left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Without {
    Nothing,
    /// A lease is taken over, and its clients go on.
    Fencing,
    /// The lease is replaced before its clients are fenced.
    FenceFirst,
    /// The lease names the connection that took it alone, not the one that works.
    ConnectionNoted,
    /// A record is written whatever it and its lease are now.
    Guarded,
    /// The lease of an operation whose call timed out is given back like any other.
    TimeoutMarked,
    /// A lease that stays the same expires, whether it could be read meanwhile or not.
    ReadableTime,
}

struct Protocol {
    without: Without,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Progress {
    Creating,
    Ready,
    Deleting,
}

/// A lease, as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Lease {
    id: u8,
    process: u8,
    clients: BTreeSet<Connection>,
    renewals: u8,
    /// Its operation has ended, and a call of it may be on its way.
    over: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Record {
    attempt: Attempt,
    progress: Progress,
    lease: Option<Lease>,
}

/// A call by the volume's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Call {
    Create(Attempt),
    Remove,
}

impl Record {
    fn process(&self) -> Option<u8> {
        self.lease.as_ref().map(|lease| lease.process)
    }
}

/// How far a controller is with its request.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Phase {
    Idle,
    /// It wrote this record, and is to make its call on this connection.
    Holds(Record, Connection),
    Sent(Record, Connection, Call),
    Landed(Record, Connection),
    /// It has seen this record, whose lease is in its way; whether that has expired.
    Watches(Record, bool),
    /// It has fenced the clients of this record's lease.
    Fenced(Record),
    /// It has taken this record over, and is to fence these: never, unless a rule is left out.
    Overtook(Record, Connection, BTreeSet<Connection>),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Controller {
    process: u8,
    connection: Connection,
    /// A call of its last operation timed out, and that one's lease is not marked yet.
    timed_out: bool,
    phase: Phase,
    frozen: bool,
    /// It was frozen for longer than a lease lasts.
    lost: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct State {
    record: Option<Record>,
    /// The attempt whose image has the name.
    image: Option<Attempt>,
    controllers: [Controller; 2],
    /// Calls of processes that are gone.
    in_flight: BTreeSet<(Connection, Call)>,
    blocklist: BTreeSet<Connection>,
    /// A controller was fenced that was never lost.
    healthy_fenced: bool,
    /// Something was changed by a call of a controller that another has overtaken.
    late_change: bool,
    outage: bool,
    attempts: Attempt,
    leases: u8,
    connections: Connection,
    mishaps: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Create(usize),
    Delete(usize),
    /// The request needs a connection of its own.
    Connect(usize),
    Send(usize),
    Land(usize),
    LandWithoutReply(usize),
    TimeOut(usize),
    LandLate,
    Finish(usize),
    Look(usize),
    Fence(usize),
    Overtake(usize),
    Freeze(usize),
    Thaw(usize),
    Kill(usize),
    Outage,
    OutageEnds,
    /// As long as a lease lasts.
    TimePasses,
}

impl State {
    fn is_fenced(&self, connection: Connection) -> bool {
        self.blocklist.contains(&connection)
    }

    fn fence(&mut self, clients: &BTreeSet<Connection>) {
        for client in clients {
            self.healthy_fenced |= self.controllers.iter().any(|controller| {
                let works = match &controller.phase {
                    Phase::Holds(_, works)
                    | Phase::Sent(_, works, _)
                    | Phase::Landed(_, works)
                    | Phase::Overtook(_, works, _) => *works,
                    _ => controller.connection,
                };
                !controller.lost && (controller.connection == *client || works == *client)
            });
            self.blocklist.insert(*client);
        }
    }

    /// A call arrives at Ceph.
    fn land(&mut self, connection: Connection, call: Call) {
        if self.is_fenced(connection) {
            return;
        }
        let holder = self.record.as_ref().and_then(|record| record.lease.as_ref());
        let is_overtaken = !holder.is_some_and(|lease| lease.clients.contains(&connection));
        match call {
            Call::Create(attempt) if self.image.is_none() => {
                self.image = Some(attempt);
                self.late_change |= is_overtaken;
            }
            Call::Create(_) => {}
            Call::Remove => {
                self.late_change |= is_overtaken && self.image.is_some();
                self.image = None;
            }
        }
    }

    /// A new lease, unless there were too many.
    fn lease(&mut self, at: usize) -> Option<Lease> {
        let id = self.leases;
        self.controllers[at].timed_out = false;
        let Controller { process, connection, .. } = self.controllers[at];
        self.leases += 1;
        (id < LEASES).then(|| Lease {
            id,
            process,
            clients: BTreeSet::from([connection]),
            renewals: 0,
            over: false,
        })
    }

    /// A guarded write of a record that is as it was read.
    fn write(
        &mut self,
        connection: Connection,
        before: Option<&Record>,
        after: Option<Record>,
        without: Without,
    ) -> bool {
        let is_same = match (&self.record, before) {
            // Its own renewals are no surprise to it.
            (Some(now), Some(before)) => {
                let holder = |record: &Record| {
                    record.lease.as_ref().map(|lease| (lease.id, lease.clients.clone()))
                };
                (now.attempt, now.progress, holder(now))
                    == (before.attempt, before.progress, holder(before))
            }
            (now, before) => now.is_none() && before.is_none(),
        };
        if self.is_fenced(connection) || self.outage || !(is_same || without == Without::Guarded) {
            return false;
        }
        self.record = after;
        true
    }
}

impl Model for Protocol {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let controller = |number| Controller {
            process: number,
            connection: number,
            timed_out: false,
            phase: Phase::Idle,
            frozen: false,
            lost: false,
        };
        vec![State {
            record: None,
            image: None,
            controllers: [controller(0), controller(1)],
            in_flight: BTreeSet::new(),
            blocklist: BTreeSet::new(),
            healthy_fenced: false,
            late_change: false,
            outage: false,
            attempts: 0,
            leases: 0,
            connections: 2,
            mishaps: 0,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        for controller in 0..2 {
            if state.controllers[controller].frozen {
                actions.push(Action::Thaw(controller));
                continue;
            }
            actions.extend([
                Action::Create(controller),
                Action::Delete(controller),
                Action::Connect(controller),
                Action::Send(controller),
                Action::Land(controller),
                Action::Finish(controller),
                Action::Look(controller),
                Action::Fence(controller),
                Action::Overtake(controller),
            ]);
            if state.mishaps < MISHAPS {
                actions.extend([
                    Action::LandWithoutReply(controller),
                    Action::TimeOut(controller),
                    Action::Freeze(controller),
                    Action::Kill(controller),
                ]);
            }
        }
        if state.mishaps < MISHAPS {
            actions.push(Action::Outage);
        }
        actions.extend([Action::OutageEnds, Action::LandLate, Action::TimePasses]);
    }

    fn next_state(&self, before: &State, action: Action) -> Option<State> {
        let mut state = before.clone();
        let without = self.without;
        match action {
            Action::Create(at) | Action::Delete(at) => {
                let controller = &state.controllers[at];
                if controller.phase != Phase::Idle {
                    return None;
                }
                let connection = controller.connection;
                let lease = state.lease(at)?;
                let after = match (action, &state.record) {
                    (Action::Create(_), None) if state.attempts < ATTEMPTS => Record {
                        attempt: state.attempts,
                        progress: Progress::Creating,
                        lease: Some(lease),
                    },
                    (Action::Delete(_), Some(record)) if record.progress == Progress::Ready => {
                        Record {
                            progress: Progress::Deleting,
                            lease: Some(lease),
                            ..record.clone()
                        }
                    }
                    _ => return None,
                };
                let read = state.record.clone();
                if !state.write(connection, read.as_ref(), Some(after.clone()), without) {
                    return None;
                }
                if matches!(action, Action::Create(_)) {
                    state.attempts += 1;
                }
                state.controllers[at].phase = Phase::Holds(after, connection);
            }
            Action::Connect(at) => {
                let Phase::Holds(record, connection) = &state.controllers[at].phase else {
                    return None;
                };
                let is_first = *connection == state.controllers[at].connection;
                if !is_first || state.connections == CONNECTIONS {
                    return None;
                }
                let (further, mut noted, connection) =
                    (state.connections, record.clone(), *connection);
                let read = noted.clone();
                state.connections += 1;
                if without != Without::ConnectionNoted {
                    noted.lease.as_mut()?.clients.insert(further);
                    if !state.write(connection, Some(&read), Some(noted.clone()), without) {
                        return None;
                    }
                }
                state.controllers[at].phase = Phase::Holds(noted, further);
            }
            Action::Send(at) => {
                let Phase::Holds(record, connection) = state.controllers[at].phase.clone() else {
                    return None;
                };
                let call = match record.progress {
                    Progress::Creating => Call::Create(record.attempt),
                    _ => Call::Remove,
                };
                state.controllers[at].phase = Phase::Sent(record, connection, call);
            }
            Action::Land(at) => {
                let Phase::Sent(record, connection, call) = state.controllers[at].phase.clone()
                else {
                    return None;
                };
                if state.outage {
                    return None;
                }
                state.land(connection, call);
                state.controllers[at].phase = if !state.is_fenced(connection) {
                    Phase::Landed(record, connection)
                } else {
                    // ESHUTDOWN: it connects anew.
                    if state.connections < CONNECTIONS {
                        state.controllers[at].connection = state.connections;
                        state.connections += 1;
                    }
                    Phase::Idle
                };
            }
            Action::LandWithoutReply(at) => {
                let Phase::Sent(_, connection, call) = state.controllers[at].phase else {
                    return None;
                };
                state.land(connection, call);
                state.controllers[at].phase = Phase::Idle;
                state.mishaps += 1;
            }
            Action::TimeOut(at) => {
                let Phase::Sent(_, connection, call) = state.controllers[at].phase else {
                    return None;
                };
                // The next request of this controller has another connection.
                if state.connections == CONNECTIONS {
                    return None;
                }
                state.in_flight.insert((connection, call));
                state.controllers[at].phase = Phase::Idle;
                state.controllers[at].connection = state.connections;
                state.controllers[at].timed_out = without != Without::TimeoutMarked;
                state.connections += 1;
                state.mishaps += 1;
            }
            Action::LandLate => {
                let (connection, call) = state.in_flight.pop_first()?;
                state.land(connection, call);
            }
            Action::Finish(at) => {
                let Phase::Landed(record, connection) = state.controllers[at].phase.clone() else {
                    return None;
                };
                let after = match record.progress {
                    // The name was taken: the next request clears that away.
                    Progress::Creating if state.image != Some(record.attempt) => {
                        state.controllers[at].phase = Phase::Idle;
                        return Some(state);
                    }
                    Progress::Creating => {
                        Some(Record { progress: Progress::Ready, lease: None, ..record.clone() })
                    }
                    _ => None,
                };
                state.write(connection, Some(&record), after, without);
                state.controllers[at].phase = Phase::Idle;
            }
            Action::Look(at) => {
                let record = state.record.clone().filter(|_| !state.outage)?;
                if state.controllers[at].phase != Phase::Idle || record.progress == Progress::Ready
                {
                    return None;
                }
                let ours = record
                    .process()
                    .is_some_and(|process| process == state.controllers[at].process);
                // The controller knows of its own operations that they have ended.
                let is_over = ours || record.lease.as_ref().is_none_or(|lease| lease.over);
                state.controllers[at].phase = Phase::Watches(record, is_over);
            }
            Action::Fence(at) => match state.controllers[at].phase.clone() {
                Phase::Watches(record, true) if !state.outage => {
                    if !matches!(without, Without::Fencing | Without::FenceFirst)
                        && let Some(lease) = &record.lease
                    {
                        let own = state.controllers[at].connection;
                        let others =
                            lease.clients.iter().copied().filter(|client| *client != own).collect();
                        state.fence(&others);
                    }
                    state.controllers[at].phase = Phase::Fenced(record);
                }
                Phase::Overtook(record, connection, clients) => {
                    state.fence(&clients);
                    state.controllers[at].phase = Phase::Holds(record, connection);
                }
                _ => return None,
            },
            Action::Overtake(at) => {
                let Phase::Fenced(record) = state.controllers[at].phase.clone() else {
                    return None;
                };
                let connection = state.controllers[at].connection;
                let lease = state.lease(at)?;
                let after =
                    Record { progress: Progress::Deleting, lease: Some(lease), ..record.clone() };
                let written = state.write(connection, Some(&record), Some(after.clone()), without);
                state.controllers[at].phase = match (written, without) {
                    (false, _) => Phase::Idle,
                    (true, Without::FenceFirst) => {
                        let clients = record.lease.map(|lease| lease.clients).unwrap_or_default();
                        Phase::Overtook(after, connection, clients)
                    }
                    (true, _) => Phase::Holds(after, connection),
                };
            }
            Action::Freeze(at) => {
                state.controllers[at].frozen = true;
                state.mishaps += 1;
            }
            Action::Thaw(at) => {
                state.controllers[at].frozen = false;
                // It has not looked for long, and begins anew.
                if matches!(state.controllers[at].phase, Phase::Watches(_, false)) {
                    state.controllers[at].phase = Phase::Idle;
                }
            }
            Action::Kill(at) => {
                if state.connections == CONNECTIONS {
                    return None;
                }
                if let Phase::Sent(_, connection, call) = state.controllers[at].phase {
                    state.in_flight.insert((connection, call));
                }
                let connection = state.connections;
                state.connections += 1;
                let process = state.controllers[at].process + 2;
                state.controllers[at] = Controller {
                    process,
                    connection,
                    timed_out: false,
                    phase: Phase::Idle,
                    frozen: false,
                    lost: false,
                };
                state.mishaps += 1;
            }
            Action::Outage => {
                if std::mem::replace(&mut state.outage, true) {
                    return None;
                }
                state.mishaps += 1;
            }
            Action::OutageEnds => {
                if !std::mem::replace(&mut state.outage, false) {
                    return None;
                }
            }
            Action::TimePasses => {
                for controller in &mut state.controllers {
                    controller.lost |= controller.frozen;
                    let Some(record) = &mut state.record else { continue };
                    let is_over = record.lease.as_ref().is_some_and(|lease| lease.over);
                    let ours = record.process() == Some(controller.process);
                    if !ours || is_over || controller.frozen || state.outage {
                        continue;
                    }
                    let is_at_work = match &controller.phase {
                        Phase::Holds(..)
                        | Phase::Sent(..)
                        | Phase::Landed(..)
                        | Phase::Overtook(..) => true,
                        Phase::Idle | Phase::Watches(..) | Phase::Fenced(..) => false,
                    };
                    if is_at_work {
                        let lease = record.lease.as_mut()?;
                        lease.renewals = 1 - lease.renewals;
                    } else if std::mem::take(&mut controller.timed_out) {
                        record.lease.as_mut()?.over = true;
                    } else {
                        // It is given back, if that has failed before.
                        record.lease = None;
                    }
                }
                let (now, outage) = (state.record.clone(), state.outage);
                for controller in
                    state.controllers.iter_mut().filter(|controller| !controller.frozen)
                {
                    let Phase::Watches(record, expired) = &mut controller.phase else { continue };
                    let counts = !outage || without == Without::ReadableTime;
                    let is_same = outage || now.as_ref() == Some(&*record);
                    match (counts && is_same, is_same) {
                        (true, _) => *expired = true,
                        (false, true) => {}
                        (false, false) => controller.phase = Phase::Idle,
                    }
                }
            }
        }
        (state != *before).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(NO_LATE_CHANGE, |_, state: &State| !state.late_change),
            Property::always(WHOLE, |_, state: &State| match &state.record {
                Some(record) if record.progress == Progress::Ready => {
                    state.image == Some(record.attempt)
                }
                Some(_) => true,
                None => state.image.is_none(),
            }),
            Property::always(NONE_HEALTHY, |_, state: &State| !state.healthy_fenced),
            Property::always(
                "every volume can be finished",
                |protocol: &Protocol, state: &State| {
                    let end = finished(protocol, state);
                    end.record.is_none_or(|record| record.progress == Progress::Ready)
                },
            ),
            Property::sometimes(
                "work is taken over from a controller that goes on",
                |_, state: &State| {
                    let is_fenced =
                        |controller: &Controller| state.is_fenced(controller.connection);
                    state.record.is_none()
                        && state.attempts > 0
                        && state.controllers.iter().any(is_fenced)
                },
            ),
        ]
    }
}

const NO_LATE_CHANGE: &str = "an overtaken controller changes nothing";
const WHOLE: &str =
    "a volume that is ready has its own image, and nothing is left without a record";
const NONE_HEALTHY: &str = "no healthy controller is fenced";

/// What a new controller makes of a state when nothing disturbs it and no other controller is at
/// work.
fn finished(protocol: &Protocol, state: &State) -> State {
    let mut state = State { outage: false, mishaps: 0, leases: 0, ..state.clone() };
    state.controllers[1].frozen = true;
    state.controllers[0] = Controller {
        process: u8::MAX,
        connection: Connection::MAX,
        timed_out: false,
        phase: Phase::Idle,
        frozen: false,
        lost: false,
    };
    let steps = [
        Action::Look(0),
        Action::TimePasses,
        Action::Fence(0),
        Action::Overtake(0),
        Action::Fence(0),
        Action::Send(0),
        Action::Land(0),
        Action::Finish(0),
    ];
    for action in steps {
        state = protocol.next_state(&state, action).unwrap_or(state);
    }
    state
}

#[test]
fn no_order_of_events_lets_an_overtaken_controller_change_anything_nor_fences_a_healthy_one() {
    let checker = Protocol { without: Without::Nothing }.checker().threads(2).spawn_bfs().join();
    println!("{} states", checker.unique_state_count());
    checker.assert_properties();
    assert!(checker.unique_state_count() > 10_000);
}

#[test]
fn every_rule_is_needed() {
    for (without, broken) in [
        (Without::Fencing, NO_LATE_CHANGE),
        (Without::FenceFirst, NO_LATE_CHANGE),
        (Without::ConnectionNoted, NO_LATE_CHANGE),
        (Without::Guarded, WHOLE),
        (Without::TimeoutMarked, NO_LATE_CHANGE),
        (Without::ReadableTime, NONE_HEALTHY),
    ] {
        let search = Protocol { without }.checker().threads(2);
        let search = search.finish_when(HasDiscoveries::AllOf(BTreeSet::from([broken])));
        let checker = search.spawn_bfs().join();
        assert!(checker.discovery(broken).is_some(), "{without:?}");
    }
}
