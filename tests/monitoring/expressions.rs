//! The alerts and the dashboard ask for metrics that there are, with labels that those have. No
//! Ceph is needed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

use cinderblock::metrics::{Description, Metrics};
use serde_json::Value;

use crate::common::scrape::Series;

pub(crate) const ALERTS: &str = "charts/cinderblock/files/alerts.yaml";
const ALERT_TESTS: &str = "tests/monitoring/alerts.yaml";
const RUNBOOKS: &str = "docs/runbooks.md";

pub(crate) fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn yaml(path: &str) -> Value {
    serde_saphyr::from_str(&read(path)).unwrap()
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().map_or(&[], Vec::as_slice)
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

/// The rules of the alerts.
pub(crate) fn rules() -> Vec<Value> {
    list(&yaml(ALERTS), "groups").iter().flat_map(|group| list(group, "rules").to_vec()).collect()
}

/// The expressions of the dashboard's panels, with the panels' titles.
pub(crate) fn panels() -> Vec<(String, String)> {
    let dashboard: Value = serde_json::from_str(&read("deploy/grafana/cinderblock.json")).unwrap();
    let of_panel = |panel: &Value| {
        let title = text(panel, "title").to_owned();
        let targets = list(panel, "targets").to_vec();
        targets.into_iter().map(move |target| (title.clone(), text(&target, "expr").to_owned()))
    };
    let mut found: Vec<_> = list(&dashboard, "panels").iter().flat_map(of_panel).collect();
    let variables = list(&dashboard["templating"], "list");
    let queries = variables.iter().filter(|variable| text(variable, "type") == "query");
    found.extend(queries.map(|variable| {
        let query = text(variable, "definition");
        let inner = query.strip_prefix("label_values(").and_then(|rest| rest.strip_suffix(')'));
        let (metric, label) = inner.and_then(|inner| inner.split_once(", ")).unwrap();
        (format!("variable {}", text(variable, "name")), format!("count by ({label}) ({metric})"))
    }));
    found
}

fn is_of_a_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

/// The driver's metrics that an expression names, each with the labels that it selects by, and the
/// labels that the expression groups by.
fn named(expression: &str) -> (Vec<(String, BTreeSet<String>)>, BTreeSet<String>) {
    let mut metrics = Vec::new();
    for (start, _) in expression.match_indices("cinderblock_") {
        let rest = &expression[start..];
        let end = rest.find(|c| !is_of_a_name(c)).unwrap_or(rest.len());
        let selected = rest[end..].strip_prefix('{').and_then(|rest| rest.split('}').next());
        let labels = selected.unwrap_or_default().split(',').filter(|label| !label.is_empty());
        let name = |label: &str| label.split(['=', '!']).next().unwrap().trim().to_owned();
        metrics.push((rest[..end].to_owned(), labels.map(name).collect()));
    }
    let groups = expression.split("by (").skip(1).filter_map(|rest| rest.split(')').next());
    let grouped = groups.flat_map(|labels| labels.split(',').map(|label| label.trim().to_owned()));
    (metrics, grouped.collect())
}

/// The metrics there are by every name that they have in a scrape, with their labels.
fn known() -> BTreeMap<String, BTreeSet<String>> {
    let mut known = BTreeMap::new();
    for Description { name, kind, labels, .. } in Metrics::new().descriptions() {
        let labels: BTreeSet<_> = labels.iter().map(|label| (*label).to_owned()).collect();
        if *kind == "histogram" {
            let mut buckets = labels.clone();
            buckets.insert("le".to_owned());
            known.insert(format!("{name}_bucket"), buckets);
            for suffix in ["count", "sum"] {
                known.insert(format!("{name}_{suffix}"), labels.clone());
            }
        } else {
            known.insert(name.clone(), labels);
        }
    }
    known
}

#[test]
fn alerts_and_dashboard_ask_for_metrics_that_there_are() {
    let known = known();
    let alerts = rules()
        .into_iter()
        .map(|rule| (text(&rule, "alert").to_owned(), text(&rule, "expr").to_owned()));
    let mut asked = BTreeSet::new();
    for (at, expression) in alerts.chain(panels()) {
        let (metrics, grouped) = named(&expression);
        assert!(!metrics.is_empty(), "{at} asks for none of the driver's: {expression}");
        // What Prometheus adds when it scrapes.
        let mut there = BTreeSet::from(["instance".to_owned()]);
        for (metric, selected) in metrics {
            let labels = known
                .get(&metric)
                .unwrap_or_else(|| panic!("{at} asks for {metric}, which is none"));
            assert!(selected.is_subset(labels), "{at}: {metric} has no {selected:?}");
            there.extend(labels.clone());
            asked.insert(metric);
        }
        assert!(grouped.is_subset(&there), "{at}: {grouped:?} are not all labels of {expression}");
    }
    for Description { name, kind, .. } in Metrics::new().descriptions() {
        let names = ["", "_bucket", "_count"].map(|suffix| format!("{name}{suffix}"));
        assert!(
            names.iter().any(|name| asked.contains(name)),
            "the {kind} {name} is shown nowhere"
        );
    }
}

#[test]
fn expressions_are_taken_apart() {
    let expression =
        r#"sum by (a, le) (rate(cinderblock_x_bucket{b=~"1|2", c!="3"}[5m])) / cinderblock_y"#;
    let (metrics, grouped) = named(expression);
    let set = |labels: &[&str]| labels.iter().map(|label| (*label).to_owned()).collect();
    let x = ("cinderblock_x_bucket".to_owned(), set(&["b", "c"]));
    assert_eq!(metrics, [x, ("cinderblock_y".to_owned(), BTreeSet::new())]);
    assert_eq!(grouped, set(&["a", "le"]));
}

/// What Prometheus' own tool says of a file.
fn promtool(arguments: &[&str]) {
    let output = Command::new("promtool")
        .args(arguments)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap_or_else(|error| panic!("promtool, of Debian's package prometheus: {error}"));
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&said));
}

