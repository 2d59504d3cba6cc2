//! What is worth telling, as events on the objects people look at.
//!
//! A caller that tells an event goes on at once: the event is put into a queue, looked up and sent
//! in the background. What does not fit into the queue, or cannot be sent, is dropped and the log
//! says so; nothing is tried twice. Events are for people, and each of them is also said elsewhere:
//! in an answer, or in the log.
//!
//! The same thing told of the same object again, within [`TOGETHER`] of the last time, is one
//! Event, whose count rises and whose message is the latest.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::time::Duration;

use ::kube::Client;
use ::kube::api::{
    Api, ApiResource, DynamicObject, GroupVersionKind, Patch, PatchParams, PostParams,
};
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::{PATIENCE, code, words};
use super::{nodes, volumes};

/// Things told that may wait to be sent.
const QUEUE: usize = 1024;
/// How long after the last time the same thing is still told by the same Event.
pub const TOGETHER: Duration = Duration::from_mins(10);
/// How soon the same message is not sent again, only counted.
pub const SAID: Duration = Duration::from_secs(10);
/// Things remembered; more are forgotten all at once.
const REMEMBERED: usize = 4096;
/// Bytes of a message.
const MESSAGE: usize = 1024;

/// Keys of parameters that the provisioner and the snapshotter add with `--extra-create-metadata`.
const CLAIM: [&str; 2] = ["csi.storage.k8s.io/pvc/namespace", "csi.storage.k8s.io/pvc/name"];
const SNAPSHOT: [&str; 2] =
    ["csi.storage.k8s.io/volumesnapshot/namespace", "csi.storage.k8s.io/volumesnapshot/name"];

/// Something worth telling, because its reader can do something about it or stop wondering.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A request takes long, because an image is flattened: which, how far that is, and why.
    FlattenInProgress {
        /// In words that begin with `flattening`.
        progress: String,
    },
    /// A volume is deleted, and its data stay until nothing depends on them.
    VolumeDataRetained {
        /// The ids of the snapshots it stays for.
        snapshots: Vec<String>,
        /// The specs of the snapshots it stays for that other tools made.
        by_others: Vec<String>,
        /// How many clones it stays for, or how many snapshots with clones.
        clones: usize,
    },
    /// A volume is not deleted, because it may not be while it has snapshots.
    DeletionWaitsForSnapshots {
        /// Its image spec.
        volume: String,
        /// The ids of the snapshots.
        snapshots: Vec<String>,
    },
    /// A volume is not published or deleted, because a node or a client has it.
    VolumeInUse {
        /// Which node or client has it and what to do, as the request was answered.
        why: String,
    },
    /// A node was kept from writing to a volume that it did not let go of.
    NodeFenced {
        /// The id of the node.
        node: String,
        /// The id of the volume.
        volume: String,
        /// The addresses of the node's clients.
        clients: Vec<String>,
    },
    /// The pool of a volume fills.
    PoolNearlyFull {
        /// The pool's name.
        pool: String,
        /// The `clusterID` of its cluster.
        cluster: String,
        /// How much of what it can hold it holds.
        percent: u64,
        /// What it still takes, in words.
        left: String,
    },
}

impl Event {
    /// The word for programs.
    pub fn reason(&self) -> &'static str {
        match self {
            Event::FlattenInProgress { .. } => "FlattenInProgress",
            Event::VolumeDataRetained { .. } => "VolumeDataRetained",
            Event::DeletionWaitsForSnapshots { .. } => "DeletionWaitsForSnapshots",
            Event::VolumeInUse { .. } => "VolumeInUse",
            Event::NodeFenced { .. } => "NodeFenced",
            Event::PoolNearlyFull { .. } => "PoolNearlyFull",
        }
    }

    fn kind(&self) -> &'static str {
        match self {
            Event::FlattenInProgress { .. } | Event::VolumeDataRetained { .. } => "Normal",
            _ => "Warning",
        }
    }
}

/// Whom something is told about.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Subject {
    /// A PersistentVolumeClaim.
    Claim {
        /// Its namespace.
        namespace: String,
        /// Its name there.
        name: String,
    },
    /// A VolumeSnapshot.
    Snapshot {
        /// Its namespace.
        namespace: String,
        /// Its name there.
        name: String,
    },
    /// The volume with this id: the claim that its PersistentVolume is or was bound to, or the
    /// PersistentVolume itself where the claim's namespace takes no events.
    Volume(String),
    /// The node on which the driver goes by this id.
    Node(String),
}

