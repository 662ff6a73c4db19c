//! Times as people and scripts read them: RFC 3339 in UTC. What programs exchange, sign and store are
//! numbers, in milliseconds or seconds since 1970; what is printed never is.
//!
//! Pure. [`crate::terminal::json`] prints every document through [`json`], so no caller has to remember it.

use std::io::{self, Write};

use serde::Serialize;
use serde_json::ser::{CharEscape, Formatter, PrettyFormatter, Serializer};

use crate::clock::UnixMillis;

/// What a number counts since 1970-01-01T00:00:00Z.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// 1,000 a second.
    Milliseconds,
    /// Whole seconds.
    Seconds,
}

/// The fields of printed documents that hold a time, at any depth.
const FIELDS: [(&str, Unit); 17] = [
    ("at", Unit::Milliseconds),
    ("clock", Unit::Milliseconds),
    ("began_at", Unit::Milliseconds),
    ("clone_alarm_at", Unit::Milliseconds),
    ("ended_at", Unit::Milliseconds),
    ("ends", Unit::Seconds),
    ("enrolled_at", Unit::Milliseconds),
    ("expires", Unit::Seconds),
    ("key_rotated_at", Unit::Milliseconds),
    ("last_contact", Unit::Milliseconds),
    ("last_seen", Unit::Milliseconds),
    ("made_at", Unit::Milliseconds),
    ("paused_until", Unit::Milliseconds),
    ("received_at", Unit::Milliseconds),
    ("since", Unit::Milliseconds),
    ("until", Unit::Milliseconds),
    ("waits_until", Unit::Milliseconds),
];

/// What a field counts, if it holds a time.
pub fn unit_of(field: &str) -> Option<Unit> {
    FIELDS.iter().find(|(name, _)| *name == field).map(|(_, unit)| *unit)
}

/// `2026-11-28T10:31:15.250Z`. A time that no calendar can show becomes the first or the last that can be.
pub fn rfc3339(time: i64, unit: Unit) -> String {
    let (moment, format) = match unit {
        Unit::Milliseconds => (jiff::Timestamp::from_millisecond(time), "%Y-%m-%dT%H:%M:%S%.3fZ"),
        Unit::Seconds => (jiff::Timestamp::from_second(time), "%Y-%m-%dT%H:%M:%SZ"),
    };
    let end = match unit {
        Unit::Milliseconds => ".000Z",
        Unit::Seconds => "Z",
    };
    match moment {
        Ok(moment) if time >= first(unit) => moment.strftime(format).to_string(),
        _ if time < 0 => format!("0001-01-01T00:00:00{end}"),
        // Two days before the year ends, so that every library can read it and convert it to any zone:
        // jiff's last moment is on 30 December, and Python's calendar ends with the year.
        _ => format!("9999-12-30T00:00:00{end}"),
    }
}

/// The beginning of year 1; years before it do not have four digits.
fn first(unit: Unit) -> i64 {
    const SECONDS: i64 = -62_135_596_800;
    match unit {
        Unit::Milliseconds => SECONDS * 1000,
        Unit::Seconds => SECONDS,
    }
}

/// Like [`rfc3339`] to the second, with the space that RFC 3339 allows for readability: `2026-11-28
/// 10:31:15Z`.
pub fn date(unix_ms: UnixMillis) -> String {
    rfc3339(unix_ms.div_euclid(1000), Unit::Seconds).replacen('T', " ", 1)
}

