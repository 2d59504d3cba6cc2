//! A pool in which much is flattened, on the model: what pods wait for goes on.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use cinderblock::csi::clusters::Clusters;
use cinderblock::csi::config::Config;
use cinderblock::csi::controller::ControllerService;
use cinderblock::csi::proto::controller_server::Controller;
use cinderblock::csi::proto::volume_capability::access_mode::Mode;
use cinderblock::csi::proto::volume_capability::{AccessMode, AccessType, MountVolume};
use cinderblock::csi::proto::volume_content_source::{SnapshotSource, Type, VolumeSource};
use cinderblock::csi::proto::{
    CapacityRange, ControllerExpandVolumeRequest, ControllerPublishVolumeRequest,
    ControllerUnpublishVolumeRequest, CreateSnapshotRequest, CreateVolumeRequest,
    DeleteVolumeRequest, VolumeCapability, VolumeContentSource,
};
use cinderblock::rbd::ceph::Timeouts;
use cinderblock::rbd::model::Model;
use tonic::{Code, Request, Response, Status};

/// Restores at the same time: more than a pool has permits for changes.
const RESTORES: usize = 40;
/// How long anything may take here; the machine may be busy.
const LONG: Duration = Duration::from_mins(2);
const SIZE: i64 = 1 << 20;

/// Holds flattens up until it is opened, and counts what comes by.
#[derive(Debug, Default)]
struct Gate {
    open: Mutex<bool>,
    opened: Condvar,
    cloned: AtomicUsize,
    flattening: AtomicUsize,
}

impl Gate {
    fn pass(&self, call: &str) {
        match call {
            "clone_image" => drop(self.cloned.fetch_add(1, Ordering::SeqCst)),
            "flatten" => {
                self.flattening.fetch_add(1, Ordering::SeqCst);
                let open = self.open.lock().unwrap();
                drop(self.opened.wait_while(open, |open| !*open).unwrap());
            }
            _ => {}
        }
    }

    fn open(&self) {
        *self.open.lock().unwrap() = true;
        self.opened.notify_all();
    }
}

/// Opens the gate when a test ends, also when it fails: its runtime waits for what is held up.
struct OpensAtTheEnd(Arc<Gate>);

impl Drop for OpensAtTheEnd {
    fn drop(&mut self) {
        self.0.open();
    }
}

fn controller(model: &Model, gate: &Arc<Gate>) -> ControllerService {
    let (model, gate) = (model.clone(), gate.clone());
    let clusters = Clusters::new(
        Config::parse("- {clusterID: lab, monitors: [m]}").unwrap(),
        "default",
        Timeouts::default(),
        // A client for each request, so that the gate holds up none but flattens.
        Box::new(move |_| {
            let session = model.connect();
            let gate = gate.clone();
            session.on_call(move |call| gate.pass(call.method));
            Ok(session.cluster())
        }),
        Box::new(|_| {}),
    );
    ControllerService::new(Arc::new(clusters), BTreeSet::new(), LONG)
}

fn secrets() -> BTreeMap<String, String> {
    let key = "AQDxMBlm0000ABAAxxxxxxxxxxxxxxxxxxxxxw==";
    BTreeMap::from([("userID".into(), "csi".into()), ("userKey".into(), key.into())])
}

fn capability(mode: Mode) -> VolumeCapability {
    VolumeCapability {
        access_mode: Some(AccessMode { mode: mode.into() }),
        access_type: Some(AccessType::Mount(MountVolume::default())),
    }
}

/// Publishes a volume to a node that reads. The model's drivers take their own connections, one for
/// each request here, for strangers, beside whom a volume is published to no writer.
async fn publish(controller: &ControllerService, id: &str) {
    answered(controller.controller_publish_volume(Request::new(ControllerPublishVolumeRequest {
        volume_id: id.to_owned(),
        node_id: "n".to_owned(),
        volume_capability: Some(capability(Mode::MultiNodeReaderOnly)),
        secrets: secrets(),
        ..ControllerPublishVolumeRequest::default()
    })))
    .await;
}

async fn unpublish(controller: &ControllerService, id: &str) {
    answered(controller.controller_unpublish_volume(Request::new(
        ControllerUnpublishVolumeRequest {
            volume_id: id.to_owned(),
            node_id: "n".to_owned(),
            secrets: secrets(),
        },
    )))
    .await;
}

fn expand(id: &str) -> Request<ControllerExpandVolumeRequest> {
    Request::new(ControllerExpandVolumeRequest {
        volume_id: id.to_owned(),
        capacity_range: Some(CapacityRange { required_bytes: 2 * SIZE, limit_bytes: 0 }),
        secrets: secrets(),
        ..ControllerExpandVolumeRequest::default()
    })
}

fn snapshot(name: &str, source: &str) -> Request<CreateSnapshotRequest> {
    Request::new(CreateSnapshotRequest {
        source_volume_id: source.to_owned(),
        name: name.to_owned(),
        secrets: secrets(),
        ..CreateSnapshotRequest::default()
    })
}

