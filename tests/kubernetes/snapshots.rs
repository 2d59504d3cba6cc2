//! Snapshots, what is restored from them, clones, and snapshots of groups: with the bytes they must
//! have.

use serde_json::{Value, json};

use super::api::text;
use super::field::Field;
use super::kubelet::pattern;
use super::space::{Space, from};

const LENGTH: usize = 1_000_000;

pub(crate) fn a_snapshot_is_restored_as_it_was(field: &Field) {
    let space = Space::new(field, "restores");
    space.claim("data", "immediate", "1Gi", &json!({}));
    space.write("data", &pattern(1, LENGTH));
    space.snapshot("then", "snapshots", "data");
    let snapshot = space.ready("VolumeSnapshot", "then");
    assert_eq!(text(&snapshot, "/status/restoreSize"), "1Gi");
    space.write("data", &pattern(2, LENGTH));

    // A larger one, too, whose filesystem grows on the node.
    space.claim("restored", "immediate", "1Gi", &from("VolumeSnapshot", "then"));
    space.claim("larger", "immediate", "2Gi", &from("VolumeSnapshot", "then"));
    for claim in ["restored", "larger"] {
        assert!(space.read(claim, LENGTH) == pattern(1, LENGTH), "{claim} has other bytes");
    }
    assert!(space.read("data", LENGTH) == pattern(2, LENGTH), "the source has other bytes");

    space.delete("VolumeSnapshot", "then");
    space.gone("VolumeSnapshot", "then");
    for claim in ["data", "restored", "larger"] {
        space.remove_claim(claim);
    }
    space.finish();
}

pub(crate) fn a_clone_has_what_its_source_had(field: &Field) {
    let space = Space::new(field, "clones");
    space.claim("files", "immediate", "1Gi", &json!({}));
    space.claim("raw", "immediate", "1Gi", &json!({"volumeMode": "Block"}));
    for (seed, source) in [(3, "files"), (4, "raw")] {
        space.write(source, &pattern(seed, LENGTH));
        let clone = format!("{source}-clone");
        let mut what = from("PersistentVolumeClaim", source);
        what["volumeMode"] =
            space.get("PersistentVolumeClaim", source)["spec"]["volumeMode"].clone();
        space.claim(&clone, "immediate", "1Gi", &what);
        space.bound(&clone);
        space.write(source, &pattern(9, LENGTH));
        assert!(space.read(&clone, LENGTH) == pattern(seed, LENGTH), "{clone} has other bytes");
        space.remove_claim(source);
        assert!(
            space.read(&clone, LENGTH) == pattern(seed, LENGTH),
            "{clone} lost bytes with its source"
        );
        space.remove_claim(&clone);
    }
    space.finish();
}

pub(crate) fn a_group_is_snapshotted_at_once(field: &Field) {
    let space = Space::new(field, "groups");
    let names = ["ledger", "journal"];
    for (seed, name) in (1..).zip(names) {
        space.claim(name, "immediate", "1Gi", &json!({}));
        space.api().patch(
            "PersistentVolumeClaim",
            &space.name,
            name,
            &json!({"metadata": {"labels": {"app": "bank"}}}),
        );
        space.write(name, &pattern(seed, LENGTH));
    }
    let spec = json!({
        "volumeGroupSnapshotClassName": "groups",
        "source": {"selector": {"matchLabels": {"app": "bank"}}},
    });
    space.apply("groupsnapshot.storage.k8s.io/v1", "VolumeGroupSnapshot", "close-of-day", &spec);
    space.ready("VolumeGroupSnapshot", "close-of-day");
    for name in names {
        space.write(name, &pattern(9, LENGTH));
    }

    let all = space.api().list("VolumeSnapshot", &space.name);
    let of_the_group =
        |snapshot: &&Value| text(snapshot, "/status/volumeGroupSnapshotName") == "close-of-day";
    let members: Vec<_> =
        all.iter().filter(of_the_group).map(|o| text(o, "/metadata/name")).collect();
    assert_eq!(members.len(), 2, "{all:?}");
    let mut restored = Vec::new();
    for member in &members {
        space.ready("VolumeSnapshot", member);
        space.claim("restored", "immediate", "1Gi", &from("VolumeSnapshot", member));
        restored.push(space.read("restored", LENGTH));
        space.remove_claim("restored");
    }
    for seed in [1, 2] {
        assert!(
            restored.contains(&pattern(seed, LENGTH)),
            "no member has what was written to {}",
            names[seed - 1]
        );
    }

    space.delete("VolumeGroupSnapshot", "close-of-day");
    space.gone("VolumeGroupSnapshot", "close-of-day");
    for member in members {
        space.gone("VolumeSnapshot", member);
    }
    for name in names {
        space.remove_claim(name);
    }
    space.finish();
}
