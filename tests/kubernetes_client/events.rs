//! What is told of which object, how often, and what happens when the API server does not listen.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use cinderblock::kube::events::{SAID, TOGETHER};
use cinderblock::kube::{Event, Recorder, Subject};
use serde_json::{Value, json};

use crate::api::{Api, Mood};
use crate::{DRIVER, until};

const ID: &str = "lab/rbd/csi-pvc-1";

fn claim() -> Subject {
    Subject::Claim { namespace: "shop".to_string(), name: "data".to_string() }
}

fn flattening(percent: u64) -> Event {
    Event::FlattenInProgress { progress: format!("flattening rbd/a ({percent} %)") }
}

fn in_use() -> Event {
    Event::VolumeInUse { why: "rbd/a is published to node n".to_string() }
}

/// How many requests were made of this kind.
fn count(api: &Api, requests: &str) -> usize {
    api.requests().iter().filter(|request| request.starts_with(requests)).count()
}

fn message(event: &Value) -> &str {
    event["message"].as_str().unwrap()
}

#[test]
fn the_subject_is_what_the_sidecars_say() {
    let parameters = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_string(), (*value).to_string())).collect()
    };
    let named = parameters(&[
        ("csi.storage.k8s.io/pvc/name", "data"),
        ("csi.storage.k8s.io/pvc/namespace", "shop"),
        ("csi.storage.k8s.io/volumesnapshot/name", "s"),
        ("csi.storage.k8s.io/volumesnapshot/namespace", "shop"),
    ]);
    assert_eq!(Subject::of_new_volume(&named, ID), claim());
    let snapshot = Subject::Snapshot { namespace: "shop".to_string(), name: "s".to_string() };
    assert_eq!(Subject::of_new_snapshot(&named, ID), snapshot);
    let half = parameters(&[("csi.storage.k8s.io/pvc/name", "data")]);
    assert_eq!(Subject::of_new_volume(&half, ID), Subject::Volume(ID.to_string()));
    assert_eq!(Subject::of_new_snapshot(&half, ID), Subject::Volume(ID.to_string()));
}

#[tokio::test]
async fn an_event_is_where_its_user_looks_and_says_whose_it_is() {
    let api = Api::new();
    api.claim("shop", "data");
    let recorder = Recorder::new(api.client(), DRIVER);
    recorder.tell(&claim(), in_use());
    let event = until("the event", || api.event("VolumeInUse")).await;
    assert_eq!(
        event["involvedObject"],
        json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": "shop", "name": "data",
               "uid": "uid of data"})
    );
    assert_eq!(event["metadata"]["namespace"], "shop");
    assert_eq!(event["type"], "Warning");
    assert_eq!(message(&event), "rbd/a is published to node n");
    assert_eq!(
        (&event["source"]["component"], &event["reportingComponent"]),
        (&json!(DRIVER), &json!(DRIVER))
    );
    assert_eq!(event["count"], 1);
    assert_eq!(event["firstTimestamp"], event["lastTimestamp"]);
    // What is no trouble is no warning.
    recorder.tell(&claim(), flattening(3));
    let event = until("the event", || api.event("FlattenInProgress")).await;
    assert_eq!(event["type"], "Normal");
    // The API's own form, to the second.
    let time = event["firstTimestamp"].as_str().unwrap();
    assert!(time.len() == "2026-11-28T03:04:05Z".len() && time.ends_with('Z'), "{time}");
}

#[tokio::test(start_paused = true)]
async fn the_same_thing_again_is_one_event_that_counts() {
    let api = Api::new();
    api.claim("shop", "data");
    let recorder = Recorder::new(api.client(), DRIVER);
    for percent in [1, 20, 300] {
        recorder.tell(&claim(), flattening(percent));
    }
    let is_counted = |count: i32| {
        let api = api.clone();
        move || api.event("FlattenInProgress").filter(|event| event["count"] == count)
    };
    let event = until("the third time", is_counted(3)).await;
    assert!(message(&event).contains("300 %"), "{event:#}");
    // The same words just now are counted only, and shown with the next.
    let patches = count(&api, "PATCH");
    recorder.tell(&claim(), flattening(300));
    recorder.tell(&claim(), in_use());
    until("what comes after it", || api.event("VolumeInUse")).await;
    assert_eq!(count(&api, "PATCH"), patches);
    tokio::time::advance(SAID).await;
    recorder.tell(&claim(), flattening(300));
    until("the fifth time", is_counted(5)).await;
    // Each subject has its own.
    api.claim("shop", "more");
    recorder.tell(
        &Subject::Claim { namespace: "shop".to_string(), name: "more".to_string() },
        flattening(1),
    );
    until("the other claim's", || (api.events().len() == 3).then_some(())).await;
    // Long after, it is a new event.
    tokio::time::advance(TOGETHER).await;
    recorder.tell(&claim(), flattening(400));
    until("the new one", || (api.events().len() == 4).then_some(())).await;
    assert_eq!(count(&api, "GET"), 3, "an object was looked up again: {:?}", api.requests());
}

