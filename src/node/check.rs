//! What this machine lacks for being a node, found without attaching anything.

use std::fs;
use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;

use super::attach::Mounter;
use super::kernel_key::linux_version;
use super::programs::{self, Program};
use crate::rbd::{Key, KeyType};

/// The first Linux whose krbd knows keys of the type aes256k.
const WITH_AES256K: (u32, u32) = (7, 0);

/// Something that is missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lack {
    /// What it is.
    pub what: String,
    /// What to do about it.
    pub remedy: String,
}

/// Whether the programs that every node needs are installed.
pub fn programs() -> Result<(), Lack> {
    programs::check().map_err(|error| lack(&error))
}

/// Whether volumes can be attached by `mounter`, whose users have keys like `keys`; what it stands
/// on, if so.
pub fn mounter(mounter: Mounter, keys: &[Key]) -> Result<String, Lack> {
    let kernel = read("/proc/sys/kernel/osrelease");
    let name = mounter.name();
    match mounter {
        Mounter::Rbd => {
            module("rbd", "/sys/bus/rbd", &kernel)?;
            if keys.iter().any(|key| key.key_type() == Some(KeyType::Aes256k))
                && linux_version() < WITH_AES256K
            {
                return Err(Lack {
                    what: format!("krbd of Linux {kernel} does not know keys of the type aes256k"),
                    remedy: "run Linux 7.0 or newer, or give the user a key of the type aes (ceph auth get-or-create … --key_type aes), or set \
                             the StorageClass parameter mounter to rbd-nbd or fuse"
                        .to_owned(),
                });
            }
        }
        Mounter::RbdNbd => {
            module("nbd", "/sys/module/nbd", &kernel)?;
            Program::RbdNbd.path().map_err(|error| lack(&error))?;
        }
        Mounter::Fuse => {
            device("/dev/fuse", "fuse")?;
            device("/dev/loop-control", "loop")?;
            Program::QemuStorageDaemon.path().map_err(|error| lack(&error))?;
        }
    }
    Ok(format!("{name} works here, on Linux {kernel}"))
}

/// Whether kubelet's folder is there, and passes on what is mounted in it.
pub fn kubelet(folder: &Path) -> Result<(), Lack> {
    let shown = folder.display();
    if !folder.join("plugins").is_dir() && !folder.join("pods").is_dir() {
        return Err(Lack {
            what: format!("{shown} is not kubelet's folder: it has neither pods nor plugins"),
            remedy: "set node.kubeletDir in the chart's values to what kubelet has as --root-dir"
                .to_owned(),
        });
    }
    if !is_shared(&read("/proc/self/mountinfo"), folder) {
        return Err(Lack {
            what: format!("what is mounted under {shown} is not seen outside of this container"),
            remedy: format!(
                "mount {shown} with mountPropagation: Bidirectional; on the host, run: mount --make-rshared /"
            ),
        });
    }
    Ok(())
}

/// Whether the kernel has a module, loaded (then `sign` is there) or on disk.
fn module(name: &str, sign: &str, kernel: &str) -> Result<(), Lack> {
    let is_listed = |list: &str| {
        let listed = read(&format!("/lib/modules/{kernel}/{list}"));
        let starts = [format!("/{name}.ko"), format!("/{name}.ko.")];
        listed.lines().any(|line| {
            let path = line.split(':').next().unwrap_or_default();
            path.ends_with(&starts[0]) || path.contains(&starts[1])
        })
    };
    if Path::new(sign).exists() || is_listed("modules.dep") || is_listed("modules.builtin") {
        return Ok(());
    }
    Err(Lack {
        what: format!("Linux {kernel} has no {name} module here"),
        remedy: format!(
            "install the kernel's package with the {name} module, or set the StorageClass parameter mounter to another; in a container, \
             mount the host's /lib/modules"
        ),
    })
}

fn device(path: &str, module: &str) -> Result<(), Lack> {
    if fs::metadata(path).is_ok_and(|found| found.file_type().is_char_device()) {
        return Ok(());
    }
    Err(Lack {
        what: format!("{path} is not there"),
        remedy: format!(
            "load the module (modprobe {module}); in a container, run it privileged with the host's /dev"
        ),
    })
}

/// Whether what is mounted under `folder` is seen by other mount namespaces, as this mount table
/// has it.
fn is_shared(table: &str, folder: &Path) -> bool {
    let mounts = table.lines().filter_map(|line| {
        let fields: Vec<_> = line.split(' ').collect();
        let point = Path::new(*fields.get(4)?);
        folder.starts_with(point).then(|| {
            let mut optional = fields[6..].iter().take_while(|field| **field != "-");
            (point.as_os_str().len(), optional.any(|field| field.starts_with("shared:")))
        })
    });
    // Of several in the same place the last one is on top.
    mounts.max_by_key(|(length, _)| *length).is_some_and(|(_, is_shared)| is_shared)
}

/// The text of a file of the kernel's; empty when there is none.
fn read(path: &str) -> String {
    fs::read_to_string(path).map(|text| text.trim_end().to_owned()).unwrap_or_default()
}

/// The parts of a message that ends in what to do.
fn lack(error: &super::Error) -> Lack {
    let text = error.to_string();
    match text.rsplit_once(": ") {
        Some((what, remedy)) => Lack { what: what.to_owned(), remedy: remedy.to_owned() },
        None => Lack { what: text, remedy: "see the message".to_owned() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_innermost_mount_says_whether_it_is_shared() {
        let table = "1 0 8:1 / / rw shared:1 - ext4 /dev/sda rw
2 1 8:2 / /var rw,noatime - ext4 /dev/sdb rw
3 2 8:2 /k /var/lib/kubelet rw shared:2 master:1 - ext4 /dev/sdb rw";
        let shared = |folder: &str| is_shared(table, Path::new(folder));
        assert!(shared("/var/lib/kubelet") && shared("/opt/kubelet"));
        assert!(!shared("/var/lib/other"));
        assert!(!is_shared("", Path::new("/var/lib/kubelet")));
    }
}
