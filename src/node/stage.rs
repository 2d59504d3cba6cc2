//! Staging: attach the image, prepare its filesystem, mount it at the staging path. Unstaging: the
//! reverse.
//!
//! Crash points: the record is there before the image is attached, and goes after it is detached.
//! Between, any step may be the last one; staging again starts over from what is attached and
//! mounted, and unstaging takes down what is there. A client that may write is
//! [noted](super::notes) after it is attached and before it writes; its address is in the record
//! before that, and the note goes after the client and before the record.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use nix::sys::stat::SFlag;

use super::attach::{Attachment, Device, Image, Mounter};
use super::error::{Error, Result};
use super::filesystem::{self, FsType};
use super::format::{self, Format};
use super::map_options::MapOptions;
use super::mark::{Mark, Marks};
use super::mount::{self, MountTable};
use super::notes::{Noted, Notes};
use super::place::{Place, is_kind};
use super::record::{Record, VolumeDirectory};
use super::replay::Replay;
use super::{Access, Capability, Node, targets_in_use};
use crate::notes;
use crate::rbd::Key;

/// What is to be staged, and how.
#[derive(Debug)]
pub struct Stage {
    /// The CSI volume id.
    pub volume_id: String,
    /// The image.
    pub image: Image,
    /// The key of the image's user.
    pub key: Option<Key>,
    /// How to attach it.
    pub mounter: Mounter,
    /// What the StorageClass asks of the mounter.
    pub map_options: MapOptions,
    /// What for.
    pub capability: Capability,
    /// mkfs options of the StorageClass; `None` for the driver's.
    pub mkfs_options: Option<String>,
    /// Where its clients are noted. `None` for a volume that comes without a publish context, or
    /// from a version before notes.
    pub notes: Option<notes::Place>,
    /// Whether the volume was created empty, and so may be formatted.
    pub created_empty: bool,
    /// An existing directory.
    pub staging_path: PathBuf,
}

