//! The CSI socket: bound for its owner only, served until told to stop, and gone afterwards.
//!
//! Promises:
//!
//! - The socket has mode 0600 from the moment its name exists, and no other file is made beside it.
//! - Two drivers never share a socket: where one answers, binding is refused. A socket that no
//!   process listens on is left over from a crash and is replaced. Anything that is not a socket is
//!   refused and never touched, and so is a socket of which neither can be told.
//! - Shutdown lets the RPCs in flight finish, for a bounded time, and only then removes the socket;
//!   it removes no socket that another process put in its place meanwhile.
//!
//! A kill at any point leaves at most a stale socket, which the next start replaces.

use std::convert::Infallible;
use std::fs::{DirBuilder, File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::time::Duration;

use http::Request;
use nix::sys::stat::{Mode, fchmod};
use tokio::net::{UnixListener, UnixSocket, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::Status;
use tonic::body::Body;
use tonic::service::Routes;
use tonic::transport::Server;
use tower::util::MapResponseLayer;

use super::endpoint::Endpoint;
use super::rpc_log::RpcLogLayer;

/// Connections the kernel holds until they are accepted.
const BACKLOG: u32 = 128;

/// How long to wait after a connection that could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Why the socket cannot be served. What stands in the way of binding is left as it was found.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Another process answers on the socket.
    #[error("{}: another process serves this socket; stop it, or choose another endpoint", .0.display())]
    InUse(PathBuf),
    /// The path exists and is not a socket.
    #[error("{}: exists and is not a socket; remove it if no program needs it, or choose another endpoint", .0.display())]
    NotASocket(PathBuf),
    /// A call on the path or its directory failed.
    #[error("{}: cannot {action}: {error}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The socket, or its directory.
        path: PathBuf,
        /// The system's answer.
        error: io::Error,
    },
    /// The gRPC server failed.
    #[error("the gRPC server failed: {0}")]
    Transport(tonic::transport::Error),
}

impl ServeError {
    fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ServeError {
        let path = path.to_owned();
        move |error| ServeError::Io { action, path, error }
    }
}

/// Bytes that the message of an error may have as a header, percent-encoded.
const MESSAGE_BYTES: usize = 6 << 10;

/// The socket of an [`Endpoint`], bound and listening. Dropping it removes the socket.
#[derive(Debug)]
pub struct CsiSocket {
    listener: UnixListener,
    file: SocketFile,
}

impl CsiSocket {
    /// Binds the socket, so that clients may connect; they are answered once
    /// [`serve`](CsiSocket::serve) runs.
    ///
    /// A missing parent directory is created with mode 0700. One that exists keeps its mode, which
    /// is its owner's business (kubelet makes its plugin directories 0750); a mode that lets others
    /// replace the socket is logged.
    pub async fn bind(endpoint: &Endpoint) -> Result<CsiSocket, ServeError> {
        let path = endpoint.path();
        if let Some(directory) = path.parent() {
            prepare_directory(directory)?;
        }
        clear_stale_socket(path).await?;

        let socket = UnixSocket::new_stream().map_err(ServeError::io("make a socket for", path))?;
        // The kernel gives the name the mode of the socket it is bound to, so there is no moment at
        // which the name exists with a wider one. A umask would do too, but is shared with every
        // other thread.
        fchmod(&socket, Mode::S_IRUSR | Mode::S_IWUSR)
            .map_err(|errno| ServeError::io("restrict the socket of", path)(errno.into()))?;
        socket.bind(path).map_err(ServeError::io("bind", path))?;
        let file = SocketFile::pin(path).map_err(ServeError::io("look at", path))?;
        let listener = socket.listen(BACKLOG).map_err(ServeError::io("listen on", path))?;
        Ok(CsiSocket { listener, file })
    }

    /// Serves `routes` until `shutdown` completes; then accepts nothing more, waits at most `grace`
    /// for the RPCs in flight, and removes the socket.
    ///
    /// When RPCs outlast `grace`, that is logged, they are left to the runtime, and this still
    /// returns `Ok`.
    pub async fn serve(
        self,
        routes: Routes,
        grace: Duration,
        shutdown: impl Future<Output = ()>,
    ) -> Result<(), ServeError> {
        let CsiSocket { listener, file } = self;
        tracing::info!(socket = %file.path.display(), "serving CSI");
        let (drain, draining) = oneshot::channel::<()>();
        let mut server = pin!(
            Server::builder()
                .layer(RpcLogLayer)
                .layer(MapResponseLayer::new(with_a_message_of_bounded_length))
                .add_routes(with_answer_for_the_rest(routes))
                .serve_with_incoming_shutdown(
                    UnixListenerStream::new(listener).then(async |connection| {
                        if connection.is_err() {
                            // No file descriptor, for one: trying again at once would only keep a
                            // processor busy.
                            tokio::time::sleep(ACCEPT_PAUSE).await;
                        }
                        connection
                    }),
                    // The sender is dropped, never used: either way it is time to drain.
                    async { _ = draining.await },
                )
        );
        tokio::select! {
            result = &mut server => return result.map_err(ServeError::Transport),
            () = shutdown => {}
        }
        tracing::info!(grace_seconds = grace.as_secs(), "stopping: waiting for the RPCs in flight");
        drop(drain);
        if let Ok(result) = tokio::time::timeout(grace, server).await {
            return result.map_err(ServeError::Transport);
        }
        tracing::warn!(
            grace_seconds = grace.as_secs(),
            "stopping although RPCs are still in flight"
        );
        Ok(())
    }
}

