//! `mapOptions` and `unmapOptions` of a StorageClass, in ceph-csi's grammar:
//! `[krbd:|nbd:]name[=value],…[;…]`. Options without a prefix are krbd's.
//!
//! They end in one string of comma-separated options, or in arguments of a program, where a value
//! with a comma would smuggle in further ones: another user, another key, a program to run. So
//! names come from a list, and values are short words. Left out on purpose are `exclusive`, under
//! which a mapped image cannot be grown, and all that says who maps what.

use super::error::{Error, Result};

/// Options of krbd that tune how a mapped image works.
const KRBD: &[&str] = &[
    "abort_on_full",
    "alloc_size",
    "compression_hint",
    "crc",
    "lock_on_read",
    "lock_timeout",
    "mount_timeout",
    "ms_mode",
    "nocrc",
    "noshare",
    "notcp_nodelay",
    "notrim",
    "osd_idle_ttl",
    "osd_request_timeout",
    "osdkeepalive",
    "queue_depth",
    "read_from_replica",
    "rxbounce",
    "share",
    "tcp_nodelay",
];

/// Options of `rbd-nbd map` that do the same.
const NBD: &[&str] =
    &["io-timeout", "max_part", "nbds_max", "notrim", "reattach-timeout", "timeout", "try-netlink"];

/// Options of unmapping. They are taken for the sake of StorageClasses that have them, and change
/// nothing: `force` would cut off a device that is in use, and what is not in use goes without it.
const UNMAP: &[&str] = &["force", "reattach-timeout"];

/// What a StorageClass asks of mapped images, for each mounter. Names are known, values are words.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MapOptions {
    /// For krbd: `name` or `name=value`.
    pub(super) krbd: Vec<String>,
    /// For rbd-nbd, in the same form.
    pub(super) nbd: Vec<String>,
}

impl MapOptions {
    /// Whether volumes are to share one client of the kernel's.
    pub fn shares_clients(&self) -> bool {
        self.krbd.iter().any(|option| option == "share")
    }

    /// Reads the StorageClass parameter `mapOptions`. `InvalidArgument` when it is outside the
    /// grammar.
    pub fn parse(text: &str) -> Result<MapOptions> {
        let mut options = MapOptions::default();
        for of_one_mounter in text.split(';') {
            let (known, list, of_mounter) = match of_one_mounter.split_once(':') {
                None => (KRBD, of_one_mounter, &mut options.krbd),
                Some(("krbd", list)) => (KRBD, list, &mut options.krbd),
                Some(("nbd", list)) => (NBD, list, &mut options.nbd),
                Some((other, _)) => {
                    return Err(Error::InvalidArgument(format!(
                        "mapOptions holds options for {other:?}: they are for krbd or for nbd"
                    )));
                }
            };
            for option in list.split(',') {
                check_one("mapOptions", option, known)?;
                of_mounter.push(option.to_owned());
            }
        }
        Ok(options)
    }
}

/// Checks the StorageClass parameter `unmapOptions`, which changes nothing.
pub fn check_unmap_options(text: &str) -> Result<()> {
    for of_one_mounter in text.split(';') {
        let list =
            ["krbd:", "nbd:"].iter().find_map(|mounter| of_one_mounter.strip_prefix(mounter));
        for option in list.unwrap_or(of_one_mounter).split(',') {
            check_one("unmapOptions", option, UNMAP)?;
        }
    }
    Ok(())
}

fn check_one(key: &str, option: &str, known: &[&str]) -> Result<()> {
    let (name, value) = option.split_once('=').unwrap_or((option, "-"));
    if !known.contains(&name) {
        return Err(Error::InvalidArgument(format!(
            "{key} holds {name:?}; allowed are {}, as [krbd:|nbd:]name[=value], separated by commas",
            known.join(", ")
        )));
    }
    let is_value = (1..=64).contains(&value.len())
        && value.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'));
    if is_value {
        return Ok(());
    }
    Err(Error::InvalidArgument(format!(
        "{key}: the value of {name} is 1 to 64 letters, digits, '.', '_' or '-', not {value:?}"
    )))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn options_that_tune_pass() {
        for options in [
            "queue_depth=1024",
            "krbd:lock_on_read,queue_depth=1024;nbd:try-netlink",
            "ms_mode=prefer-crc,read_from_replica=localize",
        ] {
            MapOptions::parse(options).unwrap();
        }
        check_unmap_options("krbd:force;nbd:reattach-timeout=30").unwrap();
    }

    #[test]
    fn each_mounter_has_its_own() {
        let options = MapOptions::parse("crc;nbd:io-timeout=60,notrim;krbd:queue_depth=8").unwrap();
        assert_eq!(options.krbd, ["crc", "queue_depth=8"]);
        assert_eq!(options.nbd, ["io-timeout=60", "notrim"]);
        for of_the_other in ["nbd:queue_depth=8", "krbd:try-netlink", "try-netlink"] {
            assert!(MapOptions::parse(of_the_other).is_err(), "{of_the_other}");
        }
    }

    #[test]
    fn options_that_say_who_maps_what_or_run_programs_do_not() {
        for options in [
            "",
            ",",
            "krbd:",
            "exclusive",
            "secret=AQ==",
            "key=x",
            "name=admin",
            "keyring=/etc/ceph/keyring",
            "quiesce-hook=/bin/sh",
            "device=/dev/nbd0",
            "fsid=x",
            "queue_depth=1,name=admin",
            "queue_depth=1,,",
            "queue_depth=",
            "queue_depth=1 --id admin",
            "queue_depth=../../x",
            "krbd:krbd:queue_depth=1",
            "xen:queue_depth=1",
            "Queue_depth=1",
            "queue_depth=1\n",
        ] {
            assert!(
                matches!(MapOptions::parse(options), Err(Error::InvalidArgument(_))),
                "{options:?}"
            );
        }
        assert!(check_unmap_options("queue_depth=1").is_err());
    }

    proptest! {
        #[test]
        fn what_passes_holds_nothing_that_separates_words_or_paths(options in "[a-z_=,;:./ -]{0,40}|(queue_depth|crc)(=.{0,9})?") {
            if MapOptions::parse(&options).is_ok() {
                prop_assert!(!options.contains([' ', '/', '\n', '\'', '"', '\\', '$']), "{options:?}");
            }
        }
    }
}
