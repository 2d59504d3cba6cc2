//! The protocol that keeps a lost node from writing: two
//! nodes, two controllers, and at every step a freeze, a crash, a reboot or a lost reply. A frozen
//! node is one that makes no step while the others do, and then goes on.
//!
//! A step of the model is one guarded write, or one entry on the blocklist. The tests leave out one
//! rule at a time, and show that the protocol needs each of them.

use std::collections::BTreeSet;

use stateright::{Checker, HasDiscoveries, Model, Property};

/// Publications, clients, and crashes and lost replies, in one run.
const TOKENS: u8 = 2;
const CLIENTS: usize = 2;
const MISHAPS: u8 = 1;

type Node = usize;
type Token = u8;

/// A rule of the protocol that is left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Without {
    Nothing,
    /// A note is written whatever the token.
    TokenCompared,
    /// A client writes before it is noted.
    NoteFirst,
    /// The volume is released whatever was noted since the notes were read.
    NotesGuarded,
    /// The volume is released before its clients are fenced.
    FenceFirst,
    /// A node that is healthy and uses the volume is fenced too.
    HealthAsked,
    /// A note is removed before its client is closed.
    CloseFirst,
}

struct Protocol {
    /// Whether several nodes may have the volume.
    shared: bool,
    without: Without,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Notes {
    token: Token,
    clients: BTreeSet<usize>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Client {
    node: Node,
    token: Token,
    /// It has the image open.
    open: bool,
    /// It may write, as far as its node knows.
    writes: bool,
    fenced: bool,
}

/// How far a node plugin is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Plugin {
    Idle,
    Started(Token),
    /// What was noted before is fenced.
    Fenced(Token),
    Attached(Token, usize),
    Staged(Token, usize),
    /// The client is closed, and its note is to go.
    Closed(Token, usize),
}

/// How far a controller is with unpublishing a node.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Controller {
    Idle,
    /// What it read of the record and of the notes.
    Read(Node, [Option<Token>; 2], Option<Notes>),
    Fenced(Node, [Option<Token>; 2], Option<Notes>),
    /// It released the volume, and is to fence these: never, unless a rule is left out.
    Released(BTreeSet<usize>),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct State {
    published: [Option<Token>; 2],
    notes: [Option<Notes>; 2],
    /// The token of the last publish context a node was given.
    context: [Option<Token>; 2],
    plugins: [Plugin; 2],
    /// Removals of notes that are owed.
    owed: [Option<(Token, usize)>; 2],
    controllers: [Controller; 2],
    clients: Vec<Client>,
    /// Nodes that were taken for lost.
    lost: [bool; 2],
    tokens: Token,
    mishaps: u8,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Action {
    Publish(Node),
    Stage(Node),
    FenceEarlier(Node),
    Attach(Node),
    Note(Node),
    NoteWithoutReply(Node),
    Close(Node),
    RemoveNote(Node),
    Settle(Node),
    KillPlugin(Node),
    Reboot(Node),
    Lose(Node),
    Read(usize, Node),
    Fence(usize),
    Release(usize),
    KillController(usize),
}

impl State {
    fn in_use(&self, node: Node) -> bool {
        self.clients.iter().any(|client| client.node == node && client.open && client.writes)
    }

    fn fence(&mut self, clients: &BTreeSet<usize>) {
        for client in clients {
            self.clients[*client].fenced = true;
        }
    }

    /// The notes of `node`, if they are of the publication with this token.
    fn notes_of(&mut self, node: Node, token: Token, without: Without) -> Option<&mut Notes> {
        let is_compared = without != Without::TokenCompared;
        self.notes[node].as_mut().filter(|notes| !is_compared || notes.token == token)
    }

    fn close(&mut self, client: usize) {
        self.clients[client].open = false;
    }
}

impl Model for Protocol {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State {
            published: [None, None],
            notes: [None, None],
            context: [None, None],
            plugins: [Plugin::Idle; 2],
            owed: [None, None],
            controllers: [Controller::Idle, Controller::Idle],
            clients: Vec::new(),
            lost: [false, false],
            tokens: 0,
            mishaps: 0,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        for node in 0..2 {
            actions.extend([
                Action::Publish(node),
                Action::Stage(node),
                Action::FenceEarlier(node),
                Action::Attach(node),
                Action::Note(node),
                Action::Close(node),
                Action::RemoveNote(node),
                Action::Settle(node),
                Action::Lose(node),
                Action::Read(0, node),
                Action::Read(1, node),
            ]);
            if state.mishaps < MISHAPS {
                actions.extend([
                    Action::NoteWithoutReply(node),
                    Action::KillPlugin(node),
                    Action::Reboot(node),
                ]);
            }
        }
        for controller in 0..2 {
            actions.extend([Action::Fence(controller), Action::Release(controller)]);
            if state.mishaps < MISHAPS {
                actions.push(Action::KillController(controller));
            }
        }
    }

    fn next_state(&self, before: &State, action: Action) -> Option<State> {
        let mut state = before.clone();
        let without = self.without;
        match action {
            Action::Publish(node) => {
                let is_free = self.shared || state.published[1 - node].is_none();
                // The nodes are alike: the first publication is to the first.
                let is_mirrored = state.tokens == 0 && node != 0;
                if state.published[node].is_some()
                    || !is_free
                    || state.tokens == TOKENS
                    || is_mirrored
                {
                    return None;
                }
                let token = state.tokens;
                state.tokens += 1;
                state.published[node] = Some(token);
                state.notes[node] = Some(Notes { token, clients: BTreeSet::new() });
                state.context[node] = Some(token);
            }
            Action::Stage(node) => {
                let token = state.context[node]?;
                match state.plugins[node] {
                    // Staged for a publication that is over: taken down first.
                    Plugin::Staged(old, client) if old != token => {
                        state.close(client);
                        state.plugins[node] = Plugin::Started(token);
                    }
                    Plugin::Idle => state.plugins[node] = Plugin::Started(token),
                    _ => return None,
                }
            }
            Action::FenceEarlier(node) => {
                let Plugin::Started(token) = state.plugins[node] else { return None };
                state.plugins[node] = Plugin::Idle;
                if let Some(notes) = state.notes_of(node, token, without) {
                    let clients = std::mem::take(&mut notes.clients);
                    state.fence(&clients);
                    state.plugins[node] = Plugin::Fenced(token);
                }
            }
            Action::Attach(node) => {
                let Plugin::Fenced(token) = state.plugins[node] else { return None };
                if state.clients.len() == CLIENTS {
                    return None;
                }
                state.plugins[node] = Plugin::Attached(token, state.clients.len());
                let writes = without == Without::NoteFirst;
                state.clients.push(Client { node, token, open: true, writes, fenced: false });
            }
            Action::Note(node) => {
                let Plugin::Attached(token, client) = state.plugins[node] else { return None };
                if let Some(notes) = state.notes_of(node, token, without) {
                    notes.clients.insert(client);
                    state.clients[client].writes = true;
                    state.plugins[node] = Plugin::Staged(token, client);
                } else {
                    state.close(client);
                    state.plugins[node] = Plugin::Idle;
                }
            }
            Action::NoteWithoutReply(node) => {
                let Plugin::Attached(token, client) = state.plugins[node] else { return None };
                state.notes_of(node, token, without)?.clients.insert(client);
                state.close(client);
                state.plugins[node] = Plugin::Idle;
                state.mishaps += 1;
            }
            Action::Close(node) => {
                let Plugin::Staged(token, client) = state.plugins[node] else { return None };
                if without == Without::CloseFirst {
                    state.notes_of(node, token, without)?.clients.remove(&client);
                } else {
                    state.close(client);
                }
                state.plugins[node] = Plugin::Closed(token, client);
            }
            Action::RemoveNote(node) => {
                let Plugin::Closed(token, client) = state.plugins[node] else { return None };
                if let Some(notes) = state.notes_of(node, token, without) {
                    notes.clients.remove(&client);
                }
                state.close(client);
                state.plugins[node] = Plugin::Idle;
            }
            Action::Settle(node) => {
                let (token, client) = state.owed[node].take()?;
                if let Some(notes) = state.notes_of(node, token, without) {
                    notes.clients.remove(&client);
                }
            }
            Action::KillPlugin(node) => {
                state.mishaps += 1;
                match state.plugins[node] {
                    Plugin::Idle => return None,
                    Plugin::Started(_) | Plugin::Fenced(_) => state.plugins[node] = Plugin::Idle,
                    // The daemon goes on; the next one finds it by the record, and can unstage it
                    // without a key.
                    Plugin::Attached(..) => {}
                    Plugin::Staged(token, client) => {
                        state.close(client);
                        state.owed[node] = Some((token, client));
                        state.plugins[node] = Plugin::Idle;
                    }
                    Plugin::Closed(token, client) => {
                        state.owed[node] = Some((token, client));
                        state.plugins[node] = Plugin::Idle;
                    }
                }
            }
            Action::Reboot(node) => {
                state.mishaps += 1;
                state.plugins[node] = Plugin::Idle;
                for client in state.clients.iter_mut().filter(|client| client.node == node) {
                    client.open = false;
                }
            }
            Action::Lose(node) => {
                if std::mem::replace(&mut state.lost[node], true) {
                    return None;
                }
            }
            Action::Read(controller, node) => {
                // The controllers are alike: the second works while the first does.
                let is_mirrored = controller == 1 && state.controllers[0] == Controller::Idle;
                let is_idle = state.controllers[controller] == Controller::Idle;
                if !is_idle || is_mirrored || state.published[node].is_none() {
                    return None;
                }
                let noted =
                    state.notes[node].as_ref().is_some_and(|notes| !notes.clients.is_empty());
                let is_healthy = state.in_use(node) && !state.lost[node];
                // FAILED_PRECONDITION.
                if noted && is_healthy && without != Without::HealthAsked {
                    return None;
                }
                state.controllers[controller] =
                    Controller::Read(node, state.published, state.notes[node].clone());
            }
            Action::Fence(controller) => match state.controllers[controller].clone() {
                Controller::Read(node, record, notes) => {
                    if without != Without::FenceFirst
                        && let Some(notes) = &notes
                    {
                        state.fence(&notes.clients);
                    }
                    state.controllers[controller] = Controller::Fenced(node, record, notes);
                }
                Controller::Released(clients) => {
                    state.fence(&clients);
                    state.controllers[controller] = Controller::Idle;
                }
                _ => return None,
            },
            Action::Release(controller) => {
                let Controller::Fenced(node, record, notes) = state.controllers[controller].clone()
                else {
                    return None;
                };
                state.controllers[controller] = Controller::Idle;
                let is_as_read = without == Without::NotesGuarded || state.notes[node] == notes;
                if state.published == record && is_as_read {
                    state.published[node] = None;
                    state.notes[node] = None;
                    if without == Without::FenceFirst {
                        let clients = notes.map(|notes| notes.clients).unwrap_or_default();
                        state.controllers[controller] = Controller::Released(clients);
                    }
                }
            }
            // Also a reply that was lost: the next request finds what was written.
            Action::KillController(controller) => {
                if state.controllers[controller] == Controller::Idle {
                    return None;
                }
                state.controllers[controller] = Controller::Idle;
                state.mishaps += 1;
            }
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(NO_LATE_WRITE, |_, state: &State| {
                state.clients.iter().all(|client| {
                    let may_write = client.open && client.writes && !client.fenced;
                    !may_write || state.published[client.node] == Some(client.token)
                })
            }),
            Property::always(NONE_HEALTHY, |_, state: &State| {
                state.clients.iter().all(|client| {
                    let is_healthy = client.open && client.writes && !state.lost[client.node];
                    !(is_healthy && client.fenced)
                })
            }),
            Property::always(
                "every volume can be released",
                |protocol: &Protocol, state: &State| {
                    released(protocol, state).published == [None, None]
                },
            ),
            Property::sometimes("a lost node's volume is handed on", |_, state: &State| {
                let fenced = |client: &Client| {
                    client.node == 0 && client.open && client.writes && client.fenced
                };
                state.published[1].is_some() && state.clients.iter().any(fenced) && state.in_use(1)
            }),
        ]
    }
}

const NO_LATE_WRITE: &str = "no client writes to what another was given";
const NONE_HEALTHY: &str = "no healthy client is fenced";

/// What a controller makes of a state when both nodes are lost and nothing disturbs it.
fn released(protocol: &Protocol, state: &State) -> State {
    let mut state = State { lost: [true, true], mishaps: 0, ..state.clone() };
    state.controllers = [Controller::Idle, Controller::Idle];
    for node in 0..2 {
        for action in [Action::Read(0, node), Action::Fence(0), Action::Release(0)] {
            state = protocol.next_state(&state, action).unwrap_or(state);
        }
    }
    state
}

#[test]
fn no_order_of_events_lets_a_lost_node_write_nor_fences_a_healthy_one() {
    for shared in [false, true] {
        let checker =
            Protocol { shared, without: Without::Nothing }.checker().threads(2).spawn_bfs().join();
        println!("shared {shared}: {} states", checker.unique_state_count());
        checker.assert_properties();
        assert!(checker.unique_state_count() > 10_000);
    }
}

#[test]
fn every_rule_is_needed() {
    for (without, broken) in [
        (Without::TokenCompared, NO_LATE_WRITE),
        (Without::NoteFirst, NO_LATE_WRITE),
        (Without::NotesGuarded, NO_LATE_WRITE),
        (Without::FenceFirst, NO_LATE_WRITE),
        (Without::CloseFirst, NO_LATE_WRITE),
        (Without::HealthAsked, NONE_HEALTHY),
    ] {
        let search = Protocol { shared: false, without }.checker().threads(2);
        let search = search.finish_when(HasDiscoveries::AllOf(BTreeSet::from([broken])));
        let checker = search.spawn_bfs().join();
        assert!(checker.discovery(broken).is_some(), "{without:?}");
    }
}
