use super::ControllerService;
use crate::csi::clusters::operation;
use crate::csi::ids::VolumeId;
use crate::csi::operations::Class;
use crate::csi::proto::{ControllerExpandVolumeRequest, ControllerExpandVolumeResponse};
use crate::csi::validate;
use crate::kube::Subject;
use tonic::{Request, Response, Status};

impl ControllerService {
    /// ControllerExpandVolume: grows, never shrinks.
    pub(super) async fn handle_expand_volume(
        &self,
        request: Request<ControllerExpandVolumeRequest>,
    ) -> Result<Response<ControllerExpandVolumeResponse>, Status> {
        let deadline = self.deadline(&request);
        let request = request.into_inner();
        validate::required("volume_id", &request.volume_id)?;
        if request.capacity_range.is_none() {
            return Err(Status::invalid_argument("capacity_range is missing"));
        }
        if let Some(capability) = &request.volume_capability {
            validate::capability(capability)?;
        }
        let sizes =
            super::create_volume::whole_sectors(validate::sizes(request.capacity_range.as_ref())?)?;
        let id = VolumeId::parse(&request.volume_id).ok_or_else(|| {
            Status::not_found(format!("the volume {:?} does not exist", request.volume_id))
        })?;
        let credentials = self.credentials(&id.location, &request.secrets)?;
        let operation = operation(
            Class::Change,
            "ControllerExpandVolume",
            &id.location,
            vec![format!("volume {id}")],
            format!("{sizes:?}"),
        );
        let subject = Subject::Volume(request.volume_id);
        let (recorder, looks) = (self.recorder.clone(), self.looks.clone());
        let size = self
            .run(operation, deadline, id.location, credentials, move |access, _| {
                let size = access.volumes.grow(&id.image, sizes);
                let (location, pool) = (&access.scope.location, access.volumes.pool());
                looks.look_after(&size, &recorder, &subject, location, pool, None);
                access.answer(size)
            })
            .await?;
        Ok(Response::new(ControllerExpandVolumeResponse {
            capacity_bytes: i64::try_from(size).unwrap_or(i64::MAX),
            // A filesystem must grow, and the device under a block volume must learn of its new
            // size.
            node_expansion_required: true,
        }))
    }
}
