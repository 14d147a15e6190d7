//! `/proc/self/mountinfo`, proc_pid_mountinfo(5).

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// One line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountInfo {
    /// Id of the mount.
    pub id: u64,
    /// Id of the mount it is attached to.
    pub parent: u64,
    /// What of the file system is mounted.
    pub root: PathBuf,
    /// Where, relative to the process's root.
    pub mount_point: PathBuf,
    /// Options of the mount.
    pub options: String,
    /// Peer group, if it is shared.
    pub shared: Option<u64>,
    /// Peer group it receives from, if it is a slave.
    pub master: Option<u64>,
    /// Type of the file system.
    pub fs_type: String,
    /// Source.
    pub source: OsString,
    /// Options of the file system.
    pub super_options: String,
}

/// A line that is not as the manual says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a line of mountinfo")]
pub struct NotMountinfo(String);

/// The mounts of this thread's mount namespace.
///
/// # Errors
/// When it cannot be read, or a line makes no sense (`InvalidData`).
pub fn mounts() -> io::Result<Vec<MountInfo>> {
    let text = std::fs::read("/proc/thread-self/mountinfo")?;
    parse_mountinfo(&text).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// Parses a whole mountinfo file. Names are bytes: spaces and the like are undone from their octal escapes.
///
/// # Errors
/// The first line that makes no sense.
pub fn parse_mountinfo(text: &[u8]) -> Result<Vec<MountInfo>, NotMountinfo> {
    let lines = text.split(|b| *b == b'\n').filter(|line| !line.is_empty());
    let parse = |line| {
        parse_line(line).ok_or_else(|| {
            let start: String = String::from_utf8_lossy(line).chars().take(200).collect();
            NotMountinfo(start)
        })
    };
    lines.map(parse).collect()
}

fn parse_line(line: &[u8]) -> Option<MountInfo> {
    let mut fields = line.split(|b| *b == b' ');
    let id = number(fields.next()?)?;
    let parent = number(fields.next()?)?;
    let _device = fields.next()?;
    let root = unescape(fields.next()?).into();
    let mount_point = unescape(fields.next()?).into();
    let options = text(fields.next()?);
    let (mut shared, mut master) = (None, None);
    loop {
        let field = fields.next()?;
        if field == b"-" {
            break;
        }
        if let Some(group) = field.strip_prefix(b"shared:") {
            shared = Some(number(group)?);
        } else if let Some(group) = field.strip_prefix(b"master:") {
            master = Some(number(group)?);
        }
    }
    Some(MountInfo {
        id,
        parent,
        root,
        mount_point,
        options,
        shared,
        master,
        fs_type: text(fields.next()?),
        source: unescape(fields.next()?),
        super_options: text(fields.next()?),
    })
}

fn number(field: &[u8]) -> Option<u64> {
    std::str::from_utf8(field).ok()?.parse().ok()
}

fn text(field: &[u8]) -> String {
    String::from_utf8_lossy(field).into_owned()
}

/// Undoes `\040` and its like.
fn unescape(field: &[u8]) -> OsString {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, after)) = rest.split_first() {
        let escaped = match after {
            [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', ..] if *first == b'\\' => {
                Some((a - b'0') * 64 + (b - b'0') * 8 + (c - b'0'))
            }
            _ => None,
        };
        bytes.push(escaped.unwrap_or(*first));
        let used = if escaped.is_some() { 3 } else { 0 };
        rest = after.get(used..).unwrap_or_default();
    }
    OsString::from_vec(bytes)
}
