//! A pool in which many restores are flattened at once: attaching, detaching and growing go on.

use std::time::{Duration, Instant};

use cinderblock::rbd::OpenMode;
use tonic::Code;

use crate::common::Lab;
use crate::common::driver::MIB;
use crate::family::{Family, From};
use crate::rounds::timed;

/// Restores at once: more than a pool has permits for changes.
const RESTORES: usize = 40;
/// Bytes of an object.
const OBJECT: usize = 4096;

/// Objects that each restore copies. BUSY_OBJECTS=25000 is what a volume of 100 GiB has.
fn objects() -> usize {
    std::env::var("BUSY_OBJECTS").map_or(200, |objects| objects.parse().unwrap())
}

/// How long the longest of three RPCs on a volume takes.
async fn attach_grow_and_detach(family: &Family<'_>, name: &str, bytes: i64) -> Duration {
    let published = timed(async { family.publish(name).await.unwrap() }).await;
    let grown = timed(async { family.expand(name, bytes).await.unwrap() }).await;
    let unpublished = timed(family.unpublish(name)).await;
    published.max(grown).max(unpublished)
}

#[tokio::test(flavor = "multi_thread")]
async fn forty_flattened_restores_keep_no_other_volume_waiting() {
    let lab = Lab::from_environment();
    let mut family = Family::new(&lab, "").await;
    let objects = objects();
    family.make("golden", None, objects).await.unwrap();
    let image = family.open("golden", OpenMode::ReadWrite);
    for object in 0..objects {
        image.write_at((object * OBJECT) as u64, b"x").unwrap();
    }
    drop(image);
    family.snapshot("golden", "s").await;
    family.create("other").await;
    let idle = attach_grow_and_detach(&family, "other", MIB).await;

    family.set("flattenOnRestore", "true");
    let restores: Vec<_> = (0..RESTORES)
        .map(|number| {
            let name = format!("restore-{number}");
            let request = family.request(&name, Some(From::Snapshot("s")), 0);
            let mut controller = family.controller.clone();
            tokio::spawn(async move {
                // As a provisioner does, which asks again.
                loop {
                    match controller.create_volume(request.clone()).await {
                        Err(status) if status.code() == Code::DeadlineExceeded => {}
                        other => return other.unwrap(),
                    }
                }
            })
        })
        .collect();
    let began = Instant::now();
    let (mut rounds, mut longest) = (0, Duration::ZERO);
    while restores.iter().any(|restore| !restore.is_finished()) {
        rounds += 1;
        longest = longest.max(attach_grow_and_detach(&family, "other", MIB + rounds * 4096).await);
    }
    println!(
        "beside {RESTORES} restores of {objects} objects, which took {:.1?}: {rounds} volumes attached, grown and detached, the \
         longest RPC {longest:.1?}; idle {idle:.1?}",
        began.elapsed()
    );
    assert!(rounds > 3, "{rounds} volumes were attached, grown and detached meanwhile");
    for restore in restores {
        let id = restore.await.unwrap().into_inner().volume.unwrap().volume_id;
        let request = family.class.delete_volume(&id);
        family.controller.clone().delete_volume(request).await.unwrap();
    }
    for name in ["golden", "other"] {
        family.delete(name).await;
    }
    family.delete_snapshot("s").await;
    family.end();
}
