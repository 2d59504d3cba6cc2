use super::{ControllerService, snapshot_ids, tell_refusal};
use crate::csi::clusters::operation;
use crate::csi::ids::VolumeId;
use crate::csi::operations::Class;
use crate::csi::proto::{DeleteVolumeRequest, DeleteVolumeResponse};
use crate::csi::validate;
use crate::kube::{Event, Subject};
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
        let operation = operation(
            Class::Change,
            "DeleteVolume",
            &id.location,
            vec![format!("volume {id}")],
            String::new(),
        );
        let (recorder, subject) = (self.recorder.clone(), Subject::Volume(request.volume_id));
        // Its PersistentVolume goes as soon as this is answered.
        recorder.expect(&subject);
        self.run(operation, deadline, id.location, credentials, move |access, _| {
            let location = &access.scope.location;
            let deleted = access.volumes.delete(&id.image);
            match &deleted {
                Ok(Some(retained)) => {
                    let snapshots = snapshot_ids(location, &retained.image_id, &retained.snapshots);
                    let (by_others, clones) = (retained.by_others.clone(), retained.for_clones);
                    recorder
                        .tell(&subject, Event::VolumeDataRetained { snapshots, by_others, clones });
                }
                Ok(None) => {}
                Err(error) => tell_refusal(&recorder, &subject, location, error),
            }
            access.answer(deleted.map(drop))
        })
        .await?;
        Ok(Response::new(DeleteVolumeResponse {}))
    }
}
