//! A random sequence of writes, discards, resizes, snapshots and backups, restored at every point.

use std::sync::Arc;

use cinderblock::backup::{Create, Keep, create, list, prune, restore, verify};
use cinderblock::rbd::{ImageOptions, Pool, SnapshotSpec};
use cinderblock::transfer::Job;
use cinderblock::volume::Volumes;

use crate::common::random::Random;
use crate::common::{Lab, Namespace, OwnLab, POOL};
use crate::field::{
    Folder, MIB, assert_same, back_up, backup_snapshots, bring_back, open, options, read, to,
    volume, volumes_of, whole,
};

/// The most bytes of the volume.
const MOST: u64 = 9 * MIB;

/// A volume under change, and what it should hold.
struct Disk<'a> {
    volumes: &'a Volumes,
    bytes: Vec<u8>,
    /// Snapshots of it, with what they hold.
    snapshots: Vec<(String, Vec<u8>)>,
    random: Random,
    made: usize,
}

impl Disk<'_> {
    fn range(&mut self) -> (u64, u64) {
        let size = self.bytes.len() as u64;
        let offset = self.random.below(size);
        let length = 1 + self.random.below((size - offset).min(3 * MIB));
        // Whole objects now and then.
        if self.random.once_in(3) {
            let start = offset / MIB * MIB;
            return (start, (offset + length).next_multiple_of(MIB).min(size) - start);
        }
        (offset, length)
    }

    fn change(&mut self) {
        let image = open(self.volumes, "vm");
        match self.random.below(8) {
            0..3 => {
                let (offset, length) = self.range();
                let value = u8::try_from(self.random.below(256)).unwrap();
                let step = self.random.pick(&[1, 7000, 200_000]);
                let range =
                    usize::try_from(offset).unwrap()..usize::try_from(offset + length).unwrap();
                self.bytes[range.clone()].iter_mut().step_by(step).for_each(|byte| *byte = value);
                image.write_at(offset, &self.bytes[range]).unwrap();
            }
            3..5 => {
                let (offset, length) = self.range();
                image.discard(offset, length).unwrap();
                self.bytes
                    [usize::try_from(offset).unwrap()..usize::try_from(offset + length).unwrap()]
                    .fill(0);
            }
            5 => {
                let size = 1 + self.random.below(MOST);
                image.resize(size, true).unwrap();
                self.bytes.resize(usize::try_from(size).unwrap(), 0);
            }
            6 => {
                self.made += 1;
                let name = format!("snapshot-{}", self.made);
                image.create_snapshot(&name).unwrap();
                self.snapshots.push((name, self.bytes.clone()));
            }
            _ if !self.snapshots.is_empty() => {
                let count = self.snapshots.len() as u64;
                let index = usize::try_from(self.random.below(count)).unwrap();
                let (name, _) = self.snapshots.remove(index);
                image.remove_snapshot(&name).unwrap();
            }
            _ => {}
        }
    }
}

/// Changes a volume at random, backs it up so many times, and compares each restore point. Returns
/// how many of these were increments.
fn sequence(volumes: &Volumes, seed: u64, is_clone: bool, backups: usize) -> usize {
    println!("BACKUP_SEED={seed}, clone {is_clone}");
    let mut random = Random::new(seed);
    let pool = volumes.pool();
    let mut bytes = vec![0; usize::try_from(6 * MIB + 1000).unwrap()];
    if is_clone {
        let parent = ImageOptions { features: options().features, ..options() };
        pool.create_image("parent", bytes.len() as u64, &parent).unwrap();
        let image = open(volumes, "parent");
        bytes.iter_mut().step_by(100_000).for_each(|byte| *byte = 9);
        image.write_at(0, &bytes).unwrap();
        image.create_snapshot("golden").unwrap();
        let source = SnapshotSpec {
            pool: pool.name().to_owned(),
            namespace: pool.namespace().to_owned(),
            image: "parent".to_owned(),
            snapshot: "golden".to_owned(),
        };
        pool.clone_image(&source, "vm", &options()).unwrap();
    } else {
        volume(volumes, "vm", bytes.len() as u64);
    }
    for name in ["vm", "parent"] {
        println!("{name} has the id {:?}", pool.image_id(name).unwrap());
    }
    let folder = Folder::new();
    let store = folder.store();
    let mut points = Vec::new();
    let full = random.below(backups as u64);
    let mut disk = Disk { volumes, bytes, snapshots: Vec::new(), random, made: 0 };
    for number in 0..backups {
        for _ in 0..disk.random.below(6) {
            disk.change();
        }
        if is_clone && number == backups / 2 {
            let mut progress = |_, _| std::ops::ControlFlow::Continue(());
            open(volumes, "vm").flatten(&mut progress).unwrap();
        }
        let snapshot = match disk.snapshots.len() as u64 {
            count if count > 0 && disk.random.once_in(3) => {
                let index = usize::try_from(disk.random.below(count)).unwrap();
                disk.snapshots.get(index).cloned()
            }
            _ => None,
        };
        let expected = snapshot.as_ref().map_or(&disk.bytes, |(_, bytes)| bytes).clone();
        let request = Create {
            snapshot: snapshot.map(|(name, _)| name),
            full: number as u64 == full,
            ..whole("vm")
        };
        let created = create(volumes, &store, &request, &Job::default()).unwrap();
        assert!(backup_snapshots(volumes, "vm").len() <= 1, "seed {seed}");
        if !created.existing {
            points.push((created.point, expected));
        }
    }
    let listed = list(&store, None).unwrap();
    assert_eq!(listed.len(), points.len(), "seed {seed}");
    assert!(listed.iter().all(|point| point.wrong.is_none()), "seed {seed}: {listed:?}");
    let increments = listed.iter().filter(|point| point.parent.is_some()).count();
    let verified = verify(&store, None, &Job::default()).unwrap();
    assert!(verified.iter().all(|point| point.wrong.is_none()), "seed {seed}: {verified:?}");
    for (number, (point, expected)) in points.iter().enumerate() {
        let what = format!("seed {seed}, {point}");
        let name = "restored";
        let larger = expected.len() as u64 + 3 * MIB;
        // New ones, and over the one before, which is larger or smaller.
        let overwrite = number % 2 == 1;
        let mut request = to(point, name);
        request.overwrite = overwrite;
        request.size = (number % 4 == 2).then_some(larger);
        restore(volumes, &store, &request, &Job::default()).unwrap();
        let mut found = read(volumes, name);
        assert!(found.len() >= expected.len(), "{what}");
        assert!(found.iter().skip(expected.len()).all(|byte| *byte == 0), "{what}");
        found.truncate(expected.len());
        assert_same(&found, expected, &what);
        if overwrite {
            volumes.delete(name).unwrap();
        } else {
            let taken = restore(volumes, &store, &to(point, name), &Job::default());
            assert!(taken.is_err(), "{what} was replaced");
        }
    }
    // Those that stay after pruning are whole.
    let keep = Keep { last: 1, ..Keep::default() };
    let removed = prune(&store, None, &keep, true, &Job::default()).unwrap();
    let left = verify(&store, None, &Job::default()).unwrap();
    assert_eq!(left.len() + removed.points.len(), points.len(), "seed {seed}");
    assert!(left.iter().all(|point| point.wrong.is_none()), "seed {seed}: {left:?}");
    let (last, expected) = points.last().unwrap();
    bring_back(volumes, &store, last, "last");
    assert_same(&read(volumes, "last"), expected, &format!("seed {seed}, after pruning"));
    // And the next one goes on from there.
    let next = back_up(volumes, &store, "vm");
    bring_back(volumes, &store, &next.point, "next");
    assert_same(&read(volumes, "next"), &disk.bytes, &format!("seed {seed}, the next"));
    clear(volumes, &disk.snapshots);
    increments
}

