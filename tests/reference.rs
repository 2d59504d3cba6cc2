//! `docs/reference/` says what the code does: its tables are made of the code's, its capabilities
//! are asked of the driver, and its command line is the program's own help. After a change:
//! `UPDATE_REFERENCE=1 cargo test --test reference`, and commit.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![allow(clippy::format_push_string, reason = "a text that grows")]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use cinderblock::csi::config::{CLUSTER_KEYS, Config, FILE_KEYS};
use cinderblock::csi::parameters::{
    GROUP_PARAMETERS, Parameter, SNAPSHOT_PARAMETERS, VOLUME_PARAMETERS,
};
use cinderblock::csi::proto::node_client::NodeClient;
use cinderblock::csi::proto::{
    ControllerGetCapabilitiesRequest, GetPluginCapabilitiesRequest, NodeGetCapabilitiesRequest,
    controller_service_capability, node_service_capability, plugin_capability,
};
use cinderblock::csi::qos::MUTABLE_PARAMETERS;
use cinderblock::csi::status::{ANSWERS, CEPH_ERRORS};
use cinderblock::metrics::{
    CLASSES, CONNECTION_STATES, Description, FENCED, ILLNESSES, MKFS_RESULTS, MOUNTERS, Metrics,
    RECONNECT_REASONS, SWEEP_OUTCOMES,
};
use common::driver::Driver;
use tonic::Code;

/// Compares `docs/reference/<name>` with the text, or writes it.
fn assert_is(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/reference").join(name);
    if std::env::var_os("UPDATE_REFERENCE").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    let differing = committed.lines().zip(text.lines()).find(|(committed, now)| committed != now);
    assert!(
        committed == text,
        "docs/reference/{name} is not what the code says; run UPDATE_REFERENCE=1 cargo test --test reference\n{differing:#?}"
    );
}

fn table(parameters: &[Parameter]) -> String {
    let mut text = String::from("| name | without it | |\n|---|---|---|\n");
    for Parameter { name, default, meaning } in parameters {
        text += &format!("| `{name}` | {default} | {meaning} |\n");
    }
    text
}

#[test]
fn parameters() {
    assert_is(
        "parameters.md",
        &format!(
            "# Parameters\n\n\
             Names are ceph-csi's wherever both drivers have the thing. An unknown parameter is refused with the nearest known one; keys\n\
             that begin with `csi.storage.k8s.io/`, which sidecars add, are tolerated and never compared.\n\n\
             ## StorageClass\n\n{}\n## VolumeSnapshotClass\n\n{}\n## VolumeGroupSnapshotClass\n\n{}\n## VolumeAttributesClass\n\n\
             librbd's quality of service, which krbd does not know. Whole numbers. All keys of a request are checked before any is\n\
             applied, and keys that are not named stay as they are.\n\n{}\n## Secrets\n\n\
             | name | |\n|---|---|\n\
             | `userID` | The Ceph user, without `client.`. |\n\
             | `userKey` | Its key, as `ceph auth get-key` prints it. |\n\n\
             ## Configuration file\n\n\
             YAML or JSON: a list of clusters, as ceph-csi's `config.json` has it, or a map with these keys. An unknown key is an error.\n\n\
             {}\nThe keys of a cluster:\n\n{}",
            table(VOLUME_PARAMETERS),
            table(SNAPSHOT_PARAMETERS),
            table(GROUP_PARAMETERS),
            table(MUTABLE_PARAMETERS),
            table(FILE_KEYS),
            table(CLUSTER_KEYS),
        ),
    );
}

/// The words that an error of the parser lists as what it expected.
fn expected(error: &str) -> BTreeSet<String> {
    let list = error.lines().next().unwrap().split("expected ").nth(1).unwrap();
    let words = list
        .trim_start_matches("one of ")
        .split([',', ' '])
        .filter(|word| !matches!(*word, "" | "or"));
    words.map(|word| word.trim_matches('`').to_owned()).collect()
}

#[test]
fn the_configuration_has_these_keys_and_no_others() {
    let names =
        |keys: &[Parameter]| keys.iter().map(|key| key.name.to_owned()).collect::<BTreeSet<_>>();
    let error = Config::parse("- {clusterID: a, no-such-key: 1}").unwrap_err();
    assert_eq!(expected(&error), names(CLUSTER_KEYS), "{error}");
    let error = Config::parse("{clusters: [], no-such-key: 1}").unwrap_err();
    assert_eq!(expected(&error), names(FILE_KEYS), "{error}");
}

fn name(code: Code) -> String {
    let mut name = String::new();
    for c in format!("{code:?}").chars() {
        if c.is_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(c.to_ascii_uppercase());
    }
    name
}

