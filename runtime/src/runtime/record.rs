//! Reading the exit record that a monitor leaves behind.

use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use shim_protocol::monitor::Exit;
use shim_protocol::{EXIT_RECORD_NAME, record};

use crate::sys;

/// More than any exit record has, bytes.
const LIMIT: u64 = 1 << 20;

/// How a container ended, as its monitor wrote it down.
#[derive(Clone, Debug, PartialEq)]
pub struct ExitRecord {
    /// The boot in which it ended.
    pub boot_id: String,
    /// Its end.
    pub exit: Exit,
}

/// Why a record cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// It cannot be read.
    #[error("cannot read the exit record {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// It is torn, altered, or of a version that this Berth does not know.
    #[error("the exit record {} is damaged or of an unknown version", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
    },
}

/// The body of a record (`shim_protocol::record`).
#[derive(Deserialize)]
struct Body {
    version: u32,
    boot_id: String,
    code: i32,
    started_at: i64,
    finished_at: i64,
    oom: bool,
    log_dropped: u64,
    start_error: String,
}

/// Reads the exit record in a monitor's state directory; `None` when there is none. Blocks.
///
/// # Errors
/// See [`RecordError`].
pub fn read_exit(dir: &Path) -> Result<Option<ExitRecord>, RecordError> {
    let path = dir.join(EXIT_RECORD_NAME);
    let text = match sys::fs::read_regular(&path, LIMIT) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(RecordError::Io { path, source }),
    };
    parse(&text).map(Some).ok_or(RecordError::Damaged { path })
}

fn parse(text: &[u8]) -> Option<ExitRecord> {
    let body = record::body(std::str::from_utf8(text).ok()?)?;
    let body: Body = serde_json::from_str(body).ok()?;
    (body.version == record::VERSION).then_some(ExitRecord {
        boot_id: body.boot_id,
        exit: Exit {
            code: body.code,
            finished_at: body.finished_at,
            oom: body.oom,
            log_dropped: body.log_dropped,
            start_error: body.start_error,
            started_at: body.started_at,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_a_monitor_writes_is_read(
            code: i32, finished_at: i64, started_at: i64, oom: bool, log_dropped: u64,
            start_error in ".*", boot_id in ".*",
        ) {
            let exit = Exit { code, finished_at, oom, log_dropped, start_error, started_at };
            let read = parse(record::encode(&boot_id, &exit).as_bytes());
            prop_assert_eq!(read, Some(ExitRecord { boot_id, exit }));
        }

        #[test]
        fn anything_else_is_not(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert_eq!(parse(&bytes), None);
        }
    }

    #[test]
    fn absence_and_damage_are_different() {
        let dir = tempfile::tempdir().unwrap();
        assert!(read_exit(dir.path()).unwrap().is_none());
        let file = dir.path().join(EXIT_RECORD_NAME);
        std::fs::write(&file, record::encode("b", &Exit::default())).unwrap();
        assert_eq!(read_exit(dir.path()).unwrap().unwrap().boot_id, "b");
        std::fs::write(&file, "").unwrap();
        assert!(matches!(
            read_exit(dir.path()),
            Err(RecordError::Damaged { .. })
        ));
    }
}