impl Node {
    /// Stages a volume: afterwards its filesystem is mounted at the staging path, and as large as
    /// the image; a block volume is attached. Staging again with the same arguments is fine, with
    /// others `AlreadyExists`.
    pub fn stage(&self, request: &Stage) -> Result<()> {
        request.capability.check()?;
        if let Access::Mount { fs_type, flags } = &request.capability.access {
            format::check_mkfs_options(*fs_type, request.mkfs_options.as_deref())?;
            if let Some(fs_type) = fs_type {
                mount::check_options(fs_type.name(), flags)?;
            }
        }
        let staging = staging_directory(&request.staging_path)?;
        let directory = self.volume(&request.volume_id);
        let mut wanted = Record::new(
            &request.volume_id,
            request.image.clone(),
            request.mounter,
            request.capability.clone(),
            staging.clone(),
        );
        let marks = self.marks(&request.image, request.key.as_ref());
        let read_only = request.capability.mode.is_read_only();
        let place = request.notes.clone().filter(|_| !read_only);
        wanted.noted = place.map(|place| Noted { place, addresses: BTreeSet::new() });
        if !read_only && request.map_options.shares_clients() {
            tracing::warn!(
                volume_id = request.volume_id,
                "mapOptions holds share, which is ignored: a writable volume has a client of its own, so that fencing hits it alone"
            );
        }
        let mut staged = None;
        let mut earlier = directory.load()?;
        if earlier.is_none() && is_mounted_unrecorded(&directory, &wanted)? {
            tracing::warn!(
                volume_id = request.volume_id,
                "the record of the volume is lost, and it is mounted at its staging path: it is taken as staged in this way"
            );
            directory.save(&wanted)?;
            earlier = Some(wanted.clone());
        }
        if let Some(record) = earlier.take_if(|record| record.is_replayed) {
            self.take_down(&directory, &record)?;
        }
        if let Some(record) = earlier {
            wanted.noted = wanted.noted.or_else(|| record.noted.clone().filter(|_| !read_only));
            let place = |record: &Record| record.noted.as_ref().map(|noted| noted.place.clone());
            let is_republished = !record.capability.mode.is_read_only()
                && wanted.noted.is_some()
                && place(&record) != place(&wanted);
            let found = match record.mounter.find(directory.path())? {
                // A new process takes up what was written to the device at once, before its client
                // can be noted.
                Attachment::Dead(device) if wanted.noted.is_none() => record.mounter.revive(
                    directory.path(),
                    &Image { monitors: request.image.monitors.clone(), ..record.image.clone() },
                    request.key.as_ref(),
                    record.capability.mode.is_read_only(),
                    &request.map_options,
                    device,
                )?,
                found => found,
            };
            match found {
                // The client is that of a publication that is over, and may be fenced.
                Attachment::Live(_) if is_republished => self.take_down(&directory, &record)?,
                Attachment::Live(device) => {
                    require_same(&record, &wanted)?;
                    wanted.targets.clone_from(&record.targets);
                    wanted.noted.clone_from(&record.noted);
                    staged = MountTable::read()?
                        .at(&staging)
                        .is_some_and(|m| m.device == device.number)
                        .then_some(device);
                }
                // Pods that still use it have to go first; the driver cannot bring it back under
                // them.
                Attachment::Dead(_) => self.take_down(&directory, &record)?,
                Attachment::Absent => {}
            }
        }
        self.settle(&request.image, request.key.as_ref());
        let notes =
            wanted.noted.as_ref().map(|noted| Notes::new(marks.clone(), noted.place.clone()));
        match &notes {
            Some(notes) => self.ledger.keep(&request.volume_id, notes.clone()),
            None if read_only => {}
            None => tracing::warn!(
                volume_id = request.volume_id,
                "the volume comes without a token to note its client by: if this node is lost, its client is not fenced"
            ),
        }
        let outcome = match staged {
            // An earlier attempt may have stopped before this.
            Some(device) => grow(&wanted, &device),
            None => bring_up(&directory, &mut wanted, request, &marks, notes.as_ref()),
        };
        // Callers take most errors for final and forget the volume, so nothing of it may stay
        // behind.
        outcome.map_err(|error| match self.take_down(&directory, &wanted) {
            Ok(()) => error,
            Err(undo) => error.with_failed_undo(&undo),
        })
    }

    /// Removes the notes that are owed and that this user may remove.
    pub(super) fn settle(&self, image: &Image, key: Option<&Key>) {
        self.ledger.settle(image, |image| self.marks(image, key));
    }

    /// Unstages a volume: afterwards it is not mounted at the staging path, and detached.
    /// `FailedPrecondition` while it is published or in use. A volume that is not staged there is
    /// fine.
    pub fn unstage(&self, volume_id: &str, staging_path: &Path) -> Result<()> {
        let directory = self.volume(volume_id);
        let staging = Place::find(staging_path)?
            .map_or_else(|| staging_path.to_owned(), |place| place.path().to_owned());
        let mounted = MountTable::read()?.at(&staging).map(|mount| mount.device);
        let Some(record) = directory.load_or_recover(volume_id, &staging)? else {
            if mounted.is_some() {
                return Err(Error::foreign_mount(&staging));
            }
            // A removal that stopped after the record.
            return directory.remove();
        };
        let own = match record.mounter.find(directory.path())? {
            Attachment::Live(device) | Attachment::Dead(device) => Some(device.number),
            Attachment::Absent => None,
        };
        if mounted.is_some() && mounted != own {
            return Err(Error::foreign_mount(&staging));
        }
        if record.staging_path == staging {
            self.take_down(&directory, &record)
        } else if mounted.is_some() {
            // A second mount, made by another process; the volume stays staged at its own path.
            mount::unmount(&staging)
        } else {
            Ok(())
        }
    }

