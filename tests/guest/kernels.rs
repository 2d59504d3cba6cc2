//! What a kernel and a mounter take: the rows of "Kernels" in docs/reference/compatibility.md, and
//! what a user reads where they do not go together with a cluster of Ceph 20.
//! tests/guest-kernels.sh runs these tests, each by its name, and has made the images, the user
//! `csi` with a key of the type aes256k, and `csi-aes` with one of the kind aes.

use std::fs::OpenOptions;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use cinderblock::node::{Access, Error, Result};

use crate::lab::{Volume, mounter_name, run, variable};

/// The images for krbd, each named by the feature it was made for, and a clone of format 2. For
/// librbd, which knows them all, there is one with all these features, `all`: a process takes long
/// to start here.
const IMAGES: [&str; 9] = [
    "layering",
    "exclusive-lock",
    "object-map",
    "fast-diff",
    "deep-flatten",
    "data-pool",
    "striping",
    "journaling",
    "clone",
];

const PAGE: usize = 4096;

/// How many keys root may have.
const KEY_LIMIT: &str = "/proc/sys/kernel/keys/root_maxkeys";

/// Users with a key of the type aes, and one of the type aes256k.
const USERS: [&str; 2] = ["csi-aes", "csi"];

/// A volume of the image `name`, for the user `user`, with these mapOptions.
fn volume(name: &str, user: &str, options: Option<&str>) -> Volume {
    let mut volume = Volume::of_image(Access::Block);
    volume.image.name = name.to_owned();
    volume.image.user = Some(user.to_owned());
    volume.map_options = options.map(str::to_owned);
    volume
}

/// The key of a user.
fn key_of(user: &str) -> String {
    std::fs::read_to_string(Path::new(&variable("LAB_DIR")).join(format!("{user}.key"))).unwrap()
}

/// Stages `volume`, writes to its device and reads that back, past the kernel's cache, and unstages
/// it.
fn use_it(volume: &Volume) -> Result<()> {
    let key = key_of(volume.image.user.as_ref().unwrap());
    // As kubelet does: on a busy machine a connection may take longer than the driver waits for it.
    let deadline = Instant::now() + Duration::from_mins(5);
    loop {
        match volume.stage_with_key(&key) {
            Err(Error::Unavailable(_)) if Instant::now() < deadline => {}
            outcome => break outcome?,
        }
    }
    let device = format!("/dev/{}", volume.device());
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(nix::libc::O_DIRECT)
        .open(device)
        .unwrap();
    let mut room = vec![0; 2 * PAGE];
    let start = room.as_ptr().align_offset(PAGE);
    let page = &mut room[start..start + PAGE];
    // Other bytes each time, and not those of the staging before.
    let seed =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().subsec_nanos();
    let written: Vec<u8> =
        (0..PAGE).map(|place| seed.to_le_bytes()[place % 4] ^ place.to_le_bytes()[0]).collect();
    page.copy_from_slice(&written);
    file.write_all_at(page, 1 << 20).unwrap();
    page.fill(0);
    file.read_exact_at(page, 1 << 20).unwrap();
    assert!(page == written, "{}: what was written is not there", volume.image);
    drop(file);
    volume.unstage()?;
    volume.assert_nothing_on_the_node();
    Ok(())
}

/// The text of the refusal of `volume`, which leaves nothing behind.
fn refusal(volume: &Volume) -> Error {
    let error = use_it(volume).expect_err("it is not refused");
    volume.assert_nothing_on_the_node();
    println!(
        "{} of {}: {error:?}",
        mounter_name(),
        volume.image.user.as_deref().unwrap_or_default()
    );
    let key = key_of(volume.image.user.as_ref().unwrap());
    assert!(!error.to_string().contains(&key), "{error}");
    error
}

/// Has the machine run a tool of Ceph's.
fn ceph(words: &[&str]) {
    let root = env!("CARGO_MANIFEST_DIR");
    let conf = format!("CEPH_CONF={}", variable("CEPH_CONF"));
    let with = format!("{root}/lab/with");
    let release = variable("LAB_RELEASE");
    run(
        &format!("{root}/lab/guest-call"),
        &[&["10.77.0.1", "env", &conf, &with, &release, "ceph"], words].concat(),
    );
}

/// This kernel's version, major and minor.
fn linux() -> (u32, u32) {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split('.').map(|number| number.parse().unwrap());
    (numbers.next().unwrap(), numbers.next().unwrap())
}

fn is_rbd() -> bool {
    mounter_name() == "rbd"
}

/// Whether krbd is too old for the user's key.
fn is_too_old_for(user: &str) -> bool {
    is_rbd() && user == "csi" && linux() < (7, 0)
}