/// `12 s`, in the largest unit of which there are at least two.
pub fn span(seconds: i64) -> String {
    match seconds {
        ..=119 => format!("{seconds} s"),
        120..=7199 => format!("{} min", seconds / 60),
        7200..=172_799 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

/// The same, rounded up: how long somebody has to wait.
pub fn wait(seconds: i64) -> String {
    let unit = match seconds {
        ..=119 => 1,
        120..=7199 => 60,
        7200..=172_799 => 3600,
        _ => 86_400,
    };
    span(seconds.saturating_add(unit - 1))
}

/// `12 s ago`.
pub fn ago(then_ms: UnixMillis, now_ms: UnixMillis) -> String {
    format!("{} ago", span(now_ms.saturating_sub(then_ms).max(0) / 1000))
}

/// A document as indented JSON, its fields in order and its times as RFC 3339.
pub fn json(value: &impl Serialize) -> Result<String, serde_json::Error> {
    let mut text = Vec::new();
    let formatter =
        TimesAsText { pretty: PrettyFormatter::new(), field: String::new(), in_name: false, unit: None };
    value.serialize(&mut Serializer::with_formatter(&mut text, formatter))?;
    String::from_utf8(text).map_err(serde::ser::Error::custom)
}

/// A [`PrettyFormatter`] that writes numbers that are times as RFC 3339.
struct TimesAsText {
    pretty: PrettyFormatter<'static>,
    /// The field name that was written last.
    field: String,
    in_name: bool,
    /// What the next number counts.
    unit: Option<Unit>,
}

impl TimesAsText {
    fn number<W: ?Sized + Write>(&self, writer: &mut W, number: i128) -> Option<io::Result<()>> {
        let limit =
            |number: i128| i64::try_from(number).unwrap_or(if number < 0 { i64::MIN } else { i64::MAX });
        self.unit.map(|unit| write!(writer, "\"{}\"", rfc3339(limit(number), unit)))
    }
}

impl Formatter for TimesAsText {
    fn write_i64<W: ?Sized + Write>(&mut self, writer: &mut W, value: i64) -> io::Result<()> {
        self.number(writer, value.into()).unwrap_or_else(|| self.pretty.write_i64(writer, value))
    }
    fn write_u64<W: ?Sized + Write>(&mut self, writer: &mut W, value: u64) -> io::Result<()> {
        self.number(writer, value.into()).unwrap_or_else(|| self.pretty.write_u64(writer, value))
    }
    fn write_string_fragment<W: ?Sized + Write>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        if self.in_name {
            self.field.push_str(fragment);
        }
        self.pretty.write_string_fragment(writer, fragment)
    }
    fn write_char_escape<W: ?Sized + Write>(&mut self, writer: &mut W, escape: CharEscape) -> io::Result<()> {
        // No field of ours contains an escape; a name that does is another one.
        if self.in_name {
            self.field.push('\\');
        }
        self.pretty.write_char_escape(writer, escape)
    }
    fn begin_array<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.unit = None;
        self.pretty.begin_array(writer)
    }
    fn end_array<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.pretty.end_array(writer)
    }
    fn begin_array_value<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.pretty.begin_array_value(writer, first)
    }
    fn end_array_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.pretty.end_array_value(writer)
    }
    fn begin_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.unit = None;
        self.pretty.begin_object(writer)
    }
    fn end_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.pretty.end_object(writer)
    }
    fn begin_object_key<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.field.clear();
        self.in_name = true;
        self.pretty.begin_object_key(writer, first)
    }
    fn end_object_key<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.in_name = false;
        self.pretty.end_object_key(writer)
    }
    fn begin_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.unit = unit_of(&self.field);
        self.pretty.begin_object_value(writer)
    }
    fn end_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.unit = None;
        self.pretty.end_object_value(writer)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;

    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn a_time_is_rfc_3339_in_utc_and_what_no_calendar_shows_is_its_end() {
        assert_eq!(rfc3339(1_795_861_875_250, Unit::Milliseconds), "2026-11-28T10:31:15.250Z");
        assert_eq!(rfc3339(1_795_861_875, Unit::Seconds), "2026-11-28T10:31:15Z");
        assert_eq!(rfc3339(0, Unit::Milliseconds), "1970-01-01T00:00:00.000Z");
        assert_eq!(rfc3339(-1, Unit::Milliseconds), "1969-12-31T23:59:59.999Z");
        for unit in [Unit::Milliseconds, Unit::Seconds] {
            let last = rfc3339(i64::MAX, unit);
            assert!(last.starts_with("9999-12-30T00:00:00"), "a pause without an end");
            assert!(last.parse::<jiff::Timestamp>().is_ok(), "{last} can be read again");
            assert!(rfc3339(i64::MIN, unit).starts_with("0001-01-01T00:00:00"));
            assert!(rfc3339(first(unit), unit).starts_with("0001-01-01T00:00:00"));
            assert!(rfc3339(first(unit) - 1, unit).starts_with("0001-01-01T00:00:00"));
        }
        assert_eq!(date(1_795_861_875_250), "2026-11-28 10:31:15Z");
    }

    #[test]
    fn times_are_told_in_the_unit_that_fits() {
        assert_eq!(ago(0, 1_500), "1 s ago");
        assert_eq!(ago(5_000, 0), "0 s ago");
        assert_eq!(
            (span(-5), span(121), span(7_200), span(200_000)),
            ("-5 s".to_owned(), "2 min".to_owned(), "2 h".to_owned(), "2 days".to_owned())
        );
    }

    #[test]
    fn only_numbers_of_fields_that_hold_times_are_times() {
        let document = json!({
            "at": 1_795_861_875_250_i64, "at\n": 1_795_861_875_250_i64, "expires": 1_795_861_875,
            "ends": null, "ms": 5, "since": [1_795_861_875_250_i64, { "until": u64::MAX }], "until": "resume",
            "last_seen": { "last_contact": -1 }, "paused_until": i64::MAX, "at2": 7,
        });
        let printed: Value = serde_json::from_str(&json(&document).unwrap()).unwrap();
        let moment = "2026-11-28T10:31:15.250Z";
        assert_eq!(
            printed,
            json!({
                "at": moment, "at\n": 1_795_861_875_250_i64, "expires": "2026-11-28T10:31:15Z", "ends": null,
                "ms": 5, "since": [1_795_861_875_250_i64, { "until": "9999-12-30T00:00:00.000Z" }],
                "until": "resume",
                "last_seen": { "last_contact": "1969-12-31T23:59:59.999Z" },
                "paused_until": "9999-12-30T00:00:00.000Z", "at2": 7,
            })
        );
        // Names that are numbers, and a document that is just a number.
        assert_eq!(json(&BTreeMap::from([(1, "a")])).unwrap(), "{\n  \"1\": \"a\"\n}");
        assert_eq!(json(&7).unwrap(), "7");
    }

    #[test]
    fn a_document_without_times_is_printed_as_it_was() {
        let document = json!({ "a": [1, -2, 3.5, { "b": "x\ty" }], "c": {}, "d": [] });
        assert_eq!(json(&document).unwrap(), serde_json::to_string_pretty(&document).unwrap());
    }

    /// Fields of both programs that are times by their type and are printed, or may be one day.
    #[test]
    fn every_field_of_a_document_that_is_a_time_by_its_type_is_told_as_one() {
        let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
        let mut found = 0;
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                    continue;
                }
                let Ok(text) = std::fs::read_to_string(&path) else { continue };
                for line in text.lines() {
                    let Some((name, kind)) = line.trim().trim_end_matches(',').split_once(": ") else {
                        continue;
                    };
                    if kind == "UnixMillis" || kind == "Option<UnixMillis>" {
                        let name = name.trim_start_matches("pub ");
                        assert_eq!(unit_of(name), Some(Unit::Milliseconds), "{}: {line}", path.display());
                        found += 1;
                    }
                }
            }
        }
        assert!(found > 12, "{found}");
    }
}
