//! What the node remembers of a volume: one directory per volume under the state directory.
//!
//! The record is written before anything is attached and removed after everything is detached, so
//! whatever an interrupted operation left is found through it. It says what was asked for; what is
//! true is read from the kernel each time. It holds no key. A record that cannot be read is an
//! error and never "no such volume".

use std::collections::BTreeMap;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::attach::{Attachment, Image, Mounter};
use super::error::{Error, Result};
use super::mount::MountTable;
use super::notes::Noted;
use super::{Access, AccessMode, Capability, kill};

/// The version of the record's form that is written and understood.
const VERSION: u32 = 1;

/// A staged volume, or one being staged or unstaged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    version: u32,
    /// The CSI volume id.
    pub(super) volume_id: String,
    pub(super) image: Image,
    pub(super) mounter: Mounter,
    /// What it was staged for.
    pub(super) capability: Capability,
    /// The staging path, as the mount table spells it.
    pub(super) staging_path: PathBuf,
    /// The notes of its clients; `None` where none are made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) noted: Option<Noted>,
    /// Whether the image is attached for writing to have its log replayed, before readers get it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) is_replayed: bool,
    /// Where it was published. An entry counts only while the volume is mounted there.
    pub(super) targets: BTreeMap<PathBuf, Publication>,
}

/// How a volume was published at a target path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Publication {
    pub(super) capability: Capability,
    pub(super) read_only: bool,
}

impl Record {
    pub(super) fn new(
        volume_id: &str,
        image: Image,
        mounter: Mounter,
        capability: Capability,
        staging_path: PathBuf,
    ) -> Self {
        let volume_id = volume_id.to_owned();
        Self {
            version: VERSION,
            volume_id,
            image,
            mounter,
            capability,
            staging_path,
            noted: None,
            is_replayed: false,
            targets: BTreeMap::new(),
        }
    }

    /// Whether the volume is a raw device for its users.
    pub(super) fn is_block(&self) -> bool {
        self.capability.access == Access::Block
    }
}

/// A volume's directory.
#[derive(Debug)]
pub(super) struct VolumeDirectory(PathBuf);

impl VolumeDirectory {
    /// The directory of `volume_id`. Its name is a digest: a volume id may be longer than a file
    /// name, and the paths of unix sockets are short.
    pub(super) fn new(state_directory: &Path, volume_id: &str) -> Self {
        let mut half = [0; 16];
        half.copy_from_slice(&Sha256::digest(volume_id.as_bytes())[..16]);
        Self(state_directory.join(format!("{:032x}", u128::from_be_bytes(half))))
    }

    /// The directory of some volume, by its path.
    pub(super) fn at(path: PathBuf) -> Self {
        Self(path)
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    /// Its own name, a digest of the volume id.
    pub(super) fn name(&self) -> String {
        self.0.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    fn record_path(&self) -> PathBuf {
        self.0.join("record.json")
    }

    /// The record, if the volume has one.
    pub(super) fn load(&self) -> Result<Option<Record>> {
        let path = self.record_path();
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io("read", &path, error)),
        };
        let record: Record =
            serde_json::from_slice(&text).map_err(|error| Error::io("understand", &path, error))?;
        if record.version != VERSION {
            return Err(Error::FailedPrecondition(format!(
                "{} was written by another version of the driver (form {}, here {VERSION}): unstage the volume with \
                 that version",
                path.display(),
                record.version
            )));
        }
        Ok(Some(record))
    }

