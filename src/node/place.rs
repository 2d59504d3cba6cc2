//! A path that an orchestrator names, and where it really is.
//!
//! Staging and target paths lie in folders that pods have a part in, and a pod that may swap a
//! folder for a link between a check and a mount has the node's own files mounted over, or shown to
//! a pod. So a path is walked once, from the root, through directories alone, no links; what is
//! walked to is held open, and everything afterwards goes through what is held.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open, openat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstatat};

use super::error::{Error, Result};
use super::mount::{Mount, MountTable};

/// A name in a directory that is held open. The name itself may stand for anything, or for nothing.
#[derive(Debug)]
pub(super) struct Place {
    parent: OwnedFd,
    name: OsString,
    path: PathBuf,
}

impl Place {
    /// Walks to `path`. `InvalidArgument` unless it is absolute and free of `.` and `..`;
    /// `FailedPrecondition` when something on the way is a link, or no directory; `None` when the
    /// parent is not there.
    pub(super) fn find(path: &Path) -> Result<Option<Self>> {
        let plain =
            path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
        let (Some(parent_path), Some(name), true, true) =
            (path.parent(), path.file_name(), path.is_absolute(), plain)
        else {
            return Err(Error::InvalidArgument(format!(
                "{} is not an absolute path without . and ..",
                path.display()
            )));
        };
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mut parent = open("/", flags, Mode::empty())
            .map_err(|error| Error::io("open", Path::new("/"), error))?;
        let mut walked = PathBuf::from("/");
        for part in parent_path.components().skip(1) {
            walked.push(part);
            parent = match openat(&parent, part.as_os_str(), flags, Mode::empty()) {
                Ok(directory) => directory,
                Err(Errno::ENOENT) => return Ok(None),
                Err(Errno::ENOTDIR) => {
                    let is_link =
                        is_kind(stat(&parent, part.as_os_str())?.as_ref(), SFlag::S_IFLNK);
                    let what = if is_link { "a symbolic link" } else { "no directory" };
                    return Err(Error::FailedPrecondition(format!(
                        "{} is {what}, and paths are followed through directories alone: name the real path",
                        walked.display()
                    )));
                }
                Err(error) => return Err(Error::io("resolve", &walked, error)),
            };
        }
        Ok(Some(Self { parent, name: name.to_owned(), path: walked.join(name) }))
    }

    /// The path, as the mount table has it while no process renames what is above.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// A path to the same name that passes through nothing but the directory held open. It lives as
    /// long as this does.
    pub(super) fn pinned(&self) -> PathBuf {
        pinned(&self.parent).join(&self.name)
    }

    /// What is there now, links not followed; `None` when nothing is.
    pub(super) fn stat(&self) -> Result<Option<FileStat>> {
        stat(&self.parent, &self.name)
    }

    /// Holds what is there now, links not followed; `None` when nothing is.
    pub(super) fn hold(&self) -> Result<Option<OwnedFd>> {
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        match openat(&self.parent, self.name.as_os_str(), flags, Mode::empty()) {
            Ok(found) => Ok(Some(found)),
            Err(Errno::ENOENT) => Ok(None),
            Err(error) => Err(Error::io("open", &self.path, error)),
        }
    }

    /// What is mounted here in `table`, whatever the path to here is called by now.
    pub(super) fn mount<'a>(&self, table: &'a MountTable) -> Result<Option<&'a Mount>> {
        let Some(found) = self.hold()? else { return Ok(None) };
        let (here, above) = (mount_id(&found)?, mount_id(&self.parent)?);
        Ok(if here == above { None } else { table.by_id(here) })
    }
}

/// A path to what is held open.
pub(super) fn pinned(held: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", held.as_raw_fd()))
}

/// Whether `stat` is of something of this kind.
pub(super) fn is_kind(stat: Option<&FileStat>, kind: SFlag) -> bool {
    stat.is_some_and(|stat| SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == kind)
}

fn stat(parent: &OwnedFd, name: &OsStr) -> Result<Option<FileStat>> {
    match fstatat(parent, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::ENOENT) => Ok(None),
        Err(error) => Err(Error::io("look at", Path::new(name), error)),
    }
}

/// The id of the mount that what is held open is on, as in the first column of the mount table.
fn mount_id(held: &OwnedFd) -> Result<u64> {
    let path = PathBuf::from(format!("/proc/self/fdinfo/{}", held.as_raw_fd()));
    let text = std::fs::read_to_string(&path).map_err(|error| Error::io("read", &path, error))?;
    let id = text.lines().find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok());
    id.ok_or_else(|| Error::io("understand", &path, "it has no mnt_id"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn relative_and_dotted_paths_are_refused() {
        for path in ["some/path", "", "/a/../b", "/", ".."] {
            assert!(
                matches!(Place::find(Path::new(path)), Err(Error::InvalidArgument(_))),
                "{path}"
            );
        }
        assert!(Place::find(Path::new("/no such parent/x")).unwrap().is_none());
    }

    #[test]
    fn links_on_the_way_are_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let real = folder.path().canonicalize().unwrap().join("real");
        std::fs::create_dir(&real).unwrap();
        symlink(&real, folder.path().join("link")).unwrap();
        std::fs::write(folder.path().join("file"), "").unwrap();
        for (name, word) in [("link/target", "symbolic link"), ("file/target", "no directory")] {
            let refused = Place::find(&folder.path().join(name)).unwrap_err();
            assert!(
                matches!(&refused, Error::FailedPrecondition(text) if text.contains(word)),
                "{refused}"
            );
        }
        // The name itself may be anything; the driver does not follow it.
        let link = Place::find(&folder.path().join("link")).unwrap().unwrap();
        assert!(is_kind(link.stat().unwrap().as_ref(), SFlag::S_IFLNK));
        let place = Place::find(&real.join("target")).unwrap().unwrap();
        assert_eq!(place.path(), real.join("target"));
        assert!(place.stat().unwrap().is_none() && place.hold().unwrap().is_none());
    }

    #[test]
    fn a_place_stays_what_it_is_when_its_path_becomes_another() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        std::fs::create_dir(path("real")).unwrap();
        std::fs::create_dir(path("other")).unwrap();
        let place = Place::find(&path("real/target")).unwrap().unwrap();
        std::fs::rename(path("real"), path("moved")).unwrap();
        symlink(path("other"), path("real")).unwrap();
        std::fs::create_dir(place.pinned()).unwrap();
        assert!(path("moved/target").exists() && !path("other/target").exists());
    }

    #[test]
    fn what_is_mounted_is_told_from_what_is_not() {
        let table = MountTable::read().unwrap();
        let mount = |path: &str| {
            Place::find(Path::new(path)).unwrap().unwrap().mount(&table).unwrap().cloned()
        };
        assert_eq!(mount("/proc").unwrap().fs_type, "proc");
        assert_eq!(mount("/proc/self"), None);
        assert_eq!(mount("/no such path"), None);
    }
}
