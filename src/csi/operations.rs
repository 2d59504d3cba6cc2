//! Operations in flight: blocking work that outlives its caller, is joined by a repeated request,
//! and never hangs one.
//!
//! A handler validates and hands its work to [`Operations::run`]. The work runs as a task of its
//! own on the blocking pool and goes on when the caller hangs up. Operations are keyed by what they
//! work on: the same request again waits for the running one's answer; a different one that shares
//! a key gets ABORTED with who holds it, for how long, and what it is doing. A caller whose
//! deadline comes hears how far the work is.
//!
//! The number of operations that run at once is bounded by permits, per cluster and per pool below
//! that, so that a pool or a cluster that hangs takes no other with it. Each [`Class`] of work has
//! permits of its own: attaching and reading never wait for changes. An operation that comes to
//! heavy work, such as a flatten of hours, exchanges its permit for a heavy one
//! ([`Activity::begin_heavy`]), so that it keeps no other change waiting.
//!
//! An operation that hangs ([`Activity::is_given_up`]) does not keep what it works on: the next
//! request for that starts another operation, on another connection, which takes its work over by
//! fencing it.
//!
//! An operation that waits for a permit keeps its place in the queue for [`KEEPS_PLACE`] after its
//! last caller's deadline, so that a caller that asks again and again gets its turn. After that it
//! is dropped: nothing was begun, and otherwise a cluster that is away for long would gather every
//! request made meanwhile.

use crate::metrics::{Begun, metrics};
use crate::volume::Activity;
use std::any::Any;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tonic::Status;
use tracing::{Instrument as _, Span};

/// How long a queued operation waits for a caller to ask again. Kubernetes' sidecars do within
/// about a minute while they are told that a deadline was exceeded.
const KEEPS_PLACE: Duration = Duration::from_secs(90);
/// Operations per cluster that may wait for a heavy permit without another one. More than these
/// wait with the permit they have.
const HEAVY_WAITING: usize = 128;

/// Threads that the operations on one cluster may take: those with a permit of any class, and those
/// that wait for a heavy one.
pub const THREADS_PER_CLUSTER: usize = HEAVY_WAITING
    + Class::Attach.per_cluster()
    + Class::Change.per_cluster()
    + Class::Heavy.per_cluster()
    + Class::Stream.per_cluster()
    + Class::Background.per_cluster();

/// A kind of work with permits of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Attaching, detaching and reading: short, and what running pods wait for.
    Attach,
    /// Making, changing and deleting.
    Change,
    /// Flattening, copying and removing large images: hours, perhaps. Only
    /// [`Activity::begin_heavy`] leads here.
    Heavy,
    /// Streams over the blocks of a snapshot, which last as long as their reader likes.
    Stream,
    /// Settling and sweeping, for which no caller waits.
    Background,
}

impl Class {
    /// What metrics call it.
    fn label(self) -> &'static str {
        match self {
            Class::Attach => "attach",
            Class::Change => "change",
            Class::Heavy => "heavy",
            Class::Stream => "stream",
            Class::Background => "background",
        }
    }

    /// Permits in one pool.
    const fn per_pool(self) -> usize {
        match self {
            Class::Heavy | Class::Background => 8,
            _ => 32,
        }
    }

    /// Permits on one cluster.
    const fn per_cluster(self) -> usize {
        match self {
            Class::Heavy | Class::Background => 32,
            _ => 64,
        }
    }
}

/// The operations in flight of one driver.
#[derive(Debug, Clone, Default)]
pub struct Operations {
    running: Arc<Mutex<HashMap<String, Arc<Running>>>>,
    permits: Permits,
}

/// The permits of clusters and pools. Only those in use are remembered: ids from outside may name
/// any pool.
#[derive(Debug, Clone, Default)]
pub(super) struct Permits(Arc<Mutex<HashMap<String, Arc<Semaphore>>>>);

/// A permit to work in one pool, given back when dropped.
#[derive(Debug)]
pub struct Permit {
    _of_pool: OwnedSemaphorePermit,
    _of_cluster: OwnedSemaphorePermit,
    _at_work: Begun,
}

