//! Object stores to transfer from and to: S3, and what stands in its way.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;
use tempfile::TempDir;
use tokio::runtime::Runtime;

pub const ACCESS_KEY: &str = "cinderblock-test";
pub const SECRET_KEY: &str = "kept-in-the-environment";

/// An S3 server with one bucket, `disks`.
pub struct S3 {
    pub address: SocketAddr,
    folder: TempDir,
    _runtime: Runtime,
}

impl S3 {
    pub fn start() -> S3 {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("disks")).unwrap();
        let mut builder = S3ServiceBuilder::new(s3s_fs::FileSystem::new(folder.path()).unwrap());
        builder.set_auth(SimpleAuth::from_single(ACCESS_KEY, SECRET_KEY));
        let service = builder.build();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        runtime.spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let service = service.clone();
                tokio::spawn(async move {
                    let server = Builder::new(TokioExecutor::new());
                    let _ = server.serve_connection(TokioIo::new(socket), service).await;
                });
            }
        });
        S3 { address, folder, _runtime: runtime }
    }

    /// The file that holds the object.
    pub fn file(&self, key: &str) -> PathBuf {
        self.folder.path().join("disks").join(key)
    }

    /// The files that hold more than objects: parts of uploads, for one.
    pub fn files(&self) -> Vec<String> {
        let mut names = Vec::new();
        for folder in [self.folder.path(), &self.folder.path().join("disks")] {
            for file in std::fs::read_dir(folder).unwrap() {
                let file = file.unwrap();
                if file.file_type().unwrap().is_file() {
                    names.push(file.file_name().into_string().unwrap());
                }
            }
        }
        names.retain(|name| !name.ends_with(".metadata.json") && !name.ends_with(".internal.json"));
        names.sort();
        names
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }
}

/// What happens to a connection.
#[derive(Debug, Clone, Copy)]
pub enum Weather {
    /// Nothing.
    Fair,
    /// It is cut when so many bytes have come from either side.
    Cut(u64),
    /// What comes is held back so long, piece by piece of 64 KiB.
    Slow(Duration),
    /// It is answered that the server has too much to do.
    Busy,
    /// It is accepted, and nothing is ever said.
    Silent,
}

/// The weather for the connection of that number.
pub type Forecast = fn(usize) -> Weather;

/// A way to a server, with weather.
pub fn way(to: SocketAddr, weather: Forecast) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let count = Arc::new(AtomicUsize::new(0));
    thread::spawn(move || {
        for client in listener.incoming() {
            let number = count.fetch_add(1, Ordering::SeqCst);
            thread::spawn(move || drop(forward(client, to, weather(number))));
        }
    });
    address
}

fn forward(
    client: std::io::Result<TcpStream>,
    to: SocketAddr,
    weather: Weather,
) -> std::io::Result<()> {
    let mut client = client?;
    match weather {
        Weather::Busy => {
            let _ = client.read(&mut [0; 16 << 10])?;
            return client.write_all(
                b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
            );
        }
        Weather::Silent => {
            let mut drain = [0; 4096];
            while client.read(&mut drain)? > 0 {}
            return Ok(());
        }
        _ => {}
    }
    let server = TcpStream::connect(to)?;
    let (client_too, server_too) = (client.try_clone()?, server.try_clone()?);
    let up = thread::spawn(move || pour(&client_too, &server_too, weather));
    pour(&server, &client, weather);
    let _ = up.join();
    Ok(())
}

fn pour(mut from: &TcpStream, mut to: &TcpStream, weather: Weather) {
    let mut buffer = vec![0; 64 << 10];
    let mut poured = 0;
    loop {
        let count = match from.read(&mut buffer) {
            Ok(0) | Err(_) => break,
            Ok(count) => count,
        };
        poured += count as u64;
        match weather {
            Weather::Cut(most) if poured > most => break,
            Weather::Slow(pause) => thread::sleep(pause),
            _ => {}
        }
        if to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    for end in [from, to] {
        if let Err(error) = end.shutdown(Shutdown::Both) {
            assert_eq!(error.kind(), ErrorKind::NotConnected, "{error}");
        }
    }
}
