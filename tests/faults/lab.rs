//! The lab that is broken on purpose, and what every outage is held to.

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use cinderblock::csi::proto::{GetPluginInfoRequest, ProbeRequest};
use tokio::sync::OwnedMutexGuard;
use tonic::Code;

use crate::common::driver::{Class, Driver, MIB, within};
use crate::common::rpcs::{Answer, Things};
use crate::common::{OwnLab, PATIENCE};

/// The lab of this binary's own, for one test at a time. It goes down with the last test that waits
/// for it.
pub(crate) struct Broken {
    _turn: OwnedMutexGuard<()>,
    lab: Arc<OwnLab>,
}

#[derive(Default)]
struct Shared {
    lab: Weak<OwnLab>,
    turn: Arc<tokio::sync::Mutex<()>>,
}

impl Broken {
    /// Waits for its turn.
    pub(crate) async fn lab() -> Broken {
        static SHARED: Mutex<Option<Shared>> = Mutex::new(None);
        let (lab, turn) = {
            let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
            let shared = shared.get_or_insert_default();
            let lab = shared.lab.upgrade().unwrap_or_else(|| Arc::new(OwnLab::up()));
            shared.lab = Arc::downgrade(&lab);
            (lab, shared.turn.clone())
        };
        Broken { _turn: turn.lock_owned().await, lab }
    }
}

impl std::ops::Deref for Broken {
    type Target = OwnLab;

    fn deref(&self) -> &OwnLab {
        &self.lab
    }
}

/// A fault that ends when this is dropped, also when a test fails.
pub(crate) struct Fault<'a> {
    lab: &'a OwnLab,
    end: &'a dyn Fn(&OwnLab),
    over: bool,
}

impl<'a> Fault<'a> {
    /// Begins it.
    pub(crate) fn new(
        lab: &'a OwnLab,
        begin: &dyn Fn(&OwnLab),
        end: &'a dyn Fn(&OwnLab),
    ) -> Fault<'a> {
        let fault = Fault { lab, end, over: false };
        begin(lab);
        fault
    }

    /// Ends it.
    pub(crate) fn over(mut self) {
        self.over = true;
        (self.end)(self.lab);
    }
}

impl Drop for Fault<'_> {
    fn drop(&mut self) {
        if !self.over {
            (self.end)(self.lab);
        }
    }
}

/// Seconds a request gets in an outage. The driver answers one second before, which is time enough
/// on a busy machine.
pub(crate) const DEADLINE: u64 = 10;

/// Sends one request of each RPC during a fault and holds each to its deadline: CANCELLED would be
/// the client's own word, for lack of the driver's. Answers must not sound final, and the driver
/// itself goes on answering.
pub(crate) async fn suffer(driver: &Driver, things: &Things, name: &str) -> Vec<Answer> {
    let (answers, ()) = tokio::join!(things.ask_all(driver, name, DEADLINE), is_alive(driver));
    for Answer { rpc, outcome, took } in &answers {
        assert!(*took < PATIENCE, "{name}: {rpc} took {took:?}: {outcome:?}");
        if let Err(status) = outcome {
            let open =
                matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded | Code::Aborted);
            assert!(open, "{name}: {rpc} sounds final: {status:?}");
        }
    }
    answers
}

/// What needs no cluster is answered at once.
async fn is_alive(driver: &Driver) {
    let started = Instant::now();
    let mut identity = driver.identity().await;
    assert_eq!(identity.probe(ProbeRequest {}).await.unwrap().into_inner().ready, Some(true));
    identity.get_plugin_info(GetPluginInfoRequest {}).await.unwrap();
    let took = started.elapsed();
    assert!(took < Duration::from_secs(DEADLINE - 1), "Probe and GetPluginInfo took {took:?}");
}

/// Waits until a volume can be made and deleted again, and prints how long that took after the
/// fault's end.
pub(crate) async fn is_back(driver: &Driver, class: &Class, what: &str) {
    let ended = Instant::now();
    let mut controller = driver.controller().await;
    loop {
        match controller.create_volume(within(10, class.create_volume("back", MIB))).await {
            Ok(answer) => {
                println!(
                    "{what}: service was back {:.1} s after the end of the fault",
                    ended.elapsed().as_secs_f64()
                );
                let id = answer.into_inner().volume.unwrap().volume_id;
                controller.delete_volume(class.delete_volume(&id)).await.unwrap();
                return;
            }
            Err(status) => assert!(ended.elapsed() < PATIENCE, "{what}: still {status:?}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
