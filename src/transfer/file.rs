//! Files, as a source and as a target.
//!
//! A target is written as `.NAME.partial` beside its place and renamed when it is whole. A partial
//! file is locked while it is written, so one that is not was left by a run that was killed: the
//! next run to the same place takes it over, and throws away what is in it.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, RenameFlags, renameat2};
use nix::unistd::{Whence, lseek};

use super::blocks::{Source, Target};
use super::error::failed;
use super::{Error, Result};

/// Bytes whose holes are looked up at once.
const WINDOW: u64 = 1 << 30;

/// A file or a block device that is read.
#[derive(Debug)]
pub(super) struct FileSource {
    file: File,
    name: String,
    size: u64,
}

impl FileSource {
    /// The whole of `file`, which is called `name`.
    pub(super) fn new(file: File, name: &str) -> Result<FileSource> {
        // A block device has its size at its end alone.
        let size = lseek(&file, 0, Whence::SeekEnd)
            .map_err(failed(format_args!("cannot tell the size of {name}")))?;
        let size = u64::try_from(size).map_err(failed(format_args!("the size of {name}")))?;
        Ok(FileSource { file, name: name.to_owned(), size })
    }

    /// The open file.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// What it is called.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    fn seek(&self, offset: u64, to: Whence) -> nix::Result<u64> {
        let offset = i64::try_from(offset).map_err(|_| Errno::EOVERFLOW)?;
        lseek(&self.file, offset, to).map(i64::cast_unsigned)
    }
}

impl Source for FileSource {
    fn size(&self) -> u64 {
        self.size
    }

    fn window(&self) -> u64 {
        WINDOW
    }

    fn extents(&self, window: Range<u64>) -> Result<Vec<Range<u64>>> {
        let mut extents = Vec::new();
        let mut position = window.start;
        while position < window.end {
            let start = match self.seek(position, Whence::SeekData) {
                Ok(start) => start,
                // There is a hole up to the end.
                Err(Errno::ENXIO) => break,
                // Not every filesystem knows holes.
                Err(_) => return Ok(vec![window]),
            };
            let Ok(end) = self.seek(start, Whence::SeekHole) else { return Ok(vec![window]) };
            if start < window.end {
                extents.push(start..end.min(window.end));
            }
            position = end;
        }
        Ok(extents)
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.file.read_exact_at(buffer, offset).map_err(|error| {
            Error::Failed(match error.kind() {
                io::ErrorKind::UnexpectedEof => {
                    format!(
                        "{} became shorter than {} bytes while it was read",
                        self.name, self.size
                    )
                }
                _ => format!("cannot read {} at byte {offset}: {error}", self.name),
            })
        })
    }
}

/// A file in the making. Dropping it removes it, unless it was finished.
#[derive(Debug)]
pub(super) struct Partial {
    file: Flock<File>,
    path: PathBuf,
    place: PathBuf,
    finished: bool,
}

impl Partial {
    /// Begins the file that is to be at `place`. [`Error::Refused`] when there is something
    /// already, or another run is writing to it.
    pub(super) fn create(place: &Path) -> Result<Partial> {
        let shown = place.display();
        let Some(name) = place.file_name() else {
            return Err(Error::Refused(format!("{shown} is no name of a file")));
        };
        refuse_existing(place)?;
        let mut partial_name = b".".to_vec();
        partial_name.extend_from_slice(name.as_bytes());
        partial_name.extend_from_slice(b".partial");
        let partial = place.with_file_name(std::ffi::OsStr::from_bytes(&partial_name));
        loop {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .custom_flags(nix::libc::O_NOFOLLOW)
                .open(&partial)
                .map_err(failed(format_args!("cannot create {}", partial.display())))?;
            let file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(file) => file,
                Err((_, Errno::EWOULDBLOCK)) => {
                    return Err(Error::Refused(format!(
                        "another run is writing {shown}: it holds {}",
                        partial.display()
                    )));
                }
                Err((_, errno)) => {
                    return Err(Error::Failed(format!(
                        "cannot lock {}: {errno}",
                        partial.display()
                    )));
                }
            };
            // Another run may have finished or removed it before it was locked here.
            let mine = file.metadata().map(|file| file.ino());
            if mine.ok() != fs::symlink_metadata(&partial).map(|file| file.ino()).ok() {
                continue;
            }
            file.set_len(0).map_err(failed(format_args!("cannot write {}", partial.display())))?;
            return Ok(Partial { file, path: partial, place: place.to_owned(), finished: false });
        }
    }

    /// The open file.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Puts the whole file at its place, durably, unless something is there.
    pub(super) fn finish(mut self) -> Result<()> {
        let what = format!("cannot write {}", self.place.display());
        self.file.sync_all().map_err(failed(&what))?;
        let here = nix::fcntl::AT_FDCWD;
        match renameat2(here, &self.path, here, &self.place, RenameFlags::RENAME_NOREPLACE) {
            Err(Errno::EEXIST) => return refuse_existing(&self.place),
            // Not every filesystem knows it.
            Err(Errno::EINVAL | Errno::ENOSYS) => {
                refuse_existing(&self.place)?;
                fs::rename(&self.path, &self.place).map_err(failed(&what))?;
            }
            other => other.map_err(failed(&what))?,
        }
        self.finished = true;
        let folder = match self.place.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        };
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed(&what))
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.finished {
            // What stays is taken over by the next run.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// [`Error::Refused`] when something is at `place`.
fn refuse_existing(place: &Path) -> Result<()> {
    match fs::symlink_metadata(place) {
        Ok(_) => Err(Error::Refused(format!(
            "{} exists, and is not replaced: remove it, or choose another name",
            place.display()
        ))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Error::Failed(format!("cannot look at {}: {error}", place.display()))),
    }
}

/// A file that is written, with holes where there are zeros. It is empty at first.
#[derive(Debug)]
pub(super) struct FileTarget<'a> {
    file: &'a File,
    name: &'a str,
}

impl<'a> FileTarget<'a> {
    pub(super) fn new(file: &'a File, name: &'a str) -> FileTarget<'a> {
        FileTarget { file, name }
    }

    /// Ends the file at byte `size`.
    pub(super) fn end(&self, size: u64) -> Result<()> {
        self.file
            .set_len(size)
            .map_err(failed(format_args!("cannot make {} {size} bytes long", self.name)))
    }
}

impl Target for FileTarget<'_> {
    fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        self.file
            .write_all_at(data, offset)
            .map_err(failed(format_args!("cannot write {}", self.name)))
    }
}
