//! Growing a volume on the node, and measuring it.

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::attach::{Attachment, Device, Image, Watch};
use super::error::{Error, Result};
use super::filesystem;
use super::mount::{Mount, MountTable};
use super::notes::Notes;
use super::place::Place;
use super::record::{Record, VolumeDirectory};
use super::{Node, is_of_volume};
use crate::metrics::metrics;
use crate::rbd::Key;

/// How long a filesystem or a device may take to answer a question about it.
const PATIENCE: Duration = Duration::from_secs(5);

/// How much of a volume is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Usage {
    /// A block volume: its size in bytes. What of it is in use, its user alone knows.
    Block {
        /// Size in bytes.
        total: u64,
    },
    /// A filesystem.
    Filesystem {
        /// Size in bytes.
        total: u64,
        /// Bytes in use.
        used: u64,
        /// Bytes an ordinary user may still write.
        available: u64,
        /// Inodes.
        inodes: Inodes,
    },
}

/// Inodes of a filesystem.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inodes {
    /// All of them.
    pub total: u64,
    /// Those in use.
    pub used: u64,
    /// Those free.
    pub available: u64,
}

/// What a volume is to grow to.
#[derive(Debug, Default)]
pub struct Expand {
    /// The least size in bytes; 0 for whatever the image has.
    pub required: u64,
    /// The largest size in bytes; 0 for any.
    pub limit: u64,
    /// A Ceph user and its key, which the mounter `rbd-nbd` needs, and `fuse` after a rotation.
    pub user: Option<(String, Key)>,
    /// The cluster's monitors now, in the form of ceph.conf's `mon_host`: those that the volume was
    /// staged with may be gone. "" when they are not known.
    pub monitors: String,
}

impl Node {
    /// Takes up the size the image has now: the device, and its filesystem if it has one. `path` is
    /// a staging or target path. Returns the size of the device in bytes, which is at least what is
    /// required (up to a last sector), or `FailedPrecondition` when the image itself is smaller, or
    /// `OutOfRange` when it is larger than the limit. `NotFound` when the volume is not at `path`.
    pub fn expand(&self, volume_id: &str, path: &Path, request: &Expand) -> Result<u64> {
        let Expand { required, limit, .. } = *request;
        let directory = self.volume(volume_id);
        let (mut record, device, mount) = locate(&directory, volume_id, path)?;
        record.image.add_monitors(&request.monitors);
        if let Some((user, key)) = &request.user {
            let image = Image { user: Some(user.clone()), ..record.image.clone() };
            self.settle(&image, Some(key));
        }
        if required == 0 || device.size()? < required {
            let read_only = record.capability.mode.is_read_only();
            let (mounter, image) = (record.mounter, record.image.clone());
            let image_size = || self.image_size(&image, request.user.as_ref());
            let notes = self.notes(&record, request.user.as_ref());
            let mut admitted = false;
            let admit = || {
                admitted = record.noted.is_some();
                admit(&directory, &mut record, &device, notes.as_deref())
            };
            let key = request
                .user
                .as_ref()
                .and_then(|(user, key)| (image.user.as_ref() == Some(user)).then_some(key));
            mounter.refresh(
                directory.path(),
                &image,
                key,
                read_only,
                &device,
                image_size,
                admit,
            )?;
            if admitted
                && let Err(error) = dismiss(&directory, &mut record, &device, notes.as_deref())
            {
                tracing::warn!(%image, %error, "the note of a client that is gone stays");
            }
        }
        let size = device.size()?;
        if size < required - required % 512 {
            return Err(Error::FailedPrecondition(format!(
                "{required} bytes are asked for, but the image {} has {size}: it has to be grown first",
                record.image
            )));
        }
        if limit != 0 && size > limit {
            return Err(Error::OutOfRange(format!(
                "the image {} has {size} bytes, more than the limit of {limit}; volumes do not shrink",
                record.image
            )));
        }
        if let Some(mount) = mount {
            if mount.is_filesystem_read_only() {
                return Err(Error::FailedPrecondition(format!(
                    "the filesystem at {} is read-only and cannot grow",
                    path.display()
                )));
            }
            filesystem::grow_mounted(&device.path(), mount.fs_type.parse()?, &mount.point)?;
        }
        Ok(size)
    }

