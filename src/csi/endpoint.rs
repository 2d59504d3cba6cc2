//! A CSI endpoint: the unix socket a plugin listens on and an orchestrator dials.
//!
//! An [`Endpoint`] in hand is valid: absolute, named `*.sock`, and short enough for the kernel.

use std::ffi::OsStr;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The longest path a `sockaddr_un` holds, without its closing NUL.
const MAX_PATH_BYTES: usize = 107;

/// The path of a CSI socket.
///
/// Read from `unix:///csi/csi.sock` or `unix:/csi/csi.sock`. The CSI specification wants a unix
/// socket, an absolute path and a name that ends in `.sock`; anything else is refused rather than
/// guessed at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    path: PathBuf,
}

/// Why a text is not a CSI endpoint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the endpoint {endpoint:?} {reason}; write it as unix:///path/to/csi.sock")]
pub struct InvalidEndpoint {
    endpoint: String,
    reason: &'static str,
}

impl Endpoint {
    /// Where the socket is: an absolute path.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl FromStr for Endpoint {
    type Err = InvalidEndpoint;

    fn from_str(endpoint: &str) -> Result<Endpoint, InvalidEndpoint> {
        let refused = |reason| Err(InvalidEndpoint { endpoint: endpoint.to_owned(), reason });
        let Some(rest) = endpoint.strip_prefix("unix:") else {
            return refused("is not a unix socket, and CSI speaks over nothing else");
        };
        let path = rest.strip_prefix("//").unwrap_or(rest);
        if !path.starts_with('/') {
            return refused("has no absolute path");
        }
        if Path::new(path).extension() != Some(OsStr::new("sock")) || path.ends_with('/') {
            return refused(
                "does not end in .sock, which the CSI specification asks of the socket's name",
            );
        }
        if path.len() > MAX_PATH_BYTES {
            return refused(
                "has a path longer than 107 bytes, the kernel's limit for a unix socket",
            );
        }
        Ok(Endpoint { path: PathBuf::from(path) })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unix://{}", self.path.display())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_spellings_name_the_same_path() {
        for text in ["unix:///csi/csi.sock", "unix:/csi/csi.sock"] {
            let endpoint: Endpoint = text.parse().unwrap();
            assert_eq!(endpoint.path(), Path::new("/csi/csi.sock"));
            assert_eq!(endpoint.to_string(), "unix:///csi/csi.sock");
        }
    }

    #[test]
    fn what_is_no_csi_endpoint_is_refused_with_the_reason() {
        let long = format!("unix:///{}.sock", "x".repeat(MAX_PATH_BYTES - 5));
        let cases = [
            ("", "not a unix socket"),
            ("/csi/csi.sock", "not a unix socket"),
            ("tcp://127.0.0.1:10000", "not a unix socket"),
            ("unix://csi/csi.sock", "no absolute path"),
            ("unix:csi.sock", "no absolute path"),
            ("unix:", "no absolute path"),
            ("unix:///csi/socket", "does not end in .sock"),
            ("unix:///csi/csi.sock/", "does not end in .sock"),
            ("unix:///csi/.sock", "does not end in .sock"),
            ("unix:///csi/CSI.SOCK", "does not end in .sock"),
            ("unix:///csi/..", "does not end in .sock"),
            (&long, "longer than 107 bytes"),
        ];
        for (text, reason) in cases {
            let error = text.parse::<Endpoint>().unwrap_err().to_string();
            assert!(error.contains(reason), "{text}: {error}");
            assert!(error.contains(&format!("{text:?}")), "{text}: {error}");
        }
    }

    #[test]
    fn the_longest_path_the_kernel_takes_is_accepted() {
        let path = format!("/{}.sock", "x".repeat(MAX_PATH_BYTES - 6));
        assert_eq!(path.len(), MAX_PATH_BYTES);
        assert!(format!("unix://{path}").parse::<Endpoint>().is_ok());
    }
}
