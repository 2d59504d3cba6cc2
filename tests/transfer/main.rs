//! `cinderblock image`: disks into images and out of them.
//!
//! `behaviours` run on a real Ceph and on the model, as in `tests/rbd`; `kills` sweep the model and
//! kill the program on a real Ceph; the rest is the program on a real Ceph.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![allow(unreachable_pub, reason = "this is a program of its own")]

#[path = "../common/mod.rs"]
mod common;

mod behaviours;
mod disk;
mod formats;
mod kills;
mod objects;
mod program;
mod server;

use std::sync::Arc;

use cinderblock::rbd::Pool;
use cinderblock::rbd::model::Model;
use common::{Lab, Namespace, POOL};

fn on_ceph(behaviour: fn(&Arc<dyn Pool>)) {
    let lab = Lab::from_environment();
    let namespace = Namespace::new(&lab);
    behaviour(&namespace.pool(&*lab.connect()));
    namespace.assert_empty();
}

fn on_model(behaviour: fn(&Arc<dyn Pool>)) {
    let model = Model::new();
    model.create_pool(POOL);
    behaviour(&model.connect().cluster().pool(POOL, "").unwrap());
    assert!(model.graph().is_empty(), "{:#?}", model.graph());
}

macro_rules! behaviours {
    ($($behaviour:ident)+) => {
        mod ceph {
            $(#[test] fn $behaviour() { crate::on_ceph(crate::behaviours::$behaviour) })+
        }
        mod model {
            $(#[test] fn $behaviour() { crate::on_model(crate::behaviours::$behaviour) })+
        }
    };
}

behaviours! {
    disks_come_back_byte_by_byte
    only_data_is_stored
    a_clone_is_exported_with_what_its_parents_hold
    an_export_is_of_one_moment
    what_is_there_is_not_replaced
    what_is_not_there_is_refused
    a_wrong_checksum_leaves_nothing
    a_cancelled_transfer_leaves_nothing
}
