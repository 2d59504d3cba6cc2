//! The CSI socket on a real filesystem: who may use it, when it is refused, and how it ends.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking, its helpers too"
)]

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cinderblock::csi::endpoint::Endpoint;
use cinderblock::csi::proto::identity_client::IdentityClient;
use cinderblock::csi::proto::identity_server::{Identity, IdentityServer};
use cinderblock::csi::proto::node_client::NodeClient;
use cinderblock::csi::proto::{
    GetPluginCapabilitiesRequest, GetPluginCapabilitiesResponse, GetPluginInfoRequest,
    GetPluginInfoResponse, NodeGetInfoRequest, ProbeRequest, ProbeResponse,
};
use cinderblock::csi::server::{CsiSocket, ServeError, termination_signal};
use nix::sys::signal::Signal;
use tempfile::TempDir;
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinHandle;
use tonic::service::Routes;
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};

/// Long enough for anything that should happen at once on a busy machine.
const SOON: Duration = Duration::from_mins(5);

/// A plugin whose Probe says that it began and then waits until it is let go.
#[derive(Clone)]
struct Stub {
    probes_begun: Arc<Semaphore>,
    probes_let_go: Arc<Semaphore>,
}

#[tonic::async_trait]
impl Identity for Stub {
    async fn get_plugin_info(
        &self,
        _: Request<GetPluginInfoRequest>,
    ) -> Result<Response<GetPluginInfoResponse>, Status> {
        Ok(Response::new(GetPluginInfoResponse { name: "stub".into(), ..Default::default() }))
    }

    async fn get_plugin_capabilities(
        &self,
        _: Request<GetPluginCapabilitiesRequest>,
    ) -> Result<Response<GetPluginCapabilitiesResponse>, Status> {
        Err(Status::failed_precondition("the stub can do nothing"))
    }

    async fn probe(&self, _: Request<ProbeRequest>) -> Result<Response<ProbeResponse>, Status> {
        self.probes_begun.add_permits(1);
        self.probes_let_go.acquire().await.unwrap().forget();
        Ok(Response::new(ProbeResponse { ready: Some(true) }))
    }
}

/// A served socket in a directory of its own.
struct Server {
    directory: TempDir,
    stub: Stub,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<Result<(), ServeError>>,
}

impl Server {
    async fn start(grace: Duration) -> Server {
        let directory = tempfile::tempdir().unwrap();
        let stub = Stub {
            probes_begun: Arc::new(Semaphore::new(0)),
            probes_let_go: Arc::new(Semaphore::new(0)),
        };
        let socket = CsiSocket::bind(&endpoint(&directory.path().join("csi.sock"))).await.unwrap();
        let (stop, stopped) = oneshot::channel();
        let routes = Routes::new(IdentityServer::new(stub.clone()));
        let task = tokio::spawn(socket.serve(routes, grace, async {
            stopped.await.unwrap();
        }));
        Server { directory, stub, stop: Some(stop), task }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("csi.sock")
    }

    fn stop(&mut self) {
        self.stop.take().unwrap().send(()).unwrap();
    }

    async fn ended(self) -> Result<(), ServeError> {
        tokio::time::timeout(SOON, self.task).await.expect("the server did not end").unwrap()
    }

    /// Starts a Probe and returns once the plugin is in it.
    async fn begin_probe(&self) -> JoinHandle<Result<Response<ProbeResponse>, Status>> {
        let mut client = client(&self.path()).await;
        let probe = tokio::spawn(async move { client.probe(ProbeRequest {}).await });
        tokio::time::timeout(SOON, self.stub.probes_begun.acquire())
            .await
            .unwrap()
            .unwrap()
            .forget();
        probe
    }
}

fn endpoint(path: &Path) -> Endpoint {
    format!("unix://{}", path.display()).parse().unwrap()
}

async fn client(path: &Path) -> IdentityClient<Channel> {
    IdentityClient::connect(format!("unix://{}", path.display())).await.unwrap()
}

async fn name_of_plugin(path: &Path) -> String {
    client(path).await.get_plugin_info(GetPluginInfoRequest {}).await.unwrap().into_inner().name
}

fn mode(path: &Path) -> u32 {
    path.metadata().unwrap().permissions().mode() & 0o7777
}

/// Waits until `condition` holds; fails when it does not within [`SOON`].
async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + SOON;
    while !condition() {
        assert!(tokio::time::Instant::now() < deadline, "never happened: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn bind_error(path: &Path) -> ServeError {
    CsiSocket::bind(&endpoint(path)).await.expect_err("binding succeeded")
}

/// Leaves a socket that no process listens on, as a killed driver does.
fn leave_stale_socket(path: &Path) {
    drop(UnixListener::bind(path).unwrap());
    assert!(path.symlink_metadata().unwrap().file_type().is_socket());
}

#[tokio::test]
async fn the_socket_is_its_owners_alone_and_the_only_file() {
    let mut server = Server::start(SOON).await;
    assert_eq!(name_of_plugin(&server.path()).await, "stub");
    assert_eq!(mode(&server.path()), 0o600);
    let files: Vec<_> =
        fs::read_dir(server.directory.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(files, ["csi.sock"]);
    server.stop();
    server.ended().await.unwrap();
}

#[tokio::test]
async fn a_service_that_is_not_served_is_unimplemented_with_a_text() {
    let mut server = Server::start(SOON).await;
    let channel =
        tonic::transport::Endpoint::try_from(format!("unix://{}", server.path().display()))
            .unwrap();
    let mut node = NodeClient::new(channel.connect().await.unwrap());
    let status = node.node_get_info(NodeGetInfoRequest {}).await.unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented);
    assert!(
        status.message().contains("csi.v1.Node/NodeGetInfo is not served on this socket"),
        "{status}"
    );
    server.stop();
    server.ended().await.unwrap();
}

#[tokio::test]
async fn a_missing_directory_is_made_for_the_owner_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("plugins/cinderblock/csi.sock");
    let _socket = CsiSocket::bind(&endpoint(&path)).await.unwrap();
    assert_eq!(mode(path.parent().unwrap()), 0o700);
}

