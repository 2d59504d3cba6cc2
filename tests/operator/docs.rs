//! `docs/operator.md` shows what the tool prints: every command in it is run, one after another, on
//! a cluster as the page has it. After a change:
//! `UPDATE_REFERENCE=1 cargo test --test operator docs`, and commit.

use std::path::Path;
use std::process::Command;

use cinderblock::csi::proto::{ControllerPublishVolumeRequest, CreateVolumeRequest};
use cinderblock::rbd::{ImageKey, OpenMode};

use crate::common::driver::{Class, Driver, MIB, filesystem, from_volume, lab_config};
use crate::common::{OwnLab, POOL};
use crate::pictures::{self, on_a_terminal};
use crate::{Tool, text};

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/operator.md");

#[tokio::test(flavor = "multi_thread")]
async fn every_command_of_the_page_prints_what_it_shows() {
    let lab = OwnLab::up();
    let config = format!(
        "{}  userID: {}\n  keyFile: {}\n  pools: [{POOL}]\n",
        lab_config(&lab),
        lab.user,
        lab.key_file.display()
    )
    .replace("clusterID: lab", "clusterID: prod");
    let driver = Driver::start(&config, &["--role", "controller"]);
    volumes(&lab, &driver).await;
    let tool = Tool::new(&config);
    let ids: Vec<String> = tool.tells(&["tree"])["images"]
        .as_array()
        .unwrap()
        .iter()
        .map(|image| image["id"].as_str().unwrap().to_owned())
        .collect();

    for name in ["check", "list", "tree"] {
        let printed = told_apart(&on_a_terminal(&tool, name), &lab.fsid, &tool, &ids);
        pictures::assert_is(name, &pictures::svg(&format!("cinderblock {name}"), &printed));
    }
    let committed = std::fs::read_to_string(PAGE).unwrap();
    let mut page = String::new();
    let mut in_block = false;
    for line in committed.lines() {
        if line.starts_with("```") {
            in_block = line == "```console";
        }
        if !in_block || line.starts_with("```") {
            page = format!("{page}{line}\n");
        } else if let Some(command) = line.strip_prefix("$ ") {
            let printed = run(&tool, command);
            page = format!("{page}{line}\n{}", told_apart(&printed, &lab.fsid, &tool, &ids));
        }
    }
    driver.stop();
    if std::env::var_os("UPDATE_REFERENCE").is_some() {
        std::fs::write(PAGE, &page).unwrap();
        return;
    }
    let differing = committed.lines().zip(page.lines()).find(|(committed, now)| committed != now);
    assert!(
        committed == page,
        "docs/operator.md is not what the tool prints; run UPDATE_REFERENCE=1 cargo test --test operator docs\n{differing:#?}"
    );
}

/// The volumes of the page: one in use with a snapshot and a clone, and two in the trash.
async fn volumes(lab: &OwnLab, driver: &Driver) {
    let mut controller = driver.controller().await;
    let class = Class::new(lab, "")
        .without("radosNamespace")
        .with("clusterID", "prod")
        .with("trashRetention", "7d");
    let class_of = |namespace: &str, name: &str| {
        class
            .clone()
            .with("csi.storage.k8s.io/pvc/namespace", namespace)
            .with("csi.storage.k8s.io/pvc/name", name)
    };
    let mut ids = Vec::new();
    for (namespace, name, gigabytes) in
        [("shop", "data", 10), ("shop", "old", 2), ("lab", "test", 1)]
    {
        let request =
            class_of(namespace, name).create_volume(&format!("pvc-{name}"), gigabytes * 1024 * MIB);
        let made = controller.create_volume(request).await.unwrap().into_inner();
        ids.push(made.volume.unwrap().volume_id);
        let pool = lab.connect().pool(POOL, "").unwrap();
        let image =
            pool.open_image(ImageKey::Name(&format!("csi-pvc-{name}")), OpenMode::ReadWrite);
        image.unwrap().write_at(0, &[1; 4096]).unwrap();
    }
    controller.create_snapshot(class.create_snapshot("nightly", &ids[0])).await.unwrap();
    let clone = CreateVolumeRequest {
        volume_content_source: Some(from_volume(&ids[0])),
        ..class_of("shop", "copy").create_volume("pvc-copy", 10 * 1024 * MIB)
    };
    controller.create_volume(clone).await.unwrap();
    let publish = ControllerPublishVolumeRequest {
        volume_id: ids[0].clone(),
        node_id: "worker-1".to_owned(),
        volume_capability: Some(filesystem()),
        secrets: class.secrets.clone(),
        ..ControllerPublishVolumeRequest::default()
    };
    controller.controller_publish_volume(publish).await.unwrap();
    for id in &ids[1..] {
        controller.delete_volume(class.delete_volume(id)).await.unwrap();
    }
}

/// What a command of the page prints.
fn run(tool: &Tool, command: &str) -> String {
    let program = Path::new(env!("CARGO_BIN_EXE_cinderblock"));
    let path = std::env::var("PATH").unwrap();
    let output = Command::new("sh")
        .args(["-c", &format!("exec 2>&1; {command}")])
        .env("PATH", format!("{}:{path}", program.parent().unwrap().display()))
        .env("CINDERBLOCK_CONFIG", tool.config())
        .output()
        .unwrap();
    text(&output.stdout)
}

/// The text with what differs from run to run as the page has it.
fn told_apart(printed: &str, fsid: &str, tool: &Tool, ids: &[String]) -> String {
    let mut text = printed
        .replace(fsid, "0b9e7a52-5c1e-4b6f-9d0a-2f1c7d3e8a46")
        .replace(tool.config().to_str().unwrap(), "clusters.yaml");
    for (number, id) in ids.iter().enumerate() {
        text = text.replace(id.as_str(), &format!("10{number}de638515e"));
    }
    let mut lines: Vec<String> = text.lines().map(with_fixed_times).collect();
    for line in &mut lines {
        for (before, fixed) in [
            ("librbd of Ceph ", "20.2.4"),
            ("has one of the type ", "aes"),
            ("require-min-compat-client ", "luminous"),
            ("room for ", "7782 MiB"),
        ] {
            if let Some(at) = line.find(before) {
                line.truncate(at + before.len());
                line.push_str(fixed);
            }
        }
    }
    lines.into_iter().map(|line| line + "\n").collect()
}

/// Times of the form 2026-12-01T09:00:00Z are the same in each line; the second is a week later.
fn with_fixed_times(line: &str) -> String {
    const FIXED: &str = "2026-12-01T09:00:00Z";
    const WEEK_LATER: &str = "2026-12-08T09:00:00Z";
    let is_time = |text: &str| {
        text.len() == FIXED.len()
            && text.bytes().zip(FIXED.bytes()).all(|(now, fixed)| {
                if fixed.is_ascii_digit() { now.is_ascii_digit() } else { now == fixed }
            })
    };
    let mut fixed = String::new();
    let mut rest = line;
    while let Some(first) = rest.chars().next() {
        if rest.is_char_boundary(FIXED.len().min(rest.len()))
            && is_time(&rest[..FIXED.len().min(rest.len())])
        {
            fixed.push_str(if fixed.contains(FIXED) { WEEK_LATER } else { FIXED });
            rest = &rest[FIXED.len()..];
        } else {
            fixed.push(first);
            rest = &rest[first.len_utf8()..];
        }
    }
    fixed
}
