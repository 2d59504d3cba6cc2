//! Operations in flight: blocking work that outlives its caller, is joined by a repeated request, and never hangs one.
//!
//! A handler validates and hands its work to [`Operations::run`]. The work runs as a task of its own on the blocking pool and
//! goes on when the caller hangs up. Operations are keyed by what they work on: the same request again waits for the
//! running one's answer; a different one that shares a key gets ABORTED with who holds it, for how long, and what it is
//! doing. A caller whose deadline comes hears how far the work is.
//!
//! Workers are bounded per cluster, and per pool below that, so that a pool or a cluster that hangs takes no other with
//! it, however often it is asked. Work that still waits for a worker when nobody waits for its answer is dropped: nothing
//! was begun, and otherwise a cluster that is away for long would gather every request made meanwhile.

use crate::volume::Activity;
use std::any::Any;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tonic::Status;

/// Blocking operations that may run at once on one cluster.
pub const WORKERS_PER_CLUSTER: usize = 64;
/// Blocking operations that may run at once in one pool.
const WORKERS_PER_POOL: usize = 32;

/// The operations in flight of one driver.
#[derive(Debug, Clone, Default)]
pub struct Operations {
    running: Arc<Mutex<HashMap<String, Arc<Running>>>>,
    workers: Workers,
}

/// The bounds of clusters and pools. Only those in use are remembered: ids from outside may name any pool.
#[derive(Debug, Clone, Default)]
struct Workers(Arc<Mutex<HashMap<String, Arc<Semaphore>>>>);

/// A worker, given back when dropped.
#[derive(Debug)]
pub struct Worker {
    _of_pool: OwnedSemaphorePermit,
    _of_cluster: OwnedSemaphorePermit,
}

impl Workers {
    async fn get(&self, cluster: &str, pool: &str) -> Worker {
        // The pool's first: who waits for a stuck pool takes no place from the others.
        let of_pool = self.bound(format!("{cluster}/{pool}"), WORKERS_PER_POOL);
        let of_pool = acquire(of_pool).await;
        let of_cluster = acquire(self.bound(cluster.to_owned(), WORKERS_PER_CLUSTER)).await;
        Worker { _of_pool: of_pool, _of_cluster: of_cluster }
    }

    fn bound(&self, place: String, workers: usize) -> Arc<Semaphore> {
        let mut bounds = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        bounds.retain(|_, bound| Arc::strong_count(bound) > 1);
        bounds.entry(place).or_insert_with(|| Arc::new(Semaphore::new(workers))).clone()
    }
}

async fn acquire(bound: Arc<Semaphore>) -> OwnedSemaphorePermit {
    match bound.acquire_owned().await {
        Ok(permit) => permit,
        Err(_) => unreachable!("no bound is ever closed"),
    }
}

/// What an operation is, to others.
#[derive(Debug, Clone)]
pub struct Operation {
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
/// An operation, its answer to come, and the work that is to be done after it.
type Started<T, F> = (Arc<Running>, Answer<T>, Option<F>);

impl Operations {
    /// Runs `work`, or joins the same operation that is running, and answers within `deadline`.
    ///
    /// One that is tidying up when this request comes may have taken its effect before, and another controller may have undone that
    /// since. So its failure is this one's, but after its success the work is run, or the next to do so is joined.
    pub async fn run<T, F>(&self, operation: Operation, deadline: Duration, work: F) -> Result<T, Status>
    where
        T: Clone + Send + Sync + 'static,
        F: FnOnce(Arc<Activity>) -> Result<T, Status> + Send + 'static,
    {
        let asked = Instant::now();
        let mut work = work;
        loop {
            let (running, mut answer, again) = self.start(operation.clone(), work)?;
            let left = deadline.saturating_sub(asked.elapsed());
            let answered = tokio::time::timeout(left, answer.wait_for(Option::is_some)).await;
            let outcome = match answered {
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
            };
            match again {
                Some(again) if outcome.is_ok() => work = again,
                _ => return outcome,
            }
        }
    }

    /// What the operation that holds `key` is doing, if one does.
    pub fn activity(&self, key: &str) -> Option<Arc<Activity>> {
        let table = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        table.get(key).map(|running| running.activity.clone())
    }

