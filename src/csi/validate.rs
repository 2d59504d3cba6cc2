//! What the CSI specification asks of every request: limits of strings and maps, names, sizes,
//! capabilities.

use super::proto::{CapacityRange, VolumeCapability, volume_capability};
use crate::volume::Sizes;
use std::collections::BTreeMap;
use tonic::Status;
use volume_capability::access_mode::Mode;

/// Bytes a string may have.
const STRING_BYTES: usize = 128;
/// Bytes a node id may have.
pub const NODE_ID_BYTES: usize = 256;
/// Bytes the keys and values of a map may have together.
const MAP_BYTES: usize = 4096;

/// A string that must be there and within the limit.
pub fn required(field: &str, value: &str) -> Result<(), Status> {
    required_within(field, value, STRING_BYTES)
}

/// A node id that must be there and within its limit.
pub fn required_node_id(value: &str) -> Result<(), Status> {
    required_within("node_id", value, NODE_ID_BYTES)
}

fn required_within(field: &str, value: &str, limit: usize) -> Result<(), Status> {
    if value.is_empty() {
        return Err(Status::invalid_argument(format!("{field} is missing")));
    }
    if value.len() > limit {
        return Err(Status::invalid_argument(format!(
            "{field} has {} bytes, at most {limit} are allowed",
            value.len()
        )));
    }
    Ok(())
}

/// A name: any Unicode but control characters, tabs and line ends excepted.
pub fn name(value: &str) -> Result<(), Status> {
    required("name", value)?;
    let bad = |c: char| c.is_control() && !matches!(c, '\t' | '\n' | '\r');
    match value.chars().find(|c| bad(*c)) {
        Some(c) => Err(Status::invalid_argument(format!(
            "name holds the control character U+{:04X}",
            u32::from(c)
        ))),
        None => Ok(()),
    }
}

/// A map within the limit.
pub fn map(field: &str, map: &BTreeMap<String, String>) -> Result<(), Status> {
    let bytes: usize = map.iter().map(|(key, value)| key.len() + value.len()).sum();
    if bytes > MAP_BYTES {
        return Err(Status::invalid_argument(format!(
            "{field} has {bytes} bytes, at most {MAP_BYTES} are allowed"
        )));
    }
    Ok(())
}

/// The sizes a request allows. `INVALID_ARGUMENT` for negative ones, `OUT_OF_RANGE` when none is
/// left.
pub fn sizes(range: Option<&CapacityRange>) -> Result<Sizes, Status> {
    let Some(range) = range else {
        return Ok(Sizes::default());
    };
    let bytes = |field: &str, value: i64| {
        u64::try_from(value)
            .map_err(|_| Status::invalid_argument(format!("{field} is negative: {value}")))
    };
    let required = bytes("required_bytes", range.required_bytes)?;
    let limit = bytes("limit_bytes", range.limit_bytes)?;
    if limit != 0 && limit < required {
        return Err(Status::out_of_range(format!(
            "limit_bytes {limit} is less than required_bytes {required}"
        )));
    }
    Ok(Sizes { required, limit })
}

/// The capabilities of a request: at least one, each complete and one that a volume can have.
pub fn capabilities(capabilities: &[VolumeCapability]) -> Result<(), Status> {
    if capabilities.is_empty() {
        return Err(Status::invalid_argument("volume_capabilities is missing"));
    }
    capabilities.iter().try_for_each(capability)
}

/// One capability that must be complete and one that a volume can have.
pub fn capability(capability: &VolumeCapability) -> Result<(), Status> {
    let mode = complete(capability)?;
    match unsupported(capability, mode) {
        Some(why) => Err(Status::invalid_argument(why)),
        None => Ok(()),
    }
}

/// The access mode of a capability that has all it needs.
pub fn complete(capability: &VolumeCapability) -> Result<Mode, Status> {
    let Some(access) = &capability.access_type else {
        return Err(Status::invalid_argument(
            "volume_capability has no access_type: block or mount",
        ));
    };
    if let volume_capability::AccessType::Mount(mount) = access {
        let bytes: usize = mount.mount_flags.iter().map(String::len).sum();
        if bytes > MAP_BYTES {
            return Err(Status::invalid_argument(format!(
                "mount_flags have {bytes} bytes, at most {MAP_BYTES} are allowed"
            )));
        }
        if mount.fs_type.len() > STRING_BYTES {
            return Err(Status::invalid_argument("fs_type is too long"));
        }
    }
    let mode = capability.access_mode.as_ref().map(|mode| Mode::try_from(mode.mode));
    match mode {
        Some(Ok(mode)) if mode != Mode::Unknown => Ok(mode),
        _ => {
            Err(Status::invalid_argument("volume_capability has no access_mode, or an unknown one"))
        }
    }
}

