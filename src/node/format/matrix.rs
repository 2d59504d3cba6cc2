//! Every combination of what can be on a device, what its image can be marked with, where its
//! volume can come from, and how looking at it can fail, on real loop devices with the real
//! programs: mkfs runs where the rule says so, and nowhere else. Whether it ran is seen by the
//! device's bytes.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use super::super::attach::Image;
use super::super::loop_device::LoopDevice;
use super::*;
use crate::rbd::model::Model;
use crate::rbd::{self, Cluster, Errno, ImageKey, ImageOptions, OpenMode};

/// The UUID of the intent, that of filesystems of others, and one that nothing has.
const OURS: &str = "0f6b2f5c-6d52-4c0c-9a63-5f5f2d3c1f10";
const OTHER: &str = "9d1c8a3e-1111-4222-8333-444455556666";

const NOBODYS: &str = "5c6b7a89-aaaa-4bbb-8ccc-dddddddddddd";

/// mkfs.xfs wants at least 300 MiB.
const SIZE: u64 = 320 * MIB;

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output().unwrap();
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{program} {arguments:?}: {text}");
}

/// What can be on a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum On {
    Nothing,
    Ext4,
    OurExt4,
    Xfs,
    OurXfs,
    /// xfs that mkfs has not finished.
    BegunXfs,
    OurBegunXfs,
    /// ext4 that lacks the superblock, as mkfs leaves it that is stopped before its last write.
    BegunExt4,
    OurBegunExt4,
    Luks,
    Swap,
    /// Two signatures that contradict each other.
    Both,
    ByteAtStart,
    ByteInside,
    ByteAtEnd,
}

const CONTENTS: [On; 15] = [
    On::Nothing,
    On::Ext4,
    On::OurExt4,
    On::Xfs,
    On::OurXfs,
    On::BegunXfs,
    On::OurBegunXfs,
    On::BegunExt4,
    On::OurBegunExt4,
    On::Luks,
    On::Swap,
    On::Both,
    On::ByteAtStart,
    On::ByteInside,
    On::ByteAtEnd,
];

impl On {
    /// Writes it to the file at `path`, which becomes a new one of [`SIZE`].
    fn put(self, path: &Path) {
        let file = File::create(path).unwrap();
        file.set_len(0).unwrap();
        file.set_len(SIZE).unwrap();
        let name = path.to_str().unwrap();
        let put = |offset: u64, bytes: &[u8]| file.write_all_at(bytes, offset).unwrap();
        let uuid = match self {
            On::OurExt4 | On::OurXfs | On::OurBegunXfs | On::OurBegunExt4 => OURS,
            _ => OTHER,
        };
        match self {
            On::Nothing => {}
            On::Ext4 | On::OurExt4 | On::BegunExt4 | On::OurBegunExt4 | On::Both => {
                run("mkfs.ext4", &["-q", "-F", "-U", uuid, name]);
            }
            On::Xfs | On::OurXfs | On::BegunXfs | On::OurBegunXfs => {
                run("mkfs.xfs", &["-q", "-f", "-m", &format!("uuid={uuid}"), name]);
            }
            On::Luks => put(0, b"LUKS\xba\xbe\x00\x01"),
            On::Swap => run("mkswap", &[name]),
            On::ByteAtStart => put(7, b"x"),
            On::ByteInside => put(64 * MIB + 9, b"x"),
            On::ByteAtEnd => put(SIZE - 1, b"x"),
        }
        match self {
            // The superblock has a checksum.
            On::BegunXfs | On::OurBegunXfs => {
                run("xfs_db", &["-x", "-c", "sb 0", "-c", "write inprogress 1", name]);
            }
            On::BegunExt4 | On::OurBegunExt4 => put(1024, &[0; 1024]),
            On::Both => {
                // A software RAID of the old form keeps its superblock at the end.
                let end = (SIZE & !0xffff) - 0x1_0000;
                put(end, &[0xfc, 0x4e, 0x2b, 0xa9, 0, 0, 0, 0, 90, 0, 0, 0]);
                put(0, b"LUKS\xba\xbe\x00\x01");
            }
            _ => {}
        }
        file.sync_all().unwrap();
    }

    /// Which filesystem is asked for.
    fn asked_for(self) -> Option<FsType> {
        let is_xfs = matches!(self, On::Xfs | On::OurXfs | On::BegunXfs | On::OurBegunXfs);
        is_xfs.then_some(FsType::Xfs)
    }
}

/// What an image can be marked with, and how asking can fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Marked {
    Not,
    MakingOurs,
    MakingOther,
    MakingOfTheOtherType,
    Ext4,
    Xfs,
    Block,
    InWordsOfAnotherVersion,
    NotPermitted,
    NotAnswering,
    NotWritable,
}

