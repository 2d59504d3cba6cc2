//! Standard input and output. A pipe is waited for in a way that ends when the job is cancelled.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::sync::{Mutex, PoisonError};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::blocks::{Content, Target};
use super::error::failed;
use super::{Job, Result};

/// Milliseconds between two looks at whether the job is cancelled.
const LOOK: u16 = 100;

/// One of the process's streams.
pub(super) struct Stream<'a> {
    file: File,
    job: &'a Job,
}

impl<'a> Stream<'a> {
    /// Standard input.
    pub(super) fn input(job: &'a Job) -> Result<Stream<'a>> {
        let open = || Stream::open(io::stdin().as_fd(), OpenOptions::new().read(true), job);
        open().map_err(failed("cannot read standard input"))
    }

    /// Standard output.
    pub(super) fn output(job: &'a Job) -> Result<Stream<'a>> {
        let open = || Stream::open(io::stdout().as_fd(), OpenOptions::new().write(true), job);
        open().map_err(failed("cannot write to standard output"))
    }

    /// A pipe is opened anew, so that not waiting for it is this process's affair alone.
    fn open(fd: BorrowedFd<'_>, options: &mut OpenOptions, job: &'a Job) -> io::Result<Stream<'a>> {
        use std::os::fd::AsRawFd;
        let file = File::from(fd.try_clone_to_owned()?);
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        let file = if file.metadata()?.file_type().is_fifo() {
            options.custom_flags(nix::libc::O_NONBLOCK).open(path).unwrap_or(file)
        } else {
            file
        };
        Ok(Stream { file, job })
    }

    /// The file behind it, if it is one that can be read anywhere: `image import - <FILE`.
    pub(super) fn regular(&self) -> io::Result<bool> {
        Ok(self.file.metadata()?.file_type().is_file())
    }

    /// The file.
    pub(super) fn into_file(self) -> File {
        self.file
    }

    fn wait(&self, events: PollFlags) -> io::Result<()> {
        if self.job.is_cancelled() {
            return Err(io::Error::other("stopped"));
        }
        let mut fds = [PollFd::new(self.file.as_fd(), events)];
        poll(&mut fds, PollTimeout::from(LOOK))?;
        Ok(())
    }
}

impl Read for Stream<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.file.read(buffer) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.wait(PollFlags::POLLIN)?;
                }
                other => return other,
            }
        }
    }
}

impl Write for Stream<'_> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        loop {
            match self.file.write(data) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.wait(PollFlags::POLLOUT)?;
                }
                other => return other,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A stream that is written, zeros as well.
pub(super) struct StreamTarget<'a>(Mutex<Stream<'a>>);

impl<'a> StreamTarget<'a> {
    pub(super) fn new(stream: Stream<'a>) -> StreamTarget<'a> {
        StreamTarget(Mutex::new(stream))
    }
}

impl Target for StreamTarget<'_> {
    fn is_ordered(&self) -> bool {
        true
    }

    fn pass(&self, content: Content<'_>) -> Result<()> {
        let mut stream = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        content
            .slices()
            .try_for_each(|slice| stream.write_all(slice))
            .map_err(failed("cannot write to standard output"))
    }
}
