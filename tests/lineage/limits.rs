//! Snapshots an image may have: near the limit its oldest clones are flattened.

use std::collections::BTreeSet;
use std::time::Instant;

use cinderblock::rbd::OpenMode;
use cinderblock::volume::Policy;
use tonic::Code;

use crate::common::{Lab, OwnLab};
use crate::family::{Family, From, refusal};

/// Tells a story in both clone formats where an image may have so many snapshots.
async fn with_most_snapshots(most: usize, story: impl AsyncFn(&mut Family<'_>)) {
    let lab = Lab::from_environment();
    for format in ["1", "2"] {
        let mut family = Family::new(&lab, &format!("maxSnapshotsPerImage: {most}")).await;
        family.set("cloneFormat", format);
        story(&mut family).await;
        family.end();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn at_the_limit_the_oldest_clones_are_flattened() {
    with_most_snapshots(3, async |family| {
        family.create("A").await;
        for (block, name) in ["B", "C", "D"].into_iter().enumerate() {
            family.clone_volume("A", name).await;
            family.write(name, block, name);
        }
        family.write("A", 0, "later");
        family.assert(
            "A [B.clone_snap*, C.clone_snap*, D.clone_snap*] ; B <- A@B.clone_snap ; C <- A@C.clone_snap ; \
             D <- A@D.clone_snap",
        );
        family.clone_volume("A", "E").await;
        family.assert(
            "A [C.clone_snap*, D.clone_snap*, E.clone_snap*] ; B ; C <- A@C.clone_snap ; D <- A@D.clone_snap ; \
             E <- A@E.clone_snap",
        );
        family.snapshot("A", "s1").await;
        family.assert(
            "A [D.clone_snap*, E.clone_snap*, snap-s1*] ; B ; C ; D <- A@D.clone_snap ; E <- A@E.clone_snap",
        );
        for name in ["A", "B", "C", "D", "E"] {
            family.delete(name).await;
        }
        family.assert("A.deleted [snap-s1*]");
        family.delete_snapshot("s1").await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn deleted_snapshots_with_clones_count_and_make_room() {
    with_most_snapshots(2, async |family| {
        family.create("A").await;
        family.snapshot("A", "s1").await;
        for name in ["B", "C"] {
            family.restore("s1", name).await;
        }
        family.delete_snapshot("s1").await;
        family.snapshot("A", "s2").await;
        family.clone_volume("A", "D").await;
        family.assert("A [snap-s2*, D.clone_snap*] ; B ; C ; D <- A@D.clone_snap");
        for name in ["A", "B", "C", "D"] {
            family.delete(name).await;
        }
        family.delete_snapshot("s2").await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn when_flattening_cannot_help_there_is_no_room_and_nothing_changes() {
    with_most_snapshots(2, async |family| {
        family.create("A").await;
        family.snapshot("A", "s1").await;
        family.snapshot("A", "s2").await;
        family.restore("s1", "B").await;
        let drawn = "A [snap-s1*, snap-s2*] ; B <- A@snap-s1";
        family.assert(drawn);
        let before = family.everything();
        for answer in [
            family.try_snapshot("A", "s3").await,
            family.make("C", Some(From::Volume("A")), 0).await.map(drop),
        ] {
            let (code, message) = refusal(answer);
            assert_eq!(code, Code::ResourceExhausted, "{message}");
            assert!(message.contains("has 2 snapshots and may have 2"), "{message}");
            assert!(message.contains("delete snapshots of it"), "{message}");
        }
        family.assert_unchanged(&before);
        family.assert(drawn);
        family.restore("s2", "C").await;
        for name in ["A", "B", "C"] {
            family.delete(name).await;
        }
        family.delete_snapshot("s1").await;
        family.delete_snapshot("s2").await;
    })
    .await;
}

/// The clones that have a snapshot on `A`, oldest first. Every such snapshot has its clone, and
/// none of `others` is one.
fn clones_of_a(family: &Family<'_>, others: &[String]) -> Vec<String> {
    let source = family.open("A", OpenMode::ReadOnly);
    let id = source.id().unwrap();
    let clone_of = |snapshot: &cinderblock::rbd::Snapshot| {
        let clone = snapshot
            .name
            .strip_prefix("csi-")
            .unwrap()
            .strip_suffix(".clone_snap")
            .unwrap()
            .to_owned();
        let parent = family.open(&clone, OpenMode::ReadOnly).parent(None).unwrap().unwrap();
        assert_eq!(
            (parent.image_id, parent.snapshot_id),
            (id.clone(), snapshot.id),
            "parent of {clone}"
        );
        assert_eq!(snapshot.protected, family.is_format_1());
        clone
    };
    for name in others {
        assert_eq!(
            family.open(name, OpenMode::ReadOnly).parent(None).unwrap(),
            None,
            "parent of {name}"
        );
    }
    source.snapshots().unwrap().iter().map(clone_of).collect()
}

fn numbered(numbers: std::ops::Range<usize>) -> Vec<String> {
    numbers.map(|number| format!("B{number}")).collect()
}

// In one format: the others of this file are told in both.
#[tokio::test(flavor = "multi_thread")]
async fn of_455_clones_of_one_volume_the_five_oldest_are_flattened() {
    // A store of memory cannot take it: that of Ceph 16.2 crashes now and then while many snapshots
    // are trimmed.
    let lab = OwnLab::up_with(&["--monitor-round", "0.05", "--objectstore", "bluestore"]);
    let mut family = Family::new(&lab, "").await;
    family.set("cloneFormat", "2");
    let most = Policy::default().max_snapshots;
    let (first, more) = (numbered(0..most), numbered(most..most + 5));
    let began = Instant::now();
    let told = |what: &str| println!("{what} after {:.1?}", began.elapsed());
    family.create("A").await;
    family.clone_all("A", &first).await;
    told("450 clones");
    family.write("A", 0, "later");
    let in_order = clones_of_a(&family, &[]);
    assert_eq!(in_order.iter().collect::<BTreeSet<_>>(), first.iter().collect());
    for name in &more {
        family.clone_volume("A", name).await;
    }
    told("five more");
    let (oldest, others) = in_order.split_at(more.len());
    assert_eq!(clones_of_a(&family, oldest), [others, &more].concat());
    family.assert_bytes();
    family.delete_all(&[first, more].concat()).await;
    family.delete("A").await;
    told("all deleted");
    family.end();
}
