//! One cluster of the configuration: its monitors, the user and its key, the clock.

use super::{Finding, pool, rights};
use crate::csi::clusters::{looks_like_a_key, looks_like_a_user};
use crate::csi::config::Cluster;
use crate::csi::identity::addresses;
use crate::csi::ids::Location;
use crate::rbd::ceph::{ConnectOptions, Timeouts, connect, libraries};
use crate::rbd::{self, Errno, Key, KeyType, User};
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use std::net::{TcpStream, ToSocketAddrs};
use std::thread;
use std::time::Duration;

/// How long a monitor's port may take to accept a connection.
const PATIENCE: Duration = Duration::from_secs(3);
/// How far the clocks may be apart before it is worth a word: logs and ages mislead from then on.
const CLOCKS_APART: SignedDuration = SignedDuration::from_secs(5);

/// A user to work as.
#[derive(Debug, Clone)]
pub struct Login {
    /// Its name, without `client.`.
    pub user: String,
    /// Its key.
    pub key: Key,
}

/// Checks the cluster and these places in it, as that user, or without one for the reason given.
pub fn cluster(
    cluster: &Cluster,
    login: Result<Login, String>,
    instance: &str,
    places: &[Location],
) -> Vec<Finding> {
    let id = cluster.cluster_id.as_str();
    let mut findings = monitors(cluster);
    let is_away = findings.iter().any(|finding| finding.outcome == super::Outcome::Failed);
    let login = match login {
        Ok(login) => login,
        Err(why) => {
            findings.push(Finding::failed(
                "user",
                id,
                why,
                format!(
                    "make a user (ceph auth get-or-create client.cinderblock), have its key in a file, and put userID and keyFile into the \
                     entry of {id} in the configuration; or give --user and --key-file"
                ),
            ));
            return findings;
        }
    };
    let key = key(id, &login);
    let is_bad = key.outcome == super::Outcome::Failed;
    findings.push(key);
    if is_bad {
        return findings;
    }
    if is_away {
        findings.push(Finding::unknown("connection", id, "not tried: no monitor answers"));
        return findings;
    }
    let caps = rights::caps_command(&login.user, places);
    let connected = connect(&ConnectOptions {
        monitors: cluster.monitors.clone(),
        ceph_conf: cluster.ceph_conf.clone(),
        user: login.user.clone(),
        key: Some(login.key.clone()),
        timeouts: Timeouts::default(),
    });
    let connected = match connected {
        Ok(connected) => connected,
        Err(error) => {
            findings.push(unconnected(id, &login, &error, &caps));
            return findings;
        }
    };
    match connected.fsid() {
        Ok(fsid) => findings.push(Finding::well(
            "connection",
            id,
            format!("client.{} is let in to the cluster {fsid}", login.user),
        )),
        Err(error) => findings.push(Finding::unknown("connection", id, error.to_string())),
    }
    findings.push(clock(id, &*connected));
    findings.push(clone_format(cluster, &*connected));
    findings.push(rights::blocklist(&*connected, id, &caps));
    if places.is_empty() {
        findings.push(Finding::warning(
            "pools",
            id,
            "the configuration names no pools of this cluster, so nothing is listed, and what a killed controller left waits for a request",
            format!("add to the entry of {id} in the configuration: pools: [POOL, POOL/NAMESPACE]"),
        ));
    }
    for place in places {
        findings.extend(pool::pool(&connected, place, instance, &caps));
    }
    findings
}

/// Whether the monitors' names resolve, and their ports accept connections.
fn monitors(cluster: &Cluster) -> Vec<Finding> {
    let (check, id) = ("monitors", cluster.cluster_id.as_str());
    let addresses: Vec<_> = cluster.monitors.iter().map(|monitor| addresses(monitor)).collect();
    let tried: Vec<Result<(), String>> = thread::scope(|scope| {
        let tries: Vec<_> =
            addresses.iter().map(|addresses| scope.spawn(|| reach(addresses))).collect();
        let panicked = |_| Err("the look at it panicked".to_owned());
        tries.into_iter().map(|tried| tried.join().unwrap_or_else(panicked)).collect()
    });
    let silent: Vec<_> = cluster
        .monitors
        .iter()
        .zip(&tried)
        .filter_map(|(monitor, tried)| Some(format!("{monitor} ({})", tried.as_ref().err()?)))
        .collect();
    let remedy = "correct monitors in the configuration (`ceph mon dump` lists them), or the name service, or let this machine through to \
                  their ports 3300 and 6789";
    vec![if tried.is_empty() {
        Finding::well(check, id, "cephConf names them; librados looks for them")
    } else if silent.is_empty() {
        Finding::well(check, id, format!("{} of {} accept connections", tried.len(), tried.len()))
    } else if silent.len() < tried.len() {
        Finding::warning(check, id, format!("no connection to {}", silent.join(", ")), remedy)
    } else {
        Finding::failed(check, id, format!("no connection to {}", silent.join(", ")), remedy)
    }]
}

/// Whether any of a monitor's addresses accepts a connection; else why the last one does not.
fn reach(addresses: &[String]) -> Result<(), String> {
    let mut why = "it has no address".to_owned();
    for address in addresses {
        match address.to_socket_addrs() {
            Err(error) => why = format!("it does not resolve: {error}"),
            Ok(resolved) => {
                for address in resolved {
                    match TcpStream::connect_timeout(&address, PATIENCE) {
                        Ok(_) => return Ok(()),
                        Err(error) => why = error.to_string(),
                    }
                }
            }
        }
    }
    Err(why)
}

