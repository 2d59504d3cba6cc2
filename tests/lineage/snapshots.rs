//! Snapshots people take: they outlive their volume, and their clones outlive them.

use tonic::Code;

use crate::family::{Family, From, in_both_formats, refusal};

/// What the snapshot s1 is called once it is deleted, until the last of its clones goes.
const S1: &str = "snap-s1.deleted";

/// A, its snapshot s1, a volume B restored from that.
async fn restored(family: &mut Family<'_>) {
    family.create("A").await;
    family.snapshot("A", "s1").await;
    family.write("A", 0, "later");
    family.restore("s1", "B").await;
    family.write("B", 1, "B");
    family.assert("A [snap-s1*] ; B <- A@snap-s1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_of_a_deleted_volume_is_still_listed_and_still_restores() {
    in_both_formats(async |family| {
        restored(family).await;
        family.delete("A").await;
        family.assert("A.deleted [snap-s1*] ; B <- A.deleted@snap-s1");
        family.restore("s1", "C").await;
        family.assert("A.deleted [snap-s1*] ; B <- A.deleted@snap-s1 ; C <- A.deleted@snap-s1");
        family.delete("C").await;
        family.delete("B").await;
        family.assert("A.deleted [snap-s1*]");
        family.delete_snapshot("s1").await;
        family.assert("");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_deleted_before_its_clone_and_its_volume() {
    in_both_formats(async |family| {
        restored(family).await;
        family.delete_snapshot("s1").await;
        family.assert(&format!("A [{S1}*] ; B <- A@{S1}"));
        family.delete("A").await;
        family.assert(&format!("A.deleted [{S1}*] ; B <- A.deleted@{S1}"));
        family.delete("B").await;
        family.assert("");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_deleted_after_its_volume_and_before_its_clone() {
    in_both_formats(async |family| {
        restored(family).await;
        family.delete("A").await;
        family.delete_snapshot("s1").await;
        family.assert(&format!("A.deleted [{S1}*] ; B <- A.deleted@{S1}"));
        family.delete("B").await;
        family.assert("");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clone_deleted_before_its_snapshot_and_its_volume() {
    in_both_formats(async |family| {
        restored(family).await;
        family.delete("B").await;
        family.assert("A [snap-s1*]");
        family.delete_snapshot("s1").await;
        family.assert("A");
        // The same once more, with the snapshot deleted while it has a clone, and its name taken
        // again.
        family.snapshot("A", "s1").await;
        family.restore("s1", "B").await;
        family.delete_snapshot("s1").await;
        family.snapshot("A", "s1").await;
        family.assert(&format!("A [{S1}*, snap-s1*] ; B <- A@{S1}"));
        family.delete("B").await;
        family.assert("A [snap-s1*]");
        family.delete("A").await;
        family.assert("A.deleted [snap-s1*]");
        family.delete_snapshot("s1").await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_of_a_clone_holds_all_ancestors() {
    in_both_formats(async |family| {
        family.create("A").await;
        family.clone_volume("A", "B").await;
        family.write("B", 1, "B");
        family.snapshot("B", "s1").await;
        family.write("B", 2, "later");
        family.assert("A [B.clone_snap*] ; B [snap-s1*] <- A@B.clone_snap");
        family.delete("B").await;
        family.delete("A").await;
        family.assert("A.deleted [B.clone_snap*] ; B.deleted [snap-s1*] <- A.deleted@B.clone_snap");
        family.restore("s1", "C").await;
        family.assert(
            "A.deleted [B.clone_snap*] ; B.deleted [snap-s1*] <- A.deleted@B.clone_snap ; C <- B.deleted@snap-s1",
        );
        family.delete("C").await;
        family.delete_snapshot("s1").await;
        family.assert("");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_and_a_clone_of_one_volume_do_not_mind_each_other() {
    in_both_formats(async |family| {
        for first in ["B", "s1"] {
            family.create("A").await;
            family.snapshot("A", "s1").await;
            family.write("A", 0, "later");
            family.clone_volume("A", "B").await;
            family.assert("A [snap-s1*, B.clone_snap*] ; B <- A@B.clone_snap");
            family.delete("A").await;
            family.assert("A.deleted [snap-s1*, B.clone_snap*] ; B <- A.deleted@B.clone_snap");
            if first == "B" {
                family.delete("B").await;
                family.assert("A.deleted [snap-s1*]");
                family.delete_snapshot("s1").await;
            } else {
                family.delete_snapshot("s1").await;
                family.assert("A.deleted [B.clone_snap*] ; B <- A.deleted@B.clone_snap");
                family.delete("B").await;
            }
            family.assert("");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_class_may_refuse_to_delete_a_volume_with_snapshots() {
    in_both_formats(async |family| {
        family.set("deleteWithSnapshots", "refuse");
        family.create("A").await;
        family.snapshot("A", "s1").await;
        family.clone_volume("A", "B").await;
        let drawn = "A [snap-s1*, B.clone_snap*] ; B <- A@B.clone_snap";
        family.assert(drawn);
        let (code, message) = refusal(family.try_delete("A").await);
        assert_eq!(code, Code::FailedPrecondition, "{message}");
        assert!(message.contains("still has the snapshots csi-snap-s1"), "{message}");
        family.assert(drawn);
        family.delete_snapshot("s1").await;
        // A clone is no snapshot of its user's.
        family.delete("A").await;
        family.assert("A.deleted [B.clone_snap*] ; B <- A.deleted@B.clone_snap");
        family.delete("B").await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_volume_may_be_flattened_at_once_and_may_be_larger() {
    in_both_formats(async |family| {
        family.create("A").await;
        family.snapshot("A", "s1").await;
        family.set("flattenOnRestore", "true");
        family.restore("s1", "B").await;
        family.assert("A [snap-s1*] ; B");
        family.make("C", Some(From::Snapshot("s1")), 5).await.unwrap();
        family.assert("A [snap-s1*] ; B ; C");
        // It is said of snapshots; a clone of a volume stays one.
        family.clone_volume("A", "D").await;
        family.assert("A [snap-s1*, D.clone_snap*] ; B ; C ; D <- A@D.clone_snap");
        family.delete_snapshot("s1").await;
        for name in ["A", "B", "C"] {
            family.delete(name).await;
        }
        family.assert("A.deleted [D.clone_snap*] ; D <- A.deleted@D.clone_snap");
        family.delete("D").await;
    })
    .await;
}
