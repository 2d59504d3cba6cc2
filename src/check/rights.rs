//! Whether the user has the rights that the driver needs, and the line that gives them.

use super::Finding;
use crate::csi::ids::Location;
use crate::rbd::{Cluster, Errno};
use crate::volume::Volumes;

/// The command that gives `user` all that the driver needs in all of these places, and nothing
/// more.
pub(super) fn caps_command(user: &str, places: &[Location]) -> String {
    let mut limits: Vec<_> = places
        .iter()
        .map(|Location { pool, namespace, .. }| match namespace.as_str() {
            "" => format!("profile rbd pool={pool}"),
            namespace => format!("profile rbd pool={pool} namespace={namespace}"),
        })
        .collect();
    limits.dedup();
    let limits = limits.join(", ");
    format!("ceph auth caps client.{user} mon 'profile rbd' osd '{limits}' mgr '{limits}'")
}

/// Whether the user may put a lost client on the blocklist.
///
/// The monitors look at the right before they look at the address, so an address that cannot be
/// one changes nothing and tells which of both it was.
pub(super) fn blocklist(cluster: &dyn Cluster, place: &str, remedy: &str) -> Finding {
    let command = r#"{"prefix": "osd blocklist", "blocklistop": "add", "addr": "none/0"}"#;
    match cluster.monitor_command(command) {
        Err(error) if error.errno == Errno::EINVAL => {
            Finding::well("right to fence", place, "lost clients can be put on the blocklist")
        }
        Err(error) if matches!(error.errno, Errno::EPERM | Errno::EACCES) => Finding::failed(
            "right to fence",
            place,
            "the user may not put lost clients on the blocklist, so no volume is taken from a lost node or controller",
            format!("run: {remedy}"),
        ),
        Err(error) => Finding::unknown("right to fence", place, error.to_string()),
        Ok(_) => {
            Finding::unknown("right to fence", place, "the monitors took an address that is none")
        }
    }
}

/// Whether the user may read and change what is in the pool.
pub(super) fn images(volumes: &Volumes, place: &str, remedy: &str) -> Finding {
    let check = "right to the pool";
    let lacks = |what: &str| {
        Finding::failed(
            check,
            place,
            format!("the user may not {what} there"),
            format!("run: {remedy}"),
        )
    };
    match volumes.pool().image_id("cinderblock-check") {
        Err(error) if error.errno == Errno::EPERM => return lacks("read"),
        Err(error) => return Finding::unknown(check, place, error.to_string()),
        Ok(_) => {}
    }
    match volumes.journal().is_writable() {
        Ok(true) => Finding::well(check, place, "the user may read and change images"),
        Ok(false) => lacks("change anything"),
        Err(error) => Finding::unknown(check, place, error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_gives_rights_to_every_place() {
        let place = |pool: &str, namespace: &str| Location {
            cluster: "lab".to_owned(),
            pool: pool.to_owned(),
            namespace: namespace.to_owned(),
        };
        assert_eq!(
            caps_command("csi", &[place("a", ""), place("b", "team")]),
            "ceph auth caps client.csi mon 'profile rbd' osd 'profile rbd pool=a, profile rbd pool=b namespace=team' mgr 'profile \
             rbd pool=a, profile rbd pool=b namespace=team'"
        );
    }
}
