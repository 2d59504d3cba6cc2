//! Deletion in the order that is hardest: what others came from goes first.

use serde_json::json;

use super::api::text;
use super::field::Field;
use super::kubelet::pattern;
use super::space::{Space, from};

const LENGTH: usize = 1_000_000;

pub(crate) fn a_claim_goes_before_its_snapshots(field: &Field) {
    let space = Space::new(field, "claim-first");
    space.claim("data", "immediate", "1Gi", &json!({}));
    for (seed, snapshot) in [(1, "first"), (2, "second")] {
        space.write("data", &pattern(seed, LENGTH));
        space.snapshot(snapshot, "snapshots", "data");
        space.ready("VolumeSnapshot", snapshot);
    }
    space.remove_claim("data");
    space.told("data", &["VolumeDataRetained", "claim-first/first", "claim-first/second"]);

    for (seed, snapshot) in [(1, "first"), (2, "second")] {
        space.claim(snapshot, "immediate", "1Gi", &from("VolumeSnapshot", snapshot));
        assert!(
            space.read(snapshot, LENGTH) == pattern(seed, LENGTH),
            "{snapshot} has other bytes"
        );
        space.delete("VolumeSnapshot", snapshot);
        space.gone("VolumeSnapshot", snapshot);
        assert!(
            space.read(snapshot, LENGTH) == pattern(seed, LENGTH),
            "{snapshot} lost bytes with its snapshot"
        );
    }
    for claim in ["first", "second"] {
        space.remove_claim(claim);
    }
    space.finish();
}

pub(crate) fn a_source_goes_before_its_clones(field: &Field) {
    let space = Space::new(field, "source-first");
    space.claim("generation-0", "immediate", "1Gi", &json!({}));
    space.write("generation-0", &pattern(1, LENGTH));
    let names: Vec<_> = (0..5).map(|generation| format!("generation-{generation}")).collect();
    for pair in names.windows(2) {
        space.claim(&pair[1], "immediate", "1Gi", &from("PersistentVolumeClaim", &pair[0]));
        space.bound(&pair[1]);
    }
    for pair in names.windows(2) {
        space.remove_claim(&pair[0]);
        assert!(
            space.read(&pair[1], LENGTH) == pattern(1, LENGTH),
            "{} lost bytes with its source",
            pair[1]
        );
    }
    space.remove_claim(&names[4]);
    space.finish();
}

pub(crate) fn everything_at_once(field: &Field) {
    let space = Space::new(field, "all-at-once");
    space.claim("data", "immediate", "1Gi", &json!({}));
    space.bound("data");
    space.snapshot("then", "snapshots", "data");
    space.ready("VolumeSnapshot", "then");
    space.claim("restored", "immediate", "1Gi", &from("VolumeSnapshot", "then"));
    space.claim("clone", "immediate", "1Gi", &from("PersistentVolumeClaim", "data"));
    for claim in ["restored", "clone"] {
        space.bound(claim);
    }
    let everything = [
        ("PersistentVolumeClaim", "data"),
        ("VolumeSnapshot", "then"),
        ("PersistentVolumeClaim", "restored"),
        ("PersistentVolumeClaim", "clone"),
    ];
    for (kind, name) in everything {
        space.delete(kind, name);
    }
    for (kind, name) in everything {
        space.gone(kind, name);
    }
    space.finish();
}

pub(crate) fn a_class_that_refuses_says_why_a_volume_stays(field: &Field) {
    let space = Space::new(field, "refuses");
    space.claim("data", "refusing", "1Gi", &json!({}));
    let volume = text(&space.bound("data"), "/metadata/name").to_owned();
    space.snapshot("then", "snapshots", "data");
    space.ready("VolumeSnapshot", "then");

    space.delete("PersistentVolumeClaim", "data");
    space.gone("PersistentVolumeClaim", "data");
    // The provisioner tells it at the volume, which is an administrator's; the driver tells the
    // user.
    space.told(&volume, &["VolumeFailedDelete", "snapshot"]);
    space.told("data", &["DeletionWaitsForSnapshots", "delete refuses/then"]);

    space.delete("VolumeSnapshot", "then");
    space.gone("VolumeSnapshot", "then");
    space.gone("PersistentVolume", &volume);
    space.finish();
}
