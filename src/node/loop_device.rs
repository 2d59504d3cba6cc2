//! A loop device on a file.
//!
//! The kernel names the file a loop device stands on by its path as seen now. When the file is a
//! FUSE mount that went away (its server ended in good order, or its mount namespace did), that
//! path is lost while the device, and whatever is mounted from it, lives on. So a device is also
//! known by its sequence number, which the kernel gives to no other binding until the next boot; it
//! is kept in a file beside. A kernel without such numbers (before 5.15) leaves the path alone.
//!
//! Crash point: between the binding and the writing of that file, the path is the only witness. The
//! server is alive then.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::stat::makedev;

use super::attach::Device;
use super::error::{Error, Result};
use super::kill;
use super::mount;
use super::programs::{self, Program};

/// How long the kernel may take to let a device go, or to notice its size.
const PATIENCE: Duration = Duration::from_secs(10);

/// Two that are told of the same free device at once both claim it, and the one that comes too late
/// keeps the other from its device for a moment.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

const BLOCK_DEVICES: &str = "/sys/block";

/// The loop device of a volume, there or not.
#[derive(Debug)]
pub(super) struct LoopDevice {
    /// The file it stands on, spelt as the kernel spells it.
    pub(super) file: PathBuf,
    /// Where its identity is kept: name, sequence number and boot id.
    pub(super) identity: PathBuf,
}

impl LoopDevice {
    /// The device, if it is there.
    pub(super) fn find(&self) -> Result<Option<Device>> {
        let folder = Path::new(BLOCK_DEVICES);
        let entries =
            std::fs::read_dir(folder).map_err(|error| Error::io("list", folder, error))?;
        for entry in entries {
            let name = entry.map_err(|error| Error::io("list", folder, error))?.file_name();
            let Some(name) = name.to_str() else { continue };
            // Only a loop device in use has this, and it may go out of use at any time.
            let Ok(backing) = attribute(name, "loop/backing_file") else { continue };
            if Path::new(&backing) == self.file || self.is_identity_of(name)? {
                return device(name).map(Some);
            }
        }
        Ok(None)
    }

    /// Where the identity is written before it is complete.
    pub(super) fn identity_draft(&self) -> PathBuf {
        self.identity.with_extension("new")
    }

