//! What the tests against a real Ceph share: where the lab is, and a RADOS namespace for each test.

#![allow(dead_code, unreachable_pub, reason = "each test target uses a part of this")]

pub mod bytes;
pub mod driver;
pub mod random;
pub mod releases;
pub mod rpcs;
pub mod scrape;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use cinderblock::rbd::ceph::{ConnectOptions, Timeouts, connect};
use cinderblock::rbd::{Cluster, Errno, ImageKey, Key, OpenMode, Pool, Release, Tolerate};
use cinderblock::volume::Suspect;

/// The pool the lab makes.
pub const POOL: &str = "rbd";

/// How long a test waits for what is sure to come. It only ends tests that fail, so a busy machine
/// has time enough.
pub const PATIENCE: Duration = Duration::from_mins(5);

/// The program that brings labs up.
const LAB: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/lab/ceph");

/// A running lab, as `lab/ceph env` describes it.
pub struct Lab {
    pub monitors: String,
    pub fsid: String,
    pub user: String,
    pub key: Key,
    /// The file that holds the key.
    pub key_file: PathBuf,
    pub ceph_conf: PathBuf,
    /// The release of the daemons. That of librbd is in `ceph::libraries()`.
    pub daemons: Release,
}

impl Lab {
    /// The lab in the environment. Fails the test when there is none.
    pub fn from_environment() -> Lab {
        Lab::of(|name| {
            std::env::var(name).unwrap_or_else(|_| {
                panic!("{name} is not set: run `make test`, or `lab/ceph up` and `eval \"$(lab/ceph env)\"`")
            })
        })
    }

    /// The lab that `lab/ceph env` describes with these variables.
    fn of(variable: impl Fn(&str) -> String) -> Lab {
        let key_file = variable("LAB_KEY_FILE");
        let key = std::fs::read_to_string(&key_file)
            .unwrap_or_else(|error| panic!("{key_file}: {error}"));
        Lab {
            monitors: variable("LAB_MONITORS"),
            fsid: variable("LAB_FSID"),
            user: variable("LAB_USER"),
            key: Key::new(&key),
            key_file: key_file.into(),
            ceph_conf: variable("CEPH_CONF").into(),
            daemons: Release(variable("LAB_RELEASE").parse().unwrap()),
        }
    }

    /// How to connect without any file.
    pub fn options(&self) -> ConnectOptions {
        ConnectOptions {
            monitors: vec![self.monitors.clone()],
            ceph_conf: None,
            user: self.user.clone(),
            key: Some(self.key.clone()),
            timeouts: Timeouts::default(),
        }
    }

    /// A connection of its own.
    pub fn connect(&self) -> Arc<dyn Cluster> {
        connect(&self.options()).unwrap()
    }

    /// Runs the command that follows `before` in a message, as it is, as the lab's administrator.
    /// What it says when it fails.
    pub fn run_from_message(&self, message: &str, before: &str) -> Result<(), String> {
        let (_, command) =
            message.split_once(before).unwrap_or_else(|| panic!("no command in {message:?}"));
        let output = Command::new("sh")
            .args(["-c", command])
            .env("CEPH_CONF", &self.ceph_conf)
            .env("CEPH_ARGS", format!("--id {}", self.user))
            .output()
            .unwrap();
        let said = || format!("{command}: {}", String::from_utf8_lossy(&output.stderr));
        if output.status.success() { Ok(()) } else { Err(said()) }
    }

    /// Runs one of Ceph's programs and gives its output. Fails the test when the program fails.
    pub fn run(&self, program: &str, arguments: &[&str]) -> String {
        self.try_run(program, arguments)
            .unwrap_or_else(|errors| panic!("{program} {arguments:?}: {errors}"))
    }

    /// Makes a user, and gives its name and key. It is there until [`Lab::remove_user`], or with
    /// the lab.
    pub fn user(&self, name: &str, capabilities: &[&str]) -> (String, Key) {
        let name = format!("{name}-{}", std::process::id());
        let entity = format!("client.{name}");
        let key =
            self.run("ceph", &[&["auth", "get-or-create-key", &entity], capabilities].concat());
        (name, Key::new(&key))
    }

