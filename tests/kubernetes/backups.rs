//! The chart's CronJob: claims are backed up by their labels, with the rights of its own account,
//! and a restore point goes into the volume of another claim.

use std::process::Command;

use serde_json::{Value, json};

use super::api::text;
use super::chart::NAMESPACE;
use super::field::Field;
use super::jobs;
use super::kubelet::pattern;
use super::space::Space;

const LENGTH: usize = 1_000_000;

pub(crate) fn labelled_claims_are_backed_up_by_night_and_restored_into_others() {
    let more = json!({"backup": {
        "enabled": true,
        // Nothing comes in between; Jobs are made of it by hand.
        "suspend": true,
        "claims": "backup=nightly,tier!=scratch",
        "namespaces": ["backed-up"],
        "target": "/backup/nightly",
        "volume": {"emptyDir": {}},
        "increments": 1,
        "retention": {"last": 2, "daily": 0, "monthly": 0},
    }});
    let field = Field::install_in(&["backed-up"], &more, None);
    let space = Space::new(&field, "backed-up");
    for (claim, labels) in [
        ("data", json!({"backup": "nightly"})),
        ("other", json!({"backup": "nightly", "tier": "scratch"})),
    ] {
        space.claim(claim, "immediate", "1Gi", &json!({}));
        space.api().patch(
            "PersistentVolumeClaim",
            &space.name,
            claim,
            &json!({"metadata": {"labels": labels}}),
        );
    }
    // One that waits for its first pod has nothing to back up, and keeps no other from it.
    space.claim("waiting", "first-consumer", "1Gi", &json!({}));
    let label = json!({"metadata": {"labels": {"backup": "nightly"}}});
    space.api().patch("PersistentVolumeClaim", &space.name, "waiting", &label);

    let mut points = Vec::new();
    for night in 1..=4 {
        space.write("data", &pattern(night, LENGTH));
        let job = format!("night-{night}");
        let said = night_of(&field, &job);
        assert!(said.contains("claim     backed-up/data"), "{said}");
        assert!(said.contains("the claim backed-up/waiting is Pending"), "{said}");
        assert!(!said.contains("backed-up/other"), "{said}");
        points = listed(&field);
    }
    // The first chain went when the second was complete: two restore points each.
    assert_eq!(points.len(), 2, "{points:?}");
    assert_eq!(points[0]["parent"], Value::Null);
    assert_eq!(points[1]["parent"], points[0]["point"]);
    for point in &points {
        assert_eq!(point["claim"], "backed-up/data");
    }
    known_of_the_volume(&space, &points[1]);

    one_that_fails_keeps_no_other_from_it(&space);

    // The claim and its volume go; a new claim gets what they held.
    space.remove_claim("data");
    space.claim("again", "immediate", "1Gi", &json!({}));
    space.bound("again");
    let kubeconfig = super::field::token(NAMESPACE, "cinderblock-backup");
    let target = jobs::volume(&field, "target").join("nightly");
    let restore = |claim: &str| {
        Command::new(env!("CARGO_BIN_EXE_cinderblock"))
            .args(["backup", "restore", "--overwrite", "--config"])
            .arg(field.configuration())
            .args(["--claim", claim])
            .arg(&target)
            .arg(text(&points[1], "/point"))
            .env("KUBECONFIG", &kubeconfig)
            .output()
            .unwrap()
    };
    let restored = restore("backed-up/again");
    assert!(restored.status.success(), "{restored:?}");
    assert!(space.read("again", LENGTH) == pattern(4, LENGTH), "other bytes were restored");
    for (claim, words) in [
        ("backed-up/waiting", "is Pending and has no volume"),
        ("backed-up/absent", "there is no claim"),
    ] {
        let refused = restore(claim);
        assert_eq!(refused.status.code(), Some(3), "{refused:?}");
        assert!(String::from_utf8_lossy(&refused.stderr).contains(words), "{refused:?}");
    }

    for claim in ["again", "other", "waiting"] {
        space.remove_claim(claim);
    }
    space.finish();
    field.uninstall();
}

