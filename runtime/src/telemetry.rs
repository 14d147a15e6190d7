//! The daemon's log: records of `tracing`, on standard error, as text or JSON.
//!
//! The filter can be changed while the daemon runs (`berth log-level`). Records made while an RPC is
//! handled carry its span, and with it `rpc.id`.

use std::fmt;
use std::io::{self, IsTerminal};
use std::sync::{Arc, Mutex, PoisonError};

use tracing::Subscriber;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, reload};

use crate::model::one_line;

/// What is wrong with a log setting.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not a filter.
    #[error(
        "{0:?} is not a log filter: wanted is a level (error, warn, info, debug, trace) or a list such as \"info,berth::pod=debug\""
    )]
    Filter(String),
    /// There is one already.
    #[error("the log is already set up in this process")]
    Twice,
    /// The subscriber is gone.
    #[error("the log is shut down")]
    Gone,
}

/// Form of the records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A line of text, coloured on a terminal.
    Text,
    /// A JSON object on a line.
    Json,
}

/// Changes what is logged.
#[derive(Clone)]
pub struct LogFilter {
    handle: reload::Handle<EnvFilter, Registry>,
    current: Arc<Mutex<String>>,
}

impl fmt::Debug for LogFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LogFilter({:?})", self.current())
    }
}

impl LogFilter {
    /// The filter in force, as it was given.
    pub fn current(&self) -> String {
        self.current
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Puts another filter in force, for all records from now on.
    ///
    /// # Errors
    /// When it is not a filter; the old one stays.
    pub fn set(&self, filter: &str) -> Result<(), Error> {
        let parsed = parse(filter)?;
        self.handle.reload(parsed).map_err(|_| Error::Gone)?;
        filter
            .trim()
            .clone_into(&mut self.current.lock().unwrap_or_else(PoisonError::into_inner));
        Ok(())
    }
}

/// Sets up the log of this process and reports panics in it.
///
/// # Errors
/// When `filter` is not a filter, or the log is already set up.
pub fn init(format: Format, filter: &str) -> Result<LogFilter, Error> {
    let style = Style {
        format,
        colour: std::io::stderr().is_terminal(),
        // journald stamps what it is given (systemd.exec(5) on this variable).
        time: std::env::var_os("JOURNAL_STREAM").is_none(),
    };
    let (subscriber, handle) = build(style, filter, std::io::stderr)?;
    subscriber.try_init().map_err(|_| Error::Twice)?;
    log_panics();
    Ok(handle)
}

#[derive(Clone, Copy)]
struct Style {
    format: Format,
    colour: bool,
    time: bool,
}

fn build<W>(
    style: Style,
    filter: &str,
    writer: W,
) -> Result<(impl Subscriber + Send + Sync + use<W>, LogFilter), Error>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let (layer, handle) = reload::Layer::new(parse(filter)?);
    let handle = LogFilter {
        handle,
        current: Arc::new(Mutex::new(filter.trim().to_owned())),
    };
    let subscriber = Registry::default().with(layer).with(output(style, writer));
    Ok((subscriber, handle))
}

fn output<S, W>(style: Style, writer: W) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let colour = style.colour && style.format == Format::Text;
    let writer = OneLine {
        inner: writer,
        style,
    };
    let layer = tracing_subscriber::fmt::layer()
        .with_writer(writer)
        .with_ansi(colour);
    match (style.format, style.time) {
        // All spans, not the innermost one only: rpc.id is in the outermost.
        (Format::Json, true) => layer.json().with_current_span(false).boxed(),
        (Format::Json, false) => layer.json().with_current_span(false).without_time().boxed(),
        (Format::Text, true) => layer.boxed(),
        (Format::Text, false) => layer.without_time().boxed(),
    }
}

/// Writers of whole records, each of which stays one line, whatever texts of others are in it.
struct OneLine<W> {
    inner: W,
    style: Style,
}

impl<'a, W: MakeWriter<'a>> MakeWriter<'a> for OneLine<W> {
    type Writer = OneLine<W::Writer>;

    fn make_writer(&'a self) -> Self::Writer {
        OneLine {
            inner: self.inner.make_writer(),
            style: self.style,
        }
    }
}