    /// The record; where it was lost, what the kernel says of the volume: how it is attached, and
    /// whether its filesystem is mounted. That is enough to take it down from `staging_path`, and
    /// from target paths.
    pub(super) fn load_or_recover(
        &self,
        volume_id: &str,
        staging_path: &Path,
    ) -> Result<Option<Record>> {
        if let Some(record) = self.load()? {
            return Ok(Some(record));
        }
        for mounter in [Mounter::Rbd, Mounter::RbdNbd, Mounter::Fuse] {
            let (Attachment::Live(device) | Attachment::Dead(device)) = mounter.find(&self.0)?
            else {
                continue;
            };
            tracing::warn!(
                volume_id,
                device = device.name,
                "the record of the volume is lost: it is taken down by what the kernel says of it"
            );
            let is_mounted = MountTable::read()?.iter().any(|mount| mount.device == device.number);
            let access = if is_mounted {
                Access::Mount { fs_type: None, flags: Vec::new() }
            } else {
                Access::Block
            };
            let capability = Capability { access, mode: AccessMode::SingleNodeWriter };
            return Ok(Some(Record::new(
                volume_id,
                Image::default(),
                mounter,
                capability,
                staging_path.to_owned(),
            )));
        }
        Ok(None)
    }

    /// Writes the record; after a crash it is the old one or the new one.
    pub(super) fn save(&self, record: &Record) -> Result<()> {
        let failed = |error: std::io::Error| Error::io("write the record in", &self.0, error);
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.0).map_err(failed)?;
        let text =
            serde_json::to_vec_pretty(record).map_err(std::io::Error::from).map_err(failed)?;
        let draft = self.0.join("record.json.new");
        let mut options = std::fs::OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        let mut file = options.open(&draft).map_err(failed)?;
        file.write_all(&text).and_then(|()| file.sync_all()).map_err(failed)?;
        kill::step("record drafted");
        std::fs::rename(&draft, self.record_path()).map_err(failed)?;
        kill::step("record written");
        std::fs::File::open(&self.0).and_then(|folder| folder.sync_all()).map_err(failed)
    }

    /// Removes the record and the directory, which the mounter has emptied.
    pub(super) fn remove(&self) -> Result<()> {
        for path in [self.0.join("record.json.new"), self.record_path()] {
            if let Err(error) = std::fs::remove_file(&path)
                && error.kind() != ErrorKind::NotFound
            {
                return Err(Error::io("remove", &path, error));
            }
        }
        kill::step("record removed");
        match std::fs::remove_dir(&self.0) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(Error::io("remove", &self.0, error))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::AccessMode;
    use super::*;

    fn record() -> Record {
        let image = Image {
            pool: "p".into(),
            namespace: "n".into(),
            name: "i".into(),
            monitors: "[v2:10.0.0.1:3300]".into(),
            user: Some("csi".into()),
        };
        let access = Access::Mount { fs_type: None, flags: vec!["noatime".into()] };
        let capability = Capability { access, mode: AccessMode::SingleNodeWriter };
        let mut record =
            Record::new("c/p/n/i", image, Mounter::Fuse, capability.clone(), "/staging".into());
        record.targets.insert("/target".into(), Publication { capability, read_only: true });
        record
    }

    #[test]
    fn what_is_saved_is_loaded() {
        let folder = tempfile::tempdir().unwrap();
        let directory = VolumeDirectory::new(folder.path(), "c/p/n/i");
        assert_eq!(directory.load().unwrap(), None);
        directory.save(&record()).unwrap();
        let again = VolumeDirectory::new(folder.path(), "c/p/n/i");
        assert_eq!(again.load().unwrap(), Some(record()));
        again.remove().unwrap();
        assert_eq!(directory.load().unwrap(), None);
        assert!(std::fs::read_dir(folder.path()).unwrap().next().is_none());
        directory.remove().unwrap();
    }

    #[test]
    fn a_record_that_cannot_be_read_is_not_an_absent_one() {
        let folder = tempfile::tempdir().unwrap();
        let directory = VolumeDirectory::new(folder.path(), "v");
        directory.save(&record()).unwrap();
        std::fs::write(directory.record_path(), b"{\"version\": 1").unwrap();
        assert!(matches!(directory.load(), Err(Error::Internal(_))));
        let newer = Record { version: 2, ..record() };
        directory.save(&newer).unwrap();
        assert!(matches!(directory.load(), Err(Error::FailedPrecondition(_))));
    }
}
