//! New limits for a living container.

use std::path::PathBuf;

use shim_protocol::worker::CgroupWrite;

use super::Error;
use crate::sys::cgroup::write_value;

/// Writes values in order. If one is refused, those written before get their old values back, in reverse.
/// An optional write to a file that is not there is left out.
///
/// # Errors
/// What the kernel refused, and whether the old values are back.
pub fn apply_writes(writes: &[CgroupWrite]) -> Result<(), Error> {
    let mut before: Vec<(PathBuf, String)> = Vec::new();
    for write in writes {
        let path = PathBuf::from(&write.file);
        let old = match std::fs::read_to_string(&path) {
            Ok(old) => Some(old.trim_end().to_owned()),
            Err(error) if write.optional && error.kind() == std::io::ErrorKind::NotFound => {
                continue;
            }
            // devices.allow and its like cannot be read, and so cannot be put back.
            Err(_) => None,
        };
        if let Err(source) = write_value(&path, &write.value) {
            let restored = restore(&before);
            return Err(Error::Write {
                path,
                value: write.value.clone(),
                restored,
                source,
            });
        }
        before.extend(old.map(|old| (path, old)));
    }
    Ok(())
}

fn restore(before: &[(PathBuf, String)]) -> bool {
    let mut whole = true;
    for (path, value) in before.iter().rev() {
        if let Err(error) = write_value(path, value) {
            tracing::warn!(%error, file = %path.display(), value, "an old limit could not be restored");
            whole = false;
        }
    }
    whole
}
