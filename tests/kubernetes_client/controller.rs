//! A controller with Kubernetes: what it tells when it refuses, waits or leaves something behind,
//! and whom it fences.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use cinderblock::csi::clusters::Clusters;
use cinderblock::csi::config::Config;
use cinderblock::csi::controller::ControllerService;
use cinderblock::csi::proto::controller_server::Controller;
use cinderblock::csi::proto::volume_capability::{
    AccessMode, AccessType, BlockVolume, access_mode,
};
use cinderblock::csi::proto::{
    CapacityRange, ControllerExpandVolumeRequest, ControllerPublishVolumeRequest,
    ControllerUnpublishVolumeRequest, CreateSnapshotRequest, CreateVolumeRequest,
    DeleteVolumeRequest, VolumeCapability, VolumeContentSource, volume_content_source,
};
use cinderblock::kube::nodes::OUT_OF_SERVICE;
use cinderblock::kube::{Nodes, Recorder};
use cinderblock::rbd::ceph::Timeouts;
use cinderblock::rbd::model::{Fault, Model, Session};
use cinderblock::rbd::{Errno, Image, ImageKey, ImageOptions, OmapUpdate, OpenMode, Pool};
use serde_json::Value;
use tonic::{Code, Request, Status};

use crate::api::{Api, Mood};
use crate::{DRIVER, until};

const MIB: i64 = 1 << 20;

struct Lab {
    model: Model,
    session: Session,
    api: Api,
    service: ControllerService,
}

impl Lab {
    fn new() -> Lab {
        let lab = Lab::without_kubernetes();
        let client = lab.api.client();
        let service = lab
            .service
            .clone()
            .with_kubernetes(Recorder::new(client.clone(), DRIVER), Nodes::new(client, DRIVER));
        Lab { service, ..lab }
    }

    fn without_kubernetes() -> Lab {
        let model = Model::new();
        model.create_pool("rbd");
        let session = model.connect();
        let cluster = session.cluster();
        let clusters = Clusters::new(
            Config::parse("- {clusterID: lab, monitors: [m]}").unwrap(),
            "default",
            Timeouts::default(),
            Box::new(move |_| Ok(cluster.clone())),
            Box::new(|_| {}),
        );
        let service =
            ControllerService::new(Arc::new(clusters), BTreeSet::new(), Duration::from_mins(1));
        Lab { model, session, api: Api::new(), service }
    }

    /// A volume as the provisioner makes one for a claim, and its PersistentVolume. Returns its id.
    async fn volume(&self, claim: &str) -> String {
        let id = self.create(create_volume(claim)).await.unwrap();
        self.api.volume(&format!("pvc-{claim}"), DRIVER, &id, Some(("shop", claim)));
        id
    }

    async fn create(&self, request: CreateVolumeRequest) -> Result<String, Status> {
        let made = self.service.create_volume(Request::new(request)).await?;
        Ok(made.into_inner().volume.unwrap().volume_id)
    }

    async fn snapshot(&self, name: &str, volume_id: &str) {
        let request = CreateSnapshotRequest {
            name: name.to_string(),
            source_volume_id: volume_id.to_string(),
            secrets: secrets(),
            ..CreateSnapshotRequest::default()
        };
        self.service.create_snapshot(Request::new(request)).await.unwrap();
    }

    async fn delete(&self, volume_id: &str) -> Result<(), Status> {
        let request = DeleteVolumeRequest { volume_id: volume_id.to_string(), secrets: secrets() };
        self.service.delete_volume(Request::new(request)).await.map(drop)
    }

    /// Returns the publish context.
    async fn publish(
        &self,
        volume_id: &str,
        node: &str,
    ) -> Result<BTreeMap<String, String>, Status> {
        let request = ControllerPublishVolumeRequest {
            volume_id: volume_id.to_string(),
            node_id: node.to_string(),
            volume_capability: Some(block()),
            secrets: secrets(),
            ..ControllerPublishVolumeRequest::default()
        };
        let answer = self.service.controller_publish_volume(Request::new(request)).await?;
        Ok(answer.into_inner().publish_context)
    }

