//! Formats of disks, told by how a file begins, and what is wrong with a file before another
//! program looks at it.

use std::fmt;
use std::io;
use std::os::unix::fs::FileExt;
use std::str::FromStr;

use super::{Error, Result};

/// Bytes from the beginning that tell the format.
pub(super) const TELLING: usize = 512;

/// Bytes of a sector of a VMDK.
const SECTOR: u64 = 512;

/// A format of disks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// The bytes as they are.
    #[default]
    Raw,
    /// QEMU's.
    Qcow2,
    /// VMware's, in one file.
    Vmdk,
    /// `VirtualBox`'s.
    Vdi,
    /// Hyper-V's.
    Vhdx,
}

/// All of them, with their names, which file names end in as well.
const FORMATS: [(Format, &str); 5] = [
    (Format::Raw, "raw"),
    (Format::Qcow2, "qcow2"),
    (Format::Vmdk, "vmdk"),
    (Format::Vdi, "vdi"),
    (Format::Vhdx, "vhdx"),
];

/// How files begin: an offset, the bytes there, and the format, or what it is that is not taken.
const BEGINNINGS: &[(usize, &[u8], std::result::Result<Format, &str>)] = &[
    (0, b"QFI\xfb", Ok(Format::Qcow2)),
    (0, b"KDMV", Ok(Format::Vmdk)),
    (64, b"\x7f\x10\xda\xbe", Ok(Format::Vdi)),
    (0, b"vhdxfile", Ok(Format::Vhdx)),
    (
        0,
        b"# Disk DescriptorFile",
        Err("a VMDK whose data is in other files: convert it to one file"),
    ),
    (0, b"COWD", Err("a VMDK of ESX 2: convert it with qemu-img")),
    (0, b"QED\0", Err("a QED disk: convert it with qemu-img")),
    (0, b"conectix", Err("a VHD disk: convert it with qemu-img")),
    (0, b"LUKS\xba\xbe", Err("encrypted with LUKS: --format raw imports it as it is")),
    (
        0,
        b"\x1f\x8b",
        Err("compressed: decompress it first, as with `zcat FILE | cinderblock image import … -`"),
    ),
    (
        0,
        b"\xfd7zXZ\0",
        Err("compressed: decompress it first, as with `xzcat FILE | cinderblock image import … -`"),
    ),
    (
        0,
        b"BZh",
        Err("compressed: decompress it first, as with `bzcat FILE | cinderblock image import … -`"),
    ),
    (
        0,
        b"\x28\xb5\x2f\xfd",
        Err(
            "compressed: decompress it first, as with `zstdcat FILE | cinderblock image import … -`",
        ),
    ),
    (0, b"PK\x03\x04", Err("an archive: unpack it first")),
];

impl fmt::Display for Format {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = FORMATS.iter().find(|(format, _)| format == self).map_or("", |(_, name)| name);
        formatter.write_str(name)
    }
}

impl FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Format, String> {
        let found = FORMATS.iter().find(|(_, name)| *name == text).map(|(format, _)| *format);
        found.ok_or_else(|| format!("{text:?} is no format: raw, qcow2, vmdk, vdi or vhdx"))
    }
}

impl Format {
    /// The format that a file's name ends in; raw for any other.
    pub fn of_name(name: &str) -> Format {
        let ending = name.rsplit_once('.').map(|(_, ending)| ending.to_ascii_lowercase());
        ending.and_then(|ending| ending.parse().ok()).unwrap_or_default()
    }

    /// The format of a file that begins so. [`Error::Refused`] when it is one that is not taken.
    pub(super) fn detect(beginning: &[u8], name: &str) -> Result<Format> {
        let begins = |(offset, bytes): (usize, &[u8])| {
            beginning.get(offset..).is_some_and(|rest| rest.starts_with(bytes))
        };
        match BEGINNINGS.iter().find(|(offset, bytes, _)| begins((*offset, bytes))) {
            Some((_, _, Ok(format))) => Ok(*format),
            Some((_, _, Err(what))) => Err(Error::Refused(format!("{name} is {what}"))),
            None => Ok(Format::Raw),
        }
    }
}

/// Reads what is told of other files, and how far data reaches, in a file's own header.
/// [`Error::Refused`] when it refers to another file, or is cut off.
pub(super) fn check_header(
    file: &impl FileExt,
    size: u64,
    format: Format,
    name: &str,
) -> Result<()> {
    let wrong = match format {
        Format::Raw | Format::Vhdx => Ok(None),
        Format::Qcow2 => qcow2(file),
        Format::Vmdk => vmdk(file, size),
        Format::Vdi => vdi(file),
    };
    match wrong {
        Ok(None) => Ok(()),
        Ok(Some(why)) => Err(Error::Refused(format!("{name} {why}"))),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            Err(Error::Refused(format!("{name} is cut off: its {format} header is not whole")))
        }
        Err(error) => Err(Error::Failed(format!("cannot read {name}: {error}"))),
    }
}

/// What is wrong, if anything is.
type Wrong = io::Result<Option<String>>;

fn read<const N: usize>(file: &impl FileExt, offset: u64) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    file.read_exact_at(&mut bytes, offset)?;
    Ok(bytes)
}