    /// The notes of a staged volume, reached as `user`, else as who staged it; `None` when there is
    /// no key, or nothing is noted.
    fn notes(&self, record: &Record, user: Option<&(String, Key)>) -> Option<Arc<Notes>> {
        let place = record.noted.as_ref()?.place.clone();
        match user {
            Some((user, key)) => {
                let image = Image { user: Some(user.clone()), ..record.image.clone() };
                Some(Arc::new(Notes::new(self.marks(&image, Some(key)), place)))
            }
            None => self.ledger.notes(&record.volume_id).filter(|notes| notes.place == place),
        }
    }

    /// The size of `image` in bytes, as the cluster tells `user`.
    fn image_size(&self, image: &Image, user: Option<&(String, Key)>) -> Result<u64> {
        let (image, key) = match user {
            Some((user, key)) => (Image { user: Some(user.clone()), ..image.clone() }, Some(key)),
            None if image.user.is_none() => (image.clone(), None),
            None => {
                return Err(Error::FailedPrecondition(format!(
                    "only the cluster can tell how large {image} is now, and it takes a Ceph user to ask: name the Secret of node-stage in the \
                     StorageClass as csi.storage.k8s.io/node-expand-secret-name and -namespace too; without it the volume has its new size \
                     when it is staged again"
                )));
            }
        };
        self.marks(&image, key).size()
    }

    /// Measures a volume. `path` is a staging or target path; `NotFound` when the volume is not
    /// there, `Unavailable` when its filesystem does not answer in time.
    pub fn stats(&self, volume_id: &str, path: &Path) -> Result<Usage> {
        let (_, device, mount) = locate(&self.volume(volume_id), volume_id, path)?;
        let Some(mount) = mount else { return Ok(Usage::Block { total: device.size()? }) };
        let point = mount.point;
        let what = format!("cannot measure {}", point.display());
        let found = self.looks.look(&what.clone(), PATIENCE, move || {
            let measured = nix::sys::statvfs::statvfs(&point);
            measured.map_err(|error| Error::Unavailable(format!("{what}: {error}")))
        })?;
        let block = found.fragment_size();
        Ok(Usage::Filesystem {
            total: found.blocks() * block,
            used: (found.blocks() - found.blocks_free()) * block,
            available: found.blocks_available() * block,
            inodes: Inodes {
                total: found.files(),
                used: found.files() - found.files_free(),
                available: found.files_free(),
            },
        })
    }
}

/// Why a volume cannot be used on this node, in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Illness {
    /// What served its device is gone.
    DeviceGone(String),
    /// Its filesystem was not mounted for reading alone, but is read-only: the kernel gave up on
    /// it.
    ReadOnly(String),
    /// Its device or filesystem answers with errors: the node was fenced, lost its cluster for too
    /// long, or the filesystem shut itself down.
    Failing(String),
    /// Its device or filesystem does not answer in time: the cluster is away, or busy.
    NotAnswering(String),
    /// Ceph refuses the client that serves its device: the node was fenced.
    Blocklisted(String),
    /// Its device works, but its client has lost the watch on the image and does not get it back.
    WatchLost(String),
}

impl Illness {
    /// What metrics call it.
    fn label(&self) -> &'static str {
        match self {
            Illness::DeviceGone(_) => "device-gone",
            Illness::ReadOnly(_) => "read-only",
            Illness::Failing(_) => "failing",
            Illness::NotAnswering(_) => "not-answering",
            Illness::Blocklisted(_) => "blocklisted",
            Illness::WatchLost(_) => "watch-lost",
        }
    }
}