    async fn unpublish(&self, volume_id: &str, node: &str) -> Result<(), Status> {
        let request = ControllerUnpublishVolumeRequest {
            volume_id: volume_id.to_string(),
            node_id: node.to_string(),
            secrets: secrets(),
        };
        self.service.controller_unpublish_volume(Request::new(request)).await.map(drop)
    }

    /// The refusal when fencing fails with `errno`.
    async fn unpublish_without_fencing(&self, errno: Errno, volume_id: &str, node: &str) -> Status {
        // The sweeper's calls count, too: its first sweep ends with a look at the pool's figures.
        until("the first sweep", || (self.looks() > 0).then_some(())).await;
        // A controller that does not fence stops right before.
        let before = self.session.calls();
        let service = self.service.clone().with_fencing(false);
        let request = ControllerUnpublishVolumeRequest {
            volume_id: volume_id.to_string(),
            node_id: node.to_string(),
            secrets: secrets(),
        };
        service.controller_unpublish_volume(Request::new(request)).await.unwrap_err();
        let calls = self.session.calls();
        self.session.inject(calls + (calls - before) + 1, Fault::Fail(errno));
        let refusal = self.unpublish(volume_id, node).await.unwrap_err();
        assert_eq!(self.session.log().last().unwrap().info.method, "blocklist");
        refusal
    }

    /// How often the pool's figures were asked for: once by each sweep, and by looks at pools.
    fn looks(&self) -> usize {
        self.session.log().iter().filter(|record| record.info.method == "stats").count()
    }

    /// A client that has the volume of the claim open.
    fn client_of(&self, claim: &str) -> Box<dyn Image> {
        let pool = self.model.connect().cluster().pool("rbd", "").unwrap();
        pool.open_image(ImageKey::Name(&format!("csi-pvc-{claim}")), OpenMode::ReadWrite).unwrap()
    }

    /// A client that has the volume of the claim open, and is noted as `context` says.
    fn noted_client_of(&self, claim: &str, context: &BTreeMap<String, String>) -> Box<dyn Image> {
        let cluster = self.model.connect().cluster();
        let pool = cluster.pool("rbd", "").unwrap();
        let (object, key) = (&context["noteObject"], &context["noteKey"]);
        let bytes = pool.omap_get(object, &[key]).unwrap().remove(key).unwrap();
        let mut notes: Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(notes["token"], context["noteToken"].as_str());
        let client = serde_json::json!({"address": cluster.address().unwrap(), "boot": "b", "image_id": "i"});
        notes["clients"].as_array_mut().unwrap().push(client);
        let set = vec![(key.clone(), notes.to_string().into_bytes())];
        pool.omap_update(object, &OmapUpdate { set, ..OmapUpdate::default() }).unwrap();
        pool.open_image(ImageKey::Name(&format!("csi-pvc-{claim}")), OpenMode::ReadWrite).unwrap()
    }

    async fn event(&self, reason: &str) -> Value {
        until(reason, || self.api.event(reason)).await
    }
}

fn secrets() -> BTreeMap<String, String> {
    [("userID", "csi"), ("userKey", "AQCU0ARnAAAAABAAfK8wbqI8hcGyMdBbOSGrqg==")]
        .map(|(key, value)| (key.to_string(), value.to_string()))
        .into()
}

fn block() -> VolumeCapability {
    let mode = access_mode::Mode::SingleNodeWriter.into();
    VolumeCapability {
        access_type: Some(AccessType::Block(BlockVolume {})),
        access_mode: Some(AccessMode { mode }),
    }
}

