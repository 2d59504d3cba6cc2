//! Publishing: show a staged volume to a pod at a target path. Unpublishing: take it away from
//! there.
//!
//! A filesystem is a bind mount of the staging path, a block volume a bind mount of its device node
//! on a file. What is bound is checked before and after against the mount table, so that a
//! directory of the node's own disk never poses as a volume.
//!
//! Crash points: the record names the target before anything is made there. A target that is named
//! but not mounted counts for nothing; publishing or unpublishing again finishes the work.

use std::fs::{DirBuilder, File};
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::sys::stat::SFlag;

use super::attach::{Attachment, Device};
use super::error::{Error, Result};
use super::mount::{self, MountTable};
use super::place::{self, Place, is_kind};
use super::programs::{self, Program};
use super::record::{Publication, Record, VolumeDirectory};
use super::{Access, Capability, Node, is_of_volume, kill, usage};

/// What is to be published, and how.
#[derive(Debug)]
pub struct Publish {
    /// The CSI volume id.
    pub volume_id: String,
    /// Where the volume is staged.
    pub staging_path: PathBuf,
    /// Where it is to be seen. Its parent must be there.
    pub target_path: PathBuf,
    /// What for.
    pub capability: Capability,
    /// Whether writing through the target path is forbidden.
    pub read_only: bool,
}

impl Node {
    /// Publishes a staged volume at a target path. The same again is fine; other arguments for the
    /// same target are `AlreadyExists`; a second target is `FailedPrecondition` for modes that
    /// allow one. `FailedPrecondition` too when the volume is not staged, or its staging path shows
    /// something else.
    pub fn publish(&self, request: &Publish) -> Result<()> {
        request.capability.check()?;
        let directory = self.volume(&request.volume_id);
        let (mut record, device) = staged(&directory, request)?;
        let table = MountTable::read()?;
        require_healthy(&record, &device, &table)?;
        self.look_at(&device, None)?
            .map_err(|error| Error::FailedPrecondition(usage::failing(&device, &error)))?;

        let wanted = Publication {
            capability: request.capability.clone(),
            read_only: request.read_only || request.capability.mode.is_read_only(),
        };
        let target = Place::find(&request.target_path)?.map(Arc::new).ok_or_else(|| {
            Error::FailedPrecondition(format!(
                "the parent directory of {} is missing: the orchestrator has to create it first",
                request.target_path.display()
            ))
        })?;
        let path = target.path().to_owned();
        if let Some(mount) = target.mount(&table)? {
            if !is_of_volume(&record, &device, mount) {
                return Err(Error::foreign_mount(&path));
            }
            let as_mounted = record.is_block() || mount.is_read_only() == wanted.read_only;
            match record.targets.get(&path) {
                Some(publication) if *publication != wanted => {
                    return Err(Error::AlreadyExists(format!(
                        "the volume is published at {} with another access mode, filesystem, read-only setting or other \
                         mount options: unpublish it there first",
                        path.display()
                    )));
                }
                Some(_) if as_mounted => return Ok(()),
                // A publish that stopped between the bind and making it read-only, or whose record
                // is gone.
                _ => mount::unbind(&target)?,
            }
        }

        let in_use =
            |path: &Path| table.at(path).is_some_and(|mount| is_of_volume(&record, &device, mount));
        let others: Vec<_> = record
            .targets
            .iter()
            .filter(|(other, _)| **other != path && in_use(other))
            .map(|(p, o)| (p.clone(), o.clone()))
            .collect();
        require_compatible(&record, &others, &wanted)?;
        record.targets = others.into_iter().collect();
        record.targets.insert(path, wanted.clone());
        directory.save(&record)?;
        let made = make_target(&target, record.is_block())?;
        show(&record, &device, &target, wanted.read_only).map_err(|error| {
            match unmake(&target, made) {
                Ok(()) => error,
                Err(undo) => error.with_failed_undo(&undo),
            }
        })
    }

    /// Takes a volume away from a target path and removes the directory or file there. A volume
    /// that is not published there is fine. `FailedPrecondition` when something else is mounted
    /// there, when files lie there, or when it is in use.
    pub fn unpublish(&self, volume_id: &str, target_path: &Path) -> Result<()> {
        let directory = self.volume(volume_id);
        let Some(target) = Place::find(target_path)?.map(Arc::new) else { return Ok(()) };
        let record = directory.load_or_recover(volume_id, Path::new(""))?;
        let device = match &record {
            Some(record) => match record.mounter.find(directory.path())? {
                Attachment::Live(device) | Attachment::Dead(device) => Some((record, device)),
                Attachment::Absent => None,
            },
            None => None,
        };
        while let Some(mount) = target.mount(&MountTable::read()?)? {
            if !device.as_ref().is_some_and(|(record, device)| is_of_volume(record, device, mount))
            {
                return Err(Error::foreign_mount(target.path()));
            }
            mount::unbind(&target)?;
        }
        remove_target(&target)?;
        if let Some(mut record) = record
            && record.targets.remove(target.path()).is_some()
        {
            directory.save(&record)?;
        }
        Ok(())
    }
}

