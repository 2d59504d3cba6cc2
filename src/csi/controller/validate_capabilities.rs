use super::ControllerService;
use crate::csi::parameters;
use crate::csi::proto::validate_volume_capabilities_response::Confirmed;
use crate::csi::proto::{ValidateVolumeCapabilitiesRequest, ValidateVolumeCapabilitiesResponse};
use crate::csi::{qos, validate};
use tonic::{Request, Response, Status};

impl ControllerService {
    /// ValidateVolumeCapabilities: confirmed as a whole, or not at all with the reason in
    /// `message`.
    pub(super) async fn handle_validate_capabilities(
        &self,
        request: Request<ValidateVolumeCapabilitiesRequest>,
    ) -> Result<Response<ValidateVolumeCapabilitiesResponse>, Status> {
        let deadline = self.deadline(&request);
        let request = request.into_inner();
        validate::required("volume_id", &request.volume_id)?;
        if request.volume_capabilities.is_empty() {
            return Err(Status::invalid_argument("volume_capabilities is missing"));
        }
        validate::map("volume_context", &request.volume_context)?;
        validate::map("parameters", &request.parameters)?;
        validate::map("mutable_parameters", &request.mutable_parameters)?;
        let record = self.find_volume(deadline, &request.volume_id, &request.secrets).await?;

        let answer = match self.objection(&request, &record.context) {
            Some(message) => ValidateVolumeCapabilitiesResponse { confirmed: None, message },
            None => ValidateVolumeCapabilitiesResponse {
                confirmed: Some(Confirmed {
                    volume_context: request.volume_context,
                    volume_capabilities: request.volume_capabilities,
                    parameters: request.parameters,
                    mutable_parameters: request.mutable_parameters,
                }),
                message: String::new(),
            },
        };
        Ok(Response::new(answer))
    }

    /// What keeps the request from being confirmed, if anything.
    fn objection(
        &self,
        request: &ValidateVolumeCapabilitiesRequest,
        context: &parameters::Parameters,
    ) -> Option<String> {
        for capability in &request.volume_capabilities {
            if let Err(status) = validate::capability(capability) {
                return Some(status.message().to_string());
            }
        }
        // Sidecars and the kubelet add keys of their own, so only those the volume has are
        // compared.
        for (key, value) in &request.volume_context {
            if context.get(key).is_some_and(|known| known != value) {
                return Some(format!("the volume's {key} is {:?}, not {value:?}", context[key]));
            }
        }
        if !request.parameters.is_empty()
            && let Err(status) =
                parameters::VolumeParameters::parse(&request.parameters, self.clusters.config())
        {
            return Some(status.message().to_string());
        }
        qos::settings(&request.mutable_parameters).err().map(|status| status.message().to_string())
    }
}
