//! The pages of docs/how-to: every block of commands is run, in the page's order.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::api::text;
use super::chart::NAMESPACE;
use super::field::Field;
use super::jobs;
use super::kubelet::pattern;
use super::shell;
use super::space::Space;

const LENGTH: usize = 1_000_000;
/// Bytes of the disks that the pages bring in.
const DISK: usize = 3 << 20;

/// What stands between the fences of this kind in a page.
fn blocks(page: &str, kind: &str) -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/how-to").join(page);
    let text = fs::read_to_string(path).unwrap();
    let fence = format!("\n```{kind}\n");
    let after = text.split(&fence).skip(1);
    after.map(|rest| rest.split("\n```").next().unwrap().to_owned()).collect()
}

/// A folder with the driver's configuration, and variables that point into it.
struct Desk<'a> {
    space: &'a Space<'a>,
    folder: TempDir,
    target: PathBuf,
}

impl<'a> Desk<'a> {
    fn new(space: &'a Space<'a>) -> Desk<'a> {
        let folder = tempfile::Builder::new().prefix("desk-").tempdir().unwrap();
        fs::copy(space.field.configuration(), folder.path().join("clusters.yaml")).unwrap();
        let target = jobs::volume(space.field, "target").join("prod");
        Desk { space, folder, target }
    }

    /// Runs every block of a page; Jobs that one has made are run before the next.
    fn follow(&self, page: &str) {
        let blocks = blocks(page, "sh");
        assert!(!blocks.is_empty(), "{page} has no commands");
        for block in blocks {
            let lines = block.lines().filter(|line| !line.contains(" wait job/"));
            let commands = lines.collect::<Vec<_>>().join("\n");
            // This machine's kernel has no rbd.
            self.run(&commands.replace("\n  pool: rbd\n", "\n  pool: rbd\n  mounter: fuse\n"));
            for job in self.space.api().list("Job", NAMESPACE) {
                jobs::run(self.space.field, NAMESPACE, text(&job, "/metadata/name"));
            }
        }
    }

    fn run(&self, commands: &str) {
        let target = self.target.display().to_string();
        shell::run(self.space, self.folder.path(), &[("target", &target)], commands);
    }

    fn disk(&self, name: &str) {
        let raw = self.folder.path().join("raw");
        fs::write(&raw, pattern(7, DISK)).unwrap();
        let made = Command::new("qemu-img")
            .args(["convert", "-f", "raw", "-O", "qcow2"])
            .args([&raw, &self.folder.path().join(name)])
            .output()
            .unwrap();
        assert!(made.status.success(), "{made:?}");
    }
}

pub(crate) fn how_to_pages_do_what_they_say() {
    let mut values: Value =
        serde_saphyr::from_str(&blocks("nightly-backup.md", "yaml")[0]).unwrap();
    let backup = values["backup"].as_object_mut().unwrap();
    // A folder stands for the object store, and the schedule does not come in between.
    let instead = json!({
        "target": "/backup/prod", "volume": {"emptyDir": {}}, "environment": {}, "secret": "",
        "suspend": true,
    });
    backup.extend(instead.as_object().unwrap().clone());
    let field = Field::install(&values, None);
    let space = Space::new(&field, "how-to");
    let desk = Desk::new(&space);

    desk.disk("debian-13.qcow2");
    desk.follow("golden-images-for-kubevirt.md");
    let begins = space.read("vm-1", DISK);
    assert!(begins == pattern(7, DISK), "the machine's disk has other bytes");
    space.remove_claim("vm-1");
    space.api().delete("StorageClass", "", "debian-13");
    desk.run("cinderblock image rm --config clusters.yaml rbd/debian-13");

    desk.disk("vm.qcow2");
    desk.follow("moving-a-disk.md");
    assert!(space.read("vm-disk", DISK) == pattern(7, DISK), "the volume has other bytes");
    // As long as the claim, with zeros behind the disk; qemu-img takes those for the same.
    desk.run("qemu-img compare vm.qcow2 vm-out.qcow2");
    space.remove_claim("vm-disk");

    space.claim("data", "immediate", "1Gi", &json!({}));
    space.write("data", &pattern(8, LENGTH));
    desk.follow("nightly-backup.md");

    // The disaster: claim, PersistentVolume and image are gone. What is left is the folder.
    let before = space.bound("data");
    space.remove_claim("data");
    desk.follow("disaster-recovery.md");
    let after = space.bound("data");
    assert_eq!(after["spec"]["csi"], before["spec"]["csi"]);
    assert!(space.read("data", LENGTH) == pattern(8, LENGTH), "other bytes came back");
    space.remove_claim("data");
    drop(desk);
    space.finish();
    field.uninstall();
}
