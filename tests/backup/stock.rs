//! Restore points are restored by programs that everybody has, as `docs/backup.md` shows.

use std::path::Path;
use std::process::Command;

use crate::common::{Lab, Namespace, POOL};
use crate::field::{Folder, MIB, assert_same, back_up, open, read, volume, volumes_of, whole};
use crate::program::scribble;

#[test]
fn zstd_and_rbd_restore_a_chain() {
    let lab = Lab::from_environment();
    let namespace = Namespace::new(&lab);
    let volumes = volumes_of(namespace.pool(&*lab.connect()));
    let (folder, snapshots) = (Folder::new(), ["full", "one", "two", "three"]);
    let store = folder.store();
    let mut request = crate::field::request("vm", 20 * MIB + 1000);
    // As most images are, with objects of 4 MiB.
    request.options.order = Some(22);
    volumes.create(&request).unwrap();
    let mut points = Vec::new();
    for (seed, _) in (1..).zip(snapshots) {
        scribble(volumes.pool(), "vm", seed);
        match seed {
            2 => open(&volumes, "vm").resize(30 * MIB, false).unwrap(),
            3 => open(&volumes, "vm").resize(9 * MIB + 5, true).unwrap(),
            _ => {}
        }
        points.push((back_up(&volumes, &store, "vm"), read(&volumes, "vm")));
    }
    assert!(points[1..].iter().all(|(made, _)| made.parent.is_some()));
    let image = format!("{POOL}/{}/stock", namespace.name);
    // The size at first does not matter: each stream sets it.
    lab.run("rbd", &["create", "--size", "1M", &image]);
    for (made, expected) in &points {
        import(&lab, &folder.file(&made.point), &image);
        assert_same(&read(&volumes, "stock"), expected, &made.point);
    }
    lab.run("rbd", &["resize", "--no-progress", "--size", "64M", &image]);
    let grown = read(&volumes, "stock");
    assert!(grown.starts_with(&points[3].1) && grown.len() as u64 == 64 * MIB);
    assert!(grown[points[3].1.len()..].iter().all(|byte| *byte == 0));
    // The snapshots are those of the streams, one for each restore point.
    let listed = lab.run("rbd", &["snap", "ls", &image]);
    for (made, _) in &points {
        assert!(listed.contains(&made.snapshot), "{listed}");
    }
    lab.run("rbd", &["snap", "purge", "--no-progress", &image]);
    lab.run("rbd", &["rm", "--no-progress", &image]);
    volumes.delete("vm").unwrap();
    namespace.assert_nothing_is_left();
}

/// `cat FOLDER/*.zst | zstd --decompress | rbd import-diff - IMAGE`
fn import(lab: &Lab, folder: &Path, image: &str) {
    let script = format!(
        "set -o pipefail; cat '{}'/*.zst | zstd --decompress --stdout | \
         rbd --conf '{}' --id '{}' import-diff --no-progress - '{image}'",
        folder.display(),
        lab.ceph_conf.display(),
        lab.user
    );
    let output = Command::new("bash").args(["-c", &script]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_stream_is_what_rbd_export_diff_writes_for_what_it_says() {
    let lab = Lab::from_environment();
    let namespace = Namespace::new(&lab);
    let volumes = volumes_of(namespace.pool(&*lab.connect()));
    let folder = Folder::new();
    volume(&volumes, "vm", 8 * MIB);
    scribble(volumes.pool(), "vm", 7);
    let job = cinderblock::transfer::Job::default();
    let made = cinderblock::backup::create(&volumes, &folder.store(), &whole("vm"), &job).unwrap();
    // rbd itself reads it, and says the same of its beginning as of its own.
    let theirs = folder.file("theirs");
    let spec = format!("{POOL}/{}/vm@{}", namespace.name, made.snapshot);
    lab.run("rbd", &["export-diff", "--no-progress", &spec, &theirs.display().to_string()]);
    let theirs = std::fs::read(theirs).unwrap();
    let script = format!("cat '{}'/*.zst | zstd -dc", folder.file(&made.point).display());
    let ours = Command::new("sh").args(["-c", &script]).output().unwrap().stdout;
    let beginning = "rbd diff v1\n".len() + 1 + 4 + made.snapshot.len() + 1 + 8;
    assert_eq!(ours[..beginning], theirs[..beginning]);
    assert_eq!((ours.last(), theirs.last()), (Some(&b'e'), Some(&b'e')));
    volumes.delete("vm").unwrap();
    namespace.assert_nothing_is_left();
}