impl Node {
    /// What is wrong with a volume at a staging or target path. `NotFound` when the volume is not
    /// there. A dead device holds it up for some seconds at most.
    pub fn illnesses(&self, volume_id: &str, path: &Path) -> Result<Vec<Illness>> {
        let directory = self.volume(volume_id);
        let (record, device, mount) = match locate(&directory, volume_id, path) {
            Err(Error::Unavailable(why)) => {
                let gone = Illness::DeviceGone(why);
                metrics().illness_seen(gone.label());
                return Ok(vec![gone]);
            }
            other => other?,
        };
        let gave_up = |mount: &&Mount| {
            mount.is_filesystem_read_only() && !record.capability.mounts_read_only()
        };
        let read_only = mount.as_ref().filter(gave_up).map(|mount| {
            Illness::ReadOnly(format!(
                "the filesystem at {} has become read-only after an error: end the pods that use the volume, and let it be \
                 staged again",
                mount.point.display()
            ))
        });
        let look = self.look_at(&device, mount.map(|mount| mount.point));
        let watch = self.watch(&directory, &record, &device);
        let of_device = match (look, watch) {
            (Ok(Ok(())), Watch::Lost) => Some(Illness::WatchLost(watch_lost(&record, &device))),
            (Ok(Ok(())), _) => None,
            (Ok(Err(error)), Watch::Lost) => {
                Some(Illness::Blocklisted(blocklisted(&record, &device, &error)))
            }
            (Ok(Err(error)), _) => Some(Illness::Failing(failing(&device, &error))),
            (Err(error), _) => Some(Illness::NotAnswering(error.to_string())),
        };
        let illnesses: Vec<_> = of_device.into_iter().chain(read_only).collect();
        for illness in &illnesses {
            metrics().illness_seen(illness.label());
        }
        Ok(illnesses)
    }

    /// Whether the volume's client watches its image, if it should.
    fn watch(&self, directory: &VolumeDirectory, record: &Record, device: &Device) -> Watch {
        // Who only reads has no watch.
        if record.capability.mode.is_read_only() {
            return Watch::Held;
        }
        let (mounter, path, device) = (record.mounter, directory.path().to_owned(), device.clone());
        let what = format!("no word of the watch of {}", device.name);
        self.looks
            .look(&what, PATIENCE, move || Ok(mounter.watch(&path, &device)))
            .unwrap_or(Watch::Unknown)
    }

    /// Whether the device can be read, and the filesystem mounted at `point` too, if there is one.
    /// `Unavailable` when they do not answer in time.
    pub(super) fn look_at(
        &self,
        device: &Device,
        point: Option<PathBuf>,
    ) -> Result<std::io::Result<()>> {
        let node = device.path();
        self.looks.look(&format!("cannot look at {}", node.display()), PATIENCE, move || {
            // A filesystem that has shut down answers statfs, but its root is not to be looked at.
            let root = point.map_or(Ok(()), |point| std::fs::metadata(point).map(drop));
            Ok(root.and_then(|()| read_past_the_cache(&node)))
        })
    }
}

/// Notes a second client of a volume, which is there beside the one that has it, before it writes.
fn admit(
    directory: &VolumeDirectory,
    record: &mut Record,
    device: &Device,
    notes: Option<&Notes>,
) -> Result<()> {
    let Some(known) = &mut record.noted else { return Ok(()) };
    let notes = notes.ok_or_else(|| {
        Error::FailedPrecondition(format!(
            "the image {} is opened anew to grow, and the new client has to be noted, which takes a Ceph user since the node plugin was \
             restarted: name the Secret of node-stage in the StorageClass as csi.storage.k8s.io/node-expand-secret-name and \
             -namespace too; without it the volume has its new size when it is staged again",
            record.image
        ))
    })?;
    let clients = record.mounter.clients(directory.path(), device, || notes.watchers())?;
    let new: Vec<_> = clients.difference(&known.addresses).cloned().collect();
    let [new] = &new[..] else {
        return Err(Error::Unavailable(format!(
            "the address of a new client of the image {} is not to be told among {clients:?}",
            record.image
        )));
    };
    known.addresses.insert(new.clone());
    directory.save(record)?;
    notes.add(new)
}