const MARKS: [Marked; 11] = [
    Marked::Not,
    Marked::MakingOurs,
    Marked::MakingOther,
    Marked::MakingOfTheOtherType,
    Marked::Ext4,
    Marked::Xfs,
    Marked::Block,
    Marked::InWordsOfAnotherVersion,
    Marked::NotPermitted,
    Marked::NotAnswering,
    Marked::NotWritable,
];

impl Marked {
    fn text(self, fs_type: FsType) -> Option<String> {
        let other = if fs_type == FsType::Ext4 { FsType::Xfs } else { FsType::Ext4 };
        Some(match self {
            Marked::MakingOurs => format!("mkfs {fs_type},{OURS}"),
            Marked::MakingOther => format!("mkfs {fs_type},{NOBODYS}"),
            Marked::MakingOfTheOtherType => format!("mkfs {other},{OURS}"),
            Marked::Ext4 => format!("ext4,{OURS}"),
            Marked::Xfs => format!("xfs,{OURS}"),
            Marked::Block => "block".to_owned(),
            Marked::InWordsOfAnotherVersion => "sealed 2".to_owned(),
            _ => return None,
        })
    }
}

/// A device with contents, and an image in the model that stands for its metadata.
struct Bench {
    _folder: tempfile::TempDir,
    cluster: Arc<dyn Cluster>,
    loop_device: LoopDevice,
    device: Device,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().canonicalize().unwrap().join("file");
        On::Nothing.put(&file);
        Self::on(folder, file)
    }

    /// With the device on `file`.
    fn on(folder: tempfile::TempDir, file: PathBuf) -> Self {
        let model = Model::new();
        model.create_pool("rbd");
        let cluster = model.connect().cluster();
        let pool = cluster.pool("rbd", "").unwrap();
        pool.create_image("i", SIZE, &ImageOptions::default()).unwrap();
        let loop_device = LoopDevice { file, identity: folder.path().join("identity") };
        loop_device.attach(false).unwrap();
        let device = loop_device.find().unwrap().unwrap();
        Self { _folder: folder, cluster, loop_device, device }
    }

    fn put(&self, on: On) {
        on.put(&self.loop_device.file);
        // What the device has cached of the file before is not on it any more.
        run("blockdev", &["--flushbufs", self.device.path().to_str().unwrap()]);
    }

    fn image(&self, mode: OpenMode) -> Box<dyn rbd::Image> {
        self.cluster.pool("rbd", "").unwrap().open_image(ImageKey::Name("i"), mode).unwrap()
    }

    fn mark(&self) -> Option<String> {
        self.image(OpenMode::ReadOnly).metadata_get(mark::CONTENT_KEY).unwrap()
    }

    fn set_mark(&self, text: Option<&str>) {
        let image = self.image(OpenMode::ReadWrite);
        match text {
            Some(text) => image.metadata_set(mark::CONTENT_KEY, text).unwrap(),
            None => image.metadata_remove(mark::CONTENT_KEY).unwrap(),
        }
    }

    fn marks(&self, marked: Marked) -> Marks {
        let cluster = self.cluster.clone();
        let asked = AtomicUsize::new(0);
        let connect = move || {
            let first = asked.fetch_add(1, Ordering::Relaxed) == 0;
            let errno = match marked {
                Marked::NotPermitted => Errno::EPERM,
                Marked::NotAnswering => Errno::ETIMEDOUT,
                Marked::NotWritable if !first => Errno::EPERM,
                _ => return Ok(cluster.clone()),
            };
            Err(rbd::Error::new(errno, "rados_connect", "client.csi"))
        };
        let image = Image {
            pool: "rbd".into(),
            namespace: String::new(),
            name: "i".into(),
            monitors: String::new(),
            user: Some("csi".into()),
        };
        Marks::new(image, None, Arc::new(connect))
    }

    /// When the bytes of the device last changed.
    fn changed(&self) -> (SystemTime, u64) {
        let metadata = self.loop_device.file.metadata().unwrap();
        (metadata.modified().unwrap(), metadata.blocks())
    }

    /// Asks for a filesystem. Returns the answer, and whether a byte of the device was changed.
    fn find_or_make(
        &self,
        fs_type: Option<FsType>,
        created_empty: bool,
        marks: &Marks,
    ) -> (Result<FsType>, bool) {
        self.find_or_make_on(&self.device, fs_type, created_empty, marks, &|| Ok(()))
    }

    fn find_or_make_on(
        &self,
        device: &Device,
        fs_type: Option<FsType>,
        created_empty: bool,
        marks: &Marks,
        confirm: &dyn Fn() -> Result<()>,
    ) -> (Result<FsType>, bool) {
        let before = self.changed();
        let format =
            Format { fs_type, mkfs_options: None, created_empty, read_only: false, confirm, marks };
        let answer = find_or_make(device, &format);
        run("sync", &[self.loop_device.file.to_str().unwrap()]);
        (answer, self.changed() != before)
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        if let Ok(Some(device)) = self.loop_device.find() {
            self.loop_device.detach(&device).unwrap();
        }
    }
}

