//! The labs of these tests: of their own, since other tests need a cluster with Ceph's own timeouts
//! and speed.

use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use cinderblock::rbd::{Cluster, Pool};
use serde_json::json;

use crate::common::{OwnLab, wait_until};

/// How long a dead client's watch on an image lasts, in seconds; 30 by Ceph's default.
const WATCH_SECONDS: &str = "3";
/// How often a living client says that it watches, in seconds; 5 by Ceph's default.
const TICK_SECONDS: &str = "0.5";
/// What a slow OSD waits before each operation.
const DELAY: Duration = Duration::from_millis(5);

/// A lab that is up while any test of this process uses it.
pub struct SharedLab(Mutex<Weak<OwnLab>>);

impl SharedLab {
    pub const fn new() -> SharedLab {
        SharedLab(Mutex::new(Weak::new()))
    }

    /// The lab, brought up if need be.
    pub fn get(&self) -> Arc<OwnLab> {
        let mut slot = self.0.lock().unwrap();
        if let Some(lab) = slot.upgrade() {
            return lab;
        }
        let lab = Arc::new(OwnLab::up());
        let cluster = lab.connect();
        set(&*cluster, "client", "objecter_tick_interval", TICK_SECONDS);
        set(&*cluster, "osd", "osd_client_watch_timeout", WATCH_SECONDS);
        set(
            &*cluster,
            "osd",
            "osd_debug_inject_dispatch_delay_duration",
            &DELAY.as_secs_f64().to_string(),
        );
        wait_until("the OSD knows its options", || {
            let value = lab.run("ceph", &["config", "show", "osd.0", "osd_client_watch_timeout"]);
            if value.trim() == WATCH_SECONDS { Ok(()) } else { Err(value) }
        });
        *slot = Arc::downgrade(&lab);
        lab
    }
}

/// Sets an option of the daemons or clients `who`.
fn set(cluster: &dyn Cluster, who: &str, option: &str, value: &str) {
    let command = json!({"prefix": "config set", "who": who, "name": option, "value": value});
    cluster.monitor_command(&command.to_string()).unwrap();
}

/// A slow OSD, for as long as any of these lives: it waits before each operation.
pub struct SlowOsd(Arc<dyn Cluster>);

static SLOW: Mutex<u32> = Mutex::new(0);

impl SlowOsd {
    /// Makes the OSD of the lab that `pool` is in slow, and sees that it is.
    pub fn new(pool: &dyn Pool) -> SlowOsd {
        let cluster = pool.cluster();
        let mut users = SLOW.lock().unwrap();
        *users += 1;
        if *users == 1 {
            set(&*cluster, "osd", "osd_debug_inject_dispatch_delay_probability", "1");
        }
        drop(users);
        wait_until("the OSD is slow", || {
            let started = Instant::now();
            pool.omap_get("no-such-object", &["no-such-key"]).unwrap();
            if started.elapsed() >= DELAY { Ok(()) } else { Err(started.elapsed()) }
        });
        SlowOsd(cluster)
    }
}

impl Drop for SlowOsd {
    fn drop(&mut self) {
        let mut users = SLOW.lock().unwrap();
        *users -= 1;
        if *users == 0 {
            set(&*self.0, "osd", "osd_debug_inject_dispatch_delay_probability", "0");
        }
    }
}
