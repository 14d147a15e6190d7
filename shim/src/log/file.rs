//! Appending batches of records to the log file, and what happens when the disk refuses them.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use memchr::{memchr_iter, memrchr};
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::format::{self, OVERHEAD, Source, Tag};
use crate::sys::Buffer;

/// How often a refused log is tried again while there is no output.
const RETRY: Duration = Duration::from_secs(5);

/// How a log is written to.
const APPEND: OFlags = OFlags::WRONLY
    .union(OFlags::APPEND)
    .union(OFlags::CLOEXEC)
    .union(OFlags::NOCTTY)
    .union(OFlags::NONBLOCK);

/// How often the file may come and go while it is opened.
const TRIES: u32 = 16;

/// Where the log is.
pub(crate) struct Target {
    /// Its directory.
    pub dir: OwnedFd,
    /// Its file name there.
    pub name: String,
}

impl Target {
    /// Opens the file for appending, making it if need be. A symlink is refused, and so is anything
    /// but a regular file: what is in the log's directory need not be ours (rows S106, S107).
    fn open(&self) -> io::Result<OwnedFd> {
        for _ in 0..TRIES {
            // Looked at before it is opened: with some devices opening alone does something.
            let place = match self.openat(OFlags::PATH, Mode::empty()) {
                Ok(place) => place,
                Err(Errno::NOENT) => {
                    let mode = Mode::RUSR | Mode::WUSR | Mode::RGRP;
                    match self.openat(APPEND | OFlags::CREATE | OFlags::EXCL, mode) {
                        Err(Errno::EXIST) => continue,
                        made => return Ok(made?),
                    }
                }
                Err(error) => return Err(error.into()),
            };
            let kind = FileType::from_raw_mode(rustix::fs::fstat(&place)?.st_mode);
            if kind != FileType::RegularFile {
                return Err(io::Error::other("it exists and is not a regular file"));
            }
            let path = format!("/proc/self/fd/{}", place.as_raw_fd());
            return Ok(rustix::fs::open(path, APPEND, Mode::empty())?);
        }
        Err(io::Error::other("somebody else makes and removes it"))
    }

    fn openat(&self, flags: OFlags, mode: Mode) -> rustix::io::Result<OwnedFd> {
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        rustix::fs::openat2(&self.dir, self.name.as_str(), flags, mode, resolve)
    }
}

/// The open log file.
struct File {
    target: Target,
    file: OwnedFd,
    /// Why it refused a record last.
    cause: Errno,
    /// A piece of a record stands at its end and could not be taken away.
    torn: bool,
}

impl File {
    fn open(target: Target) -> io::Result<Self> {
        let file = target.open()?;
        Ok(Self {
            target,
            file,
            cause: Errno::IO,
            torn: false,
        })
    }

    /// Appends whole records; returns how many bytes of whole records are in the file.
    fn append(&mut self, records: &[u8]) -> usize {
        if self.torn && rustix::io::write(&self.file, b"\n") != Ok(1) {
            return 0;
        }
        self.torn = false;
        let mut done = 0;
        while done < records.len() {
            match rustix::io::write(&self.file, &records[done..]) {
                Ok(n) if n > 0 => done += n,
                Err(Errno::INTR) => {}
                other => {
                    self.cause = other.err().unwrap_or(Errno::IO);
                    return self.take_back(&records[..done]);
                }
            }
        }
        done
    }

    /// Removes the piece of a record that `written` ends with; returns the length of what stays.
    fn take_back(&mut self, written: &[u8]) -> usize {
        let whole = memrchr(b'\n', written).map_or(0, |at| at + 1);
        if whole < written.len() {
            self.torn = cut(&self.file, written.len() - whole).is_err();
        }
        whole
    }
}

/// Takes the last `length` bytes off a file that nobody else writes to.
fn cut(file: &OwnedFd, length: usize) -> io::Result<()> {
    let size = u64::try_from(rustix::fs::fstat(file)?.st_size).unwrap_or(0);
    let size = size
        .checked_sub(length as u64)
        .ok_or(io::ErrorKind::InvalidData)?;
    Ok(rustix::fs::ftruncate(file, size)?)
}

