//! The mounter `rbd`: what it refuses before it maps, what the kernel refuses, clusters that do not
//! answer, and where the key is.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use cinderblock::node::{Access, AccessMode, Error};

use crate::lab::{Volume, ext4, key, rbd, run, variable, wait_until, write};

const BUS: &str = "/sys/bus/rbd";

/// An attribute of the mapped image `device`.
fn attribute(device: &str, name: &str) -> String {
    let id = device.trim_start_matches("rbd");
    fs::read_to_string(format!("{BUS}/devices/{id}/{name}")).unwrap().trim().to_owned()
}

/// Has the machine itself do something with the lab's Ceph.
fn lab_ceph(words: &[&str]) {
    let root = env!("CARGO_MANIFEST_DIR");
    let call = format!("{root}/lab/guest-call");
    let lab = format!("{root}/lab/ceph");
    let folder = variable("LAB_DIR");
    run(&call, &[&["10.77.0.1", &lab, "--dir", &folder], words].concat());
}

/// The address of the lab's monitor in the first protocol.
fn v1_address() -> String {
    let monitors = variable("LAB_MONITORS");
    monitors.split("v1:").nth(1).unwrap().trim_end_matches(']').to_owned()
}

#[test]
fn a_feature_krbd_lacks_is_told_before_anything_is_mapped() {
    let volume = Volume::new(16, Access::Block);
    let image = volume.image.to_string();
    let (done, text) = rbd(&["feature", "enable", &image, "journaling"]);
    assert!(done, "{text}");
    let error = volume.stage().unwrap_err();
    let told = |text: &str| {
        text.contains("the features journaling") && text.contains("mounter to rbd-nbd")
    };
    assert!(matches!(&error, Error::FailedPrecondition(text) if told(text)), "{error}");
    volume.assert_nothing_on_the_node();
    assert!(rbd(&["feature", "disable", &image, "journaling"]).0);
    volume.stage().unwrap();
    volume.unstage().unwrap();
    volume.finish();
}

#[test]
fn a_key_of_a_type_this_kernel_does_not_know_is_told_before_anything_is_mapped() {
    let volume = Volume::new(16, Access::Block);
    // The lab's key, with the number of a type that no client knows at its beginning.
    let newer = key().replacen("AQ", "Bw", 1);
    let error = volume.stage_with_key(&newer).unwrap_err();
    let told = |text: &str| text.contains("does not know the type of the key");
    assert!(matches!(&error, Error::FailedPrecondition(text) if told(text)), "{error}");
    assert!(!error.to_string().contains(&newer));
    volume.assert_nothing_on_the_node();
    volume.finish();
}

#[test]
fn an_option_the_kernel_does_not_take_is_told() {
    let mut volume = Volume::new(16, Access::Block);
    volume.map_options = Some("alloc_size=7".into());
    let error = volume.stage().unwrap_err();
    assert!(
        matches!(&error, Error::FailedPrecondition(text) if text.contains("mapOptions")),
        "{error}"
    );
    volume.assert_nothing_on_the_node();
    volume.finish();
}

#[test]
fn options_and_protocols_are_those_of_the_class() {
    for (options, mode) in [
        ("queue_depth=64", "ms_mode=prefer-crc"),
        ("ms_mode=legacy,osd_idle_ttl=30", ""),
        ("ms_mode=secure,osd_idle_ttl=30", "ms_mode=secure"),
    ] {
        let mut volume = Volume::new(16, Access::Block);
        volume.map_options = Some(options.into());
        volume.stage().unwrap();
        let line = attribute(&volume.device(), "config_info");
        for option in options.split(',').chain([mode]) {
            assert!(line.contains(option), "{line}");
        }
        assert_eq!(line.contains(&v1_address()), mode.is_empty(), "{line}");
        volume.unstage().unwrap();
        volume.finish();
    }
}

#[test]
fn writable_volumes_have_clients_of_their_own_and_read_only_ones_may_share() {
    let read_only = AccessMode::MultiNodeReaderOnly;
    let writable = AccessMode::SingleNodeMultiWriter;
    let kinds = [
        (None, writable),
        (Some("share"), writable),
        (Some("share"), read_only),
        (Some("share"), read_only),
    ];
    let volumes = kinds.map(|(options, mode)| {
        let mut volume = Volume::new(16, Access::Block);
        volume.map_options = options.map(str::to_owned);
        volume.capability.mode = mode;
        volume.stage().unwrap();
        volume
    });
    let clients: Vec<_> =
        volumes.iter().map(|volume| attribute(&volume.device(), "client_id")).collect();
    assert!(
        clients[0] != clients[1] && clients[1] != clients[2] && clients[2] == clients[3],
        "{clients:?}"
    );
    for volume in volumes {
        volume.unstage().unwrap();
        volume.finish();
    }
}

