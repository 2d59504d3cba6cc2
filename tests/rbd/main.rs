//! What the `rbd` traits promise, as behaviours that both implementations are put to.
//!
//! A behaviour is a function that takes a [`tools::Place`]: an empty namespace. It runs against a
//! real Ceph (tests `ceph::…`, which need a lab: `make test`) and against the in-memory model
//! (`model::…`, which need nothing). Each leaves its namespace empty, which is checked.
//! `connections` and `real` are about a real cluster alone.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

#[path = "../common/mod.rs"]
mod common;
mod connections;
mod data;
mod images;
mod lineage;
mod omap;
mod real;
mod snapshots;
mod together;
mod tools;
mod trash;

use cinderblock::rbd::model::Model;
use common::{Lab, Namespace, POOL};
use tools::Place;

fn on_ceph(behaviour: fn(&Place)) {
    let lab = Lab::from_environment();
    let (cluster, other) = (lab.connect(), lab.connect());
    let (namespace, elsewhere) = (Namespace::new(&lab), Namespace::new(&lab));
    behaviour(&Place {
        pool: namespace.pool(&*cluster),
        other: namespace.pool(&*other),
        elsewhere: elsewhere.pool(&*cluster),
    });
    namespace.assert_empty();
    elsewhere.assert_empty();
}

fn on_model(behaviour: fn(&Place)) {
    let model = Model::new();
    model.create_pool(POOL);
    model.create_namespace(POOL, "here");
    model.create_namespace(POOL, "elsewhere");
    let (session, other) = (model.connect(), model.connect());
    let pool = |session: &cinderblock::rbd::model::Session, namespace| {
        session.cluster().pool(POOL, namespace).unwrap()
    };
    behaviour(&Place {
        pool: pool(&session, "here"),
        other: pool(&other, "here"),
        elsewhere: pool(&session, "elsewhere"),
    });
    assert!(model.graph().is_empty(), "{:#?}", model.graph());
}

macro_rules! behaviours {
    ($($area:ident: $($behaviour:ident)+;)+) => {
        mod ceph {
            $($(#[test] fn $behaviour() { crate::on_ceph(crate::$area::$behaviour) })+)+
        }
        mod model {
            $($(#[test] fn $behaviour() { crate::on_model(crate::$area::$behaviour) })+)+
        }
    };
}

behaviours! {
    images:
        a_new_image_is_what_was_asked_for
        layouts_are_taken_as_given
        impossible_layouts_are_refused
        a_name_is_taken_once
        what_is_missing_is_not_found
        errors_name_call_and_object
        an_image_is_renamed_while_it_is_open
        a_rename_does_not_replace
        images_grow_and_shrink_only_when_allowed
        read_only_images_refuse_changes
        read_only_images_stay_as_they_were_opened
        removal_waits_for_watchers
        removal_waits_for_snapshots
        watchers_are_the_others
        a_blocklisted_client_writes_no_more
        metadata_is_kept
        metadata_has_no_small_limits;
    data:
        what_was_written_is_read
        reads_end_with_the_image
        writes_beyond_the_end_write_nothing
        discarded_bytes_read_as_zeros
        clones_read_their_parents_and_keep_their_own_writes
        snapshots_keep_bytes_and_size
        one_handle_serves_several_threads
        differences_are_found
        differences_stay_in_their_range
        differences_count_the_parent_when_asked
        differences_tell_what_a_clone_has_lost
        a_walk_over_differences_can_be_stopped;
    snapshots:
        snapshots_are_listed_oldest_first
        an_image_can_have_many_snapshots
        an_image_and_its_clones_are_found_while_snapshots_go
        missing_snapshots_are_not_found
        snapshots_are_renamed
        protection_goes_on_once_and_off_once
        format_1_clones_need_protection
        flattening_a_format_1_clone_lets_its_snapshot_go
        a_snapshot_with_format_2_clones_is_parked_until_the_last_goes
        a_parked_snapshot_goes_when_its_last_clone_is_flattened
        clones_are_refused_without_a_source_or_a_name
        clones_take_their_layout_from_options_or_the_parent;
    lineage:
        links_are_seen_from_both_sides
        links_cross_namespaces
        links_reach_into_the_trash
        format_1_links_are_the_same
        an_image_can_have_many_children
        a_deep_flatten_cuts_the_links_of_snapshots_too
        without_deep_flatten_snapshots_keep_their_links
        flattening_copies_what_was_shared
        a_stopped_flatten_leaves_the_link
        a_panic_in_progress_reaches_the_caller
        a_clone_of_a_clone_has_the_nearer_parent;
    trash:
        an_image_goes_to_the_trash_and_comes_back
        a_deferred_removal_needs_force
        what_is_not_in_the_trash_is_not_found
        a_restore_does_not_replace
        the_trash_takes_open_images_but_keeps_them_until_they_are_closed
        the_trash_keeps_images_with_snapshots
        removals_tell_how_far_they_are
        a_stopped_removal_is_finished_by_the_next
        the_trash_holds_many;
    together:
        images_are_cut_at_one_moment
        images_without_a_lock_or_a_free_name_are_not_cut_together;
    omap:
        entries_are_set_read_and_removed
        a_missing_object_is_an_empty_omap
        guards_hold_on_a_missing_object
        a_guard_that_fails_changes_nothing
        empty_values_are_refused
        long_omaps_come_in_pages
        one_of_two_rivals_wins;
}
