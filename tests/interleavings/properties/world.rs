//! A cluster, and what its users know of it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use cinderblock::rbd::model::{Fault, Graph, ImageGraph, Session};
use cinderblock::rbd::{CloneFormat, Image, ImageKey, ImageOptions, OpenMode, SnapshotId};
use cinderblock::volume::catalogue;
use cinderblock::volume::{DeleteWithSnapshots, Error, Policy, Result, Sizes, State, VolumeSource};

use super::request::{Request, is_refusal};
use super::step::{Kind, Op, Shape, Step, Then, Trouble};
use crate::lab::{
    BLOCK, Controller, Cut, HOMES, Home, Lab, OTHER_NAMESPACE, OTHER_POOL, RBD, Wish,
};
use crate::rest::{Exempt, Notes, broken};

/// The volumes there may be.
const VOLUMES: [(Home, &str); 5] =
    [(RBD, "a"), (RBD, "b"), (RBD, "c"), (OTHER_POOL, "d"), (OTHER_NAMESPACE, "e")];
/// The names of snapshots there may be.
const SNAPSHOTS: [&str; 3] = ["s", "t", "u"];

/// Blocks of a new empty volume.
const NEW: usize = 2;

type Key = (Home, String);

/// What is in a volume or snapshot: one number for each block, 0 for zeros.
type Blocks = Vec<u8>;

/// A volume or snapshot as it was handed out.
#[derive(Debug)]
struct Seen {
    attempt: String,
    blocks: Blocks,
}

/// A request in flight, and what it may come to hold if it makes something.
#[derive(Debug)]
struct InFlight {
    request: Request,
    contents: Vec<Blocks>,
}

#[derive(Debug)]
struct Known {
    lab: Lab,
    volumes: BTreeMap<Key, Seen>,
    snapshots: BTreeMap<Key, Seen>,
    foreign: BTreeMap<Key, Blocks>,
    held: Vec<(Key, Box<dyn Image>)>,
    lingering: Vec<Session>,
    in_flight: Vec<InFlight>,
    /// Something went wrong since a controller started last.
    troubled: bool,
    /// An administrator flattened a volume by hand.
    flattened: bool,
    /// A volume was not grown to the end: the caller is to ask again.
    grown: bool,
    written: u8,
}

/// The world of one sequence.
#[derive(Debug, Clone)]
pub(super) struct World(Arc<Mutex<Known>>);

impl World {
    pub(super) fn new() -> World {
        World(Arc::new(Mutex::new(Known {
            lab: Lab::new(),
            volumes: BTreeMap::new(),
            snapshots: BTreeMap::new(),
            foreign: BTreeMap::new(),
            held: Vec::new(),
            lingering: Vec::new(),
            in_flight: Vec::new(),
            troubled: false,
            flattened: false,
            grown: false,
            written: 0,
        })))
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap()
    }

    pub(super) fn play(&self, step: &Step) {
        let request = self.known().request(&step.op);
        match request {
            Some(request) => self.ask(&request, step.trouble.as_ref(), step.meanwhile.clone()),
            None => self.known().outside(&step.op),
        }
    }

    /// Sends a request to a controller, in which `trouble` happens, and during which another does
    /// things.
    fn ask(
        &self,
        request: &Request,
        trouble: Option<&Trouble>,
        meanwhile: Option<(usize, Vec<(Op, Option<Trouble>)>)>,
    ) {
        let mut known = self.known();
        if matches!(request, Request::Start) {
            known.expire_watches();
        }
        // What the request it comes in between has made by now.
        known.sync();
        let settled = known.is_settled();
        let before = known.lab.graph();
        let contents = known.contents(request);
        let controller = Controller::new(&known.lab.model);
        known.in_flight.push(InFlight { request: request.clone(), contents });
        drop(known);
        if let Some(trouble) = trouble {
            trouble.plan(&controller.session);
        }
        let met = Arc::new(Mutex::new(false));
        if let Some((call, requests)) = meanwhile {
            self.meanwhile(&controller.session, call, requests, met.clone());
        }

        let answer = request.ask(&controller);

        let mut known = self.known();
        if let Some(Trouble { kind: Kind::Linger(_), .. }) = trouble
            && controller.session.is_dead()
        {
            known.lingering.push(controller.session.clone());
        }
        let hit = trouble.filter(|trouble| trouble.hit(&controller.session));
        let met = *met.lock().unwrap();
        known.troubled |= hit.is_some() || met;
        known.grown |= matches!(request, Request::Grow(..)) && (hit.is_some() || answer.is_err());
        known.sync();
        known.in_flight.pop();
        let alone = settled && !met;
        known.check_answer(request, &answer, alone, hit.is_some(), &before);
        if matches!(request, Request::Start) && answer.is_ok() && known.in_flight.is_empty() && !met
        {
            known.troubled = false;
        }
        known.check_rest();
        drop(known);
        if let Some(trouble) = hit {
            self.go_on(request, trouble.then);
        }
    }

