//! The flags that several commands share, and how they become parts of a request.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use cinderblock::csi::proto::volume_capability::access_mode::Mode;
use cinderblock::csi::proto::volume_capability::{
    AccessMode, AccessType, BlockVolume, MountVolume,
};
use cinderblock::csi::proto::{CapacityRange, VolumeCapability};
use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use serde_json::Value;

use super::Failure;
use crate::cli::size;

/// The access modes as people write them: CSI's names in kebab case.
const ACCESS_MODES: [&str; 7] = [
    "single-node-writer",
    "single-node-reader-only",
    "multi-node-reader-only",
    "multi-node-single-writer",
    "multi-node-multi-writer",
    "single-node-single-writer",
    "single-node-multi-writer",
];

type Map = BTreeMap<String, String>;

/// Reads `key=value`; the value may be empty and may contain `=`.
pub(super) fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write it as key=value".to_owned()),
    }
}

fn access_mode(name: &str) -> Option<Mode> {
    Mode::from_str_name(&name.to_uppercase().replace('-', "_"))
}

/// Credentials. They come from files only: an argument is visible to every user of the machine.
#[derive(Debug, Args)]
pub(super) struct Secrets {
    /// A secret whose value is the content of a file, without its last line break; may be repeated
    #[arg(long, value_name = "KEY=PATH", value_parser = key_value, help_heading = "Secrets")]
    secret_file: Vec<(String, String)>,

    /// A YAML file of secrets, one `key: value` per line
    #[arg(long, value_name = "FILE", help_heading = "Secrets")]
    secrets_file: Option<PathBuf>,
}

impl Secrets {
    /// Reads the files. On the same key a `--secret-file` wins over the YAML file. No error holds
    /// any content, nor what was given as the path of a secret: it may be the secret itself, given
    /// by mistake.
    pub(super) fn read(self) -> Result<Map, Failure> {
        let mut secrets = match self.secrets_file {
            Some(path) => serde_saphyr::from_str(&read(&path)?).map_err(|error| {
                let place = error
                    .location()
                    .map(|at| format!(" at line {}", at.line()))
                    .unwrap_or_default();
                Failure::Usage(format!(
                    "{}: not a YAML map of `key: value` lines{place}",
                    path.display()
                ))
            })?,
            None => Map::new(),
        };
        for (key, path) in self.secret_file {
            let mut value = fs::read_to_string(path).map_err(|error| {
                Failure::Usage(format!(
                    "cannot read the file of the secret {key}: {error}; give --secret-file {key}=PATH, not the secret"
                ))
            })?;
            if value.ends_with('\n') {
                value.pop();
            }
            secrets.insert(key, value);
        }
        Ok(secrets)
    }
}

fn read(path: &Path) -> Result<String, Failure> {
    fs::read_to_string(path)
        .map_err(|error| Failure::Usage(format!("cannot read {}: {error}", path.display())))
}

/// How large.
#[derive(Debug, Args)]
pub(super) struct Size {
    /// The least size, in bytes or with KiB, MiB, GiB or TiB
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    size: Option<i64>,

    /// The greatest size that is acceptable
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    limit: Option<i64>,
}

impl Size {
    /// The range asked for; none when neither bound is given.
    pub(super) fn range(&self) -> Option<CapacityRange> {
        (self.size.is_some() || self.limit.is_some()).then(|| CapacityRange {
            required_bytes: self.size.unwrap_or(0),
            limit_bytes: self.limit.unwrap_or(0),
        })
    }
}

/// How a volume is used.
#[derive(Debug, Args)]
pub(super) struct Capability {
    /// Use the volume as a raw block device instead of a mounted filesystem
    #[arg(long, conflicts_with_all = ["fs_type", "mount_flag", "mount_group"], help_heading = "Use of the volume")]
    block: bool,

    /// The filesystem, such as ext4; left to the driver when absent
    #[arg(long, value_name = "TYPE", help_heading = "Use of the volume")]
    fs_type: Option<String>,

    /// An option of the mount, such as noatime; may be repeated
    #[arg(long, value_name = "OPTION", help_heading = "Use of the volume")]
    mount_flag: Vec<String>,

    /// The group that must be able to use the files of the volume
    #[arg(long, value_name = "GID", help_heading = "Use of the volume")]
    mount_group: Option<String>,

    /// Who may use the volume at once; single-node-writer when a use is needed and none is given
    #[arg(
        long,
        value_name = "MODE",
        value_parser = PossibleValuesParser::new(ACCESS_MODES)
            .try_map(|name| access_mode(&name).ok_or("no access mode of CSI")),
        help_heading = "Use of the volume"
    )]
    access_mode: Option<Mode>,
}

