//! Operations in flight: blocking work that outlives its caller, is joined by a repeated request, and never hangs one.
//!
//! A handler validates and hands its work to [`Operations::run`]. The work runs as a task of its own on the blocking pool, bounded
//! per cluster so that one that hangs takes no other with it, and goes on when the caller hangs up. Operations are keyed by
//! what they work on: the same request again waits for the running one's answer; a different one that shares a key gets
//! ABORTED with who holds it, for how long, and what it is doing. A caller whose deadline comes hears how far the work is.

use crate::volume::Activity;
use std::any::Any;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, watch};
use tonic::Status;

/// Blocking operations that may run at once on one cluster.
const WORKERS_PER_CLUSTER: usize = 48;

/// The operations in flight of one driver.
#[derive(Debug, Clone, Default)]
pub struct Operations {
    running: Arc<Mutex<HashMap<String, Arc<Running>>>>,
    workers: Arc<Mutex<HashMap<String, Arc<Semaphore>>>>,
}

/// What an operation is, to others.
#[derive(Debug, Clone)]
pub struct Operation {
    /// The RPC's name.
    pub rpc: &'static str,
    /// The cluster it works on.
    pub cluster: String,
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
    /// `watch::Receiver<Option<Result<T, Status>>>` for the RPC's own `T`.
    answer: Box<dyn Any + Send + Sync>,
}

type Answer<T> = watch::Receiver<Option<Result<T, Status>>>;

impl Operations {
    /// Runs `work`, or joins the same operation that is running, and answers within `deadline`.
    pub async fn run<T, F>(&self, operation: Operation, deadline: Duration, work: F) -> Result<T, Status>
    where
        T: Clone + Send + Sync + 'static,
        F: FnOnce(Arc<Activity>) -> Result<T, Status> + Send + 'static,
    {
        let (running, mut answer) = self.start(operation, work)?;
        let answered = tokio::time::timeout(deadline, answer.wait_for(Option::is_some)).await;
        match answered {
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

    fn start<T, F>(&self, operation: Operation, work: F) -> Result<(Arc<Running>, Answer<T>), Status>
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
            return match holder.answer.downcast_ref::<Answer<T>>() {
                Some(answer) if same => Ok((holder.clone(), answer.clone())),
                _ => Err(Status::aborted(format!(
                    "{} holds {key} for {} s now: {}; try again",
                    holder.operation.rpc,
                    holder.since.elapsed().as_secs(),
                    holder.activity
                ))),
            };
        }
        let (sender, answer) = watch::channel(None);
        let activity = Arc::new(Activity::default());
        let running = Arc::new(Running {
            operation,
            since: Instant::now(),
            activity: activity.clone(),
            answer: Box::new(answer.clone()),
        });
        for key in &running.operation.keys {
            table.insert(key.clone(), running.clone());
        }
        drop(table);

        let workers = self.workers_of(&running.operation.cluster);
        let held = Held { table: self.running.clone(), keys: running.operation.keys.clone() };
        tokio::spawn(async move {
            activity.begin("waiting for a free worker");
            // Never closed, so this always succeeds in the end.
            let _permit = workers.acquire_owned().await;
            activity.begin("");
            let result = tokio::task::spawn_blocking(move || work(activity)).await.unwrap_or_else(|panic| {
                tracing::error!(%panic, "an operation panicked");
                Err(Status::aborted("the driver failed inside this operation, see its log; try again"))
            });
            // Out of the table first: whoever hears the answer may ask for the next thing at once.
            drop(held);
            sender.send_replace(Some(result));
        });
        Ok((running, answer))
    }

    fn workers_of(&self, cluster: &str) -> Arc<Semaphore> {
        let mut workers = self.workers.lock().unwrap_or_else(PoisonError::into_inner);
        workers
            .entry(cluster.to_string())
            .or_insert_with(|| Arc::new(Semaphore::new(WORKERS_PER_CLUSTER)))
            .clone()
    }
}

/// An operation's keys in the table, given back when dropped.
struct Held {
    table: Arc<Mutex<HashMap<String, Arc<Running>>>>,
    keys: Vec<String>,
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        for key in &self.keys {
            table.remove(key);
        }
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
        Operation { rpc, cluster: "lab".into(), keys: vec![key.into()], request: request.into() }
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
        let (running, _) = first.unwrap();
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
        let again = tokio::spawn({
            let operations = operations.clone();
            async move {
                let work = move |_: Arc<Activity>| {
                    counted.fetch_add(1, Ordering::SeqCst);
                    Ok(0)
                };
                operations.run(operation("CreateVolume", "volume a", "1"), LONG, work).await
            }
        });
        release.send(()).unwrap();
        assert_eq!(again.await.unwrap().unwrap_or(7), 7);
        assert!(runs.load(Ordering::SeqCst) <= 2);
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
}