    /// Unmounts, detaches and forgets a volume, however much of it is there. `FailedPrecondition`,
    /// and nothing changed, while it is mounted elsewhere than at its staging path. The note of a
    /// client that is closed here goes; that of one that was found dead stays, for what it sent may
    /// still be on its way: it is fenced before the next client is attached.
    fn take_down(&self, directory: &VolumeDirectory, record: &Record) -> Result<()> {
        let found = record.mounter.find(directory.path())?;
        let is_live = matches!(found, Attachment::Live(_));
        if let Attachment::Live(device) | Attachment::Dead(device) = found {
            let table = MountTable::read()?;
            let targets: Vec<_> = targets_in_use(record, &device, &table)
                .map(|mount| mount.point.display().to_string())
                .collect();
            if !targets.is_empty() {
                return Err(Error::FailedPrecondition(format!(
                    "the volume is still mounted at {}: unpublish it there first",
                    targets.join(", ")
                )));
            }
            while MountTable::read()?
                .at(&record.staging_path)
                .is_some_and(|mount| mount.device == device.number)
            {
                mount::unmount(&record.staging_path)?;
            }
        }
        record.mounter.detach(directory.path())?;
        match &record.noted {
            Some(noted) if is_live => {
                self.ledger.release(&record.volume_id, &directory.name(), &record.image, noted);
            }
            _ => self.ledger.forget_key(&record.volume_id),
        }
        directory.remove()
    }
}

/// Whether the volume is at its staging path as `wanted`, although it has no record.
fn is_mounted_unrecorded(directory: &VolumeDirectory, wanted: &Record) -> Result<bool> {
    let Attachment::Live(device) = wanted.mounter.find(directory.path())? else {
        return Ok(false);
    };
    let mounted = MountTable::read()?.at(&wanted.staging_path).map(|mount| mount.device);
    Ok(mounted == Some(device.number))
}

/// The staging path as the mount table spells it. The orchestrator must have made the directory.
fn staging_directory(path: &Path) -> Result<PathBuf> {
    let missing = || {
        Error::FailedPrecondition(format!(
            "the staging path {} is not a directory: the orchestrator has to create it first",
            path.display()
        ))
    };
    let place = Place::find(path)?.ok_or_else(missing)?;
    // A mount that does not answer is no reason: the mount table says what it is.
    let is_mounted = place.mount(&MountTable::read()?)?.is_some();
    if is_mounted || is_kind(place.stat()?.as_ref(), SFlag::S_IFDIR) {
        Ok(place.path().to_owned())
    } else {
        Err(missing())
    }
}

/// Refuses a staging path with something on it: another mount, or files, which a mount would hide.
fn require_unused(staging: &Path) -> Result<()> {
    if MountTable::read()?.at(staging).is_some() {
        return Err(Error::foreign_mount(staging));
    }
    let mut entries =
        std::fs::read_dir(staging).map_err(|error| Error::io("list", staging, error))?;
    match entries.next() {
        None => Ok(()),
        Some(Ok(entry)) => Err(Error::FailedPrecondition(format!(
            "the staging path {} is not empty: it holds {}, perhaps written while no volume was mounted there. Move \
             it away",
            staging.display(),
            entry.file_name().display()
        ))),
        Some(Err(error)) => Err(Error::io("list", staging, error)),
    }
}

/// Refuses to stage an attached volume in another way than it is staged.
fn require_same(record: &Record, wanted: &Record) -> Result<()> {
    let staged = record.staging_path.display();
    if record.staging_path != wanted.staging_path {
        return Err(Error::FailedPrecondition(format!(
            "the volume is staged at {staged}: unstage it there first"
        )));
    }
    if record.capability != wanted.capability || record.mounter != wanted.mounter {
        return Err(Error::AlreadyExists(format!(
            "the volume is staged at {staged} with another access type, access mode, filesystem, mounter or other mount \
             options: unstage it there first"
        )));
    }
    Ok(())
}

