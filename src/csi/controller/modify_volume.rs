use super::ControllerService;
use crate::csi::clusters::operation;
use crate::csi::ids::VolumeId;
use crate::csi::operations::Class;
use crate::csi::proto::{ControllerModifyVolumeRequest, ControllerModifyVolumeResponse};
use crate::csi::{qos, validate};
use tonic::{Request, Response, Status};

impl ControllerService {
    /// ControllerModifyVolume: all keys are checked before any is applied.
    pub(super) async fn handle_modify_volume(
        &self,
        request: Request<ControllerModifyVolumeRequest>,
    ) -> Result<Response<ControllerModifyVolumeResponse>, Status> {
        let deadline = self.deadline(&request);
        let request = request.into_inner();
        validate::required("volume_id", &request.volume_id)?;
        validate::map("mutable_parameters", &request.mutable_parameters)?;
        let settings = qos::settings(&request.mutable_parameters)?;
        let id = VolumeId::parse(&request.volume_id).ok_or_else(|| {
            Status::not_found(format!("the volume {:?} does not exist", request.volume_id))
        })?;
        if request.mutable_parameters.is_empty() {
            // A volume that is not there is the better answer.
            self.find_volume(deadline, &request.volume_id, &request.secrets).await?;
            return Err(Status::invalid_argument(
                "mutable_parameters is missing: it names what to change",
            ));
        }
        let credentials = self.credentials(&id.location, &request.secrets)?;
        let operation = operation(
            Class::Change,
            "ControllerModifyVolume",
            &id.location,
            vec![format!("volume {id}")],
            format!("{settings:?}"),
        );
        self.run(operation, deadline, id.location, credentials, move |access, _| {
            access.answer(access.volumes.modify(&id.image, &settings, qos::check))
        })
        .await?;
        Ok(Response::new(ControllerModifyVolumeResponse {}))
    }
}