/// Whether the key is one, and of a type that this librados knows.
fn key(id: &str, Login { user, key }: &Login) -> Finding {
    let check = "key";
    let print = format!(
        "put what `ceph auth get-key client.{user}` prints into the key file, and nothing else"
    );
    if !looks_like_a_user(user) {
        return Finding::failed(
            check,
            id,
            format!("{user:?} is no name of a Ceph user"),
            "correct userID: the NAME in client.NAME",
        );
    }
    if !looks_like_a_key(key.expose()) {
        return Finding::failed(
            check,
            id,
            format!("the key of client.{user} is no cephx key"),
            print,
        );
    }
    let Some(key_type) = key.key_type() else {
        return Finding::failed(
            check,
            id,
            format!("the key of client.{user} is no cephx key"),
            print,
        );
    };
    let is_unknown = key_type == KeyType::Aes256k
        && libraries().lacks.iter().any(|lacks| lacks.contains("aes256k"));
    if is_unknown {
        let as_user = User { name: user, key: Some(key_type), pool: "POOL", namespace: "" };
        let client = format!("librados of Ceph {}", libraries().ceph);
        return Finding::failed(check, id, as_user.has_newer_key(&client), as_user.aes_twin());
    }
    Finding::well(check, id, format!("client.{user} has one of the type {key_type}"))
}

fn unconnected(id: &str, login: &Login, error: &rbd::Error, caps: &str) -> Finding {
    let Login { user, key } = login;
    let check = "connection";
    let as_user = User { name: user, key: key.key_type(), pool: "", namespace: "" };
    match error.errno {
        Errno::EACCES => Finding::failed(
            check,
            id,
            format!("the cluster refuses client.{user}: {error}"),
            format!(
                "compare the key file with what `ceph auth get-key client.{user}` prints. If there is no such user, run: {}",
                caps.replacen("ceph auth caps", "ceph auth get-or-create", 1)
            ),
        ),
        Errno::EINVAL => {
            let client = format!("librados of Ceph {}", libraries().ceph);
            Finding::failed(check, id, error.to_string(), as_user.is_malformed_to(&client))
        }
        _ => Finding::failed(
            check,
            id,
            error.to_string(),
            "see `ceph status`: the monitors accept connections, and do not answer",
        ),
    }
}

/// How far this machine's clock is from the monitors'.
fn clock(id: &str, cluster: &dyn rbd::Cluster) -> Finding {
    #[derive(Deserialize)]
    struct Report {
        timestamp: String,
    }
    let before = Timestamp::now();
    let report = match cluster.monitor_command(r#"{"prefix": "report", "format": "json"}"#) {
        Ok(report) => report,
        Err(error) => return Finding::unknown("clock", id, error.to_string()),
    };
    let after = Timestamp::now();
    let told = serde_json::from_slice(&report).ok();
    match told.and_then(|Report { timestamp }| timestamp.parse::<Timestamp>().ok()) {
        Some(theirs) => clocks(id, before, theirs, after),
        None => Finding::unknown(
            "clock",
            id,
            "the monitors do not tell their time in a form that is known",
        ),
    }
}

/// Judges what the monitors' clock showed at some time between `before` and `after`.
fn clocks(id: &str, before: Timestamp, theirs: Timestamp, after: Timestamp) -> Finding {
    let ahead = before.duration_since(theirs);
    let behind = theirs.duration_since(after);
    let apart = ahead.max(behind).max(SignedDuration::ZERO);
    if apart <= CLOCKS_APART {
        return Finding::well("clock", id, "this machine's clock and the monitors' agree");
    }
    let direction = if ahead > behind { "ahead of" } else { "behind" };
    Finding::warning(
        "clock",
        id,
        format!("this machine's clock is {} s {direction} the monitors'", apart.as_secs()),
        "have an NTP client, such as chrony, set the clocks of this machine and of the monitors; tickets and ages of what is recorded go by them",
    )
}

/// Whether the format of clones suits what the cluster asks of its clients.
fn clone_format(cluster: &Cluster, connected: &dyn rbd::Cluster) -> Finding {
    let (check, id) = ("clone format", cluster.cluster_id.as_str());
    let command = r#"{"prefix": "osd get-require-min-compat-client"}"#;
    let level = match connected.monitor_command(command) {
        Ok(level) => String::from_utf8_lossy(&level).trim().to_owned(),
        Err(error) => return Finding::unknown(check, id, error.to_string()),
    };
    // Releases are named in the order of the alphabet; format 2 came with Mimic.
    let knows_format_2 = level.as_str() >= "mimic";
    match (cluster.clone_format, knows_format_2) {
        (1, true) => Finding::warning(
            check,
            id,
            format!(
                "cloneFormat is 1, although every client of the cluster knows format 2 (require-min-compat-client {level})"
            ),
            format!(
                "take cloneFormat out of the entry of {id} in the configuration: format 2 needs no protected snapshots"
            ),
        ),
        (format, _) => Finding::well(
            check,
            id,
            format!("format {format}, with require-min-compat-client {level}"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Outcome;

    #[test]
    fn clocks_that_are_apart_are_told_in_seconds() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let judge = |before, theirs, after| clocks("lab", at(before), at(theirs), at(after));
        assert_eq!(judge(100, 101, 102).outcome, Outcome::Well);
        assert_eq!(judge(100, 95, 101).outcome, Outcome::Well);
        let ahead = judge(100, 90, 101);
        assert_eq!(ahead.found, "this machine's clock is 10 s ahead of the monitors'");
        let behind = judge(100, 3701, 101);
        assert_eq!(behind.found, "this machine's clock is 3600 s behind the monitors'");
        assert!(behind.remedy.unwrap().contains("chrony"));
    }
}
