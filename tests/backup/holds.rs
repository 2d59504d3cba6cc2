//! What a backup keeps others from while it runs, and what not.

use std::sync::Arc;
use std::sync::mpsc::channel;

use cinderblock::transfer::Error;
use cinderblock::volume::catalogue::Publication;
use cinderblock::volume::{
    self, CreateSnapshot, CreateVolume, Process, PublishVolume, Sizes, State, VolumeSource, Volumes,
};
use object_store::memory::InMemory;

use crate::field::{
    Folder, Ground, MIB, Mortal, back_up, backup_snapshots, bring_back, model, on_both, pool,
    store, try_back_up, volume, volumes, volumes_of, write,
};

/// A process that knows when a lease is alive.
fn patient(ground: &(impl Ground + ?Sized)) -> Volumes {
    Volumes::new(ground.pool(), "default", Process::default(), Arc::default())
}

pub fn publish(volumes: &Volumes, image: &str) -> volume::Result<()> {
    let publication = Publication {
        node: "node".to_owned(),
        readonly: false,
        shared: false,
        capability: "c".to_owned(),
        counted: false,
        token: None,
    };
    let older_capability = String::new();
    let image = image.to_owned();
    let request = PublishVolume { image, publication, older_capability, limit: None, fence: true };
    volumes.publish(&request).map(drop)
}

fn snapshot(volumes: &Volumes) -> volume::Result<()> {
    let request = CreateSnapshot {
        volume_id: "lab/rbd/vm".to_owned(),
        image: "vm".to_owned(),
        name: "snapshot-1".to_owned(),
        snapshot: "snapshot-1".to_owned(),
        max_snapshots: 450,
    };
    volumes.create_snapshot(&request).map(drop)
}

#[test]
fn a_volume_that_is_backed_up_is_not_deleted_and_all_else_goes_on() {
    on_both(|ground| {
        let memory = Arc::new(InMemory::new());
        volume(&volumes(ground), "vm", 3 * MIB);
        write(&volumes(ground), "vm", 0, &[1; 5000]);
        let first = back_up(&volumes(ground), &store(memory.clone()), "vm");
        write(&volumes(ground), "vm", MIB, &[2; 5000]);
        let other = patient(ground);
        let second = store(memory.clone());
        let (sender, said) = channel();
        // The second change writes the first of the data.
        let asking = Mortal::observed(&memory, move |number| {
            if number != 1 {
                return;
            }
            let deleted = other.delete("vm").unwrap_err();
            assert!(matches!(deleted, volume::Error::Conflict(_)), "{deleted:?}");
            let backed_up = try_back_up(&other, &second, "vm").unwrap_err();
            assert!(
                matches!(backed_up, Error::Volume(volume::Error::Conflict(_))),
                "{backed_up:?}"
            );
            publish(&other, "vm").unwrap();
            assert_eq!(other.grow("vm", Sizes { required: 4 * MIB, limit: 0 }).unwrap(), 4 * MIB);
            snapshot(&other).unwrap();
            assert_eq!(backup_snapshots(&other, "vm").len(), 2, "the last one's and this one's");
            sender.send([deleted.to_string(), backed_up.to_string()]).unwrap();
        });
        let made = back_up(&volumes(ground), &store(asking), "vm");
        assert_eq!((made.size, made.parent), (3 * MIB, Some(first.point)));
        for said in said.recv().unwrap() {
            assert!(said.contains("vm is being backed up"), "{said}");
            assert!(said.contains("backup/vm"), "{said}");
        }
        assert_eq!(backup_snapshots(&volumes(ground), "vm").len(), 1);
        let record = volumes(ground).catalogue().volume("vm").unwrap().unwrap().record;
        assert_eq!((record.state, record.size), (State::Ready, 4 * MIB));
        // It has let go.
        let node = record.published[0].node.clone();
        let next = patient(ground);
        let refused = next.delete("vm").unwrap_err().to_string();
        assert!(refused.contains(&format!("is published to node {node}")), "{refused}");
        back_up(&next, &store(memory.clone()), "vm");
    });
}

