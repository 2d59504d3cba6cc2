//! `cinderblock --version`: the program's version, and which of Ceph's libraries it runs on.

use cinderblock::metrics::metrics;
use cinderblock::rbd::ceph::{Libraries, libraries};

use super::print_line;

/// Prints one line about the program, and one for each thing that its librbd or librados lacks.
pub(crate) fn print() {
    let Libraries { ceph, lacks, .. } = libraries();
    print_line(format_args!("cinderblock {} (librbd of Ceph {ceph})", env!("CARGO_PKG_VERSION")));
    for lack in lacks {
        print_line(format_args!("lacks {lack}"));
    }
}

/// Logs the same when the driver starts.
pub(crate) fn log() {
    let Libraries { ceph, librbd, librados, lacks, .. } = libraries();
    let version = env!("CARGO_PKG_VERSION");
    metrics().build(version, ceph);
    let lacks =
        if lacks.is_empty() { String::new() } else { format!(", which lack {}", lacks.join("; ")) };
    tracing::info!(
        "cinderblock {version} starts with librbd {librbd} and librados {librados} of Ceph {ceph}{lacks}"
    );
}
