//! Pictures of what a terminal shows, as SVG: the program's own output, on a terminal of its own.

use std::path::Path;
use std::process::Command;

use crate::{Tool, text};

/// Pixels of a character and of a line, at 13 pixels a character's height.
const CHARACTER: f64 = 7.83;
const LINE: usize = 18;
const MARGIN: usize = 14;

/// What a command prints on a terminal, with its colours.
pub(crate) fn on_a_terminal(tool: &Tool, arguments: &str) -> String {
    let program = env!("CARGO_BIN_EXE_cinderblock");
    let output = Command::new("script")
        .args(["--quiet", "--return", "--command", &format!("{program} {arguments}"), "/dev/null"])
        .env("CINDERBLOCK_CONFIG", tool.config())
        .env("TERM", "xterm-256color")
        .output()
        .unwrap();
    text(&output.stdout).replace('\r', "")
}

/// The picture of a command and what it printed, with escape sequences for colours.
pub(crate) fn svg(command: &str, printed: &str) -> String {
    let lines: Vec<String> =
        std::iter::once(format!("$ {command}")).chain(printed.lines().map(str::to_owned)).collect();
    let columns = lines.iter().map(|line| plain(line).chars().count()).max().unwrap_or(0);
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "some pixels")]
    #[allow(clippy::cast_precision_loss, reason = "a few columns")]
    let width = (columns as f64 * CHARACTER) as usize + 2 * MARGIN;
    let height = lines.len() * LINE + 2 * MARGIN;
    let mut picture = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         font-family=\"ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace\" font-size=\"13\">\n\
         <rect width=\"100%\" height=\"100%\" rx=\"6\" fill=\"#1d2025\"/>\n"
    );
    for (number, line) in lines.iter().enumerate() {
        let baseline = MARGIN + number * LINE + 13;
        let spans = spans(line);
        picture = format!(
            "{picture}<text x=\"{MARGIN}\" y=\"{baseline}\" fill=\"#d6d9de\" xml:space=\"preserve\">{spans}</text>\n"
        );
    }
    picture + "</svg>\n"
}

/// The line without escape sequences.
fn plain(line: &str) -> String {
    pieces(line).into_iter().map(|(_, text)| text).collect()
}

fn spans(line: &str) -> String {
    let span = |(style, text): (String, String)| {
        let text = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
        if style.is_empty() { text } else { format!("<tspan{style}>{text}</tspan>") }
    };
    pieces(line).into_iter().map(span).collect()
}

/// The pieces of a line, each with the attributes of its style.
fn pieces(line: &str) -> Vec<(String, String)> {
    let mut parts = line.split("\x1b[");
    let mut pieces = vec![(String::new(), parts.next().unwrap_or_default().to_owned())];
    for part in parts {
        let (code, text) = part.split_once('m').unwrap_or(("", part));
        let style = match code {
            "1" => " font-weight=\"bold\"",
            "31" | "38;5;9" => " fill=\"#f2777a\"",
            "32" | "38;5;10" => " fill=\"#8fcf8f\"",
            "33" | "38;5;11" => " fill=\"#ffcc66\"",
            _ => "",
        };
        pieces.push((style.to_owned(), text.to_owned()));
    }
    pieces.retain(|(_, text)| !text.is_empty());
    // A table's last title is as wide as its column, which may be wider than what is shown of it.
    while let Some((_, last)) = pieces.last_mut() {
        last.truncate(last.trim_end().len());
        if !last.is_empty() {
            break;
        }
        pieces.pop();
    }
    pieces
}

/// Compares `docs/pictures/<name>.svg` with the picture, or writes it.
pub(crate) fn assert_is(name: &str, picture: &str) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/pictures");
    let path = folder.join(format!("{name}.svg"));
    if std::env::var_os("UPDATE_REFERENCE").is_some() {
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(&path, picture).unwrap();
    }
    assert!(
        std::fs::read_to_string(&path).unwrap_or_default() == picture,
        "docs/pictures/{name}.svg is not what a terminal shows; run UPDATE_REFERENCE=1 cargo test --test operator docs\n{picture}"
    );
}