#[tokio::test]
async fn an_event_that_kubernetes_forgot_is_made_anew() {
    let api = Api::new();
    api.claim("shop", "data");
    let recorder = Recorder::new(api.client(), DRIVER);
    recorder.tell(&claim(), flattening(1));
    let event = until("the event", || api.event("FlattenInProgress")).await;
    let name = event["metadata"]["name"].as_str().unwrap();
    api.remove(&format!("/api/v1/namespaces/shop/events/{name}"));
    recorder.tell(&claim(), flattening(2));
    let event = until("the event", || api.event("FlattenInProgress")).await;
    assert_ne!(event["metadata"]["name"], name);
}

#[tokio::test]
async fn a_volume_is_found_by_its_usual_name_or_by_looking_and_its_claim_is_told() {
    let api = Api::new();
    api.volume("pvc-1", DRIVER, ID, Some(("shop", "data")));
    let recorder = Recorder::new(api.client(), DRIVER);
    recorder.tell(&Subject::Volume(ID.to_string()), in_use());
    let event = until("the event", || api.event("VolumeInUse")).await;
    assert_eq!(event["involvedObject"]["kind"], "PersistentVolumeClaim");
    assert_eq!(event["involvedObject"]["uid"], "uid of data");
    assert_eq!(event["involvedObject"].get("resourceVersion"), None, "that is of another time");
    assert_eq!(count(&api, "GET /api/v1/persistentvolumes"), 1, "{:?}", api.requests());

    // The usual name is another driver's, the volume is on the last of several pages, and no claim
    // has it.
    let id = "lab/rbd/csi-pvc-2";
    api.volume("pvc-2", "other.example.com", id, Some(("shop", "foreign")));
    for number in 0..1100 {
        api.volume(&format!("a-{number:04}"), DRIVER, &format!("lab/rbd/csi-a-{number:04}"), None);
    }
    api.volume("zz", DRIVER, id, None);
    recorder.tell(&Subject::Volume(id.to_string()), flattening(1));
    let event = until("the event", || api.event("FlattenInProgress")).await;
    assert_eq!(event["involvedObject"]["kind"], "PersistentVolume");
    assert_eq!(event["involvedObject"]["name"], "zz");
    assert_eq!(event["metadata"]["namespace"], "default");

    // The driver tells nothing of an object that Kubernetes does not know.
    recorder.tell(&Subject::Volume("lab/rbd/csi-pvc-3".to_string()), in_use());
    recorder.tell(
        &Subject::Claim { namespace: "shop".to_string(), name: "gone".to_string() },
        in_use(),
    );
    recorder.tell(
        &Subject::Snapshot { namespace: "shop".to_string(), name: "gone".to_string() },
        in_use(),
    );
    let last = format!("GET {}", snapshot("shop", "gone"));
    until("the last look", || api.requests().contains(&last).then_some(())).await;
    assert_eq!(api.events().len(), 2);
}

#[tokio::test]
async fn where_the_claims_namespace_ends_the_volume_is_told() {
    let api = Api::new();
    api.volume("pvc-1", DRIVER, ID, Some(("shop", "data")));
    api.end_namespace("shop");
    let recorder = Recorder::new(api.client(), DRIVER);
    recorder.tell(&Subject::Volume(ID.to_string()), in_use());
    let event = until("the event", || api.event("VolumeInUse")).await;
    assert_eq!(event["involvedObject"]["kind"], "PersistentVolume");
    assert_eq!(event["involvedObject"]["name"], "pvc-1");
}

#[tokio::test]
async fn what_goes_with_the_answer_is_looked_up_before() {
    let api = Api::new();
    api.volume("pvc-1", DRIVER, ID, Some(("shop", "data")));
    let recorder = Recorder::new(api.client(), DRIVER);
    let subject = Subject::Volume(ID.to_string());
    recorder.expect(&subject);
    until("the look", || (count(&api, "GET") == 1).then_some(())).await;
    api.remove("/api/v1/persistentvolumes/pvc-1");
    recorder.tell(
        &subject,
        Event::VolumeDataRetained { snapshots: Vec::new(), by_others: Vec::new(), clones: 2 },
    );
    let event = until("the event", || api.event("VolumeDataRetained")).await;
    assert_eq!(event["involvedObject"]["name"], "data");
    assert!(message(&event).contains("the volumes made from it (2)"), "{event:#}");
}

