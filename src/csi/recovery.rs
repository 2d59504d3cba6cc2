//! At start-up: finishing what a killed controller left in the pools this one serves with a user of its own.

use super::clusters::Clusters;
use super::ids::Location;
use super::parameters;
use crate::volume::Activity;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tonic::Status;

/// How long to wait before a pool that could not be reached is tried again.
const INTERVAL: Duration = Duration::from_secs(30);

/// Recovers each pool that the configuration names with credentials, in the background of the current runtime; a pool that
/// cannot be reached is tried until it can.
pub fn start(clusters: &Arc<Clusters>) {
    for location in clusters.own_pools() {
        let clusters = clusters.clone();
        tokio::spawn(async move {
            loop {
                let attempt = {
                    let (clusters, location) = (clusters.clone(), location.clone());
                    tokio::task::spawn_blocking(move || recover(&clusters, &location))
                };
                match attempt.await {
                    Ok(Ok(())) => return tracing::info!(%location, "nothing is left half-done"),
                    Ok(Err(status)) => {
                        tracing::warn!(%location, why = status.message(), "recovery will be tried again");
                    }
                    Err(error) => {
                        tracing::error!(%location, %error, "recovery failed and will be tried again");
                    }
                }
                tokio::time::sleep(INTERVAL).await;
            }
        });
    }
}

fn recover(clusters: &Clusters, location: &Location) -> Result<(), Status> {
    let cluster = parameters::cluster(clusters.config(), &location.cluster)?;
    let credentials = clusters.credentials(cluster, &BTreeMap::new())?;
    let access = clusters.access(location, credentials, Arc::new(Activity::default()))?;
    access.volumes.recover().map_err(|error| access.scope.status(&error))
}
