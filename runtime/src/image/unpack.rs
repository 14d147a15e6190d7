//! A layer's bytes, from the source to a staging directory, on two threads: one fetches, hashes and decompresses them,
//! the other one hashes and writes what comes out.

use std::io::{self, Read};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::Error;
use super::download::Download;
use super::shelf::{Recording, Shelf, Staged};
use crate::layer::{
    Ahead, Applied, Decoder, HashingReader, Limits, MAX_WINDOW_LOG, Producer, ahead, apply,
};
use crate::model::{Digest, Kind, Kinded as _};
use crate::storage::{Recorded, Recorder};

/// What a layer must turn out to be.
#[derive(Clone)]
pub(super) struct What {
    pub(super) digest: Digest,
    pub(super) media_type: String,
    pub(super) size: u64,
    pub(super) diff_id: Digest,
    pub(super) limits: Limits,
    /// How much nicer than the daemon the thread is that decompresses it, and with it what depends on that.
    pub(super) nice: i32,
}

/// Unpacks what comes, and ends what was kept of it.
pub(super) fn unpack_download(
    shelf: &Shelf,
    mut download: Download,
    what: &What,
) -> Result<Staged, Error> {
    let unpacked = unpack(shelf, &mut download, what);
    download.close();
    unpacked
}

/// Unpacks a layer into a staging directory, and checks both digests.
pub(super) fn unpack(
    shelf: &Shelf,
    reader: impl Read + Send,
    what: &What,
) -> Result<Staged, Error> {
    let staged = shelf.stage()?;
    let recorder = staged.recorder()?;
    let (producer, mut ahead) = ahead();
    let given_up = AtomicBool::new(false);
    let (written, decoded) = std::thread::scope(|scope| {
        let decoding = std::thread::Builder::new()
            .name("decode".to_owned())
            .spawn_scoped(scope, || decode(reader, what, producer, &given_up))
            .map_err(|error| Error::Thread(Arc::new(error)))?;
        let written = write(&mut ahead, recorder, staged.dir(), &what.limits);
        // No need to fetch the rest to say that the disk is full.
        let full = matches!(&written, Err(error) if error.kind() == Kind::ResourceExhausted);
        given_up.store(full, Ordering::Relaxed);
        drop(ahead);
        Ok::<_, Error>((written, decoding.join().map_err(|_| Error::Interrupted)?))
    })?;
    crash_point!("pull_image.unpacked.after");
    // Wrong bytes come before what they led to.
    decoded?;
    let written = written.map_err(|error| what.failed(error))?;
    if written.diff_id != what.diff_id {
        return Err(Error::DiffId {
            layer: what.digest,
            want: what.diff_id,
            got: written.diff_id,
        });
    }
    Ok(Staged {
        layer: staged,
        applied: written.applied,
        diff_id: written.diff_id,
        digest: what.digest,
        compressed: what.size,
        recorded: written.recorded,
    })
}

impl What {
    fn failed(&self, source: crate::layer::Error) -> Error {
        Error::Layer {
            layer: self.digest,
            source: Arc::new(source),
        }
    }
}

/// Decompresses a layer, and checks the digest of what it came in, to its last byte whatever is in it: unless `given_up`.
fn decode(
    reader: impl Read,
    what: &What,
    producer: Producer,
    given_up: &AtomicBool,
) -> Result<(), Error> {
    be_nicer(what.nice);
    let mut compressed = HashingReader::new(Until { reader, given_up });
    match Decoder::detect(&what.media_type, &mut compressed, MAX_WINDOW_LOG) {
        Ok(mut decoder) => producer.pass(&mut decoder),
        Err(error) => {
            producer.fail(error);
            return Ok(());
        }
    }
    let rest = io::copy(&mut compressed, &mut io::sink());
    if given_up.load(Ordering::Relaxed) {
        return Ok(());
    }
    rest.map_err(|error| what.failed(crate::layer::Error::Read(error)))?;
    check(&compressed.finish().0, &what.digest)
}

/// Of this thread alone (setpriority(2), "C library/kernel differences"). That it does not work is no reason not to unpack.
fn be_nicer(more: i32) {
    let nicer = rustix::process::getpriority_process(None)
        .and_then(|own| rustix::process::setpriority_process(None, own + more));
    if let Err(error) = nicer {
        tracing::debug!(%error, "the layers of an image share the processors evenly");
    }
}

/// A reader that ends with an error once nobody wants its bytes.
struct Until<'a, R> {
    reader: R,
    given_up: &'a AtomicBool,
}

impl<R: Read> Read for Until<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.given_up.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        self.reader.read(buffer)
    }
}

fn check(got: &Digest, want: &Digest) -> Result<(), Error> {
    if got == want {
        return Ok(());
    }
    Err(Error::Content {
        host: "the archive".to_owned(),
        want: *want,
        got: *got,
    })
}

struct Written {
    applied: Applied,
    recorded: Recorded,
    diff_id: Digest,
}

fn write(
    ahead: &mut Ahead,
    recorder: Recorder,
    dir: BorrowedFd<'_>,
    limits: &Limits,
) -> Result<Written, crate::layer::Error> {
    let mut plain = HashingReader::new(ahead);
    let mut recorded = Recording::new(&mut plain, recorder);
    let applied = apply(&mut recorded, dir, limits)?;
    let recorded = recorded.finish(!applied.replaced);
    Ok(Written {
        applied,
        recorded: recorded.map_err(crate::layer::Error::Read)?,
        diff_id: plain.finish().0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn what() -> What {
        let digest = Digest::from_bytes([7; 32]);
        What {
            digest,
            media_type: "application/vnd.oci.image.layer.v1.tar".to_owned(),
            size: 1,
            diff_id: digest,
            limits: Limits::default(),
            nice: 0,
        }
    }

    #[test]
    fn of_a_layer_that_is_not_supported_no_more_is_fetched() {
        let (producer, mut ahead) = ahead();
        let endless = b"BZh91AY".chain(io::repeat(0));
        decode(endless, &what(), producer, &AtomicBool::new(false)).unwrap();
        let error = ahead.read(&mut [0; 10]).unwrap_err();
        assert!(error.to_string().contains("bzip2"), "{error}");
    }

    /// Wherever the other thread gives up: while bytes are passed on, and while those behind the end are hashed.
    #[test]
    fn no_more_is_fetched_when_the_disk_is_full() {
        let empty_gzip: &[u8] = &[
            0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0,
        ];
        for start in [&b"plain"[..], empty_gzip] {
            let (producer, ahead) = ahead();
            let given_up = AtomicBool::new(false);
            std::thread::scope(|scope| {
                let decoding = scope
                    .spawn(|| decode(start.chain(io::repeat(1)), &what(), producer, &given_up));
                std::thread::sleep(std::time::Duration::from_millis(20));
                given_up.store(true, Ordering::Relaxed);
                drop(ahead);
                decoding.join().unwrap().unwrap();
            });
        }
    }

    #[test]
    fn a_thread_is_nicer_alone() {
        let own = || rustix::process::getpriority_process(None).unwrap();
        let before = own();
        let nicer = std::thread::spawn(move || {
            be_nicer(3);
            own()
        });
        assert_eq!(nicer.join().unwrap(), (before + 3).min(19));
        assert_eq!(own(), before);
    }
}
