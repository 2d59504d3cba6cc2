//! What is left to its owner, and why.

use cinderblock::rbd::{ImageKey, OpenMode};
use serde_json::json;

use crate::common::{Lab, Namespace};
use crate::fixtures::{CephCsi, uuid};
use crate::program::{Program, objects};

#[test]
fn what_cannot_be_adopted_is_named_with_its_reason_and_left_as_it_is() {
    let lab = Lab::from_environment();
    let namespace = Namespace::new(&lab);
    let pool = namespace.pool(&*lab.connect());
    let csi = CephCsi::new(pool.clone());
    let program = Program::new(&lab, &namespace.name);
    let images: Vec<_> = (1..=9).map(|n| csi.volume(n)).collect();
    let open = |n: usize| pool.open_image(ImageKey::Name(&images[n - 1]), OpenMode::ReadWrite);
    let object = |n| format!("csi.volume.{}", uuid(n));

    csi.set(&object(1), &[("csi.volume.encryptKMS", "vault")]);
    open(2).unwrap().metadata_set(".rbd.csi.ceph.com/encrypted", "encrypted").unwrap();
    open(3).unwrap().write_at(0, b"LUKS\xba\xbe\x00\x01").unwrap();
    let watcher = open(4).unwrap();
    csi.set(&object(5), &[("csi.groupid", "0001-0003-lab-0000000000000001-group")]);
    pool.remove_image(&images[5]).unwrap();
    let snapshot = csi.snapshot(101, 9);
    csi.set("csi.volumes.default", &[("csi.volume.pvc-topology", "0000000000000002/abc")]);

    let mut old = objects(&csi);
    for item in old["items"].as_array_mut().unwrap() {
        match item["metadata"]["name"].as_str().unwrap() {
            "pvc-7" => item["spec"]["persistentVolumeReclaimPolicy"] = json!("Delete"),
            "snapcontent-snapshot-101" => item["spec"]["deletionPolicy"] = json!("Delete"),
            _ => {}
        }
    }
    old["items"].as_array_mut().unwrap().push(json!({
        "kind": "VolumeAttachment",
        "metadata": { "name": "csi-8" },
        "spec": { "nodeName": "node-3", "source": { "persistentVolumeName": "pvc-8" } },
    }));
    let file = program.path("old.json");
    std::fs::write(&file, old.to_string()).unwrap();
    let before = csi.journal();

    let unsaid = program.expect(1, "adopt", &["--from", "ceph-csi", "--apply"]);
    assert!(unsaid.contains("give --manifests"), "{unsaid}");
    let arguments = ["--from", "ceph-csi", "--manifests", file.to_str().unwrap(), "--apply"];
    let said = program.expect(3, "adopt", &arguments);
    let line = |name: &str| {
        let found = said.lines().find(|line| line.split_whitespace().any(|word| word == name));
        found.unwrap_or_else(|| panic!("no {name} in {said}")).to_owned()
    };
    for (name, words) in [
        ("pvc-1", "is left alone: it is encrypted"),
        ("pvc-2", "is left alone: it is encrypted"),
        ("pvc-3", "is left alone: it is encrypted"),
        ("pvc-4", "is left alone: it is open at "),
        ("pvc-5", "is left alone: it belongs to a group"),
        ("pvc-6", "is not there: its image is not there"),
        ("pvc-7", "kubectl patch pv pvc-7"),
        ("pvc-8", "attached to node-3"),
        ("pvc-9", "is adopted"),
        ("snapshot-101", "kubectl patch volumesnapshotcontent snapcontent-snapshot-101"),
        ("pvc-topology", "another pool than the journal"),
    ] {
        assert!(line(name).contains(words), "{name}: {}", line(name));
    }
    drop(watcher);
    // All but what was adopted is as it was.
    let mut wanted = before.clone();
    wanted.get_mut("csi.volumes.default").unwrap().remove("csi.volume.pvc-9");
    wanted.remove(&object(9));
    assert_eq!(csi.journal(), wanted);

    program.expect(0, "release", &["--apply"]);
    assert_eq!(csi.journal(), before);

    // ceph-csi has made another volume of that name since.
    program.expect(0, "adopt", &["--from", "ceph-csi", "--objects-checked", "--apply", "pvc-9"]);
    csi.set("csi.volumes.default", &[("csi.volume.pvc-9", &uuid(77))]);
    let said = program.expect(1, "release", &["--apply", "pvc-9"]);
    assert!(said.contains("ceph-csi has made another volume of that name"), "{said}");

    for image in images.iter().filter(|image| **image != images[5]) {
        if *image == images[8] {
            pool.remove_image(&snapshot).unwrap_err();
            let opened = pool.open_image(ImageKey::Name(&snapshot), OpenMode::ReadWrite).unwrap();
            opened.remove_snapshot(&snapshot).unwrap();
            drop(opened);
            pool.remove_image(&snapshot).unwrap();
        }
        pool.remove_image(image).unwrap();
    }
    for object in namespace.objects() {
        if object.starts_with("csi.") || object.starts_with("cinderblock.") {
            pool.remove_object(&object).unwrap();
        }
    }
    namespace.assert_empty();
}