/// Removes the note of the client whose place a second one has taken.
fn dismiss(
    directory: &VolumeDirectory,
    record: &mut Record,
    device: &Device,
    notes: Option<&Notes>,
) -> Result<()> {
    let (Some(known), Some(notes)) = (&mut record.noted, notes) else { return Ok(()) };
    let clients = record.mounter.clients(directory.path(), device, || notes.watchers())?;
    let gone: BTreeSet<_> = known.addresses.difference(&clients).cloned().collect();
    if clients.is_empty() || gone.is_empty() {
        return Ok(());
    }
    notes.remove(&gone)?;
    known.addresses = clients;
    directory.save(record)
}

/// What to tell of a device that answers with errors.
pub(super) fn failing(device: &Device, error: &std::io::Error) -> String {
    format!(
        "{} cannot be read: {error}. If this node was taken for lost and fenced, that is how it has to be: end the pods that use \
         the volume, and let it be staged again",
        device.path().display()
    )
}

/// What to tell of a client that Ceph refuses: reads fail, and the watch is gone and does not come
/// back.
fn blocklisted(record: &Record, device: &Device, error: &std::io::Error) -> String {
    let client = record
        .mounter
        .client_address(device)
        .map_or_else(String::new, |address| format!(" ({address})"));
    format!(
        "Ceph refuses the client of {}{client}, which has the image {}: it is on the blocklist (ceph osd blocklist ls), as that of a \
         node that was taken for lost ({error}). What it had not written is lost: end the pods that use the volume, and let it be \
         staged again, which takes a new client",
        device.path().display(),
        record.image
    )
}

/// What to tell of a client without its watch whose device works.
fn watch_lost(record: &Record, device: &Device) -> String {
    format!(
        "the client of {} has lost its watch on the image {} and does not get it back: Ceph refuses it (ceph osd blocklist ls), or the image's header is gone \
         or cannot be written to: others take the image for unused, and its growth is not heard of. See that the image and its pool are \
         well (rbd status {}); if that does not help, end the pods that use the volume, and let it be staged again",
        device.path().display(),
        record.image,
        record.image
    )
}

/// Reads the first bytes of a device from where they are stored.
fn read_past_the_cache(device: &Path) -> std::io::Result<()> {
    const LENGTH: usize = 4096;
    let file = OpenOptions::new().read(true).custom_flags(nix::libc::O_DIRECT).open(device)?;
    // Direct reads go to aligned memory.
    let mut memory = vec![0; 2 * LENGTH];
    let start = memory.as_ptr().align_offset(LENGTH).min(LENGTH);
    file.read_exact_at(&mut memory[start..start + LENGTH], 0)
}

/// The volume's record and device, and for a filesystem its mount at `path`. `NotFound` unless the
/// volume is at `path`; `Unavailable` when its device is dead.
fn locate(
    directory: &VolumeDirectory,
    volume_id: &str,
    path: &Path,
) -> Result<(Record, Device, Option<Mount>)> {
    let not_found =
        || Error::NotFound(format!("volume {volume_id} is not at {} on this node", path.display()));
    let record = directory.load()?.ok_or_else(not_found)?;
    // A path that cannot be one of ours is one where the volume is not.
    let place = Place::find(path).ok().flatten().ok_or_else(not_found)?;
    let device = match record.mounter.find(directory.path())? {
        Attachment::Live(device) => device,
        Attachment::Absent => return Err(not_found()),
        Attachment::Dead(device) => {
            return Err(Error::Unavailable(format!(
                "what served {} of volume {volume_id} is gone: end the pods that use the volume, unstage it and stage it \
                 again",
                device.name
            )));
        }
    };
    let table = MountTable::read()?;
    let mount = place.mount(&table)?.filter(|mount| is_of_volume(&record, &device, mount)).cloned();
    if record.is_block() {
        let is_here = mount.is_some() || place.path() == record.staging_path;
        return if is_here { Ok((record, device, None)) } else { Err(not_found()) };
    }
    let mount = mount.ok_or_else(not_found)?;
    Ok((record, device, Some(mount)))
}