fn create_volume(claim: &str) -> CreateVolumeRequest {
    let parameters = [
        ("clusterID", "lab"),
        ("pool", "rbd"),
        ("csi.storage.k8s.io/pvc/namespace", "shop"),
        ("csi.storage.k8s.io/pvc/name", claim),
    ];
    CreateVolumeRequest {
        name: format!("pvc-{claim}"),
        capacity_range: Some(CapacityRange { required_bytes: MIB, limit_bytes: 0 }),
        volume_capabilities: vec![block()],
        parameters: parameters.map(|(key, value)| (key.to_string(), value.to_string())).into(),
        secrets: secrets(),
        ..CreateVolumeRequest::default()
    }
}

/// Makes an image that holds something.
fn fill(pool: &dyn Pool) {
    pool.create_image("filling", 1 << 20, &ImageOptions::default()).unwrap();
    let filling = pool.open_image(ImageKey::Name("filling"), OpenMode::ReadWrite).unwrap();
    filling.write_at(0, &[1; 4096]).unwrap();
}

fn message(event: &Value) -> &str {
    event["message"].as_str().unwrap()
}

fn writes(image: &dyn Image) -> Result<(), Errno> {
    image.write_at(0, b"from the node").map_err(|error| error.errno)
}

/// A node that is Ready or not, and has a volume in use.
fn with_volume(
    lab: &Lab,
    name: &str,
    node_id: &str,
    taints: &[&str],
    ready: bool,
    volume_id: &str,
) {
    lab.api.node(name, DRIVER, node_id, taints);
    lab.api.status(name, ready, &[format!("kubernetes.io/csi/{DRIVER}^{volume_id}")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_may_be_lost_is_fenced() {
    type Prepare = fn(&Lab, &str);
    let ways: [(&str, Prepare); 4] = [
        ("tainted", |lab, id| with_volume(lab, "worker-1", "i-0815", &[OUT_OF_SERVICE], true, id)),
        ("not ready", |lab, id| with_volume(lab, "worker-1", "i-0815", &[], false, id)),
        ("unmounted", |lab, id| {
            with_volume(lab, "worker-1", "i-0815", &[], true, &format!("{id}-other"));
        }),
        ("deleted", |_, _| {}),
    ];
    for (way, prepare) in ways {
        let lab = Lab::new();
        let id = lab.volume("data").await;
        // The id is no name of a node.
        prepare(&lab, &id);
        let context = lab.publish(&id, "i-0815").await.unwrap();
        let client = lab.noted_client_of("data", &context);
        writes(&*client).unwrap();
        lab.unpublish(&id, "i-0815").await.unwrap();
        assert_eq!(writes(&*client), Err(Errno::ESHUTDOWN), "{way}");
        lab.publish(&id, "other").await.unwrap();
        let told = until("the events", || {
            let events: Vec<_> = lab
                .api
                .events()
                .into_iter()
                .filter(|event| event["reason"] == "NodeFenced")
                .collect();
            (events.len() == if way == "deleted" { 1 } else { 2 }).then_some(events)
        });
        let told = told.await;
        let about = |kind: &str| told.iter().find(|event| event["involvedObject"]["kind"] == kind);
        assert!(
            message(about("PersistentVolumeClaim").unwrap())
                .starts_with("node i-0815 had not let go")
        );
        if way != "deleted" {
            assert_eq!(about("Node").unwrap()["involvedObject"]["name"], "worker-1");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_healthy_node_that_uses_a_volume_is_not_cut_off() {
    let lab = Lab::new();
    let id = lab.volume("data").await;
    with_volume(&lab, "worker-1", "worker-1", &["node.kubernetes.io/unreachable"], true, &id);
    let context = lab.publish(&id, "worker-1").await.unwrap();
    let client = lab.noted_client_of("data", &context);
    let refusal = lab.unpublish(&id, "worker-1").await.unwrap_err();
    assert_eq!(refusal.code(), Code::FailedPrecondition);
    assert!(refusal.message().contains("worker-1 is Ready"), "{refusal}");
    writes(&*client).unwrap();
    let refusal = lab.publish(&id, "other").await.unwrap_err();
    assert!(refusal.message().contains("published to node worker-1"), "{refusal}");
    // It goes on as before.
    assert_eq!(lab.publish(&id, "worker-1").await.unwrap(), context);
    writes(&*client).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn without_fencing_a_volume_stays_published_until_its_node_lets_go() {
    let lab = Lab::without_kubernetes();
    let service = lab.service.clone().with_fencing(false);
    let lab = Lab { service, ..lab };
    let id = lab.volume("data").await;
    let context = lab.publish(&id, "worker-1").await.unwrap();
    let client = lab.noted_client_of("data", &context);
    let refusal = lab.unpublish(&id, "worker-1").await.unwrap_err();
    assert_eq!(refusal.code(), Code::FailedPrecondition);
    assert!(refusal.message().contains("ceph osd blocklist add 192.0.2."), "{refusal}");
    writes(&*client).unwrap();
    lab.publish(&id, "other").await.unwrap_err();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watcher_without_a_note_is_not_fenced_and_said_to_be_in_the_way() {
    let lab = Lab::new();
    let id = lab.volume("data").await;
    lab.api.node("worker-1", DRIVER, "worker-1", &[OUT_OF_SERVICE]);
    lab.publish(&id, "worker-1").await.unwrap();
    let client = lab.client_of("data");
    lab.unpublish(&id, "worker-1").await.unwrap();
    writes(&*client).unwrap();
    // It is not handed on while it is written to, and the claim says why.
    assert_eq!(lab.publish(&id, "other").await.unwrap_err().code(), Code::FailedPrecondition);
    let event = lab.event("VolumeInUse").await;
    assert!(message(&event).contains("is open for writing at 192.0.2."), "{event:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_without_the_right_to_fence_reads_the_command_that_gives_it() {
    let lab = Lab::without_kubernetes();
    let id = lab.volume("data").await;
    let context = lab.publish(&id, "worker-1").await.unwrap();
    let client = lab.noted_client_of("data", &context);
    for (errno, code, words) in [
        (Errno::EPERM, Code::PermissionDenied, "ceph auth caps client.csi mon 'profile rbd'"),
        (Errno::ETIMEDOUT, Code::Unavailable, "does not answer"),
    ] {
        let refusal = lab.unpublish_without_fencing(errno, &id, "worker-1").await;
        assert_eq!(refusal.code(), code, "{refusal}");
        assert!(refusal.message().contains(words), "{refusal}");
        writes(&*client).unwrap();
        lab.publish(&id, "other").await.unwrap_err();
    }
    lab.unpublish(&id, "worker-1").await.unwrap();
    assert_eq!(writes(&*client), Err(Errno::ESHUTDOWN));
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_let_go_while_kubernetes_does_not_say() {
    let lab = Lab::new();
    let id = lab.volume("data").await;
    lab.api.node("worker-1", DRIVER, "worker-1", &[OUT_OF_SERVICE]);
    let context = lab.publish(&id, "worker-1").await.unwrap();
    let client = lab.noted_client_of("data", &context);
    for mood in [Mood::Refusing(403), Mood::Hanging] {
        lab.api.set_mood(mood);
        let began = Instant::now();
        let refusal = lab.unpublish(&id, "worker-1").await.unwrap_err();
        assert_eq!(refusal.code(), Code::Unavailable, "{mood:?}: {refusal}");
        let message = refusal.message();
        assert!(
            message.contains("worker-1") && message.contains("Kubernetes does not say"),
            "{message}"
        );
        assert!(began.elapsed() < Duration::from_secs(40), "{mood:?}: {:?}", began.elapsed());
        writes(&*client).unwrap();
        let published = lab.publish(&id, "other").await.unwrap_err();
        assert!(published.message().contains("published to node worker-1"), "{published}");
    }
    lab.api.set_mood(Mood::Up);
    lab.unpublish(&id, "worker-1").await.unwrap();
    assert_eq!(writes(&*client), Err(Errno::ESHUTDOWN));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_lets_go_in_good_order_depends_on_no_api_server() {
    let lab = Lab::new();
    let id = lab.volume("data").await;
    lab.publish(&id, "worker-1").await.unwrap();
    drop(lab.client_of("data"));
    lab.api.set_mood(Mood::Hanging);
    lab.unpublish(&id, "worker-1").await.unwrap();
    let asked: Vec<_> =
        lab.api.requests().into_iter().filter(|request| request.contains("node")).collect();
    assert!(asked.is_empty(), "{asked:?}");
    lab.delete(&id).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_in_use_says_where() {
    let lab = Lab::new();
    let id = lab.volume("data").await;
    lab.publish(&id, "worker-1").await.unwrap();
    lab.publish(&id, "worker-2").await.unwrap_err();
    let event = lab.event("VolumeInUse").await;
    assert_eq!(event["involvedObject"]["name"], "data");
    assert!(message(&event).contains("published to node worker-1"), "{event:#}");
    lab.delete(&id).await.unwrap_err();
    let event =
        until("the second", || lab.api.event("VolumeInUse").filter(|event| event["count"] == 2))
            .await;
    assert!(message(&event).contains("published to node worker-1"), "{event:#}");
    lab.unpublish(&id, "worker-1").await.unwrap();
    let client = lab.client_of("data");
    lab.delete(&id).await.unwrap_err();
    let event =
        until("the third", || lab.api.event("VolumeInUse").filter(|event| event["count"] == 3))
            .await;
    assert!(message(&event).contains("is open at 192.0.2."), "{event:#}");
    drop(client);
    lab.delete(&id).await.unwrap();
    assert_eq!(lab.api.events().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_volume_tells_for_what_its_data_stay() {
    let lab = Lab::new();
    let id = lab.volume("data").await;
    lab.snapshot("snapshot-1", &id).await;
    let mut clone = create_volume("clone");
    let source = volume_content_source::VolumeSource { volume_id: id.clone() };
    clone.volume_content_source =
        Some(VolumeContentSource { r#type: Some(volume_content_source::Type::Volume(source)) });
    let clone = lab.create(clone).await.unwrap();
    lab.delete(&id).await.unwrap();
    let event = lab.event("VolumeDataRetained").await;
    assert_eq!(
        (&event["involvedObject"]["name"], &event["type"]),
        (&"data".into(), &"Normal".into())
    );
    assert!(
        message(&event).contains("@csi-snap-snapshot-1, and the volumes made from it (1)"),
        "{event:#}"
    );
    // Nothing stays of one that nothing depends on.
    lab.delete(&clone).await.unwrap();
    assert_eq!(lab.api.events().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_that_waits_for_snapshots_tells_for_which() {
    let lab = Lab::new();
    let mut request = create_volume("data");
    request.parameters.insert("deleteWithSnapshots".to_string(), "refuse".to_string());
    let id = lab.create(request).await.unwrap();
    lab.api.volume("pvc-data", DRIVER, &id, Some(("shop", "data")));
    lab.snapshot("snapshot-1", &id).await;
    lab.snapshot("snapshot-2", &id).await;
    assert_eq!(lab.delete(&id).await.unwrap_err().code(), Code::FailedPrecondition);
    let event = lab.event("DeletionWaitsForSnapshots").await;
    let message = message(&event);
    assert!(
        message.contains("@csi-snap-snapshot-1") && message.contains("@csi-snap-snapshot-2"),
        "{message}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_a_flatten_is_told_of_it() {
    let lab = Lab::new();
    lab.api.claim("shop", "copy");
    let source = lab.volume("data").await;
    let (release, wait) = mpsc::channel::<()>();
    lab.session.on_call(move |call| {
        if call.method == "flatten" {
            // Ends when the test does.
            let _ = wait.recv();
        }
    });
    let mut copy = create_volume("copy");
    copy.parameters.insert("maxCloneDepth".to_string(), "0".to_string());
    let of = volume_content_source::VolumeSource { volume_id: source };
    copy.volume_content_source =
        Some(VolumeContentSource { r#type: Some(volume_content_source::Type::Volume(of)) });
    let mut request = Request::new(copy.clone());
    request.set_timeout(Duration::from_millis(500));
    assert_eq!(
        lab.service.create_volume(request).await.unwrap_err().code(),
        Code::DeadlineExceeded
    );
    let event = lab.event("FlattenInProgress").await;
    assert_eq!(event["involvedObject"]["name"], "copy");
    assert!(message(&event).starts_with("flattening rbd/csi-pvc-copy"), "{event:#}");
    assert!(message(&event).contains("because maxCloneDepth is 0"), "{event:#}");
    drop(release);
    lab.create(copy).await.unwrap();
    // Waiting for anything else is told in the answer alone.
    assert_eq!(lab.api.events().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_that_fills_is_told_of_once_a_minute() {
    let lab = Lab::new();
    for claim in ["a", "b", "c"] {
        lab.api.claim("shop", claim);
    }
    lab.volume("a").await;
    until("the first sweep and the first look", || (lab.looks() == 2).then_some(())).await;
    // Not again so soon, whichever claim asks.
    lab.model.set_quota("rbd", Some(1));
    lab.volume("b").await;
    assert_eq!(lab.looks(), 2);

    // A pool that is full when it is looked at first.
    let lab = Lab::new();
    lab.api.claim("shop", "c");
    lab.model.set_quota("rbd", Some(10));
    let pool = lab.session.cluster().pool("rbd", "").unwrap();
    fill(&*pool);
    lab.volume("c").await;
    let event = lab.event("PoolNearlyFull").await;
    assert_eq!(
        (&event["involvedObject"]["name"], &event["type"]),
        (&"c".into(), &"Warning".into())
    );
    assert!(
        message(&event)
            .starts_with("the pool rbd of the cluster lab is 100 % full, 0 MiB are left"),
        "{event:#}"
    );
    // One that takes nothing any more.
    let lab = Lab::new();
    lab.api.claim("shop", "d");
    lab.model.set_quota("rbd", Some(0));
    let pool = lab.session.cluster().pool("rbd", "").unwrap();
    fill(&*pool);
    lab.model.set_full("rbd", Some(Errno::EDQUOT));
    let refusal = lab.create(create_volume("d")).await.unwrap_err();
    assert_eq!(refusal.code(), Code::ResourceExhausted, "{refusal}");
    assert_eq!(lab.event("PoolNearlyFull").await["involvedObject"]["name"], "d");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_server_that_hangs_slows_no_request() {
    let lab = Lab::new();
    lab.api.set_mood(Mood::Hanging);
    let began = Instant::now();
    for round in 0..20 {
        let id = lab.volume(&format!("v{round}")).await;
        let grow = ControllerExpandVolumeRequest {
            volume_id: id.clone(),
            capacity_range: Some(CapacityRange { required_bytes: 2 * MIB, limit_bytes: 0 }),
            secrets: secrets(),
            ..ControllerExpandVolumeRequest::default()
        };
        lab.service.controller_expand_volume(Request::new(grow)).await.unwrap();
        lab.publish(&id, "a").await.unwrap();
        lab.publish(&id, "b").await.unwrap_err();
        lab.delete(&id).await.unwrap_err();
        lab.unpublish(&id, "a").await.unwrap();
        lab.delete(&id).await.unwrap();
    }
    assert!(began.elapsed() < Duration::from_mins(1), "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn without_kubernetes_nothing_is_asked() {
    let lab = Lab::without_kubernetes();
    let id = lab.volume("data").await;
    let context = lab.publish(&id, "worker-1").await.unwrap();
    let client = lab.noted_client_of("data", &context);
    lab.unpublish(&id, "worker-1").await.unwrap();
    assert_eq!(writes(&*client), Err(Errno::ESHUTDOWN));
    lab.publish(&id, "other").await.unwrap();
    assert!(lab.api.requests().is_empty());
}
