//! Log lines of both programs: to the journal under systemd, plain lines on standard error elsewhere. Text
//! from elsewhere is escaped, as everywhere.

use std::fmt;

use tracing::field::{Field, Value, Visit, display};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::{Context, Layered, SubscriberExt as _};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer, Registry};

use crate::shown::{Shown, field};
use crate::terminal;

/// Starts logging. A second call changes nothing.
pub fn start<F>(filter: F, journal: impl FnOnce(tracing_journald::Layer) -> tracing_journald::Layer)
where
    F: Layer<Registry> + Send + Sync + 'static,
    Layered<F, Registry>: Send + Sync,
{
    let registry = tracing_subscriber::registry().with(filter);
    // systemd sets this for services whose output goes to the journal.
    if std::env::var_os("JOURNAL_STREAM").is_some()
        && let Ok(layer) = tracing_journald::layer()
    {
        let _ = registry.with(ShownFields(journal(layer))).try_init();
        return;
    }
    let _ = registry.with(ShownFields(lines(terminal::stderr))).try_init();
}

/// The same, as one JSON object a line on standard error, wherever the program runs.
#[cfg(feature = "logging-json")]
pub fn start_json<F>(filter: F)
where
    F: Layer<Registry> + Send + Sync + 'static,
    Layered<F, Registry>: Send + Sync,
{
    let lines = tracing_subscriber::fmt::layer()
        .json()
        .flatten_event(true)
        .with_span_list(false)
        .with_writer(terminal::stderr)
        .with_target(false)
        .log_internal_errors(false);
    let _ = tracing_subscriber::registry().with(filter).with(ShownFields(lines)).try_init();
}

/// Plain lines. A log line that cannot be written is dropped: reporting that would fail the same way.
fn lines<S, W>(writer: W) -> impl Layer<S> + Send + Sync
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: for<'a> tracing_subscriber::fmt::MakeWriter<'a> + Send + Sync + 'static,
{
    tracing_subscriber::fmt::layer()
        .with_writer(writer)
        .with_ansi(false)
        .with_target(false)
        .log_internal_errors(false)
}

/// Passes events on with their texts escaped. Span fields hold only our own names and numbers.
struct ShownFields<L>(L);

impl<S, L> Layer<S> for ShownFields<L>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    L: Layer<S>,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        self.0.on_new_span(attributes, id, context);
    }
    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        self.0.on_record(id, values, context);
    }
    fn on_enter(&self, id: &Id, context: Context<'_, S>) {
        self.0.on_enter(id, context);
    }
    fn on_exit(&self, id: &Id, context: Context<'_, S>) {
        self.0.on_exit(id, context);
    }
    fn on_close(&self, id: Id, context: Context<'_, S>) {
        self.0.on_close(id, context);
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let fields = event.metadata().fields();
        let mut values = Values((0..fields.len()).map(|_| None).collect());
        event.record(&mut values);
        let values: Vec<Option<&dyn Value>> = values.0.iter().map(Option::as_deref).collect();
        self.0.on_event(&Event::new(event.metadata(), &fields.value_set_all(&values)), context);
    }
}

/// The values of an event, by the index of their field.
struct Values(Vec<Option<Box<dyn Value>>>);

impl Values {
    fn keep(&mut self, field: &Field, value: impl Value + 'static) {
        if let Some(place) = self.0.get_mut(field.index()) {
            *place = Some(Box::new(value));
        }
    }
}

impl Visit for Values {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.keep(field, value);
    }
    fn record_i64(&mut self, field: &Field, value: i64) {
        self.keep(field, value);
    }
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.keep(field, value);
    }
    fn record_bool(&mut self, field: &Field, value: bool) {
        self.keep(field, value);
    }
    fn record_str(&mut self, name: &Field, value: &str) {
        self.keep(name, field(value));
    }
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.keep(field, display(Shown(format!("{value:?}")).to_string()));
    }
}

#[cfg(test)]
mod tests {
    use std::io::{self, Write};
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::shown::is_unseen;

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);
    impl Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_text_from_elsewhere_is_a_part_of_one_log_line() {
        let kept = Kept::default();
        let writer = kept.clone();
        let subscriber = tracing_subscriber::registry().with(ShownFields(lines(move || writer.clone())));
        let hostile = "x\u{1b}[2J\n2026-01-01 ERROR forged\u{202e}\u{200b}";
        tracing::subscriber::with_default(subscriber, || {
            tracing::warn!(number = 7, flag = true, note = hostile, error = %hostile, "said: {hostile}");
        });
        let text = String::from_utf8(kept.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(!text.trim_end_matches('\n').contains(is_unseen), "{text:?}");
        for part in ["WARN", "said: x\\u{1b}[2J\\n2026", "number=7", "flag=true", "\\u{202e}\\u{200b}"] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
}
