//! The text format that Prometheus scrapes (version 0.0.4).

use std::fmt::{Display, Write as _};

use super::numbers::Histogram;

/// What [`Text`] is served as.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What a family counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
    Histogram,
}

/// A text that is being written. Names, labels and helps are our own words, so nothing is escaped.
#[derive(Debug, Default)]
pub struct Text {
    text: String,
    name: &'static str,
}

impl Text {
    /// Begins a family; the samples that follow are its own.
    pub fn family(&mut self, name: &'static str, kind: Kind, help: &str) {
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        self.name = name;
        self.line(format_args!("# HELP {name} {help}\n# TYPE {name} {kind}"));
    }

    pub fn sample(&mut self, labels: &[(&str, &str)], value: impl Display) {
        self.of("", labels, None, &value);
    }

    pub fn histogram(&mut self, labels: &[(&str, &str)], histogram: &Histogram) {
        let scale = if self.name.ends_with("_seconds") { 1e9 } else { 1.0 };
        #[allow(clippy::cast_precision_loss)]
        let scaled = |value: u64| value as f64 / scale;
        for (bound, count) in histogram.up_to() {
            self.of("_bucket", labels, Some(&scaled(bound).to_string()), &count);
        }
        let count = histogram.count();
        self.of("_bucket", labels, Some("+Inf"), &count);
        self.of("_sum", labels, None, &scaled(histogram.sum()));
        self.of("_count", labels, None, &count);
    }

    fn of(&mut self, ending: &str, labels: &[(&str, &str)], bound: Option<&str>, value: &dyn Display) {
        let (name, mut between) = (self.name, "{");
        let _ = write!(self.text, "{name}{ending}");
        for (label, of) in labels.iter().copied().chain(bound.map(|bound| ("le", bound))) {
            let _ = write!(self.text, "{between}{label}=\"{of}\"");
            between = ",";
        }
        let end = if between == "," { "}" } else { "" };
        self.line(format_args!("{end} {value}"));
    }

    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        // A String takes everything.
        let _ = writeln!(self.text, "{line}");
    }

    pub fn finish(self) -> String {
        self.text
    }
}
