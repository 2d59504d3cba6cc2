use super::ControllerService;
use crate::csi::clusters::operation;
use crate::csi::ids::VolumeId;
use crate::csi::proto::{DeleteVolumeRequest, DeleteVolumeResponse};
use crate::csi::validate;
use tonic::{Request, Response, Status};

impl ControllerService {
    /// DeleteVolume: fine when the volume is gone, or never could exist.
    pub(super) async fn handle_delete_volume(
        &self,
        request: Request<DeleteVolumeRequest>,
    ) -> Result<Response<DeleteVolumeResponse>, Status> {
        let deadline = self.deadline(&request);
        let request = request.into_inner();
        validate::required("volume_id", &request.volume_id)?;
        let Some(id) = VolumeId::parse(&request.volume_id) else {
            return Ok(Response::new(DeleteVolumeResponse {}));
        };
        let credentials = self.credentials(&id.location, &request.secrets)?;
        let operation = operation("DeleteVolume", &id.location, vec![format!("volume {id}")], String::new());
        self.run(operation, deadline, id.location, credentials, move |access, _| {
            access.answer(access.volumes.delete(&id.image))
        })
        .await?;
        Ok(Response::new(DeleteVolumeResponse {}))
    }
}