#[test]
fn a_dead_backup_keeps_nothing_for_long() {
    let (model, folder) = (model(), Folder::new());
    volume(&volumes(&model), "vm", 3 * MIB);
    write(&volumes(&model), "vm", 0, &[1; 5000]);
    let session = model.connect();
    let dead = session.clone();
    session.on_call(move |call| {
        if call.method == "read_at" {
            dead.crash();
        }
    });
    try_back_up(&volumes_of(pool(&session)), &folder.store(), "vm").unwrap_err();
    assert_eq!(backup_snapshots(&volumes(&model), "vm").len(), 1);
    let refused = patient(&model).delete("vm").unwrap_err().to_string();
    assert!(refused.contains("its work is taken over in"), "{refused}");
    // Half a minute later. The snapshot goes with the volume.
    let next = volumes(&model);
    next.delete("vm").unwrap();
    assert!(next.pool().list_images().unwrap().is_empty());
    assert!(session.is_blocklisted());
}

#[test]
fn what_is_in_use_is_not_overwritten() {
    on_both(|ground| {
        let folder = Folder::new();
        let (next, target) = (volumes(ground), folder.store());
        volume(&next, "vm", MIB);
        write(&next, "vm", 0, &[1; 5000]);
        let made = back_up(&next, &target, "vm");
        let refused = |words: &str| {
            let mut request = crate::field::to(&made.point, "vm");
            request.overwrite = true;
            let job = cinderblock::transfer::Job::default();
            let why = cinderblock::backup::restore(&next, &target, &request, &job).unwrap_err();
            assert!(why.to_string().contains(words), "{why}");
            let record = next.catalogue().volume("vm").unwrap().unwrap().record;
            assert_eq!(record.state, State::Ready, "{why}");
        };
        let exists = crate::field::try_bring_back(&next, &target, &made.point, "vm").unwrap_err();
        assert!(exists.to_string().contains("give --overwrite"), "{exists}");
        let watched = ground
            .pool()
            .open_image(
                cinderblock::rbd::ImageKey::Name("vm"),
                cinderblock::rbd::OpenMode::ReadWrite,
            )
            .unwrap();
        refused("is open at");
        drop(watched);
        publish(&next, "vm").unwrap();
        refused("is published to node");
        // An image that is no volume is not overwritten.
        next.pool().create_image("foreign", MIB, &crate::field::options()).unwrap();
        let foreign =
            crate::field::try_bring_back(&next, &target, &made.point, "foreign").unwrap_err();
        assert!(foreign.to_string().contains("is no volume"), "{foreign}");
    });
}

#[test]
fn a_volume_being_restored_is_neither_published_nor_made_anew() {
    let (model, folder) = (model(), Folder::new());
    let (next, target) = (volumes(&model), folder.store());
    volume(&next, "vm", MIB);
    write(&next, "vm", 0, &[1; 5000]);
    let made = back_up(&next, &target, "vm");
    let session = model.connect();
    let dead = session.clone();
    session.on_call(move |call| {
        if call.method == "write_at" {
            dead.crash();
        }
    });
    crate::field::try_bring_back(&volumes_of(pool(&session)), &target, &made.point, "back")
        .unwrap_err();
    let source = VolumeSource::Volume {
        id: "back".to_owned(),
        pool: next.pool().name().to_owned(),
        namespace: next.pool().namespace().to_owned(),
        image: "back".to_owned(),
    };
    for refused in [
        publish(&next, "back").unwrap_err(),
        next.grow("back", Sizes { required: 4 * MIB, limit: 0 }).unwrap_err(),
        next.create(&crate::field::request("back", MIB)).unwrap_err(),
        next.create(&CreateVolume { source: Some(source), ..crate::field::request("copy", MIB) })
            .unwrap_err(),
    ] {
        assert!(refused.to_string().contains("is being restored from a backup"), "{refused}");
    }
    let swept = next.sweep(std::time::Duration::ZERO).unwrap();
    next.settle(swept);
    assert_eq!(next.catalogue().volume("back").unwrap().unwrap().record.state, State::Restoring);
    bring_back(&next, &target, &made.point, "back");
    publish(&next, "back").unwrap();
    assert_eq!(crate::field::read(&next, "back"), crate::field::read(&next, "vm"));
}
