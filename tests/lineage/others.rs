//! What backup tools and administrators do to the driver's images with `rbd`, and what the driver
//! answers then.

use std::time::{Duration, Instant};

use cinderblock::csi::proto::ValidateVolumeCapabilitiesRequest;
use tonic::{Code, Status};

use crate::common::driver::{Class, Driver, MIB, filesystem, within};
use crate::common::{Lab, Namespace, OwnLab, POOL, random, wait_until};
use crate::family::{Family, From, in_both_formats, refusal};

fn assert_refused(answer: Result<(), Status>, words: &str) {
    let (code, message) = refusal(answer);
    assert_eq!(code, Code::FailedPrecondition, "{message}");
    assert!(message.contains(words), "{words:?} is not in {message:?}");
}

async fn validate(family: &Family<'_>, name: &str) -> Result<(), Status> {
    let validate = ValidateVolumeCapabilitiesRequest {
        volume_id: family.volume_id(name),
        volume_capabilities: vec![filesystem()],
        secrets: family.class.secrets.clone(),
        ..ValidateVolumeCapabilitiesRequest::default()
    };
    family.controller.clone().validate_volume_capabilities(validate).await.map(drop)
}

/// Deletes a volume, and asks again while told to, as sidecars do.
async fn insist_on_deletion(family: &Family<'_>, id: &str) {
    let deadline = Instant::now() + Duration::from_mins(2);
    loop {
        let request = family.class.delete_volume(id);
        match family.controller.clone().delete_volume(request).await {
            Ok(_) => return,
            Err(status) => {
                assert!(status.code() == Code::Aborted && Instant::now() < deadline, "{status:?}");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// Of whichever version or tool they are, other work goes on, and gc tells of them.
#[tokio::test(flavor = "multi_thread")]
async fn records_and_entries_that_cannot_be_read_block_nothing() {
    let lab = Lab::from_environment();
    let mut family = Family::new(&lab, "").await;
    family.create("A").await;
    let spec = family.spec("A");
    let namespace = spec.split('/').nth(1).unwrap().to_owned();
    let rados = |arguments: &[&str]| {
        let place = ["--pool", POOL, "--namespace", &namespace];
        lab.run("rados", &[&place[..], arguments].concat())
    };
    let (catalogue, journal) = ("cinderblock.default.catalogue.00", "cinderblock.default.journal");
    rados(&["setomapval", catalogue, "volume/csi-strange", "{\"version\":99}"]);
    rados(&["setomapval", journal, "strange@1#2", "no JSON"]);
    family.snapshot("A", "s1").await;
    family.restore("s1", "B").await;
    family.clone_volume("A", "C").await;
    let told = family.gc("", &["--apply"]);
    assert!(told.contains("csi-strange") && told.contains("strange@1#2"), "{told}");
    for name in ["A", "B", "C"] {
        family.delete(name).await;
    }
    family.delete_snapshot("s1").await;
    rados(&["rmomapkey", catalogue, "volume/csi-strange"]);
    rados(&["rmomapkey", journal, "strange@1#2"]);
    family.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_class_that_refuses_names_the_snapshot_of_another_tool() {
    in_both_formats(async |family| {
        family.set("deleteWithSnapshots", "refuse");
        family.create("A").await;
        let by_hand = format!("{}@by-hand", family.spec("A"));
        family.rbd(&["snap", "create", &by_hand]);
        let before = family.everything();
        assert_refused(family.try_delete("A").await, "by-hand");
        family.assert_unchanged(&before);
        family.publish("A").await.unwrap();
        family.unpublish("A").await;
        family.rbd(&["snap", "rm", "--no-progress", &by_hand]);
        family.delete("A").await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_tools_snapshot_keeps_a_deleted_volume_no_longer_than_it_lives() {
    in_both_formats(async |family| {
        family.create("A").await;
        let spec = family.spec("A");
        family.rbd(&["snap", "create", &format!("{spec}@by-hand")]);
        family.clone_volume("A", "B").await;
        family.delete("A").await;
        family.delete("B").await;
        let kept = format!("{spec}.deleted@by-hand");
        wait_until("nothing but the other tool's snapshot keeps the parent", || {
            let found = family.gc("", &[]);
            if found.contains(&kept) && !found.contains("journal") { Ok(()) } else { Err(found) }
        });
        let told = family.gc("", &["--apply"]);
        assert!(told.contains("failed") && told.contains(&kept), "{told}");
        family.rbd(&["snap", "rm", &kept]);
        wait_until("the sweeper has found that nothing keeps the parent", || {
            let found = family.gc("", &[]);
            if found.trim() == "nothing is left half-done" { Ok(()) } else { Err(found) }
        });
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_of_another_tool_refuses_changes_at_once_and_leaves_the_volume_usable() {
    let lab = Lab::from_environment();
    let mut family = Family::new(&lab, "").await;
    family.create("A").await;
    family.snapshot("A", "s1").await;
    let spec = family.spec("A");
    family.rbd(&["lock", "add", &spec, "back up"]);
    let words = format!("rbd lock remove {spec} \"back up\" client.");
    let began = Instant::now();
    assert_refused(family.try_delete("A").await, &words);
    assert_refused(family.expand("A", MIB).await, &words);
    assert_refused(family.try_snapshot("A", "s2").await, &words);
    assert_refused(family.make("B", Some(From::Volume("A")), 0).await.map(drop), &words);
    let request = family.class.delete_snapshot(&family.snapshot_id("s1"));
    assert_refused(family.controller.delete_snapshot(request).await.map(drop), &words);
    // Waiting for the lock would take for ever.
    assert!(began.elapsed() < Duration::from_mins(1), "{:?}", began.elapsed());
    family.publish("A").await.unwrap();
    family.unpublish("A").await;
    family.assert("A [snap-s1]");
    let owner = family.rbd(&["lock", "ls", &spec, "--format", "json"]);
    let owner = owner.split('"').find(|word| word.starts_with("client.")).unwrap().to_owned();
    family.rbd(&["lock", "rm", &spec, "back up", &owner]);
    // The exclusive lock is no such lock, whichever client has it.
    let open = family.open("A", cinderblock::rbd::OpenMode::ReadWrite);
    open.write_at(0, &[0; 4096]).unwrap();
    family.write("A", 0, "later");
    family.snapshot("A", "s2").await;
    drop(open);
    family.delete("A").await;
    family.delete_snapshot("s1").await;
    family.delete_snapshot("s2").await;
    family.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_in_a_group_is_not_deleted() {
    let lab = Lab::from_environment();
    let mut family = Family::new(&lab, "").await;
    family.create("A").await;
    let spec = family.spec("A");
    let group = format!("{}/g", spec.rsplit_once('/').unwrap().0);
    family.rbd(&["group", "create", &group]);
    family.rbd(&["group", "image", "add", &group, &spec]);
    assert_refused(family.try_delete("A").await, &format!("rbd group image remove {group} {spec}"));
    family.publish("A").await.unwrap();
    family.unpublish("A").await;
    family.rbd(&["group", "image", "rm", &group, &spec]);
    family.rbd(&["group", "rm", &group]);
    family.delete("A").await;
    lab.run(
        "rados",
        &[
            "--pool",
            POOL,
            "--namespace",
            group.split('/').nth(1).unwrap(),
            "rm",
            "rbd_group_directory",
        ],
    );
    family.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_somebody_moved_is_told_of_and_one_somebody_removed_is_gone() {
    let lab = Lab::from_environment();
    let mut family = Family::new(&lab, "").await;
    family.create("A").await;
    let spec = family.spec("A");
    let not_found = async |family: &Family<'_>, words: &str| {
        let again = family.request("A", None, 3);
        let created = family.controller.clone().create_volume(again).await.map(drop);
        for answer in [family.publish("A").await, validate(family, "A").await, created] {
            let (code, message) = refusal(answer);
            assert_eq!(code, Code::NotFound, "{message}");
            assert!(message.contains(words), "{words:?} is not in {message:?}");
        }
    };
    family.rbd(&["trash", "mv", &spec]);
    not_found(&family, "rbd trash restore").await;
    let (code, message) = refusal(family.try_delete("A").await);
    assert_eq!(code, Code::FailedPrecondition, "{message}");
    let (_, command) = message.split_once("rbd trash restore ").unwrap();
    let command = command.split(',').next().unwrap();
    family.rbd(&[&["trash", "restore"], &command.split(' ').collect::<Vec<_>>()[..]].concat());
    family.assert("A");

    family.rbd(&["rename", &spec, &format!("{spec}-moved")]);
    not_found(&family, "rbd rename").await;
    assert_refused(family.try_delete("A").await, &format!("rbd rename {spec}-moved {spec}"));
    family.rbd(&["rename", &format!("{spec}-moved"), &spec]);
    family.assert("A");

    family.rbd(&["rm", &spec]);
    not_found(&family, "delete the volume").await;
    family.delete("A").await;
    family.end();
}

/// One step of `rbd migration` of the image `spec`, to a new image of the same name.
fn migrate(family: &Family<'_>, step: &str, spec: &str) {
    // The driver closes what it tidied up after an answer.
    wait_until("the image is closed", || {
        let status = family.rbd(&["status", spec]);
        if status.contains("Watchers: none") { Ok(()) } else { Err(status) }
    });
    let more: &[&str] = match step {
        "prepare" => &[spec],
        // Also when it has clones.
        "commit" => &["--force"],
        _ => &[],
    };
    family.rbd(&[&["migration", step, spec], more].concat());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_migrated_image_keeps_its_snapshots() {
    let lab = Lab::from_environment();
    let mut family = Family::new(&lab, "").await;
    family.create("A").await;
    family.snapshot("A", "s1").await;
    let spec = family.spec("A");
    for step in ["prepare", "execute", "commit"] {
        migrate(&family, step, &spec);
    }
    family.restore("s1", "B").await;
    family.snapshot("A", "s2").await;
    // The same requests again.
    family.snapshot("A", "s1").await;
    family.snapshot("A", "s2").await;
    family.delete_snapshot("s2").await;
    family.delete("B").await;
    family.delete("A").await;
    family.delete_snapshot("s1").await;
    family.end();
}

/// Ceph aborts `rbd migration` of an image that is renamed meanwhile, and removes none.
#[tokio::test(flavor = "multi_thread")]
async fn an_image_under_migration_is_used_and_not_deleted() {
    let lab = Lab::from_environment();
    for (last, snapshot) in [("commit", true), ("commit", false), ("abort", true), ("abort", false)]
    {
        let mut family = Family::new(&lab, "").await;
        family.create("A").await;
        if snapshot {
            family.snapshot("A", "s1").await;
        }
        let spec = family.spec("A");
        for step in ["prepare", "execute"] {
            migrate(&family, step, &spec);
            let before = family.everything();
            assert_refused(family.try_delete("A").await, &format!("rbd migration commit {spec}"));
            family.assert_unchanged(&before);
            family.publish("A").await.unwrap();
            family.unpublish("A").await;
            if snapshot {
                family.restore("s1", step).await;
                family.delete(step).await;
            }
        }
        migrate(&family, last, &spec);
        family.delete("A").await;
        if snapshot {
            family.restore("s1", "B").await;
            family.delete("B").await;
            family.delete_snapshot("s1").await;
        }
        family.end();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_migrated_silent_parent_goes_with_the_last_that_needs_it() {
    let lab = Lab::from_environment();
    // What goes before the migration, and what after it. Ceph migrates no image with a snapshot
    // that was removed and has clones.
    for (before, after) in [("", "B s1"), ("", "s1 B"), ("B", "s1")] {
        let mut family = Family::new(&lab, "").await;
        family.create("A").await;
        family.snapshot("A", "s1").await;
        family.restore("s1", "B").await;
        let spec = format!("{}.deleted", family.spec("A"));
        family.delete("A").await;
        let go = async |family: &mut Family<'_>, names: &str| {
            for name in names.split_whitespace() {
                match name {
                    "s1" => family.delete_snapshot(name).await,
                    name => family.delete(name).await,
                }
            }
        };
        go(&mut family, before).await;
        for step in ["prepare", "execute", "commit"] {
            migrate(&family, step, &spec);
        }
        go(&mut family, after).await;
        family.end();
    }
}

/// `rbd migration execute` aborts, for ever, when a snapshot is gone that it has to copy. So one
/// that loses its reason to exist meanwhile loses its name at once, and goes after the last step.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_deleted_at_any_step_of_a_migration_goes_after_its_last() {
    let lab = Lab::from_environment();
    // Ceph migrates no image with a clone of format 1.
    for deleted_after in ["prepare", "execute", "commit"] {
        let mut family = Family::new(&lab, "").await;
        family.create("A").await;
        family.snapshot("A", "s1").await;
        family.clone_volume("A", "B").await;
        let spec = family.spec("A");
        for step in ["prepare", "execute", "commit"] {
            migrate(&family, step, &spec);
            if step == deleted_after {
                family.delete("B").await;
                family.delete_snapshot("s1").await;
                family.snapshot("A", "s1").await;
                family.delete_snapshot("s1").await;
            }
        }
        family.gc("", &["--apply"]);
        family.assert("A");
        family.delete("A").await;
        family.end();
    }
}

/// A backup tool's snapshot keeps a silent parent; the driver learned that before the migration.
#[tokio::test(flavor = "multi_thread")]
async fn a_silent_parent_that_was_suspect_before_its_migration_goes_with_the_sweeper() {
    let lab = Lab::from_environment();
    let mut family = Family::new(&lab, "").await;
    family.create("A").await;
    let spec = family.spec("A");
    family.rbd(&["snap", "create", &format!("{spec}@backup")]);
    family.delete("A").await;
    let spec = format!("{spec}.deleted");
    for step in ["prepare", "execute", "commit"] {
        migrate(&family, step, &spec);
    }
    let told = family.gc("", &["--apply"]);
    assert!(told.contains(&format!("{spec}@backup")), "{told}");
    family.rbd(&["snap", "rm", &format!("{spec}@backup")]);
    let told = family.gc("", &["--apply"]);
    assert!(told.contains("cleared  csi-A.deleted"), "{told}");
    family.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_that_moves_what_is_removed_to_the_trash_keeps_nothing() {
    let lab = OwnLab::up();
    for (option, value) in [
        ("rbd_move_to_trash_on_remove", "true"),
        ("rbd_move_to_trash_on_remove_expire_seconds", "3600"),
    ] {
        lab.run("rbd", &["config", "pool", "set", POOL, option, value]);
        lab.run("ceph", &["config", "set", "client", option, value]);
    }
    for format in ["1", "2"] {
        let mut family = Family::new(&lab, "").await;
        family.set("cloneFormat", format);
        family.create("A").await;
        family.snapshot("A", "s1").await;
        family.clone_volume("A", "B").await;
        family.delete("A").await;
        family.restore("s1", "C").await;
        for name in ["B", "C"] {
            family.delete(name).await;
        }
        family.delete_snapshot("s1").await;
        family.end();
    }
    // Nothing can be changed of a mirrored image that is not primary, and its mirror's snapshots go
    // with it.
    lab.run("rbd", &["mirror", "pool", "enable", POOL, "image"]);
    let class = Class::new(&lab, "").without("radosNamespace");
    let driver = Driver::controller_for(&lab);
    let mut controller = driver.controller().await;
    let made = controller.create_volume(class.create_volume("m", MIB)).await.unwrap();
    let id = made.into_inner().volume.unwrap().volume_id;
    let spec = format!("{POOL}/csi-m");
    lab.run("rbd", &["mirror", "image", "enable", &spec, "snapshot"]);
    lab.run("rbd", &["mirror", "image", "demote", &spec]);
    let words = format!("rbd mirror image promote {spec}");
    assert_refused(controller.delete_volume(class.delete_volume(&id)).await.map(drop), &words);
    assert_refused(
        controller.create_snapshot(class.create_snapshot("s", &id)).await.map(drop),
        &words,
    );
    lab.run("rbd", &["mirror", "image", "promote", &spec]);
    controller.delete_volume(class.delete_volume(&id)).await.unwrap();
    assert_eq!(lab.run("rbd", &["ls", POOL]).trim(), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_who_may_not_see_clones_leaves_nothing_behind() {
    let lab = OwnLab::up_with(&["--monitor-round", "0.05", "--pool", POOL, "--pool", "other"]);
    let namespace = Namespace::new(&lab);
    let driver = Driver::controller_for(&lab);
    let mut controller = driver.controller().await;
    // All of the pool, and not `rbd_children` of the other one, which `profile rbd` would let it
    // read.
    let (user, key) =
        lab.user("blind", &["mon", "profile rbd", "osd", &format!("allow rwx pool={POOL}")]);
    for format in ["1", "2"] {
        let all = Class::new(&lab, &namespace.name).with("cloneFormat", format);
        let made = controller.create_volume(all.create_volume("A", MIB)).await.unwrap();
        let id = made.into_inner().volume.unwrap().volume_id;
        let blind = all.clone().of_user(&user, &key);
        let mut request = blind.create_volume("B", 0);
        request.volume_content_source = Some(crate::common::driver::from_volume(&id));
        let (code, message) = refusal(controller.create_volume(request).await.map(drop));
        assert_eq!(code, Code::PermissionDenied, "{message}");
        let snapshots =
            lab.run("rbd", &["snap", "ls", "--all", &format!("{POOL}/{}/csi-A", namespace.name)]);
        assert_eq!(snapshots.trim(), "", "what was cut for the clone is left");
        controller.delete_volume(all.delete_volume(&id)).await.unwrap();
    }
    namespace.assert_nothing_is_left();
    lab.remove_user(&user);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_deleted_while_it_is_cloned_is_not_said_to_be_open_elsewhere() {
    let lab = Lab::from_environment();
    let mut family = Family::new(&lab, "").await;
    let seed = random::Random::seed_of_now();
    println!("seed {seed}");
    let mut random = random::Random::new(seed);
    for round in 0..20 {
        let (source, clone) = (format!("A{round}"), format!("B{round}"));
        family.create(&source).await;
        let source_id = family.volume_id(&source);
        let clone_id = source_id.replace(&source, &clone);
        let request = family.request(&clone, Some(From::Volume(&source)), 0);
        let mut controller = family.controller.clone();
        let creation =
            tokio::spawn(async move { controller.create_volume(within(60, request)).await });
        tokio::time::sleep(Duration::from_millis(random.below(60))).await;
        if let Err(status) = family.try_delete(&source).await {
            assert_eq!(status.code(), Code::Aborted, "{status:?}");
        }
        // Made, or refused because the source was gone first.
        let _ = creation.await.unwrap();
        for id in [clone_id, source_id] {
            insist_on_deletion(&family, &id).await;
        }
        family.forget(&source);
    }
    family.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_monitor_that_has_no_address_is_named() {
    let lab = Lab::from_environment();
    let config = "- clusterID: lab\n  monitors: [\"no-such-host.invalid:6789\"]\n";
    let driver = Driver::start(config, &["--role", "controller"]);
    let class = Class::new(&lab, "").without("radosNamespace");
    let (code, message) = refusal(
        driver.controller().await.create_volume(class.create_volume("v", MIB)).await.map(drop),
    );
    assert_eq!(code, Code::Unavailable, "{message}");
    assert!(message.contains("\"no-such-host.invalid\""), "{message}");
}