    /// Before call number `call` of `session`, sends `requests` to another controller.
    fn meanwhile(
        &self,
        session: &Session,
        call: usize,
        requests: Vec<(Op, Option<Trouble>)>,
        met: Arc<Mutex<bool>>,
    ) {
        let world = self.clone();
        session.on_call(move |info| {
            if info.number < call || *met.lock().unwrap() {
                return;
            }
            *met.lock().unwrap() = true;
            for (op, trouble) in &requests {
                let request = world.known().request(op);
                if let Some(request) = request {
                    world.ask(&request, trouble.as_ref(), None);
                }
            }
        });
    }

    fn go_on(&self, request: &Request, then: Then) {
        if matches!(then, Then::StartAndRetry | Then::Start) {
            self.ask(&Request::Start, None, None);
        }
        match then {
            Then::StartAndRetry | Then::Retry => self.ask(request, None, None),
            Then::Opposite => {
                let opposite = request.opposite(|home, name| self.known().cut(home, name));
                if let Some(opposite) = opposite {
                    self.ask(&opposite, None, None);
                }
            }
            Then::Start | Then::Nothing => {}
        }
    }

    /// Everything is deleted, and nothing is left.
    pub(super) fn end(&self) {
        let mut known = self.known();
        known.outside(&Op::Release);
        known.expire_watches();
        for (home, name) in std::mem::take(&mut known.foreign).into_keys() {
            known.lab.pool(home).remove_image(&name).unwrap();
        }
        let lab = &known.lab;
        let controller = Controller::new(&lab.model);
        let done = |what: &str, answer: Result<()>| {
            answer.unwrap_or_else(|error| panic!("at the end, {what}: {error}\n{}", lab.graph()));
        };
        done("start", controller.recover());
        let notes = Notes::of(&lab.graph());
        for ((place, name), record) in &notes.snapshots {
            let home = crate::lab::home(place);
            done(
                name,
                controller.delete_snapshot(&Cut {
                    home,
                    image_id: record.image_id.clone(),
                    name: name.clone(),
                }),
            );
        }
        for (place, name) in notes.volumes.keys() {
            let home = crate::lab::home(place);
            done(name, controller.unpublish(home, name));
            done(name, controller.delete(home, name));
        }
        done("sweep", controller.recover());
        if known.flattened {
            known.collect_garbage();
        }
        known.lab.assert_empty();
    }
}

impl Trouble {
    fn plan(&self, session: &Session) {
        let fault = match self.kind {
            Kind::Crash => Fault::CrashBefore,
            Kind::CrashInside(step) => Fault::CrashInside(step),
            Kind::Linger(step) => {
                session.linger();
                Fault::CrashInside(step)
            }
            Kind::CrashAfter => Fault::CrashAfter,
            Kind::Fail(errno) => Fault::Fail(errno),
            Kind::LoseReply(errno) => Fault::LoseReply(errno),
        };
        session.inject(self.call, fault);
    }

    /// Whether it happened.
    fn hit(&self, session: &Session) -> bool {
        match self.kind {
            Kind::Fail(_) | Kind::LoseReply(_) => session.calls() >= self.call,
            _ => session.is_dead(),
        }
    }
}

