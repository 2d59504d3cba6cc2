//! The grammar of `mapOptions` and `unmapOptions`, ceph-csi's: `[krbd:|nbd:]name[=value],…[;…]`.
//!
//! Both end in one string of comma-separated options, where a value with a comma would smuggle in further ones: another
//! user, another key, a program to run. So names come from a list, and values are short words. Left out on purpose are
//! `exclusive`, under which a mapped image cannot be grown, and all that says who maps what.

use tonic::Status;

/// Options of `rbd map` and `rbd-nbd map` that tune how a mapped image works.
const MAP: &[&str] = &[
    "abort_on_full",
    "alloc_size",
    "compression_hint",
    "crc",
    "io-timeout",
    "lock_on_read",
    "lock_timeout",
    "max_part",
    "mount_timeout",
    "ms_mode",
    "nbds_max",
    "nocrc",
    "noshare",
    "notcp_nodelay",
    "notrim",
    "osd_idle_ttl",
    "osd_request_timeout",
    "osdkeepalive",
    "queue_depth",
    "read_from_replica",
    "reattach-timeout",
    "rxbounce",
    "share",
    "tcp_nodelay",
    "timeout",
    "try-netlink",
];

/// Options of `rbd unmap` and `rbd-nbd unmap`.
const UNMAP: &[&str] = &["force", "reattach-timeout"];

/// Checks the value of the parameter `key`.
pub(crate) fn check(key: &str, options: &str) -> Result<(), Status> {
    let known = if key == "unmapOptions" { UNMAP } else { MAP };
    for of_one_mounter in options.split(';') {
        let list = ["krbd:", "nbd:"].iter().find_map(|mounter| of_one_mounter.strip_prefix(mounter));
        for option in list.unwrap_or(of_one_mounter).split(',') {
            check_one(key, option, known)?;
        }
    }
    Ok(())
}

fn check_one(key: &str, option: &str, known: &[&str]) -> Result<(), Status> {
    let (name, value) = option.split_once('=').unwrap_or((option, "-"));
    if !known.contains(&name) {
        return Err(Status::invalid_argument(format!(
            "{key} holds {name:?}; allowed are {}, as [krbd:|nbd:]name[=value], separated by commas",
            known.join(", ")
        )));
    }
    let is_value = (1..=64).contains(&value.len())
        && value.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'));
    if is_value {
        return Ok(());
    }
    Err(Status::invalid_argument(format!(
        "{key}: the value of {name} is 1 to 64 letters, digits, '.', '_' or '-', not {value:?}"
    )))
}

#[cfg(test)]
mod tests {
    use super::check;
    use proptest::prelude::*;

    #[test]
    fn options_that_tune_pass() {
        for options in [
            "queue_depth=1024",
            "krbd:lock_on_read,queue_depth=1024;nbd:try-netlink",
            "ms_mode=prefer-crc,read_from_replica=localize",
        ] {
            check("mapOptions", options).unwrap();
        }
        check("unmapOptions", "krbd:force;nbd:reattach-timeout=30").unwrap();
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
            let status = check("mapOptions", options).unwrap_err();
            assert_eq!(status.code(), tonic::Code::InvalidArgument, "{options:?}");
        }
        assert!(check("unmapOptions", "queue_depth=1").is_err());
    }

    proptest! {
        #[test]
        fn what_passes_holds_nothing_that_separates_words_or_paths(options in "[a-z_=,;:./ -]{0,40}|(queue_depth|crc)(=.{0,9})?") {
            if check("mapOptions", &options).is_ok() {
                prop_assert!(!options.contains([' ', '/', '\n', '\'', '"', '\\', '$']), "{options:?}");
            }
        }
    }
}
