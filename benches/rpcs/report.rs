//! Tables, and the page they are part of.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use crate::measure::{Times, milliseconds};
use crate::{alone, plots, scale, together};

/// What stands around the figures on the page.
const BEGIN: &str = "<!-- figures -->\n";
const END: &str = "<!-- end of figures -->\n";

/// How many times `time` is of `bare`.
fn ratio(time: Option<Duration>, bare: Option<Duration>) -> Option<f64> {
    Some(time?.as_secs_f64() / bare?.as_secs_f64())
}

pub(crate) fn alone(rows: &alone::Rows) -> String {
    let mut text = String::from(
        "| RPC | p50, ms | p99, ms | bare calls | p50, ms | p99, ms | ratio of p50 |\n\
         |---|---|---|---|---|---|---|\n",
    );
    for row in &rows.0 {
        let p99 = |times: &Times| milliseconds(times.quantile(0.99));
        let ratio = ratio(row.times.median(), row.bare.median());
        _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} | {} | {} |",
            row.rpc,
            milliseconds(row.times.median()),
            p99(&row.times),
            row.bare_calls,
            milliseconds(row.bare.median()),
            p99(&row.bare),
            ratio.map(|ratio| format!("{ratio:.2}")).unwrap_or_default(),
        );
    }
    text
}

pub(crate) fn together(rows: &[together::Row]) -> String {
    let mut text = String::new();
    let callers: Vec<_> = rows.first().into_iter().flat_map(|row| row.rates.keys()).collect();
    text += "| RPCs a second";
    for callers in &callers {
        _ = write!(text, " | {callers} callers | bare");
    }
    text += " | bare calls | aborted |\n|---";
    text += &"|---|---".repeat(callers.len());
    text += "|---|---|\n";
    for row in rows {
        _ = write!(text, "| {}", row.rpc);
        for callers in &callers {
            let rate = |rate: Option<&together::Rate>| {
                rate.map(|rate| significant(rate.per_second)).unwrap_or_default()
            };
            let (rpc, bare) = (row.rates.get(callers), row.bare.get(callers));
            _ = write!(text, " | {} | {}", rate(rpc), rate(bare));
        }
        let aborted: usize = row.rates.values().map(|rate| rate.aborted).sum();
        _ = writeln!(text, " | {} | {aborted} |", row.bare_calls);
    }
    text
}

fn significant(rate: f64) -> String {
    if rate < 10.0 { format!("{rate:.1}") } else { format!("{rate:.0}") }
}

pub(crate) fn scale(rows: &[scale::Row]) -> String {
    let mut text = String::from(
        "| volumes | CreateVolume, ms | DeleteVolume, ms | all listed, ms | start, ms | anonymous memory, MiB | threads | descriptors |\n\
         |---|---|---|---|---|---|---|---|\n",
    );
    for row in rows {
        let memory = row.memory.as_ref().map(|memory| {
            let mib = memory.anonymous / 1024;
            format!("{mib} | {} | {}", memory.threads, memory.descriptors)
        });
        _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} | {} |",
            row.volumes,
            milliseconds(row.create.median()),
            milliseconds(row.delete.median()),
            milliseconds(row.list),
            milliseconds(row.start),
            memory.unwrap_or_else(|| " | | ".to_string()),
        );
    }
    text
}

/// Replaces the figures of the page, and the plots beside it.
pub(crate) fn write(page: &Path, one: &alone::Rows, many: &[together::Row], sizes: &[scale::Row]) {
    let old = std::fs::read_to_string(page).unwrap();
    let (before, rest) = old.split_once(BEGIN).expect("the page says where figures begin");
    let (_, after) = rest.split_once(END).expect("the page says where figures end");
    let folder = page.with_extension("");
    std::fs::create_dir_all(&folder).unwrap();
    plots::ratios(&folder.join("ratios.svg"), one);
    plots::rates(&folder.join("rates.svg"), many);
    let figures = format!(
        "{}\n## One caller\n\n{}\n\
         ![How many times the bare calls each RPC takes](performance/ratios.svg)\n\n\
         ## Many callers\n\n{}\n\
         ![RPCs a second beside bare calls, with 64 callers](performance/rates.svg)\n\n\
         ## Many volumes\n\n{}\n",
        machine(),
        alone(one),
        together(many),
        scale(sizes),
    );
    std::fs::write(page, format!("{before}{BEGIN}{figures}{END}{after}")).unwrap();
}

/// On what, and when.
fn machine() -> String {
    let processor = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = processor
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .map_or("an unknown processor", |rest| rest.trim_start_matches(['\t', ' ', ':']));
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let version = std::process::Command::new(env!("CARGO_BIN_EXE_cinderblock"))
        .arg("--version")
        .output()
        .unwrap();
    let version = String::from_utf8_lossy(&version.stdout);
    let version = version.lines().next().unwrap_or_default();
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').next().unwrap_or_default().to_string();
    let today = jiff::Zoned::now().date();
    let kind = if std::env::var_os("BENCH_QUICK").is_some() { "A short run" } else { "Measured" };
    format!(
        "{kind} on {today}, on {cores} cores ({model}) that the cluster shares, with {version}. \
         The load of the last minute was {load} at the end.\n"
    )
}