fn bring_up(
    directory: &VolumeDirectory,
    record: &mut Record,
    request: &Stage,
    marks: &Marks,
    notes: Option<&Notes>,
) -> Result<()> {
    require_unused(&record.staging_path)?;
    directory.save(record)?;
    let read_only = record.capability.mode.is_read_only();
    record.mounter.check(&record.image, request.key.as_ref(), || marks.features())?;
    if let Some(notes) = notes
        && !matches!(record.mounter.find(directory.path())?, Attachment::Live(_))
    {
        notes.fence_earlier()?;
    }
    let device = attach(directory, record, request, read_only)?;
    if let Some(notes) = notes {
        note(directory, record, &device, notes)?;
    }
    let Access::Mount { fs_type, flags } = &record.capability.access else {
        return if read_only { Ok(()) } else { remember_raw_use(marks) };
    };
    let path = device.path();
    let fs_type = format::find_or_make(
        &device,
        &Format {
            fs_type: *fs_type,
            mkfs_options: request.mkfs_options.as_deref(),
            created_empty: request.created_empty,
            read_only,
            confirm: &|| record.mounter.confirm(directory.path(), &record.image, &device),
            marks,
        },
    )?;
    let options = mount_options(fs_type, flags, read_only);
    if read_only {
        return mount_for_readers(directory, record, request, marks, &device, fs_type, &options);
    }
    let is_free = filesystem::check(&path, fs_type)?;
    if is_free && fs_type == FsType::Ext4 && !filesystem::can_grow_mounted(fs_type)? {
        filesystem::grow_unmounted_ext4(&path, device.size()?)?;
    }
    mount::mount(&path, fs_type.name(), &options, &record.staging_path)?;
    grow(record, &device)
}

/// Mounts the filesystem of a `device` that is attached for reading alone, with its log replayed.
fn mount_for_readers(
    directory: &VolumeDirectory,
    record: &mut Record,
    request: &Stage,
    marks: &Marks,
    device: &Device,
    fs_type: FsType,
    options: &str,
) -> Result<()> {
    let mount = |record: &Record, device: &Device| {
        mount::mount_for_readers(&device.path(), fs_type.name(), options, &record.staging_path)
    };
    if mount(record, device)? {
        Replay::forget(marks);
        return Ok(());
    }
    record.mounter.detach(directory.path())?;
    let replay = Replay::begin(marks)?;
    replay_log(directory, record, request, marks, fs_type, replay)?;
    let device = attach(directory, record, request, true)?;
    if mount(record, &device)? {
        return Ok(());
    }
    Err(Error::FailedPrecondition(format!(
        "the log of the {fs_type} of the image {} was replayed, and still the kernel does not mount it for reading: see \
         why in the kernel's messages",
        record.image
    )))
}

/// Attaches the image for writing, has the log of its filesystem replayed, and detaches it.
fn replay_log(
    directory: &VolumeDirectory,
    record: &mut Record,
    request: &Stage,
    marks: &Marks,
    fs_type: FsType,
    mut replay: Replay,
) -> Result<()> {
    record.is_replayed = true;
    directory.save(record)?;
    let mut write = || {
        let device = attach(directory, record, request, false)?;
        let watchers = marks.watchers()?;
        let clients = record.mounter.clients(directory.path(), &device, || Ok(watchers.clone()))?;
        if let Some(other) = watchers.iter().find(|one| !clients.contains(&one.address)) {
            return Err(Error::Busy(format!(
                "the log of the {fs_type} of the image {} has to be replayed before it is read, and the client {} has the \
                 image open for writing: ask again when it has closed it",
                record.image, other.address
            )));
        }
        if clients.is_empty() {
            return Err(no_address(record, &device));
        }
        replay.note(clients)?;
        record.mounter.confirm(directory.path(), &record.image, &device)?;
        let path = device.path();
        filesystem::check(&path, fs_type)?;
        let options = mount_options(fs_type, &[], false);
        mount::mount(&path, fs_type.name(), &options, &record.staging_path)?;
        mount::unmount(&record.staging_path)
    };
    let written = write();
    record.mounter.detach(directory.path())?;
    replay.end();
    record.is_replayed = false;
    directory.save(record)?;
    written
}

fn attach(
    directory: &VolumeDirectory,
    record: &Record,
    request: &Stage,
    read_only: bool,
) -> Result<Device> {
    record.mounter.attach(
        directory.path(),
        &record.image,
        request.key.as_ref(),
        read_only,
        &request.map_options,
    )
}

