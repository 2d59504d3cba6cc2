//! What all clients share: the drivers, the names, and what was seen.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use cinderblock::csi::proto::controller_client::ControllerClient;
use cinderblock::csi::proto::{CapacityRange, CreateVolumeRequest};
use cinderblock::rbd::{ImageKey, OpenMode, Pool};
use tokio::sync::RwLock;
use tonic::transport::Channel;

use super::common::driver::{Class, Driver, MIB, from_snapshot, from_volume};
use super::common::{Lab, Namespace};
use super::history::Event;

/// Names of volumes, and as many of snapshots.
pub const NAMES: usize = 10;
/// Bytes of the golden volume, and of the smaller empty ones.
pub const SMALL: i64 = 4 * MIB;
/// Bytes of clones, and of the larger empty ones.
pub const LARGE: i64 = 8 * MIB;

pub struct Field {
    pub channels: Vec<Channel>,
    pub class: Class,
    /// Held by each client while it asks, and by whoever wants all to stand still.
    pub floor: RwLock<()>,
    pub events: Mutex<Vec<Event>>,
    /// The ids that snapshots of a name had last, and have perhaps.
    pub snapshots: Mutex<BTreeMap<usize, String>>,
    pub golden: String,
    pub golden_snapshot: String,
    /// For looking at images without the driver.
    pub pool: Arc<dyn Pool>,
    /// How often all have stood still.
    pub round: AtomicUsize,
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
    pub async fn new(lab: &Lab, namespace: &Namespace<'_>, drivers: &[Driver]) -> Field {
        let class = Class::new(lab, &namespace.name);
        let pool = namespace.pool(&*lab.connect());
        let mut channels = Vec::new();
        for driver in drivers {
            channels.push(driver.channel().await);
        }
        let mut controller = ControllerClient::new(channels[0].clone());
        let golden = controller.create_volume(class.create_volume("golden", SMALL)).await.unwrap();
        let golden = golden.into_inner().volume.unwrap().volume_id;
        let image = pool.open_image(ImageKey::Name("csi-golden"), OpenMode::ReadWrite).unwrap();
        image.write_at(0, &pattern()).unwrap();
        drop(image);
        let snapshot = controller.create_snapshot(class.create_snapshot("golden", &golden)).await.unwrap();
        Field {
            channels,
            prefix: golden.strip_suffix("golden").unwrap().to_string(),
            floor: RwLock::default(),
            events: Mutex::default(),
            round: AtomicUsize::new(0),
            snapshots: Mutex::default(),
            golden_snapshot: snapshot.into_inner().snapshot.unwrap().snapshot_id,
            golden,
            class,
            pool,
        }
    }

    /// The driver that has this number until the next rest.
    pub fn controller(&self, number: usize) -> ControllerClient<Channel> {
        let round = self.round.load(Ordering::Relaxed);
        ControllerClient::new(self.channels[(number + round) % self.channels.len()].clone())
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
