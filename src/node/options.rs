//! The grammar of the mount and mkfs options a StorageClass may give.
//!
//! Options reach programs as single arguments and never a shell, but the programs themselves read
//! more into some of them than a StorageClass may ask for: other devices, files of the node, force.
//! What is not allowed here is `InvalidArgument`.

use super::error::{Error, Result};
use super::filesystem::FsType;

/// Options that mount(8) or the kernel would take for something else than a property of this one
/// mount.
const REFUSED_MOUNT_OPTIONS: [&str; 16] = [
    "bind",
    "encryption",
    "group",
    "helper",
    "loop",
    "logdev",
    "move",
    "offset",
    "owner",
    "rbind",
    "remount",
    "rtdev",
    "sizelimit",
    "uhelper",
    "user",
    "users",
];

/// Checks one mount option: `name` or `name=value`. Names are lower-case words; values hold no
/// path. The value of an SELinux `context` may stand in double quotes and then hold commas.
pub(crate) fn check_mount_option(option: &str) -> Result<()> {
    let (name, value) =
        option.split_once('=').map_or((option, None), |(name, value)| (name, Some(value)));
    let is_word = |text: &str| {
        !text.is_empty()
            && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
    };
    let is_value =
        |text: &str| text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.:+-".contains(&b));
    let is_label = |text: &str| {
        text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).is_some_and(|text| {
            text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.:+-,".contains(&b))
        })
    };
    let value_is_fine =
        value.is_none_or(|value| is_value(value) || name.ends_with("context") && is_label(value));
    if is_word(name) && value_is_fine && !REFUSED_MOUNT_OPTIONS.contains(&name) {
        Ok(())
    } else {
        Err(Error::InvalidArgument(format!(
            "the mount option {option:?} is not allowed: give options of the filesystem as name or name=value, \
             without paths"
        )))
    }
}

/// The options of one entry of a StorageClass's mountOptions, which may hold several with commas in
/// between. Commas inside double quotes belong to a value.
pub(crate) fn split(entry: &str) -> Vec<String> {
    let mut quoted = false;
    let is_end = |c: char| {
        quoted ^= c == '"';
        c == ',' && !quoted
    };
    entry.split(is_end).map(str::to_owned).collect()
}

/// How mkfs takes one of its options.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Takes {
    Nothing,
    Value,
}

/// The options of mkfs that describe a filesystem. Left out: force, dry runs, all that names other
/// devices or files, and the UUID, which the driver chooses to know its own work by.
fn mkfs_option(fs_type: FsType, letter: char) -> Option<Takes> {
    let (flags, valued) = match fs_type {
        FsType::Ext4 => ("j", "bCEgGiIJLmNOT"),
        FsType::Xfs => ("K", "bdilmnsL"),
    };
    match letter {
        letter if flags.contains(letter) => Some(Takes::Nothing),
        letter if valued.contains(letter) => Some(Takes::Value),
        _ => None,
    }
}

/// Splits `options` as given in a StorageClass into arguments for mkfs of `fs_type`: single-letter
/// options, their values attached or apart.
pub(crate) fn mkfs_arguments(fs_type: FsType, options: &str) -> Result<Vec<String>> {
    let refuse = |word: &str| {
        Error::InvalidArgument(format!(
            "mkfsOptions: {word:?} is not an option mkfs.{fs_type} may be given here"
        ))
    };
    let is_value = |text: &str| {
        text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '^')
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_=,.:^%-".contains(&b))
            && !text.split(',').any(|part| {
                ["name", "file", "device", "logdev", "rtdev", "uuid"].contains(&key(part))
            })
    };
    let mut arguments = Vec::new();
    let mut words = options.split_ascii_whitespace();
    while let Some(word) = words.next() {
        let mut letters = word.strip_prefix('-').ok_or_else(|| refuse(word))?.chars();
        let letter = letters.next().ok_or_else(|| refuse(word))?;
        let attached = letters.as_str();
        match mkfs_option(fs_type, letter).ok_or_else(|| refuse(word))? {
            Takes::Nothing if attached.is_empty() => arguments.push(format!("-{letter}")),
            Takes::Nothing => return Err(refuse(word)),
            Takes::Value => {
                let value =
                    if attached.is_empty() { words.next().unwrap_or_default() } else { attached };
                if !is_value(value) {
                    return Err(refuse(&format!("-{letter} {value}")));
                }
                arguments.extend([format!("-{letter}"), value.to_owned()]);
            }
        }
    }
    Ok(arguments)
}

