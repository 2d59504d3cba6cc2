//! What the tests of the node stand on: a real Ceph told by the environment, one image per test,
//! and the proof that a test left nothing behind.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use cinderblock::node::attach::{Image, Mounter};
use cinderblock::node::{
    Access, AccessMode, Capability, Expand, FsType, Illness, MapOptions, Node, Publish, Result,
    Stage,
};
use cinderblock::rbd::ceph::{ConnectOptions, Timeouts, connect};
use cinderblock::rbd::{Key, Pool};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

pub(crate) const MIB: u64 = 1 << 20;

/// Long enough for anything that should happen at once on a busy machine.
pub(crate) const SOON: Duration = Duration::from_mins(5);

/// A variable `lab/ceph env` sets.
pub(crate) fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| {
        panic!(
            "{name} is not set: run `lab/ceph up --namespace rbd/tests` and `eval \"$(lab/ceph env)\"` first"
        )
    })
}

/// How volumes are attached: as NODE_MOUNTER says, through FUSE without it.
pub(crate) fn mounter() -> Mounter {
    mounter_name().parse().unwrap()
}

/// The same as a StorageClass says it.
pub(crate) fn mounter_name() -> &'static str {
    match std::env::var("NODE_MOUNTER").as_deref() {
        Err(_) | Ok("fuse") => "fuse",
        Ok("rbd") => "rbd",
        Ok("rbd-nbd") => "rbd-nbd",
        Ok(other) => panic!("NODE_MOUNTER is {other}"),
    }
}

/// The lab's key, without its final newline.
pub(crate) fn key() -> String {
    let path = variable("LAB_KEY_FILE");
    std::fs::read_to_string(&path)
        .unwrap_or_else(|error| panic!("LAB_KEY_FILE {path}: {error}"))
        .trim()
        .to_owned()
}

