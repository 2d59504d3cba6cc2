//! What a node does with a volume: attach it, prepare its filesystem, mount it where pods look for
//! it, grow it, measure it, and take all that away again.
//!
//! Plain blocking Rust that knows no gRPC: callers bring their own threads, and let one operation
//! at a time change a volume ([`Node::stats`] changes nothing). Promises:
//!
//! - Every operation is idempotent, and repeats what an interrupted one left undone.
//! - Nothing is remembered in this process but the keys that remove notes. After a restart a new
//!   [`Node`] on the same state directory goes on: what was asked for is in the volume's record
//!   there, and what is true is read from the kernel.
//! - A path is treated as the volume's only when the volume's own device is mounted there.
//! - A [`Node::stage`] that fails has detached the image again. When even that failed, its error is
//!   [`Error::Busy`], which no caller takes for final.
//!
//! - [`attach`]: the ways to attach an image: `krbd` (with `kernel_key` and `monitors`), `nbd` and
//!   `fuse` (with `qmp` and `loop_device`; `admin_socket` asks librbd in either). `map_options`:
//!   what a StorageClass may ask of them.
//! - `format`: probing, and making a filesystem where there is none; `mark`: what the image's
//!   metadata remembers of it.
//! - `filesystem`: checking and growing one. `mount`: the mount table, mounts and bind mounts;
//!   `place`: paths, held open.
//! - `notes`: which clients may write, told to the controller before they do. `replay`: which
//!   of them replays a log for readers.
//! - `stage`, `publish`, `usage`: the operations. `record`: the state directory. `options`: the
//!   grammar of options.
//! - `programs`: the external programs and how they are run.
//! - [`check`]: what this machine lacks for being a node.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

mod admin_socket;
pub mod attach;
mod bounded;
pub mod check;
mod error;
mod filesystem;
mod format;
mod fuse;
mod kernel_key;
mod kernel_log;
mod kill;
mod krbd;
mod loop_device;
mod map_options;
mod mark;
pub(crate) mod monitors;
pub(crate) mod mount;
mod nbd;
mod notes;
pub(crate) mod options;
mod place;
mod programs;
mod publish;
pub(crate) mod qmp;
pub(crate) mod record;
mod replay;
mod stage;
mod usage;

pub use error::{Error, Result};
pub use filesystem::FsType;
pub use map_options::{MapOptions, check_unmap_options};
pub use options::check_mkfs_options;
pub use publish::Publish;
pub use stage::Stage;
pub use usage::{Expand, Illness, Inodes, Usage};

use crate::metrics::metrics;
use crate::rbd::ceph::{ConnectOptions, Connections, Timeouts};
use crate::rbd::{self, Key};
use attach::{Device, Image, Mounter};
use bounded::Looks;
pub use mark::CONTENT_KEY;
use mark::Marks;
use mount::{Mount, MountTable};
use notes::Ledger;
use record::{Record, VolumeDirectory};

/// How a volume is used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capability {
    /// As a filesystem or as a device.
    pub access: Access,
    /// By whom.
    pub mode: AccessMode,
}

/// As what a volume is used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Access {
    /// As a block device.
    Block,
    /// As a mounted filesystem.
    Mount {
        /// The filesystem asked for; `None` takes what is there, or ext4 on an empty volume.
        fs_type: Option<FsType>,
        /// Mount options of the filesystem.
        flags: Vec<String>,
    },
}

/// By whom a volume is used; CSI's access modes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[expect(missing_docs, reason = "the names are CSI's and say it all")]
pub enum AccessMode {
    SingleNodeWriter,
    SingleNodeReaderOnly,
    SingleNodeSingleWriter,
    SingleNodeMultiWriter,
    MultiNodeReaderOnly,
    MultiNodeSingleWriter,
    MultiNodeMultiWriter,
}

impl AccessMode {
    /// Whether no node writes.
    pub fn is_read_only(self) -> bool {
        matches!(self, AccessMode::SingleNodeReaderOnly | AccessMode::MultiNodeReaderOnly)
    }

    /// Whether the volume may be published at one target path of a node alone (CSI's table for a
    /// second NodePublishVolume).
    fn has_one_target(self) -> bool {
        matches!(
            self,
            AccessMode::SingleNodeWriter
                | AccessMode::SingleNodeReaderOnly
                | AccessMode::SingleNodeSingleWriter
        )
    }
}