impl Permits {
    pub(super) async fn get(&self, class: Class, cluster: &str, pool: &str) -> Permit {
        let waits = metrics().operation_waits(class.label());
        // The pool's first: what waits for a stuck pool takes no place from the others.
        let of_pool = self.bound(format!("{class:?} {cluster}/{pool}"), class.per_pool());
        let of_pool = acquire(of_pool).await;
        let of_cluster = self.bound(format!("{class:?} {cluster}"), class.per_cluster());
        let of_cluster = acquire(of_cluster).await;
        drop(waits);
        Permit {
            _of_pool: of_pool,
            _of_cluster: of_cluster,
            _at_work: metrics().operation_works(class.label()),
        }
    }

    /// Has `activity` exchange `permit` for a heavy one when it comes to heavy work. Returns where
    /// the permit is from then on.
    pub(super) fn exchange(
        &self,
        permit: Permit,
        activity: &Activity,
        cluster: &str,
        pool: &str,
    ) -> Arc<Mutex<Option<Permit>>> {
        let held = Arc::new(Mutex::new(Some(permit)));
        let (permits, runtime) = (self.clone(), Handle::current());
        let (place, cluster, pool) = (held.clone(), cluster.to_owned(), pool.to_owned());
        activity.when_heavy(move || permits.make_heavy(&place, &cluster, &pool, &runtime));
        held
    }

    /// Exchanges the permit in `held` for a heavy one. Blocks.
    fn make_heavy(
        &self,
        held: &Mutex<Option<Permit>>,
        cluster: &str,
        pool: &str,
        runtime: &Handle,
    ) {
        let set = |permit| {
            std::mem::replace(&mut *held.lock().unwrap_or_else(PoisonError::into_inner), permit)
        };
        let waiting = self.bound(format!("waiting {cluster}"), HEAVY_WAITING).try_acquire_owned();
        if waiting.is_ok() {
            drop(set(None));
        }
        let heavy = runtime.block_on(self.get(Class::Heavy, cluster, pool));
        drop(set(Some(heavy)));
    }

    fn bound(&self, place: String, permits: usize) -> Arc<Semaphore> {
        let mut bounds = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        bounds.retain(|_, bound| Arc::strong_count(bound) > 1);
        bounds.entry(place).or_insert_with(|| Arc::new(Semaphore::new(permits))).clone()
    }
}

async fn acquire(bound: Arc<Semaphore>) -> OwnedSemaphorePermit {
    match bound.acquire_owned().await {
        Ok(permit) => permit,
        Err(_) => unreachable!("no bound is ever closed"),
    }
}

/// Returns when no caller has waited for the answer of `sender` for [`KEEPS_PLACE`].
async fn abandoned<T>(sender: &watch::Sender<T>) {
    loop {
        sender.closed().await;
        tokio::time::sleep(KEEPS_PLACE).await;
        if sender.is_closed() {
            return;
        }
    }
}

/// What an operation is, to others.
#[derive(Debug, Clone)]
pub struct Operation {
    /// Whose permits it works with.
    pub class: Class,
    /// The RPC's name.
    pub rpc: &'static str,
    /// The cluster it works on.
    pub cluster: String,
    /// The pool it works in.
    pub pool: String,
    /// What it works on: no two operations share one of these.
    pub keys: Vec<String>,
    /// What makes a repeated request the same one, secrets left out.
    pub request: String,
}

#[derive(Debug)]
struct Running {
    operation: Operation,
    since: Instant,
    activity: Arc<Activity>,
    /// `Sender<T>` for the RPC's own `T`. Its receivers are the callers.
    answer: Box<dyn Any + Send + Sync>,
}

type Sender<T> = Arc<watch::Sender<Option<Result<T, Status>>>>;
type Answer<T> = watch::Receiver<Option<Result<T, Status>>>;

impl Operations {
    /// Runs `work`, or joins the same operation that is running, and answers within `deadline`.
    pub async fn run<T, F>(
        &self,
        operation: Operation,
        deadline: Duration,
        work: F,
    ) -> Result<T, Status>
    where
        T: Clone + Send + Sync + 'static,
        F: FnOnce(Arc<Activity>) -> Result<T, Status> + Send + 'static,
    {
        let (running, mut answer) = self.start(operation, work)?;
        match tokio::time::timeout(deadline, answer.wait_for(Option::is_some)).await {
            Ok(Ok(answer)) => answer.clone().unwrap_or_else(|| {
                Err(Status::unavailable("the operation ended without an answer; try again"))
            }),
            Ok(Err(_)) => Err(Status::unavailable(format!(
                "{} ended without an answer; try again",
                running.operation.rpc
            ))),
            Err(_) => Err(Status::deadline_exceeded(format!(
                "{} goes on, for {} s now: {}; ask again",
                running.operation.rpc,
                running.since.elapsed().as_secs(),
                running.activity
            ))),
        }
    }