/// Whether mkfs may run: the rule, told independently of the code.
fn may_make(on: On, marked: Marked, created_empty: bool) -> bool {
    let never_held_data = matches!(
        marked,
        Marked::Not | Marked::MakingOurs | Marked::MakingOther | Marked::MakingOfTheOtherType
    );
    let is_blank_or_ours = match on {
        On::Nothing => true,
        On::OurBegunXfs | On::OurBegunExt4 => marked == Marked::MakingOurs,
        _ => false,
    };
    created_empty && never_held_data && is_blank_or_ours
}

#[test]
fn only_what_is_proven_blank_or_ours_is_formatted() {
    let bench = Bench::new();
    let mut combinations = 0;
    for on in CONTENTS {
        let mut is_fresh = false;
        for marked in MARKS {
            for created_empty in [true, false] {
                if !is_fresh {
                    bench.put(on);
                    is_fresh = true;
                }
                let fs_type = on.asked_for();
                let text = marked.text(fs_type.unwrap_or(FsType::Ext4));
                bench.set_mark(text.as_deref());
                let (answer, has_changed) =
                    bench.find_or_make(fs_type, created_empty, &bench.marks(marked));
                let what =
                    format!("{on:?}, marked {marked:?}, created empty {created_empty}: {answer:?}");
                let may = may_make(on, marked, created_empty);
                assert_eq!(has_changed, may, "{what}");
                if may {
                    // What was made is there, and the image says so.
                    let made = answer.unwrap();
                    let found = probe(&bench.device.path(), None).unwrap();
                    let Contents::Known { name, uuid } = found else { panic!("{what}") };
                    assert_eq!(
                        (name.as_str(), bench.mark()),
                        (made.name(), Some(format!("{made},{uuid}"))),
                        "{what}"
                    );
                    is_fresh = false;
                } else if let Ok(found) = answer {
                    // What is used is a whole filesystem, and from now on the image says so.
                    let is_whole = matches!(on, On::Ext4 | On::OurExt4 | On::Xfs | On::OurXfs);
                    let uuid = if matches!(on, On::OurExt4 | On::OurXfs) { OURS } else { OTHER };
                    assert!(is_whole, "{what}");
                    assert_eq!(bench.mark(), Some(format!("{found},{uuid}")), "{what}");
                } else {
                    assert_eq!(bench.mark(), text, "{what}");
                }
                combinations += 1;
            }
        }
    }
    assert_eq!(combinations, 330);
}

/// Runs `work` on a thread that sees `script` in place of blkid.
fn with_blkid<T: Send>(script: &str, work: impl FnOnce() -> T + Send) -> T {
    let folder = tempfile::tempdir().unwrap();
    let fake = folder.path().join("blkid");
    std::fs::write(&fake, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&fake, PermissionsExt::from_mode(0o755)).unwrap();
    std::thread::scope(|scope| {
        let in_a_namespace_of_its_own = scope.spawn(|| {
            use nix::mount::{MsFlags, mount};
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
            let none = None::<&str>;
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
            let blkid = ["/usr/sbin/blkid", "/sbin/blkid"]
                .iter()
                .map(Path::new)
                .find(|path| path.is_file());
            mount(Some(&fake), blkid.unwrap(), none, MsFlags::MS_BIND, none).unwrap();
            work()
        });
        in_a_namespace_of_its_own.join().unwrap()
    })
}

#[test]
fn whatever_blkid_says_data_is_not_formatted_over() {
    let bench = Bench::new();
    for (script, is_plain) in [
        ("exit 2", true),
        ("echo cannot open it >&2; exit 2", false),
        ("exit 4", false),
        ("exit 8", false),
        ("exit 1", false),
        ("exit 0", false),
        ("echo DEVNAME=/dev/loop0; exit 0", false),
        ("kill -9 $$", false),
    ] {
        for on in [On::Nothing, On::Ext4, On::Xfs, On::Luks, On::ByteInside] {
            bench.put(on);
            for marked in [Marked::Not, Marked::Ext4] {
                bench.set_mark(marked.text(FsType::Ext4).as_deref());
                let marks = bench.marks(marked);
                let (answer, has_changed) =
                    with_blkid(script, || bench.find_or_make(None, true, &marks));
                // A blkid that overlooks data is not believed.
                let may = is_plain && may_make(on, marked, true);
                assert_eq!(
                    (answer.is_ok(), has_changed),
                    (may, may),
                    "{script}, {on:?}, {marked:?}: {answer:?}"
                );
            }
        }
    }
}

