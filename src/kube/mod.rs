//! Kubernetes, as a client. The driver works without it; with it, people hear in their own words
//! what it is about.
//!
//! - [`events`]: what is worth telling, on the objects people look at.
//! - [`handover`]: the objects of volumes that change their driver.
//! - [`nodes`]: whether a node uses a volume, in good health.
//! - [`volumes`]: which claim, PersistentVolume and nodes belong to a volume id.
//! - [`claims`]: what is known of the volumes behind claims.
//!
//! What happens here never decides over an RPC, with one exception that [`nodes`] tells of. It
//! knows volumes by their ids alone, and nothing of RBD.

pub mod claims;
pub mod events;
pub mod handover;
pub mod nodes;
pub mod volumes;

use std::ops::ControlFlow;
use std::time::Duration;

use ::kube::api::{Api, ListParams};
use ::kube::config::KubeConfigOptions;
use ::kube::{Client, Config, Error};
use serde::de::DeserializeOwned;

pub use events::{Event, Recorder, Subject};
pub use nodes::Nodes;

/// How long a connection, and an answer, may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Objects asked for at once when listing.
const PAGE: u32 = 500;

/// A client for the API server of the cluster this process runs in, as its pod's service account;
/// outside a pod, for the one that KUBECONFIG (or `~/.kube/config`) names. It connects when it is
/// first used. Errors say what to set.
///
/// To be called inside a Tokio runtime.
pub async fn connect() -> Result<Client, String> {
    let in_a_pod = std::env::var_os("KUBERNETES_SERVICE_HOST").is_some();
    let mut config = if in_a_pod {
        Config::incluster().map_err(|error| {
            format!(
                "this pod has no service account to speak to Kubernetes with, mount its token: {}",
                chain(&error)
            )
        })?
    } else {
        Config::from_kubeconfig(&KubeConfigOptions::default()).await.map_err(|error| {
            format!(
                "no way to Kubernetes, set KUBECONFIG to the path of a kubeconfig: {}",
                chain(&error)
            )
        })?
    };
    config.connect_timeout = Some(PATIENCE);
    config.read_timeout = Some(PATIENCE);
    config.reset_reader_on_write = true;
    let server = config.cluster_url.to_string();
    let client = Client::try_from(config).map_err(|error| {
        format!("no connection can be made to Kubernetes at {server}: {}", words(&error))
    })?;
    tracing::info!(server, in_a_pod, "Kubernetes is asked and told here");
    Ok(client)
}

/// An error of the API in words: what the server said, or why it said nothing.
pub fn words(error: &Error) -> String {
    match error {
        Error::Api(status) if !status.message.is_empty() => status.message.clone(),
        other => chain(other),
    }
}

/// An error with its causes, each once.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let words = error.to_string();
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        cause = error.source();
    }
    text
}

/// The status code of the API server's answer, if there was one.
fn code(error: &Error) -> Option<u16> {
    match error {
        Error::Api(status) => Some(status.code),
        _ => None,
    }
}

/// Shows `visit` every object, or every one with these labels, page by page, until it breaks with
/// what it was looking for.
async fn walk<K, T>(
    api: &Api<K>,
    labels: Option<&str>,
    mut visit: impl FnMut(K) -> ControlFlow<T>,
) -> Result<Option<T>, Error>
where
    K: Clone + std::fmt::Debug + DeserializeOwned,
{
    let mut parameters = ListParams::default().limit(PAGE);
    parameters.label_selector = labels.map(str::to_owned);
    loop {
        let page = api.list(&parameters).await?;
        for object in page.items {
            if let ControlFlow::Break(found) = visit(object) {
                return Ok(Some(found));
            }
        }
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => parameters.continue_token = Some(token),
            None => return Ok(None),
        }
    }
}
