//! The program, killed after each change it makes to a real Ceph, in a pool's default namespace.

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::process::Output;

use crate::common::{OwnLab, POOL, wait_until};
use crate::fixtures::{CephCsi, fill, read};
use crate::program::{Program, text};

fn killed(program: &Program, at: usize, command: &str, arguments: &[&str]) -> Output {
    let plan = format!("change:{at}");
    program.command(command, arguments).env("CINDERBLOCK_KILL_AT", plan).output().unwrap()
}

#[test]
fn what_sigkill_leaves_of_adoptions_and_releases_is_finished_by_the_next() {
    let lab = OwnLab::up();
    // A watch outlives its client by that many seconds: 30, unless said otherwise.
    lab.run("ceph", &["config", "set", "osd", "osd_client_watch_timeout", "2"]);
    let pool = lab.connect().pool(POOL, "").unwrap();
    let csi = CephCsi::new(pool.clone());
    let images = [csi.volume(1), csi.volume(2)];
    for (n, image) in images.iter().enumerate() {
        fill(&pool, image, b"some bytes", &format!("mark {n}"));
    }
    csi.snapshot(101, 1);
    let images = [&images[..], &[csi.restored(3, 101), csi.cloned(4, 2)]].concat();
    csi.delete_volume(2);
    let alive = [&images[0], &images[2], &images[3]];
    let bytes = alive.map(|image| read(&pool, image));
    let journal = csi.journal();
    let program = Program::new(&lab, "");
    let adopt = ["--from", "ceph-csi", "--objects-checked", "--apply"];

    // A killed one may have had an image open.
    let run = |command: &str, arguments: &[&str]| {
        wait_until("it is done", || {
            let output = program.run(command, arguments);
            if output.status.success() { Ok(()) } else { Err(text(&output)) }
        });
    };
    let (adopt, release) = (("adopt", &adopt[..]), ("release", &["--apply"][..]));
    for (asked, opposite) in [(adopt, release), (release, adopt)] {
        let assert_done = |command: &str, at: usize| match command {
            "adopt" => assert!(csi.journal().values().all(BTreeMap::is_empty), "killed at {at}"),
            _ => assert_eq!(csi.journal(), journal, "killed at {at}"),
        };
        let mut points = 0;
        for at in 1.. {
            let output = killed(&program, at, asked.0, asked.1);
            let is_killed = output.status.signal() == Some(9);
            assert!(is_killed || output.status.success(), "{}", text(&output));
            for (image, bytes) in alive.iter().zip(&bytes) {
                assert!(read(&pool, image) == *bytes, "{image} after {asked:?} killed at {at}");
            }
            // The same is asked for again, or right away the opposite.
            if at % 2 == 0 || !is_killed {
                run(asked.0, asked.1);
                assert_done(asked.0, at);
            }
            run(opposite.0, opposite.1);
            assert_done(opposite.0, at);
            if !is_killed {
                points = at;
                break;
            }
        }
        assert!(points > 8, "{asked:?} killed at {points} points only");
        run(asked.0, asked.1);
    }
    assert_eq!(csi.journal(), journal);

    run(adopt.0, adopt.1);
    // Everything goes by the driver's own means.
    let volumes = cinderblock::volume::Volumes::new(
        pool.clone(),
        "default",
        cinderblock::volume::Process::default(),
        std::sync::Arc::default(),
    );
    let cut = volumes.plan_release().unwrap();
    for item in cut.iter().filter(|item| item.kind == cinderblock::volume::adopt::Kind::Snapshot) {
        let record = volumes.catalogue().snapshot(&item.image).unwrap().unwrap().record;
        volumes.delete_snapshot(&record.image_id, &item.image).unwrap();
    }
    for image in alive {
        wait_until("the watches of killed ones are gone", || volumes.delete(image));
    }
    wait_until("all is settled", || {
        volumes.settle_own();
        let left = volumes.settle(volumes.journal().entries().unwrap());
        let images = pool.list_images().unwrap();
        if left.is_empty() && images.is_empty() { Ok(()) } else { Err((left, images)) }
    });
    assert!(pool.trash_list().unwrap().is_empty());
    csi.assert_journal_is_empty();
}