fn snapshot(namespace: &str, name: &str) -> String {
    format!("/apis/snapshot.storage.k8s.io/v1/namespaces/{namespace}/volumesnapshots/{name}")
}

#[tokio::test]
async fn snapshots_are_told_by_the_names_their_users_know() {
    let api = Api::new();
    api.claim("shop", "data");
    let content = |uid: &str, handle: &str| {
        api.put(
            &format!("/apis/snapshot.storage.k8s.io/v1/volumesnapshotcontents/snapcontent-{uid}"),
            json!({
                "metadata": {},
                "spec": {"volumeSnapshotRef": {"namespace": "shop", "name": format!("user-{uid}")}},
                "status": {"snapshotHandle": handle},
            }),
        );
    };
    let known = "lab/rbd/10ab@csi-snap-snapshot-1";
    content("1", known);
    content("2", "another driver's");
    let recorder = Recorder::new(api.client(), DRIVER);
    let snapshots = [
        known,
        "lab/rbd/10ab@csi-snap-snapshot-2",
        "lab/rbd/10ab@csi-snap-snapshot-3",
        "lab/rbd/10ab@by-hand",
    ];
    let snapshots: Vec<_> = snapshots.map(str::to_string).into();
    let by_others = vec!["rbd/csi-pvc-1.deleted@by-hand".to_string()];
    recorder.tell(
        &claim(),
        Event::VolumeDataRetained { snapshots: snapshots.clone(), by_others, clones: 0 },
    );
    let event = until("the event", || api.event("VolumeDataRetained")).await;
    assert_eq!(
        message(&event),
        "the volume is deleted; its data stay in the pool until these snapshots are deleted: shop/user-1 \
         (lab/rbd/10ab@csi-snap-snapshot-1), lab/rbd/10ab@csi-snap-snapshot-2, lab/rbd/10ab@csi-snap-snapshot-3, \
         lab/rbd/10ab@by-hand, and these snapshots, which another tool made, are removed: rbd/csi-pvc-1.deleted@by-hand"
    );
    // However many there are, the API takes it.
    let volume = "rbd/csi-pvc-1".to_string();
    let snapshots = snapshots.into_iter().cycle().take(100).collect();
    recorder.tell(&claim(), Event::DeletionWaitsForSnapshots { volume, snapshots });
    let event = until("the event", || api.event("DeletionWaitsForSnapshots")).await;
    assert!(message(&event).contains("delete shop/user-1"), "{event:#}");

    api.put(&snapshot("shop", "s"), json!({"metadata": {"namespace": "shop", "uid": "uid of s"}}));
    recorder.tell(
        &Subject::Snapshot { namespace: "shop".to_string(), name: "s".to_string() },
        flattening(1),
    );
    let event = until("the event", || api.event("FlattenInProgress")).await;
    assert_eq!(
        event["involvedObject"],
        json!({"apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshot", "namespace": "shop", "name": "s",
               "uid": "uid of s"})
    );
}

#[tokio::test(start_paused = true)]
async fn an_api_server_that_is_away_costs_events_and_nothing_else() {
    let api = Api::new();
    api.claim("shop", "data");
    let recorder = Recorder::new(api.client(), DRIVER);
    for mood in [Mood::Refusing(500), Mood::Refusing(403), Mood::Hanging] {
        api.set_mood(mood);
        let before = api.requests().len();
        let began = Instant::now();
        recorder.tell(&claim(), in_use());
        assert!(began.elapsed() < Duration::from_millis(100));
        until("the attempt", || (api.requests().len() > before).then_some(())).await;
    }
    // More than the recorder should have to remember.
    let began = Instant::now();
    for percent in 0..100_000 {
        recorder.tell(&claim(), flattening(percent));
    }
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    // The one that hangs is given up, and the next ones are recorded.
    api.set_mood(Mood::Up);
    tokio::time::advance(Duration::from_mins(1)).await;
    until("what was not dropped", || {
        api.event("FlattenInProgress").filter(|event| event["count"] == 1024)
    })
    .await;
    recorder.tell(&claim(), in_use());
    until("the next", || api.event("VolumeInUse")).await;
    assert_eq!(api.events().len(), 2);
}

#[test]
fn without_kubernetes_nobody_is_told_and_nothing_happens() {
    let recorder = Recorder::default();
    assert!(!recorder.is_on());
    recorder.expect(&claim());
    recorder.tell(&claim(), in_use());
}
