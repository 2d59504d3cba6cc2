//! The driver on a real control plane: etcd, kube-apiserver, kube-controller-manager,
//! kube-scheduler, the snapshot-controller and Kubernetes' own sidecars, with the chart's arguments
//! and the chart's rights, each container under a ServiceAccount of its own, on a real Ceph. No
//! kubelet runs pods: nodes are made by hand, and where bytes matter the tests play kubelet.
//!
//! tests/kubernetes.sh runs it. By hand, with what the lab prints in the environment:
//!
//! ```console
//! $ cargo test --test kubernetes                    everything
//! $ cargo test --test kubernetes snapshots::        what matches
//! ```

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]
#![allow(clippy::print_stdout, reason = "a report")]

#[path = "../common/mod.rs"]
mod common;

mod api;
mod backups;
mod chart;
mod claims;
mod deletion;
mod events;
mod examples;
mod field;
mod jobs;
mod kills;
mod kubelet;
mod many;
mod metadata;
mod mistakes;
mod modes;
mod nodes;
mod pages;
mod probes;
mod processes;
mod shell;
mod snapshots;
mod space;
mod topology;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::Instant;

use field::Field;
use libtest_mimic::{Arguments, Failed, Trial};
use serde_json::json;

type Test = fn(&Field);

/// Each test with its name.
macro_rules! tests {
    ($($module:ident::$name:ident,)*) => {
        &[$((concat!(stringify!($module), "::", stringify!($name)), $module::$name)),*]
    };
}

const TESTS: &[(&str, Test)] = tests![
    probes::both_pods_are_ready,
    claims::a_claim_is_bound_attached_used_and_deleted,
    claims::a_claim_waits_for_its_first_pod,
    claims::a_volume_grows_while_it_is_in_use,
    claims::a_claim_names_another_volume_attributes_class,
    snapshots::a_snapshot_is_restored_as_it_was,
    snapshots::a_clone_has_what_its_source_had,
    snapshots::a_group_is_snapshotted_at_once,
    metadata::changed_blocks_are_told_to_who_may_read_the_snapshots,
    deletion::a_claim_goes_before_its_snapshots,
    deletion::a_source_goes_before_its_clones,
    deletion::everything_at_once,
    deletion::a_class_that_refuses_says_why_a_volume_stays,
    modes::a_second_node_is_kept_from_a_volume_of_one,
    modes::a_second_pod_is_kept_from_a_volume_of_one,
    modes::two_nodes_share_a_block_volume,
    modes::two_nodes_do_not_share_a_filesystem,
    modes::two_nodes_read_a_filesystem,
    mistakes::a_wrong_class_is_explained_on_the_claim,
    mistakes::a_source_that_cannot_be_is_explained,
    mistakes::a_wrong_snapshot_class_is_explained_on_the_snapshot,
    mistakes::wrong_attributes_are_explained_on_the_claim,
    mistakes::a_volume_of_another_size_than_any_can_have_is_explained,
    events::a_pool_that_is_nearly_full_is_told,
    examples::every_example_works,
    kills::everything_converges_and_nothing_leaks,
    kills::a_sidecar_that_dies_goes_on_where_it_was,
    many::many_claims_come_and_go_at_once,
];

/// Those that install the chart with other values.
const APART: &[(&str, fn())] = tests![
    topology::volumes_and_the_room_are_where_their_cluster_is_reached,
    backups::labelled_claims_are_backed_up_by_night_and_restored_into_others,
    pages::how_to_pages_do_what_they_say,
];

/// The installation, made by the first test that runs. A test has it for itself.
static FIELD: Mutex<Option<Field>> = Mutex::new(None);

/// Ends the installation, if there is one.
fn uninstall() {
    if let Some(field) = FIELD.lock().unwrap().take() {
        field.uninstall();
    }
}

fn run(test: Test) -> Result<(), Failed> {
    let mut field = FIELD.lock().unwrap();
    let began = Instant::now();
    if field.is_none() {
        let install = || Field::install(&json!({}), None);
        // Without it no test tells anything.
        *field = Some(catch_unwind(install).unwrap_or_else(|_| std::process::exit(101)));
        println!("    the chart is installed after {:.1} s", began.elapsed().as_secs_f64());
    }
    let began = Instant::now();
    let outcome = catch_unwind(AssertUnwindSafe(|| test(field.as_ref().unwrap())));
    println!("    {:.1} s", began.elapsed().as_secs_f64());
    outcome.map_err(|_| {
        println!("{}", field.as_ref().unwrap().logs());
        Failed::without_message()
    })
}

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // One after the other: each sees at its end that nothing is left.
    arguments.test_threads = Some(1);
    let trials = TESTS.iter().map(|(name, test)| {
        let test = *test;
        Trial::test(*name, move || run(test))
    });
    let apart = APART.iter().map(|(name, test)| {
        let test = *test;
        Trial::test(*name, move || {
            uninstall();
            catch_unwind(test).map_err(|_| Failed::without_message())
        })
    });
    let conclusion = libtest_mimic::run(&arguments, trials.chain(apart).collect());
    uninstall();
    conclusion.exit_code()
}
