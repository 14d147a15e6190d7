//! The tar format: headers, what extends them, and maps of sparse files.
//!
//! One reading of them for who unpacks a layer and who makes its archive again: where two readers of one program disagree,
//! a good layer is called damaged.

pub(crate) mod header;
pub(crate) mod name;
pub(crate) mod pax;
pub(crate) mod sparse;

/// Bytes of a header, to multiples of which content is padded.
pub(crate) const BLOCK: usize = 512;

/// Seconds and nanoseconds since the Unix epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Time {
    pub(crate) sec: i64,
    pub(crate) nsec: u32,
}

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Type {
    File,
    HardLink,
    Symlink,
    Char,
    Block,
    Dir,
    Fifo,
}

impl Type {
    /// What a type flag means to an entry of this name; none if nobody knows it.
    pub(crate) fn of(flag: u8, name: &[u8]) -> Option<Self> {
        Some(match flag {
            // Before POSIX there was no type for directories.
            b'\0' if name.ends_with(b"/") => Self::Dir,
            b'\0' | b'0' | b'7' | b'S' => Self::File,
            b'1' => Self::HardLink,
            b'2' => Self::Symlink,
            b'3' => Self::Char,
            b'4' => Self::Block,
            b'5' => Self::Dir,
            b'6' => Self::Fifo,
            _ => return None,
        })
    }

    /// Whether the kernel has no `user.*` attributes for it.
    pub(crate) fn is_special(self) -> bool {
        !matches!(self, Self::File | Self::Dir)
    }
}