#[test]
fn every_alert_fires_when_it_should_and_not_before() {
    promtool(&["check", "rules", "--lint=all", "--lint-fatal", ALERTS]);
    promtool(&["test", "rules", ALERT_TESTS]);
    let tests = yaml(ALERT_TESTS);
    let mut fired = BTreeSet::new();
    let known = known();
    for test in list(&tests, "tests") {
        for expected in list(test, "alert_rule_test") {
            if !list(expected, "exp_alerts").is_empty() {
                fired.insert(text(expected, "alertname").to_owned());
            }
        }
        for series in list(test, "input_series") {
            let Series { name, mut labels } =
                Series::parse(&text(series, "series").replace(", ", ","));
            assert!(labels.remove("instance").is_some(), "{name}");
            let labels: BTreeSet<_> = labels.into_keys().collect();
            assert_eq!(known.get(&name), Some(&labels), "{name} is none of the driver's");
        }
    }
    let all: BTreeSet<_> = rules().iter().map(|rule| text(rule, "alert").to_owned()).collect();
    assert_eq!(fired, all, "alerts without a test in which they fire");
}

#[test]
fn every_alert_has_a_section_that_says_what_to_do() {
    let runbooks = read(RUNBOOKS);
    for rule in rules() {
        let alert = text(&rule, "alert");
        let section = format!("{RUNBOOKS}#{}", alert.to_lowercase());
        assert_eq!(text(&rule["annotations"], "runbook"), section);
        let body = runbooks.split(&format!("\n## {alert}\n")).nth(1).unwrap_or_default();
        let body = body.split("\n## ").next().unwrap_or_default();
        assert!(body.len() > 200, "{RUNBOOKS} has no section {alert}, or one that says little");
    }
}
