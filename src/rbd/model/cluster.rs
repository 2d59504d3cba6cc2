//! The connection and the plain RADOS side of a pool.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use super::pool::ModelPool;
use super::session::Session;
use super::state::{Outcome, Place, State};
use crate::rbd::{
    Cluster, Errno, Guard, Monitor, OmapPage, OmapUpdate, Pool, PoolStats, Result,
    is_client_address,
};

/// The id of every model cluster.
const FSID: &str = "6d6f6465-6c00-4000-8000-000000000001";

/// Bytes an empty model cluster says it can hold.
const CAPACITY: u64 = 1 << 40;

/// The model's [`Cluster`].
#[derive(Debug)]
pub(super) struct ModelCluster {
    session: Session,
}

impl ModelCluster {
    pub(super) fn new(session: Session) -> ModelCluster {
        ModelCluster { session }
    }
}

impl Cluster for ModelCluster {
    fn fsid(&self) -> Result<String> {
        self.session.call("fsid", "cluster", |_| Ok(FSID.to_owned()))
    }

    fn monitors(&self) -> Result<Vec<Monitor>> {
        self.session.call("monitors", "cluster", |_| {
            let at = |port| Some(SocketAddr::from((Ipv4Addr::new(192, 0, 2, 1), port)));
            Ok(vec![Monitor { name: "a".to_owned(), v2: at(3300), v1: at(6789) }])
        })
    }

    fn pool(&self, name: &str, namespace: &str) -> Result<Arc<dyn Pool>> {
        let place = Place::new(name, namespace);
        self.session.call("pool", name, |call| {
            let mut state = call.state();
            if !state.pools.contains_key(name) {
                return Err(Errno::ENOENT);
            }
            state.space(&place);
            Ok(())
        })?;
        Ok(Arc::new(ModelPool::new(self.session.clone(), place)))
    }

    /// The model's monitors know no commands: `EINVAL`.
    fn monitor_command(&self, command: &str) -> Result<Vec<u8>> {
        self.session.call("monitor_command", command, |_| Err(Errno::EINVAL))
    }

    fn address(&self) -> Result<String> {
        Ok(self.session.address())
    }

    fn is_own(&self, address: &str) -> Result<bool> {
        Ok(self.session.address() == address)
    }

    fn blocklist(&self, address: &str, _seconds: u32) -> Result<()> {
        self.session.call("blocklist", address, |call| {
            if !is_client_address(address) {
                return Err(Errno::EINVAL);
            }
            {
                let mut state = call.state();
                state.blocklist.insert(address.to_owned());
                state.drop_watches(|watch| watch.address == address);
            }
            call.step()
        })
    }
}

/// What [`Pool::stats`] answers for the pool called `name`.
pub(super) fn stats(state: &State, name: &str) -> Outcome<PoolStats> {
    let quota = state.pools.get(name).ok_or(Errno::ENOENT)?.quota;
    let stored = state
        .spaces
        .iter()
        .filter(|(place, _)| &*place.pool == name)
        .flat_map(|(_, space)| space.headers.values())
        .map(|header| {
            let snapshots: u64 =
                header.snapshots.values().map(|snapshot| snapshot.content.stored()).sum();
            header.content.stored() + snapshots
        })
        .sum();
    Ok(PoolStats { stored, max_available: CAPACITY.saturating_sub(stored), quota })
}

/// The values of `keys` in the omap of `object`.
pub(super) fn omap_get(
    state: &mut State,
    place: &Place,
    object: &str,
    keys: &[&str],
) -> BTreeMap<String, Vec<u8>> {
    let Some(omap) = state.space(place).objects.get(object) else { return BTreeMap::new() };
    keys.iter().filter_map(|key| Some(((*key).to_owned(), omap.get(*key)?.clone()))).collect()
}

/// Checks the guards of `update` and applies it. Empty values are refused, as librados' compare
/// cannot tell one from an absent key.
pub(super) fn omap_update(
    state: &mut State,
    place: &Place,
    object: &str,
    update: &OmapUpdate,
) -> Outcome<()> {
    let guards_empty = |guard: &Guard| matches!(guard, Guard::Equals(_, value) if value.is_empty());
    if update.guards.iter().any(guards_empty)
        || update.set.iter().any(|(_, value)| value.is_empty())
    {
        return Err(Errno::EINVAL);
    }
    let objects = &mut state.space(place).objects;
    let omap = objects.get(object);
    let value = |key: &str| omap?.get(key).map(Vec::as_slice);
    if !update.guards.iter().all(|guard| guard.holds(value(guard.key()))) {
        return Err(Errno::ECANCELED);
    }
    let omap = objects.entry(object.to_owned()).or_default();
    omap.extend(update.set.iter().cloned());
    for key in &update.remove {
        omap.remove(key);
    }
    Ok(())
}

/// One page of the omap of `object`.
pub(super) fn omap_list(
    state: &mut State,
    place: &Place,
    object: &str,
    after: &str,
    limit: u64,
) -> OmapPage {
    let Some(omap) = state.space(place).objects.get(object) else { return OmapPage::default() };
    let range = (std::ops::Bound::Excluded(after.to_owned()), std::ops::Bound::Unbounded);
    let mut rest = omap.range(range).map(|(key, value)| (key.clone(), value.clone()));
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let entries: Vec<_> = rest.by_ref().take(limit).collect();
    OmapPage { entries, more: rest.next().is_some() }
}