/// Runs `rbd` with CEPH_CONF and LAB_USER, and returns whether it succeeded and what it printed.
pub(crate) fn rbd(arguments: &[&str]) -> (bool, String) {
    variable("CEPH_CONF");
    let user = variable("LAB_USER");
    let output = Command::new("rbd")
        .args(["--id", &user])
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

/// The bytes of a hexadecimal dump as `rados` prints it: an offset, up to 16 bytes, and the text
/// they are.
fn bytes_of(dump: &str) -> Vec<u8> {
    let rows = dump.lines().filter_map(|line| line.split_once("  ")?.1.split_once('|'));
    let digits = rows.flat_map(|(digits, _)| digits.split_whitespace());
    digits.map(|digits| u8::from_str_radix(digits, 16).unwrap()).collect()
}

/// Runs `rados` in the pool rbd: what it prints, or its errors. In a guest it runs on the machine
/// outside, whose files are others.
pub(crate) fn rados(arguments: &[&str]) -> std::result::Result<String, String> {
    ask("rados", &[&["--pool", "rbd"], arguments].concat())
}

/// Runs `ceph` in the same way.
pub(crate) fn ceph(arguments: &[&str]) -> std::result::Result<String, String> {
    ask("ceph", arguments)
}

fn ask(program: &str, arguments: &[&str]) -> std::result::Result<String, String> {
    let user = variable("LAB_USER");
    let output = Command::new(program)
        .args(["--id", &user])
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

/// The pool rbd, over a connection of its own as LAB_USER.
pub(crate) fn pool() -> Arc<dyn Pool> {
    let cluster = connect(&ConnectOptions {
        monitors: vec![variable("LAB_MONITORS")],
        ceph_conf: None,
        user: variable("LAB_USER"),
        key: Some(Key::new(&key())),
        timeouts: Timeouts::default(),
    });
    cluster.unwrap().pool("rbd", "").unwrap()
}

/// Runs a program that must succeed.
pub(crate) fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output().unwrap();
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{program} {arguments:?}: {text}");
    text
}

/// Waits until `condition` holds.
pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !condition() {
        assert!(Instant::now() < deadline, "waited {SOON:?} in vain for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// One image and the places of one node where it goes. [`Volume::finish`] ends every test.
pub(crate) struct Volume {
    folder: TempDir,
    pub(crate) node: Node,
    pub(crate) image: Image,
    pub(crate) capability: Capability,
    pub(crate) mkfs_options: Option<String>,
    pub(crate) map_options: Option<String>,
    pub(crate) created_empty: bool,
    /// Name and sequence number of loop devices whose file is nowhere to be seen any more.
    orphans: Mutex<Vec<(String, String)>>,
}

pub(crate) fn ext4() -> Access {
    Access::Mount { fs_type: Some(FsType::Ext4), flags: vec![] }
}

pub(crate) fn xfs() -> Access {
    Access::Mount { fs_type: Some(FsType::Xfs), flags: vec![] }
}

impl Volume {
    /// A new image of `mib` MiB in the pool rbd, to be used by any number of pods of this node.
    pub(crate) fn new(mib: u64, access: Access) -> Self {
        let volume = Self::of_image(access);
        let (done, text) =
            rbd(&["create", "--size", &format!("{mib}M"), &volume.image.to_string()]);
        assert!(done, "{text}");
        volume
    }

    /// A volume whose image the test makes itself, under the name in `image`.
    pub(crate) fn of_image(access: Access) -> Self {
        let folder = tempfile::Builder::new().prefix("node-test-").tempdir().unwrap();
        let name = folder.path().file_name().unwrap().to_string_lossy().into_owned();
        std::fs::create_dir(folder.path().join("staging")).unwrap();
        let image = Image {
            pool: "rbd".into(),
            namespace: String::new(),
            name: name.replace('.', ""),
            monitors: variable("LAB_MONITORS"),
            user: Some(variable("LAB_USER")),
        };
        let node = Node::new(&folder.path().join("state")).unwrap();
        let capability = Capability { access, mode: AccessMode::SingleNodeMultiWriter };
        Self {
            folder,
            node,
            image,
            capability,
            mkfs_options: None,
            map_options: None,
            created_empty: true,
            orphans: Mutex::default(),
        }
    }

    pub(crate) fn id(&self) -> String {
        format!("lab/{}", self.image)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn staging(&self) -> PathBuf {
        self.path("staging")
    }

    pub(crate) fn stage(&self) -> Result<()> {
        self.stage_with_key(&key())
    }

    pub(crate) fn stage_with_key(&self, key: &str) -> Result<()> {
        self.node.stage(&Stage {
            volume_id: self.id(),
            image: self.image.clone(),
            key: Some(Key::new(key)),
            mounter: mounter(),
            map_options: self
                .map_options
                .as_deref()
                .map_or_else(MapOptions::default, |text| MapOptions::parse(text).unwrap()),
            capability: self.capability.clone(),
            mkfs_options: self.mkfs_options.clone(),
            notes: None,
            created_empty: self.created_empty,
            staging_path: self.staging(),
        })
    }

    /// What a controller hands out for the notes of the volume's clients. The notes are made when
    /// they are not there yet.
    pub(crate) fn publish_context(&self) -> BTreeMap<String, String> {
        let (object, key) = (self.notes_object(), "notes/volume/node-1");
        if self.noted().is_none() {
            let notes = r#"{"version":1,"node":"node-1","token":"token","clients":[]}"#;
            rados(&["setomapval", &object, key, notes]).unwrap();
        }
        [("noteObject", object.as_str()), ("noteKey", key), ("noteToken", "token")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into()
    }

    fn notes_object(&self) -> String {
        format!("notes-{}", self.image.name)
    }

    /// The addresses of the clients that are noted; `None` when no notes are made.
    fn noted(&self) -> Option<BTreeSet<String>> {
        let dump = rados(&["getomapval", &self.notes_object(), "notes/volume/node-1"]).ok()?;
        let notes: serde_json::Value = serde_json::from_slice(&bytes_of(&dump)).unwrap();
        let clients = notes["clients"].as_array().unwrap().iter();
        Some(clients.map(|client| client["address"].as_str().unwrap().to_owned()).collect())
    }

    /// The addresses of the clients that watch the image.
    pub(crate) fn watchers(&self) -> Vec<String> {
        let (_, status) = rbd(&["status", "--format", "json", &self.image.to_string()]);
        let status: serde_json::Value = serde_json::from_str(&status).unwrap();
        let watchers = status["watchers"].as_array().unwrap().iter();
        watchers.map(|watcher| watcher["address"].as_str().unwrap().to_owned()).collect()
    }

    /// Checks that who watches the image is noted.
    pub(crate) fn assert_noted(&self) {
        let noted = self.noted().unwrap();
        // A driver that died while it set a mark watches the image for half a minute more, and
        // writes no data.
        let watchers = self.watchers();
        // Two after a driver that died while it grew the volume.
        assert!(noted.len() <= 2, "{noted:?}, and {watchers:?} watch the image");
        assert!(watchers.iter().any(|address| noted.contains(address)), "{noted:?} {watchers:?}");
    }

    pub(crate) fn unstage(&self) -> Result<()> {
        self.node.unstage(&self.id(), &self.staging())
    }

    /// Publishes at the target `name`.
    pub(crate) fn publish(&self, name: &str, read_only: bool) -> Result<()> {
        self.publish_as(name, read_only, self.capability.clone())
    }

    pub(crate) fn publish_as(
        &self,
        name: &str,
        read_only: bool,
        capability: Capability,
    ) -> Result<()> {
        self.node.publish(&Publish {
            volume_id: self.id(),
            staging_path: self.staging(),
            target_path: self.path(name),
            capability,
            read_only,
        })
    }

    pub(crate) fn unpublish(&self, name: &str) -> Result<()> {
        self.node.unpublish(&self.id(), &self.path(name))
    }

    /// Grows the image to `mib` MiB, as the controller does.
    pub(crate) fn grow_image(&self, mib: u64) {
        let (done, text) = rbd(&[
            "resize",
            "--no-progress",
            "--size",
            &format!("{mib}M"),
            &self.image.to_string(),
        ]);
        assert!(done, "{text}");
    }

    /// Grows what the node has of it, as seen at the path `name`, to `mib` MiB.
    pub(crate) fn expand(&self, name: &str, mib: u64) -> Result<u64> {
        let user = Some((variable("LAB_USER"), Key::new(&key())));
        self.node.expand(
            &self.id(),
            &self.path(name),
            &Expand { required: mib * MIB, user, ..Expand::default() },
        )
    }

    pub(crate) fn illnesses(&self, name: &str) -> Vec<Illness> {
        self.node.illnesses(&self.id(), &self.path(name)).unwrap()
    }

    /// The first of them.
    pub(crate) fn illness(&self, name: &str) -> Option<Illness> {
        self.illnesses(name).into_iter().next()
    }

    /// Forgets the node and takes up its work with a new one, as a restarted driver does.
    pub(crate) fn restart(&mut self) {
        self.node = Node::new(&self.path("state")).unwrap();
    }

    /// The storage daemons of this test.
    pub(crate) fn daemons(&self) -> Vec<u32> {
        let processes = processes_about(self.folder.path()).into_iter();
        processes
            .filter(|(_, line)| line.contains("qemu-storage-daemon"))
            .map(|(process, _)| process)
            .collect()
    }

    /// The block devices of this test, by name, whatever its mounter.
    pub(crate) fn devices(&self) -> Vec<String> {
        match mounter() {
            Mounter::Fuse => self.loop_devices(),
            Mounter::Rbd => self.krbd_devices(),
            Mounter::RbdNbd => self.nbd_devices(),
        }
    }

    /// The one block device of this test.
    pub(crate) fn device(&self) -> String {
        let devices = self.devices();
        let [device] = &devices[..] else { panic!("not one device: {devices:?}") };
        device.clone()
    }

    /// Checks that the image is attached, and once.
    pub(crate) fn assert_attached_once(&self) {
        self.device();
        match mounter() {
            Mounter::Fuse => assert_eq!(self.daemons().len(), 1),
            Mounter::Rbd => {}
            Mounter::RbdNbd => assert_eq!(self.nbd_servers().len(), 1),
        }
    }

    /// What krbd has mapped of this test's image.
    fn krbd_devices(&self) -> Vec<String> {
        let folder = std::fs::read_dir("/sys/bus/rbd/devices").into_iter().flatten().flatten();
        let own = folder.filter(|entry| {
            let name = std::fs::read_to_string(entry.path().join("name")).unwrap_or_default();
            name.trim() == self.image.name
        });
        own.map(|entry| format!("rbd{}", entry.file_name().display())).collect()
    }

    /// The network block devices of this test, by name.
    fn nbd_devices(&self) -> Vec<String> {
        let digest = Sha256::digest(self.id().as_bytes());
        let digits = format!("{:032x}", u128::from_be_bytes(digest[..16].try_into().unwrap()));
        let folder = std::fs::read_dir("/sys/block").unwrap().flatten();
        let own = folder.filter(|entry| {
            let backend = std::fs::read_to_string(entry.path().join("backend")).unwrap_or_default();
            backend.trim_end().ends_with(&digits)
        });
        own.map(|entry| entry.file_name().display().to_string()).collect()
    }

    /// The processes of rbd-nbd that serve this test's image.
    pub(crate) fn nbd_servers(&self) -> Vec<u32> {
        let processes = processes_about(Path::new(&self.image.to_string())).into_iter();
        processes
            .filter(|(_, line)| line.starts_with("rbd-nbd"))
            .map(|(process, _)| process)
            .collect()
    }

    /// Kills the process of rbd-nbd, and returns when it is gone.
    pub(crate) fn end_nbd_server(&self) {
        let [server] = self.nbd_servers()[..] else {
            panic!("not one process: {:?}", self.nbd_servers())
        };
        run("kill", &["-s", "KILL", &server.to_string()]);
        wait_until("the process's end", || self.nbd_servers().is_empty());
    }

    /// The loop devices of this test, by name.
    pub(crate) fn loop_devices(&self) -> Vec<String> {
        let folder = self.folder.path().canonicalize().unwrap();
        let by_file =
            loop_devices_in_use().filter(|(_, file)| Path::new(file).starts_with(&folder));
        let orphans = self.orphans.lock().unwrap();
        let by_number = orphans.iter().filter(|(name, number)| sequence_number(name) == *number);
        by_file.map(|(name, _)| name).chain(by_number.map(|(name, _)| name.clone())).collect()
    }

    /// The lines of the mount table that name this test's folder.
    pub(crate) fn mounts(&self) -> Vec<String> {
        let folder = self.folder.path().canonicalize().unwrap().display().to_string();
        let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        table.lines().filter(|line| line.contains(&folder)).map(str::to_owned).collect()
    }

    /// Ends the storage daemon by `signal`, and returns when it is gone.
    pub(crate) fn end_daemon(&self, signal: &str) {
        let devices = self.loop_devices();
        let [daemon] = self.daemons()[..] else { panic!("not one daemon: {:?}", self.daemons()) };
        run("kill", &["-s", signal, &daemon.to_string()]);
        wait_until("the daemon's end", || self.daemons().is_empty());
        // The kernel may have lost the name of what they stand on.
        let named: Vec<_> = self.loop_devices();
        let orphans = devices.into_iter().filter(|name| !named.contains(name));
        self.orphans
            .lock()
            .unwrap()
            .extend(orphans.map(|name| (name.clone(), sequence_number(&name))));
        self.end_watches();
    }

    /// Has Ceph forget and refuse the clients of the image, dead or alive.
    pub(crate) fn end_watches(&self) {
        for address in self.watchers() {
            run(
                "ceph",
                &["--id", &variable("LAB_USER"), "osd", "blocklist", "add", &address, "60"],
            );
        }
        let has_watchers = || rbd(&["status", &self.image.to_string()]).1.contains("watcher=");
        wait_until("the watches of dead clients to end", || !has_watchers());
    }

    /// [`Volume::finish`] after drivers were killed: one that died while it made a note in Ceph
    /// would watch the image for half a minute more.
    pub(crate) fn finish_after_kills(self) {
        self.assert_nothing_on_the_node();
        if rbd(&["status", &self.image.to_string()]).1.contains("watcher=") {
            self.end_watches();
        }
        self.finish();
    }

    /// Checks that nothing of the volume is left on the node.
    pub(crate) fn assert_nothing_on_the_node(&self) {
        assert_eq!(self.mounts(), Vec::<String>::new(), "mounts");
        assert_eq!(self.devices(), Vec::<String>::new(), "devices");
        assert_eq!([self.daemons(), self.nbd_servers()].concat(), Vec::<u32>::new(), "daemons");
        let left: Vec<PathBuf> =
            std::fs::read_dir(self.path("state")).unwrap().flatten().map(|e| e.path()).collect();
        // Drivers that were killed owe the removal of their notes.
        let left: Vec<_> = left.into_iter().filter(|path| !path.ends_with("owed")).collect();
        assert_eq!(left, Vec::<PathBuf>::new(), "records");
    }

    /// Checks that nothing of the volume is left on the node, removes the image, and checks that
    /// this worked, which it does only when no client has the image open.
    pub(crate) fn finish(self) {
        self.assert_nothing_on_the_node();
        assert_eq!(processes_about(self.folder.path()), [], "processes");
        let (done, text) = rbd(&["rm", "--no-progress", &self.image.to_string()]);
        assert!(done, "{text}");
        // Most have none.
        let _ = rados(&["rm", &self.notes_object()]);
    }
}

/// After a failed test: takes down by hand what it left. After a good one there is nothing to do.
impl Drop for Volume {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        for mount in self.mounts().iter().rev().filter(|line| !line.contains(" - fuse ")) {
            let _ =
                Command::new("umount").arg(mount.split(' ').nth(4).unwrap_or_default()).status();
        }
        for device in self.krbd_devices() {
            let _ = std::fs::write(
                "/sys/bus/rbd/remove_single_major",
                device.trim_start_matches("rbd"),
            );
        }
        for device in self.nbd_devices() {
            let _ = Command::new("rbd-nbd")
                .args(["unmap", "--try-netlink", &format!("/dev/{device}")])
                .status();
        }
        for device in self.loop_devices() {
            let _ = Command::new("losetup").args(["--detach", &format!("/dev/{device}")]).status();
        }
        for daemon in self.daemons() {
            let _ = Command::new("kill").arg(daemon.to_string()).status();
        }
        let deadline = Instant::now() + SOON;
        while !self.daemons().is_empty() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
        for mount in self.mounts() {
            let _ =
                Command::new("umount").arg(mount.split(' ').nth(4).unwrap_or_default()).status();
        }
        rbd(&["rm", "--no-progress", &self.image.to_string()]);
    }
}

/// Name and file of the loop devices in use on this machine.
fn loop_devices_in_use() -> impl Iterator<Item = (String, String)> {
    std::fs::read_dir("/sys/block").unwrap().flatten().filter_map(|entry| {
        let file = std::fs::read_to_string(entry.path().join("loop/backing_file")).ok()?;
        Some((entry.file_name().to_string_lossy().into_owned(), file))
    })
}

/// The number the kernel gives to each use of a block device anew.
fn sequence_number(device: &str) -> String {
    std::fs::read_to_string(format!("/sys/block/{device}/diskseq")).unwrap()
}

/// Number and command line of the processes with `path` on it.
fn processes_about(path: &Path) -> Vec<(u32, String)> {
    let path = path.display().to_string();
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let lines = processes.filter_map(|entry| {
        let line = std::fs::read(entry.path().join("cmdline")).ok()?;
        Some((
            entry.file_name().to_str()?.parse().ok()?,
            String::from_utf8_lossy(&line).into_owned(),
        ))
    });
    lines.filter(|(_, line)| line.contains(&path)).collect()
}

/// Tells a thread to stop when it is dropped, also by a test that fails.
pub(crate) struct StopOnDrop<'a>(pub(crate) &'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Writes `data` and makes it durable.
pub(crate) fn write(path: &Path, data: &[u8]) {
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .unwrap();
    file.write_all(data).unwrap();
    file.sync_all().unwrap();
}

/// `length` bytes that differ with `seed` and from block to block.
pub(crate) fn pattern(seed: u8, length: usize) -> Vec<u8> {
    let mut state = u64::from(seed) + 1;
    let next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    std::iter::repeat_with(next).flatten().take(length).collect()
}