impl Subject {
    /// The claim that a volume is made for, if these parameters of its request say so, else the
    /// volume with this id.
    pub fn of_new_volume(parameters: &BTreeMap<String, String>, volume_id: &str) -> Subject {
        match CLAIM.map(|key| parameters.get(key).cloned()) {
            [Some(namespace), Some(name)] => Subject::Claim { namespace, name },
            _ => Subject::Volume(volume_id.to_string()),
        }
    }

    /// The VolumeSnapshot that a snapshot is made for, if these parameters of its request say so,
    /// else the volume with this id.
    pub fn of_new_snapshot(parameters: &BTreeMap<String, String>, volume_id: &str) -> Subject {
        match SNAPSHOT.map(|key| parameters.get(key).cloned()) {
            [Some(namespace), Some(name)] => Subject::Snapshot { namespace, name },
            _ => Subject::Volume(volume_id.to_string()),
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Subject::Claim { namespace, name } => write!(formatter, "the claim {namespace}/{name}"),
            Subject::Snapshot { namespace, name } => {
                write!(formatter, "the VolumeSnapshot {namespace}/{name}")
            }
            Subject::Volume(id) => write!(formatter, "the volume {id}"),
            Subject::Node(id) => write!(formatter, "the node {id}"),
        }
    }
}

enum Message {
    Expect(Subject),
    Tell(Subject, Event),
}

/// Where things are told. The default one tells nothing.
#[derive(Debug, Clone, Default)]
pub struct Recorder(Option<mpsc::Sender<Message>>);

impl fmt::Debug for Message {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Message::Expect(subject) => write!(formatter, "expect {subject}"),
            Message::Tell(subject, event) => write!(formatter, "{} of {subject}", event.reason()),
        }
    }
}

impl Recorder {
    /// One that records events in Kubernetes in the name of `driver`. To be called inside a Tokio
    /// runtime, where it sends them until its last clone is dropped.
    pub fn new(client: Client, driver: &str) -> Recorder {
        let (sender, mut messages) = mpsc::channel(QUEUE);
        let host = nix::unistd::gethostname()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default();
        let mut sending = Sending {
            client,
            driver: driver.to_string(),
            host,
            objects: HashMap::new(),
            recorded: HashMap::new(),
        };
        tokio::spawn(async move {
            while let Some(message) = messages.recv().await {
                sending.handle(message).await;
            }
        });
        Recorder(Some(sender))
    }

    /// Whether it tells anything.
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Tells something. Never waits.
    pub fn tell(&self, subject: &Subject, event: Event) {
        self.send(Message::Tell(subject.clone(), event));
    }

    /// Says that there may be something to tell of this one soon, when it may be gone already: it
    /// is looked up now. Never waits.
    pub fn expect(&self, subject: &Subject) {
        self.send(Message::Expect(subject.clone()));
    }

    fn send(&self, message: Message) {
        let Some(sender) = &self.0 else { return };
        if let Err(error) = sender.try_send(message) {
            tracing::warn!(%error, "an event is dropped: Kubernetes takes them too slowly");
        }
    }
}

/// What sends.
struct Sending {
    client: Client,
    driver: String,
    host: String,
    objects: HashMap<Subject, (Instant, Vec<core::ObjectReference>)>,
    recorded: HashMap<(Subject, &'static str), Recorded>,
}

/// An Event that was made.
struct Recorded {
    namespace: String,
    name: String,
    message: String,
    count: i32,
    /// When it was last told.
    last: Instant,
    /// When that was last sent.
    sent: Instant,
}

impl Sending {
    async fn handle(&mut self, message: Message) {
        self.forget();
        let what = format!("{message:?}");
        let done = tokio::time::timeout(PATIENCE, async {
            match message {
                Message::Expect(subject) => self.objects(&subject).await.map(drop),
                Message::Tell(subject, event) => self.record(subject, event).await,
            }
        });
        let error = match done.await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => words(&error),
            Err(_) => format!("no answer within {} seconds", PATIENCE.as_secs()),
        };
        tracing::warn!(what, error, "an event is dropped: Kubernetes does not take it");
    }

    fn forget(&mut self) {
        self.objects.retain(|_, (since, _)| since.elapsed() < TOGETHER);
        self.recorded.retain(|_, recorded| recorded.last.elapsed() < TOGETHER);
        if self.objects.len() > REMEMBERED {
            self.objects.clear();
        }
        if self.recorded.len() > REMEMBERED {
            self.recorded.clear();
        }
    }

