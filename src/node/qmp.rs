//! A client for QMP, the control protocol of the qemu-storage-daemon: one JSON object per line over
//! a unix socket.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::error::{Error, Result};
use super::kill;
use crate::rbd::Key;

/// How long one command may take. Longer than the daemon waits for monitors that do not answer.
const PATIENCE: Duration = Duration::from_secs(40);

/// The longest answer that is read, in bytes.
const ANSWER_LIMIT: u64 = 1 << 20;

/// What a daemon answers when it refuses a command, in its own words.
pub(crate) type Refusal = String;

/// A connection to a daemon. It serves one at a time; another waits until this is dropped.
#[derive(Debug)]
pub(super) struct Qmp {
    stream: BufReader<UnixStream>,
}

impl Qmp {
    /// Connects to the daemon that listens on `socket`. `Unavailable` when none does or it does not
    /// answer.
    pub(super) fn connect(socket: &Path) -> Result<Self> {
        let connected = UnixStream::connect(socket).and_then(|stream| {
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
            Ok(stream)
        });
        let stream = connected.map_err(|error| {
            Error::Unavailable(format!(
                "cannot connect to the storage daemon at {}: {error}",
                socket.display()
            ))
        })?;
        let mut qmp = Self { stream: BufReader::new(stream) };
        qmp.read_line()?;
        qmp.require("qmp_capabilities", &json!({}))?;
        Ok(qmp)
    }

    /// Runs `command`. The outer error is a broken conversation (`Unavailable`), the inner one the
    /// daemon's refusal.
    pub(super) fn execute(
        &mut self,
        command: &str,
        arguments: &Value,
    ) -> Result<std::result::Result<Value, Refusal>> {
        self.converse(&json!({"execute": command, "arguments": arguments}).to_string())
    }

    /// Runs `command`, whose refusal is a mistake of ours: `Internal`.
    pub(super) fn require(&mut self, command: &str, arguments: &Value) -> Result<Value> {
        self.execute(command, arguments)?.map_err(|refusal| {
            Error::Internal(format!("the storage daemon refused {command}: {refusal}"))
        })
    }

    /// Gives the daemon a Ceph key as its secret `id`, in place of one it may have. The key goes
    /// over the socket into the daemon's memory. What is open has no need of it any more.
    /// `InvalidArgument`, without repeating it, when it cannot be a key.
    pub(super) fn set_secret(&mut self, id: &str, key: &Key) -> Result<()> {
        let is_base64 = |byte: u8| byte.is_ascii_alphanumeric() || b"+/=".contains(&byte);
        let not_a_key = || {
            Error::InvalidArgument(
                "the Ceph key is not base64 as `ceph auth get-key` prints it".to_owned(),
            )
        };
        if !key.expose().bytes().all(is_base64) {
            return Err(not_a_key());
        }
        let _there_was_none = self.execute("object-del", &json!({"id": id}))?;
        let line = Zeroizing::new(format!(
            r#"{{"execute":"object-add","arguments":{{"qom-type":"secret","id":"{id}","format":"base64","data":"{}"}}}}"#,
            key.expose()
        ));
        // The daemon's words about a bad secret are not passed on: they might repeat it.
        match self.converse(&line)? {
            Ok(_) => Ok(()),
            Err(_) => Err(not_a_key()),
        }
    }

    fn converse(&mut self, command: &str) -> Result<std::result::Result<Value, Refusal>> {
        let stream = self.stream.get_mut();
        let sent = stream.write_all(command.as_bytes()).and_then(|()| stream.write_all(b"\n"));
        sent.map_err(|error| broken(&error))?;
        loop {
            // Anything else is an event.
            if let Some(answer) = outcome(self.read_line()?) {
                kill::step("daemon commanded");
                return Ok(answer);
            }
        }
    }

