//! Paths that are not what they seem: links, folders swapped under the driver's hands, mounts that
//! the driver does not see.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use cinderblock::node::{Access, Error, Publish};
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};

use crate::lab::{StopOnDrop, Volume, ext4, run, wait_until, write, xfs};

/// What is in the folder `name` of the test.
fn entries(volume: &Volume, name: &str) -> usize {
    fs::read_dir(volume.path(name)).unwrap().count()
}

#[test]
fn targets_are_not_reached_through_links() {
    for access in [ext4(), Access::Block] {
        let volume = Volume::new(64, access);
        fs::create_dir(volume.path("outside")).unwrap();
        symlink(volume.path("outside"), volume.path("link")).unwrap();
        symlink(volume.path("staging"), volume.path("staging-link")).unwrap();
        volume.stage().unwrap();
        let refused = |outcome: cinderblock::node::Result<()>| {
            assert!(matches!(outcome, Err(Error::FailedPrecondition(_))), "{outcome:?}");
        };
        refused(volume.publish("link/target", false));
        refused(volume.publish("link", false));
        refused(volume.unpublish("link/target"));
        refused(volume.node.publish(&Publish {
            volume_id: volume.id(),
            staging_path: volume.path("staging-link"),
            target_path: volume.path("target"),
            capability: volume.capability.clone(),
            read_only: false,
        }));
        assert_eq!(entries(&volume, "outside"), 0);
        assert!(!volume.path("target").exists());
        volume.unstage().unwrap();
        volume.finish();
    }
}

#[test]
fn a_folder_that_becomes_a_link_meanwhile_leads_nowhere() {
    const ROUNDS: u32 = 150;
    let volume = Volume::new(64, ext4());
    volume.stage().unwrap();
    fs::create_dir(volume.path("pod")).unwrap();
    fs::create_dir(volume.path("outside")).unwrap();
    symlink(volume.path("outside"), volume.path("decoy")).unwrap();
    let swap = || {
        renameat2(
            AT_FDCWD,
            &volume.path("pod"),
            AT_FDCWD,
            &volume.path("decoy"),
            RenameFlags::RENAME_EXCHANGE,
        )
    };
    let stop = AtomicBool::new(false);
    let (mut published, mut refused) = (0, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                swap().unwrap();
                std::thread::yield_now();
            }
        });
        let _stop = StopOnDrop(&stop);
        for _ in 0..ROUNDS {
            match volume.publish("pod/target", false) {
                Ok(()) => published += 1,
                Err(Error::FailedPrecondition(_)) => refused += 1,
                Err(error) => panic!("{error}"),
            }
            assert_eq!(entries(&volume, "outside"), 0);
            wait_until("an unpublish that finds the folder", || {
                volume.unpublish("pod/target").is_ok()
            });
            assert_eq!(entries(&volume, "outside"), 0);
        }
    });
    assert!(
        published > 0 && refused > 0,
        "{published} published, {refused} refused: nothing was swapped"
    );
    if volume.path("pod").is_symlink() {
        swap().unwrap();
    }
    assert_eq!(entries(&volume, "pod"), 0);
    volume.unstage().unwrap();
    volume.finish();
}

#[test]
fn a_mount_in_another_namespace_keeps_the_device_and_is_named() {
    let volume = Volume::new(64, ext4());
    volume.stage().unwrap();
    volume.publish("target", false).unwrap();
    write(&volume.path("target/data"), b"x");
    // It lets go of other tests' mounts, which would keep their devices.
    let script = r#"
        awk -v all="$1/" -v own="$2" 'index($5, all) == 1 && index($5, own) != 1 { print $5 }' \
            /proc/self/mountinfo | tac | xargs --no-run-if-empty umount --lazy
        exec sleep 600
    "#;
    let mut other = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-c", script, "sh"])
        .args([std::env::temp_dir(), volume.path("")])
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let process = other.id();
    wait_until("a namespace of its own", || {
        fs::read_to_string(format!("/proc/{process}/comm")).is_ok_and(|name| name.trim() == "sleep")
    });
    let outcome = volume.unpublish("target").and_then(|()| volume.unstage());
    volume.assert_attached_once();
    // It is mounted there still, so it is mounted here once more as it is.
    let again = volume.stage().map(|()| fs::read(volume.path("staging/data")).unwrap());
    other.kill().unwrap();
    other.wait().unwrap();
    assert_eq!(again.unwrap(), b"x");
    let error = outcome.unwrap_err();
    let name = format!("sleep {process}");
    assert!(matches!(&error, Error::FailedPrecondition(text) if text.contains(&name)), "{error}");
    wait_until("the namespace's end", || volume.unstage().is_ok());
    volume.finish();
}

#[test]
fn mounts_are_noted_as_ones_that_need_the_network() {
    for access in [ext4(), xfs()] {
        let volume = Volume::new(320, access);
        volume.stage().unwrap();
        let table = fs::read_to_string("/run/mount/utab").unwrap();
        let target = format!(" TARGET={} ", volume.staging().display());
        let line = table.lines().find(|line| line.contains(&target)).unwrap();
        assert!(line.contains("OPTS=_netdev"), "{line}");
        volume.unstage().unwrap();
        let table = fs::read_to_string("/run/mount/utab").unwrap();
        assert!(!table.contains(&target), "{table}");
        volume.finish();
    }
}

#[test]
fn another_filesystem_in_the_place_of_the_staged_one_is_not_published() {
    let volume = Volume::new(64, ext4());
    let other = Volume::new(64, ext4());
    volume.stage().unwrap();
    other.stage().unwrap();
    run(
        "mount",
        &["--bind", other.staging().to_str().unwrap(), volume.staging().to_str().unwrap()],
    );
    for outcome in [volume.publish("target", false), volume.stage()] {
        assert!(
            matches!(outcome, Err(Error::FailedPrecondition(_) | Error::Busy(_))),
            "{outcome:?}"
        );
    }
    assert!(!volume.path("target").exists());
    run("umount", &[volume.staging().to_str().unwrap()]);
    for volume in [volume, other] {
        volume.unstage().unwrap();
        volume.finish();
    }
}
