//! The worked chains: A→B→C in every order of deletion, the snapshot that outlives its volume,
//! fan-out, and names that come back.

use cinderblock::rbd::OpenMode;

use crate::family::{Family, in_both_formats};

/// A, a clone B of it, a clone C of that. Each has a block of its own, and C one of every ancestor.
async fn chain(family: &mut Family<'_>) {
    family.create("A").await;
    family.clone_volume("A", "B").await;
    family.write("B", 1, "B");
    family.clone_volume("B", "C").await;
    family.write("C", 2, "C");
    family.write("A", 0, "later");
    family.assert("A [B.clone_snap*] ; B [C.clone_snap*] <- A@B.clone_snap ; C <- B@C.clone_snap");
}

/// Deletes the volumes in order; after each deletion there is what is drawn.
async fn deleted_in_order(order: [&str; 3], drawn: [&str; 3]) {
    in_both_formats(async |family| {
        chain(family).await;
        for (name, drawn) in order.into_iter().zip(drawn) {
            family.delete(name).await;
            family.assert(drawn);
        }
    })
    .await;
}

const A_SILENT: &str =
    "A.deleted [B.clone_snap*] ; B [C.clone_snap*] <- A.deleted@B.clone_snap ; C <- B@C.clone_snap";
const B_SILENT: &str =
    "A [B.clone_snap*] ; B.deleted [C.clone_snap*] <- A@B.clone_snap ; C <- B.deleted@C.clone_snap";
const BOTH_SILENT: &str = "A.deleted [B.clone_snap*] ; B.deleted [C.clone_snap*] <- A.deleted@B.clone_snap ; \
                           C <- B.deleted@C.clone_snap";

#[tokio::test(flavor = "multi_thread")]
async fn deleted_a_b_c() {
    deleted_in_order(["A", "B", "C"], [A_SILENT, BOTH_SILENT, ""]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn deleted_a_c_b() {
    let b_alone = "A.deleted [B.clone_snap*] ; B <- A.deleted@B.clone_snap";
    deleted_in_order(["A", "C", "B"], [A_SILENT, b_alone, ""]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn deleted_b_a_c() {
    deleted_in_order(["B", "A", "C"], [B_SILENT, BOTH_SILENT, ""]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn deleted_b_c_a() {
    deleted_in_order(["B", "C", "A"], [B_SILENT, "A", ""]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn deleted_c_a_b() {
    let b_alone = "A.deleted [B.clone_snap*] ; B <- A.deleted@B.clone_snap";
    deleted_in_order(["C", "A", "B"], ["A [B.clone_snap*] ; B <- A@B.clone_snap", b_alone, ""])
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn deleted_c_b_a() {
    deleted_in_order(["C", "B", "A"], ["A [B.clone_snap*] ; B <- A@B.clone_snap", "A", ""]).await;
}

/// A source and the clones that are left of it, as there should be.
fn fan(left: &[&str]) -> String {
    let clones: Vec<_> = left.iter().copied().filter(|name| *name != "A").collect();
    let source = if left.contains(&"A") { "A" } else { "A.deleted" };
    match clones[..] {
        [] => left.join(""),
        [one] => format!("{source} [{one}.clone_snap*] ; {one} <- {source}@{one}.clone_snap"),
        [one, two] => format!(
            "{source} [{one}.clone_snap*, {two}.clone_snap*] ; {one} <- {source}@{one}.clone_snap ; \
             {two} <- {source}@{two}.clone_snap"
        ),
        _ => unreachable!(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clones_of_one_volume_are_deleted_in_any_order() {
    let orders = [
        ["A", "B", "C"],
        ["A", "C", "B"],
        ["B", "A", "C"],
        ["B", "C", "A"],
        ["C", "A", "B"],
        ["C", "B", "A"],
    ];
    in_both_formats(async |family| {
        for order in orders {
            family.create("A").await;
            for (block, name) in ["B", "C"].into_iter().enumerate() {
                family.clone_volume("A", name).await;
                family.write(name, block, name);
                family.write("A", block, "later");
            }
            let mut left = vec!["A", "B", "C"];
            family.assert(&fan(&left));
            for name in order {
                family.delete(name).await;
                left.retain(|other| *other != name);
                family.assert(&fan(&left));
            }
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_is_free_again_while_its_first_volume_is_silent() {
    in_both_formats(async |family| {
        family.create("A").await;
        family.clone_volume("A", "B").await;
        family.delete("A").await;
        family.create("A").await;
        family.write("A", 0, "second");
        family.clone_volume("A", "C").await;
        family.assert(
            "A [C.clone_snap*] ; A.deleted [B.clone_snap*] ; B <- A.deleted@B.clone_snap ; C <- A@C.clone_snap",
        );
        let second = family.open("A", OpenMode::ReadOnly).id().unwrap();
        family.delete("A").await;
        family.create("A").await;
        family.assert(&format!(
            "A ; A.{second}.deleted [C.clone_snap*] ; A.deleted [B.clone_snap*] ; B <- A.deleted@B.clone_snap ; \
             C <- A.{second}.deleted@C.clone_snap"
        ));
        family.delete("B").await;
        family.assert(&format!(
            "A ; A.{second}.deleted [C.clone_snap*] ; C <- A.{second}.deleted@C.clone_snap"
        ));
        family.delete("C").await;
        family.assert("A");
        family.delete("A").await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clone_named_as_one_whose_snapshot_is_still_needed_gets_a_numbered_snapshot() {
    in_both_formats(async |family| {
        family.create("A").await;
        family.clone_volume("A", "B").await;
        family.clone_volume("B", "C").await;
        family.delete("B").await;
        family.write("A", 0, "later");
        family.clone_volume("A", "B").await;
        family.assert(
            "A [B.clone_snap*, B.1.clone_snap*] ; B <- A@B.1.clone_snap ; \
             B.deleted [C.clone_snap*] <- A@B.clone_snap ; C <- B.deleted@C.clone_snap",
        );
        family.delete("C").await;
        family.assert("A [B.1.clone_snap*] ; B <- A@B.1.clone_snap");
        family.delete("A").await;
        family.assert("A.deleted [B.1.clone_snap*] ; B <- A.deleted@B.1.clone_snap");
        family.delete("B").await;
    })
    .await;
}