    fn read_line(&mut self) -> Result<Value> {
        let mut line = String::new();
        let read =
            self.stream.by_ref().take(ANSWER_LIMIT).read_line(&mut line).map_err(|error| {
                match error.kind() {
                    ErrorKind::WouldBlock => broken(&format_args!(
                        "no word within {} s, perhaps Ceph is down",
                        PATIENCE.as_secs()
                    )),
                    _ => broken(&error),
                }
            })?;
        if read == 0 {
            return Err(broken(&"it closed the connection"));
        }
        serde_json::from_str(&line).map_err(|error| broken(&error))
    }
}

/// What a line of the daemon's says of the command: its result, its refusal, or nothing.
pub(crate) fn outcome(mut line: Value) -> Option<std::result::Result<Value, Refusal>> {
    if let Some(value) = line.get_mut("return") {
        return Some(Ok(value.take()));
    }
    let error = line.get("error")?;
    Some(Err(error.get("desc").and_then(Value::as_str).unwrap_or("no reason given").to_owned()))
}

fn broken(error: &dyn std::fmt::Display) -> Error {
    Error::Unavailable(format!("the storage daemon does not answer: {error}"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::thread::JoinHandle;

    use super::*;

    /// A daemon that answers each line it gets with the next of `answers`, and returns the lines.
    fn daemon(socket: &Path, answers: &'static [&'static str]) -> JoinHandle<Vec<String>> {
        let listener = UnixListener::bind(socket).unwrap();
        std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let mut stream = stream;
            stream.write_all(b"{\"QMP\": {}}\n").unwrap();
            answers
                .iter()
                .map(|answer| {
                    let mut line = String::new();
                    reader.read_line(&mut line).unwrap();
                    stream.write_all(answer.as_bytes()).unwrap();
                    line
                })
                .collect()
        })
    }

    #[test]
    fn answers_are_found_among_events() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("s");
        let daemon = daemon(
            &socket,
            &[
                "{\"return\": {}}\n",
                "{\"event\": \"A\"}\n{\"return\": 7}\n",
                "{\"error\": {\"class\": \"GenericError\", \"desc\": \"no such node\"}}\n",
                "",
            ],
        );
        let mut qmp = Qmp::connect(&socket).unwrap();
        assert_eq!(qmp.execute("a", &json!({})).unwrap(), Ok(json!(7)));
        assert_eq!(qmp.execute("b", &json!({})).unwrap(), Err("no such node".to_owned()));
        assert!(matches!(qmp.execute("c", &json!({"x": 1})), Err(Error::Unavailable(_))));
        let lines = daemon.join().unwrap();
        assert_eq!(lines[3], "{\"arguments\":{\"x\":1},\"execute\":\"c\"}\n");
    }

    #[test]
    fn a_refused_secret_is_not_repeated() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("s");
        let daemon = daemon(
            &socket,
            &[
                "{\"return\": {}}\n",
                "{\"error\": {\"desc\": \"object 'key' not found\"}}\n",
                "{\"error\": {\"desc\": \"bad data AQBcanary==\"}}\n",
            ],
        );
        let error =
            Qmp::connect(&socket).unwrap().set_secret("key", &Key::new("AQBcanary==")).unwrap_err();
        assert!(!error.to_string().contains("canary"), "{error}");
        let sent: Value = serde_json::from_str(&daemon.join().unwrap()[2]).unwrap();
        assert_eq!(sent["arguments"]["data"], "AQBcanary==");
    }

    #[test]
    fn a_key_cannot_carry_commands() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("s");
        let daemon = daemon(&socket, &["{\"return\": {}}\n"]);
        let key = Key::new("x\"}}\n{\"execute\":\"quit\"}");
        let error = Qmp::connect(&socket).unwrap().set_secret("key", &key).unwrap_err();
        assert!(matches!(error, Error::InvalidArgument(_)), "{error}");
        assert_eq!(daemon.join().unwrap().len(), 1);
    }

    #[test]
    fn no_daemon_is_unavailable() {
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(Qmp::connect(&folder.path().join("s")), Err(Error::Unavailable(_))));
    }
}
