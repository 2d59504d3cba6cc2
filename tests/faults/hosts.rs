//! Hosts in trouble: other users at the socket, no room for files, a root that is read-only, a
//! clock that jumps (F27, F28).

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::common::driver::{Class, Driver, lab_config};
use crate::common::rpcs::Things;
use crate::common::{Lab, Namespace};
use crate::lab::is_back;

const DRIVER: &str = env!("CARGO_BIN_EXE_cinderblock");

/// Whether a process of this user gets a connection to the socket.
fn connects(user: &str, socket: &Path) -> Result<(), String> {
    let address = format!("UNIX-CONNECT:{}", socket.display());
    let output = Command::new("setpriv")
        .args([format!("--reuid={user}"), format!("--regid={user}"), "--clear-groups".into()])
        .args(["socat", "-u", "/dev/null", &address])
        .output()
        .unwrap();
    if output.status.success() {
        Ok(())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_socket_is_for_its_owner_alone_even_where_its_folder_is_not() {
    let lab = Lab::from_environment();
    let driver = Driver::controller_for(&lab);
    connects("0", &driver.socket()).unwrap();
    // A way there for everybody, for as long as the test lasts.
    let mut folder = driver.folder().to_path_buf();
    std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut opened = Vec::new();
    while folder.pop() {
        let mode = std::fs::metadata(&folder).unwrap().permissions().mode();
        if mode & 0o001 == 0 {
            std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(mode | 0o001))
                .unwrap();
            opened.push((folder.clone(), mode));
        }
    }
    let refused = connects("65534", &driver.socket());
    for (folder, mode) in opened {
        std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(mode)).unwrap();
    }
    let why = refused.unwrap_err();
    assert!(why.contains("Permission denied"), "{why}");
}

/// Every RPC works.
async fn all_works(driver: &Driver, class: &Class, round: &str) {
    let things = Things::make(driver, class, round).await;
    for answer in things.ask_all(driver, round, 60).await {
        assert!(answer.outcome.is_ok(), "{round}: {answer:?}");
    }
    things.remove(driver, round).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_driver_needs_no_room_for_files_and_no_root_it_can_write_to() {
    const HOST: &str = r#"
        mkdir "$1/full"
        mount --make-rprivate /
        mount --bind "$1" "$1"
        mount -t tmpfs -o size=4k full "$1/full"
        mount -o remount,bind,ro /
        ! head -c 1M /dev/zero >"$1/full/file" || exit 1
        ! touch /written || exit 1
        shift
        exec "$@"
    "#;
    let lab = Lab::from_environment();
    let namespace = Namespace::new(&lab);
    let class = Class::new(&lab, &namespace.name);
    let host = |folder: &Path| {
        let mut command = Command::new("unshare");
        command.args(["--mount", "bash", "-ec", HOST, "host"]).arg(folder).arg(DRIVER);
        command.env("TMPDIR", folder.join("full")).env("HOME", folder.join("full"));
        command
    };
    let driver = Driver::start_by(host, &lab_config(&lab), &["--role", "controller"]);
    all_works(&driver, &class, "full").await;
    drop(driver);
    namespace.assert_nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_jumps_ends_no_call_early_and_lets_none_hang() {
    let lab = Lab::from_environment();
    let namespace = Namespace::new(&lab);
    let class = Class::new(&lab, &namespace.name);
    let folder = tempfile::tempdir().unwrap();
    let clock = folder.path().join("clock");
    let set = |offset: &str| {
        // Whole at any moment.
        let new = folder.path().join("new");
        std::fs::write(&new, format!("{offset}\n")).unwrap();
        std::fs::rename(&new, &clock).unwrap();
    };
    set("+0");
    let library: PathBuf = ["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu"]
        .iter()
        .map(|folder| Path::new(folder).join("faketime/libfaketimeMT.so.1"))
        .find(|library| library.exists())
        .expect("the package faketime is not installed: run lab/setup");
    let faked = |_: &Path| {
        let mut command = Command::new(DRIVER);
        command
            .env("LD_PRELOAD", &library)
            .env("FAKETIME_TIMESTAMP_FILE", &clock)
            .env("FAKETIME_NO_CACHE", "1")
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        command
    };
    let driver = Driver::start_by(faked, &lab_config(&lab), &["--role", "controller"]);
    all_works(&driver, &class, "before").await;
    for (round, offset) in [("forward", "+3h"), ("back", "-3h"), ("far", "+400d"), ("again", "+0")]
    {
        set(offset);
        is_back(&driver, &class, &format!("the clock, {offset}")).await;
        all_works(&driver, &class, round).await;
        if round == "far" {
            let log = driver.log();
            let last: jiff::Timestamp =
                log.lines().last().unwrap().split(' ').next().unwrap().parse().unwrap();
            assert!(
                last > jiff::Timestamp::now() + Duration::from_hours(24 * 399),
                "the clock stands: {last}"
            );
        }
    }
    drop(driver);
    namespace.assert_nothing_is_left();
}
