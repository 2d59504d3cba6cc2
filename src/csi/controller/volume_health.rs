use super::{ControllerService, not_advertised};
use crate::csi::clusters::operation;
use crate::csi::ids::VolumeId;
use crate::csi::operations::Class;
use crate::csi::proto::volume_health::VolumeHealthEntry;
use crate::csi::proto::{
    ControllerGetVolumeHealthRequest, ControllerGetVolumeHealthResponse, VolumeHealth,
    VolumeHealthErrorType,
};
use crate::csi::validate;
use crate::rbd::{Errno, ImageKey, OpenMode};
use crate::volume::{Error, State};
use std::collections::BTreeMap;
use std::time::Duration;
use tonic::{Request, Response, Status};

impl ControllerService {
    /// ControllerGetVolumeHealth, with `--enable-alpha`: whether a volume that was handed out still
    /// has its image, with all it is a clone of. A cluster that does not answer says nothing about
    /// the volume, and is an error.
    pub(super) async fn handle_get_volume_health(
        &self,
        request: Request<ControllerGetVolumeHealthRequest>,
    ) -> Result<Response<ControllerGetVolumeHealthResponse>, Status> {
        if !self.alpha {
            return Err(not_advertised("ControllerGetVolumeHealth"));
        }
        let deadline = self.deadline(&request);
        let request = request.into_inner();
        validate::required("volume_id", &request.volume_id)?;
        let volume_health =
            self.volume_health(deadline, request.volume_id.clone(), &request.secrets).await?;
        if volume_health.is_none() {
            return Err(Status::not_found(format!(
                "the volume {:?} does not exist",
                request.volume_id
            )));
        }
        Ok(Response::new(ControllerGetVolumeHealthResponse { volume_health }))
    }

    /// The health of a volume; `None` when there is no such volume.
    pub(super) async fn volume_health(
        &self,
        deadline: Duration,
        volume_id: String,
        secrets: &BTreeMap<String, String>,
    ) -> Result<Option<VolumeHealth>, Status> {
        let Some(id) = VolumeId::parse(&volume_id) else { return Ok(None) };
        let credentials = self.credentials(&id.location, secrets)?;
        // Reads only, so it shares no key with the operations that change the volume.
        let operation = operation(
            Class::Attach,
            "reading a volume's health",
            &id.location,
            Vec::new(),
            String::new(),
        );
        let volume = id.to_string();
        let health_statuses = self
            .run(operation, deadline, id.location, credentials, move |access, _| {
                let stored = access.answer(access.volumes.catalogue().volume(&id.image))?;
                if stored.is_none_or(|stored| stored.record.state != State::Ready) {
                    return Ok(None);
                }
                match access.volumes.pool().open_image(ImageKey::Name(&id.image), OpenMode::ReadOnly) {
                    Ok(_) => Ok(Some(Vec::new())),
                    Err(error) if error.errno == Errno::ENOENT => Ok(Some(vec![VolumeHealthEntry {
                        status: VolumeHealthErrorType::Inaccessible.into(),
                        reason: "ImageMissing".to_string(),
                        message: format!(
                            "the image of the volume {volume}, or one it is a clone of, is gone: {error}"
                        ),
                    }])),
                    Err(error) => access.answer(Err(Error::from(error))),
                }
            })
            .await?;
        Ok(health_statuses.map(|health_statuses| VolumeHealth { volume_id, health_statuses }))
    }
}