    /// Removes a user.
    pub fn remove_user(&self, name: &str) {
        self.run("ceph", &["auth", "rm", &format!("client.{name}")]);
    }

    /// As [`Lab::run`], but gives what a failing program said.
    pub fn try_run(&self, program: &str, arguments: &[&str]) -> Result<String, String> {
        let mut command = Command::new("timeout");
        command
            .arg(PATIENCE.as_secs().to_string())
            .arg(program)
            .arg("--conf")
            .arg(&self.ceph_conf)
            .arg("--id")
            .arg(&self.user)
            .args(arguments);
        let output = command.output().map_err(|error| error.to_string())?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned());
        }
        String::from_utf8(output.stdout).map_err(|error| error.to_string())
    }
}

/// A lab of the test's own, whose daemons it may stop. Dropping it takes it down.
pub struct OwnLab {
    lab: Lab,
    directory: tempfile::TempDir,
}

impl OwnLab {
    /// Brings it up, with quick monitor rounds.
    pub fn up() -> OwnLab {
        OwnLab::up_with(&["--monitor-round", "0.05"])
    }

    /// Brings it up with options of `lab/ceph up`.
    pub fn up_with(options: &[&str]) -> OwnLab {
        let directory = tempfile::tempdir().unwrap();
        let folder = directory.path().join("ceph");
        lab_command(&folder, &[&["up"], options].concat());
        // The exports are for a shell, so a shell reads them.
        let script = format!("eval \"$('{LAB}' env --dir '{}')\"; env", folder.display());
        let output = Command::new("sh").arg("-c").arg(script).output().unwrap();
        let environment = String::from_utf8(output.stdout).unwrap();
        let variable = |name: &str| {
            let value =
                environment.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
            value.unwrap_or_else(|| panic!("lab/ceph env has no {name}: {environment}")).to_string()
        };
        OwnLab { lab: Lab::of(variable), directory }
    }

    /// Registers a RADOS namespace, which goes with the lab.
    pub fn namespace(&self, name: &str) -> String {
        self.lab.run("rbd", &["namespace", "create", "--pool", POOL, "--namespace", name]);
        name.to_string()
    }

    /// `stop`, `cont`, `kill` or `start` a daemon: mon, mgr or osd.
    pub fn daemon(&self, action: &str, daemon: &str) {
        lab_command(&self.directory.path().join("ceph"), &[action, daemon]);
    }

    /// Replaces a daemon by one of that release. Takes `--objectstore bluestore`.
    pub fn upgrade(&self, daemon: &str, release: &str) {
        lab_command(&self.directory.path().join("ceph"), &["upgrade", daemon, release]);
    }
}

impl std::ops::Deref for OwnLab {
    type Target = Lab;

    fn deref(&self) -> &Lab {
        &self.lab
    }
}

impl Drop for OwnLab {
    fn drop(&mut self) {
        lab_command(&self.directory.path().join("ceph"), &["down"]);
    }
}

fn lab_command(folder: &std::path::Path, arguments: &[&str]) -> String {
    let output = Command::new(LAB).args(arguments).arg("--dir").arg(folder).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "lab/ceph {arguments:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

/// A RADOS namespace of the lab's pool, for one test. Whatever a failing test leaves in it is
/// removed with it.
pub struct Namespace<'a> {
    lab: &'a Lab,
    pub name: String,
}

