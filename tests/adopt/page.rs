//! The commands of `docs/adopting.md`, in its order. A stand-in for kubectl hands out the old
//! objects and keeps the new ones.

use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use crate::common::{Lab, Namespace, POOL};
use crate::fixtures::{CephCsi, Cinder};
use crate::program::{Program, objects, text};

const PAGE: &str = include_str!("../../docs/adopting.md");

/// What stands for kubectl: `get -o json` gives the old objects, `get -o name` their names, and
/// `apply -f` keeps what it gets.
const KUBECTL: &str = r#"#!/bin/sh
set -e
echo "$@" >> calls
case "$*" in
"get pv -o name") echo persistentvolume/pvc-1 ;;
"get volumesnapshotcontent -o name") echo volumesnapshotcontent/snapcontent-snapshot-101 ;;
"get pv,volumesnapshotcontent,volumeattachment -o json") cat objects.json ;;
"apply -f new.json") cp new.json applied.json ;;
patch*|delete*) ;;
*) echo "the stand-in knows no kubectl $*" >&2; exit 1 ;;
esac
"#;

/// The commands of each block under a heading.
fn blocks(heading: &str) -> Vec<String> {
    let (_, rest) = PAGE.split_once(&format!("\n## {heading}\n")).unwrap();
    let section = rest.split("\n## ").next().unwrap();
    let blocks = section.split("```sh\n").skip(1);
    blocks.map(|block| block.split("```").next().unwrap().to_owned()).collect()
}

/// Runs a block as it stands, but in the namespace of the test.
fn run(lab: &Lab, program: &Program, namespace: &str, block: &str) -> (i32, String) {
    let block = block
        .replace("--pool volumes", "--pool rbd")
        .replace("--pool rbd", &format!("--pool {POOL} --namespace {namespace}"))
        .replace("rbd/disk-7", &format!("{POOL}/{namespace}/disk-7"))
        .replace("--config clusters.yaml", "--config config.yaml");
    let output = Command::new("bash")
        .args(["-euc", &block])
        .current_dir(program.path(""))
        .env("PATH", format!("{}:{}", program.path("").display(), std::env::var("PATH").unwrap()))
        .env("CEPH_CONF", &lab.ceph_conf)
        .env("CEPH_ARGS", format!("--id {}", lab.user))
        .output()
        .unwrap();
    (output.status.code().unwrap(), text(&output))
}

#[test]
fn the_page_on_adopting_is_right() {
    let lab = Lab::from_environment();
    let namespace = Namespace::new(&lab);
    let pool = namespace.pool(&*lab.connect());
    let program = Program::new(&lab, &namespace.name);
    let kubectl = program.path("kubectl");
    std::fs::write(&kubectl, KUBECTL).unwrap();
    std::fs::set_permissions(&kubectl, std::fs::Permissions::from_mode(0o755)).unwrap();
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_cinderblock"), program.path("cinderblock"))
        .unwrap();
    let page = |heading: &str, codes: &[i32]| -> Vec<String> {
        let blocks = blocks(heading);
        assert_eq!(blocks.len(), codes.len(), "{heading}");
        let run = |(block, code): (&String, &i32)| {
            // A look finds something, and says so by its exit status.
            let block = block.replace("--from cinder\n", "--from cinder || test $? = 3\n");
            let block = block.replace("--pool rbd\n", "--pool rbd || test $? = 3\n");
            let (found, said) = run(&lab, &program, &namespace.name, &block);
            assert_eq!(found, *code, "{block}\n{said}");
            said
        };
        blocks.iter().zip(codes).map(run).collect()
    };

    let csi = CephCsi::new(pool.clone());
    csi.volume(1);
    csi.snapshot(101, 1);
    csi.cloned(3, 1);
    std::fs::write(program.path("objects.json"), objects(&csi).to_string()).unwrap();
    let before = csi.journal();
    let said = page("From ceph-csi", &[0, 3, 0, 0, 0]);
    // The table on the page is the one that is written.
    assert!(PAGE.contains(said[1].trim()), "{}", said[1]);
    let applied = std::fs::read_to_string(program.path("applied.json")).unwrap();
    assert!(applied.contains("\"rbd.csi.cinderblock.dev\""), "{applied}");
    assert!(!applied.contains("rbd.csi.ceph.com"), "{applied}");
    let calls = std::fs::read_to_string(program.path("calls")).unwrap();
    assert!(calls.contains("patch volumesnapshotcontent/snapcontent-snapshot-101"), "{calls}");

    page("Back to ceph-csi", &[0]);
    assert_eq!(csi.journal(), before);

    Cinder { pool: pool.clone() }.volume(7);
    page("From Cinder", &[0]);
    page("Any image", &[0]);
    let applied = std::fs::read_to_string(program.path("new.json")).unwrap();
    assert!(applied.contains("\"disk-7\""), "{applied}");

    // All of it goes by the driver's own means.
    let (code, said) = run(
        &lab,
        &program,
        &namespace.name,
        "cinderblock adopt --config clusters.yaml --pool rbd --from ceph-csi --objects-checked --apply",
    );
    assert_eq!(code, 0, "{said}");
    let process = cinderblock::volume::Process::default();
    let activity = std::sync::Arc::default();
    let volumes = cinderblock::volume::Volumes::new(pool.clone(), "default", process, activity);
    for item in volumes.plan_release().unwrap() {
        match item.kind {
            cinderblock::volume::adopt::Kind::Snapshot => {
                let record = volumes.catalogue().snapshot(&item.image).unwrap().unwrap().record;
                volumes.delete_snapshot(&record.image_id, &item.image).unwrap();
            }
            _ => drop(volumes.delete(&item.image).unwrap()),
        }
    }
    volumes.settle_own();
    csi.assert_journal_is_empty();
    namespace.assert_nothing_is_left();
}
