//! GetCapacity: what a pool still takes, never a made-up number.

use super::ControllerService;
use crate::csi::clusters::operation;
use crate::csi::deadline::left_until;
use crate::csi::ids::Location;
use crate::csi::operations::Class;
use crate::csi::parameters::VolumeParameters;
use crate::csi::proto::{GetCapacityRequest, GetCapacityResponse};
use crate::csi::{topology, validate};
use crate::rbd::{ImageOptions, PoolStats};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use tonic::{Request, Response, Status};

/// Bytes a volume has at least.
const MINIMUM: i64 = 512;

impl ControllerService {
    /// GetCapacity: of the pool the parameters name, or of the roomiest pool of the configuration
    /// when there are none: pools share disks, so their rooms cannot be added up.
    pub(super) async fn handle_get_capacity(
        &self,
        request: Request<GetCapacityRequest>,
    ) -> Result<Response<GetCapacityResponse>, Status> {
        let deadline = self.deadline(&request);
        let request = request.into_inner();
        if !request.volume_capabilities.is_empty()
            && validate::capabilities(&request.volume_capabilities).is_err()
        {
            // No volume can have them, so there is room for none.
            return Ok(Response::new(answer(0, i64::MAX)));
        }
        validate::map("parameters", &request.parameters)?;
        if request.parameters.is_empty() {
            let mut available: i64 = 0;
            let mut seen = Vec::new();
            let until = Instant::now() + deadline;
            for location in self.clusters.listable()? {
                // Namespaces share the room of their pool.
                let pool = (location.cluster.clone(), location.pool.clone());
                if !seen.contains(&pool) {
                    seen.push(pool);
                    available = available.max(self.available(left_until(until), location).await?);
                }
            }
            return Ok(Response::new(answer(available, largest(&ImageOptions::default()))));
        }
        let class = VolumeParameters::parse(&request.parameters, self.clusters.config())?;
        let largest = largest(&class.options);
        let elsewhere =
            |place| !topology::is_reached_from(self.reached_from(&class.location.cluster), place);
        if request.accessible_topology.as_ref().is_some_and(elsewhere) {
            return Ok(Response::new(answer(0, largest)));
        }
        // The data pool is what fills.
        let location = match class.options.data_pool {
            Some(pool) => Location { pool, namespace: String::new(), ..class.location },
            None => class.location,
        };
        let available = self.available(deadline, location).await?;
        Ok(Response::new(answer(available, largest)))
    }

    async fn available(&self, deadline: Duration, location: Location) -> Result<i64, Status> {
        let credentials = self.credentials(&location, &BTreeMap::new())?;
        let operation =
            operation(Class::Attach, "GetCapacity", &location, Vec::new(), String::new());
        let stats = self
            .run(operation, deadline, location, credentials, |access, _| {
                access
                    .volumes
                    .pool()
                    .stats()
                    .map_err(|error| access.scope.connection_status(&error))
            })
            .await?;
        Ok(room(&stats))
    }
}

/// Bytes the pool still takes.
fn room(stats: &PoolStats) -> i64 {
    i64::try_from(stats.room()).unwrap_or(i64::MAX)
}

fn largest(options: &ImageOptions) -> i64 {
    i64::try_from(crate::volume::largest(options)).unwrap_or(i64::MAX)
}

/// `largest` bytes is what an image can have. Kubernetes' scheduler looks at the maximum alone
/// where there is one, so it is never more than the room there is.
fn answer(available: i64, largest: i64) -> GetCapacityResponse {
    GetCapacityResponse {
        available_capacity: available,
        maximum_volume_size: Some(largest.min(available)).filter(|size| *size > 0),
        minimum_volume_size: Some(MINIMUM),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_quota_and_the_disks_both_bound_the_room() {
        let stats =
            |stored, max_available, quota| room(&PoolStats { stored, max_available, quota });
        assert_eq!(stats(10, 100, None), 100);
        assert_eq!(stats(10, 100, Some(50)), 40);
        assert_eq!(stats(10, 20, Some(50)), 20);
        assert_eq!(stats(60, 100, Some(50)), 0);
        assert_eq!(stats(0, u64::MAX, None), i64::MAX);
    }
}
