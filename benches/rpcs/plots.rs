//! The figures as pictures.

use std::path::Path;

use plotters::prelude::*;

use crate::{alone, together};

const INK: RGBColor = RGBColor(60, 60, 60);
const OURS: RGBColor = RGBColor(31, 119, 180);
const BARE: RGBColor = RGBColor(190, 190, 190);

/// One line of a plot: its label, and bars with their colours.
struct Line {
    label: String,
    bars: Vec<(f64, RGBColor)>,
}

/// How many times the bare calls each RPC takes.
pub(crate) fn ratios(file: &Path, rows: &alone::Rows) {
    let lines = rows.0.iter().filter_map(|row| {
        let (time, bare) = (row.times.median()?, row.bare.median()?);
        let ratio = time.as_secs_f64() / bare.as_secs_f64();
        Some(Line { label: row.rpc.to_string(), bars: vec![(ratio, OURS)] })
    });
    draw(file, "Time of each RPC, as a multiple of the bare calls", &lines.collect::<Vec<_>>());
}

/// RPCs a second with the most callers, beside bare calls.
pub(crate) fn rates(file: &Path, rows: &[together::Row]) {
    let lines = rows.iter().filter_map(|row| {
        let (callers, rate) = row.rates.last_key_value()?;
        let of_threads = row.bare.get(callers)?;
        let bars = vec![(rate.per_second, OURS), (of_threads.per_second, BARE)];
        Some(Line { label: row.rpc.to_string(), bars })
    });
    let title = "RPCs a second with 64 callers (blue), and as many threads on librbd (grey)";
    draw(file, title, &lines.collect::<Vec<_>>());
}

/// Bars from the left, a line each, with their values at their ends.
fn draw(file: &Path, title: &str, lines: &[Line]) {
    const WIDTH: i32 = 860;
    const LEFT: i32 = 290;
    const LINE: i32 = 34;
    const TOP: i32 = 44;
    let height = TOP + LINE * i32::try_from(lines.len()).unwrap() + 12;
    let root =
        SVGBackend::new(file, (WIDTH.unsigned_abs(), height.unsigned_abs())).into_drawing_area();
    root.fill(&WHITE).unwrap();
    let text = |size: i32| ("sans-serif", size).into_font().color(&INK);
    root.draw(&Text::new(title.to_string(), (12, 14), text(16))).unwrap();
    let most = lines.iter().flat_map(|line| &line.bars).map(|bar| bar.0).fold(0.0, f64::max);
    let mut top = TOP;
    for line in lines {
        root.draw(&Text::new(line.label.clone(), (12, top + 6), text(14))).unwrap();
        let thickness = (LINE - 8) / i32::try_from(line.bars.len()).unwrap();
        for (number, (value, colour)) in (0..).zip(&line.bars) {
            let y = top + number * thickness;
            #[allow(clippy::cast_possible_truncation, reason = "pixels")]
            let length = (value / most * f64::from(WIDTH - LEFT - 90)) as i32;
            let bar = [(LEFT, y), (LEFT + length.max(1), y + thickness - 2)];
            root.draw(&Rectangle::new(bar, colour.filled())).unwrap();
            let label = if *value < 10.0 { format!("{value:.2}") } else { format!("{value:.0}") };
            root.draw(&Text::new(label, (LEFT + length + 6, y + 1), text(12))).unwrap();
        }
        top += LINE;
    }
    root.present().unwrap();
}