    async fn record(&mut self, subject: Subject, event: Event) -> Result<(), ::kube::Error> {
        let message = self.message(&event).await;
        let key = (subject, event.reason());
        if let Some(recorded) = self.recorded.get_mut(&key) {
            recorded.count = recorded.count.saturating_add(1);
            recorded.last = Instant::now();
            if recorded.message == message && recorded.sent.elapsed() < SAID {
                return Ok(());
            }
            let change = json!({
                "count": recorded.count,
                "lastTimestamp": Time(now()),
                "message": message,
            });
            let events = Api::<core::Event>::namespaced(self.client.clone(), &recorded.namespace);
            match events.patch(&recorded.name, &PatchParams::default(), &Patch::Merge(change)).await
            {
                // Kubernetes forgets events after an hour or so.
                Err(error) if code(&error) == Some(404) => {}
                other => {
                    recorded.message = message;
                    recorded.sent = Instant::now();
                    return other.map(drop);
                }
            }
        }
        let objects = self.objects(&key.0).await?;
        if objects.is_empty() {
            tracing::debug!(subject = %key.0, reason = key.1, "no event is recorded: Kubernetes does not know it");
            return Ok(());
        }
        let mut refusal = None;
        for object in objects {
            let namespace = object.namespace.clone().unwrap_or_else(|| "default".to_string());
            let events = Api::<core::Event>::namespaced(self.client.clone(), &namespace);
            let new = self.event(&event, &message, &namespace, object);
            match events.create(&PostParams::default(), &new).await {
                Ok(made) => {
                    let recorded = Recorded {
                        namespace,
                        name: made.metadata.name.unwrap_or_default(),
                        message,
                        count: 1,
                        last: Instant::now(),
                        sent: Instant::now(),
                    };
                    self.recorded.insert(key, recorded);
                    return Ok(());
                }
                // The namespace is gone, or about to be.
                Err(error) if matches!(code(&error), Some(403 | 404)) => refusal = Some(error),
                Err(error) => return Err(error),
            }
        }
        refusal.map_or(Ok(()), Err)
    }

    fn event(
        &self,
        event: &Event,
        message: &str,
        namespace: &str,
        object: core::ObjectReference,
    ) -> core::Event {
        core::Event {
            metadata: ObjectMeta {
                generate_name: object.name.as_ref().map(|name| format!("{name}.")),
                namespace: Some(namespace.to_string()),
                ..ObjectMeta::default()
            },
            involved_object: object,
            type_: Some(event.kind().to_string()),
            reason: Some(event.reason().to_string()),
            message: Some(message.to_string()),
            count: Some(1),
            first_timestamp: Some(Time(now())),
            last_timestamp: Some(Time(now())),
            source: Some(core::EventSource {
                component: Some(self.driver.clone()),
                host: Some(self.host.clone()),
            }),
            reporting_component: Some(self.driver.clone()),
            reporting_instance: Some(self.host.clone()),
            ..core::Event::default()
        }
    }

    async fn message(&self, event: &Event) -> String {
        let mut text = match event {
            Event::FlattenInProgress { progress } => {
                format!("{progress}; nothing is wrong, it goes on by itself")
            }
            Event::VolumeDataRetained { snapshots, by_others, clones } => {
                let mut until = Vec::new();
                if !snapshots.is_empty() {
                    let names = self.snapshots(snapshots).await;
                    until.push(format!("these snapshots are deleted: {names}"));
                }
                if !by_others.is_empty() {
                    let names = by_others.join(", ");
                    until.push(format!(
                        "these snapshots, which another tool made, are removed: {names}"
                    ));
                }
                if *clones != 0 {
                    until.push(format!(
                        "the volumes made from it ({clones}) are deleted or flattened"
                    ));
                }
                format!(
                    "the volume is deleted; its data stay in the pool until {}",
                    until.join(", and ")
                )
            }
            Event::DeletionWaitsForSnapshots { volume, snapshots } => format!(
                "{volume} is not deleted while it has snapshots, as its class wants it (deleteWithSnapshots=refuse): delete {}",
                self.snapshots(snapshots).await
            ),
            Event::VolumeInUse { why } => why.clone(),
            Event::NodeFenced { node, volume, clients } => format!(
                "node {node} had not let go of the volume {volume} and is kept from writing to it: its clients {} are on Ceph's \
                 blocklist; pods on it that still use the volume get I/O errors, end them there",
                clients.join(", ")
            ),
            Event::PoolNearlyFull { pool, cluster, percent, left } => format!(
                "the pool {pool} of the cluster {cluster} is {percent} % full, {left} are left: add disks, raise its quota, or delete \
                 volumes and snapshots"
            ),
        };
        text.truncate(text.floor_char_boundary(MESSAGE));
        text
    }