impl Known {
    /// The request an operation is; `None` for what outsiders do.
    fn request(&self, op: &Op) -> Option<Request> {
        Some(match op {
            Op::Create { volume, shape } => {
                Request::Create(wish(self.absent(*volume), shape).blocks(NEW as u64 + shape.larger))
            }
            Op::Clone { volume, source, shape } => {
                let (home, source) = self.present(*source);
                let blocks = self.volumes.get(&(home, source.clone())).map(|seen| &seen.blocks);
                let wish = wish(self.absent(*volume), shape).of_volume_in(home, &source);
                Request::Create(Wish { sizes: larger(blocks, shape.larger), ..wish })
            }
            Op::Restore { volume, snapshot, shape } => {
                let cut = self.present_snapshot(*snapshot);
                let wish = wish(self.absent(*volume), shape).of_snapshot(&cut);
                let blocks = self.snapshots.get(&(cut.home, cut.name)).map(|seen| &seen.blocks);
                Request::Create(Wish { sizes: larger(blocks, shape.larger), ..wish })
            }
            Op::Snapshot { snapshot, volume, most } => {
                let (home, volume) = self.present(*volume);
                let free = |name: &&str| !self.snapshots.contains_key(&(home, (*name).to_owned()));
                let free: Vec<_> = SNAPSHOTS.into_iter().filter(free).collect();
                let name = *choose(&free, *snapshot, &SNAPSHOTS);
                Request::Snapshot { home, volume, name: name.to_owned(), most: *most }
            }
            Op::Delete { volume } => {
                let (home, name) = self.present(*volume);
                Request::Delete(home, name)
            }
            Op::DeleteSnapshot { snapshot } => {
                Request::DeleteSnapshot(self.present_snapshot(*snapshot))
            }
            Op::Grow { volume, blocks } => {
                let (home, name) = self.present(*volume);
                Request::Grow(home, name, *blocks)
            }
            Op::Publish { volume } => {
                let (home, name) = self.present(*volume);
                Request::Publish(home, name)
            }
            Op::Unpublish { volume } => {
                let (home, name) = self.present(*volume);
                Request::Unpublish(home, name)
            }
            Op::Start => Request::Start,
            Op::Write { .. }
            | Op::Backup { .. }
            | Op::Hold { .. }
            | Op::Release
            | Op::Flatten { .. }
            | Op::Foreign { .. } => return None,
        })
    }

    /// A volume that there is.
    fn present(&self, number: usize) -> Key {
        let present: Vec<_> = self.volumes.keys().cloned().collect();
        choose(&present, number, &all_volumes()).clone()
    }

    /// A volume that there is not.
    fn absent(&self, number: usize) -> Key {
        let taken = |key: &Key| self.volumes.contains_key(key) || self.foreign.contains_key(key);
        let absent: Vec<_> = all_volumes().into_iter().filter(|key| !taken(key)).collect();
        choose(&absent, number, &all_volumes()).clone()
    }

    /// A snapshot that there is.
    fn present_snapshot(&self, number: usize) -> Cut {
        let present: Vec<_> = self.snapshots.keys().cloned().collect();
        let all: Vec<_> = SNAPSHOTS.map(|name| (RBD, name.to_owned())).into_iter().collect();
        let (home, name) = choose(&present, number, &all);
        self.cut(*home, name)
    }

    /// A snapshot as its holder knows it, or as one who knows of none would make it up.
    fn cut(&self, home: Home, name: &str) -> Cut {
        let place = (home.pool.to_owned(), home.namespace.to_owned());
        let notes = Notes::of(&self.lab.graph());
        let image_id =
            notes.snapshots.get(&(place, name.to_owned())).map(|record| record.image_id.clone());
        Cut { home, image_id: image_id.unwrap_or_else(|| "0".to_owned()), name: name.to_owned() }
    }

