//! What the kernel said while the driver worked. The reason why it refused a mount is in its log
//! alone: the error number is the same for a damaged filesystem and an option it does not take.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;

use nix::libc::O_NONBLOCK;

/// Longer than any record of the log.
const RECORD_LIMIT: usize = 8192;

/// Levels of syslog up to this one are of trouble: warnings.
const WARNING: u32 = 4;

/// The kernel's log from one moment on; empty where this process may not read it.
#[derive(Debug)]
pub(super) struct KernelLog(Option<File>);

impl KernelLog {
    /// The log from now on.
    pub(super) fn from_now() -> Self {
        let mut options = OpenOptions::new();
        let file = options.read(true).custom_flags(O_NONBLOCK).open("/dev/kmsg");
        Self(file.ok().filter(|mut file| file.seek(SeekFrom::End(0)).is_ok()))
    }

    /// The first thing it said of trouble with the block device of this name.
    pub(super) fn trouble_with(&mut self, device: &str) -> Option<String> {
        let file = self.0.as_mut()?;
        let mut record = [0; RECORD_LIMIT];
        loop {
            match file.read(&mut record) {
                Ok(0) => return None,
                Ok(length) => {
                    let text = trouble(&String::from_utf8_lossy(&record[..length]), device);
                    if text.is_some() {
                        return text;
                    }
                }
                // Records were overwritten before they were read: what is next was not.
                Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
                Err(_) => return None,
            }
        }
    }
}

/// The text of a record, if it is of trouble with the device. A record is
/// `<level and facility>,<number>,<time>,<flags>;<text>`, and lines of properties.
fn trouble(record: &str, device: &str) -> Option<String> {
    let (head, text) = record.split_once(';')?;
    let level = head.split(',').next()?.parse::<u32>().ok()? & 7;
    let text = text.lines().next()?;
    let is_about = text.contains(&format!("({device})")) || text.contains(&format!("{device}:"));
    (level <= WARNING && is_about).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::trouble;

    #[test]
    fn a_record_of_trouble_is_told_by_level_and_device() {
        let text = "EXT4-fs (loop3): VFS: Can't find ext4 filesystem";
        let record = format!("3,7313,10176767040,-;{text}\n SUBSYSTEM=block\n DEVICE=b7:3\n");
        assert_eq!(trouble(&record, "loop3").as_deref(), Some(text));
        assert_eq!(trouble(&record, "loop33"), None);
        assert_eq!(trouble(&record.replacen('3', "6", 1), "loop3"), None);
        assert_eq!(trouble("", "loop3"), None);
    }
}