/// A clone of the volume `source`. Chains are one link long, and the source is flattened for that.
fn clone(name: &str, source: &str) -> Request<CreateVolumeRequest> {
    let mut request = volume(name, None);
    request.parameters.extend([
        ("maxCloneDepth".to_owned(), "1".to_owned()),
        ("flattenTarget".to_owned(), "source".to_owned()),
    ]);
    request.volume_content_source = Some(VolumeContentSource {
        r#type: Some(Type::Volume(VolumeSource { volume_id: source.to_owned() })),
    });
    Request::new(request)
}

fn volume(name: &str, snapshot: Option<&str>) -> CreateVolumeRequest {
    let parameters = [("clusterID", "lab"), ("pool", "rbd"), ("flattenOnRestore", "true")];
    let source = |id: &str| VolumeContentSource {
        r#type: Some(Type::Snapshot(SnapshotSource { snapshot_id: id.to_owned() })),
    };
    CreateVolumeRequest {
        name: name.to_owned(),
        capacity_range: Some(CapacityRange { required_bytes: SIZE, limit_bytes: 0 }),
        volume_capabilities: vec![capability(Mode::SingleNodeWriter)],
        parameters: parameters.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
        secrets: secrets(),
        volume_content_source: snapshot.map(source),
        ..CreateVolumeRequest::default()
    }
}

async fn create(controller: &ControllerService, name: &str) -> String {
    let created = controller.create_volume(Request::new(volume(name, None))).await.unwrap();
    created.into_inner().volume.unwrap().volume_id
}

/// The answer to an RPC that must not wait for the flattens.
async fn answered<T>(rpc: impl Future<Output = Result<Response<T>, Status>>) -> T {
    tokio::time::timeout(LONG, rpc).await.unwrap().unwrap().into_inner()
}

#[tokio::test(flavor = "multi_thread")]
async fn flattens_keep_nobody_from_attaching_detaching_and_expanding() {
    let model = Model::new();
    model.create_pool("rbd");
    let gate = Arc::<Gate>::default();
    let _opens = OpensAtTheEnd(gate.clone());
    let controller = controller(&model, &gate);
    let golden = create(&controller, "golden").await;
    let mut others = Vec::new();
    for number in 0..4 {
        others.push(create(&controller, &format!("other-{number}")).await);
    }
    let snapshot = controller.create_snapshot(snapshot("s", &golden)).await.unwrap();
    let snapshot = snapshot.into_inner().snapshot.unwrap().snapshot_id;

    let restores: Vec<_> = (0..RESTORES)
        .map(|number| {
            let (controller, snapshot) = (controller.clone(), snapshot.clone());
            tokio::spawn(async move {
                let request = volume(&format!("restored-{number}"), Some(&snapshot));
                controller.create_volume(Request::new(request)).await.map(drop)
            })
        })
        .collect();
    let begun = Instant::now();
    // All have come as far as their flatten, and only some are let to it.
    while gate.cloned.load(Ordering::SeqCst) < RESTORES
        || gate.flattening.load(Ordering::SeqCst) == 0
    {
        assert!(begun.elapsed() < LONG, "restores wait for the flattens of others: {gate:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }

    for id in &others {
        publish(&controller, id).await;
        answered(controller.controller_expand_volume(expand(id))).await;
        unpublish(&controller, id).await;
    }
    let at_once = gate.flattening.load(Ordering::SeqCst);
    assert!(at_once <= 8, "{at_once} flattens run at once");
    gate.open();
    for restore in restores {
        restore.await.unwrap().unwrap();
    }
    assert!(gate.flattening.load(Ordering::SeqCst) >= RESTORES);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_meets_a_flatten_is_told_at_once_and_attaching_goes_on() {
    let model = Model::new();
    model.create_pool("rbd");
    let gate = Arc::<Gate>::default();
    let _opens = OpensAtTheEnd(gate.clone());
    let controller = controller(&model, &gate);
    let golden = create(&controller, "golden").await;
    let made = controller.create_volume(clone("source", &golden)).await.unwrap();
    let source = made.into_inner().volume.unwrap().volume_id;
    let flattening = tokio::spawn({
        let (controller, source) = (controller.clone(), source.clone());
        async move { controller.create_volume(clone("first", &source)).await.map(drop) }
    });
    let begun = Instant::now();
    while gate.flattening.load(Ordering::SeqCst) == 0 {
        assert!(begun.elapsed() < LONG, "{gate:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }

    let delete = DeleteVolumeRequest { volume_id: source.clone(), secrets: secrets() };
    let answers = [
        controller.create_snapshot(snapshot("s", &source)).await.map(drop),
        controller.create_volume(clone("second", &source)).await.map(drop),
        controller.controller_expand_volume(expand(&source)).await.map(drop),
        controller.delete_volume(Request::new(delete)).await.map(drop),
    ];
    for answer in answers {
        let refused = answer.unwrap_err();
        assert_eq!(refused.code(), Code::Aborted, "{refused:?}");
        assert!(refused.message().contains("flattening rbd/csi-source"), "{refused:?}");
    }
    publish(&controller, &source).await;
    unpublish(&controller, &source).await;

    gate.open();
    flattening.await.unwrap().unwrap();
    controller.create_snapshot(snapshot("s", &source)).await.unwrap();
    controller.create_volume(clone("second", &source)).await.unwrap();
    controller.controller_expand_volume(expand(&source)).await.unwrap();
}
