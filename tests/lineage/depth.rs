//! Chains are kept short: what is flattened, when, and what that sets free.

use cinderblock::rbd::OpenMode;

use crate::family::{Family, From, in_both_formats};

/// A, and a clone of each by the next.
async fn chain(family: &mut Family<'_>, names: &[&str]) {
    family.create(names[0]).await;
    for pair in names.windows(2) {
        family.clone_volume(pair[0], pair[1]).await;
        family.write(pair[1], 1, pair[1]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn at_the_limit_the_source_is_flattened_for_all_later_clones() {
    in_both_formats(async |family| {
        for target in ["auto", "source"] {
            family.set("maxCloneDepth", "1");
            family.set("flattenTarget", target);
            chain(family, &["A", "B"]).await;
            family.assert("A [B.clone_snap*] ; B <- A@B.clone_snap");
            family.clone_volume("B", "C").await;
            family.assert("A ; B [C.clone_snap*] ; C <- B@C.clone_snap");
            family.clone_volume("B", "D").await;
            family.assert(
                "A ; B [C.clone_snap*, D.clone_snap*] ; C <- B@C.clone_snap ; D <- B@D.clone_snap",
            );
            for name in ["B", "C", "A", "D"] {
                family.delete(name).await;
            }
            family.assert("");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn at_the_limit_the_clone_is_flattened_when_asked_for_or_when_the_source_is_attached() {
    in_both_formats(async |family| {
        family.set("maxCloneDepth", "1");
        chain(family, &["A", "B"]).await;
        {
            let _attached = family.open("B", OpenMode::ReadWrite);
            family.clone_volume("B", "C").await;
        }
        family.assert("A [B.clone_snap*] ; B <- A@B.clone_snap ; C");
        family.set("flattenTarget", "clone");
        family.clone_volume("B", "D").await;
        family.assert("A [B.clone_snap*] ; B <- A@B.clone_snap ; C ; D");
        family.set("flattenTarget", "source");
        {
            let _attached = family.open("B", OpenMode::ReadWrite);
            family.clone_volume("B", "E").await;
        }
        family.assert("A ; B [E.clone_snap*] ; C ; D ; E <- B@E.clone_snap");
        for name in ["A", "B", "C", "D", "E"] {
            family.delete(name).await;
        }
    })
    .await;
}

const FIVE_DEEP: &str = "A [B.clone_snap*] ; B [C.clone_snap*] <- A@B.clone_snap ; C [D.clone_snap*] <- B@C.clone_snap ; \
                         D [E.clone_snap*] <- C@D.clone_snap ; E [F.clone_snap*] <- D@E.clone_snap ; F";

#[tokio::test(flavor = "multi_thread")]
async fn by_default_a_volume_has_at_most_five_ancestors() {
    in_both_formats(async |family| {
        chain(family, &["A", "B", "C", "D", "E", "F"]).await;
        family.assert(&format!("{FIVE_DEEP} <- E@F.clone_snap"));
        family.set("flattenTarget", "clone");
        family.clone_volume("F", "G").await;
        family.assert(&format!("{FIVE_DEEP} <- E@F.clone_snap ; G"));
        family.set("flattenTarget", "auto");
        family.clone_volume("F", "H").await;
        let without_f = FIVE_DEEP.replace("E [F.clone_snap*]", "E");
        family.assert(&format!("{without_f} [H.clone_snap*] ; G ; H <- F@H.clone_snap"));
        for name in ["A", "B", "C", "D", "E", "F", "G", "H"] {
            family.delete(name).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_lowered_below_an_existing_chain_is_never_an_error() {
    in_both_formats(async |family| {
        chain(family, &["A", "B", "C", "D"]).await;
        let start = "A [B.clone_snap*] ; B [C.clone_snap*] <- A@B.clone_snap";
        family.set("maxCloneDepth", "2");
        family.set("flattenTarget", "clone");
        family.clone_volume("D", "E").await;
        family.assert(&format!(
            "{start} ; C [D.clone_snap*] <- B@C.clone_snap ; D <- C@D.clone_snap ; E"
        ));
        family.set("flattenTarget", "source");
        family.clone_volume("D", "F").await;
        family.assert(&format!(
            "{start} ; C <- B@C.clone_snap ; D [F.clone_snap*] ; E ; F <- D@F.clone_snap"
        ));
        for name in ["A", "B", "C", "D", "E", "F"] {
            family.delete(name).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_clones_every_clone_is_a_full_copy() {
    in_both_formats(async |family| {
        family.set("maxCloneDepth", "0");
        chain(family, &["A", "B"]).await;
        family.snapshot("B", "s1").await;
        family.restore("s1", "C").await;
        family.make("D", Some(From::Volume("B")), 4).await.unwrap();
        family.assert("A ; B [snap-s1*] ; C ; D");
        for name in ["A", "B", "C", "D"] {
            family.delete(name).await;
        }
        family.assert("B.deleted [snap-s1*]");
        family.delete_snapshot("s1").await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn flattening_in_mid_chain_with_deep_flatten_frees_the_ancestor() {
    in_both_formats(async |family| {
        chain(family, &["A", "B", "C"]).await;
        family.snapshot("B", "s1").await;
        family.set("maxCloneDepth", "1");
        family.clone_volume("B", "D").await;
        family.assert(
            "A ; B [C.clone_snap*, snap-s1*, D.clone_snap*] ; C <- B@C.clone_snap ; D <- B@D.clone_snap",
        );
        family.delete("A").await;
        family.delete("B").await;
        family.delete("D").await;
        family.assert("B.deleted [C.clone_snap*, snap-s1*] ; C <- B.deleted@C.clone_snap");
        family.delete("C").await;
        family.assert("B.deleted [snap-s1*]");
        family.delete_snapshot("s1").await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn flattening_in_mid_chain_without_deep_flatten_leaves_the_snapshots_their_ancestor() {
    in_both_formats(async |family| {
        family.set("imageFeatures", "layering,exclusive-lock,object-map,fast-diff");
        chain(family, &["A", "B", "C"]).await;
        family.snapshot("B", "s1").await;
        family.set("maxCloneDepth", "1");
        family.clone_volume("B", "D").await;
        family.assert(
            "A [B.clone_snap*] ; B [C.clone_snap* <- A@B.clone_snap, snap-s1* <- A@B.clone_snap, D.clone_snap*] ; \
             C <- B@C.clone_snap ; D <- B@D.clone_snap",
        );
        // A snapshot's own link cannot be cut here, so what is restored from it is.
        family.restore("s1", "E").await;
        family.assert(
            "A [B.clone_snap*] ; B [C.clone_snap* <- A@B.clone_snap, snap-s1* <- A@B.clone_snap, D.clone_snap*] ; \
             C <- B@C.clone_snap ; D <- B@D.clone_snap ; E",
        );
        family.delete("E").await;
        family.delete("A").await;
        family.delete("B").await;
        family.delete("D").await;
        family.assert(
            "A.deleted [B.clone_snap*] ; \
             B.deleted [C.clone_snap* <- A.deleted@B.clone_snap, snap-s1* <- A.deleted@B.clone_snap] ; \
             C <- B.deleted@C.clone_snap",
        );
        family.delete_snapshot("s1").await;
        family.assert(
            "A.deleted [B.clone_snap*] ; B.deleted [C.clone_snap* <- A.deleted@B.clone_snap] ; \
             C <- B.deleted@C.clone_snap",
        );
        family.delete("C").await;
        family.assert("");
    })
    .await;
}
