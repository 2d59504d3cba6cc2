//! What all clients share: the drivers, the names, and what was seen.

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cinderblock::csi::proto::controller_client::ControllerClient;
use cinderblock::csi::proto::{CapacityRange, CreateVolumeRequest};
use cinderblock::rbd::{ImageKey, OpenMode, Pool};
use tokio::sync::RwLock;
use tonic::transport::Channel;

use super::common::driver::{
    Class, Driver, MIB, from_snapshot, from_volume, lab_config_with_own_user,
};
use super::common::{Lab, Namespace};
use super::history::Event;

/// Names of volumes, and as many of snapshots.
pub const NAMES: usize = 10;
/// Bytes of the golden volume, and of the smaller empty ones.
pub const SMALL: i64 = 4 * MIB;
/// Bytes of clones, and of the larger empty ones.
pub const LARGE: i64 = 8 * MIB;

pub struct Field {
    drivers: Mutex<Vec<(Driver, Channel)>>,
    config: String,
    /// How often a driver was started anew.
    pub restarts: AtomicUsize,
    pub class: Class,
    /// Held by each client while it asks, and by the test while all stand still.
    pub floor: RwLock<()>,
    pub events: Mutex<Vec<Event>>,
    /// The ids that snapshots of a name had last, and have perhaps.
    pub snapshots: Mutex<BTreeMap<usize, String>>,
    pub golden: String,
    pub golden_snapshot: String,
    /// For looking at images without the driver.
    pub pool: Arc<dyn Pool>,
    turn: AtomicUsize,
    prefix: String,
}

/// What a volume is asked to be made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    Empty(i64),
    Volume(String),
    Snapshot(String),
}

impl Field {
    /// With a golden volume that holds a pattern, and a snapshot of it.
    pub async fn new(lab: &Lab, namespace: &Namespace<'_>, count: usize) -> Field {
        let class = Class::new(lab, &namespace.name);
        let pool = namespace.pool(&*lab.connect());
        let config = lab_config_with_own_user(lab, &namespace.name);
        let mut drivers = Vec::new();
        for number in 0..count {
            drivers.push(start(number, &config).await);
        }
        let mut controller = ControllerClient::new(drivers[0].1.clone());
        let golden = controller.create_volume(class.create_volume("golden", SMALL)).await.unwrap();
        let golden = golden.into_inner().volume.unwrap().volume_id;
        let image = pool.open_image(ImageKey::Name("csi-golden"), OpenMode::ReadWrite).unwrap();
        image.write_at(0, &pattern()).unwrap();
        drop(image);
        let snapshot =
            controller.create_snapshot(class.create_snapshot("golden", &golden)).await.unwrap();
        Field {
            drivers: Mutex::new(drivers),
            config,
            restarts: AtomicUsize::new(0),
            prefix: golden.strip_suffix("golden").unwrap().to_string(),
            floor: RwLock::default(),
            events: Mutex::default(),
            turn: AtomicUsize::new(0),
            snapshots: Mutex::default(),
            golden_snapshot: snapshot.into_inner().snapshot.unwrap().snapshot_id,
            golden,
            class,
            pool,
        }
    }

    /// Each driver in turn.
    pub fn controller(&self) -> ControllerClient<Channel> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        self.controller_of(turn % self.count())
    }

    /// How many drivers are at work.
    pub fn count(&self) -> usize {
        self.drivers.lock().unwrap().len()
    }

    /// The driver of that number.
    pub fn controller_of(&self, number: usize) -> ControllerClient<Channel> {
        ControllerClient::new(self.drivers.lock().unwrap()[number].1.clone())
    }

    /// Starts drivers anew that librbd has aborted: one handle of an image is closed while it works
    /// for one of the other driver, see `src/rbd/ceph/handle_cache.rs`. No other end is forgiven,
    /// and none of a driver that works alone.
    pub async fn keep_alive(&self) {
        loop {
            for number in 0..self.count() {
                if !self.drivers.lock().unwrap()[number].0.has_ended() {
                    continue;
                }
                let fresh = start(number, &self.config).await;
                let (old, _) = std::mem::replace(&mut self.drivers.lock().unwrap()[number], fresh);
                let is_forgiven = old.log().contains("AsyncOpTracker.cc: 13: FAILED");
                assert!(is_forgiven && self.count() > 1, "{}", old.log());
                self.restarts.fetch_add(1, Ordering::Relaxed);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Ends the drivers in order.
    pub fn stop(self) {
        for (driver, channel) in self.drivers.into_inner().unwrap() {
            drop(channel);
            driver.stop();
        }
    }

    /// The id the volume of that number has whenever it is there.
    pub fn volume_id(&self, number: usize) -> String {
        format!("{}v{number}", self.prefix)
    }

    pub fn create_volume(&self, number: usize, origin: &Origin) -> CreateVolumeRequest {
        let (size, source) = match origin {
            Origin::Empty(size) => (*size, None),
            Origin::Volume(id) => (LARGE, Some(from_volume(id))),
            Origin::Snapshot(id) => (LARGE, Some(from_snapshot(id))),
        };
        CreateVolumeRequest {
            capacity_range: Some(CapacityRange { required_bytes: size, limit_bytes: size }),
            volume_content_source: source,
            ..self.class.create_volume(&format!("v{number}"), size)
        }
    }
}

/// What the golden volume holds.
pub fn pattern() -> Vec<u8> {
    (0..u32::try_from(SMALL / 4).unwrap())
        .flat_map(|word| word.wrapping_mul(0x9e37_79b9).to_le_bytes())
        .collect()
}

/// Starts the driver of that number. The second is the program HAMMER_SECOND where that is set.
async fn start(number: usize, config: &str) -> (Driver, Channel) {
    let program = std::env::var("HAMMER_SECOND")
        .ok()
        .filter(|_| number == 1)
        .unwrap_or_else(|| env!("CARGO_BIN_EXE_cinderblock").to_string());
    let driver = Driver::start_by(|_| Command::new(program), config, &["--role", "controller"]);
    let channel = driver.channel().await;
    (driver, channel)
}