/// By hand, with the rights of the CronJob's account: the image of one claim is not where it was.
fn one_that_fails_keeps_no_other_from_it(space: &Space<'_>) {
    let field = space.field;
    let (other, data) = (space.bound("other"), space.bound("data"));
    let image = text(&other, "/spec/csi/volumeHandle").strip_prefix("prod/").unwrap().to_owned();
    let away = format!("{image}-away");
    let kubeconfig = super::field::token(NAMESPACE, "cinderblock-backup");
    let create = |what: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cinderblock"));
        command.args(["backup", "create", "--output", "json", "--config"]);
        command.arg(field.configuration()).args(what);
        command.arg(jobs::volume(field, "target").join("by-hand"));
        command
    };
    field.lab.run("rbd", &["rename", &image, &away]);
    let all = ["--claims", "backup=nightly", "--claim-namespace", "backed-up"];
    let output = create(&all).env("KUBECONFIG", &kubeconfig).output().unwrap();
    field.lab.run("rbd", &["rename", &away, &image]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("1 of 2 claims were not backed up: backed-up/other"), "{said}");
    let made: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(made.as_array().unwrap().len(), 1, "{made}");
    assert_eq!(made[0]["claim"], "backed-up/data");

    // Without the right to look into other namespaces nothing is backed up.
    let output = create(&all[..2]).env("KUBECONFIG", &kubeconfig).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("forbidden"), "{said}");

    // One volume by its id, by somebody who may ask.
    let id = text(&data, "/spec/csi/volumeHandle");
    let output = create(&["--kubernetes", id]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let made: Value = serde_json::from_slice(&output.stdout).unwrap();
    let shown = Command::new(env!("CARGO_BIN_EXE_cinderblock"))
        .args(["backup", "show"])
        .arg(jobs::volume(field, "target").join("by-hand"))
        .arg(text(&made, "/point"))
        .output()
        .unwrap();
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(shown.contains("backed-up/data") && shown.contains("clusterID=prod"), "{shown}");
}

/// Makes a Job of the CronJob, as an administrator does, and runs it. Returns what it said.
fn night_of(field: &Field, job: &str) -> String {
    let made = Command::new(".tools/bin/kubectl")
        .args(["--namespace", NAMESPACE, "create", "job", job])
        .args(["--from", "cronjob/cinderblock-backup"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    jobs::run(field, NAMESPACE, job).concat()
}

/// The restore points in the target.
fn listed(field: &Field) -> Vec<Value> {
    serde_json::from_slice(&backup(field, &["list"], &[])).unwrap()
}

fn backup(field: &Field, command: &[&str], more: &[&str]) -> Vec<u8> {
    let output = Command::new(env!("CARGO_BIN_EXE_cinderblock"))
        .arg("backup")
        .args(command)
        .arg(jobs::volume(field, "target").join("nightly"))
        .args(more)
        .args(["--output", "json"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    output.stdout
}

/// The manifest holds what it takes to make the PersistentVolume again.
fn known_of_the_volume(space: &Space<'_>, point: &Value) {
    let shown = backup(space.field, &["show"], &[text(point, "/point")]);
    let shown: Value = serde_json::from_slice(&shown).unwrap();
    let known = &shown["kubernetes"];
    let volume = space.bound("data");
    let name = text(&volume, "/metadata/name");
    assert_eq!(text(known, "/persistent_volume"), name);
    assert_eq!(text(known, "/claim"), "backed-up/data");
    assert_eq!(text(known, "/storage_class"), "immediate");
    assert_eq!(text(known, "/parameters/clusterID"), "prod");
    let (object, csi) = (&known["object"], "/spec/csi");
    assert_eq!(object["kind"], "PersistentVolume");
    assert_eq!(object.pointer(csi), volume.pointer(csi));
    assert_eq!(object["spec"]["claimRef"].get("uid"), None);
    assert_eq!(
        object["metadata"]["annotations"]["pv.kubernetes.io/provisioned-by"],
        super::field::DRIVER
    );
}