fn little_u32(file: &impl FileExt, offset: u64) -> io::Result<u32> {
    read(file, offset).map(u32::from_le_bytes)
}

fn little_u64(file: &impl FileExt, offset: u64) -> io::Result<u64> {
    read(file, offset).map(u64::from_le_bytes)
}

/// QEMU's docs/interop/qcow2.rst: the name of the backing file is at byte 8, the method of
/// encryption at byte 32, the incompatible features of version 3 at byte 72.
fn qcow2(file: &impl FileExt) -> Wrong {
    const EXTERNAL_DATA: u64 = 1 << 2;
    if read(file, 8).map(u64::from_be_bytes)? != 0 {
        return Ok(Some(
            "has a backing file: flatten it with `qemu-img convert` where that is".into(),
        ));
    }
    if read(file, 32).map(u32::from_be_bytes)? != 0 {
        return Ok(Some(
            "is encrypted: decrypt it with `qemu-img convert` where its passphrase is".into(),
        ));
    }
    let version = read(file, 4).map(u32::from_be_bytes)?;
    if version >= 3 && read(file, 72).map(u64::from_be_bytes)? & EXTERNAL_DATA != 0 {
        return Ok(Some("has its data in another file: convert it to one file".into()));
    }
    Ok(None)
}

/// A differencing image names its parent: type 4, in the header after 72 bytes of text and version.
fn vdi(file: &impl FileExt) -> Wrong {
    let differencing = little_u32(file, 76)? == 4;
    Ok(differencing.then(|| "is a difference to another VDI: clone it to a whole one".into()))
}

/// VMware's Virtual Disk Format 5.0: a sparse extent has a directory of tables of grains. Of what
/// is cut off in the last grain other programs read zeros.
fn vmdk(file: &impl FileExt, size: u64) -> Wrong {
    const COMPRESSED: u32 = 1 << 16;
    /// Entries of tables that are read at a time.
    const PAGE: u64 = 16 << 10;
    let too_long = Ok(Some("is cut off: the data it speaks of is beyond its end".to_owned()));
    // Grains of any size are compressed, and none decompresses when it is cut off.
    if little_u32(file, 8)? & COMPRESSED != 0 {
        return Ok(None);
    }
    let capacity = little_u64(file, 12)?;
    let grain = little_u64(file, 20)?;
    let entries = u64::from(little_u32(file, 44)?);
    let directory = little_u64(file, 56)?;
    // One of no sectors is taken for a description of other files.
    let Some(tables) = grain.checked_mul(entries).filter(|sectors| *sectors > 0 && capacity > 0)
    else {
        return Ok(Some("has a broken header".to_owned()));
    };
    let tables = capacity.div_ceil(tables);
    let end_of = |sector: u64, bytes: u64| sector.checked_mul(SECTOR)?.checked_add(bytes);
    let fits = |end: Option<u64>| end.is_some_and(|end| end <= size);
    if !fits(tables.checked_mul(4).and_then(|bytes| end_of(directory, bytes))) {
        return too_long;
    }
    for table in 0..tables {
        let at = u64::from(little_u32(file, directory * SECTOR + table * 4)?);
        if at == 0 {
            continue;
        }
        if !fits(end_of(at, entries * 4)) {
            return too_long;
        }
        for first in (0..entries).step_by(usize::try_from(PAGE).unwrap_or(usize::MAX)) {
            let count = PAGE.min(entries - first);
            let mut page = vec![0; usize::try_from(count * 4).unwrap_or(0)];
            file.read_exact_at(&mut page, at * SECTOR + first * 4)?;
            for (entry, bytes) in (first..).zip(page.chunks_exact(4)) {
                let data = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
                // 1 is a grain of zeros.
                let begins = (table * entries + entry).saturating_mul(grain);
                let sectors = grain.min(capacity.saturating_sub(begins));
                if data > 1 && !fits(end_of(u64::from(data), sectors.saturating_mul(SECTOR))) {
                    return too_long;
                }
            }
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_told_by_how_a_file_begins() {
        let beginning = |offset: usize, bytes: &[u8]| {
            let mut all = vec![0; TELLING];
            all[offset..offset + bytes.len()].copy_from_slice(bytes);
            Format::detect(&all, "FILE").map_err(|error| error.to_string())
        };
        assert_eq!(beginning(0, b"QFI\xfb"), Ok(Format::Qcow2));
        assert_eq!(beginning(64, b"\x7f\x10\xda\xbe"), Ok(Format::Vdi));
        assert_eq!(beginning(510, b"\x55\xaa"), Ok(Format::Raw));
        assert_eq!(Format::detect(&[], "FILE").unwrap(), Format::Raw);
        let why = beginning(0, b"\xfd7zXZ\0").unwrap_err();
        assert!(why.starts_with("FILE is compressed") && why.contains("xzcat"), "{why}");
    }

    #[test]
    fn formats_are_told_by_names() {
        for (name, format) in [
            ("a.qcow2", Format::Qcow2),
            ("a.VMDK", Format::Vmdk),
            ("a.img", Format::Raw),
            ("qcow2", Format::Raw),
            ("-", Format::Raw),
        ] {
            assert_eq!(Format::of_name(name), format, "{name}");
        }
    }
}