/// The record and device of a volume that is staged as the request says.
fn staged(directory: &VolumeDirectory, request: &Publish) -> Result<(Record, Device)> {
    let refuse =
        |why: String| Error::FailedPrecondition(format!("volume {}: {why}", request.volume_id));
    let record =
        directory.load()?.ok_or_else(|| refuse("it is not staged on this node".to_owned()))?;
    let staging = Place::find(&request.staging_path)?;
    if staging.is_none_or(|staging| staging.path() != record.staging_path) {
        return Err(refuse(format!(
            "it is staged at {}, not at {}",
            record.staging_path.display(),
            request.staging_path.display()
        )));
    }
    if record.is_block() != (request.capability.access == Access::Block) {
        let staged_as = if record.is_block() { "a block device" } else { "a filesystem" };
        return Err(refuse(format!(
            "it is staged as {staged_as}, and cannot be published as anything else"
        )));
    }
    match record.mounter.find(directory.path())? {
        Attachment::Live(device) => Ok((record, device)),
        Attachment::Absent => Err(refuse("its image is not attached: stage it again".to_owned())),
        Attachment::Dead(device) => Err(refuse(format!(
            "what served {} is gone: end the pods that use the volume, unstage it and stage it again",
            device.name
        ))),
    }
}

/// Refuses a staging path that does not show the volume, or shows a filesystem the kernel has given
/// up writing to.
fn require_healthy(record: &Record, device: &Device, table: &MountTable) -> Result<()> {
    if record.is_block() {
        return Ok(());
    }
    let staging = record.staging_path.display();
    match table.at(&record.staging_path) {
        Some(mount) if mount.device == device.number => {
            if mount.is_filesystem_read_only() && !record.capability.mounts_read_only() {
                return Err(Error::FailedPrecondition(format!(
                    "the kernel made the filesystem at {staging} read-only after an error: see the kernel's log, end \
                     the pods that use the volume, unstage it and stage it again"
                )));
            }
            Ok(())
        }
        Some(_) => Err(Error::foreign_mount(&record.staging_path)),
        None => Err(Error::FailedPrecondition(format!(
            "the volume is not mounted at {staging}: stage it again"
        ))),
    }
}

/// CSI's table for a second target path, and what one device can do at once.
fn require_compatible(
    record: &Record,
    others: &[(PathBuf, Publication)],
    wanted: &Publication,
) -> Result<()> {
    for (path, other) in others {
        if wanted.capability.mode.has_one_target() || other.capability.mode.has_one_target() {
            return Err(Error::FailedPrecondition(format!(
                "the volume is published at {}, and its access mode allows one place on a node",
                path.display()
            )));
        }
        // A device node has no read-only mounts: only the device can refuse to be opened for
        // writing.
        if record.is_block() && other.read_only != wanted.read_only {
            return Err(Error::FailedPrecondition(format!(
                "a block device is read-only for all or for none, and the volume is published at {} {}",
                path.display(),
                if other.read_only { "read-only" } else { "for writing" }
            )));
        }
    }
    Ok(())
}

/// What was made at a target path.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Made {
    Nothing,
    Target,
}

/// Makes the directory or the file a volume is mounted on. One that is there must be empty.
fn make_target(target: &Place, is_block: bool) -> Result<Made> {
    let refuse = |what: &str| {
        Err(Error::FailedPrecondition(format!(
            "the target path {} is {what}: move it away",
            target.path().display()
        )))
    };
    let Some(stat) = target.stat()? else {
        let made = if is_block {
            File::create_new(target.pinned()).map(drop)
        } else {
            DirBuilder::new().mode(0o750).create(target.pinned())
        };
        made.map_err(|error| Error::io("create", target.path(), error))?;
        kill::step("target made");
        return Ok(Made::Target);
    };
    if is_block {
        let is_empty_file = is_kind(Some(&stat), SFlag::S_IFREG) && stat.st_size == 0;
        return if is_empty_file {
            Ok(Made::Nothing)
        } else {
            refuse("something else than an empty file")
        };
    }
    if !is_kind(Some(&stat), SFlag::S_IFDIR) {
        return refuse("not a directory");
    }
    let list = |error: std::io::Error| Error::io("list", target.path(), error);
    let Some(held) = target.hold()? else { return refuse("not there any more") };
    let mut entries = std::fs::read_dir(place::pinned(&held)).map_err(list)?;
    if entries.next().is_some() { refuse("not empty") } else { Ok(Made::Nothing) }
}