    /// What outsiders do to the volumes they know.
    fn outside(&mut self, op: &Op) {
        match op {
            Op::Write { volume, block } => {
                let key = self.present(*volume);
                let Some(blocks) = self.volumes.get(&key).map(|seen| seen.blocks.len()) else {
                    return;
                };
                let block = *block % blocks as u64;
                self.write(&key, block);
            }
            Op::Backup { volume } => {
                let key = self.present(*volume);
                if self.volumes.contains_key(&key) {
                    self.written += 1;
                    let name = format!("backup.1.snap.{}", self.written);
                    self.lab.open(key.0, &key.1).create_snapshot(&name).unwrap();
                }
            }
            Op::Hold { volume } => {
                let key = self.present(*volume);
                if self.volumes.contains_key(&key) {
                    let image = self.lab.open(key.0, &key.1);
                    self.held.push((key, image));
                }
            }
            Op::Release => self.held.clear(),
            Op::Flatten { volume } => {
                let key = self.present(*volume);
                if self.volumes.contains_key(&key) {
                    let image = self.lab.open(key.0, &key.1);
                    if image.parent(None).unwrap().is_some() {
                        image.flatten(&mut |_, _| std::ops::ControlFlow::Continue(())).unwrap();
                        self.flattened = true;
                    }
                }
            }
            Op::Foreign { volume } => {
                let key = self.absent(*volume);
                let options = ImageOptions { order: Some(12), ..ImageOptions::default() };
                if self.lab.pool(key.0).create_image(&key.1, BLOCK, &options).is_ok() {
                    self.foreign.insert(key.clone(), vec![0]);
                    self.write(&key, 0);
                }
            }
            _ => unreachable!("a request"),
        }
    }

    fn write(&mut self, key: &Key, block: u64) {
        self.written = self.written % 250 + 1;
        self.lab.open(key.0, &key.1).write_at(block * BLOCK, &[self.written]).unwrap();
        let seen = self.volumes.get_mut(key).map(|seen| &mut seen.blocks);
        let blocks = seen.or_else(|| self.foreign.get_mut(key)).unwrap();
        blocks[usize::try_from(block).unwrap()] = self.written;
    }

    fn expire_watches(&mut self) {
        for session in std::mem::take(&mut self.lingering) {
            self.lab.model.expire_watchers(&session);
        }
    }

    /// What the thing that a request makes may hold if it is made now.
    fn contents(&self, request: &Request) -> Vec<Blocks> {
        let key = |home: &Home, name: &str| (*home, name.to_owned());
        let source = match request {
            Request::Create(wish) => match &wish.source {
                None => return vec![Vec::new()],
                Some(VolumeSource::Volume { pool, namespace, image, .. }) => {
                    self.volumes.get(&key(&home(pool, namespace), image))
                }
                Some(VolumeSource::Snapshot { pool, namespace, snapshot, image_id, .. }) => {
                    let home = home(pool, namespace);
                    // Its id may have been made up when there was none of that name.
                    let known = self.cut(home, snapshot).image_id == *image_id;
                    self.snapshots.get(&key(&home, snapshot)).filter(|_| known)
                }
                Some(VolumeSource::Image(_)) => unreachable!("no request here names an image"),
            },
            Request::Snapshot { home, volume, .. } => self.volumes.get(&key(home, volume)),
            _ => None,
        };
        source.map(|seen| seen.blocks.clone()).into_iter().collect()
    }

    /// Nothing is in flight, and no fault has left anything.
    fn is_settled(&self) -> bool {
        let notes = Notes::of(&self.lab.graph());
        let unfinished = notes.volumes.values().any(|record| record.state != State::Ready)
            || notes.snapshots.values().any(|record| record.state != State::Ready);
        !self.troubled && self.in_flight.is_empty() && !unfinished
    }

