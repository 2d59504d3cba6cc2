//! The controller, driver and sidecars, killed in the middle of work, again and again, and started
//! again each time.

use serde_json::json;

use super::api::{text, wait_until};
use super::field::Field;
use super::kubelet::pattern;
use super::space::{Space, from};

const CLAIMS: usize = 12;
const LENGTH: usize = 1_000_000;

pub(crate) fn everything_converges_and_nothing_leaks(field: &Field) {
    let space = Space::new(field, "killed");
    space.claim("source", "immediate", "1Gi", &json!({}));
    space.write("source", &pattern(7, LENGTH));
    space.snapshot("then", "snapshots", "source");
    space.ready("VolumeSnapshot", "then");

    // A third each: empty, restored, cloned; and snapshots of the source meanwhile.
    let claims: Vec<_> = (0..CLAIMS).map(|number| format!("claim-{number}")).collect();
    let snapshots: Vec<_> = (0..CLAIMS / 3).map(|number| format!("snapshot-{number}")).collect();
    for (number, claim) in claims.iter().enumerate() {
        let what = match number % 3 {
            0 => json!({}),
            1 => from("VolumeSnapshot", "then"),
            _ => from("PersistentVolumeClaim", "source"),
        };
        space.claim(claim, "immediate", "1Gi", &what);
    }
    for snapshot in &snapshots {
        space.snapshot(snapshot, "snapshots", "source");
    }
    let bound = || {
        let claims = space.api().list("PersistentVolumeClaim", &space.name);
        claims.iter().filter(|claim| text(claim, "/status/phase") == "Bound").count() - 1
    };
    kill_at_every_step(field, "claims are bound", CLAIMS, bound);
    for claim in &claims {
        space.bound(claim);
    }
    for snapshot in &snapshots {
        space.ready("VolumeSnapshot", snapshot);
    }
    for claim in claims.iter().skip(1).step_by(3).chain(claims.iter().skip(2).step_by(3)).take(2) {
        assert!(space.read(claim, LENGTH) == pattern(7, LENGTH), "{claim} has other bytes");
    }

    // What others came from goes first.
    space.delete("PersistentVolumeClaim", "source");
    for snapshot in snapshots.iter().map(String::as_str).chain(["then"]) {
        space.delete("VolumeSnapshot", snapshot);
    }
    for claim in &claims {
        space.delete("PersistentVolumeClaim", claim);
    }
    let volumes = space.api().list("PersistentVolume", "").len();
    kill_at_every_step(field, "volumes are gone", volumes, || {
        volumes - space.api().list("PersistentVolume", "").len()
    });
    for snapshot in snapshots.iter().map(String::as_str).chain(["then"]) {
        space.gone("VolumeSnapshot", snapshot);
    }
    for claim in claims.iter().map(String::as_str).chain(["source"]) {
        space.gone("PersistentVolumeClaim", claim);
    }
    space.finish();
}

/// Kills the controller while `done` of `all` grow: at the start, and whenever a few more are done.
fn kill_at_every_step(field: &Field, what: &str, all: usize, done: impl Fn() -> usize) {
    let (mut kills, mut next) = (0, 0);
    wait_until(&format!("all {what}"), || {
        let now = done();
        if now >= next && now < all {
            // Requests are on their way at this moment.
            field.kill_controller();
            kills += 1;
            next = now + all.div_ceil(5);
            field.wait_for_controller();
        }
        if now == all { Ok(()) } else { Err(format!("{now} of {all} {what}, {kills} kills")) }
    });
    println!("    {all} {what}, the controller was killed {kills} times meanwhile");
    assert!(kills >= 2, "{what}: killed {kills} times only");
}

pub(crate) fn a_sidecar_that_dies_goes_on_where_it_was(field: &Field) {
    let space = Space::new(field, "sidecar-killed");
    for name in ["provisioner", "attacher", "resizer", "snapshotter"] {
        let before = field.container(name).starts();
        field.container(name).kill();
        wait_until(&format!("the {name} runs again"), || {
            let starts = field.container(name).starts();
            if starts > before { Ok(()) } else { Err(format!("started {starts} times")) }
        });
    }
    space.claim("data", "immediate", "1Gi", &json!({}));
    space.write("data", &pattern(8, LENGTH));
    space.snapshot("then", "snapshots", "data");
    space.ready("VolumeSnapshot", "then");
    space.delete("VolumeSnapshot", "then");
    space.gone("VolumeSnapshot", "then");
    space.remove_claim("data");
    space.finish();
}
