//! Formats other than raw, and files that strangers made.

use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use cinderblock::rbd::Pool;
use cinderblock::rbd::model::Model;
use cinderblock::transfer::{Error, Import, Job, Place, Wanted, import};

use crate::common::{Lab, Namespace, POOL};
use crate::disk::{Disks, MIB, assert_same, disk, export_file, images, import_file, read, tools};

fn pool() -> Arc<dyn Pool> {
    let model = Model::new();
    model.create_pool(POOL);
    model.connect().cluster().pool(POOL, "").unwrap()
}

fn qemu_img(arguments: &[&str]) {
    let output = Command::new("qemu-img").args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {output:?}");
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A disk in another format.
fn converted(disks: &Disks, raw: &Path, format: &[&str]) -> PathBuf {
    let path = disks.path(&format!("disk.{}", format.join("")));
    qemu_img(&[&["convert", "-O"], format, &[text(raw), text(&path)]].concat());
    path
}

#[test]
fn other_formats_go_in_and_out() {
    formats_go_in_and_out(&pool());
}

#[test]
fn other_formats_go_in_and_out_of_ceph() {
    let lab = Lab::from_environment();
    let namespace = Namespace::new(&lab);
    formats_go_in_and_out(&namespace.pool(&*lab.connect()));
    namespace.assert_nothing_is_left();
}

fn formats_go_in_and_out(pool: &Arc<dyn Pool>) {
    let disks = Disks::new();
    let bytes = disk(41, 40 * MIB + 512);
    let raw = disks.sparse("raw", &bytes);
    for format in [
        &["qcow2"][..],
        &["qcow2", "-c"],
        &["vmdk"],
        &["vmdk", "-o", "subformat=streamOptimized"],
        &["vdi"],
        &["vhdx"],
    ] {
        let path = converted(&disks, &raw, format);
        let imported = import_file(pool, &path, "image").unwrap();
        assert_eq!(imported.format, format[0]);
        let expected = format!("blake3:{}", blake3::hash(&std::fs::read(&path).unwrap()));
        assert_eq!(imported.checksum, Some(expected), "of the file as it is");
        assert_same(&read(&**pool, "image"), &bytes, &format!("{format:?} imported"));
        let back = disks.path(&format!("back.{}", format[0]));
        let exported = export_file(pool, "image", &back).unwrap();
        let expected = format!("blake3:{}", blake3::hash(&std::fs::read(&back).unwrap()));
        assert_eq!(exported.checksum, Some(expected), "of the file as it is");
        let theirs = disks.path("theirs");
        qemu_img(&["convert", "-f", format[0], "-O", "raw", text(&back), text(&theirs)]);
        assert_same(&std::fs::read(&theirs).unwrap(), &bytes, &format!("{format:?} exported"));
        std::fs::remove_file(&back).unwrap();
        pool.remove_image("image").unwrap();
    }
    assert!(disks.names().iter().all(|name| !name.starts_with('.')), "{:?}", disks.names());
}

/// Refuses the file, and has no image of it. What is said.
fn refused(pool: &Arc<dyn Pool>, path: &Path) -> String {
    let said = match import_file(pool, path, "image") {
        Err(Error::Refused(said)) => said,
        other => panic!("{} is not refused: {other:?}", path.display()),
    };
    assert!(images(&**pool).is_empty());
    said
}

#[test]
fn what_is_encrypted_is_refused() {
    let (pool, disks) = (pool(), Disks::new());
    let path = disks.path("encrypted");
    let options = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10";
    let secret = ["--object", "secret,id=s,data=passphrase"];
    let create = ["create", "-f", "qcow2", "-o", options, text(&path), "1M"];
    qemu_img(&[&create[..1], &secret, &create[1..]].concat());
    assert!(refused(&pool, &path).contains("is encrypted"));
}

#[test]
fn what_refers_to_another_file_is_refused() {
    let (pool, disks) = (pool(), Disks::new());
    let secret = disks.path("secret");
    std::fs::write(&secret, vec![0x5a; 1 << 20]).unwrap();
    let overlay = disks.path("overlay");
    qemu_img(&["create", "-f", "qcow2", "-F", "raw", "-b", text(&secret), text(&overlay)]);
    assert!(refused(&pool, &overlay).contains("has a backing file"));

    let outside = disks.path("outside");
    let data = format!("data_file={},data_file_raw=on", disks.path("data").display());
    qemu_img(&["create", "-f", "qcow2", "-o", &data, text(&outside), "1M"]);
    assert!(refused(&pool, &outside).contains("has its data in another file"));

    // A description whose extent is a file of the machine's.
    let described = disks.path("described");
    let words = format!(
        "# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\n\
         createType=\"monolithicFlat\"\nRW 2048 FLAT \"{}\" 0\n",
        secret.display()
    );
    std::fs::write(&described, &words).unwrap();
    assert!(refused(&pool, &described).contains("whose data is in other files"));
    // The same within a sparse one.
    let flat = disks.path("flat");
    qemu_img(&["create", "-f", "vmdk", text(&flat), "1M"]);
    let file = std::fs::OpenOptions::new().write(true).open(&flat).unwrap();
    file.write_all_at(&[0; 10240], 512).unwrap();
    file.write_all_at(words.as_bytes(), 512).unwrap();
    // One of no sectors is taken for the description in it.
    file.write_all_at(&[0; 8], 12).unwrap();
    assert!(refused(&pool, &flat).contains("broken header"));
}

#[test]
fn a_program_that_reads_strangers_files_reads_no_others() {
    // What qemu-img is told to open beside its input is not there for it.
    let disks = Disks::new();
    let secret = disks.path("secret");
    std::fs::write(&secret, vec![0x5a; 1 << 20]).unwrap();
    let input = disks.sparse("input", &disk(40, MIB));
    let run = |limits: [&str; 3], program: &str, arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cinderblock"));
        command.arg("bounded").args(limits).arg(program).args(arguments);
        let output = command.stdin(std::fs::File::open(&input).unwrap()).output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let limits = ["2147483648", "60", "1048576"];
    let (ok, said) = run(limits, "/usr/bin/qemu-img", &["info", "-f", "raw", "/dev/fd/0"]);
    assert!(ok, "{said}");
    let (ok, said) = run(limits, "/usr/bin/qemu-img", &["info", "-f", "raw", text(&secret)]);
    assert!(!ok && said.contains("Permission denied"), "{said}");
    let (ok, said) = run(limits, "/usr/bin/qemu-img", &["info", "nbd://127.0.0.1:1/a"]);
    assert!(!ok && said.contains("not permitted"), "{said}");
    let (ok, said) = run(["1", "60", "0"], "/usr/bin/qemu-img", &["--version"]);
    assert!(!ok, "{said}");
    let target = disks.path("target");
    let output = Command::new(env!("CARGO_BIN_EXE_cinderblock"))
        .args(["bounded", "2147483648", "60", "1000", "/bin/cat"])
        .stdin(std::fs::File::open(&input).unwrap())
        .stdout(std::fs::File::create(&target).unwrap())
        .output()
        .unwrap();
    assert!(!output.status.success(), "{output:?}");
    assert_eq!(target.metadata().unwrap().len(), 1000);
}

#[test]
fn absurd_sizes_are_refused() {
    let (pool, disks) = (pool(), Disks::new());
    for (format, size) in [("qcow2", "1E"), ("vdi", "500T")] {
        let path = disks.path(format);
        if !Command::new("qemu-img")
            .args(["create", "-f", format, text(&path), size])
            .output()
            .unwrap()
            .status
            .success()
        {
            // It makes none of that size; the header of a small one is changed instead.
            qemu_img(&["create", "-f", format, text(&path), "1M"]);
        }
        if format == "qcow2" {
            let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
            file.write_all_at(&(1_u64 << 60).to_be_bytes(), 24).unwrap();
        } else {
            let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
            file.write_all_at(&(1_u64 << 60).to_le_bytes(), 0x170).unwrap();
        }
        let said = refused(&pool, &path);
        assert!(said.contains("claims to hold") || said.contains("cannot be read"), "{said}");
    }
    let large = disks.path("large");
    qemu_img(&["create", "-f", "qcow2", text(&large), "65T"]);
    assert!(refused(&pool, &large).contains("claims to hold"));
}

#[test]
fn what_is_cut_off_is_refused() {
    let (pool, disks) = (pool(), Disks::new());
    let raw = disks.sparse("raw", &disk(42, 40 * MIB));
    for format in [&["vmdk"][..], &["vmdk", "-o", "subformat=streamOptimized"]] {
        let whole = std::fs::read(converted(&disks, &raw, format)).unwrap();
        let path = disks.path("cut");
        let lengths = [whole.len() - 100, whole.len() - 70_000, whole.len() / 2, 70_000, 600, 100];
        for length in lengths {
            // The last bytes of a stream say only that it ends.
            if format.len() > 1 && length + 2048 > whole.len() {
                continue;
            }
            std::fs::write(&path, &whole[..length]).unwrap();
            let said = refused(&pool, &path);
            assert!(
                said.contains("cut off") || said.contains("cannot be read"),
                "{length}: {said}"
            );
        }
    }
    let whole = std::fs::read(converted(&disks, &raw, &["qcow2"])).unwrap();
    let path = disks.path("cut");
    for length in [whole.len() / 2, 100] {
        std::fs::write(&path, &whole[..length]).unwrap();
        refused(&pool, &path);
    }
}

#[test]
fn what_is_compressed_is_refused_and_raw_is_raw_when_asked_for() {
    let (pool, disks) = (pool(), Disks::new());
    let path = disks.path("disk");
    let mut file = std::fs::File::create(&path).unwrap();
    file.write_all(b"\xfd7zXZ\0and more").unwrap();
    assert!(refused(&pool, &path).contains("xzcat"));
    // A guest can have its disk begin like a format.
    let raw = disks.path("raw");
    qemu_img(&["create", "-f", "qcow2", text(&raw), "1M"]);
    let request = Import {
        source: Place::File(raw.clone()),
        format: Some("raw".parse().unwrap()),
        name: "image".to_owned(),
        checksum: Wanted::default(),
        tools: tools(),
    };
    import(&pool, &request, &Job::default()).unwrap();
    assert_same(&read(&*pool, "image"), &std::fs::read(&raw).unwrap(), "raw");
    let wrong = Import {
        source: Place::File(path),
        format: Some("vdi".parse().unwrap()),
        name: "other".to_owned(),
        ..request
    };
    let said = import(&pool, &wrong, &Job::default()).unwrap_err().to_string();
    assert!(said.contains("cut off") || said.contains("cannot be read"), "{said}");
    assert_eq!(images(&*pool), ["image"]);
}
