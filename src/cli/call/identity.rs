//! The Identity service.

use cinderblock::csi::proto::identity_client::IdentityClient;
use cinderblock::csi::proto::{GetPluginCapabilitiesRequest, GetPluginInfoRequest, ProbeRequest};
use clap::Subcommand;

use super::answer::Answer;
use super::{Connection, Failure};

#[derive(Debug, Subcommand)]
pub(super) enum IdentityCommand {
    /// Name and version of the driver
    #[command(alias = "get-plugin-info")]
    Info,
    /// What the driver as a whole can do
    #[command(alias = "get-plugin-capabilities")]
    Capabilities,
    /// Whether the driver is ready and healthy
    Probe,
}

impl IdentityCommand {
    pub(super) async fn call(self, connection: Connection) -> Result<Answer, Failure> {
        let mut client = IdentityClient::new(connection);
        Ok(match self {
            IdentityCommand::Info => {
                Answer::of(client.get_plugin_info(GetPluginInfoRequest {}).await?)
            }
            IdentityCommand::Capabilities => {
                Answer::of(client.get_plugin_capabilities(GetPluginCapabilitiesRequest {}).await?)
            }
            IdentityCommand::Probe => Answer::of(client.probe(ProbeRequest {}).await?),
        })
    }
}