/// Checks options for mkfs before it is known which filesystem they are for. `InvalidArgument` when
/// no filesystem takes them.
pub fn check_mkfs_options(options: &str) -> Result<()> {
    mkfs_arguments(FsType::Xfs, options)
        .or_else(|_| mkfs_arguments(FsType::Ext4, options))
        .map(drop)
}

/// `key` of `key=value`.
fn key(part: &str) -> &str {
    part.split('=').next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn mount_options_of_filesystems_pass() {
        for option in [
            "noatime",
            "discard",
            "data=ordered",
            "commit=30",
            "errors=remount-ro",
            "allocsize=64m",
            r#"context="system_u:object_r:container_file_t:s0:c1,c2""#,
        ] {
            check_mount_option(option).unwrap();
        }
    }

    #[test]
    fn an_entry_may_hold_several_options() {
        assert_eq!(split("noatime,nodiratime"), ["noatime", "nodiratime"]);
        let context = r#"context="system_u:object_r:a_t:s0:c1,c2""#;
        assert_eq!(split(&format!("{context},ro")), [context, "ro"]);
        assert_eq!(split("discard"), ["discard"]);
        // Such as no option is, and refused as one.
        assert_eq!(split(""), [""]);
        assert_eq!(split("ro,"), ["ro", ""]);
    }

    #[test]
    fn mount_options_with_other_powers_are_refused() {
        for option in [
            "",
            "=",
            "bind",
            "remount",
            "loop",
            "offset=4096",
            "logdev=/dev/sda",
            "journal_path=/dev/sda",
            "ro,bind",
            "X-mount.mkdir",
            "x-systemd.automount",
            "uhelper=sh",
            "user",
            "nosuid suid",
            "commit=1\n",
            r#"data="a,bind""#,
            r#"context="a",bind"#,
            "-o",
        ] {
            assert!(
                matches!(check_mount_option(option), Err(Error::InvalidArgument(_))),
                "{option}"
            );
        }
    }

    #[test]
    fn mkfs_options_become_arguments() {
        let arguments = |fs_type, options| mkfs_arguments(fs_type, options).unwrap().join(" ");
        assert_eq!(
            arguments(FsType::Ext4, " -m0  -Enodiscard,lazy_itable_init=1 -O ^has_journal -j"),
            "-m 0 -E nodiscard,lazy_itable_init=1 -O ^has_journal -j"
        );
        assert_eq!(
            arguments(FsType::Xfs, "-K -m reflink=0 -ssize=4096"),
            "-K -m reflink=0 -s size=4096"
        );
        assert_eq!(arguments(FsType::Xfs, ""), "");
    }

    #[test]
    fn mkfs_options_with_other_powers_are_refused() {
        let ext4 = [
            "-F", "-jF", "-n", "-q", "-m", "-m -F", "/dev/sda", "x", "-", "--help", "-d /etc",
            "-L a;b",
        ];
        let journal = ["-J device=UUID=1", "-Jsize=4,device=LABEL=x"];
        let xfs = [
            "-f",
            "-N",
            "-p proto",
            "-d name=x,file",
            "-l logdev=x",
            "-r rtdev=x",
            "-d size=4k,file=1",
        ];
        let cases = ext4.iter().chain(&journal).map(|options| (FsType::Ext4, *options));
        for (fs_type, options) in cases.chain(xfs.iter().map(|options| (FsType::Xfs, *options))) {
            let refused =
                matches!(mkfs_arguments(fs_type, options), Err(Error::InvalidArgument(_)));
            assert!(refused, "mkfs.{fs_type} {options}");
        }
    }

    proptest! {
        #[test]
        fn no_argument_names_a_path_or_forces(options in "[-a-zA-Z0-9=,./ ]{0,30}") {
            for fs_type in [FsType::Ext4, FsType::Xfs] {
                for argument in mkfs_arguments(fs_type, &options).unwrap_or_default() {
                    prop_assert!(!argument.contains('/') && argument != "-F" && argument != "-f");
                }
            }
        }
    }
}