/// Notes the client that was attached, before it writes.
fn note(
    directory: &VolumeDirectory,
    record: &mut Record,
    device: &Device,
    notes: &Notes,
) -> Result<()> {
    let addresses = record.mounter.clients(directory.path(), device, || notes.watchers())?;
    if addresses.is_empty() {
        return Err(no_address(record, device));
    }
    record.noted = Some(Noted { place: notes.place.clone(), addresses });
    directory.save(record)?;
    record.noted.as_ref().map_or(Ok(()), |noted| notes.replace(&noted.addresses))
}

fn no_address(record: &Record, device: &Device) -> Error {
    Error::Unavailable(format!(
        "the address of the client that serves {} is not to be found among those that watch the image {}",
        device.name, record.image
    ))
}

/// Remembers in the image, before it is handed out as a raw device, that it is: no driver may take
/// what is written there for nothing because blkid does not know it.
fn remember_raw_use(marks: &Marks) -> Result<()> {
    match marks.read()? {
        Some(Mark::Filesystem(..) | Mark::Block) => Ok(()),
        None | Some(Mark::Making(..)) => marks.write(&Mark::Block),
    }
}

/// The options of the staging mount. What the driver sets comes first, so that a StorageClass can
/// take it back, but for reading alone.
fn mount_options(fs_type: FsType, flags: &[String], read_only: bool) -> String {
    // Where the host's systemd reads mount(8)'s table, it unmounts the volume before it takes the
    // network down.
    let mut options = vec!["nodev", "nosuid", "_netdev"];
    options.push(match fs_type {
        // Whatever the superblock says: no pod writes on after an error.
        FsType::Ext4 => "errors=remount-ro",
        // A clone has its parent's UUID, and both may be on one node.
        FsType::Xfs => "nouuid",
    });
    options.extend(flags.iter().map(String::as_str));
    if read_only {
        options.push("ro");
    }
    options.join(",")
}

/// Grows the staged filesystem to its device, which may be larger: grown while it was not staged,
/// or made from a smaller snapshot. One that cannot grow is used at the size it has, which is
/// logged; NodeExpandVolume says why.
fn grow(record: &Record, device: &Device) -> Result<()> {
    let table = MountTable::read()?;
    let mount = table
        .at(&record.staging_path)
        .filter(|mount| mount.device == device.number)
        .ok_or_else(|| {
            Error::Unavailable(format!(
                "{} is not mounted at {}",
                device.name,
                record.staging_path.display()
            ))
        })?;
    let fs_type: FsType = mount.fs_type.parse()?;
    if record.capability.mounts_read_only() || !filesystem::can_grow_mounted(fs_type)? {
        return Ok(());
    }
    match filesystem::grow_mounted(&device.path(), fs_type, &record.staging_path) {
        Err(Error::FailedPrecondition(why)) => {
            let volume_id = record.volume_id.as_str();
            tracing::warn!(volume_id, why, "the filesystem stays smaller than its device");
            Ok(())
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_options_of_a_reader_cannot_be_taken_back() {
        let flags = ["rw".to_owned(), "suid".to_owned()];
        assert_eq!(
            mount_options(FsType::Ext4, &flags, true),
            "nodev,nosuid,_netdev,errors=remount-ro,rw,suid,ro"
        );
        assert_eq!(mount_options(FsType::Xfs, &[], false), "nodev,nosuid,_netdev,nouuid");
    }

    #[test]
    fn a_staging_path_in_use_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        require_unused(folder.path()).unwrap();
        std::fs::write(folder.path().join("vol"), "x").unwrap();
        assert!(matches!(require_unused(folder.path()), Err(Error::FailedPrecondition(_))));
        assert!(matches!(require_unused(Path::new("/proc")), Err(Error::FailedPrecondition(_))));
        let file = folder.path().join("vol");
        assert!(matches!(staging_directory(&file), Err(Error::FailedPrecondition(_))));
        assert!(matches!(
            staging_directory(&folder.path().join("none")),
            Err(Error::FailedPrecondition(_))
        ));
    }
}