impl Capability {
    /// The use asked for, with the defaults for what is not given.
    pub(super) fn required(self) -> VolumeCapability {
        let access_type = if self.block {
            AccessType::Block(BlockVolume {})
        } else {
            AccessType::Mount(MountVolume {
                fs_type: self.fs_type.unwrap_or_default(),
                mount_flags: self.mount_flag,
                volume_mount_group: self.mount_group.unwrap_or_default(),
            })
        };
        let mode = self.access_mode.unwrap_or(Mode::SingleNodeWriter);
        VolumeCapability {
            access_mode: Some(AccessMode { mode: mode.into() }),
            access_type: Some(access_type),
        }
    }

    /// The use asked for, or none when no flag is given: for requests in which it is optional.
    pub(super) fn given(self) -> Option<VolumeCapability> {
        let given = self.block
            || self.fs_type.is_some()
            || !self.mount_flag.is_empty()
            || self.mount_group.is_some()
            || self.access_mode.is_some();
        given.then(|| self.required())
    }
}

/// The volume context that an earlier call returned.
#[derive(Debug, Args)]
pub(super) struct VolumeContext {
    /// One entry of the volume context; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_value, help_heading = "Contexts")]
    volume_context: Vec<(String, String)>,

    /// The output of an earlier call with --output json, of which the contexts are taken; may be
    /// repeated
    #[arg(long, value_name = "FILE", help_heading = "Contexts")]
    context_from: Vec<PathBuf>,
}

impl VolumeContext {
    /// The volume context: what the files hold, and on top of it what the flags say.
    pub(super) fn read(self) -> Result<Map, Failure> {
        let (mut context, _) = contexts_of(&self.context_from)?;
        context.extend(self.volume_context);
        Ok(context)
    }
}

/// The volume context and the publish context that earlier calls returned.
#[derive(Debug, Args)]
pub(super) struct Contexts {
    #[command(flatten)]
    volume: VolumeContext,

    /// One entry of the publish context; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_value, help_heading = "Contexts")]
    publish_context: Vec<(String, String)>,
}

impl Contexts {
    /// The volume context and the publish context.
    pub(super) fn read(self) -> Result<(Map, Map), Failure> {
        let (mut volume, mut publish) = contexts_of(&self.volume.context_from)?;
        volume.extend(self.volume.volume_context);
        publish.extend(self.publish_context);
        Ok((volume, publish))
    }
}

/// The volume contexts and the publish contexts in outputs of earlier calls, each merged in the
/// order of the files.
fn contexts_of(paths: &[PathBuf]) -> Result<(Map, Map), Failure> {
    let (mut volume, mut publish) = (Map::new(), Map::new());
    for path in paths {
        let refused = |reason: &str| Failure::Usage(format!("{}: {reason}", path.display()));
        let output: Value = serde_json::from_str(&read(path)?)
            .map_err(|error| refused(&format!("not JSON: {error}")))?;
        let volume_context = output.pointer("/volume/volume_context");
        let publish_context = output.get("publish_context");
        if volume_context.is_none() && publish_context.is_none() {
            return Err(refused("holds no volume with a volume_context and no publish_context"));
        }
        for (context, found) in [(&mut volume, volume_context), (&mut publish, publish_context)] {
            if let Some(found) = found {
                let entries: Map = serde_json::from_value(found.clone())
                    .map_err(|_| refused("a context is not a map of texts"))?;
                context.extend(entries);
            }
        }
    }
    Ok((volume, publish))
}

/// Which part of a list.
#[derive(Debug, Args)]
pub(super) struct Page {
    /// At most this many entries; the driver decides when absent
    #[arg(long, value_name = "N", default_value_t = 0, allow_negative_numbers = true)]
    pub(super) max_entries: i32,

    /// The next_token of the page before
    #[arg(long, value_name = "TOKEN", default_value = "")]
    pub(super) starting_token: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_access_mode_of_csi_can_be_named() {
        let named: Vec<Mode> = ACCESS_MODES.iter().map(|name| access_mode(name).unwrap()).collect();
        let all: Vec<Mode> = (1..).map_while(|number| Mode::try_from(number).ok()).collect();
        assert_eq!(named, all);
    }

    #[test]
    fn key_and_value_are_split_at_the_first_equals_sign() {
        assert_eq!(key_value("a=b=c"), Ok(("a".into(), "b=c".into())));
        assert_eq!(key_value("a="), Ok(("a".into(), String::new())));
        assert!(key_value("a").is_err());
        assert!(key_value("=b").is_err());
    }
}