impl<'a> Namespace<'a> {
    /// Registers a new one.
    pub fn new(lab: &'a Lab) -> Namespace<'a> {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let name =
            format!("test-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        lab.run("rbd", &["namespace", "create", "--pool", POOL, "--namespace", &name]);
        Namespace { lab, name }
    }

    /// The namespace over a connection.
    pub fn pool(&self, cluster: &dyn Cluster) -> Arc<dyn Pool> {
        cluster.pool(POOL, &self.name).unwrap()
    }

    /// The leak check: fails when anything is left but the objects librbd keeps for itself, which
    /// it removes.
    pub fn assert_empty(&self) {
        let pool = self.pool(&*self.lab.connect());
        for (object, prefix) in [("rbd_directory", "name_"), ("rbd_trash", "id_")] {
            let page = pool.omap_list(object, "", 100).unwrap();
            let left: Vec<_> =
                page.entries.iter().filter(|(key, _)| key.starts_with(prefix)).collect();
            assert!(left.is_empty(), "{object} still holds {left:?}");
        }
        for object in ["rbd_children", "rbd_directory", "rbd_info", "rbd_trash"] {
            pool.remove_object(object).tolerate(Errno::ENOENT).unwrap();
        }
        // OSDs drop the objects of removed snapshots in their own time.
        wait_until("nothing is left in the namespace", || {
            let left = self.objects();
            if left.is_empty() { Ok(()) } else { Err(left) }
        });
    }

    /// The leak check of the driver's own records: fails when the catalogue or the journal of any
    /// instance holds a key, then removes their empty objects.
    pub fn assert_nothing_is_recorded(&self) {
        let pool = self.pool(&*self.lab.connect());
        wait_until_settled(&*pool);
        for object in self.objects().iter().filter(|object| object.starts_with("cinderblock.")) {
            let page = pool.omap_list(object, "", 100).unwrap();
            let keys: Vec<_> = page.entries.iter().map(|(key, _)| key).collect();
            assert!(keys.is_empty(), "{object} still holds {keys:?}");
            pool.remove_object(object).unwrap();
        }
    }

    /// Both leak checks.
    pub fn assert_nothing_is_left(&self) {
        self.assert_nothing_is_recorded();
        self.assert_empty();
    }

    /// The names of all objects.
    pub fn objects(&self) -> BTreeSet<String> {
        let output = self.lab.run("rados", &["--pool", POOL, "--namespace", &self.name, "ls"]);
        output.lines().map(str::to_owned).collect()
    }
}

impl Drop for Namespace<'_> {
    fn drop(&mut self) {
        let arguments = ["namespace", "remove", "--pool", POOL, "--namespace", &self.name];
        if !thread::panicking() {
            self.lab.run("rbd", &arguments);
            return;
        }
        // A test that failed may have left anything; a second panic would hide why.
        let place = ["--pool", POOL, "--namespace", &self.name];
        let objects =
            self.lab.try_run("rados", &[&place[..], &["ls"]].concat()).unwrap_or_default();
        for object in objects.lines() {
            let _ = self.lab.try_run("rados", &[&place[..], &["rm", object]].concat());
        }
        let _ = self.lab.try_run("rbd", &arguments);
    }
}

/// The keys of the journal there that a driver is yet to settle: all but those of links that still
/// stand, which were about to be cut and were not.
pub fn unsettled(pool: &dyn Pool) -> Vec<String> {
    let stands = |suspect: &Suspect| {
        let Some(child) = &suspect.child else { return false };
        let home = pool.cluster().pool(&suspect.pool, &suspect.namespace).unwrap();
        let Ok(image) = home.open_image(ImageKey::Id(&suspect.image_id), OpenMode::ReadOnly) else {
            return false;
        };
        let children = image.children(suspect.snapshot).unwrap_or_default();
        children.iter().any(|listed| listed.image_id == child.image_id)
    };
    let page = pool.omap_list("cinderblock.default.journal", "", 1000).unwrap();
    let entries = page.entries.into_iter();
    entries
        .filter(|(_, value)| !serde_json::from_slice(value).is_ok_and(|suspect| stands(&suspect)))
        .map(|(key, _)| key)
        .collect()
}

/// Waits until the driver has settled what its answers left to be done.
pub fn wait_until_settled(pool: &dyn Pool) {
    wait_until("the journal is settled", || {
        let left = unsettled(pool);
        if left.is_empty() { Ok(()) } else { Err(left) }
    });
}

/// Waits until `condition` gives a value; what it gives instead is shown when it does not within
/// [`PATIENCE`].
pub fn wait_until<T, E: std::fmt::Debug>(
    what: &str,
    mut condition: impl FnMut() -> Result<T, E>,
) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match condition() {
            Ok(value) => return value,
            Err(instead) if Instant::now() > deadline => {
                panic!("waited in vain until {what}: {instead:?}")
            }
            Err(_) => thread::sleep(Duration::from_millis(50)),
        }
    }
}
