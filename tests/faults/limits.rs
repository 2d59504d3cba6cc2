//! Clients that hang up, networks that break, monitors that are dead, descriptors that run out, and
//! places that look alike (F4, F6, F7, F28, F29).

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::process::Command;
use std::time::{Duration, Instant};

use cinderblock::csi::proto::*;
use tokio::task::JoinSet;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use crate::common::driver::{Class, Driver, MIB, cluster_config, lab_config, within};
use crate::common::rpcs::Things;
use crate::common::{Lab, Namespace, OwnLab, PATIENCE, POOL, wait_until};
use crate::lab::{Broken, Fault, is_back};

type Controller = controller_client::ControllerClient<Channel>;

fn hasty<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(Duration::from_millis(150));
    request
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_that_never_wait_long_enough_get_there_in_the_end() {
    let lab = Broken::lab().await;
    let namespace = Namespace::new(&lab);
    let class = Class::new(&lab, &namespace.name);
    let driver = Driver::controller_for(&lab);
    let mut controller = driver.controller().await;
    is_back(&driver, &class, "before").await;
    let delay = |lab: &OwnLab, probability: &str| {
        for (option, value) in [("probability", probability), ("duration", "0.1")] {
            let option = format!("osd_debug_inject_dispatch_delay_{option}");
            lab.run("ceph", &["config", "set", "osd", &option, value]);
        }
    };
    let end = |lab: &OwnLab| delay(lab, "0");
    let fault = Fault::new(&lab, &|lab| delay(lab, "1"), &end);
    let open = |code| {
        matches!(code, Code::DeadlineExceeded | Code::Cancelled | Code::Aborted | Code::Unavailable)
    };
    let mut tries = 0;
    let give_up = Instant::now() + PATIENCE;
    let id = loop {
        tries += 1;
        match controller.create_volume(hasty(class.create_volume("hasty", MIB))).await {
            Ok(answer) => break answer.into_inner().volume.unwrap().volume_id,
            Err(status) => assert!(open(status.code()) && Instant::now() < give_up, "{status:?}"),
        }
    };
    assert!(tries > 1, "the first caller did not have to hurry");
    while let Err(status) = controller.delete_volume(hasty(class.delete_volume(&id))).await {
        assert!(open(status.code()) && Instant::now() < give_up, "{status:?}");
    }
    fault.over();
    namespace.assert_nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_break_all_the_time_change_no_answer() {
    let lab = Lab::from_environment();
    let namespace = Namespace::new(&lab);
    let class = Class::new(&lab, &namespace.name);
    let folder = tempfile::tempdir().unwrap();
    let conf = folder.path().join("ceph.conf");
    let whole = std::fs::read_to_string(&lab.ceph_conf).unwrap();
    std::fs::write(&conf, format!("{whole}\n[client]\nms inject socket failures = 100\n")).unwrap();
    let config = format!("- clusterID: lab\n  cephConf: {}\n", conf.display());
    let driver = Driver::start(&config, &["--role", "controller"]);
    for round in ["one", "two"] {
        let things = Things::make(&driver, &class, round).await;
        for answer in things.ask_all(&driver, round, 60).await {
            assert!(answer.outcome.is_ok(), "{answer:?}");
        }
        things.remove(&driver, round).await;
    }
    namespace.assert_nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_monitors_beside_a_live_one_delay_nobody_beyond_a_deadline() {
    let lab = Lab::from_environment();
    let namespace = Namespace::new(&lab);
    let class = Class::new(&lab, &namespace.name);
    // One is silent, one refuses.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let refusing = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let monitors = [silent.local_addr().unwrap(), refusing]
        .map(|address| format!("\"[v2:{address}]\""))
        .join(", ");
    let config = format!("- clusterID: lab\n  monitors: [{monitors}, \"{}\"]\n", lab.monitors);
    for _ in 0..3 {
        let driver = Driver::start(&config, &["--role", "controller"]);
        let request = within(60, class.create_volume("v", MIB));
        let answer = driver.controller().await.create_volume(request).await.unwrap().into_inner();
        let id = answer.volume.unwrap().volume_id;
        driver.controller().await.delete_volume(class.delete_volume(&id)).await.unwrap();
    }
    namespace.assert_nothing_is_left();
}

/// Lets the process have as many file descriptors as it has now, and `more`.
fn limit_descriptors(driver: &Driver, more: usize) {
    let open = std::fs::read_dir(format!("/proc/{}/fd", driver.pid())).unwrap().count();
    set_descriptors(driver, open + more);
}

fn set_descriptors(driver: &Driver, limit: usize) {
    let pid = driver.pid().to_string();
    let done = Command::new("prlimit")
        .args(["--pid", &pid, &format!("--nofile={limit}:")])
        .status()
        .unwrap();
    assert!(done.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_driver_without_file_descriptors_says_so_and_recovers() {
    let lab = Lab::from_environment();
    let namespace = Namespace::new(&lab);
    let class = Class::new(&lab, &namespace.name);
    let driver = Driver::controller_for(&lab);
    let mut controller = driver.controller().await;
    let things = Things::make(&driver, &class, "v").await;
    let (user, key) =
        lab.user("descriptors", &["mon", "profile rbd", "osd", "profile rbd pool=rbd"]);
    for more in [0, 3, 8, 20] {
        limit_descriptors(&driver, more);
        // What needs a new connection to the cluster is told why it gets none.
        let other = class.clone().of_user(&user, &key);
        let status =
            controller.create_volume(within(60, other.create_volume("w", MIB))).await.unwrap_err();
        assert_eq!(status.code(), Code::Unavailable, "{more}: {status:?}");
        assert!(status.message().contains("file descriptors"), "{}", status.message());
        // What has one goes on.
        let request = within(60, class.create_volume("back", MIB));
        let id =
            controller.create_volume(request).await.unwrap().into_inner().volume.unwrap().volume_id;
        controller.delete_volume(class.delete_volume(&id)).await.unwrap();
    }
    limit_descriptors(&driver, 0);
    // The driver turns no client that connects away for good: the client waits.
    let waiting = {
        let channel = driver.channel();
        tokio::time::timeout(Duration::from_secs(1), channel).await.ok()
    };
    set_descriptors(&driver, 1024);
    if let Some(channel) = waiting {
        let mut identity = identity_client::IdentityClient::new(channel);
        identity.probe(within(60, ProbeRequest {})).await.unwrap();
    }
    is_back(&driver, &class.clone().of_user(&user, &key), "file descriptors").await;
    for answer in things.ask_all(&driver, "descriptors", 60).await {
        assert!(answer.outcome.is_ok(), "{answer:?}");
    }
    things.remove(&driver, "descriptors").await;
    drop(driver);
    lab.remove_user(&user);
    namespace.assert_nothing_is_left();
}

/// The names of the images in a namespace.
fn images(lab: &Lab, namespace: &str) -> BTreeSet<String> {
    let list = lab.run("rbd", &["ls", &format!("{POOL}/{namespace}")]);
    list.lines().map(str::to_owned).collect()
}

/// Makes volumes of the same names in both places at once, deletes every other one in the first
/// place, and sees that each place has its own.
async fn are_kept_apart(driver: &Driver, places: [(&Lab, &str, &str); 2]) {
    let classes = places
        .map(|(lab, cluster, namespace)| Class::new(lab, namespace).with("clusterID", cluster));
    let mut made = JoinSet::new();
    for number in 0..10 {
        for (place, class) in classes.iter().enumerate() {
            let request = class
                .create_volume(&format!("v-{number}"), MIB * (1 + i64::try_from(place).unwrap()));
            let mut controller = driver.controller().await;
            made.spawn(async move { controller.create_volume(request).await.map(drop) });
        }
    }
    made.join_all().await.into_iter().for_each(|outcome| outcome.unwrap());
    let all: BTreeSet<_> = (0..10).map(|number| format!("csi-v-{number}")).collect();
    for (lab, _, namespace) in places {
        assert_eq!(images(lab, namespace), all);
    }
    let mut controller = driver.controller().await;
    let id = |place: usize, number: i32| {
        let (_, cluster, namespace) = places[place];
        format!("{cluster}/{POOL}/{namespace}/csi-v-{number}")
    };
    for number in (0..10).step_by(2) {
        controller.delete_volume(classes[0].delete_volume(&id(0, number))).await.unwrap();
    }
    assert_eq!(images(places[0].0, places[0].2).len(), 5);
    assert_eq!(images(places[1].0, places[1].2), all);
    let info = places[1].0.run("rbd", &["info", &format!("{POOL}/{}/csi-v-1", places[1].2)]);
    assert!(info.contains("size 2 MiB"), "{info}");
    for place in [0, 1] {
        for number in 0..10 {
            controller
                .delete_volume(classes[place].delete_volume(&id(place, number)))
                .await
                .unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_clusters_with_the_same_pool_ids_are_kept_apart() {
    let one = Lab::from_environment();
    let two = Broken::lab().await;
    let pool_id = |lab: &Lab| {
        let pools = lab.run("ceph", &["osd", "lspools"]);
        pools.lines().find(|line| line.ends_with(&format!(" {POOL}"))).unwrap().to_owned()
    };
    assert_eq!(pool_id(&one), pool_id(&two), "the pools are told apart by their ids already");
    let (here, there) = (Namespace::new(&one), Namespace::new(&two));
    let config = format!("{}{}", cluster_config("one", &one), cluster_config("two", &two));
    let driver = Driver::start(&config, &["--role", "controller"]);
    are_kept_apart(&driver, [(&one, "one", &here.name), (&two, "two", &there.name)]).await;
    // An id of a cluster that is not in the configuration names nothing this driver could touch.
    let class = Class::new(&one, &here.name);
    let foreign = class.delete_volume(&format!("three/{POOL}/{}/csi-v-1", here.name));
    let status = driver.controller().await.delete_volume(foreign).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    here.assert_nothing_is_left();
    there.assert_nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn two_namespaces_used_at_once_are_kept_apart() {
    let lab = Lab::from_environment();
    let (here, there) = (Namespace::new(&lab), Namespace::new(&lab));
    let driver = Driver::start(&lab_config(&lab), &["--role", "controller"]);
    are_kept_apart(&driver, [(&lab, "lab", &here.name), (&lab, "lab", &there.name)]).await;
    here.assert_nothing_is_left();
    there.assert_nothing_is_left();
}

/// Deletes `count` volumes there are not, each another, all at once.
async fn flood(
    controller: &Controller,
    class: &Class,
    namespace: &str,
    count: usize,
) -> Vec<Result<(), Status>> {
    let mut running = JoinSet::new();
    for number in 0..count {
        let mut controller = controller.clone();
        let request = class.delete_volume(&format!("lab/{POOL}/{namespace}/csi-{number}"));
        running.spawn(async move { controller.delete_volume(request).await.map(drop) });
    }
    running.join_all().await
}

#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_requests_at_once_are_served_in_bounded_memory() {
    let lab = Lab::from_environment();
    let namespace = Namespace::new(&lab);
    let class = Class::new(&lab, &namespace.name);
    let driver = Driver::start(&lab_config(&lab), &["--role", "controller"]);
    let memory = || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", driver.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() >> 10
    };
    let before = memory();
    // A client that begins with more streams than it was allowed may be hung up on; no other client
    // notices.
    let hostile = driver.controller().await;
    let (_, polite) = tokio::join!(flood(&hostile, &class, &namespace.name, 10_000), async {
        let mut polite = driver.controller().await;
        polite.controller_get_capabilities(ControllerGetCapabilitiesRequest {}).await.unwrap();
        flood(&polite, &class, &namespace.name, 1_000).await
    });
    let refused: Vec<_> = polite.into_iter().filter_map(Result::err).collect();
    assert!(refused.is_empty(), "{} were refused, first {:?}", refused.len(), refused[0]);
    let grown = memory().saturating_sub(before);
    println!("11 000 requests at once: {grown} MiB more");
    assert!(grown < 512, "{grown} MiB");
    wait_until("Probe is ready", || driver.is_ready());
    namespace.assert_nothing_is_left();
}