    /// What the operation that holds `key` is doing, if one does.
    pub fn activity(&self, key: &str) -> Option<Arc<Activity>> {
        let table = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        table.get(key).map(|running| running.activity.clone())
    }

    /// The permits, for background work.
    pub(super) fn permits(&self) -> &Permits {
        &self.permits
    }

    /// A permit for a stream over `pool`, when one is free within `deadline`.
    pub async fn stream_permit(
        &self,
        cluster: &str,
        pool: &str,
        deadline: Duration,
    ) -> Result<Permit, Status> {
        let permit = self.permits.get(Class::Stream, cluster, pool);
        tokio::time::timeout(deadline, permit).await.map_err(|_| {
            Status::unavailable(format!(
                "as many streams as may are read from the pool {pool}; try again later"
            ))
        })
    }

    /// Starts `work`, or joins the same operation that is running.
    fn start<T, F>(
        &self,
        operation: Operation,
        work: F,
    ) -> Result<(Arc<Running>, Answer<T>), Status>
    where
        T: Clone + Send + Sync + 'static,
        F: FnOnce(Arc<Activity>) -> Result<T, Status> + Send + 'static,
    {
        let mut table = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        for key in &operation.keys {
            let Some(holder) = table.get(key).cloned() else { continue };
            if holder.activity.is_given_up() {
                tracing::warn!(
                    rpc = holder.operation.rpc,
                    key,
                    seconds = holder.since.elapsed().as_secs(),
                    activity = %holder.activity,
                    "an operation hangs, and is given up"
                );
                table.retain(|_, running| !Arc::ptr_eq(running, &holder));
                continue;
            }
            let same = holder.operation.rpc == operation.rpc
                && holder.operation.keys == operation.keys
                && holder.operation.request == operation.request;
            return match holder.answer.downcast_ref::<Sender<T>>() {
                Some(sender) if same => Ok((holder.clone(), sender.subscribe())),
                _ => Err(Status::aborted(format!(
                    "{} holds {key} for {} s now: {}; try again",
                    holder.operation.rpc,
                    holder.since.elapsed().as_secs(),
                    holder.activity
                ))),
            };
        }
        let (sender, answer) = watch::channel(None);
        let sender: Sender<T> = Arc::new(sender);
        let activity = Arc::new(Activity::default());
        activity.begin_waiting("waiting for other operations in this pool");
        let running = Arc::new(Running {
            operation,
            since: Instant::now(),
            activity: activity.clone(),
            answer: Box::new(sender.clone()),
        });
        for key in &running.operation.keys {
            table.insert(key.clone(), running.clone());
        }
        drop(table);

        let mut held = Held { table: self.running.clone(), running: running.clone() };
        let (permits, operation) = (self.permits.clone(), running.operation.clone());
        // What the work logs carries the request that began it, also after that one's end.
        let span = Span::current();
        let within = span.clone();
        let task = async move {
            let permit = {
                let Operation { class, cluster, pool, .. } = &operation;
                let mut permit = std::pin::pin!(permits.get(*class, cluster, pool));
                loop {
                    tokio::select! {
                        biased;
                        permit = &mut permit => break permit,
                        () = abandoned(&sender) => if held.give_up(&sender) { return },
                    }
                }
            };
            let permit = permits.exchange(permit, &activity, &operation.cluster, &operation.pool);
            activity.begin("");
            let result = tokio::task::spawn_blocking(move || within.in_scope(|| work(activity)))
                .await
                .unwrap_or_else(|panic| {
                    tracing::error!(%panic, "an operation panicked");
                    Err(Status::aborted(
                        "the driver failed inside this operation, see its log; try again",
                    ))
                });
            drop(permit.lock().unwrap_or_else(PoisonError::into_inner).take());
            // Out of the table first: a caller that hears the answer may ask for the next thing at
            // once.
            drop(held);
            sender.send_replace(Some(result));
        };
        tokio::spawn(task.instrument(span));
        Ok((running, answer))
    }
}