/// Why no volume can have this capability, if so.
pub fn unsupported(capability: &VolumeCapability, mode: Mode) -> Option<String> {
    let volume_capability::AccessType::Mount(mount) = capability.access_type.as_ref()? else {
        return None;
    };
    if !matches!(mount.fs_type.as_str(), "" | "ext4" | "xfs") {
        return Some(format!("fs_type is ext4 or xfs, not {:?}", mount.fs_type));
    }
    matches!(mode, Mode::MultiNodeSingleWriter | Mode::MultiNodeMultiWriter).then(|| {
        format!(
            "{} needs a block volume: ext4 and xfs are destroyed when one node writes while another has them mounted",
            mode.as_str_name()
        )
    })
}

/// Whether volumes under this mode may be on several nodes at once.
pub fn is_shared(mode: Mode) -> bool {
    matches!(
        mode,
        Mode::MultiNodeReaderOnly | Mode::MultiNodeSingleWriter | Mode::MultiNodeMultiWriter
    )
}

/// Whether no node writes under this capability.
pub fn is_read_only(capability: &VolumeCapability) -> bool {
    let mode = capability.access_mode.as_ref().map(volume_capability::AccessMode::mode);
    matches!(mode, Some(Mode::SingleNodeReaderOnly | Mode::MultiNodeReaderOnly))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::Code;
    use volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume};

    fn mount(fs_type: &str, mode: Mode) -> VolumeCapability {
        let mount = MountVolume { fs_type: fs_type.into(), ..MountVolume::default() };
        VolumeCapability {
            access_type: Some(AccessType::Mount(mount)),
            access_mode: Some(AccessMode { mode: mode.into() }),
        }
    }

    #[test]
    fn names_are_any_unicode_but_control_characters() {
        for good in ["pvc-1", "名前/a@b 🦀", "tab\tline\n", &"n".repeat(128)] {
            assert!(name(good).is_ok(), "{good:?}");
        }
        for bad in ["", "a\u{0}", "a\u{1b}", "a\u{7f}", "a\u{9f}", "a\u{b}", &"n".repeat(129)] {
            assert_eq!(name(bad).unwrap_err().code(), Code::InvalidArgument, "{bad:?}");
        }
    }

    #[test]
    fn sizes_must_make_sense() {
        let range =
            |required_bytes, limit_bytes| Some(CapacityRange { required_bytes, limit_bytes });
        let check = |range: Option<CapacityRange>| sizes(range.as_ref());
        assert_eq!(check(None).unwrap(), Sizes::default());
        assert_eq!(check(range(5, 9)).unwrap(), Sizes { required: 5, limit: 9 });
        assert_eq!(check(range(-1, 0)).unwrap_err().code(), Code::InvalidArgument);
        assert_eq!(check(range(0, -1)).unwrap_err().code(), Code::InvalidArgument);
        assert_eq!(check(range(9, 5)).unwrap_err().code(), Code::OutOfRange);
    }

    #[test]
    fn the_access_mode_matrix() {
        let modes = [
            (Mode::SingleNodeWriter, true),
            (Mode::SingleNodeReaderOnly, true),
            (Mode::MultiNodeReaderOnly, true),
            (Mode::MultiNodeSingleWriter, false),
            (Mode::MultiNodeMultiWriter, false),
            (Mode::SingleNodeSingleWriter, true),
            (Mode::SingleNodeMultiWriter, true),
        ];
        for (mode, on_a_filesystem) in modes {
            assert_eq!(capability(&mount("ext4", mode)).is_ok(), on_a_filesystem, "{mode:?}");
            let block = VolumeCapability {
                access_type: Some(AccessType::Block(BlockVolume {})),
                access_mode: Some(AccessMode { mode: mode.into() }),
            };
            assert!(capability(&block).is_ok(), "{mode:?}");
        }
        for bad in [
            VolumeCapability::default(),
            VolumeCapability { access_mode: None, ..mount("", Mode::SingleNodeWriter) },
            mount("", Mode::Unknown),
            mount("ntfs", Mode::SingleNodeWriter),
        ] {
            assert_eq!(capability(&bad).unwrap_err().code(), Code::InvalidArgument, "{bad:?}");
        }
        assert!(capabilities(&[]).is_err());
    }
}