    /// A worker for a stream over `pool`, when one is free within `deadline`. Streams are bounded like operations but apart
    /// from them: long readings keep nobody from making a volume.
    pub async fn stream_worker(
        &self,
        cluster: &str,
        pool: &str,
        deadline: Duration,
    ) -> Result<Worker, Status> {
        let streams = format!("streams of {cluster}");
        let worker = tokio::time::timeout(deadline, self.workers.get(&streams, pool)).await;
        worker.map_err(|_| {
            Status::unavailable(format!(
                "as many streams as may are read from the pool {pool}; try again later"
            ))
        })
    }

    /// Starts `work`, or joins the same operation that is running. One that is tidying up gives `work` back.
    fn start<T, F>(&self, operation: Operation, work: F) -> Result<Started<T, F>, Status>
    where
        T: Clone + Send + Sync + 'static,
        F: FnOnce(Arc<Activity>) -> Result<T, Status> + Send + 'static,
    {
        let mut table = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        for key in &operation.keys {
            let Some(holder) = table.get(key) else { continue };
            let same = holder.operation.rpc == operation.rpc
                && holder.operation.keys == operation.keys
                && holder.operation.request == operation.request;
            return match holder.answer.downcast_ref::<Sender<T>>() {
                Some(sender) if same => {
                    let again = holder.activity.is_tidying_up().then_some(work);
                    Ok((holder.clone(), sender.subscribe(), again))
                }
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
        activity.begin("waiting for a free worker");
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

        let mut held = Held { table: self.running.clone(), keys: running.operation.keys.clone() };
        let (workers, place) = (self.workers.clone(), running.operation.clone());
        tokio::spawn(async move {
            let mut worker = std::pin::pin!(workers.get(&place.cluster, &place.pool));
            let worker = loop {
                tokio::select! {
                    biased;
                    worker = &mut worker => break worker,
                    () = sender.closed() => if held.give_up(&sender) { return },
                }
            };
            activity.begin("");
            let result = tokio::task::spawn_blocking(move || work(activity)).await.unwrap_or_else(|panic| {
                tracing::error!(%panic, "an operation panicked");
                Err(Status::aborted("the driver failed inside this operation, see its log; try again"))
            });
            drop(worker);
            // Out of the table first: whoever hears the answer may ask for the next thing at once.
            drop(held);
            sender.send_replace(Some(result));
        });
        Ok((running, answer, None))
    }
}

/// An operation's keys in the table, given back when dropped.
struct Held {
    table: Arc<Mutex<HashMap<String, Arc<Running>>>>,
    keys: Vec<String>,
}

impl Held {
    /// Gives the keys back if nobody waits for the answer; callers join under the same lock.
    fn give_up<T>(&mut self, sender: &watch::Sender<T>) -> bool {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let alone = sender.receiver_count() == 0;
        if alone {
            self.keys.drain(..).for_each(|key| drop(table.remove(&key)));
        }
        alone
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        self.keys.drain(..).for_each(|key| drop(table.remove(&key)));
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
        let first =
            operations.start(operation("CreateVolume", "volume a", "1"), move |activity: Arc<Activity>| {
                counted.fetch_add(1, Ordering::SeqCst);
                activity.begin("flattening rbd/a");
                activity.progress()(37, 100).is_continue().then_some(()).unwrap();
                wait.recv().unwrap();
                Ok(7)
            });
        let (running, ..) = first.unwrap();
        while running.activity.to_string() != "flattening rbd/a (37 %)" {
            tokio::task::yield_now().await;
        }
        let other =
            operations.run(operation("DeleteVolume", "volume a", "1"), LONG, |_| Ok(())).await.unwrap_err();
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
        let again = operations.start(operation("CreateVolume", "volume a", "1"), move |_: Arc<Activity>| {
            counted.fetch_add(1, Ordering::SeqCst);
            Ok(0)
        });
        let (_, mut again, _) = again.unwrap();
        release.send(()).unwrap();
        assert_eq!(again.wait_for(Option::is_some).await.unwrap().clone().unwrap().unwrap(), 7);
        assert_eq!(runs.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn who_joins_what_is_tidying_up_has_it_looked_at_again() {
        let operations = Operations::default();
        let (release, wait) = mpsc::channel::<()>();
        let deleting = operation("DeleteVolume", "volume a", "1");
        let first = operations.start(deleting.clone(), move |activity: Arc<Activity>| {
            activity.tidies_up();
            wait.recv().unwrap();
            Ok(1_usize)
        });
        let (running, ..) = first.unwrap();
        while !running.activity.is_tidying_up() {
            tokio::task::yield_now().await;
        }
        let runs = Arc::new(AtomicUsize::new(0));
        let joining: Vec<_> = (0..5)
            .map(|_| {
                let (operations, runs, deleting) = (operations.clone(), runs.clone(), deleting.clone());
                let work = move |_: Arc<Activity>| Ok(2 + runs.fetch_add(1, Ordering::SeqCst));
                tokio::spawn(async move { operations.run(deleting, LONG, work).await })
            })
            .collect();
        let waiting = |running: &Running| {
            let sender = running.answer.downcast_ref::<Sender<usize>>().unwrap();
            sender.receiver_count()
        };
        while waiting(&running) < joining.len() {
            tokio::task::yield_now().await;
        }
        release.send(()).unwrap();
        for answer in joining {
            assert!(answer.await.unwrap().unwrap() >= 2);
        }
        assert!(runs.load(Ordering::SeqCst) >= 1);
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
                tokio::spawn(async move { operations.run(operation("X", "k2", ""), LONG, work).await });
            tokio::task::yield_now().await;
            task.abort();
            receiver2
        };
        assert!(caller.recv_timeout(LONG).is_ok() || receiver.try_recv().is_err());
    }

    /// Occupies every worker of the pool `pool`; they are free again when what this returns is dropped.
    async fn occupy(operations: &Operations, pool: &str) -> mpsc::Sender<()> {
        let (release, wait) = mpsc::channel::<()>();
        let wait = Arc::new(Mutex::new(wait));
        let begun = Arc::new(Semaphore::new(0));
        for _ in 0..WORKERS_PER_POOL {
            let (wait, begun_here) = (wait.clone(), begun.clone());
            let stuck = Operation { pool: pool.into(), keys: Vec::new(), ..operation("stuck", "", "") };
            let work = move |_: Arc<Activity>| {
                begun_here.add_permits(1);
                // Until the sender is dropped.
                assert!(wait.lock().unwrap().recv().is_err());
                Ok(())
            };
            drop(operations.start(stuck, work).unwrap());
        }
        drop(begun.acquire_many(u32::try_from(WORKERS_PER_POOL).unwrap()).await.unwrap());
        release
    }

    #[tokio::test]
    async fn a_stuck_pool_leaves_the_others_their_workers() {
        let operations = Operations::default();
        let stuck = occupy(&operations, "stuck").await;
        for number in 0..200 {
            let waiting = Operation { pool: "stuck".into(), ..operation("X", &format!("w{number}"), "") };
            drop(operations.start(waiting, |_| Ok(())).unwrap());
        }
        assert_eq!(operations.run(operation("Y", "other", ""), LONG, |_| Ok(1)).await.unwrap(), 1);
        drop(stuck);
    }

    #[tokio::test]
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
        let given_up = operations.run(operation("X", "a", ""), soon, count(1)).await.unwrap_err();
        assert_eq!(given_up.code(), Code::DeadlineExceeded);
        assert!(given_up.message().contains("a free worker"), "{}", given_up.message());
        // Its key is free again.
        while operations.running.lock().unwrap().contains_key("a") {
            tokio::task::yield_now().await;
        }
        let (_, first, _) = operations.start(operation("X", "b", ""), count(10)).unwrap();
        let (_, mut second, _) = operations.start(operation("X", "b", ""), count(100)).unwrap();
        drop(first);
        drop(stuck);
        assert_eq!(second.wait_for(Option::is_some).await.unwrap().clone().unwrap().unwrap(), 10);
        assert_eq!(operations.run(operation("Y", "a", ""), LONG, |_| Ok(1)).await.unwrap(), 1);
        assert_eq!(ran.load(Ordering::SeqCst), 10);
    }
}
