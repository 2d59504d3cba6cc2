//! A real Prometheus scrapes a driver at work, and evaluates every alert and every panel of the
//! dashboard.

use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use cinderblock::csi::proto::{ControllerPublishVolumeRequest, CreateVolumeRequest};
use cinderblock::rbd::{ImageKey, OpenMode};
use serde_json::Value;

use crate::common::driver::{
    Class, Driver, MIB, filesystem, from_volume, lab_config_with_own_user,
};
use crate::common::scrape::{MONITORED, get};
use crate::common::{OwnLab, POOL, wait_until};
use crate::expressions::{ALERTS, panels, rules};

/// A running Prometheus. Dropping it ends it.
struct Prometheus {
    process: Child,
    address: SocketAddr,
    _folder: tempfile::TempDir,
}

impl Prometheus {
    /// Starts one that scrapes `target` every second.
    fn start(target: SocketAddr) -> Prometheus {
        let folder = tempfile::tempdir().unwrap();
        let rules = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(ALERTS);
        let config = format!(
            "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\n\
             rule_files: [{}]\n\
             scrape_configs: [{{job_name: cinderblock, static_configs: [{{targets: ['{target}']}}]}}]\n",
            rules.display()
        );
        let file = folder.path().join("prometheus.yaml");
        std::fs::write(&file, config).unwrap();
        // It has no way to choose a free port and tell it.
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let process = Command::new("prometheus")
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()))
            .arg(format!("--web.listen-address={free}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(folder.path().join("log")).unwrap())
            .spawn()
            .unwrap_or_else(|error| panic!("prometheus, Debian's package of that name: {error}"));
        let prometheus = Prometheus { process, address: free, _folder: folder };
        wait_until("Prometheus is ready", || {
            std::net::TcpStream::connect(free).map_err(|error| error.to_string())?;
            let (status, body) = get(free, "/-/ready");
            if status == 200 { Ok(()) } else { Err(body) }
        });
        prometheus
    }

    fn ask(&self, path: &str) -> Value {
        let (status, body) = get(self.address, path);
        let answer: Value = serde_json::from_str(&body).unwrap_or_else(|e| panic!("{body}: {e}"));
        assert_eq!((status, answer["status"].as_str()), (200, Some("success")), "{path}: {answer}");
        answer["data"].clone()
    }

    /// The value of an expression: one entry for each series.
    fn evaluate(&self, expression: &str) -> Vec<Value> {
        let encoded = |byte: u8| format!("%{byte:02X}");
        let query: String = expression.bytes().map(encoded).collect();
        let data = self.ask(&format!("/api/v1/query?query={query}"));
        data["result"].as_array().unwrap().clone()
    }

    /// The rules as it sees them.
    fn rules(&self) -> Vec<Value> {
        let groups = self.ask("/api/v1/rules")["groups"].as_array().unwrap().clone();
        groups.iter().flat_map(|group| group["rules"].as_array().unwrap().clone()).collect()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_prometheus_takes_every_expression_and_finds_what_the_driver_did() {
    let lab = OwnLab::up();
    lab.run("ceph", &["osd", "pool", "set-quota", POOL, "max_bytes", "1073741824"]);
    let namespace = lab.namespace("seen");
    let class = Class::new(&lab, &namespace);
    let state = tempfile::tempdir().unwrap();
    let state_dir = state.path().to_str().unwrap();
    let arguments = [&["--node-id", "n1", "--state-dir", state_dir][..], &MONITORED].concat();
    let driver = Driver::start(&lab_config_with_own_user(&lab, &namespace), &arguments);
    let prometheus = Prometheus::start(driver.monitoring());
    // Rates are made of two scrapes at least, the first of them before.
    wait_until("it was scraped", || {
        let up = prometheus.evaluate("up{job=\"cinderblock\"} == 1");
        if up.is_empty() { Err(up) } else { Ok(()) }
    });

    let mut rpcs = driver.controller().await;
    let volume = rpcs.create_volume(class.create_volume("v", MIB)).await.unwrap();
    let volume = volume.into_inner().volume.unwrap().volume_id;
    let clone = CreateVolumeRequest {
        volume_content_source: Some(from_volume(&volume)),
        ..class.create_volume("clone", MIB)
    };
    rpcs.create_volume(clone).await.unwrap();
    let publish = ControllerPublishVolumeRequest {
        volume_id: volume.clone(),
        node_id: "n1".into(),
        volume_capability: Some(filesystem()),
        secrets: class.secrets.clone(),
        ..ControllerPublishVolumeRequest::default()
    };
    rpcs.controller_publish_volume(publish).await.unwrap();
    let missing = class.clone().with("pool", "missing").create_volume("none", MIB);
    rpcs.create_volume(missing).await.unwrap_err();

    let panels = panels();
    assert!(panels.len() > 25, "{}", panels.len());
    for (panel, expression) in &panels {
        let expression = expression.replace("$__rate_interval", "1m").replace("$cluster", ".*");
        wait_until(&format!("the panel {panel} shows something"), || {
            let found = prometheus.evaluate(&expression);
            if found.is_empty() { Err(expression.clone()) } else { Ok(()) }
        });
    }
    let created = prometheus.evaluate(
        "sum(cinderblock_rpc_duration_seconds_count{method=\"CreateVolume\", code=\"OK\"})",
    );
    assert_eq!(created[0]["value"][1], "2", "{created:?}");

    let seen = wait_until("every rule was evaluated", || {
        let rules = prometheus.rules();
        if rules.iter().all(|rule| rule["health"] == "ok") { Ok(rules) } else { Err(rules) }
    });
    let names = |rules: &[Value], key: &str| -> BTreeSet<String> {
        rules.iter().map(|rule| rule[key].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names(&seen, "name"), names(&rules(), "alert"));
    let states = |rules: &[Value]| -> BTreeSet<String> {
        let on = rules.iter().filter(|rule| rule["state"] != "inactive");
        on.map(|rule| rule["name"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(states(&seen), BTreeSet::new(), "{seen:?}");

    // As much as nine tenths of a smaller quota, of which a sweep tells.
    let pool = lab.connect().pool(POOL, &namespace).unwrap();
    let image = pool.open_image(ImageKey::Name("csi-clone"), OpenMode::ReadWrite).unwrap();
    image.write_at(0, &vec![7; 1 << 20]).unwrap();
    drop(image);
    let quota = ((1 << 20) * 10 / 9).to_string();
    lab.run("ceph", &["osd", "pool", "set-quota", POOL, "max_bytes", &quota]);
    let pending = wait_until("the alert of the quota is on", || {
        let on = states(&prometheus.rules());
        if on.is_empty() { Err(on) } else { Ok(on) }
    });
    assert_eq!(pending, BTreeSet::from(["CinderblockPoolNearQuota".to_owned()]));
}