/// Framed records on their way into the file.
pub(crate) struct Output {
    file: Option<File>,
    buffer: Buffer,
    used: usize,
    /// Payload bytes lost, and how many of them the log knows of.
    dropped: u64,
    told: u64,
    retry_at: Option<Instant>,
}

impl Output {
    /// Opens the file, with room for `room` bytes of records.
    pub(super) fn open(target: Option<Target>, room: usize) -> io::Result<Self> {
        Ok(Self {
            file: target.map(File::open).transpose()?,
            buffer: Buffer::reserve(room)?,
            used: 0,
            dropped: 0,
            told: 0,
            retry_at: None,
        })
    }

    /// There is a log at all.
    pub(super) fn wanted(&self) -> bool {
        self.file.is_some()
    }

    /// Payload bytes lost so far.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped
    }

    /// When to call [`Output::tell`] if there is no output before.
    pub(super) fn retry_at(&self) -> Option<Instant> {
        self.retry_at
    }

    /// Gives memory back.
    pub(super) fn release(&mut self) {
        self.buffer.release();
    }

    /// Room for a record of `length` bytes; [`Output::filled`] says how much of it was used.
    pub(super) fn room(&mut self, length: usize) -> &mut [u8] {
        if self.buffer.len() - self.used < length {
            self.flush();
        }
        &mut self.buffer[self.used..]
    }

    /// Takes a record that was put into [`Output::room`].
    pub(super) fn filled(&mut self, length: usize) {
        self.used += length;
    }

    /// Opens the file anew, in another directory if one is given. On failure the old one stays in use.
    pub(super) fn reopen(&mut self, dir: Option<OwnedFd>) -> io::Result<()> {
        self.flush();
        if let Some(file) = &mut self.file {
            match dir {
                Some(dir) => {
                    let name = file.target.name.clone();
                    *file = File::open(Target { dir, name })?;
                }
                None => {
                    file.file = file.target.open()?;
                    file.torn = false;
                }
            }
        }
        Ok(())
    }

    /// Writes all records.
    pub(super) fn flush(&mut self) {
        let used = std::mem::take(&mut self.used);
        if used == 0 {
            return;
        }
        let told = self.tell();
        let records = &self.buffer[..used];
        let written = match &mut self.file {
            Some(file) if told => file.append(records),
            Some(_) => 0,
            None => used,
        };
        if written < used {
            let lost = &records[written..];
            let count = memchr_iter(b'\n', lost).count();
            self.dropped += (lost.len() - count * OVERHEAD) as u64;
            self.retry_at = Some(Instant::now() + RETRY);
        }
    }

    /// Tells of losses that the log does not know of yet. False: the log still cannot be written.
    pub(super) fn tell(&mut self) -> bool {
        let lost = self.dropped - self.told;
        let Some(file) = self.file.as_mut().filter(|_| lost > 0) else {
            self.retry_at = None;
            return true;
        };
        let text = format!(
            "berth: {lost} bytes of output were lost here, the log could not be written: {}",
            io::Error::from(file.cause)
        );
        let prefix = format::prefix(Source::Stderr, crate::time::now());
        let mut record = vec![0; text.len() + OVERHEAD];
        format::put(&mut record, &prefix, Tag::Full, text.as_bytes());
        if file.append(&record) < record.len() {
            self.retry_at = Some(Instant::now() + RETRY);
            return false;
        }
        self.told = self.dropped;
        self.retry_at = None;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::path::Path;

    fn target(dir: &Path, name: &str) -> Target {
        let dir = fs::File::open(dir).unwrap().into();
        Target {
            dir,
            name: name.into(),
        }
    }

    fn write(output: &mut Output, payload: &[u8]) {
        let prefix = format::prefix(Source::Stdout, 0);
        let room = output.room(payload.len() + OVERHEAD);
        let used = format::put(room, &prefix, Tag::Full, payload);
        output.filled(used);
    }

    #[test]
    fn only_a_regular_file_in_the_directory_is_a_log() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("elsewhere"), "").unwrap();
        std::os::unix::fs::symlink("elsewhere", dir.path().join("link")).unwrap();
        fs::create_dir(dir.path().join("dir")).unwrap();
        let fifo = dir.path().join("fifo");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, FileType::Fifo, Mode::RWXU, 0).unwrap();
        // Nobody waits in an open(2) of it, nor does the device see one.
        let device = dir.path().join("device");
        let null = rustix::fs::makedev(1, 3);
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &device,
            FileType::CharacterDevice,
            Mode::RWXU,
            null,
        )
        .unwrap();
        for bad in [
            "link",
            "dir",
            "fifo",
            "device",
            "../x",
            "/tmp/x",
            "",
            "/dev/null",
        ] {
            assert!(target(dir.path(), bad).open().is_err(), "{bad}");
        }
        target(dir.path(), "good").open().unwrap();
        let mode =
            std::os::unix::fs::MetadataExt::mode(&dir.path().join("good").metadata().unwrap());
        assert_eq!(mode & 0o7137, 0);
    }

    #[test]
    fn reopening_changes_the_file_or_fails_and_keeps_the_old() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut output = Output::open(Some(target(dir.path(), "log")), 4096).unwrap();
        write(&mut output, b"one");
        output.flush();
        fs::rename(&path, dir.path().join("old")).unwrap();
        write(&mut output, b"two");
        output.reopen(None).unwrap();
        assert_eq!(fs::read(&path).unwrap().len(), 0);
        write(&mut output, b"three");
        output.flush();
        assert!(fs::read_to_string(&path).unwrap().ends_with(" three\n"));
        assert!(
            fs::read_to_string(dir.path().join("old"))
                .unwrap()
                .ends_with(" two\n")
        );
        fs::remove_dir_all(dir.path()).unwrap();
        assert!(output.reopen(None).is_err());
        write(&mut output, b"four");
        output.flush();
        assert_eq!(output.dropped(), 0);
        fs::create_dir(dir.path()).unwrap();
        std::os::unix::fs::symlink("elsewhere", &path).unwrap();
        let again = || Some(fs::File::open(dir.path()).unwrap().into());
        assert!(output.reopen(again()).is_err());
        fs::remove_file(&path).unwrap();
        output.reopen(again()).unwrap();
        write(&mut output, b"five");
        output.flush();
        assert!(fs::read_to_string(&path).unwrap().ends_with(" five\n"));
    }

    #[test]
    fn a_full_disk_loses_whole_records_and_says_how_much() {
        let dir = tempfile::tempdir().unwrap();
        let fs_type = "tmpfs";
        rustix::mount::mount(
            fs_type,
            dir.path(),
            fs_type,
            rustix::mount::MountFlags::empty(),
            Some(c"size=64k"),
        )
        .unwrap();
        let ballast = dir.path().join("ballast");
        fs::write(&ballast, vec![0; 32 << 10]).unwrap();
        let mut output = Output::open(Some(target(dir.path(), "log")), 256 << 10).unwrap();
        let payload = [b'x'; 59];
        for _ in 0..1000 {
            write(&mut output, &payload);
        }
        output.flush();
        let lost = output.dropped();
        assert!(lost > 0 && lost.is_multiple_of(59), "{lost}");
        assert!(!output.tell());
        write(&mut output, &payload);
        output.flush();
        assert_eq!(output.dropped(), lost + 59);
        assert!(output.retry_at().is_some());
        fs::remove_file(&ballast).unwrap();
        write(&mut output, b"again");
        output.flush();
        assert!(output.retry_at().is_none());
        let log = fs::read_to_string(dir.path().join("log")).unwrap();
        rustix::mount::unmount(dir.path(), rustix::mount::UnmountFlags::DETACH).unwrap();
        let mut lines: Vec<&str> = log.lines().collect();
        assert!(lines.pop().unwrap().ends_with(" stdout F again"));
        let told = format!(
            " stderr F berth: {} bytes of output were lost here",
            lost + 59
        );
        assert!(lines.pop().unwrap().contains(&told), "{log}");
        assert_eq!(lines.len() as u64, 1000 - lost / 59);
        assert!(lines.iter().all(|l| l.len() == 59 + OVERHEAD - 1));
    }
}
