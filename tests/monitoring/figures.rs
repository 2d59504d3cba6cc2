//! What requests leave in the metrics, to the number; what never gets there; and how a scrape fares
//! while a cluster hangs.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use cinderblock::csi::proto::{CreateVolumeRequest, DeleteVolumeRequest, GetSnapshotRequest};
use cinderblock::rbd::{ImageKey, ImageOptions, OmapUpdate, OpenMode};
use serde_json::json;
use tonic::{Code, Request, Status};

use crate::common::bytes::Bytes;
use crate::common::driver::{Class, Driver, MIB, from_volume, lab_config_with_own_user, within};
use crate::common::scrape::{MONITORED, Scrape, get};
use crate::common::{Lab, Namespace, OwnLab, POOL, wait_until};

/// A controller with a user of its own, whose metrics can be read.
fn controller(lab: &Lab, namespace: &str) -> Driver {
    let arguments = [&["--role", "controller", "--log-level", "trace"][..], &MONITORED].concat();
    Driver::start(&lab_config_with_own_user(lab, namespace), &arguments)
}

fn answers(scrape: &Scrape, method: &str, code: &str) -> f64 {
    scrape.sum("rpc_duration_seconds_count", &[("method", method), ("code", code)])
}

/// The id of the request before an error's message.
fn request_id(status: &Status) -> String {
    let rest = status.message().strip_prefix("[request ").unwrap_or_else(|| panic!("{status:?}"));
    rest.split_once("] ").unwrap().0.to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_are_counted_as_they_were_answered() {
    let lab = Lab::from_environment();
    let namespace = Namespace::new(&lab);
    let class = Class::new(&lab, &namespace.name);
    let driver = controller(&lab, &namespace.name);
    let mut rpcs = driver.controller().await;
    let source = rpcs.create_volume(class.create_volume("source", MIB)).await.unwrap();
    let source = source.into_inner().volume.unwrap().volume_id;
    // The same again.
    rpcs.create_volume(class.create_volume("source", MIB)).await.unwrap();
    let clone = |name: &str, class: &Class| CreateVolumeRequest {
        volume_content_source: Some(from_volume(&source)),
        ..class.create_volume(name, MIB)
    };
    rpcs.create_volume(clone("clone", &class)).await.unwrap();
    rpcs.create_volume(clone("copy", &class.clone().with("maxCloneDepth", "0"))).await.unwrap();
    let refused = class.clone().with("no-such-parameter", "1").create_volume("refused", MIB);
    let refused = rpcs.create_volume(refused).await.unwrap_err();
    let scrape = driver.scrape();
    assert_eq!(answers(&scrape, "CreateVolume", "OK"), 4.0);
    assert_eq!(answers(&scrape, "CreateVolume", "INVALID_ARGUMENT"), 1.0);
    assert_eq!(scrape.sum("rpcs_in_flight", &[("method", "CreateVolume")]), 0.0);
    assert_eq!(scrape.sum("operations_in_flight", &[("class", "change")]), 0.0);
    let calls = |call: &str| {
        let labels = [("cluster", "lab"), ("call", call)];
        scrape.sum("ceph_call_duration_seconds_count", &labels)
    };
    assert_eq!((calls("create_image"), calls("clone_image")), (1.0, 2.0));
    assert_eq!((calls("flatten"), calls("remove_image")), (1.0, 0.0));
    // The clone has one ancestor, the copy none.
    assert_eq!(scrape.sum("clone_depth_count", &[]), 2.0);
    assert_eq!(scrape.sum("clone_depth_sum", &[]), 1.0);
    assert_eq!(scrape.sum("ceph_connections", &[("state", "sound")]), 1.0);
    assert_eq!(scrape.sum("cluster_up", &[("cluster", "lab")]), 1.0);
    assert_eq!(scrape.sum("clients_fenced_total", &[]), 0.0);

    // What the error is called, so are its log lines, and those of each call that a request makes.
    let line = |message: &str, id: &str| {
        driver.log().lines().any(|line| line.contains(message) && line.contains(id))
    };
    assert!(line("failed", &request_id(&refused)), "{refused:?}");
    let missing = CreateVolumeRequest {
        volume_content_source: Some(from_volume(&format!("{source}-of-none"))),
        ..class.create_volume("missing", MIB)
    };
    let missing = rpcs.create_volume(missing).await.unwrap_err();
    assert_eq!(missing.code(), Code::NotFound, "{missing:?}");
    assert_ne!(request_id(&missing), request_id(&refused));
    assert!(line("call=\"omap_get\"", &request_id(&missing)), "{}", driver.log());

    let place = source.trim_end_matches("csi-source");
    for name in ["clone", "copy", "source"] {
        let id = format!("{place}csi-{name}");
        rpcs.delete_volume(class.delete_volume(&id)).await.unwrap();
    }
    assert_eq!(answers(&driver.scrape(), "DeleteVolume", "OK"), 3.0);
    namespace.assert_nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_sweeper_finds_is_told_of_the_places_that_the_configuration_names() {
    let lab = Lab::from_environment();
    let (named, other) = (Namespace::new(&lab), Namespace::new(&lab));
    let pool = named.pool(&*lab.connect());
    pool.create_image("thrown-away", 1 << 20, &ImageOptions::default()).unwrap();
    pool.trash_move("thrown-away", 0).unwrap();
    let driver = controller(&lab, &named.name);
    let mut rpcs = driver.controller().await;
    let class = Class::new(&lab, &other.name);
    let volume = rpcs.create_volume(class.create_volume("v", MIB)).await.unwrap();
    let volume = volume.into_inner().volume.unwrap().volume_id;
    let here = [("cluster", "lab"), ("pool", POOL), ("namespace", named.name.as_str())];
    let scrape = wait_until("the trash is looked at", || {
        let scrape = driver.scrape();
        if scrape.sum("trash_images", &here) == 1.0 { Ok(scrape) } else { Err(scrape.text) }
    });
    assert!(scrape.sum("sweeps_total", &[here[0], here[1], here[2], ("outcome", "done")]) >= 1.0);
    assert!(scrape.sum("pool_available_bytes", &[("pool", POOL)]) > 0.0);
    let elsewhere = [("cluster", "lab"), ("pool", POOL), ("namespace", "other")];
    assert!(scrape.sum("sweep_last_success_timestamp_seconds", &elsewhere) > 0.0);
    assert!(!scrape.text.contains(&other.name), "{}", scrape.text);
    rpcs.delete_volume(class.delete_volume(&volume)).await.unwrap();
    let entry = pool.trash_list().unwrap().remove(0);
    pool.trash_remove(&entry.id, true).unwrap();
    other.assert_nothing_is_left();
    named.assert_nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_of_the_journal_is_as_old_as_it_says_for_every_driver() {
    let lab = Lab::from_environment();
    let namespace = Namespace::new(&lab);
    let class = Class::new(&lab, &namespace.name);
    let driver = controller(&lab, &namespace.name);
    let mut rpcs = driver.controller().await;
    let source = rpcs.create_volume(class.create_volume("source", MIB)).await.unwrap();
    let source = source.into_inner().volume.unwrap().volume_id;
    let clone = CreateVolumeRequest {
        volume_content_source: Some(from_volume(&source)),
        ..class.create_volume("clone", MIB)
    };
    let clone = rpcs.create_volume(clone).await.unwrap().into_inner().volume.unwrap().volume_id;
    // That link is said to be about to be cut, an hour ago and more, and never was.
    let pool = namespace.pool(&*lab.connect());
    let id = |name: &str| pool.image_id(name).unwrap().unwrap();
    let image = pool.open_image(ImageKey::Name("csi-clone"), OpenMode::ReadOnly).unwrap();
    let parent = image.parent(None).unwrap().unwrap();
    drop(image);
    let place =
        |image_id: &str| json!({"pool": POOL, "namespace": namespace.name, "image_id": image_id});
    let mut child = place(&id("csi-clone"));
    child["flattened"] = json!(false);
    let mut entry = place(&parent.image_id);
    let since = jiff::Timestamp::now().as_second() - 4000;
    let of_entry = json!({"version": 1, "written": "by hand", "since": since, "image": "csi-source",
               "snapshot": parent.snapshot_id, "child": child});
    entry.as_object_mut().unwrap().extend(of_entry.as_object().unwrap().clone());
    let key = format!("{}@{}#{}", parent.image_id, parent.snapshot_id, id("csi-clone"));
    let update =
        OmapUpdate { set: vec![(key, entry.to_string().into_bytes())], ..OmapUpdate::default() };
    pool.omap_update("cinderblock.default.journal", &update).unwrap();

    let another = controller(&lab, &namespace.name);
    let here = [("pool", POOL), ("namespace", namespace.name.as_str())];
    let age = wait_until("another driver has read the journal", || {
        let scrape = another.scrape();
        let found =
            ["journal_entries", "journal_oldest_entry_seconds"].map(|name| scrape.sum(name, &here));
        if found[0] == 1.0 { Ok(found[1]) } else { Err(scrape.text) }
    });
    assert!((4000.0..4600.0).contains(&age), "{age}");
    // In order: killed, it might leave a watch.
    another.stop();
    for id in [clone, source] {
        rpcs.delete_volume(class.delete_volume(&id)).await.unwrap();
    }
    namespace.assert_nothing_is_left();
}

/// Requests that name what does not exist, and methods that are none, with `mark` in all of them.
async fn provoke(driver: &Driver, class: &Class, mark: &str) {
    let mut rpcs = driver.controller().await;
    for number in 0..20 {
        let name = format!("{mark}-{number}");
        let ids = [
            name.clone(),
            format!("{name}/{POOL}/csi-x"),
            format!("lab/{name}/csi-x"),
            format!("lab/{POOL}/{name}/csi-{name}"),
            format!("lab/{POOL}/{name}\"}} 1\ncinderblock_evil{{x=\""),
        ];
        for id in ids {
            let request = DeleteVolumeRequest { volume_id: id.clone(), ..class.delete_volume(&id) };
            let _ = rpcs.delete_volume(within(10, request)).await;
            let request = GetSnapshotRequest { snapshot_id: id, secrets: class.secrets.clone() };
            let _ = rpcs.get_snapshot(within(10, request)).await;
        }
        let bad = class.clone().with("pool", &name).create_volume(&name, MIB);
        rpcs.create_volume(within(10, bad)).await.unwrap_err();
        for path in [format!("/csi.v1.Controller/{name}"), format!("/{name}/CreateVolume")] {
            let mut grpc = tonic::client::Grpc::new(driver.channel().await);
            grpc.ready().await.unwrap();
            let request = Request::new(Vec::new());
            grpc.unary(request, path.parse().unwrap(), Bytes).await.unwrap_err();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_request_makes_a_series_of_its_own() {
    let lab = Lab::from_environment();
    let namespace = Namespace::new(&lab);
    let class = Class::new(&lab, &namespace.name);
    let driver = controller(&lab, &namespace.name);
    let series = |scrape: &Scrape| scrape.values.keys().cloned().collect::<BTreeSet<_>>();
    provoke(&driver, &class, "hostile").await;
    let before = driver.scrape();
    provoke(&driver, &class, "spiteful").await;
    let after = driver.scrape();
    let new: Vec<_> = series(&after).difference(&series(&before)).cloned().collect();
    assert!(new.is_empty(), "{new:?}");
    for mark in ["hostile", "spiteful", "evil"] {
        assert!(!after.text.contains(mark), "{mark}: {}", after.text);
    }
    assert_eq!(answers(&after, "other", "UNIMPLEMENTED"), 80.0);
    namespace.assert_nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scrape_is_answered_at_once_while_the_cluster_hangs() {
    let lab = OwnLab::up();
    let namespace = lab.namespace("hangs");
    let class = Class::new(&lab, &namespace);
    let driver = controller(&lab, &namespace);
    let mut rpcs = driver.controller().await;
    rpcs.create_volume(class.create_volume("before", MIB)).await.unwrap();
    let port = driver.monitoring();
    assert_eq!(get(port, "/readyz").0, 200);
    for daemon in ["osd", "mon"] {
        lab.daemon("stop", daemon);
    }
    let hanging = rpcs.create_volume(within(20, class.create_volume("after", MIB)));
    let asking = async {
        // Until the request has asked Ceph, and longer than a call may take.
        let began = Instant::now();
        let mut oldest = 0.0_f64;
        while began.elapsed() < Duration::from_secs(19) {
            let scrape = tokio::task::block_in_place(|| driver.scrape());
            oldest = oldest.max(scrape.sum("ceph_calls_in_flight_oldest_seconds", &[]));
            assert_eq!(get(port, "/healthz"), (200, "ok\n".to_owned()));
            assert_eq!(get(port, "/readyz").0, 200);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        oldest
    };
    let (hung, oldest) = tokio::join!(hanging, asking);
    hung.unwrap_err();
    assert!(oldest > 5.0, "no call was seen to hang: {oldest}");
    let scrape = driver.scrape();
    assert!(
        scrape.sum("ceph_call_errors_total", &[("errno", "ETIMEDOUT")]) > 0.0,
        "{}",
        scrape.text
    );
    // Without any monitor it is not ready any more, and says so.
    lab.daemon("kill", "mon");
    let why = wait_until("it is not ready", || match get(port, "/readyz") {
        (503, why) => Ok(why),
        other => Err(other),
    });
    assert!(why.contains("no monitor"), "{why}");
    assert_eq!(driver.scrape().sum("cluster_up", &[("cluster", "lab")]), 0.0);
    assert_eq!(get(port, "/healthz").0, 200);
    assert_eq!(get(port, "/anything").0, 404);
    lab.daemon("start", "mon");
    lab.daemon("cont", "osd");
}