fn clear(volumes: &Volumes, snapshots: &[(String, Vec<u8>)]) {
    let pool = volumes.pool();
    for name in ["last", "next", "restored"] {
        volumes.delete(name).unwrap();
    }
    let image = open(volumes, "vm");
    for (name, _) in snapshots {
        image.remove_snapshot(name).unwrap();
    }
    if volumes.catalogue().volume("vm").unwrap().is_some() {
        drop(image);
        // The backup's own snapshot goes with it.
        volumes.delete("vm").unwrap();
    } else {
        for name in backup_snapshots(volumes, "vm") {
            image.remove_snapshot(&name).unwrap();
        }
        drop(image);
        pool.remove_image("vm").unwrap();
        let parent = open(volumes, "parent");
        parent.remove_snapshot("golden").unwrap();
        drop(parent);
        pool.remove_image("parent").unwrap();
    }
    volumes.settle(volumes.journal().entries().unwrap());
}

/// That in the environment, to try a sequence again; else a new one.
fn seed() -> u64 {
    let given = std::env::var("BACKUP_SEED").ok();
    given.map_or_else(Random::seed_of_now, |seed| seed.parse().unwrap())
}

/// How many seeds are tried on the model: BACKUP_SEEDS, or a few.
fn seeds() -> usize {
    std::env::var("BACKUP_SEEDS").map_or(4, |seeds| seeds.parse().unwrap())
}

#[test]
fn every_point_comes_back_on_the_model() {
    // The first has a clone that shrinks and grows between two backups, and loses what it shared with
    // its parent there.
    let first = std::iter::once(26_050_713_809_985);
    let (mut sequences, mut increments) = (0, 0);
    for seed in first.chain(std::iter::repeat_with(seed).take(seeds())) {
        for is_clone in [false, true] {
            let model = crate::field::model();
            let volumes = crate::field::volumes(&model);
            increments += sequence(&volumes, seed, is_clone, 9);
            sequences += 1;
            assert!(images(volumes.pool()).is_empty(), "{}", model.graph());
        }
    }
    // One sequence may have few: where a clone was flattened all is stored anew.
    assert!(increments > sequences, "{increments} increments in {sequences} sequences");
}

fn images(pool: &Arc<dyn Pool>) -> Vec<String> {
    pool.list_images().unwrap().into_iter().map(|entry| entry.name).collect()
}

#[test]
fn every_point_comes_back_on_ceph() {
    let lab = Lab::from_environment();
    let namespace = Namespace::new(&lab);
    sequence(&volumes_of(namespace.pool(&*lab.connect())), seed(), false, 8);
    namespace.assert_nothing_is_left();
}

/// On a lab of its own: librbd 16.2 can leave an object of the clone in the pool when it removes
/// the clone after all that was done to it, and then nothing names the object any more.
#[test]
fn every_point_of_a_clone_comes_back_on_ceph() {
    let lab = OwnLab::up();
    let volumes = volumes_of(lab.connect().pool(POOL, "").unwrap());
    sequence(&volumes, seed(), true, 8);
    assert!(images(volumes.pool()).is_empty());
}