/// Binds the volume to `target`, and looks whether that is what is there now.
fn show(record: &Record, device: &Device, target: &Place, read_only: bool) -> Result<()> {
    let changed = || {
        Error::FailedPrecondition(format!(
            "what was to be bound to {} is not the volume: its staging path or device node changed meanwhile",
            target.path().display()
        ))
    };
    let source = if record.is_block() { device.path() } else { record.staging_path.clone() };
    // What is looked at is what is bound, whatever its path comes to mean.
    let source =
        Place::find(&source)?.and_then(|place| place.hold().transpose()).ok_or_else(changed)??;
    let stat = nix::sys::stat::fstat(&source)
        .map_err(|error| Error::io("look at", target.path(), error))?;
    if record.is_block() {
        if !is_kind(Some(&stat), SFlag::S_IFBLK) || stat.st_rdev != device.number {
            return Err(changed());
        }
        if !record.capability.mode.is_read_only() {
            let change = if read_only { "--setro" } else { "--setrw" };
            programs::succeed(Program::Blockdev, &[change.as_ref(), device.path().as_ref()])?;
        }
        mount::bind(&source, target, false)?;
    } else {
        if stat.st_dev != device.number {
            return Err(changed());
        }
        mount::bind(&source, target, read_only)?;
    }
    let table = MountTable::read()?;
    let shown = target.mount(&table)?.is_some_and(|mount| {
        is_of_volume(record, device, mount)
            && (record.is_block() || !read_only || mount.is_read_only())
    });
    if shown { Ok(()) } else { Err(changed()) }
}

/// Undoes a publish that failed.
fn unmake(target: &Arc<Place>, made: Made) -> Result<()> {
    if target.mount(&MountTable::read()?)?.is_some() {
        mount::unbind(target)?;
    }
    match made {
        Made::Target => remove_target(target),
        Made::Nothing => Ok(()),
    }
}

/// Removes an empty directory or an empty file. What holds anything stays, and is
/// `FailedPrecondition`.
fn remove_target(target: &Place) -> Result<()> {
    let not_ours = || {
        Error::FailedPrecondition(format!(
            "{} holds something, perhaps written while no volume was mounted there: move it away",
            target.path().display()
        ))
    };
    let Some(stat) = target.stat()? else { return Ok(()) };
    let removed = if is_kind(Some(&stat), SFlag::S_IFDIR) {
        std::fs::remove_dir(target.pinned())
    } else if is_kind(Some(&stat), SFlag::S_IFREG) && stat.st_size == 0 {
        std::fs::remove_file(target.pinned())
    } else {
        return Err(not_ours());
    };
    match removed {
        Ok(()) => {
            kill::step("target removed");
            Ok(())
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty => Err(not_ours()),
        Err(error) => Err(Error::io("remove", target.path(), error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_empty_targets_are_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let place = |name: &str| Place::find(&path(name)).unwrap().unwrap();
        std::fs::create_dir(path("empty")).unwrap();
        std::fs::create_dir(path("full")).unwrap();
        std::fs::write(path("full/data"), "x").unwrap();
        std::fs::write(path("file"), "").unwrap();
        std::fs::write(path("data"), "x").unwrap();
        std::os::unix::fs::symlink(path("data"), path("link")).unwrap();
        for name in ["empty", "file", "never made"] {
            remove_target(&place(name)).unwrap();
            assert!(!path(name).exists(), "{name}");
        }
        for name in ["full", "data", "link"] {
            assert!(
                matches!(remove_target(&place(name)), Err(Error::FailedPrecondition(_))),
                "{name}"
            );
        }
        assert!(path("full/data").exists() && path("link").exists());
    }

    #[test]
    fn a_target_must_be_empty_and_of_the_right_kind() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let place = |name: &str| Place::find(&path(name)).unwrap().unwrap();
        assert!(make_target(&place("directory"), false).unwrap() == Made::Target);
        assert!(make_target(&place("directory"), false).unwrap() == Made::Nothing);
        assert!(make_target(&place("file"), true).unwrap() == Made::Target);
        assert!(make_target(&place("file"), true).unwrap() == Made::Nothing);
        for (name, is_block) in [("directory", true), ("file", false)] {
            assert!(
                matches!(make_target(&place(name), is_block), Err(Error::FailedPrecondition(_))),
                "{name}"
            );
        }
        std::fs::write(path("directory/data"), "x").unwrap();
        assert!(matches!(
            make_target(&place("directory"), false),
            Err(Error::FailedPrecondition(_))
        ));
    }
}
