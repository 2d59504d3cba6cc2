//! Daemons that stop, pause and die, pools and clusters that hang (F5, F6).

use std::time::{Duration, Instant};

use cinderblock::csi::proto::{CreateVolumeRequest, GetCapacityRequest, ListVolumesRequest};
use cinderblock::rbd::{ImageKey, OpenMode};
use tokio::task::JoinSet;
use tonic::{Code, Status};

use crate::common::driver::{
    Class, Driver, MIB, cluster_config, from_volume, lab_config, lab_config_with_own_user, within,
};
use crate::common::rpcs::Things;
use crate::common::{Lab, Namespace, OwnLab, PATIENCE, POOL};
use crate::lab::{Broken, DEADLINE, Fault, is_back, suffer};

/// One outage from its begin to what is left afterwards: requests are answered in time and not with
/// final codes, service is back by itself, and what was asked for meanwhile can be taken up and
/// removed.
async fn outage(name: &str, begin: &dyn Fn(&OwnLab), end: &dyn Fn(&OwnLab)) {
    let lab = Broken::lab().await;
    let namespace = Namespace::new(&lab);
    let class = Class::new(&lab, &namespace.name);
    let driver = Driver::controller_for(&lab);
    let things = Things::make(&driver, &class, "v").await;
    let fault = Fault::new(&lab, begin, end);
    let answers = suffer(&driver, &things, name).await;
    // A pause reaches the driver a moment later.
    assert!(
        answers.iter().any(|answer| answer.outcome.is_err()),
        "the fault was none: {answers:?}"
    );
    fault.over();
    is_back(&driver, &class, name).await;
    things.remove(&driver, name).await;
    namespace.assert_nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_osd_hangs_nobody_beyond_the_deadline() {
    outage("osd-stopped", &|lab| lab.daemon("stop", "osd"), &|lab| lab.daemon("cont", "osd")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_cluster_hangs_nobody_beyond_the_deadline() {
    let ceph = |lab: &OwnLab, verb: &str| drop(lab.run("ceph", &["osd", verb]));
    outage("paused", &|lab| ceph(lab, "pause"), &|lab| ceph(lab, "unpause")).await;
}

/// The RPCs that take or remove a snapshot: its id comes from the monitors.
const NEED_MONITORS: [&str; 2] = ["create_snapshot", "delete_snapshot"];

#[tokio::test(flavor = "multi_thread")]
async fn without_monitors_an_open_connection_serves_all_that_needs_none() {
    let lab = Broken::lab().await;
    let namespace = Namespace::new(&lab);
    let class = Class::new(&lab, &namespace.name);
    let driver = Driver::controller_for(&lab);
    for (begin, end) in [("stop", "cont"), ("kill", "start")] {
        let things = Things::make(&driver, &class, "v").await;
        things.publish(&driver).await;
        let end = |lab: &OwnLab| lab.daemon(end, "mon");
        let fault = Fault::new(&lab, &|lab| lab.daemon(begin, "mon"), &end);
        for _ in 0..3 {
            for answer in suffer(&driver, &things, "no-monitor").await {
                if !NEED_MONITORS.contains(&answer.rpc) {
                    assert!(answer.outcome.is_ok(), "{begin}: {answer:?}");
                }
            }
        }
        fault.over();
        is_back(&driver, &class, &format!("monitor, {begin}")).await;
        things.remove(&driver, "no-monitor").await;
    }
    namespace.assert_nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn without_monitors_a_new_driver_answers_in_time_and_serves_when_they_are_back() {
    let lab = Broken::lab().await;
    let namespace = Namespace::new(&lab);
    let class = Class::new(&lab, &namespace.name);
    let end = |lab: &OwnLab| lab.daemon("cont", "mon");
    let fault = Fault::new(&lab, &|lab| lab.daemon("stop", "mon"), &end);
    let driver = Driver::controller_for(&lab);
    crate::common::wait_until("Probe is ready", || driver.is_ready());
    let answers = suffer(&driver, &Things::imagined(&class), "new-driver").await;
    assert!(answers.iter().all(|answer| answer.outcome.is_err()), "{answers:?}");
    // A caller with time hears why.
    let request = within(20, class.create_volume("new-driver", MIB));
    let status = driver.controller().await.create_volume(request).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert!(status.message().contains("the cluster lab does not answer"), "{}", status.message());
    fault.over();
    is_back(&driver, &class, "new driver without monitors").await;
    let made = format!("lab/{POOL}/{}/csi-new-driver", namespace.name);
    driver.controller().await.delete_volume(class.delete_volume(&made)).await.unwrap();
    namespace.assert_nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_manager_every_rpc_works() {
    let lab = Broken::lab().await;
    let namespace = Namespace::new(&lab);
    let class = Class::new(&lab, &namespace.name);
    let driver =
        Driver::start(&lab_config_with_own_user(&lab, &namespace.name), &["--role", "controller"]);
    let things = Things::make(&driver, &class, "v").await;
    let end = |lab: &OwnLab| lab.daemon("cont", "mgr");
    let fault = Fault::new(&lab, &|lab| lab.daemon("stop", "mgr"), &end);
    for answer in suffer(&driver, &things, "no-manager").await {
        assert!(answer.outcome.is_ok(), "{answer:?}");
    }
    let mut controller = driver.controller().await;
    controller.list_volumes(within(DEADLINE, ListVolumesRequest::default())).await.unwrap();
    controller.get_capacity(within(DEADLINE, GetCapacityRequest::default())).await.unwrap();
    fault.over();
    things.remove(&driver, "no-manager").await;
    namespace.assert_nothing_is_left();
}

/// Sends `count` requests for different volumes of `class` at once, each with a deadline of
/// `seconds`.
async fn crowd(
    driver: &Driver,
    class: &Class,
    count: usize,
    seconds: u64,
) -> Vec<Result<(), Status>> {
    let channel = driver.controller().await;
    let mut running = JoinSet::new();
    for number in 0..count {
        let (mut channel, request) =
            (channel.clone(), class.create_volume(&format!("crowd-{number}"), MIB));
        running
            .spawn(async move { channel.create_volume(within(seconds, request)).await.map(drop) });
    }
    running.join_all().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_that_hangs_takes_no_other_pool_with_it() {
    let lab = Broken::lab().await;
    let namespace = Namespace::new(&lab);
    let healthy = Class::new(&lab, &namespace.name);
    let ceph = |lab: &OwnLab, arguments: &[&str]| drop(lab.run("ceph", arguments));
    ceph(&lab, &["osd", "pool", "create", "hangs", "1"]);
    lab.run("rbd", &["pool", "init", "hangs"]);
    let hangs = Class::new(&lab, "").with("pool", "hangs").without("radosNamespace");
    let driver = Driver::controller_for(&lab);
    let end = |lab: &OwnLab| ceph(lab, &["osd", "pool", "set", "hangs", "min_size", "1"]);
    let begin = |lab: &OwnLab| {
        // Two copies on one OSD: the placement groups wait for another.
        ceph(lab, &["osd", "pool", "set", "hangs", "size", "2"]);
        ceph(lab, &["osd", "pool", "set", "hangs", "min_size", "2"]);
    };
    let fault = Fault::new(&lab, &begin, &end);
    let hanging = async {
        let started = Instant::now();
        for outcome in crowd(&driver, &hangs, 150, DEADLINE).await {
            // CANCELLED is the client's own word, when so many answers at once come too late for
            // it.
            let code = outcome.unwrap_err().code();
            assert!(matches!(code, Code::DeadlineExceeded | Code::Cancelled), "{code}");
        }
        let took = started.elapsed();
        assert!(took < PATIENCE, "{took:?}");
    };
    let serving = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        for outcome in crowd(&driver, &healthy, 20, 60).await {
            outcome.unwrap();
        }
    };
    tokio::join!(hanging, serving);
    fault.over();
    is_back(&driver, &hangs, "pool that hung").await;
    // The driver never began what no caller waited for.
    let mut controller = driver.controller().await;
    for class in [&hangs, &healthy] {
        for number in 0..150 {
            let name = format!("csi-crowd-{number}");
            let place = ["pool", "radosNamespace"].map(|key| class.parameters.get(key).cloned());
            let place = place.into_iter().flatten().collect::<Vec<_>>().join("/");
            controller
                .delete_volume(class.delete_volume(&format!("lab/{place}/{name}")))
                .await
                .unwrap();
        }
    }
    drop(driver);
    ceph(&lab, &["osd", "pool", "rm", "hangs", "hangs", "--yes-i-really-really-mean-it"]);
    namespace.assert_nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_hangs_takes_no_other_cluster_with_it() {
    let whole = Lab::from_environment();
    let namespace = Namespace::new(&whole);
    let lab = Broken::lab().await;
    let elsewhere = Namespace::new(&lab);
    let hangs = Class::new(&lab, &elsewhere.name).with("clusterID", "hangs");
    let serves = Class::new(&whole, &namespace.name);
    let config = format!("{}{}", cluster_config("hangs", &lab), lab_config(&whole));
    let driver = Driver::start(&config, &["--role", "controller", "--log-level", "trace"]);
    crowd(&driver, &hangs, 1, DEADLINE).await.remove(0).unwrap();
    let end = |lab: &OwnLab| ["osd", "mon"].iter().for_each(|daemon| lab.daemon("cont", daemon));
    let begin = |lab: &OwnLab| ["osd", "mon"].iter().for_each(|daemon| lab.daemon("stop", daemon));
    let fault = Fault::new(&lab, &begin, &end);
    let hanging = crowd(&driver, &hangs, 200, DEADLINE);
    let serving = async {
        let things = Things::make(&driver, &serves, "v").await;
        for answer in suffer(&driver, &things, "serves").await {
            assert!(answer.outcome.is_ok(), "{answer:?}");
        }
        things.remove(&driver, "serves").await;
    };
    let (hanging, ()) = tokio::join!(hanging, serving);
    assert!(hanging.iter().any(Result::is_err));
    fault.over();
    is_back(&driver, &hangs, "cluster that hung").await;
    let mut controller = driver.controller().await;
    for number in 0..200 {
        let id = format!("hangs/{POOL}/{}/csi-crowd-{number}", elsewhere.name);
        controller.delete_volume(hangs.delete_volume(&id)).await.unwrap();
    }
    for namespace in [elsewhere, namespace] {
        namespace.assert_nothing_is_left();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_a_flatten_hears_how_far_it_is() {
    let lab = Broken::lab().await;
    let namespace = Namespace::new(&lab);
    let class = Class::new(&lab, &namespace.name).with("objectSize", "4096");
    let driver = Driver::controller_for(&lab);
    let mut controller = driver.controller().await;
    let source = controller.create_volume(class.create_volume("source", 8 * MIB)).await.unwrap();
    let source = source.into_inner().volume.unwrap().volume_id;
    let pool = namespace.pool(&*lab.connect());
    let image = pool.open_image(ImageKey::Name("csi-source"), OpenMode::ReadWrite).unwrap();
    image.write_at(0, &vec![7; 8 << 20]).unwrap();
    drop((image, pool));

    let delay = |lab: &OwnLab, probability: &str| {
        for (option, value) in [("probability", probability), ("duration", "0.05")] {
            let option = format!("osd_debug_inject_dispatch_delay_{option}");
            lab.run("ceph", &["config", "set", "osd", &option, value]);
        }
    };
    let end = |lab: &OwnLab| delay(lab, "0");
    let fault = Fault::new(&lab, &|lab| delay(lab, "1"), &end);
    let copy = || CreateVolumeRequest {
        volume_content_source: Some(from_volume(&source)),
        ..class.clone().with("maxCloneDepth", "0").create_volume("copy", 8 * MIB)
    };
    let spec = format!("{POOL}/{}/csi-copy", namespace.name);
    let id = format!("lab/{spec}");
    let give_up = Instant::now() + PATIENCE;
    let tells = |status: &Status| {
        let message = status.message();
        message.contains(&format!("flattening {spec} (")) && message.contains(" %)")
    };
    // The same request joins, and hears it when its deadline comes; another one is refused, and
    // hears it at once.
    loop {
        let status = controller.create_volume(within(1, copy())).await.unwrap_err();
        assert!(matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled), "{status:?}");
        if tells(&status) {
            break;
        }
        assert!(Instant::now() < give_up, "{status:?}");
    }
    let status = controller.delete_volume(class.delete_volume(&id)).await.unwrap_err();
    assert_eq!(status.code(), Code::Aborted, "{status:?}");
    assert!(
        tells(&status) && status.message().contains("CreateVolume holds volume"),
        "{}",
        status.message()
    );
    fault.over();
    controller.create_volume(copy()).await.unwrap();
    for id in [&id, &source] {
        controller.delete_volume(class.delete_volume(id)).await.unwrap();
    }
    namespace.assert_nothing_is_left();
}
