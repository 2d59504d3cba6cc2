//! What the controller tells users by itself; what it tells beside a refusal is in the tests of
//! that.

use std::time::Duration;

use serde_json::{Value, json};

use super::api::wait_until;
use super::common::{Lab, POOL};
use super::field::Field;
use super::kubelet::pattern;
use super::space::Space;

pub(crate) fn a_pool_that_is_nearly_full_is_told(field: &Field) {
    let space = Space::new(field, "nearly-full");
    space.claim("large", "immediate", "1Gi", &json!({}));
    space.write("large", &pattern(1, 32 << 20));
    let stored = wait_until("the cluster counts what was written", || {
        let counts: Value =
            serde_json::from_str(&field.lab.run("ceph", &["df", "--format", "json"])).unwrap();
        let pools = counts["pools"].as_array().unwrap();
        let stored = pools.iter().find(|pool| pool["name"] == POOL).unwrap()["stats"]["bytes_used"]
            .as_u64()
            .unwrap();
        if stored >= 32 << 20 { Ok(stored) } else { Err(format!("{stored} bytes")) }
    });
    let quota = Quota::set(&field.lab, stored * 100 / 92);
    // The controller looks once a minute, when a caller asks for room.
    let mut claims = vec!["large".to_owned()];
    wait_until("somebody is told that the pool is nearly full", || {
        let next = format!("next-{}", claims.len());
        space.claim(&next, "immediate", "1Gi", &json!({}));
        space.bound(&next);
        let said = ["PoolNearlyFull", "the pool rbd of the cluster prod is", "% full"];
        let told = |claim: &String| {
            space.events(claim).iter().any(|event| said.iter().all(|words| event.contains(words)))
        };
        let is_told = claims[1..].iter().any(told);
        claims.push(next);
        std::thread::sleep(Duration::from_secs(2));
        if is_told { Ok(()) } else { Err(space.events("").join(" | ")) }
    });
    drop(quota);
    for claim in &claims {
        space.remove_claim(claim);
    }
    space.finish();
}

/// A limit to what the pool may hold, until it is dropped.
struct Quota<'a>(&'a Lab);

impl<'a> Quota<'a> {
    fn set(lab: &'a Lab, bytes: u64) -> Quota<'a> {
        lab.run("ceph", &["osd", "pool", "set-quota", POOL, "max_bytes", &bytes.to_string()]);
        Quota(lab)
    }
}

impl Drop for Quota<'_> {
    fn drop(&mut self) {
        self.0.run("ceph", &["osd", "pool", "set-quota", POOL, "max_bytes", "0"]);
    }
}