#[test]
fn the_key_is_in_the_mapping_processes_keyring_and_nowhere_else() {
    let volume = Volume::new(16, Access::Block);
    volume.stage().unwrap();
    let line = attribute(&volume.device(), "config_info");
    assert!(line.contains(",key=cinderblock-") && !line.contains(&key()), "{line}");
    wait_until("the keyring to go", || {
        !fs::read_to_string("/proc/keys").unwrap().contains("cinderblock-")
    });
    volume.unstage().unwrap();
    volume.finish();
}

#[test]
fn without_keyrings_the_key_goes_to_krbd_itself() {
    // What a container's system call filter does to others, the limit on keys does here.
    const LIMIT: &str = "/proc/sys/kernel/keys/root_maxkeys";
    let mut volume = Volume::new(16, Access::Block);
    let limit = fs::read_to_string(LIMIT).unwrap();
    fs::write(LIMIT, "1").unwrap();
    let outcome = volume.stage();
    fs::write(LIMIT, limit).unwrap();
    outcome.unwrap();
    let line = attribute(&volume.device(), "config_info");
    assert!(line.contains("secret="), "{line}");
    volume.restart();
    volume.stage().unwrap();
    volume.assert_attached_once();
    for entry in fs::read_dir(volume.path("state")).unwrap().flatten() {
        let kept = fs::read_to_string(entry.path().join("krbd")).unwrap();
        assert!(kept.contains("secret=hidden") && !kept.contains(&key()), "{kept}");
    }
    volume.unstage().unwrap();
    volume.finish();
}

#[test]
fn an_image_somebody_else_has_mapped_is_refused() {
    let volume = Volume::new(16, Access::Block);
    let user = variable("LAB_USER");
    let line = format!("{} name={user},secret={} rbd {} -", v1_address(), key(), volume.image.name);
    fs::write(Path::new(BUS).join("add_single_major"), line).unwrap();
    let foreign = volume.device();
    let error = volume.stage().unwrap_err();
    let told = |text: &str| text.contains(&format!("/dev/{foreign} and not by this driver"));
    assert!(matches!(&error, Error::FailedPrecondition(text) if told(text)), "{error}");
    assert_eq!(volume.devices(), [foreign.clone()], "only the other mapping is left");
    fs::write(Path::new(BUS).join("remove_single_major"), foreign.trim_start_matches("rbd"))
        .unwrap();
    volume.stage().unwrap();
    volume.unstage().unwrap();
    volume.finish();
}

#[test]
fn a_cluster_that_stops_answering_holds_nothing_up_for_ever() {
    let volume = Volume::new(16, ext4());
    let patient = Instant::now();
    lab_ceph(&["stop", "osd"]);
    let outcome = volume.stage();
    lab_ceph(&["cont", "osd"]);
    let error = outcome.unwrap_err();
    assert!(matches!(error, Error::Unavailable(_)), "{error}");
    assert!(patient.elapsed() < Duration::from_mins(2), "{:?}", patient.elapsed());
    volume.assert_nothing_on_the_node();

    volume.stage().unwrap();
    write(&volume.path("staging/data"), b"x");
    run("sync", &["-f", volume.staging().to_str().unwrap()]);
    volume.unstage().unwrap();
    volume.finish();
}

#[test]
fn an_unmapping_that_the_cluster_does_not_answer_is_given_up_and_done_later() {
    let volume = Volume::new(16, Access::Block);
    volume.stage().unwrap();
    let patient = Instant::now();
    lab_ceph(&["stop", "osd"]);
    let outcome = volume.unstage();
    lab_ceph(&["cont", "osd"]);
    assert!(matches!(outcome, Ok(()) | Err(Error::Unavailable(_) | Error::Busy(_))), "{outcome:?}");
    assert!(patient.elapsed() < Duration::from_mins(2), "{:?}", patient.elapsed());
    wait_until("the unmapping", || volume.unstage().is_ok());
    volume.finish();
}
