//! Disks to transfer, and what became of them.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cinderblock::rbd::{ImageKey, OpenMode, Pool};
use cinderblock::transfer::{
    Export, Exported, Format, Import, Imported, Job, Place, Result, Tools, Wanted, Which, export,
    import,
};
use tempfile::TempDir;

use crate::common::random::Random;

pub const MIB: u64 = 1 << 20;

/// Sizes of disks, round and odd.
pub const SIZES: [u64; 8] =
    [1, 511, 4097, 4 * MIB - 1, 4 * MIB, 8 * MIB + 1, 9 * MIB + 777, 33 * MIB + 512];

/// A folder with disks in it.
pub struct Disks {
    pub folder: TempDir,
}

impl Disks {
    pub fn new() -> Disks {
        Disks { folder: tempfile::tempdir().unwrap() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a disk with holes where there are zeros.
    pub fn sparse(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path(name);
        let mut file = File::create(&path).unwrap();
        for (at, chunk) in (0..).step_by(4096).zip(bytes.chunks(4096)) {
            if chunk.iter().any(|byte| *byte != 0) {
                file.seek(SeekFrom::Start(at)).unwrap();
                file.write_all(chunk).unwrap();
            }
        }
        file.set_len(bytes.len() as u64).unwrap();
        path
    }

    /// The names of all files.
    pub fn names(&self) -> Vec<String> {
        let files = std::fs::read_dir(self.folder.path()).unwrap();
        let mut names: Vec<_> =
            files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

/// Bytes that take room on the disk.
pub fn allocated(path: &Path) -> u64 {
    std::fs::metadata(path).unwrap().blocks() * 512
}

/// A disk of holes, random data, and data with zeros in it.
pub fn disk(seed: u64, size: u64) -> Vec<u8> {
    let mut random = Random::new(seed);
    let mut bytes = vec![0; usize::try_from(size).unwrap()];
    let mut at = 0;
    while at < bytes.len() {
        let end = (at + usize::try_from(1 + random.below(2 * MIB)).unwrap()).min(bytes.len());
        match random.below(3) {
            0 => {}
            1 => bytes[at..end].iter_mut().for_each(|byte| *byte = byte_of(&mut random)),
            _ => bytes[at..end].iter_mut().step_by(9000).for_each(|byte| *byte = 1),
        }
        at = end;
    }
    // Whatever came by chance, the last byte counts.
    if let Some(last) = bytes.last_mut() {
        *last = 7;
    }
    bytes
}

/// A disk of whole blocks of data and one hole: a write for each block.
pub fn solid(size: u64) -> Vec<u8> {
    let mut bytes: Vec<u8> = (1..=251).cycle().take(usize::try_from(size).unwrap()).collect();
    let block = usize::try_from(4 * MIB).unwrap();
    bytes[block..2 * block].fill(0);
    bytes
}

fn byte_of(random: &mut Random) -> u8 {
    u8::try_from(random.below(256)).unwrap()
}

/// Imports a file.
pub fn import_file(pool: &Arc<dyn Pool>, path: &Path, name: &str) -> Result<Imported> {
    import_with(pool, path, name, Wanted::default(), &Job::default())
}

pub fn import_with(
    pool: &Arc<dyn Pool>,
    path: &Path,
    name: &str,
    checksum: Wanted,
    job: &Job,
) -> Result<Imported> {
    let source = Place::File(path.to_owned());
    let name = name.to_owned();
    import(pool, &Import { source, format: None, name, checksum, tools: tools() }, job)
}

/// What conversions need.
pub fn tools() -> Tools {
    Tools { launcher: env!("CARGO_BIN_EXE_cinderblock").into(), folder: std::env::temp_dir() }
}

/// Exports an image, or `image@snapshot`, to a file.
pub fn export_file(pool: &Arc<dyn Pool>, what: &str, path: &Path) -> Result<Exported> {
    export_with(pool, what, path, Wanted::default(), &Job::default())
}

pub fn export_with(
    pool: &Arc<dyn Pool>,
    what: &str,
    path: &Path,
    checksum: Wanted,
    job: &Job,
) -> Result<Exported> {
    let (image, snapshot) = match what.split_once('@') {
        Some((image, snapshot)) => (image, Some(snapshot.to_owned())),
        None => (what, None),
    };
    let image = Which::Name(image.to_owned());
    let target = Place::File(path.to_owned());
    let format = Format::of_name(&target.to_string());
    export(pool, &Export { image, snapshot, target, format, checksum, tools: tools() }, job)
}

/// All bytes of an image's head.
pub fn read(pool: &dyn Pool, name: &str) -> Vec<u8> {
    let image = pool.open_image(ImageKey::Name(name), OpenMode::ReadOnly).unwrap();
    let mut bytes = vec![0; usize::try_from(image.info().unwrap().size).unwrap()];
    assert_eq!(image.read_at(None, 0, &mut bytes).unwrap(), bytes.len());
    bytes
}

/// The names of all images.
pub fn images(pool: &dyn Pool) -> Vec<String> {
    let mut names: Vec<_> =
        pool.list_images().unwrap().into_iter().map(|entry| entry.name).collect();
    names.sort();
    names
}

/// The names of an image's snapshots.
pub fn snapshots(pool: &dyn Pool, name: &str) -> Vec<String> {
    let image = pool.open_image(ImageKey::Name(name), OpenMode::ReadOnly).unwrap();
    image.snapshots().unwrap().into_iter().map(|snapshot| snapshot.name).collect()
}

/// Fails without saying all bytes when two disks differ.
pub fn assert_same(one: &[u8], other: &[u8], what: &str) {
    assert_eq!(one.len(), other.len(), "{what}");
    let differing = one.iter().zip(other).position(|(one, other)| one != other);
    assert_eq!(differing, None, "{what}: the first byte that differs");
}