#[test]
fn the_mark_speaks_for_a_filesystem_whose_files_hold_signatures() {
    type Signature = (u64, &'static [u8]);
    // As files can have them anywhere behind the superblock: of ZFS, twice, of a fake RAID, which
    // blkid takes for the only contents, and of a software RAID.
    let zfs: &[Signature] = &[
        (SIZE - 512 * 1024 + 128 * 1024, b"\x0c\xb1\xba\x00\x00\x00\x00\x00"),
        (SIZE - 512 * 1024 + 129 * 1024, b"\x0c\xb1\xba\x00\x00\x00\x00\x00"),
        (SIZE - 512 * 1024 + 130 * 1024, b"\x0c\xb1\xba\x00\x00\x00\x00\x00"),
        (SIZE - 512 * 1024 + 131 * 1024, b"\x0c\xb1\xba\x00\x00\x00\x00\x00"),
    ];
    let fake_raid: &[Signature] = &[(SIZE - 1024, b"Intel Raid ISM Cfg Sig. 1.0.00")];
    let software_raid: &[Signature] =
        &[((SIZE & !0xffff) - 0x1_0000, &[0xfc, 0x4e, 0x2b, 0xa9, 0, 0, 0, 0, 90, 0, 0, 0])];
    let bench = Bench::new();
    for (on, fs_type) in [(On::Ext4, FsType::Ext4), (On::Xfs, FsType::Xfs)] {
        for signatures in [zfs, fake_raid, software_raid] {
            bench.put(on);
            let device = File::options().write(true).open(bench.device.path()).unwrap();
            for (offset, bytes) in signatures {
                device.write_all_at(bytes, *offset).unwrap();
            }
            device.sync_all().unwrap();
            drop(device);
            for (mark, is_known) in [
                (Mark::Filesystem(fs_type, OTHER.to_owned()), true),
                (Mark::Filesystem(fs_type, NOBODYS.to_owned()), false),
                (Mark::Block, false),
            ] {
                bench.set_mark(Some(&mark.to_string()));
                let marks = bench.marks(Marked::Not);
                for created_empty in [true, false] {
                    let (answer, has_changed) =
                        bench.find_or_make(Some(fs_type), created_empty, &marks);
                    let what = format!("{on:?}, {signatures:?}, {mark}: {answer:?}");
                    assert_eq!((answer.is_ok(), has_changed), (is_known, false), "{what}");
                    assert!(!what.contains("wipefs"), "{what}");
                    assert_eq!(bench.mark(), Some(mark.to_string()), "{what}");
                }
            }
        }
    }
}

#[test]
fn what_came_while_the_image_was_marked_is_not_formatted_over() {
    let bench = Bench::new();
    let folder = tempfile::tempdir().unwrap();
    let before = folder.path().join("before");
    // As if another node had made a filesystem after the first look.
    let script = format!(
        "if [ -e {0} ]; then echo TYPE=ext4; echo UUID={OTHER}; else : >{0}; exit 2; fi",
        before.display()
    );
    let marks = bench.marks(Marked::Not);
    let (answer, has_changed) = with_blkid(&script, || bench.find_or_make(None, true, &marks));
    assert!(matches!(answer, Err(Error::Busy(_))) && !has_changed, "{answer:?}");
}

#[test]
fn a_new_ext4_has_blocks_of_4_kib_and_a_journal() {
    let bench = Bench::new();
    let marks = bench.marks(Marked::Not);
    let file = bench.loop_device.file.clone();
    for (size, block_size) in [(SIZE, "4096"), (8 * MIB, "4096"), (4 * MIB, "1024")] {
        bench.put(On::Nothing);
        bench.set_mark(None);
        File::options().write(true).open(&file).unwrap().set_len(size).unwrap();
        run("losetup", &["--set-capacity", bench.device.path().to_str().unwrap()]);
        let (answer, _) = bench.find_or_make(None, true, &marks);
        assert!(answer.is_ok(), "{answer:?}");
        let name = file.to_str().unwrap();
        let header = Command::new("dumpe2fs").args(["-h", name]).output().unwrap();
        let header = String::from_utf8(header.stdout).unwrap();
        let value = |key: &str| header.lines().find_map(|line| line.strip_prefix(key)).unwrap();
        assert_eq!(value("Block size:").trim(), block_size, "{size}");
        assert!(value("Filesystem features:").contains("has_journal"), "{size}: {header}");
    }
}

#[test]
fn a_device_that_cannot_be_read_is_not_blank() {
    for (place, sector) in [("start", 0), ("inside", 64 << 11), ("end", (SIZE >> 9) - 8)] {
        let folder = tempfile::tempdir().unwrap();
        let below = folder.path().join("below");
        On::Nothing.put(&below);
        let export = folder.path().canonicalize().unwrap().join("export");
        File::create(&export).unwrap();
        let socket = folder.path().join("pid");
        let file = format!("driver=file,node-name=below,filename={}", below.display());
        let failing = format!(
            r#"{{"driver": "blkdebug", "node-name": "failing", "image": "below",
                "inject-error": [{{"event": "none", "iotype": "read", "errno": 5, "sector": {sector}}}]}}"#
        );
        let fuse =
            format!("type=fuse,id=e,node-name=failing,mountpoint={},writable=on", export.display());
        let mut arguments = vec!["--daemonize", "--pidfile", socket.to_str().unwrap()];
        arguments.extend(["--blockdev", &file, "--blockdev", &failing, "--export", &fuse]);
        run("qemu-storage-daemon", &arguments);
        let process = std::fs::read_to_string(&socket).unwrap();
        {
            let bench = Bench::on(folder, export.clone());
            for created_empty in [true, false] {
                let marks = bench.marks(Marked::Not);
                let format = Format {
                    fs_type: None,
                    mkfs_options: None,
                    created_empty,
                    read_only: false,
                    confirm: &|| Ok(()),
                    marks: &marks,
                };
                let answer = find_or_make(&bench.device, &format);
                assert!(answer.is_err(), "unreadable at its {place}: {answer:?}");
                assert_eq!(
                    below.metadata().unwrap().blocks(),
                    0,
                    "unreadable at its {place}: {answer:?}"
                );
                assert_eq!(bench.mark(), None);
            }
            bench.loop_device.detach(&bench.device).unwrap();
            run("kill", &[process.trim()]);
            let deadline = Instant::now() + Duration::from_secs(20);
            let is_mounted = || {
                std::fs::read_to_string("/proc/self/mountinfo")
                    .unwrap()
                    .contains(export.to_str().unwrap())
            };
            while Path::new("/proc").join(process.trim()).exists() || is_mounted() {
                assert!(Instant::now() < deadline, "the storage daemon does not end");
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }
}

#[test]
fn only_the_device_of_the_volume_is_formatted_and_only_while_nobody_has_it() {
    let bench = Bench::new();
    let marks = bench.marks(Marked::Not);
    let refused = |device: &Device, confirm: &dyn Fn() -> Result<()>| {
        let (answer, has_changed) = bench.find_or_make_on(device, None, true, &marks, confirm);
        assert!(answer.is_err() && !has_changed && bench.mark().is_none(), "{answer:?}");
    };
    let fine: &dyn Fn() -> Result<()> = &|| Ok(());
    refused(&Device { number: bench.device.number + 1, ..bench.device.clone() }, fine);
    refused(&Device { name: "no such device".into(), ..bench.device.clone() }, fine);
    refused(&Device { name: "null".into(), ..bench.device.clone() }, fine);
    refused(&bench.device, &|| Err(Error::FailedPrecondition("it is another image".into())));
    refused(&bench.device, &|| Err(Error::Unavailable("the mounter does not answer".into())));
    let held = exclusive(&bench.device.path()).unwrap();
    refused(&bench.device, fine);
    drop(held);
    let (answer, has_changed) = bench.find_or_make(None, true, &marks);
    assert!(answer.is_ok() && has_changed, "{answer:?}");
}

#[test]
fn a_reader_formats_nothing() {
    let bench = Bench::new();
    for on in [On::Nothing, On::OurBegunXfs, On::Ext4] {
        bench.put(on);
        bench.set_mark(Marked::MakingOurs.text(FsType::Xfs).as_deref());
        let before = (bench.changed(), bench.mark());
        let marks = bench.marks(Marked::Not);
        let format = Format {
            fs_type: on.asked_for(),
            mkfs_options: None,
            created_empty: true,
            read_only: true,
            confirm: &|| Ok(()),
            marks: &marks,
        };
        let answer = find_or_make(&bench.device, &format);
        assert_eq!(answer.is_ok(), on == On::Ext4, "{on:?}: {answer:?}");
        assert_eq!((bench.changed(), bench.mark()), before, "{on:?}");
    }
}
