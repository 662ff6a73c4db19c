//! Tables, for people.

use comfy_table::{Color, ContentArrangement, presets};
pub use muster_protocol::moment::{ago, date, span};
use muster_protocol::operator::Condition;
use muster_protocol::{shown, terminal};

/// A table whose cells are escaped when they are made.
pub struct Table {
    head: Vec<Cell>,
    rows: Vec<Vec<Cell>>,
    is_terminal: bool,
}

/// One line of text; control characters have no effect.
pub struct Cell {
    text: String,
    colour: Option<Color>,
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Self { text: shown::field(text), colour: None }
    }
}
impl From<String> for Cell {
    fn from(text: String) -> Self {
        text.as_str().into()
    }
}

/// From this many rows on, a table is laid out without regard to the width of the terminal.
const LONG: usize = 500;

pub fn table<const N: usize>(head: [&str; N]) -> Table {
    let is_terminal = terminal::output_is_terminal();
    Table { head: head.map(Cell::from).into(), rows: Vec::new(), is_terminal }
}

impl Table {
    pub fn add_row<T: Into<Cell>>(&mut self, cells: impl IntoIterator<Item = T>) {
        self.rows.push(cells.into_iter().map(Into::into).collect());
    }

    pub fn print(&self) {
        // The colours are ours; the cells' text was escaped when they were made.
        terminal::bytes(format!("{}\n", self.text()).as_bytes());
    }

    pub fn text(&self) -> String {
        let long = (self.rows.len() >= LONG).then(|| self.in_columns()).flatten();
        long.unwrap_or_else(|| self.arranged())
    }

    fn arranged(&self) -> String {
        let mut table = comfy_table::Table::new();
        table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
        if !self.is_terminal {
            table.force_no_tty();
            // A pipe has no width; a line of output stays a line.
            table.set_content_arrangement(ContentArrangement::Disabled);
        }
        let cells = |row: &[Cell]| row.iter().map(Cell::styled).collect::<Vec<_>>();
        table.set_header(cells(&self.head));
        table.add_rows(self.rows.iter().map(|row| cells(row)));
        table.to_string()
    }

    /// The same as [`Self::arranged`] on a pipe, in one pass over thousands of rows; `None` if a cell needs
    /// more than that: several lines, or characters that may be wide.
    fn in_columns(&self) -> Option<String> {
        let rows = || std::iter::once(&self.head).chain(&self.rows);
        let mut widths = vec![0; self.head.len()];
        for row in rows() {
            if row.len() != widths.len() {
                return None;
            }
            for (cell, width) in row.iter().zip(&mut widths) {
                *width = (*width).max(cell.plain_width()?);
            }
        }
        let coloured = self.is_terminal && std::env::var_os("NO_COLOR").is_none_or(|it| it.is_empty());
        let line = widths.iter().sum::<usize>() + 2 * widths.len() + 1;
        let mut text = String::with_capacity((line + 8) * (self.rows.len() + 1));
        for row in rows() {
            for (cell, width) in row.iter().zip(&widths) {
                let colour = cell.colour.filter(|_| coloured).and_then(code);
                text.push(' ');
                text.extend(colour.map(|code| format!("\u{1b}[38;5;{code}m")));
                text.push_str(&cell.text);
                text.push_str(if colour.is_some() { "\u{1b}[39m" } else { "" });
                text.extend(std::iter::repeat_n(' ', width - cell.plain_width()? + 1));
            }
            text.push('\n');
        }
        text.pop();
        Some(text)
    }
}

impl Cell {
    fn styled(&self) -> comfy_table::Cell {
        let cell = comfy_table::Cell::new(&self.text);
        match self.colour {
            Some(colour) => cell.fg(colour),
            None => cell,
        }
    }

    fn plain_width(&self) -> Option<usize> {
        if self.text.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
            return Some(self.text.len());
        }
        let plain = |c: char| matches!(c, ' '..='~' | '…');
        self.text.chars().all(plain).then(|| self.text.chars().count())
    }
}

/// A colour's number on a terminal.
fn code(colour: Color) -> Option<u8> {
    match colour {
        Color::DarkGrey => Some(8),
        Color::Red => Some(9),
        Color::Green => Some(10),
        Color::Yellow => Some(11),
        _ => None,
    }
}

/// Several lines of text, aligned in one column.
pub fn long_cell(text: &str) -> Cell {
    Cell { text: shown::lines(text).collect::<Vec<_>>().join("\n"), colour: None }
}

pub fn condition_cell(condition: Condition) -> Cell {
    let colour = match condition {
        Condition::UpToDate => Some(Color::Green),
        Condition::Updating | Condition::Invited | Condition::Degraded => Some(Color::Yellow),
        Condition::Offline | Condition::NoGeneration | Condition::Paused => Some(Color::DarkGrey),
        _ => condition.is_bad().then_some(Color::Red),
    };
    Cell { colour, ..condition.as_str().into() }
}

/// A cell that is red where there is danger. Its text must say so without the colour, too.
pub fn danger_cell(text: &str, danger: bool) -> Cell {
    Cell { colour: danger.then_some(Color::Red), ..text.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_table_looks_like_a_short_one() {
        let mut rows = table(["NAME", "NOTE"]);
        rows.add_row([Cell::from("tin"), condition_cell(Condition::Failed)]);
        rows.add_row(["a-longer-name".into(), Cell::from("cut off…")]);
        rows.add_row(["", ""]);
        assert_eq!(rows.in_columns().unwrap(), rows.arranged());
        rows.is_terminal = true;
        assert_eq!(rows.in_columns().unwrap().matches('\u{1b}').count() % 2, 0);
        rows.is_terminal = false;
        rows.add_row(["鉄", "wide"]);
        assert_eq!(rows.in_columns(), None);
    }

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
