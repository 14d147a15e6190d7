//! Files that somebody else may have put something else in the place of.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::Path;

use rustix::fs::OFlags;

/// Reads a whole regular file of at most `limit` bytes; links to it are followed.
///
/// A FIFO would hold the reader up for ever, a device may act on being opened and have no end: neither is
/// opened. A disk that hangs still holds the caller up.
///
/// # Errors
/// `InvalidInput` for what is no regular file, `FileTooLarge` beyond the limit, else what the kernel says.
pub fn read_regular(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    regular(&std::fs::metadata(path)?)?;
    let file = OpenOptions::new()
        .read(true)
        // It may have become a FIFO or a terminal meanwhile.
        .custom_flags((OFlags::NONBLOCK | OFlags::NOCTTY).bits().cast_signed())
        .open(path)?;
    read_open(&file, limit)
}

/// The same of a file that is open already.
///
/// # Errors
/// As [`read_regular`].
pub fn read_open(file: &File, limit: u64) -> io::Result<Vec<u8>> {
    let found = file.metadata()?;
    regular(&found)?;
    let mut bytes = Vec::with_capacity(usize::try_from(found.len().min(limit)).unwrap_or(0));
    // What /proc shows has no size before it is read.
    file.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        let why = format!("it has more than {limit} bytes");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, why));
    }
    Ok(bytes)
}

/// [`read_regular`] for text.
///
/// # Errors
/// `InvalidData` for what is not UTF-8, else as [`read_regular`].
pub fn read_regular_text(path: &Path, limit: u64) -> io::Result<String> {
    String::from_utf8(read_regular(path, limit)?)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is not UTF-8"))
}

/// Refuses what is no regular file, in words.
fn regular(found: &Metadata) -> io::Result<()> {
    if found.is_file() {
        return Ok(());
    }
    let why = format!("it is {}, not a regular file", kind(found));
    Err(io::Error::new(io::ErrorKind::InvalidInput, why))
}

/// What a file is, with its article.
pub fn kind(found: &Metadata) -> &'static str {
    let kind = found.file_type();
    match () {
        () if kind.is_file() => "a regular file",
        () if kind.is_dir() => "a directory",
        () if kind.is_symlink() => "a symbolic link",
        () if kind.is_fifo() => "a FIFO",
        () if kind.is_socket() => "a socket",
        () if kind.is_char_device() || kind.is_block_device() => "a device",
        () => "something else",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_regular_files_are_read_and_never_too_much() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("file"), "12345").unwrap();
        std::os::unix::fs::symlink("file", at("link")).unwrap();
        std::os::unix::fs::symlink("/dev/zero", at("endless")).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            at("fifo"),
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
        assert_eq!(read_regular(&at("file"), 5).unwrap(), b"12345");
        assert_eq!(read_regular_text(&at("link"), 5).unwrap(), "12345");
        let error = read_regular(&at("file"), 4).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
        for (name, what) in [
            ("fifo", "a FIFO"),
            ("endless", "a device"),
            ("socket", "a socket"),
            (".", "a directory"),
        ] {
            let error = read_regular(&at(name), 1 << 20).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{name}");
            assert!(error.to_string().contains(what), "{name}: {error}");
        }
        let error = read_regular(&at("absent"), 1).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert!(
            !read_regular(Path::new("/proc/self/stat"), 1 << 20)
                .unwrap()
                .is_empty()
        );
    }
}
