//! Why libcontainer failed. Its errors say little; the cause is in the tracing events of the process
//! where it happened, so those go to a memory file that all processes of the worker inherit.

use std::fmt::{self, Write as _};
use std::fs::File;
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::fd::OwnedFd;

use rustix::fs::MemfdFlags;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

use crate::error::{Context, Error, Result, reason};

/// Longest cause that is passed on.
const LONGEST: usize = 700;

/// Starts a line of ours, which says it better than any event; `INVALID` one that blames the request.
const OWN: char = '!';
const INVALID: char = '?';

/// How libcontainer prints an error of the kernel when it keeps the number to itself.
const NAMELESS: [&str; 5] = [
    "syscall",
    "nix error",
    "io error",
    "failed syscall to create device",
    "syscall failed",
];

/// The memory file.
#[derive(Debug)]
pub(crate) struct Report {
    file: File,
}

impl Report {
    /// Makes the file and has every error event of this process written to it.
    pub(crate) fn install() -> Result<Self> {
        let fd = rustix::fs::memfd_create("berth-report", MemfdFlags::CLOEXEC)
            .context(|| "make a memory file".to_owned())?;
        let writer = fd
            .try_clone()
            .context(|| "duplicate a descriptor".to_owned())?;
        // A second subscriber could only be another request of this process; there is none.
        let _second = tracing::subscriber::set_global_default(Writer {
            file: File::from(writer),
        });
        Ok(Self {
            file: File::from(fd),
        })
    }

    /// A descriptor for [`say`].
    pub(crate) fn writer(&self) -> Result<OwnedFd> {
        Ok(self
            .file
            .try_clone()
            .context(|| "duplicate a descriptor".to_owned())?
            .into())
    }

    /// What is known about a failure that is `general` where nothing better was said.
    pub(crate) fn explain(mut self, general: Error) -> Error {
        let mut bytes = Vec::new();
        let read = self
            .file
            .rewind()
            .and_then(|()| self.file.read_to_end(&mut bytes));
        let text = String::from_utf8_lossy(&bytes);
        if read.is_err() || text.is_empty() {
            return general;
        }
        for line in text.lines() {
            if let Some(own) = line.strip_prefix(OWN) {
                return Error::internal(own);
            }
            if let Some(own) = line.strip_prefix(INVALID) {
                return Error::invalid(own);
            }
        }
        // Events come from the inside outwards: the first is the cause, the others repeat it.
        let cause: String = text
            .lines()
            .next()
            .unwrap_or_default()
            .chars()
            .take(LONGEST)
            .collect();
        Error::internal(format!("{cause} ({general})"))
    }
}

/// Says in our own words what failed.
pub(crate) fn say(report: &OwnedFd, error: &Error) {
    let mark = if error.is_invalid() { INVALID } else { OWN };
    let line = format!("{mark}{}\n", error.to_string().replace('\n', " "));
    // Nowhere else to tell it: the general error arrives in any case.
    let _lost = rustix::io::write(report, line.as_bytes());
}

struct Writer {
    file: File,
}

impl Subscriber for Writer {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() == tracing::Level::ERROR
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(LevelFilter::ERROR)
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        // What libcontainer calls "syscall" failed a moment ago in this thread, and its number is still there.
        let last = io::Error::last_os_error();
        let mut line = Line::default();
        event.record(&mut line);
        if NAMELESS.iter().any(|name| line.message.ends_with(name)) {
            let _infallible = write!(line.message, ": {}", reason(&last));
        }
        let text = format!("{}{}\n", line.message, line.fields).replace("\\\"", "'");
        let _lost = (&self.file).write_all(text.as_bytes());
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

#[derive(Default)]
struct Line {
    message: String,
    fields: String,
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let _infallible = if field.name() == "message" {
            write!(self.message, "{value:?}")
        } else {
            write!(self.fields, ", {}: {value:?}", field.name())
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_words_win_over_events_and_events_over_nothing() {
        let general = || Error::internal("io error");
        let report = Report::install().unwrap();
        tracing::error!(path = "/x", "failed to mount");
        tracing::debug!("noise");
        let writer = report.writer().unwrap();
        let copy = Report {
            file: report.file.try_clone().unwrap(),
        };
        assert_eq!(
            copy.explain(general()).to_string(),
            "failed to mount, path: \"/x\" (io error)"
        );
        let copy = Report {
            file: report.file.try_clone().unwrap(),
        };
        say(&writer, &Error::invalid("no such\ndirectory"));
        let told = report.explain(general());
        assert_eq!(told.to_string(), "no such directory");
        assert!(told.is_invalid());
        copy.file.set_len(0).unwrap();
        (&copy.file).rewind().unwrap();
        // A failed call of this thread, as libcontainer tells of it.
        assert!(File::open("/no/such/file").is_err());
        tracing::error!("failed to mount Mount: syscall");
        assert_eq!(
            copy.explain(general()).to_string(),
            "failed to mount Mount: syscall: no such file or directory (io error)"
        );
    }
}