/// Cuts the message of an error that repeats too much of its request. The message is a header, and
/// a client that gets more headers than it takes gives up the connection, with all other calls on
/// it.
fn with_a_message_of_bounded_length<B>(mut response: http::Response<B>) -> http::Response<B> {
    let encoded = response.headers().get("grpc-message").map_or(0, http::HeaderValue::len);
    if encoded > MESSAGE_BYTES
        && let Some(status) = Status::from_header_map(response.headers())
    {
        // Percent-encoding makes at most three bytes of one.
        let kept = status.message().floor_char_boundary(MESSAGE_BYTES / 3 - '…'.len_utf8());
        let cut = Status::new(status.code(), format!("{}…", &status.message()[..kept]));
        // Its text is percent-encoded, so that it always is a header.
        let _ = cut.add_header(response.headers_mut());
    }
    response
}

/// Adds the answer to calls of services that are not among `routes`: CSI wants a text with every
/// error, and tonic has none of its own here.
fn with_answer_for_the_rest(routes: Routes) -> Routes {
    let answer = tower::service_fn(async |request: Request<_>| {
        let message = format!(
            "{} is not served on this socket: the controller and the node plugin serve different services",
            request.uri().path().trim_start_matches('/')
        );
        Ok::<_, Infallible>(Status::unimplemented(message).into_http::<Body>())
    });
    routes.into_axum_router().fallback_service(answer).into()
}

/// Completes at the first SIGTERM or SIGINT. The handlers are installed before this returns, so no
/// signal is lost between start-up and serving.
pub fn termination_signal() -> io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

fn prepare_directory(directory: &Path) -> Result<(), ServeError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(ServeError::io("create the directory", directory))?;
    let mode =
        directory.metadata().map_err(ServeError::io("look at", directory))?.permissions().mode();
    if mode & 0o022 != 0 {
        tracing::warn!(
            directory = %directory.display(),
            mode = format!("{:04o}", mode & 0o7777),
            "users other than the owner may replace the CSI socket in this directory"
        );
    }
    Ok(())
}

/// Makes way for a socket at `path`: removes one that no process listens on, refuses everything
/// else.
async fn clear_stale_socket(path: &Path) -> Result<(), ServeError> {
    match path.symlink_metadata() {
        Ok(metadata) if metadata.file_type().is_socket() => {}
        Ok(_) => return Err(ServeError::NotASocket(path.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(ServeError::io("look at", path)(error)),
    }
    match UnixStream::connect(path).await {
        Ok(_) => Err(ServeError::InUse(path.to_owned())),
        // Reset: the process that listened was killed between our connection and its answer.
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset
            ) =>
        {
            tracing::info!(socket = %path.display(), "replacing a socket that no process listens on");
            std::fs::remove_file(path).map_err(ServeError::io("remove the stale socket", path))
        }
        // A full backlog or a denied permission: a process may well listen there.
        Err(error) => Err(ServeError::io("tell whether another process serves", path)(error)),
    }
}

/// The name of our socket in the filesystem; dropping it removes the name, if it is still ours.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    /// Keeps the inode from being used again, so that its number tells our socket from a later one.
    /// A handle on the name only (`O_PATH`): once we stop listening, clients are refused at once
    /// instead of left to wait.
    handle: File,
}

impl SocketFile {
    fn pin(path: &Path) -> io::Result<SocketFile> {
        let handle = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_PATH | libc::O_NOFOLLOW)
            .open(path)?;
        Ok(SocketFile { path: path.to_owned(), handle })
    }

    fn remove(&self) -> io::Result<()> {
        let inode = |metadata: Metadata| (metadata.dev(), metadata.ino());
        if inode(self.handle.metadata()?) == inode(self.path.symlink_metadata()?) {
            std::fs::remove_file(&self.path)?;
        }
        Ok(())
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        match self.remove() {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(socket = %self.path.display(), %error, "the socket could not be removed");
            }
            _ => {}
        }
    }
}
