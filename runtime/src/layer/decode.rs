//! Decompression of layers, as streams.

use std::fmt;
use std::io::{self, BufReader, Cursor, Read};

mod gzip;

use gzip::GzipReader;

/// Input is read in pieces of this size.
const INPUT: usize = 256 * 1024;

/// zstd window of at most 128 MiB, which is what `zstd --long` makes and its decoder takes unasked. RFC 8878 wants 8 MiB
/// of every decoder; what is above that is memory on top, and only as much as there is content.
pub const MAX_WINDOW_LOG: u32 = 27;

/// How a layer is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Not.
    None,
    /// RFC 1952, any number of members.
    Gzip,
    /// RFC 8878, any number of frames.
    Zstd,
}

/// A layer that Berth does not unpack.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnsupportedLayer {
    /// Not a tar archive by its media type.
    #[error("layers of media type {0:?} are not supported")]
    MediaType(String),
    /// A tar archive in a compression that no specification names.
    #[error("layer is compressed with {0}, which is not supported: gzip, zstd and none are")]
    Compression(&'static str),
}

/// The longest magic number looked at.
const MAGIC: usize = 6;

impl Compression {
    /// From the media type, which has to be a tar layer's, and from the first bytes, which decide: layers
    /// whose compression is not the one announced are common, and containerd takes them.
    ///
    /// # Errors
    /// See [`UnsupportedLayer`].
    pub fn detect(media_type: &str, start: &[u8]) -> Result<Self, UnsupportedLayer> {
        if !is_tar(media_type) {
            let shown = media_type.chars().take(100).collect();
            return Err(UnsupportedLayer::MediaType(shown));
        }
        match start {
            [0x1f, 0x8b, ..] => Ok(Self::Gzip),
            // A frame, or a skippable frame before it (zstd:chunked has those at its end only, others first).
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Ok(Self::Zstd),
            [b'B', b'Z', b'h', ..] => Err(UnsupportedLayer::Compression("bzip2")),
            [0xfd, b'7', b'z', b'X', b'Z', ..] => Err(UnsupportedLayer::Compression("xz")),
            _ => Ok(Self::None),
        }
    }
}

/// OCI image-spec, layer.md, and the Docker types of the same meaning; empty is what archives of images have.
fn is_tar(media_type: &str) -> bool {
    let base = [
        "application/vnd.oci.image.layer.v1.tar",
        "application/vnd.oci.image.layer.nondistributable.v1.tar",
        "application/vnd.docker.image.rootfs.diff.tar",
        "application/vnd.docker.image.rootfs.foreign.diff.tar",
    ];
    let suffix = |base| media_type.strip_prefix(base);
    media_type.is_empty()
        || base
            .into_iter()
            .find_map(suffix)
            .is_some_and(|rest| matches!(rest, "" | "+gzip" | "+zstd" | ".gzip" | ".zstd"))
}

type Input<R> = BufReader<io::Chain<Cursor<Vec<u8>>, R>>;

/// The uncompressed bytes of a layer. Truncated input and anything after the end are errors.
pub struct Decoder<R: Read> {
    inner: Inner<R>,
}

enum Inner<R: Read> {
    Plain(Input<R>),
    Gzip(Box<GzipReader<Input<R>>>),
    Zstd(Box<zstd::stream::read::Decoder<'static, Input<R>>>),
}

impl<R: Read> Decoder<R> {
    /// For a compression that is known, with the largest window limit.
    ///
    /// # Errors
    /// When zstd cannot be set up.
    pub fn new(compression: Compression, reader: R) -> io::Result<Self> {
        Self::build(compression, Vec::new(), reader, MAX_WINDOW_LOG)
    }

    /// Looks at the first bytes to find out. `window_log` is the binary logarithm of the largest zstd window in
    /// bytes, at most [`MAX_WINDOW_LOG`].
    ///
    /// # Errors
    /// What reading says; an unsupported layer is `InvalidData` around [`UnsupportedLayer`].
    pub fn detect(media_type: &str, mut reader: R, window_log: u32) -> io::Result<Self> {
        let mut start = Vec::with_capacity(MAGIC);
        reader.by_ref().take(MAGIC as u64).read_to_end(&mut start)?;
        let compression = Compression::detect(media_type, &start)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        Self::build(compression, start, reader, window_log)
    }

    fn build(
        compression: Compression,
        start: Vec<u8>,
        reader: R,
        window_log: u32,
    ) -> io::Result<Self> {
        let input = BufReader::with_capacity(INPUT, Cursor::new(start).chain(reader));
        let inner = match compression {
            Compression::None => Inner::Plain(input),
            Compression::Gzip => Inner::Gzip(Box::new(GzipReader::new(input))),
            Compression::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(input)?;
                decoder.window_log_max(window_log.min(MAX_WINDOW_LOG))?;
                Inner::Zstd(Box::new(decoder))
            }
        };
        Ok(Self { inner })
    }

    /// How the layer is compressed.
    pub fn compression(&self) -> Compression {
        match self.inner {
            Inner::Plain(_) => Compression::None,
            Inner::Gzip(_) => Compression::Gzip,
            Inner::Zstd(_) => Compression::Zstd,
        }
    }
}

impl<R: Read> Read for Decoder<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &mut self.inner {
            Inner::Plain(reader) => reader.read(buffer),
            Inner::Gzip(reader) => reader.read(buffer),
            Inner::Zstd(reader) => reader.read(buffer),
        }
    }
}

impl<R: Read> fmt::Debug for Decoder<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Decoder").field(&self.compression()).finish()
    }
}

#[cfg(test)]
mod tests;