#[test]
fn errors() {
    let mut text = String::from(
        "# Errors\n\n\
         A message says what, which object, why, and what to do; this is the same from the other side. Sidecars take ABORTED,\n\
         DEADLINE_EXCEEDED and UNAVAILABLE (and CANCELLED) for \"may still be running\" and ask again; every other code is final, and then nothing\n\
         is left behind. Once something was changed, an unfinished or unknown outcome is one of those three, whatever the cause. The message ends\n\
         with the id of the request, which is in its log lines too.\n\n\
         | code | cause | remedy |\n|---|---|---|\n",
    );
    for answer in ANSWERS {
        text += &format!("| {} | {} | {} |\n", name(answer.code), answer.cause, answer.remedy);
    }
    text += "\n## What Ceph answered\n\n\
             Messages end with Ceph's own error. Before anything was changed it is answered so; any other is INTERNAL.\n\n\
             | Ceph | code | cause | remedy |\n|---|---|---|---|\n";
    for error in CEPH_ERRORS {
        text += &format!(
            "| {:?} | {} | {} | {} |\n",
            error.errno,
            name(error.code()),
            error.cause,
            error.remedy
        );
    }
    assert_is("errors.md", &text);
}

/// What the driver advertises with this configuration and these arguments.
async fn advertised(config: &str, more: &[&str]) -> BTreeSet<(&'static str, &'static str)> {
    let state = tempfile::tempdir().unwrap();
    let arguments =
        ["--role", "all", "--node-id", "n", "--state-dir", state.path().to_str().unwrap()];
    let driver = Driver::start(config, &[&arguments[..], more].concat());
    let mut found = BTreeSet::new();
    let plugin = driver
        .identity()
        .await
        .get_plugin_capabilities(GetPluginCapabilitiesRequest {})
        .await
        .unwrap();
    for capability in plugin.into_inner().capabilities {
        found.insert((
            "plugin",
            match capability.r#type.unwrap() {
                plugin_capability::Type::Service(service) => service.r#type().as_str_name(),
                plugin_capability::Type::VolumeExpansion(expansion) => {
                    expansion.r#type().as_str_name()
                }
            },
        ));
    }
    let request = ControllerGetCapabilitiesRequest {};
    let controller = driver.controller().await.controller_get_capabilities(request).await.unwrap();
    for capability in controller.into_inner().capabilities {
        let controller_service_capability::Type::Rpc(rpc) = capability.r#type.unwrap();
        found.insert(("controller", rpc.r#type().as_str_name()));
    }
    let node = NodeClient::new(driver.channel().await)
        .node_get_capabilities(NodeGetCapabilitiesRequest {})
        .await
        .unwrap();
    for capability in node.into_inner().capabilities {
        let node_service_capability::Type::Rpc(rpc) = capability.r#type.unwrap();
        found.insert(("node", rpc.r#type().as_str_name()));
    }
    found
}

#[tokio::test]
async fn capabilities() {
    // No monitor listens there: what a driver can do does not depend on whether its cluster
    // answers.
    let key = tempfile::NamedTempFile::new().unwrap();
    let without = "- {clusterID: lab, monitors: ['127.0.0.1:1']}".to_string();
    let with = format!(
        "- {{clusterID: lab, monitors: ['127.0.0.1:1'], userID: u, keyFile: '{}', pools: [rbd]}}",
        key.path().display()
    );
    let mut when: BTreeMap<_, &str> = BTreeMap::new();
    for capability in advertised(&without, &[]).await {
        when.entry(capability).or_insert("always");
    }
    for capability in advertised(&with, &[]).await {
        when.entry(capability).or_insert(
            "when every cluster of the configuration has `userID`, `keyFile` and `pools`",
        );
    }
    let mut text = String::from(
        "# Capabilities\n\n\
         What the driver advertises, by service. The lists, GetCapacity and ControllerGetVolume come without secrets, so they need a user of\n\
         the driver's own. RPCs whose capability is not advertised answer UNIMPLEMENTED, or an error that names what is missing.\n\n\
         | service | capability | |\n|---|---|---|\n",
    );
    for ((service, capability), when) in when {
        text += &format!("| {service} | {capability} | {when} |\n");
    }
    assert_is("capabilities.md", &text);
}

#[test]
fn metrics() {
    let mut text = String::from(
        "# Metrics\n\n\
         What `/metrics` says with `--metrics-address`; [monitoring.md](../monitoring.md) says how to use it. A histogram has its name with\n\
         `_bucket`, `_count` and `_sum`. `cluster`, `pool` and `namespace` are those that the configuration names, all others together are\n\
         `other`.\n\n\
         | metric | kind | labels | |\n|---|---|---|---|\n",
    );
    for Description { name, kind, labels, help } in Metrics::new().descriptions() {
        let labels: Vec<_> = labels.iter().map(|label| format!("`{label}`")).collect();
        text += &format!("| `{name}` | {kind} | {} | {help} |\n", labels.join(", "));
    }
    text += "\n## Values of labels\n\n| label | of | values |\n|---|---|---|\n";
    for (label, of, values) in [
        ("class", "operations", &CLASSES[..]),
        ("state", "connections", &CONNECTION_STATES),
        ("reason", "reconnects", &RECONNECT_REASONS),
        ("outcome", "sweeps", &SWEEP_OUTCOMES),
        ("of", "fenced clients", &FENCED),
        ("result", "mkfs", &MKFS_RESULTS),
        ("illness", "volumes", &ILLNESSES),
        ("mounter", "mapped devices", &MOUNTERS),
    ] {
        let values: Vec<_> = values.iter().map(|value| format!("`{value}`")).collect();
        text += &format!("| `{label}` | {of} | {} |\n", values.join(", "));
    }
    text += "\n`method` is the name of an RPC of CSI, or `other`; `code` is gRPC's; `errno` is Ceph's.\n";
    assert_is("metrics.md", &text);
}

fn help(words: &[&str]) -> String {
    let output =
        Command::new(env!("CARGO_BIN_EXE_cinderblock")).args(words).arg("--help").output().unwrap();
    assert!(output.status.success(), "{words:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    // Lines that hold nothing but the indentation of a list.
    text.lines().map(str::trim_end).collect::<Vec<_>>().join("\n")
}

/// The commands that a help lists.
fn commands(help: &str) -> impl Iterator<Item = &str> {
    let lines = help.split("Commands:\n").nth(1).unwrap_or_default().lines();
    lines.take_while(|line| !line.is_empty()).filter_map(|line| line.split_whitespace().next())
}

#[test]
fn command_line() {
    let top = help(&[]);
    let mut text = format!("# Command line\n\nThe program's own help.\n\n```\n{top}\n```\n");
    let names: Vec<_> = commands(&top).collect();
    assert!(names.len() > 3, "{names:?}");
    for name in names.into_iter().filter(|name| *name != "help") {
        let said = help(&[name]);
        text += &format!("\n## cinderblock {name}\n\n```\n{said}\n```\n");
        // What `call` has are CSI's own.
        for part in commands(&said).filter(|part| name != "call" && *part != "help") {
            text +=
                &format!("\n## cinderblock {name} {part}\n\n```\n{}\n```\n", help(&[name, part]));
        }
    }
    assert_is("command-line.md", &text);
}

/// The functions of Cinder's driver that `docs/from-cinder.md` tells of, by section.
const CINDERS: &str = "
    ascii_str RBDImageMetadata.__init__ RBDImageIOWrapper.__init__ RBDImageIOWrapper._inc_offset
    RBDImageIOWrapper.rbd_image RBDImageIOWrapper.rbd_user RBDImageIOWrapper.rbd_pool
    RBDImageIOWrapper.rbd_conf RBDImageIOWrapper.read RBDImageIOWrapper.write
    RBDImageIOWrapper.seekable RBDImageIOWrapper.seek RBDImageIOWrapper.tell
    RBDImageIOWrapper.flush RBDImageIOWrapper.fileno RBDImageIOWrapper.close
    RBDVolumeProxy.__init__ RBDVolumeProxy.__enter__ RBDVolumeProxy.__exit__
    RBDVolumeProxy.__getattr__ RADOSClient.__init__ RADOSClient.__enter__ RADOSClient.__exit__
    RBDDriver.__init__ check_for_setup_error _ceph_args _connect_to_rados _disconnect_from_rados
    _get_mon_addrs _get_fsid _supports_layering _update_volume_stats get_volume_stats
    create_volume _resize extend_volume _get_clone_depth create_cloned_volume _clone _flatten
    create_volume_from_snapshot delete_volume _get_clone_info _delete_clone_parent_refs
    _get_backup_snaps _delete_backup_snaps create_snapshot delete_snapshot
    ensure_export create_export remove_export initialize_connection terminate_connection
    _parse_location _is_cloneable clone_image _ensure_tmp_exists copy_image_to_volume
    copy_volume_to_image backup_volume restore_backup
    rbd_pool rbd_user rbd_ceph_conf rbd_flatten_volume_from_snapshot rbd_secret_uuid
    volume_tmp_dir rbd_max_clone_depth";

/// The words of a cell that are code.
fn code(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

#[test]
fn each_function_of_cinders_driver_has_its_place_and_its_tests() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = std::fs::read_to_string(root.join("docs/from-cinder.md")).unwrap();
    let rows = page.lines().filter(|line| line.starts_with("| `"));
    let rows: Vec<Vec<_>> = rows.map(|row| row.trim_matches('|').split(" | ").collect()).collect();
    let names: Vec<_> = rows.iter().filter_map(|row| code(row[0]).next()).collect();
    assert_eq!(names, CINDERS.split_whitespace().collect::<Vec<_>>());
    for row in &rows {
        let [there, here, shown] = row[..] else { panic!("{row:?} has not three cells") };
        let files: Vec<_> = code(here).filter(|word| word.starts_with("src/")).collect();
        assert!(!files.is_empty(), "{there} has no place");
        for file in files {
            assert!(root.join(file).is_file(), "{there} names {file}, which is not there");
        }
        let (mut file, mut tests) = (String::new(), 0);
        for word in code(shown) {
            if word.starts_with("tests/") {
                file = std::fs::read_to_string(root.join(word)).unwrap_or_default();
                assert!(!file.is_empty(), "{there} names {word}, which is not there");
            } else {
                let is_test = [format!("fn {word}("), format!("check!({word}")];
                let found = is_test.iter().any(|test| file.contains(test));
                assert!(found, "{there} names the test {word}, which is not in that file");
                tests += 1;
            }
        }
        assert!(tests > 0, "{there} has no test");
    }
}
