//! The built driver as a process, and clients for its socket.

use std::collections::BTreeMap;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use cinderblock::csi::proto::controller_client::ControllerClient;
use cinderblock::csi::proto::identity_client::IdentityClient;
use cinderblock::csi::proto::volume_capability::{
    AccessMode, AccessType, BlockVolume, MountVolume, access_mode,
};
use cinderblock::csi::proto::{
    CapacityRange, CreateSnapshotRequest, CreateVolumeRequest, DeleteSnapshotRequest,
    DeleteVolumeRequest, VolumeCapability, VolumeContentSource, volume_content_source,
};
use tempfile::TempDir;
use tonic::Request;
use tonic::transport::{Channel, Endpoint};

use cinderblock::rbd::Key;

use super::{Lab, PATIENCE, POOL};

/// Bytes of a mebibyte.
pub const MIB: i64 = 1 << 20;

/// A running `cinderblock serve`. Dropping it kills it.
pub struct Driver {
    process: Child,
    directory: TempDir,
}

impl Driver {
    /// Starts the driver with the configuration `config` and waits until it answers on its socket.
    pub fn start(config: &str, arguments: &[&str]) -> Driver {
        Driver::start_in(&[], config, arguments)
    }

    /// The same, with these variables added to its environment.
    pub fn start_in(environment: &[(&str, &str)], config: &str, arguments: &[&str]) -> Driver {
        let command = |_: &Path| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_cinderblock"));
            command.envs(environment.iter().copied());
            command
        };
        Driver::start_by(command, config, arguments)
    }

    /// The same, by a command that ends up as the driver, made for the folder its socket will be
    /// in.
    pub fn start_by(
        command: impl FnOnce(&Path) -> Command,
        config: &str,
        arguments: &[&str],
    ) -> Driver {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("config.yaml"), config).unwrap();
        let log = std::fs::File::create(directory.path().join("log")).unwrap();
        let process = command(directory.path())
            .arg("serve")
            .arg("--endpoint")
            .arg(format!("unix://{}/csi.sock", directory.path().display()))
            .arg("--config")
            .arg(directory.path().join("config.yaml"))
            .args(arguments)
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut driver = Driver { process, directory };
        let deadline = Instant::now() + PATIENCE;
        while UnixStream::connect(driver.socket()).is_err() {
            let ended = driver.process.try_wait().unwrap();
            assert!(ended.is_none() && Instant::now() < deadline, "{ended:?}: {}", driver.log());
            std::thread::sleep(Duration::from_millis(10));
        }
        driver
    }

    /// A controller for the lab's cluster under the name `lab`.
    pub fn controller_for(lab: &Lab) -> Driver {
        Driver::start(&lab_config(lab), &["--role", "controller", "--log-level", "trace"])
    }

    /// Where the socket is.
    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("csi.sock")
    }

    /// The folder its socket, configuration and log are in.
    pub fn folder(&self) -> &Path {
        self.directory.path()
    }

    /// All it has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// A connection for clients.
    pub async fn channel(&self) -> Channel {
        let endpoint = Endpoint::try_from(format!("unix://{}", self.socket().display())).unwrap();
        endpoint.connect().await.unwrap()
    }

    /// A client of the controller service.
    pub async fn controller(&self) -> ControllerClient<Channel> {
        ControllerClient::new(self.channel().await)
    }

    /// A client of the identity service.
    pub async fn identity(&self) -> IdentityClient<Channel> {
        IdentityClient::new(self.channel().await)
    }

    /// Whether it has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        self.process.try_wait().unwrap().is_some()
    }

    /// Waits until it ends by itself, and says how it did.
    pub fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.process.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "the driver still runs: {}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Whether Probe says ready; what it says otherwise.
    pub fn is_ready(&self) -> Result<(), String> {
        let output = Command::new(env!("CARGO_BIN_EXE_cinderblock"))
            .args([
                "call",
                "--output",
                "json",
                "--endpoint",
                &format!("unix://{}", self.socket().display()),
                "probe",
            ])
            .output()
            .unwrap();
        let answer = String::from_utf8_lossy(&output.stdout).to_string();
        if answer.contains("true") { Ok(()) } else { Err(answer) }
    }

    /// Ends it with SIGTERM and sees it go in order, its socket with it. It waits for clients that
    /// do not hear of it, so their runtime needs a thread besides the one this blocks.
    pub fn stop(mut self) {
        self.terminate();
    }

    /// [`Driver::stop`], with its folder and log still there to be looked at.
    pub fn terminate(&mut self) {
        let pid = nix::unistd::Pid::from_raw(self.process.id().try_into().unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        let status = self.process.wait().unwrap();
        assert!(status.success(), "{status}: {}", self.log());
        assert!(!self.socket().exists());
    }

    /// Kills it as a crash would.
    pub fn kill(mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // Gone already when it was stopped.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A controller of a namespace, and one volume there.
pub struct OneVolume {
    pub driver: Driver,
    pub controller: ControllerClient<Channel>,
    pub class: Class,
    /// The volume's id, and its image's name.
    pub id: String,
    pub image: String,
}

impl OneVolume {
    /// With a new volume of so many bytes.
    pub async fn new(lab: &Lab, namespace: &str, bytes: i64) -> OneVolume {
        let driver = Driver::start(
            &lab_config_with_own_user(lab, namespace),
            &["--role", "controller", "--log-level", "trace"],
        );
        let mut controller = driver.controller().await;
        let class = Class::new(lab, namespace);
        let made = controller.create_volume(class.create_volume("vm", bytes)).await.unwrap();
        let id = made.into_inner().volume.unwrap().volume_id;
        let image = id.rsplit('/').next().unwrap().to_owned();
        OneVolume { driver, controller, class, id, image }
    }
}

/// A configuration that names the lab's cluster `lab`.
pub fn lab_config(lab: &Lab) -> String {
    cluster_config("lab", lab)
}

/// One entry of a configuration: the lab's cluster under the name `id`.
pub fn cluster_config(id: &str, lab: &Lab) -> String {
    format!("- clusterID: {id}\n  monitors: [\"{}\"]\n", lab.monitors)
}

/// [`lab_config`] with a user of the driver's own, for the namespace `namespace`.
pub fn lab_config_with_own_user(lab: &Lab, namespace: &str) -> String {
    format!(
        "{}  userID: {}\n  keyFile: {}\n  pools: [{POOL}/{namespace}]\n",
        lab_config(lab),
        lab.user,
        lab.key_file.display()
    )
}

/// The secrets of the lab's user.
pub fn secrets(lab: &Lab) -> BTreeMap<String, String> {
    secrets_of(&lab.user, &lab.key)
}

/// The secrets of a user.
pub fn secrets_of(user: &str, key: &Key) -> BTreeMap<String, String> {
    BTreeMap::from([
        ("userID".to_string(), user.to_string()),
        ("userKey".to_string(), key.expose().to_string()),
    ])
}

/// What the requests of one test have in common.
#[derive(Debug, Clone)]
pub struct Class {
    pub parameters: BTreeMap<String, String>,
    pub secrets: BTreeMap<String, String>,
}

impl Class {
    /// A StorageClass for the lab's pool and the namespace `namespace`.
    pub fn new(lab: &Lab, namespace: &str) -> Class {
        let parameters = [("clusterID", "lab"), ("pool", POOL), ("radosNamespace", namespace)];
        let parameters = parameters.map(|(key, value)| (key.to_string(), value.to_string())).into();
        Class { parameters, secrets: secrets(lab) }
    }

    /// The same as another user.
    #[must_use]
    pub fn of_user(mut self, user: &str, key: &Key) -> Class {
        self.secrets = secrets_of(user, key);
        self
    }

    /// The same with one parameter set.
    #[must_use]
    pub fn with(mut self, key: &str, value: &str) -> Class {
        self.parameters.insert(key.to_string(), value.to_string());
        self
    }

    /// The same with one parameter left out.
    #[must_use]
    pub fn without(mut self, key: &str) -> Class {
        self.parameters.remove(key);
        self
    }

    /// A request for an empty volume of `size` bytes.
    pub fn create_volume(&self, name: &str, size: i64) -> CreateVolumeRequest {
        CreateVolumeRequest {
            name: name.to_string(),
            capacity_range: Some(CapacityRange { required_bytes: size, limit_bytes: 0 }),
            volume_capabilities: vec![filesystem()],
            parameters: self.parameters.clone(),
            secrets: self.secrets.clone(),
            ..CreateVolumeRequest::default()
        }
    }

    /// A request for the end of a volume.
    pub fn delete_volume(&self, volume_id: &str) -> DeleteVolumeRequest {
        DeleteVolumeRequest { volume_id: volume_id.to_string(), secrets: self.secrets.clone() }
    }

    /// A request for a snapshot.
    pub fn create_snapshot(&self, name: &str, volume_id: &str) -> CreateSnapshotRequest {
        CreateSnapshotRequest {
            name: name.to_string(),
            source_volume_id: volume_id.to_string(),
            secrets: self.secrets.clone(),
            ..CreateSnapshotRequest::default()
        }
    }

    /// A request for the end of a snapshot.
    pub fn delete_snapshot(&self, snapshot_id: &str) -> DeleteSnapshotRequest {
        DeleteSnapshotRequest {
            snapshot_id: snapshot_id.to_string(),
            secrets: self.secrets.clone(),
        }
    }
}

/// A mounted ext4 for one node.
pub fn filesystem() -> VolumeCapability {
    VolumeCapability {
        access_type: Some(AccessType::Mount(MountVolume {
            fs_type: "ext4".to_string(),
            ..MountVolume::default()
        })),
        access_mode: Some(AccessMode { mode: access_mode::Mode::SingleNodeWriter.into() }),
    }
}

/// A block device, for one node or for several.
pub fn block(mode: access_mode::Mode) -> VolumeCapability {
    VolumeCapability {
        access_type: Some(AccessType::Block(BlockVolume {})),
        access_mode: Some(AccessMode { mode: mode.into() }),
    }
}

/// A snapshot as the source of a volume.
pub fn from_snapshot(id: &str) -> VolumeContentSource {
    let source = volume_content_source::SnapshotSource { snapshot_id: id.to_string() };
    VolumeContentSource { r#type: Some(volume_content_source::Type::Snapshot(source)) }
}

/// A volume as the source of a volume.
pub fn from_volume(id: &str) -> VolumeContentSource {
    let source = volume_content_source::VolumeSource { volume_id: id.to_string() };
    VolumeContentSource { r#type: Some(volume_content_source::Type::Volume(source)) }
}

/// A request with a deadline that the driver hears of.
pub fn within<T>(seconds: u64, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(Duration::from_secs(seconds));
    request
}