#[tokio::test]
async fn a_directory_that_exists_keeps_its_mode() {
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let _socket = CsiSocket::bind(&endpoint(&directory.path().join("csi.sock"))).await.unwrap();
    assert_eq!(mode(directory.path()), 0o755);
}

#[tokio::test]
async fn a_served_socket_is_refused_and_goes_on_serving() {
    let mut server = Server::start(SOON).await;
    let error = bind_error(&server.path()).await;
    assert!(matches!(error, ServeError::InUse(_)), "{error}");
    assert!(error.to_string().contains("another process serves this socket"), "{error}");
    assert!(error.to_string().contains(server.path().to_str().unwrap()), "{error}");
    assert_eq!(name_of_plugin(&server.path()).await, "stub");
    server.stop();
    server.ended().await.unwrap();
}

#[tokio::test]
async fn a_stale_socket_is_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("csi.sock");
    leave_stale_socket(&path);
    let socket = CsiSocket::bind(&endpoint(&path)).await.unwrap();
    assert_eq!(mode(&path), 0o600);
    drop(socket);
    assert!(!path.exists());
}

#[tokio::test]
async fn what_is_not_a_socket_is_refused_and_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    fs::write(path("file.sock"), "precious").unwrap();
    fs::create_dir(path("directory.sock")).unwrap();
    leave_stale_socket(&path("stale"));
    symlink(path("stale"), path("symlink.sock")).unwrap();

    for name in ["file.sock", "directory.sock", "symlink.sock"] {
        let error = bind_error(&path(name)).await;
        assert!(matches!(error, ServeError::NotASocket(_)), "{name}: {error}");
        assert!(error.to_string().contains("is not a socket"), "{name}: {error}");
    }
    assert_eq!(fs::read_to_string(path("file.sock")).unwrap(), "precious");
    assert!(path("directory.sock").is_dir());
    assert_eq!(fs::read_link(path("symlink.sock")).unwrap(), path("stale"));
    assert!(path("stale").symlink_metadata().is_ok());
}

#[tokio::test]
async fn a_directory_that_cannot_be_made_is_named() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("file"), "").unwrap();
    let error = bind_error(&directory.path().join("file/csi.sock")).await.to_string();
    assert!(error.contains("cannot create the directory"), "{error}");
    assert!(error.contains(directory.path().join("file").to_str().unwrap()), "{error}");
}

#[tokio::test]
async fn shutdown_lets_an_rpc_in_flight_finish_and_then_removes_the_socket() {
    let mut server = Server::start(SOON).await;
    let path = server.path();
    let probe = server.begin_probe().await;
    server.stop();

    // A new client is refused at once, while the old one still gets its answer.
    eventually("new clients are refused", || {
        std::os::unix::net::UnixStream::connect(&path)
            .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
    })
    .await;
    assert!(path.exists(), "removed before the last RPC ended");
    assert!(!probe.is_finished());

    server.stub.probes_let_go.add_permits(1);
    let answer = tokio::time::timeout(SOON, probe).await.unwrap().unwrap().unwrap();
    assert_eq!(answer.into_inner().ready, Some(true));
    let directory = server.directory.path().to_owned();
    // The directory must outlive the server for the absence to mean anything.
    let Server { directory: kept, task, .. } = server;
    tokio::time::timeout(SOON, task).await.unwrap().unwrap().unwrap();
    assert_eq!(fs::read_dir(directory).unwrap().count(), 0);
    drop(kept);
}

#[tokio::test]
async fn an_rpc_that_does_not_end_delays_shutdown_no_longer_than_the_grace() {
    let mut server = Server::start(Duration::from_millis(50)).await;
    let path = server.path();
    let _probe = server.begin_probe().await;
    server.stop();
    let Server { directory: _kept, task, .. } = server;
    tokio::time::timeout(SOON, task).await.expect("the grace did not end it").unwrap().unwrap();
    assert!(!path.exists());
}

#[tokio::test]
async fn a_socket_that_took_our_place_is_not_removed() {
    let mut server = Server::start(SOON).await;
    let path = server.path();
    fs::remove_file(&path).unwrap();
    let successor = CsiSocket::bind(&endpoint(&path)).await.unwrap();
    server.stop();
    let Server { directory: _kept, task, .. } = server;
    tokio::time::timeout(SOON, task).await.unwrap().unwrap().unwrap();
    assert!(path.exists());
    drop(successor);
    assert!(!path.exists());
}

#[tokio::test]
async fn sigterm_and_sigint_are_the_signal_to_stop() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let stop = termination_signal().unwrap();
        nix::sys::signal::raise(signal).unwrap();
        tokio::time::timeout(SOON, stop).await.expect("the signal was not seen");
    }
}
