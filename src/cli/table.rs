//! Tables without lines. Styles are only written to a terminal. Nothing is wrapped: ids and
//! locations are there to be copied.

use comfy_table::{Attribute, ContentArrangement, Table, presets};
pub(crate) use comfy_table::{Cell, Color};

/// A table, with a heading unless that is empty.
pub(crate) fn of_rows<Row>(heading: &[&str], rows: impl IntoIterator<Item = Row>) -> String
where
    Row: IntoIterator,
    Row::Item: Into<Cell>,
{
    let mut table = Table::new();
    if !heading.is_empty() {
        table.set_header(heading.iter().map(|name| bold(name)));
    }
    for row in rows {
        table.add_row(row.into_iter().map(Into::into));
    }
    without_lines(table)
}

/// Names and their values, which may have several lines.
pub(crate) fn of_pairs<N: ToString, V: ToString>(
    pairs: impl IntoIterator<Item = (N, V)>,
) -> String {
    let mut table = Table::new();
    for (name, value) in pairs {
        table.add_row([bold(&name.to_string()), Cell::new(value)]);
    }
    without_lines(table)
}

/// A cell whose colour says how well things are, on a terminal.
pub(crate) fn coloured(text: impl ToString, colour: Color) -> Cell {
    Cell::new(text).fg(colour)
}

fn bold(name: &str) -> Cell {
    Cell::new(name).add_attribute(Attribute::Bold)
}

fn without_lines(mut table: Table) -> String {
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.trim_fmt()
}