    /// The snapshots as people know them, where that can be found out.
    async fn snapshots(&self, ids: &[String]) -> String {
        let mut names = Vec::new();
        for id in ids {
            names.push(match self.snapshot_with_id(id).await {
                Ok(Some(name)) => format!("{name} ({id})"),
                Ok(None) => id.clone(),
                Err(error) => {
                    tracing::debug!(
                        id,
                        error = words(&error),
                        "whose snapshot that is cannot be told"
                    );
                    id.clone()
                }
            });
        }
        names.join(", ")
    }

    /// The namespace and name of a snapshot. The names of both a snapshot and its
    /// VolumeSnapshotContent are made of the uid of the VolumeSnapshot.
    async fn snapshot_with_id(&self, id: &str) -> Result<Option<String>, ::kube::Error> {
        let Some((_, uid)) = id.rsplit_once("snapshot-") else { return Ok(None) };
        let kind = snapshot_kind("VolumeSnapshotContent", "volumesnapshotcontents");
        let contents = Api::<DynamicObject>::all_with(self.client.clone(), &kind);
        let Some(content) = contents.get_opt(&format!("snapcontent-{uid}")).await? else {
            return Ok(None);
        };
        let text = |path: &str| content.data.pointer(path).and_then(serde_json::Value::as_str);
        if text("/status/snapshotHandle") != Some(id) {
            return Ok(None);
        }
        let reference =
            (text("/spec/volumeSnapshotRef/namespace"), text("/spec/volumeSnapshotRef/name"));
        Ok(match reference {
            (Some(namespace), Some(name)) => Some(format!("{namespace}/{name}")),
            _ => None,
        })
    }

    /// The objects that events about the subject are recorded on: the first whose namespace takes
    /// events. None when Kubernetes does not know it.
    async fn objects(
        &mut self,
        subject: &Subject,
    ) -> Result<Vec<core::ObjectReference>, ::kube::Error> {
        if let Some((_, objects)) = self.objects.get(subject) {
            return Ok(objects.clone());
        }
        let objects = self.look_up(subject).await?;
        if !objects.is_empty() {
            self.objects.insert(subject.clone(), (Instant::now(), objects.clone()));
        }
        Ok(objects)
    }

    async fn look_up(
        &self,
        subject: &Subject,
    ) -> Result<Vec<core::ObjectReference>, ::kube::Error> {
        let client = self.client.clone();
        Ok(match subject {
            Subject::Claim { namespace, name } => {
                let claims = Api::<core::PersistentVolumeClaim>::namespaced(client, namespace);
                let found = claims.get_metadata_opt(name).await?;
                found
                    .map(|claim| reference("v1", "PersistentVolumeClaim", claim.metadata))
                    .into_iter()
                    .collect()
            }
            Subject::Snapshot { namespace, name } => {
                let kind = snapshot_kind("VolumeSnapshot", "volumesnapshots");
                let found = Api::<DynamicObject>::namespaced_with(client, namespace, &kind)
                    .get_opt(name)
                    .await?;
                found
                    .map(|snapshot| reference(&kind.api_version, &kind.kind, snapshot.metadata))
                    .into_iter()
                    .collect()
            }
            Subject::Volume(id) => {
                let Some(volume) = volumes::with_id(&client, &self.driver, id).await? else {
                    return Ok(Vec::new());
                };
                let claim = volume.spec.and_then(|spec| spec.claim_ref).map(|claim| {
                    core::ObjectReference {
                        api_version: Some("v1".to_string()),
                        kind: Some("PersistentVolumeClaim".to_string()),
                        resource_version: None,
                        ..claim
                    }
                });
                let volume = reference("v1", "PersistentVolume", volume.metadata);
                claim.into_iter().chain([volume]).collect()
            }
            Subject::Node(id) => {
                let name = nodes::node_name(&client, &self.driver, id).await?;
                let found = Api::<core::Node>::all(client).get_metadata_opt(&name).await?;
                found.map(|node| reference("v1", "Node", node.metadata)).into_iter().collect()
            }
        })
    }
}

fn reference(api_version: &str, kind: &str, metadata: ObjectMeta) -> core::ObjectReference {
    core::ObjectReference {
        api_version: Some(api_version.to_string()),
        kind: Some(kind.to_string()),
        namespace: metadata.namespace,
        name: metadata.name,
        uid: metadata.uid,
        ..core::ObjectReference::default()
    }
}

/// A kind of the snapshot controller's, which Kubernetes itself does not know.
fn snapshot_kind(kind: &str, plural: &str) -> ApiResource {
    ApiResource::from_gvk_with_plural(
        &GroupVersionKind::gvk("snapshot.storage.k8s.io", "v1", kind),
        plural,
    )
}

/// Now, to the second, as these fields have it.
fn now() -> Timestamp {
    let now = Timestamp::now();
    Timestamp::from_second(now.as_second()).unwrap_or(now)
}
