//! Many volumes on one node, ten at a time. NODE_VOLUMES says how many; twenty without it.

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use cinderblock::node::attach::Image;
use cinderblock::node::{AccessMode, Capability, MapOptions, Node, Publish, Stage};
use cinderblock::rbd::{ImageOptions, Key};

use crate::lab::{MIB, SOON, Volume, ext4, key, mounter, pool, write};

const AT_A_TIME: usize = 10;

/// Does `work` for each of `count` numbers, ten at a time, and returns how long each took, in order
/// of length.
fn for_each(count: usize, work: impl Fn(usize) + Sync) -> Vec<Duration> {
    let next = AtomicUsize::new(0);
    let mut times: Vec<_> = std::thread::scope(|scope| {
        let worker = || {
            let mut times = Vec::new();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= count {
                    return times;
                }
                let began = Instant::now();
                work(number);
                times.push(began.elapsed());
            }
        };
        let workers: Vec<_> = (0..AT_A_TIME).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    });
    times.sort();
    times
}

#[test]
fn many_volumes_come_and_go_ten_at_a_time() {
    let count: usize = std::env::var("NODE_VOLUMES")
        .map_or(20, |text| text.parse().expect("NODE_VOLUMES is a number"));
    // The folder, the checks and the cleaning up are one volume's; its node has all of them.
    let first = Volume::new(32, ext4());
    let node = Node::new(&first.path("state")).unwrap();
    let pool = pool();
    let image = |number: usize| format!("{}-{number}", first.image.name);
    let path = |number: usize, name: &str| -> PathBuf { first.path(&format!("{name}-{number}")) };
    let id = |number: usize| format!("lab/rbd/{}", image(number));
    let capability = Capability { access: ext4(), mode: AccessMode::SingleNodeWriter };

    for_each(count, |number| {
        pool.create_image(&image(number), 32 * MIB, &ImageOptions::default()).unwrap();
        std::fs::create_dir(path(number, "staging")).unwrap();
    });
    let began = Instant::now();
    let staged = for_each(count, |number| {
        node.stage(&Stage {
            volume_id: id(number),
            image: Image { name: image(number), ..first.image.clone() },
            key: Some(Key::new(&key())),
            mounter: mounter(),
            map_options: MapOptions::default(),
            capability: capability.clone(),
            mkfs_options: None,
            notes: None,
            created_empty: true,
            staging_path: path(number, "staging"),
        })
        .unwrap();
        node.publish(&Publish {
            volume_id: id(number),
            staging_path: path(number, "staging"),
            target_path: path(number, "target"),
            capability: capability.clone(),
            read_only: false,
        })
        .unwrap();
        write(&path(number, "target").join("data"), image(number).as_bytes());
    });
    let (coming, began) = (began.elapsed(), Instant::now());
    assert_eq!(first.devices().len(), if mounter_is_fuse() { count } else { 0 });
    let unstaged = for_each(count, |number| {
        assert_eq!(
            std::fs::read(path(number, "target").join("data")).unwrap(),
            image(number).as_bytes()
        );
        node.unpublish(&id(number), &path(number, "target")).unwrap();
        let deadline = Instant::now() + SOON;
        while let Err(error) = node.unstage(&id(number), &path(number, "staging")) {
            assert!(Instant::now() < deadline, "{error}");
        }
    });
    let going = began.elapsed();
    first.assert_nothing_on_the_node();
    for_each(count, |number| pool.remove_image(&image(number)).unwrap());
    let median = |times: &[Duration]| times[times.len() / 2];
    println!(
        "{count} volumes, {AT_A_TIME} at a time: staged and published in {coming:?} (each {:?}, at most {:?}), taken down in \
         {going:?} (each {:?}, at most {:?})",
        median(&staged),
        staged[count - 1],
        median(&unstaged),
        unstaged[count - 1],
    );
    first.finish();
}

/// Whether devices are known by the folder of the test.
fn mounter_is_fuse() -> bool {
    crate::lab::mounter_name() == "fuse"
}