/// An operation's keys in the table, given back when dropped.
struct Held {
    table: Arc<Mutex<HashMap<String, Arc<Running>>>>,
    running: Arc<Running>,
}

impl Held {
    /// Gives the keys back if no caller waits for the answer; callers join under the same lock.
    fn give_up<T>(&mut self, sender: &watch::Sender<T>) -> bool {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let alone = sender.receiver_count() == 0;
        if alone {
            self.release(&mut table);
        }
        alone
    }

    /// Another operation may have the keys, when this one was given up.
    fn release(&self, table: &mut HashMap<String, Arc<Running>>) {
        for key in &self.running.operation.keys {
            if table.get(key).is_some_and(|running| Arc::ptr_eq(running, &self.running)) {
                table.remove(key);
            }
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.release(&mut self.table.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;
    use tonic::Code;

    const LONG: Duration = Duration::from_secs(30);

    fn operation(rpc: &'static str, key: &str, request: &str) -> Operation {
        Operation {
            class: Class::Change,
            rpc,
            cluster: "lab".into(),
            pool: "rbd".into(),
            keys: vec![key.into()],
            request: request.into(),
        }
    }

    #[tokio::test]
    async fn a_repeated_request_joins_and_a_different_one_hears_who_holds_it() {
        let operations = Operations::default();
        let runs = Arc::new(AtomicUsize::new(0));
        let (release, wait) = mpsc::channel::<()>();
        let counted = runs.clone();
        let first = operations.start(
            operation("CreateVolume", "volume a", "1"),
            move |activity: Arc<Activity>| {
                counted.fetch_add(1, Ordering::SeqCst);
                activity.begin("flattening rbd/a");
                activity.progress()(37, 100).is_continue().then_some(()).unwrap();
                wait.recv().unwrap();
                Ok(7)
            },
        );
        let (running, _) = first.unwrap();
        while running.activity.to_string() != "flattening rbd/a (37 %)" {
            tokio::task::yield_now().await;
        }
        let other = operations
            .run(operation("DeleteVolume", "volume a", "1"), LONG, |_| Ok(()))
            .await
            .unwrap_err();
        assert_eq!(other.code(), Code::Aborted);
        assert!(other.message().contains("CreateVolume holds volume a"), "{}", other.message());
        assert!(other.message().contains("37 %"), "{}", other.message());
        let late = operations
            .run(operation("CreateVolume", "volume a", "1"), Duration::from_millis(20), |_| Ok(0))
            .await
            .unwrap_err();
        assert_eq!(late.code(), Code::DeadlineExceeded);
        assert!(late.message().contains("37 %"), "{}", late.message());
        let counted = runs.clone();
        let again = operations.start(
            operation("CreateVolume", "volume a", "1"),
            move |_: Arc<Activity>| {
                counted.fetch_add(1, Ordering::SeqCst);
                Ok(0)
            },
        );
        let (_, mut again) = again.unwrap();
        release.send(()).unwrap();
        assert_eq!(again.wait_for(Option::is_some).await.unwrap().clone().unwrap().unwrap(), 7);
        assert_eq!(runs.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn an_operation_that_hangs_is_given_up_and_keeps_nothing() {
        let operations = Operations::default();
        let (release, wait) = mpsc::channel::<()>();
        let (begun, at_work) = mpsc::channel();
        let hangs = move |activity: Arc<Activity>| {
            begun.send(activity).unwrap();
            Ok(wait.recv().is_ok())
        };
        let (_, mut first) = operations.start(operation("X", "k", ""), hangs).unwrap();
        let activity =
            tokio::task::spawn_blocking(move || at_work.recv_timeout(LONG).unwrap()).await.unwrap();
        assert_eq!(
            operations.run(operation("Y", "k", ""), LONG, |_| Ok(1)).await.unwrap_err().code(),
            Code::Aborted
        );
        activity.give_up();
        let (end, wait) = mpsc::channel::<()>();
        let work = move |_: Arc<Activity>| Ok(wait.recv().is_ok());
        let (_, mut second) = operations.start(operation("X", "k", ""), work).unwrap();
        // The first ends after all, and lets go of nothing that the second has.
        drop(release);
        assert!(!first.wait_for(Option::is_some).await.unwrap().clone().unwrap().unwrap());
        assert_eq!(
            operations.run(operation("Y", "k", ""), LONG, |_| Ok(1)).await.unwrap_err().code(),
            Code::Aborted
        );
        end.send(()).unwrap();
        assert!(second.wait_for(Option::is_some).await.unwrap().clone().unwrap().unwrap());
        assert_eq!(operations.run(operation("Y", "k", ""), LONG, |_| Ok(1)).await.unwrap(), 1);
    }

    #[test]
    fn metrics_have_every_class() {
        let classes =
            [Class::Attach, Class::Change, Class::Heavy, Class::Stream, Class::Background];
        assert_eq!(classes.map(Class::label), crate::metrics::CLASSES);
    }

    #[tokio::test]
    async fn a_panic_in_an_operation_is_an_answer_and_frees_its_keys() {
        let operations = Operations::default();
        let work = |_: Arc<Activity>| -> Result<(), Status> { panic!("as planned") };
        let status = operations.run(operation("X", "k", ""), LONG, work).await.unwrap_err();
        assert_eq!(status.code(), Code::Aborted);
        assert_eq!(operations.run(operation("Y", "k", ""), LONG, |_| Ok(1)).await.unwrap(), 1);
    }

    #[tokio::test]
    async fn an_operation_outlives_a_caller_that_hangs_up() {
        let operations = Operations::default();
        let (sender, receiver) = mpsc::channel();
        let work = move |_: Arc<Activity>| {
            sender.send(()).unwrap();
            Ok(())
        };
        drop(operations.run(operation("X", "k", ""), LONG, work));
        let caller = {
            let (sender, receiver2) = mpsc::channel();
            let operations = operations.clone();
            let work = move |_: Arc<Activity>| {
                sender.send(()).unwrap();
                Ok(())
            };
            let task =
                tokio::spawn(
                    async move { operations.run(operation("X", "k2", ""), LONG, work).await },
                );
            tokio::task::yield_now().await;
            task.abort();
            receiver2
        };
        assert!(caller.recv_timeout(LONG).is_ok() || receiver.try_recv().is_err());
    }

    /// Takes every permit for changes in the pool `pool`; they are free again when what this
    /// returns is dropped.
    async fn occupy(operations: &Operations, pool: &str) -> mpsc::Sender<()> {
        let (release, wait) = mpsc::channel::<()>();
        let wait = Arc::new(Mutex::new(wait));
        let begun = Arc::new(Semaphore::new(0));
        for _ in 0..Class::Change.per_pool() {
            let (wait, begun_here) = (wait.clone(), begun.clone());
            let stuck =
                Operation { pool: pool.into(), keys: Vec::new(), ..operation("stuck", "", "") };
            let work = move |_: Arc<Activity>| {
                begun_here.add_permits(1);
                // Until the sender is dropped.
                assert!(wait.lock().unwrap().recv().is_err());
                Ok(())
            };
            drop(operations.start(stuck, work).unwrap());
        }
        drop(begun.acquire_many(u32::try_from(Class::Change.per_pool()).unwrap()).await.unwrap());
        release
    }

    #[tokio::test]
    async fn a_stuck_pool_leaves_the_others_their_permits() {
        let operations = Operations::default();
        let stuck = occupy(&operations, "stuck").await;
        for number in 0..200 {
            let waiting =
                Operation { pool: "stuck".into(), ..operation("X", &format!("w{number}"), "") };
            drop(operations.start(waiting, |_| Ok(())).unwrap());
        }
        assert_eq!(operations.run(operation("Y", "other", ""), LONG, |_| Ok(1)).await.unwrap(), 1);
        drop(stuck);
    }

    #[tokio::test]
    async fn changes_that_are_stuck_leave_attaching_its_permits() {
        let operations = Operations::default();
        let stuck = occupy(&operations, "rbd").await;
        let attach = Operation { class: Class::Attach, ..operation("Y", "other", "") };
        assert_eq!(operations.run(attach, LONG, |_| Ok(1)).await.unwrap(), 1);
        drop(stuck);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn heavy_work_leaves_other_changes_their_permits_and_a_few_run_at_once() {
        let operations = Operations::default();
        let (release, wait) = mpsc::channel::<()>();
        let wait = Arc::new(Mutex::new(wait));
        let (begun, ended) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let heavy: Vec<_> = (0..2 * Class::Change.per_pool())
            .map(|number| {
                let (wait, begun, ended) = (wait.clone(), begun.clone(), ended.clone());
                let work = move |activity: Arc<Activity>| {
                    activity.begin_heavy();
                    let at_once =
                        begun.fetch_add(1, Ordering::SeqCst) - ended.load(Ordering::SeqCst);
                    assert!(at_once < Class::Heavy.per_pool(), "{at_once} others are at it");
                    // Until the sender is dropped.
                    assert!(wait.lock().unwrap().recv().is_err());
                    ended.fetch_add(1, Ordering::SeqCst);
                    Ok(())
                };
                operations.start(operation("heavy", &format!("h{number}"), ""), work).unwrap().1
            })
            .collect();
        while begun.load(Ordering::SeqCst) < Class::Heavy.per_pool() {
            tokio::task::yield_now().await;
        }
        assert_eq!(operations.run(operation("Y", "other", ""), LONG, |_| Ok(1)).await.unwrap(), 1);
        drop(release);
        for mut answer in heavy {
            answer.wait_for(Option::is_some).await.unwrap().clone().unwrap().unwrap();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_that_asks_again_finds_its_operation_at_its_place_in_the_queue() {
        let operations = Operations::default();
        let stuck = occupy(&operations, "rbd").await;
        let order = Arc::new(Mutex::new(Vec::new()));
        let note = |name: &'static str| {
            let order = order.clone();
            move |_: Arc<Activity>| {
                order.lock().unwrap().push(name);
                Ok(())
            }
        };
        let (_, given_up) = operations.start(operation("X", "first", ""), note("first")).unwrap();
        drop(given_up);
        let (_, mut second) =
            operations.start(operation("X", "second", ""), note("second")).unwrap();
        tokio::time::advance(KEEPS_PLACE / 2).await;
        let (_, mut first) = operations.start(operation("X", "first", ""), note("again")).unwrap();
        drop(stuck);
        for answer in [&mut first, &mut second] {
            answer.wait_for(Option::is_some).await.unwrap().clone().unwrap().unwrap();
        }
        let mut order = order.lock().unwrap().clone();
        // Both run at once when two permits are free.
        order.sort_unstable();
        assert_eq!(order, ["first", "second"]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_nobody_waits_for_is_not_begun_and_what_somebody_joined_is() {
        let operations = Operations::default();
        let stuck = occupy(&operations, "rbd").await;
        let ran = Arc::new(AtomicUsize::new(0));
        let count = |by| {
            let ran = ran.clone();
            move |_: Arc<Activity>| {
                ran.fetch_add(by, Ordering::SeqCst);
                Ok(by)
            }
        };
        let soon = Duration::from_millis(10);
        let mut given_up = std::pin::pin!(operations.run(operation("X", "a", ""), soon, count(1)));
        // The clock stands while threads are busy.
        let given_up = loop {
            tokio::select! {
                biased;
                answer = &mut given_up => break answer.unwrap_err(),
                () = tokio::time::advance(soon) => {}
            }
        };
        assert_eq!(given_up.code(), Code::DeadlineExceeded);
        assert!(
            given_up.message().contains("waiting for other operations"),
            "{}",
            given_up.message()
        );
        // Its key is free again.
        while operations.running.lock().unwrap().contains_key("a") {
            tokio::time::advance(KEEPS_PLACE).await;
        }
        let (_, first) = operations.start(operation("X", "b", ""), count(10)).unwrap();
        let (_, mut second) = operations.start(operation("X", "b", ""), count(100)).unwrap();
        drop(first);
        drop(stuck);
        assert_eq!(second.wait_for(Option::is_some).await.unwrap().clone().unwrap().unwrap(), 10);
        assert_eq!(operations.run(operation("Y", "a", ""), LONG, |_| Ok(1)).await.unwrap(), 1);
        assert_eq!(ran.load(Ordering::SeqCst), 10);
    }
}