    /// Looks at what there is now: all that is handed out holds what it should, and only what was
    /// asked to has come or gone.
    fn sync(&mut self) {
        let notes = Notes::of(&self.lab.graph());
        let ready = |state| state == State::Ready;
        let volumes: BTreeMap<Key, (String, Blocks)> = notes
            .volumes
            .iter()
            .filter(|(_, record)| ready(record.state))
            .map(|((place, name), record)| {
                let home = crate::lab::home(place);
                let blocks = self.read(home, ImageKey::Name(name), None);
                ((home, name.clone()), (record.attempt.clone(), blocks))
            })
            .collect();
        let snapshots: BTreeMap<Key, (String, Blocks)> = notes
            .snapshots
            .iter()
            .filter(|(_, record)| ready(record.state))
            .map(|((place, name), record)| {
                let home = crate::lab::home(place);
                let blocks =
                    self.read(home, ImageKey::Id(&record.image_id), Some(record.snapshot_id));
                ((home, name.clone()), (record.attempt.clone(), blocks))
            })
            .collect();
        let volume =
            |request: &Request| request.volume().map(|(home, name)| (home, name.to_owned()));
        let snapshot =
            |request: &Request| request.snapshot().map(|(home, name)| (home, name.to_owned()));
        let made = compare(&mut self.volumes, volumes, &self.in_flight, volume);
        compare(&mut self.snapshots, snapshots, &self.in_flight, snapshot);
        for (key, expected) in &self.foreign {
            let blocks = self.read(key.0, ImageKey::Name(&key.1), None);
            assert_eq!(blocks, *expected, "the foreign {key:?}\n{}", self.lab.graph());
        }
        if self.in_flight.len() == 1 {
            for key in made {
                if self.volumes[&key].blocks.iter().all(|block| *block == 0) {
                    self.write(&key, 0);
                }
            }
        }
        let now: Vec<_> =
            self.in_flight.iter().map(|flying| self.contents(&flying.request)).collect();
        for (flying, contents) in self.in_flight.iter_mut().zip(now) {
            flying.contents.extend(contents);
        }
    }

    /// The first byte of each block.
    fn read(&self, home: Home, key: ImageKey<'_>, at: Option<SnapshotId>) -> Blocks {
        let image = self.lab.pool(home).open_image(key, OpenMode::ReadOnly);
        let image =
            image.unwrap_or_else(|error| panic!("{key:?} is lost: {error}\n{}", self.lab.graph()));
        let size = match at {
            None => image.info().unwrap().size,
            Some(id) => {
                let snapshots = image.snapshots().unwrap();
                let found = snapshots.iter().find(|snapshot| snapshot.id == id);
                found.unwrap_or_else(|| panic!("{key:?}@{id} is lost\n{}", self.lab.graph())).size
            }
        };
        (0..size / BLOCK)
            .map(|block| {
                let mut byte = [0];
                image.read_at(at, block * BLOCK, &mut byte).unwrap();
                byte[0]
            })
            .collect()
    }

    /// Checks what was answered. `alone` when nothing else was in flight, or left by a fault.
    fn check_answer(
        &self,
        request: &Request,
        answer: &Result<Option<catalogue::Volume>>,
        alone: bool,
        hit: bool,
        before: &Graph,
    ) {
        let graph = self.lab.graph();
        match answer {
            Ok(made) => {
                if let (Request::Create(wish), Some(record)) = (request, made) {
                    check_made(wish, record, &graph, alone);
                }
                if let (Request::Delete(home, name), true) = (request, alone) {
                    let held = self.held.iter().any(|((at, held), _)| at == home && held == name);
                    assert!(!held, "{name} was deleted while it was open\n{graph}");
                    let there = graph
                        .pools
                        .get(&(home.pool.to_owned(), home.namespace.to_owned()))
                        .is_some_and(|pool| {
                            pool.names.contains_key(name) || pool.id_objects.contains_key(name)
                        });
                    assert!(!there, "{name} was deleted, but is there\n{graph}");
                }
            }
            Err(error) if alone && !hit => {
                assert!(
                    self.may_refuse(request, error),
                    "{request:?} failed with {error:?}\n{graph}"
                );
                if is_refusal(error) {
                    assert_eq!(*before, graph, "refused with {error:?}, but something changed");
                }
            }
            Err(error) if alone && error.is_final() => {
                let notes = Notes::of(&graph);
                let unfinished =
                    notes.volumes.values().any(|record| record.state == State::Creating)
                        || notes.snapshots.values().any(|record| record.state == State::Creating);
                assert!(
                    !unfinished,
                    "the answer was final ({error:?}), but something is left\n{graph}"
                );
            }
            Err(_) => {}
        }
    }