    /// Binds a free device to the file.
    pub(super) fn attach(&self, read_only: bool) -> Result<()> {
        let mut arguments = vec!["--find".as_ref(), "--show".as_ref(), "--direct-io=on".as_ref()];
        if read_only {
            arguments.push("--read-only".as_ref());
        }
        arguments.push(self.file.as_os_str());
        let turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let path = programs::succeed(Program::Losetup, &arguments)?;
        drop(turn);
        let name = path.rsplit('/').next().unwrap_or_default();
        let device = device(name)?;
        match identity(name) {
            Ok(identity) => {
                let draft = self.identity_draft();
                std::fs::write(&draft, identity)
                    .map_err(|error| Error::io("write", &draft, error))?;
                kill::step("identity drafted");
                std::fs::rename(&draft, &self.identity)
                    .map_err(|error| Error::io("write", &self.identity, error))?;
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => {
                return Err(Error::io("read the sequence number of", &device.path(), error));
            }
        }
        if read_only { Ok(()) } else { make_writable(&device) }
    }

    /// Frees `device`, unless a mount or a process uses it: `FailedPrecondition`.
    pub(super) fn detach(&self, device: &Device) -> Result<()> {
        let path = device.path();
        let busy = |who: &str| {
            Error::FailedPrecondition(format!(
                "{} is in use {who}: end what uses it",
                path.display()
            ))
        };
        // A mount in any namespace holds the device exclusively. losetup would only mark it for
        // later.
        match mount::exclusive(&path) {
            Ok(_) => {}
            Err(error) if error.raw_os_error() == Some(nix::libc::EBUSY) => {
                return Err(busy(&match mount::namespaces_with(device.number) {
                    Some(names) => format!("by a mount in the mount namespace of {names}"),
                    None => {
                        "by another device, or a mount that cannot be seen from here".to_owned()
                    }
                }));
            }
            Err(error) => return Err(Error::io("open", &path, error)),
        }
        make_writable(device)?;
        programs::succeed(Program::Losetup, &["--detach".as_ref(), path.as_ref()])?;
        // While the device is open somewhere, the kernel waits for the last one to close it.
        let deadline = Instant::now() + PATIENCE;
        while self.find()?.as_ref() == Some(device) {
            if Instant::now() > deadline {
                return Err(busy(&mount::holders(&path, &[])));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Makes `device` as large as the file, which is to have `size` bytes. `Unavailable` when it
    /// does not get there.
    pub(super) fn grow(&self, device: &Device, size: u64) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        // A device has whole sectors; a file that ends inside one loses that end.
        while device.size()? < size - size % 512 {
            if Instant::now() > deadline {
                return Err(Error::Unavailable(format!(
                    "{} does not grow to the {size} bytes of {}",
                    device.name,
                    self.file.display()
                )));
            }
            // FUSE caches the size for a second; looking at the file is what updates it.
            std::fs::metadata(&self.file)
                .map_err(|error| Error::io("look at", &self.file, error))?;
            programs::succeed(
                Program::Losetup,
                &["--set-capacity".as_ref(), device.path().as_ref()],
            )?;
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Whether the device `name` is the one whose identity was kept.
    fn is_identity_of(&self, name: &str) -> Result<bool> {
        let kept = match std::fs::read_to_string(&self.identity) {
            Ok(kept) => kept,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(Error::io("read", &self.identity, error)),
        };
        Ok(identity(name).is_ok_and(|identity| identity == kept))
    }
}

/// What tells this binding of the device `name` from all others there ever were. `NotFound` when
/// the kernel keeps no sequence numbers.
fn identity(name: &str) -> std::io::Result<String> {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    Ok(format!("{name} {} {}\n", attribute(name, "diskseq")?, boot.trim()))
}

fn attribute(name: &str, attribute: &str) -> std::io::Result<String> {
    let mut text = std::fs::read_to_string(Path::new(BLOCK_DEVICES).join(name).join(attribute))?;
    text.truncate(text.trim_end_matches('\n').len());
    Ok(text)
}

fn device(name: &str) -> Result<Device> {
    let path = Path::new(BLOCK_DEVICES).join(name).join("dev");
    let text = attribute(name, "dev").map_err(|error| Error::io("read", &path, error))?;
    let number = text
        .split_once(':')
        .and_then(|(major, minor)| Some(makedev(major.parse().ok()?, minor.parse().ok()?)));
    let number = number.ok_or_else(|| Error::io("understand", &path, &text))?;
    Ok(Device { name: name.to_owned(), number })
}

/// Takes back `blockdev --setro`. The kernel keeps that with the number of a loop device, whatever
/// file it gets next, so it is taken back before a device is freed, and again after one is taken
/// that another process left like this.
fn make_writable(device: &Device) -> Result<()> {
    programs::succeed(Program::Blockdev, &["--setrw".as_ref(), device.path().as_ref()]).map(drop)
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    /// Frees the device also when the test fails.
    struct Cleanup<'a>(&'a LoopDevice);

    impl Drop for Cleanup<'_> {
        fn drop(&mut self) {
            if let Ok(Some(device)) = self.0.find() {
                self.0.detach(&device).unwrap();
            }
        }
    }

    #[test]
    fn a_device_is_known_by_its_file_or_by_its_identity() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().canonicalize().unwrap();
        let device = LoopDevice { file: path.join("file"), identity: path.join("identity") };
        assert_eq!(device.find().unwrap(), None);
        File::create(&device.file).unwrap().set_len(1 << 20).unwrap();
        device.attach(false).unwrap();
        let _cleanup = Cleanup(&device);
        let found = device.find().unwrap().unwrap();
        assert_eq!(found.size().unwrap(), 1 << 20);

        let without_identity =
            LoopDevice { file: device.file.clone(), identity: path.join("none") };
        assert_eq!(without_identity.find().unwrap(), Some(found.clone()));
        let without_file =
            LoopDevice { file: path.join("none"), identity: device.identity.clone() };
        assert_eq!(without_file.find().unwrap(), Some(found.clone()));
        let neither = LoopDevice { file: path.join("none"), identity: path.join("none") };
        assert_eq!(neither.find().unwrap(), None);

        File::options().write(true).open(&device.file).unwrap().set_len(3 << 20).unwrap();
        device.grow(&found, 3 << 20).unwrap();
        assert_eq!(without_file.find().unwrap().unwrap().size().unwrap(), 3 << 20);

        // The next binding of the same device is another one.
        device.detach(&found).unwrap();
        assert_eq!(device.find().unwrap(), None);
        let next = LoopDevice { file: device.file.clone(), identity: path.join("next") };
        next.attach(true).unwrap();
        let _cleanup = Cleanup(&next);
        assert_eq!(without_file.find().unwrap(), None);
    }
}
