//! What commands ask Kubernetes.

use ::kube::{Client, Error};
use cinderblock::kube::{connect, words};
use clap::Args;

/// Whose volumes to ask about.
#[derive(Debug, Args)]
pub(crate) struct DriverArgs {
    /// The CSI driver's name, as in CSIDriver and StorageClass objects
    #[arg(
        long,
        default_value = "rbd.csi.cinderblock.dev",
        value_name = "NAME",
        help_heading = "Kubernetes"
    )]
    pub(crate) driver_name: String,
}

/// Asks Kubernetes: as the pod's service account in a pod, else as KUBECONFIG says.
pub(crate) fn ask<T>(question: impl AsyncFnOnce(Client) -> Result<T, Error>) -> Result<T, String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("no runtime: {error}"))?;
    runtime.block_on(async {
        let client = connect().await?;
        let answer = question(client).await;
        answer.map_err(|error| format!("Kubernetes does not say: {}", words(&error)))
    })
}
