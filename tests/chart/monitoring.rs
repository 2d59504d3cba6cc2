//! What Prometheus is told to scrape and to look out for.

use std::collections::BTreeSet;
use std::process::Command;

use serde_json::{Value, json};

use super::{RENDERINGS, list, objects, read, rendering, strings, text};

/// The driver's container in a Deployment or DaemonSet.
fn driver(object: &Value) -> &Value {
    let containers = list(object, "/spec/template/spec/containers");
    containers.iter().find(|container| text(container, "/name") == "driver").unwrap()
}

/// The number of the container's port of that name.
fn port<'a>(container: &'a Value, name: &str) -> Option<&'a Value> {
    let ports = list(container, "/ports").iter();
    ports.filter(|port| text(port, "/name") == name).map(|port| &port["containerPort"]).next()
}

#[test]
fn the_driver_serves_its_metrics_on_the_port_that_is_named_so() {
    let mut served = BTreeSet::new();
    for (rendering, object) in objects() {
        let kind = text(object, "/kind");
        if !["Deployment", "DaemonSet"].contains(&kind) {
            continue;
        }
        let container = driver(object);
        let arguments = strings(container, "/args");
        let mut told = arguments
            .iter()
            .filter_map(|argument| argument.strip_prefix("--metrics-address=:"))
            .map(str::to_owned);
        let at = format!("{:?}: {kind}", rendering.values);
        assert_eq!(told.next(), port(container, "metrics").map(Value::to_string), "{at}");
        let off = rendering.has("metrics.enabled=false");
        assert_eq!(port(container, "metrics").is_none(), off, "{at}");
        served.insert((kind, off));
    }
    assert_eq!(served.len(), 4, "{served:?}");
}

#[test]
fn monitors_select_pods_that_have_the_port() {
    let objects = &rendering(&["everything"]).objects;
    let of_kind = |kind: &str| objects.iter().find(|object| text(object, "/kind") == kind).unwrap();
    let monitor = of_kind("PodMonitor");
    let node = of_kind("DaemonSet");
    assert_eq!(monitor["spec"]["selector"], node["spec"]["selector"]);
    for endpoint in list(monitor, "/spec/podMetricsEndpoints") {
        assert!(port(driver(node), text(endpoint, "/port")).is_some(), "{endpoint}");
    }
    let monitor = of_kind("ServiceMonitor");
    let labels = monitor["spec"]["selector"]["matchLabels"].as_object().unwrap();
    let is_selected = |object: &&Value| {
        let has = |(label, value): (&String, &Value)| object["metadata"]["labels"][label] == *value;
        text(object, "/kind") == "Service" && labels.iter().all(has)
    };
    let service = objects.iter().find(is_selected).unwrap();
    let endpoints: BTreeSet<_> =
        list(monitor, "/spec/endpoints").iter().map(|endpoint| text(endpoint, "/port")).collect();
    let ports: BTreeSet<_> =
        list(service, "/spec/ports").iter().map(|port| text(port, "/name")).collect();
    assert!(endpoints.contains("metrics") && endpoints == ports, "{endpoints:?} {ports:?}");
}

#[test]
fn prometheus_takes_every_rule_and_each_has_a_section_that_says_what_to_do() {
    let mut seen = BTreeSet::new();
    let mut alerts = BTreeSet::new();
    let runbooks = read("docs/runbooks.md");
    for rendering in RENDERINGS.iter() {
        for object in &rendering.objects {
            if text(object, "/kind") != "PrometheusRule" || !seen.insert(object.to_string()) {
                continue;
            }
            let file = tempfile::NamedTempFile::new().unwrap();
            // JSON is YAML.
            let groups = json!({"groups": object["spec"]["groups"]});
            std::fs::write(file.path(), groups.to_string()).unwrap();
            let output = Command::new("promtool")
                .args(["check", "rules", "--lint=all", "--lint-fatal"])
                .arg(file.path())
                .output()
                .unwrap_or_else(|error| panic!("promtool, of Debian's prometheus: {error}"));
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            for group in list(object, "/spec/groups") {
                for rule in list(group, "/rules") {
                    let alert = text(rule, "/alert");
                    let section = format!("docs/runbooks.md#{}", alert.to_lowercase());
                    assert_eq!(text(rule, "/annotations/runbook"), section);
                    assert!(runbooks.contains(&format!("\n## {alert}\n")), "{alert}");
                    alerts.insert(alert);
                }
            }
        }
    }
    assert_eq!(alerts.len(), 12, "{alerts:?}");
}
