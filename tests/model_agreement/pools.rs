//! Two fresh pools on the real cluster, and a model that has the same.

use std::sync::atomic::{AtomicU64, Ordering};

use cinderblock::rbd::Cluster;
use cinderblock::rbd::model::Model;

/// Two pools, removed when dropped.
pub(crate) struct Pools<'a> {
    cluster: &'a dyn Cluster,
    names: [String; 2],
}

impl Pools<'_> {
    pub(crate) fn new(cluster: &dyn Cluster) -> Pools<'_> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let run =
            format!("agreement-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let pools = Pools { cluster, names: ["a", "b"].map(|name| format!("{run}-{name}")) };
        for name in &pools.names {
            pools.command(&format!(r#"{{"prefix":"osd pool create","pool":"{name}","pg_num":1}}"#));
            pools.command(&format!(
                r#"{{"prefix":"osd pool application enable","pool":"{name}","app":"rbd"}}"#
            ));
        }
        pools
    }

    pub(crate) fn names(&self) -> [&str; 2] {
        self.names.each_ref().map(String::as_str)
    }

    /// A model with pools of these names.
    pub(crate) fn model(&self) -> Model {
        let model = Model::new();
        self.names().into_iter().for_each(|name| model.create_pool(name));
        model
    }

    pub(crate) fn command(&self, command: &str) {
        self.cluster.monitor_command(command).unwrap();
    }
}

impl Drop for Pools<'_> {
    fn drop(&mut self) {
        for name in &self.names {
            self.command(&format!(
                r#"{{"prefix":"osd pool delete","pool":"{name}","pool2":"{name}","yes_i_really_really_mean_it":true}}"#
            ));
        }
    }
}
