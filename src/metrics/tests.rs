use super::*;

/// The value of the series that begins with `series`.
fn value(metrics: &Metrics, series: &str) -> Option<f64> {
    let text = metrics.text();
    let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.map(|value| value.parse().unwrap())
}

fn place(pool: &str) -> PlaceLabels {
    PlaceLabels { cluster: "lab".into(), pool: pool.into(), namespace: String::new() }
}

#[test]
fn what_is_in_flight_is_counted_and_its_age_is_that_of_the_oldest() {
    let metrics = Metrics::new();
    let series = r#"cinderblock_rpcs_in_flight{method="Probe"}"#;
    assert_eq!(value(&metrics, series), None);
    let (first, second) = (metrics.rpc_begins("Probe"), metrics.rpc_begins("Probe"));
    assert_eq!(value(&metrics, series), Some(2.0));
    let oldest = r#"cinderblock_rpcs_in_flight_oldest_seconds{method="Probe"}"#;
    std::thread::sleep(Duration::from_millis(20));
    let age = value(&metrics, oldest).unwrap();
    assert!(age >= 0.02, "{age}");
    drop(first);
    assert!(value(&metrics, oldest).unwrap() >= 0.02);
    drop(second);
    assert_eq!(value(&metrics, series), Some(0.0));
    assert_eq!(value(&metrics, oldest), Some(0.0));
}

#[test]
fn a_call_counts_with_its_duration_and_its_errno() {
    let metrics = Metrics::new();
    let took = Duration::from_millis(30);
    metrics.call_ends("lab", "omap_get", took, None);
    metrics.call_ends("lab", "omap_get", took, Some(Errno::ETIMEDOUT));
    let labels = r#"cluster="lab",call="omap_get""#;
    let of = |name: &str| value(&metrics, name);
    assert_eq!(of(&format!("cinderblock_ceph_call_duration_seconds_count{{{labels}}}")), Some(2.0));
    assert_eq!(
        of(&format!(r#"cinderblock_ceph_call_duration_seconds_bucket{{le="0.02",{labels}}}"#)),
        Some(0.0)
    );
    assert_eq!(
        of(&format!(r#"cinderblock_ceph_call_errors_total{{{labels},errno="ETIMEDOUT"}}"#)),
        Some(1.0)
    );
}

#[test]
fn places_with_the_same_labels_are_put_together_and_the_worse_time_counts() {
    let metrics = Metrics::new();
    let then = now() - 4000;
    let figures = Figures { journal: 2, oldest: Some(then), trash: Some(1), swept: then };
    metrics.place_is("a", place("other"), figures);
    metrics.place_is(
        "b",
        place("other"),
        Figures { journal: 3, swept: then + 9, ..Figures::default() },
    );
    let labels = r#"{cluster="lab",pool="other",namespace=""}"#;
    let of = |name: &str| value(&metrics, &format!("cinderblock_{name}{labels}"));
    assert_eq!(of("journal_entries"), Some(5.0));
    assert_eq!(of("trash_images"), Some(1.0));
    assert_eq!(of("sweep_last_success_timestamp_seconds"), value_of(then));
    let age = of("journal_oldest_entry_seconds").unwrap();
    assert!((4000.0..4100.0).contains(&age), "{age}");
    metrics.place_is_left("a");
    assert_eq!(of("journal_entries"), Some(3.0));
    assert_eq!(of("journal_oldest_entry_seconds"), Some(0.0));
    assert_eq!(of("trash_images"), None);
    metrics.place_is_left("b");
    assert_eq!(of("journal_entries"), None);
}

fn value_of(seconds: i64) -> Option<f64> {
    i32::try_from(seconds).ok().map(f64::from)
}

#[test]
fn a_quota_that_is_taken_away_is_gone() {
    let metrics = Metrics::new();
    let series = r#"cinderblock_pool_quota_bytes{cluster="lab",pool="rbd"}"#;
    let space = Space { used: 1, available: 2, quota: Some(3) };
    metrics.pool_is("lab", "rbd", space);
    assert_eq!(value(&metrics, series), Some(3.0));
    metrics.pool_is("lab", "rbd", Space { quota: None, ..space });
    assert_eq!(value(&metrics, series), None);
}

#[test]
fn names_are_prometheus_own_kind_of_names_and_every_help_ends_as_a_sentence() {
    for Description { name, labels, help, .. } in Metrics::new().descriptions() {
        assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{name}");
        assert!(help.ends_with('.'), "{name}: {help}");
        assert!(!labels.contains(&"le"), "{name}");
    }
}