impl<W: io::Write> io::Write for OneLine<W> {
    /// `tracing-subscriber` writes a record at once, with its line end.
    fn write(&mut self, record: &[u8]) -> io::Result<usize> {
        let line = record.strip_suffix(b"\n").unwrap_or(record);
        // JSON has its own escapes.
        let is_json = self.style.format == Format::Json;
        if is_json || line.iter().all(|byte| matches!(byte, b' '..=b'~')) {
            self.inner.write_all(record)?;
            return Ok(record.len());
        }
        let text = String::from_utf8_lossy(line);
        let mut clean = if self.style.colour {
            // The escapes of the colours stay; of those in the texts the crate takes care.
            let parts: Vec<_> = text.split('\x1b').map(one_line).collect();
            parts.join("\x1b")
        } else {
            one_line(&text).into_owned()
        };
        if line.len() < record.len() {
            clean.push('\n');
        }
        self.inner.write_all(clean.as_bytes())?;
        Ok(record.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

fn parse(filter: &str) -> Result<EnvFilter, Error> {
    let filter = filter.trim();
    let wrong = || Error::Filter(filter.chars().take(200).collect());
    if filter.is_empty() {
        return Err(wrong());
    }
    // EnvFilter takes any bare word for a target; here it is a misspelt level.
    for directive in filter.split(',') {
        let level: Result<tracing::level_filters::LevelFilter, _> = directive.trim().parse();
        let bare = !directive.contains(['=', '[', ':']);
        if directive.trim().is_empty() || (bare && level.is_err()) {
            return Err(wrong());
        }
    }
    EnvFilter::try_new(filter).map_err(|_| wrong())
}

/// A panic is one record with its place, in the same form as all others.
fn log_panics() {
    std::panic::set_hook(Box::new(|info| {
        let place = info
            .location()
            .map_or_else(|| "unknown".to_owned(), ToString::to_string);
        let thread = std::thread::current();
        tracing::error!(
            panic.place = place,
            panic.thread = thread.name().unwrap_or("unnamed"),
            "panic: {}",
            panic_text(info.payload())
        );
    }));
}

/// What a panic said.
pub fn panic_text(payload: &(dyn std::any::Any + Send)) -> &str {
    let text = payload.downcast_ref::<&str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A filter that is in force nowhere, for tests of those who change it. The subscriber is leaked: a
    /// filter without one cannot be changed.
    pub(crate) fn detached_filter(filter: &str) -> LogFilter {
        let (subscriber, handle) = build(style(Format::Text), filter, io::sink).unwrap();
        std::mem::forget(subscriber);
        handle
    }

    /// A log that writes text into memory, for one thread of a test.
    pub(crate) fn captured(filter: &str) -> (impl Subscriber + Send + Sync + use<>, Captured) {
        let out = Captured::default();
        let (subscriber, _) = build(style(Format::Text), filter, out.clone()).unwrap();
        (subscriber, out)
    }

    #[derive(Clone, Default)]
    pub(crate) struct Captured(Arc<Mutex<Vec<u8>>>);

    impl Captured {
        pub(crate) fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    impl io::Write for Captured {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl<'a> MakeWriter<'a> for Captured {
        type Writer = Self;

        fn make_writer(&'a self) -> Self {
            self.clone()
        }
    }

    fn style(format: Format) -> Style {
        Style {
            format,
            colour: false,
            time: false,
        }
    }

    fn speak() {
        let outer = tracing::info_span!("rpc", rpc.id = 7);
        outer.in_scope(|| {
            tracing::info_span!("step", name = "network").in_scope(|| {
                tracing::info!(pod.id = "abc", "the network is made");
                tracing::debug!("a detail");
            });
        });
    }

    #[test]
    fn every_record_of_an_rpc_has_its_id() {
        for format in [Format::Text, Format::Json] {
            let out = Captured::default();
            let (subscriber, _) = build(style(format), "info", out.clone()).unwrap();
            tracing::subscriber::with_default(subscriber, speak);
            let text = out.text();
            assert_eq!(text.lines().count(), 1, "{text}");
            if format == Format::Json {
                let record: serde_json::Value = serde_json::from_str(text.trim()).unwrap();
                assert_eq!(record["spans"][0]["rpc.id"], 7, "{text}");
                assert_eq!(record["fields"]["pod.id"], "abc", "{text}");
            } else {
                assert!(text.contains("rpc.id=7"), "{text}");
            }
        }
    }

    #[test]
    fn a_record_is_one_line_whatever_others_have_sent() {
        let hostile = "amd64\n2026 INFO all is well\r\u{1b}[2J\u{202e}x";
        for format in [Format::Text, Format::Json] {
            let out = Captured::default();
            let (subscriber, _) = build(style(format), "info", out.clone()).unwrap();
            tracing::subscriber::with_default(subscriber, || {
                tracing::info!(text = hostile, shown = %hostile, quoted = ?hostile, "the call failed: {hostile}");
                let error: &dyn std::error::Error = &io::Error::other(hostile);
                tracing::info_span!("rpc", name = hostile, shown = %hostile)
                    .in_scope(|| tracing::error!(error, "next"));
            });
            let text = out.text();
            assert_eq!(text.lines().count(), 2, "{text}");
            assert!(!text.contains(['\r', '\u{1b}']), "{text}");
            match format {
                Format::Text => assert!(!text.contains('\u{202e}'), "{text}"),
                Format::Json => {
                    let first = text.lines().next().unwrap();
                    let record: serde_json::Value = serde_json::from_str(first).unwrap();
                    assert_eq!(record["fields"]["text"], hostile);
                }
            }
            assert!(text.contains("all is well"), "{text}");
        }
    }

    #[test]
    fn the_filter_changes_while_it_runs() {
        let out = Captured::default();
        let (subscriber, filter) = build(style(Format::Text), "warn", out.clone()).unwrap();
        tracing::subscriber::with_default(subscriber, || {
            speak();
            assert_eq!(out.text(), "");
            filter.set(" info,berth=debug\n").unwrap();
            assert_eq!(filter.current(), "info,berth=debug");
            speak();
            assert!(out.text().contains("a detail"), "{}", out.text());
            for bad in ["loud", "", "berth=loud", "info,,debug"] {
                assert!(matches!(filter.set(bad), Err(Error::Filter(_))), "{bad:?}");
            }
            assert_eq!(filter.current(), "info,berth=debug");
        });
    }
}