#[test]
fn row() {
    let mut cells = vec![format!("{}.{}", linux().0, linux().1), mounter_name().to_owned()];
    let mut cell = |is_refused: bool, volumes: &[Volume]| {
        for volume in volumes {
            let outcome = use_it(volume);
            match &outcome {
                Ok(()) => assert!(!is_refused, "{} is taken", volume.image),
                Err(error) => {
                    assert!(is_refused, "{}: {error}", volume.image);
                    assert!(matches!(error, Error::FailedPrecondition(_)), "{error:?}");
                }
            }
        }
        cells.push(if is_refused { "no" } else { "yes" }.to_owned());
    };
    for image in IMAGES {
        match (is_rbd(), image) {
            (true, _) => cell(image == "journaling", &[volume(image, "csi-aes", None)]),
            (false, "layering") => cell(false, &[volume("all", "csi-aes", None)]),
            (false, "clone") => cell(false, &[volume("clone", "csi-aes", None)]),
            // It was there with the first.
            (false, _) => cell(false, &[]),
        }
    }
    // The first of them has been used all along.
    cell(false, &[]);
    cell(is_too_old_for("csi"), &[volume("layering", "csi", None)]);
    for mode in ["legacy", "crc", "secure"] {
        let users = USERS.iter().filter(|user| !is_too_old_for(user));
        let options = format!("ms_mode={mode}");
        let volumes: Vec<_> = users.map(|user| volume("layering", user, Some(&options))).collect();
        if is_rbd() {
            cell(false, &volumes);
        }
    }
    cells.resize(16, "-".to_owned());
    println!("| {} |", cells.join(" | "));
}

/// What every refusal of a key that is too new says to do.
fn assert_names_an_aes_user(error: &Error) {
    let command = "ceph auth get-or-create client.csi-aes mon 'profile rbd' osd 'profile rbd pool=rbd' mgr 'profile rbd pool=rbd' \
                   --key_type aes";
    let told =
        |text: &str| text.contains("aes256k, as client.csi has one") && text.ends_with(command);
    assert!(matches!(error, Error::FailedPrecondition(text) if told(text)), "{error}");
}

#[test]
fn a_key_too_new_for_the_kernel() {
    assert!(is_too_old_for("csi"), "this kernel is not too old");
    let error = refusal(&volume("layering", "csi", None));
    assert_names_an_aes_user(&error);
    assert!(error.to_string().contains("mounter to rbd-nbd or fuse"), "{error}");

    // What a container's system call filter does to others, the limit on keys does here: krbd gets
    // the key in its line.
    let limit = std::fs::read_to_string(KEY_LIMIT).unwrap();
    std::fs::write(KEY_LIMIT, "1").unwrap();
    let outcome = use_it(&volume("layering", "csi", None));
    std::fs::write(KEY_LIMIT, limit).unwrap();
    assert_names_an_aes_user(&outcome.unwrap_err());
}

/// With the librados of Ceph 16 for driver and programs.
#[test]
fn a_key_too_new_for_the_driver() {
    let error = refusal(&volume("layering", "csi", None));
    assert_names_an_aes_user(&error);
    // With `fuse` the driver asks the cluster nothing before the storage daemon opens the image.
    let which = match mounter_name() {
        "fuse" => "the librados of this node's qemu-storage-daemon",
        _ => "the librados of this driver, Ceph 16",
    };
    assert!(error.to_string().contains(which), "{error}");
}

/// With the librados of Ceph 20 for the driver, and that of Ceph 16 for the programs.
#[test]
fn a_key_too_new_for_the_program() {
    let error = refusal(&volume("layering", "csi", None));
    assert_names_an_aes_user(&error);
    assert!(error.to_string().contains("this node's"), "{error}");
}

#[test]
fn a_cluster_that_has_stopped_taking_aes() {
    let known = volume("layering", "csi-aes", None);
    use_it(&known).unwrap();
    ceph(&["mon", "set", "auth_allowed_ciphers", "aes256k"]);
    // The first has a connection that is open still, so it is the mounter that is refused.
    let outcomes = [&known, &volume("layering", "csi-aes", None)].map(use_it);
    ceph(&["mon", "set", "auth_allowed_ciphers", "aes,aes256k"]);
    for outcome in outcomes {
        let error = outcome.unwrap_err();
        println!("{}: {error:?}", mounter_name());
        let told = |text: &str| {
            text.contains("the cluster refuses client.csi-aes")
                && text.ends_with("ceph mon set auth_allowed_ciphers aes,aes256k")
        };
        assert!(matches!(&error, Error::Unauthenticated(text) if told(text)), "{error:?}");
    }
    known.assert_nothing_on_the_node();
    use_it(&known).unwrap();
}

#[test]
fn a_cluster_that_insists_on_encryption() {
    const MODES: [&str; 3] = ["ms_cluster_mode", "ms_service_mode", "ms_client_mode"];
    let of_monitors = MODES.map(|mode| mode.replace("ms_", "ms_mon_"));
    let modes = || MODES.into_iter().chain(of_monitors.iter().map(String::as_str));
    for mode in modes() {
        ceph(&["config", "set", "global", mode, "secure"]);
    }
    // Of mapOptions, these are krbd's alone.
    let asked =
        if is_rbd() { &["prefer-crc", "secure", "crc", "legacy"][..] } else { &["prefer-crc"] };
    let outcomes: Vec<_> = asked
        .iter()
        .map(|mode| {
            let options = format!("ms_mode={mode}");
            (*mode, use_it(&volume("layering", "csi-aes", Some(&options))))
        })
        .collect();
    for mode in modes() {
        ceph(&["config", "rm", "global", mode]);
    }
    for (mode, outcome) in outcomes {
        println!("{} {mode}: {outcome:?}", mounter_name());
        if mode == "crc" {
            let error = outcome.unwrap_err();
            let told = |text: &str| {
                text.contains("ms_service_mode") && text.contains("take ms_mode=crc off")
            };
            assert!(matches!(&error, Error::Unauthenticated(text) if told(text)), "{error}");
        } else {
            outcome.unwrap();
        }
    }
}
