//! Tables, for people.

use comfy_table::{Color, ContentArrangement, presets};
pub use muster_protocol::moment::{ago, date, span};
use muster_protocol::operator::Condition;
use muster_protocol::{shown, terminal};

/// A table whose cells are escaped when they are made.
pub struct Table(comfy_table::Table);

/// One line of text; control characters have no effect.
pub struct Cell(comfy_table::Cell);

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Self(comfy_table::Cell::new(shown::field(text)))
    }
}
impl From<String> for Cell {
    fn from(text: String) -> Self {
        text.as_str().into()
    }
}

pub fn table<const N: usize>(head: [&str; N]) -> Table {
    let mut table = comfy_table::Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    if !terminal::output_is_terminal() {
        table.force_no_tty();
        // A pipe has no width; a line of output stays a line.
        table.set_content_arrangement(ContentArrangement::Disabled);
    }
    table.set_header(head.map(|title| Cell::from(title).0));
    Table(table)
}

impl Table {
    pub fn add_row<T: Into<Cell>>(&mut self, cells: impl IntoIterator<Item = T>) {
        self.0.add_row(cells.into_iter().map(|cell| cell.into().0));
    }

    pub fn print(&self) {
        // The colours are ours; the cells' text was escaped when they were made.
        terminal::bytes(format!("{}\n", self.0).as_bytes());
    }

    #[cfg(test)]
    pub fn text(&self) -> String {
        self.0.to_string()
    }
}

/// Several lines of text, aligned in one column.
pub fn long_cell(text: &str) -> Cell {
    Cell(comfy_table::Cell::new(shown::lines(text).collect::<Vec<_>>().join("\n")))
}

pub fn condition_cell(condition: Condition) -> Cell {
    let cell = Cell::from(condition.as_str()).0;
    Cell(match condition {
        Condition::UpToDate => cell.fg(Color::Green),
        Condition::Updating | Condition::Invited | Condition::Degraded => cell.fg(Color::Yellow),
        Condition::Offline | Condition::NoGeneration | Condition::Paused => cell.fg(Color::DarkGrey),
        _ if condition.is_bad() => cell.fg(Color::Red),
        _ => cell,
    })
}

/// A cell that is red where there is danger. Its text must say so without the colour, too.
pub fn danger_cell(text: &str, danger: bool) -> Cell {
    let cell = Cell::from(text).0;
    Cell(if danger { cell.fg(Color::Red) } else { cell })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_is_one_line_and_a_long_one_stays_in_its_column() {
        let mut rows = table(["NAME", "NOTE"]);
        rows.add_row(["tin".into(), Cell::from("ok\u{1b}[2J\nlead  up to date\u{202e}")]);
        rows.add_row(["zinc".into(), long_cell("one\r\ntwo\u{1b}[2J")]);
        let text = rows.text();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 4, "{text}");
        assert!(lines[1].contains("ok\\u{1b}[2J\\nlead  up to date\\u{202e}"), "{text}");
        assert!(lines[3].starts_with("      ") && lines[3].contains("two\\u{1b}[2J"), "{text}");
    }
}