    /// Whether a request may be refused so, with nothing else in flight and no fault.
    fn may_refuse(&self, request: &Request, error: &Error) -> bool {
        match (request, error) {
            (Request::Create(_), Error::Exhausted(_))
            | (Request::Snapshot { most: 2, .. }, Error::Exhausted(_))
            | (Request::Delete(..), Error::HasSnapshots { .. }) => true,
            (Request::Create(wish), Error::AlreadyExists(_)) => {
                let key = (wish.home, wish.name.clone());
                self.volumes.contains_key(&key) || self.foreign.contains_key(&key)
            }
            (Request::Create(wish), Error::NotFound(_)) => {
                wish.source.is_some() && self.contents(request).is_empty()
            }
            // The source grew after the request was made up.
            (Request::Create(wish), Error::OutOfRange(_)) => {
                let is_larger = |source: &Blocks| source.len() as u64 * BLOCK > wish.sizes.required;
                wish.source.is_some() && self.contents(request).iter().any(is_larger)
            }
            (Request::Create(wish), Error::Invalid(_)) => wish.format == CloneFormat::V1,
            (Request::Publish(home, name), Error::InUse(why)) => {
                let key = (*home, name.clone());
                let held =
                    self.held.iter().any(|(held, _)| *held == key) || !self.lingering.is_empty();
                held && why.contains("is open for writing")
            }
            (Request::Delete(home, name), Error::InUse(why)) => {
                let key = (*home, name.clone());
                let held = self.held.iter().any(|(held, _)| *held == key);
                held && why.contains("is open at") || why.contains("is published")
            }
            (Request::Delete(home, name), Error::FailedPrecondition(_)) => {
                self.foreign.contains_key(&(*home, name.clone()))
            }
            (Request::Snapshot { home, volume, .. }, Error::NotFound(_)) => {
                !self.volumes.contains_key(&(*home, volume.clone()))
            }
            (Request::Snapshot { home, name, .. }, Error::AlreadyExists(_)) => {
                self.snapshots.contains_key(&(*home, name.clone()))
            }
            (Request::Grow(home, name, _) | Request::Publish(home, name), Error::NotFound(_)) => {
                !self.volumes.contains_key(&(*home, name.clone()))
            }
            _ => false,
        }
    }

    /// At rest, all that must hold at rest holds.
    fn check_rest(&self) {
        if !self.is_settled() {
            return;
        }
        let graph = self.lab.graph();
        let exempt = Exempt {
            images: self.foreign.keys().map(|(_, name)| name.clone()).collect(),
            childless_clone_snapshots: self.flattened,
            watchers: !self.held.is_empty() || !self.lingering.is_empty(),
            grown: self.grown,
            ..Exempt::default()
        };
        let broken = broken(&graph, &exempt);
        assert!(broken.is_empty(), "not at rest:\n  {}\n{graph}", broken.join("\n  "));
    }

    /// What `cinderblock gc` does.
    fn collect_garbage(&self) {
        let controller = Controller::new(&self.lab.model);
        for home in HOMES.into_iter().chain(HOMES) {
            let volumes = controller.volumes(home).unwrap();
            for leftover in volumes.leftovers(&volumes.survey().unwrap(), Duration::ZERO).unwrap() {
                volumes.clear(&leftover).unwrap();
            }
        }
    }
}

/// Compares what there is with what was known, and takes it over. Only what a request in flight is
/// about may have come or gone, and what has come holds what the request says. Returns what has
/// come.
fn compare(
    known: &mut BTreeMap<Key, Seen>,
    now: BTreeMap<Key, (String, Blocks)>,
    in_flight: &[InFlight],
    about: impl Fn(&Request) -> Option<Key>,
) -> Vec<Key> {
    let asked = |key: &Key| {
        in_flight
            .iter()
            .filter(|flying| about(&flying.request).as_ref() == Some(key))
            .collect::<Vec<_>>()
    };
    for key in known.keys() {
        assert!(
            now.contains_key(key) || !asked(key).is_empty(),
            "{key:?} is gone, and nobody asked for that"
        );
    }
    known.retain(|key, _| now.contains_key(key));
    let mut come = Vec::new();
    for (key, (attempt, blocks)) in now {
        match known.get_mut(&key) {
            Some(seen) if seen.attempt == attempt => {
                assert!(
                    is_grown(&seen.blocks, &blocks),
                    "{key:?} holds {blocks:?}, not {:?}",
                    seen.blocks
                );
                seen.blocks = blocks;
            }
            _ => {
                let asked = asked(&key);
                let right = asked
                    .iter()
                    .flat_map(|flying| &flying.contents)
                    .any(|wanted| is_grown(wanted, &blocks));
                assert!(right, "{key:?} has come with {blocks:?}, asked for were {asked:?}");
                come.push(key.clone());
                known.insert(key, Seen { attempt, blocks });
            }
        }
    }
    come
}

