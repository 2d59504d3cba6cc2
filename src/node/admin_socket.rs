//! What librbd in another process says of itself, over the admin socket that Ceph opens where its
//! configuration says so.
//!
//! A question is a JSON object and a NUL; the answer is its length, in four bytes of network order,
//! and JSON.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde::Deserialize;

use super::attach::Watch;
use super::error::{Error, Result};

/// The longest path a socket can have: the kernel's limit, with room for the final NUL.
pub(super) const PATH_LIMIT: usize = 107;

/// How long a process may take to answer.
const PATIENCE: Duration = Duration::from_secs(3);

/// More than any answer of a process with one image.
const ANSWER_LIMIT: u64 = 4 << 20;

/// The line of a configuration that has the process open its socket at `path`. A path that is too
/// long, or that Ceph would not read as it is, leaves the process without one.
pub(super) fn line(path: &Path) -> String {
    let text = path.to_str().unwrap_or_default();
    let is_plain = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/._-".contains(&byte));
    let path = if is_plain && text.len() < PATH_LIMIT { text } else { "" };
    format!("admin_socket = {path}\n")
}

/// Removes what a killed process left of its socket.
pub(super) fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(Error::io("remove", path, error)),
        _ => Ok(()),
    }
}

/// Whether the process watches the header of its one image. `Unknown` when it does not say.
pub(super) fn watch(path: &Path) -> Watch {
    match requests(path) {
        Ok(requests) => requests.watch(),
        Err(error) => {
            tracing::debug!(path = %path.display(), %error, "no word from librbd");
            Watch::Unknown
        }
    }
}

/// What `objecter_requests` answers, as far as it is of interest here.
#[derive(Deserialize)]
struct Requests {
    linger_ops: Vec<LingerOp>,
}

#[derive(Deserialize)]
struct LingerOp {
    object_id: String,
    /// "1" when the OSD has it.
    registered: String,
}

impl Requests {
    /// A parent's image is open for reading alone, and such images are not watched: any header is
    /// the image's.
    fn watch(&self) -> Watch {
        let held = self
            .linger_ops
            .iter()
            .any(|op| op.object_id.starts_with("rbd_header.") && op.registered == "1");
        if held { Watch::Held } else { Watch::Lost }
    }
}

fn requests(path: &Path) -> std::io::Result<Requests> {
    let mut stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(b"{\"prefix\": \"objecter_requests\"}\0")?;
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let mut answer = Vec::new();
    stream
        .take(u64::from(u32::from_be_bytes(length)).min(ANSWER_LIMIT))
        .read_to_end(&mut answer)?;
    Ok(serde_json::from_slice(&answer)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_ceph_would_not_take_as_it_is_is_not_written() {
        assert_eq!(
            line(Path::new("/var/lib/state/0f/asok")),
            "admin_socket = /var/lib/state/0f/asok\n"
        );
        for path in [
            "/a b",
            "/$pid",
            "/a#b",
            "/a;b",
            "/a\nkey = x",
            &format!("/{}", "a".repeat(PATH_LIMIT)),
        ] {
            assert_eq!(line(Path::new(path)), "admin_socket = \n", "{path}");
        }
    }

    #[test]
    fn a_watch_is_one_of_a_header_that_the_osd_has() {
        let watch = |ops: &str| {
            let text = format!("{{\"ops\": [], \"linger_ops\": [{ops}], \"pool_ops\": []}}");
            serde_json::from_str::<Requests>(&text).unwrap().watch()
        };
        let op = |object: &str, registered: u8| {
            format!(
                "{{\"linger_id\": 1, \"object_id\": \"{object}\", \"snapid\": \"head\", \"registered\": \"{registered}\"}}"
            )
        };
        assert_eq!(watch(&op("rbd_header.10226b8b4567", 1)), Watch::Held);
        assert_eq!(watch(&op("rbd_header.10226b8b4567", 0)), Watch::Lost);
        assert_eq!(watch(&op("rbd_mirroring", 1)), Watch::Lost);
        assert_eq!(watch(""), Watch::Lost);
    }

    #[test]
    fn a_process_that_is_gone_says_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("asok");
        assert_eq!(super::watch(&path), Watch::Unknown);
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert_eq!(super::watch(&path), Watch::Unknown);
        remove(&path).unwrap();
        remove(&path).unwrap();
    }
}