impl Capability {
    /// Refuses what cannot work: `InvalidArgument` for mount options outside the grammar,
    /// `FailedPrecondition` for a filesystem that several nodes write to.
    fn check(&self) -> Result<()> {
        let Access::Mount { flags, .. } = &self.access else { return Ok(()) };
        if matches!(self.mode, AccessMode::MultiNodeSingleWriter | AccessMode::MultiNodeMultiWriter)
        {
            return Err(Error::FailedPrecondition(
                "ext4 and xfs cannot be written to while several nodes have them mounted: use volumeMode Block, or \
                 another access mode"
                    .to_owned(),
            ));
        }
        flags.iter().try_for_each(|flag| options::check_mount_option(flag))
    }

    /// Whether a filesystem is to be mounted read-only: no node writes, or the mount options say
    /// so.
    fn mounts_read_only(&self) -> bool {
        let asked = match &self.access {
            Access::Mount { flags, .. } => flags.iter().any(|flag| flag == "ro"),
            Access::Block => false,
        };
        asked || self.mode.is_read_only()
    }
}

/// The volumes of this node.
#[derive(Debug)]
pub struct Node {
    state_directory: PathBuf,
    connections: Arc<Connections>,
    looks: Looks,
    ledger: Ledger,
}

impl Node {
    /// The node whose volumes are recorded in `state_directory`, which is created when missing. It
    /// must survive restarts of the driver, and no other driver may use it. `FailedPrecondition`
    /// when a program every node needs is not installed.
    pub fn new(state_directory: &Path) -> Result<Self> {
        programs::check()?;
        std::fs::create_dir_all(state_directory)
            .map_err(|error| Error::io("create", state_directory, error))?;
        // The mount table and /sys spell paths without links.
        let state_directory = state_directory
            .canonicalize()
            .map_err(|error| Error::io("resolve", state_directory, error))?;
        let ledger = Ledger::new(&state_directory);
        Ok(Self { state_directory, connections: Arc::default(), looks: Looks::default(), ledger })
    }

    /// The mark of `image`, read and written as its user.
    fn marks(&self, image: &Image, key: Option<&Key>) -> Marks {
        let connections = self.connections.clone();
        let options = ConnectOptions {
            monitors: vec![image.monitors.clone()],
            ceph_conf: None,
            // Where the cluster authenticates no client, any name will do.
            user: image.user.clone().unwrap_or_else(|| "admin".to_owned()),
            key: key.cloned(),
            timeouts: Timeouts::default(),
        };
        Marks::new(
            image.clone(),
            key.and_then(Key::key_type),
            // Which cluster of the configuration that is, a node is not told.
            Arc::new(move || Ok(rbd::observed(connections.get(&options)?, ""))),
        )
    }

    /// Tells the metrics how many volumes are staged here. Reads what the state directory says, and
    /// touches no device.
    pub fn measure(&self) {
        let entries = std::fs::read_dir(&self.state_directory).into_iter().flatten().flatten();
        let records: Vec<_> = entries
            .filter_map(|entry| VolumeDirectory::at(entry.path()).load().ok().flatten())
            .collect();
        for mounter in [Mounter::Rbd, Mounter::RbdNbd, Mounter::Fuse] {
            let count = records.iter().filter(|record| record.mounter == mounter).count();
            metrics().mapped_are(mounter.name(), count);
        }
    }

    fn volume(&self, volume_id: &str) -> VolumeDirectory {
        VolumeDirectory::new(&self.state_directory, volume_id)
    }
}

/// Whether `mount` shows the volume of `record`: its filesystem, or its device node.
fn is_of_volume(record: &Record, device: &Device, mount: &Mount) -> bool {
    if record.is_block() {
        mount.is_device_node(&device.name)
    } else {
        mount.device == device.number
    }
}

/// Where the volume of `record` is mounted, the staging path left out.
fn targets_in_use<'a>(
    record: &'a Record,
    device: &'a Device,
    table: &'a MountTable,
) -> impl Iterator<Item = &'a Mount> {
    table
        .iter()
        .filter(|mount| mount.point != record.staging_path && is_of_volume(record, device, mount))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filesystems_of_several_writing_nodes_are_refused() {
        let mount =
            |mode| Capability { access: Access::Mount { fs_type: None, flags: vec![] }, mode };
        for mode in [AccessMode::MultiNodeSingleWriter, AccessMode::MultiNodeMultiWriter] {
            assert!(matches!(mount(mode).check(), Err(Error::FailedPrecondition(_))));
            Capability { access: Access::Block, mode }.check().unwrap();
        }
        mount(AccessMode::MultiNodeReaderOnly).check().unwrap();
        mount(AccessMode::SingleNodeMultiWriter).check().unwrap();
    }
}
