//! Tables and the words of time, for people.

use std::io::IsTerminal as _;

use comfy_table::{Cell, Color, ContentArrangement, Table, presets};
use muster_protocol::operator::Condition;

pub fn table<const N: usize>(head: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    if !std::io::stdout().is_terminal() {
        table.force_no_tty();
        // A pipe has no width; a line of output stays a line.
        table.set_content_arrangement(ContentArrangement::Disabled);
    }
    table.set_header(head.map(Cell::new));
    table
}

pub fn condition_cell(condition: Condition) -> Cell {
    let cell = Cell::new(condition.as_str());
    match condition {
        Condition::UpToDate => cell.fg(Color::Green),
        Condition::Updating | Condition::Invited | Condition::Degraded => cell.fg(Color::Yellow),
        Condition::Offline | Condition::NoGeneration => cell.fg(Color::DarkGrey),
        _ if condition.is_bad() => cell.fg(Color::Red),
        _ => cell,
    }
}

/// A text that is red where there is danger. It must say so without the colour, too.
pub fn danger_cell(text: &str, danger: bool) -> Cell {
    let cell = Cell::new(text);
    if danger { cell.fg(Color::Red) } else { cell }
}

/// `12 s ago`, in the largest unit that is at least one.
pub fn ago(then_ms: i64, now_ms: i64) -> String {
    let seconds = now_ms.saturating_sub(then_ms).max(0) / 1000;
    format!("{} ago", span(seconds))
}

pub fn span(seconds: i64) -> String {
    match seconds {
        0..=119 => format!("{seconds} s"),
        120..=7199 => format!("{} min", seconds / 60),
        7200..=172_799 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

/// Date and time in UTC, to the second.
pub fn date(unix_ms: i64) -> String {
    match jiff::Timestamp::from_millisecond(unix_ms) {
        Ok(time) => time.strftime("%Y-%m-%d %H:%M:%S UTC").to_string(),
        Err(_) => "no known time".to_owned(),
    }
}

/// Text from a machine, without what a terminal would obey (escape sequences and other control characters).
pub fn harmless(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_cannot_write_on_the_operators_terminal() {
        assert_eq!(harmless("ok\u{1b}[2Jmore\r\n"), "ok\u{fffd}[2Jmore\u{fffd}\n");
    }

    #[test]
    fn times_are_told_in_the_unit_that_fits() {
        assert_eq!(ago(0, 1_500), "1 s ago");
        assert_eq!(ago(5_000, 0), "0 s ago");
        assert_eq!(span(121), "2 min");
        assert_eq!(span(7_200), "2 h");
        assert_eq!(span(200_000), "2 days");
        assert_eq!(date(0), "1970-01-01 00:00:00 UTC");
    }
}