/// Whether `blocks` are those `before`, and zeros.
fn is_grown(before: &[u8], blocks: &[u8]) -> bool {
    blocks.strip_prefix(before).is_some_and(|rest| rest.iter().all(|block| *block == 0))
}

/// A volume that was handed out is what was asked for.
fn check_made(wish: &Wish, record: &catalogue::Volume, graph: &Graph, alone: bool) {
    let request = wish.request();
    assert_eq!(record.name, wish.name);
    assert!(wish.sizes.allow(record.size), "{record:?} is not of the size asked for");
    let made_from = record.source.as_ref().map(ToString::to_string);
    let asked_from = request.source.map(|source| match source {
        VolumeSource::Volume { id, .. } | VolumeSource::Snapshot { id, .. } => id,
        VolumeSource::Image(location) => location.to_string(),
    });
    assert_eq!(made_from, asked_from, "{record:?}");
    if !alone {
        return;
    }
    let pool = &graph.pools[&(wish.home.pool.to_owned(), wish.home.namespace.to_owned())];
    let image = &pool.images[&pool.names[&wish.name]];
    let depth = depth(graph, image);
    assert!(depth <= wish.policy.max_clone_depth, "{record:?} has {depth} ancestors\n{graph}");
    if let Some(link) = &image.link {
        let planned = record
            .link
            .as_ref()
            .unwrap_or_else(|| panic!("{record:?} should have no parent\n{graph}"));
        assert_eq!(link.image_id, planned.image_id, "{record:?}\n{graph}");
    }
}

/// How many ancestors the head of an image has.
fn depth(graph: &Graph, image: &ImageGraph) -> u32 {
    let mut depth = 0;
    let mut link = image.link.as_ref();
    while let Some(up) = link {
        depth += 1;
        link = graph.parent(up).and_then(|parent| parent.snapshots[&up.snapshot].link.as_ref());
    }
    depth
}

/// One of those that fit, or now and then of all.
fn choose<'a, T>(fit: &'a [T], number: usize, all: &'a [T]) -> &'a T {
    let among = if fit.is_empty() || number >= 60 { all } else { fit };
    &among[number % among.len()]
}

fn all_volumes() -> Vec<Key> {
    VOLUMES.iter().map(|(home, name)| (*home, (*name).to_owned())).collect()
}

fn wish((home, name): Key, shape: &Shape) -> Wish {
    Wish {
        home,
        format: if shape.format_1 { CloneFormat::V1 } else { CloneFormat::V2 },
        deep_flatten: shape.deep_flatten,
        policy: Policy {
            max_clone_depth: shape.depth,
            flatten_target: shape.target,
            flatten_on_restore: shape.flatten_on_restore,
            max_snapshots: shape.most,
        },
        delete_with_snapshots: if shape.refuse {
            DeleteWithSnapshots::Refuse
        } else {
            DeleteWithSnapshots::Retain
        },
        ..Wish::new(&name)
    }
}

/// At least the source's size, or so much larger.
fn larger(source: Option<&Blocks>, by: u64) -> Sizes {
    let blocks = source.filter(|_| by > 0).map_or(0, |blocks| blocks.len() as u64 + by);
    Sizes { required: blocks * BLOCK, limit: 0 }
}

fn home(pool: &str, namespace: &str) -> Home {
    crate::lab::home(&(pool.to_owned(), namespace.to_owned()))
}
