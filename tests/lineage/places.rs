//! Clones that are larger than their source, or in another RADOS namespace.

use tonic::Code;

use crate::common::Lab;
use crate::family::{Family, From, in_both_formats, refusal};

#[tokio::test(flavor = "multi_thread")]
async fn a_clone_may_be_larger_than_its_source_and_reads_as_zeros_beyond_it() {
    in_both_formats(async |family| {
        family.create("A").await;
        family.make("B", Some(From::Volume("A")), 5).await.unwrap();
        family.write("B", 4, "B");
        family.snapshot("A", "s1").await;
        family.make("C", Some(From::Snapshot("s1")), 4).await.unwrap();
        family.assert("A [B.clone_snap*, snap-s1*] ; B <- A@B.clone_snap ; C <- A@snap-s1");
        let (code, message) = refusal(family.make("D", Some(From::Volume("A")), 2).await);
        assert_eq!(code, Code::OutOfRange, "{message}");
        family.make("D", Some(From::Volume("B")), 0).await.unwrap();
        family.delete("B").await;
        family.assert(
            "A [B.clone_snap*, snap-s1*] ; B.deleted [D.clone_snap*] <- A@B.clone_snap ; C <- A@snap-s1 ; \
             D <- B.deleted@D.clone_snap",
        );
        for name in ["A", "C", "D"] {
            family.delete(name).await;
        }
        family.delete_snapshot("s1").await;
    })
    .await;
}

/// A at home with a snapshot, and clones of both elsewhere.
async fn far(family: &mut Family<'_>) {
    family.go_to("");
    family.create("A").await;
    family.snapshot("A", "s1").await;
    family.write("A", 0, "later");
    family.go_to("far/");
    family.clone_volume("A", "B").await;
    family.write("B", 1, "B");
    family.restore("s1", "C").await;
    family.assert("A [snap-s1, B.clone_snap] ; far/B <- A@B.clone_snap ; far/C <- A@snap-s1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clone_in_another_namespace_is_like_any_other() {
    let lab = Lab::from_environment();
    let mut family = Family::new(&lab, "").await;
    family.add_place("far/");

    far(&mut family).await;
    family.delete("A").await;
    family.assert(
        "A.deleted [snap-s1, B.clone_snap] ; far/B <- A.deleted@B.clone_snap ; far/C <- A.deleted@snap-s1",
    );
    family.delete("B").await;
    family.assert("A.deleted [snap-s1] ; far/C <- A.deleted@snap-s1");
    family.delete_snapshot("s1").await;
    family.assert("A.deleted [snap-s1.deleted] ; far/C <- A.deleted@snap-s1.deleted");
    family.delete("C").await;
    family.assert("");

    far(&mut family).await;
    family.delete("B").await;
    family.assert("A [snap-s1] ; far/C <- A@snap-s1");
    family.delete("C").await;
    family.delete_snapshot("s1").await;
    family.assert("A");
    // A chain that goes there and back.
    family.clone_volume("A", "B").await;
    family.go_to("");
    family.clone_volume("B", "C").await;
    family.assert(
        "A [B.clone_snap] ; C <- far/B@C.clone_snap ; far/B [C.clone_snap] <- A@B.clone_snap",
    );
    family.delete("A").await;
    family.delete("B").await;
    family.assert(
        "A.deleted [B.clone_snap] ; C <- far/B.deleted@C.clone_snap ; \
         far/B.deleted [C.clone_snap] <- A.deleted@B.clone_snap",
    );
    family.delete("C").await;
    family.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn in_format_1_a_clone_cannot_be_in_another_namespace() {
    let lab = Lab::from_environment();
    let mut family = Family::new(&lab, "").await;
    family.add_place("far/");
    family.set("cloneFormat", "1");
    family.create("A").await;
    family.snapshot("A", "s1").await;
    family.go_to("far/");
    for source in [From::Volume("A"), From::Snapshot("s1")] {
        let (code, message) = refusal(family.make("B", Some(source), 0).await);
        assert_eq!(code, Code::InvalidArgument, "{message}");
        assert!(message.contains("cloneFormat 2"), "{message}");
        family.assert("A [snap-s1*]");
    }
    family.delete("A").await;
    family.delete_snapshot("s1").await;
    family.end();
}
