//! The names the driver gives to images and snapshots, and how they are told apart.
//!
//! An adopted image keeps the name it had, and the catalogue says what it is. A name made here never
//! ends in a suffix reserved for another kind of object, so an image or
//! snapshot is recognised by its name alone: a silent parent, a snapshot made for one clone, a
//! backup's snapshot, a parked one.

use sha2::{Digest, Sha256};

use super::temporary::is_temporary;

/// Ends the name of a silent parent, and of a format 1 snapshot that is deleted but still has
/// clones.
pub const SILENT_SUFFIX: &str = ".deleted";
/// Ends the name of a snapshot made for one clone.
pub const CLONE_SNAPSHOT_SUFFIX: &str = ".clone_snap";
/// Begins the name of a backup's snapshot.
pub const BACKUP_SNAPSHOT_PREFIX: &str = "backup.";

/// Bytes of an image or snapshot name made here. RBD allows 95 for an image; `.<image id>.deleted`
/// must still fit.
const NAME_BYTES: usize = 64;
const HASH_DIGITS: usize = 32;

/// The name of the image or snapshot for the CSI name `name`: `prefix` and the name itself where
/// RBD, the suffixes and `room` bytes allow it, else `prefix` and a 128-bit hash. Different CSI
/// names give different names.
pub fn rbd_name(prefix: &str, name: &str, room: usize) -> String {
    let plain = format!("{prefix}{name}");
    let mut characters = name.chars();
    let grammatical = characters.next().is_some_and(|first| first.is_ascii_alphanumeric())
        && characters.all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'));
    let reserved = plain.ends_with(SILENT_SUFFIX)
        || plain.ends_with(CLONE_SNAPSHOT_SUFFIX)
        || plain.starts_with(BACKUP_SNAPSHOT_PREFIX)
        || is_temporary(&plain)
        || looks_hashed(name);
    if grammatical && !reserved && plain.len() <= room.min(NAME_BYTES) {
        return plain;
    }
    format!("{prefix}{}", &digest(name)[..HASH_DIGITS])
}

/// Whether [`rbd_name`] would hash the CSI name, so that the name alone no longer tells a person
/// which volume it is.
pub fn is_hashed(prefix: &str, name: &str, rbd_name: &str) -> bool {
    rbd_name != format!("{prefix}{name}")
}

/// Bytes that a name made with `prefix` needs at least.
pub fn least_room(prefix: &str) -> usize {
    prefix.len() + HASH_DIGITS
}

/// SHA-256 in lower-case hexadecimal digits.
pub fn digest(text: &str) -> String {
    Sha256::digest(text).iter().fold(String::new(), |mut hex, byte| {
        use std::fmt::Write;
        // Writing to a String cannot fail.
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

fn looks_hashed(name: &str) -> bool {
    name.len() == HASH_DIGITS && name.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// The first choice for a silent parent's name.
pub fn silent(image: &str) -> String {
    format!("{image}{SILENT_SUFFIX}")
}

/// A silent parent's name when the first choice is taken by an earlier volume of that name.
pub fn silent_with_id(image: &str, image_id: &str) -> String {
    format!("{image}.{image_id}{SILENT_SUFFIX}")
}

/// The volume's name before it became the silent parent `name`.
pub fn before_silence<'a>(name: &'a str, image_id: &str) -> &'a str {
    let base = name.strip_suffix(SILENT_SUFFIX).unwrap_or(name);
    base.strip_suffix(image_id).and_then(|rest| rest.strip_suffix('.')).unwrap_or(base)
}

/// The name of the snapshot cut for the clone `child`; `attempt` counts same-named ones that still
/// have a child.
pub fn clone_snapshot(child: &str, attempt: usize) -> String {
    match attempt {
        0 => format!("{child}{CLONE_SNAPSHOT_SUFFIX}"),
        n => format!("{child}.{n}{CLONE_SNAPSHOT_SUFFIX}"),
    }
}

/// Whether the driver made this snapshot for itself and may drop it once it has no clone: one cut
/// for a clone, or a deleted one that was parked because it had clones.
pub fn is_collectable_snapshot(name: &str) -> bool {
    name.ends_with(CLONE_SNAPSHOT_SUFFIX) || name.ends_with(SILENT_SUFFIX)
}

/// Whether a backup made this snapshot: `backup.<backup id>.snap.<time>`.
pub fn is_backup_snapshot(name: &str) -> bool {
    name.strip_prefix(BACKUP_SNAPSHOT_PREFIX).is_some_and(|rest| {
        rest.split_once(".snap.").is_some_and(|(id, time)| !id.is_empty() && !time.is_empty())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_name_stays_readable() {
        assert_eq!(rbd_name("csi-", "pvc-0b9e", 95), "csi-pvc-0b9e");
    }

    #[test]
    fn names_rbd_or_the_suffixes_cannot_carry_are_hashed() {
        for name in [
            "a/b",
            "a@b",
            "",
            "-a",
            "é",
            "🦀",
            "a b",
            "x.deleted",
            "x.clone_snap",
            "x.importing",
            "x.exporting",
            &"n".repeat(128),
            "a\u{0}b",
        ] {
            let image = rbd_name("csi-", name, 95);
            assert_eq!(image.len(), 4 + HASH_DIGITS, "{name:?} gave {image}");
            assert!(is_hashed("csi-", name, &image));
        }
    }

    #[test]
    fn a_name_that_looks_like_a_hash_cannot_collide_with_one() {
        let victim = rbd_name("csi-", "a/b", 95);
        let look_alike = victim.strip_prefix("csi-").unwrap();
        assert_ne!(rbd_name("csi-", look_alike, 95), victim);
    }

    #[test]
    fn a_prefix_cannot_make_a_backup_snapshot() {
        assert!(!is_backup_snapshot(&rbd_name("backup.", "1.snap.2", 95)));
    }

    #[test]
    fn every_name_leaves_room_for_its_silent_form() {
        let image = rbd_name("csi-", &"n".repeat(60), 95);
        assert!(silent_with_id(&image, &"f".repeat(20)).len() <= 95);
    }

    #[test]
    fn the_name_before_silence_is_found_in_both_forms() {
        assert_eq!(before_silence(&silent("csi-a"), "10ab"), "csi-a");
        assert_eq!(before_silence(&silent_with_id("csi-a", "10ab"), "10ab"), "csi-a");
    }

    #[test]
    fn backup_snapshots_are_told_from_others() {
        assert!(is_backup_snapshot("backup.4a-1.snap.1700000000.5"));
        for other in ["backup.", "backup.x", "backup..snap.1", "snap.backup.a.snap.1"] {
            assert!(!is_backup_snapshot(other), "{other}");
        }
    }
}
