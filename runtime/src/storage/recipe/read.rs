//! The archive made again.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use zstd::stream::read::Decoder;

use super::super::is_unreadable;
use super::compare::Comparison;
use super::{ENTRY_TAG, LITERAL, LITERAL_TAG};
use crate::sys::fs::open_in_root;

/// Longest name that a recipe may have: an extension header's.
const MAX_NAME: usize = 1 << 20;

/// What is wrong with a layer, as an error of reading its archive.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Fault(String);

pub(super) fn fault(text: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, Fault(text.into()))
}

/// Whether reading failed because of what the layer is, and not because reading was not possible.
pub(in crate::storage) fn is_fault(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<Fault>())
}

/// Whether entries are compared with the files on the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::storage) enum Compare {
    /// All that an entry says but times and extended attributes.
    Entries,
    /// Nothing but what is read.
    Content,
}

/// A layer's archive, made from its recipe and its files while it is read.
pub struct Replay {
    recipe: Decoder<'static, BufReader<File>>,
    root: OwnedFd,
    comparison: Option<Comparison>,
    /// Literal bytes that are not given out yet.
    literal: Vec<u8>,
    at: usize,
    /// The file whose content comes now, with its name and how much is left.
    file: Option<(File, Vec<u8>, u64)>,
    ended: bool,
}

impl std::fmt::Debug for Replay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Replay").finish_non_exhaustive()
    }
}

impl Replay {
    pub(in crate::storage) fn new(
        recipe: File,
        root: OwnedFd,
        compare: Compare,
    ) -> io::Result<Self> {
        let comparison = match compare {
            Compare::Entries => Some(Comparison::new(root.try_clone()?)),
            Compare::Content => None,
        };
        Ok(Self {
            recipe: Decoder::new(recipe)?,
            root,
            comparison,
            literal: Vec::new(),
            at: 0,
            file: None,
            ended: false,
        })
    }

    fn number<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.recipe.read_exact(&mut bytes).map_err(torn)?;
        Ok(bytes)
    }

    fn bytes(&mut self, limit: usize) -> io::Result<Vec<u8>> {
        let length = usize::try_from(u32::from_le_bytes(self.number()?)).unwrap_or(usize::MAX);
        if length > limit {
            return Err(fault("its recipe is damaged"));
        }
        let mut bytes = vec![0; length];
        self.recipe.read_exact(&mut bytes).map_err(torn)?;
        Ok(bytes)
    }

    /// Reads the next part.
    fn next(&mut self) -> io::Result<()> {
        let mut tag = [0];
        if self.recipe.read(&mut tag).map_err(torn)? == 0 {
            self.ended = true;
            return Ok(());
        }
        match tag {
            [LITERAL_TAG] => {
                self.literal = self.bytes(LITERAL)?;
                self.at = 0;
                Ok(())
            }
            [ENTRY_TAG] => self.entry(),
            _ => Err(fault("its recipe is damaged")),
        }
    }

    fn entry(&mut self) -> io::Result<()> {
        // Type, mode, user and group are in the header as well.
        let _: [u8; 13] = self.number()?;
        let size = u64::from_le_bytes(self.number()?);
        let [content] = self.number()?;
        let name = self.bytes(MAX_NAME)?;
        if content != 1 {
            return Ok(());
        }
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = File::from(open(&self.root, &name, flags)?);
        let stat = file.metadata()?;
        if !stat.is_file() || stat.len() != size {
            return Err(wrong_size(&name, size));
        }
        self.file = Some((file, name, size));
        Ok(())
    }
}

pub(super) fn wrong_size(name: &[u8], size: u64) -> io::Error {
    fault(format!("{} is no file of {size} bytes", shown(name)))
}

/// Opens something of the layer, whose last component is not followed.
pub(super) fn open(root: &OwnedFd, name: &[u8], flags: OFlags) -> io::Result<OwnedFd> {
    let path = Path::new(OsStr::from_bytes(name));
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    open_in_root(root.as_fd(), path, flags, Mode::empty()).map_err(|error| {
        match Errno::from_io_error(&error) {
            Some(Errno::NOENT | Errno::NAMETOOLONG) => fault(format!("{} is missing", shown(name))),
            // A link or something else where the archive has a file.
            Some(Errno::NOTDIR | Errno::LOOP) => {
                fault(format!("{} is something else", shown(name)))
            }
            _ => unreadable(name, error),
        }
    })
}

/// What the disk cannot give back is damage as well.
pub(super) fn unreadable(name: &[u8], error: io::Error) -> io::Error {
    match is_unreadable(&error) {
        true => fault(format!("{} cannot be read: {error}", shown(name))),
        false => error,
    }
}

fn torn(error: io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(_) => unreadable(b"its recipe", error),
        None => fault("its recipe is damaged"),
    }
}

/// A name from an archive, of bounded length.
pub(super) fn shown(name: &[u8]) -> String {
    let name = name.get(..200).unwrap_or(name);
    format!("{:?}", String::from_utf8_lossy(name))
}

impl Read for Replay {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.more(buffer)?;
        if let Some(comparison) = &mut self.comparison {
            match buffer.get(..length).unwrap_or_default() {
                [] if !buffer.is_empty() => comparison.finish()?,
                bytes => comparison.feed(bytes)?,
            }
        }
        Ok(length)
    }
}

impl Replay {
    /// The next bytes; none at the end.
    fn more(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if let Some(bytes) = self.literal.get(self.at..).filter(|b| !b.is_empty()) {
                let length = bytes.len().min(buffer.len());
                let (to, from) = (buffer.get_mut(..length), bytes.get(..length));
                if let (Some(to), Some(from)) = (to, from) {
                    to.copy_from_slice(from);
                }
                self.at += length;
                return Ok(length);
            }
            if let Some((file, name, left)) = &mut self.file {
                let room = usize::try_from(*left)
                    .unwrap_or(usize::MAX)
                    .min(buffer.len());
                let length = file.read(buffer.get_mut(..room).unwrap_or_default());
                let length = length.map_err(|error| unreadable(name, error))?;
                if length == 0 && room > 0 {
                    return Err(fault(format!("{} became shorter", shown(name))));
                }
                *left -= length as u64;
                if *left == 0 {
                    self.file = None;
                }
                return Ok(length);
            }
            if self.ended {
                return Ok(0);
            }
            self.next()?;
        }
    }
}
