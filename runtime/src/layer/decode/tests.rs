use std::io::Write;

use super::*;

const TAR: &str = "application/vnd.oci.image.layer.v1.tar";

fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

/// Gives one byte at a time, as a bad network does.
struct Drip<'a>(&'a [u8]);

impl Read for Drip<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some((first, rest)) = self.0.split_first() else {
            return Ok(0);
        };
        buffer[0] = *first;
        self.0 = rest;
        Ok(1)
    }
}

fn decode(media_type: &str, data: &[u8]) -> io::Result<Vec<u8>> {
    let mut out = Vec::new();
    Decoder::detect(media_type, Drip(data), MAX_WINDOW_LOG)?.read_to_end(&mut out)?;
    Ok(out)
}

fn sample() -> Vec<u8> {
    (0u32..50_000).flat_map(|n| (n * n).to_le_bytes()).collect()
}

#[test]
fn every_compression_gives_the_same_bytes() {
    let data = sample();
    let zstd = zstd::encode_all(&data[..], 3).unwrap();
    for compressed in [data.clone(), gzip(&data), zstd] {
        for suffix in ["", "+gzip", "+zstd"] {
            assert_eq!(
                decode(&format!("{TAR}{suffix}"), &compressed).unwrap(),
                data
            );
        }
    }
}

#[test]
fn members_and_frames_are_joined() {
    let (a, b) = (sample(), b"more".to_vec());
    let wanted = [a.clone(), b.clone()].concat();
    assert_eq!(
        decode(TAR, &[gzip(&a), gzip(b""), gzip(&b)].concat()).unwrap(),
        wanted
    );
    let frames = [
        zstd::encode_all(&a[..], 1).unwrap(),
        zstd::encode_all(&b[..], 1).unwrap(),
    ];
    assert_eq!(decode(TAR, &frames.concat()).unwrap(), wanted);
}

/// S14, S25: cut anywhere, or with something after the end, or with a wrong trailer.
#[test]
fn damaged_streams_are_errors() {
    let data = sample();
    for whole in [gzip(&data), zstd::encode_all(&data[..], 3).unwrap()] {
        for cut in [
            7,
            11,
            100,
            whole.len() / 2,
            whole.len() - 5,
            whole.len() - 1,
        ] {
            assert!(decode(TAR, &whole[..cut]).is_err(), "cut at {cut}");
        }
        for garbage in [&b"\0\0\0\0"[..], b"garbage and more garbage"] {
            assert!(decode(TAR, &[&whole, garbage].concat()).is_err());
        }
        let mut flipped = whole.clone();
        let at = flipped.len() - 6;
        flipped[at] ^= 1;
        if whole[0] == 0x1f {
            assert!(decode(TAR, &flipped).is_err());
        }
    }
    assert!(
        Decoder::new(Compression::Gzip, &b""[..])
            .unwrap()
            .read(&mut [0; 9])
            .is_err()
    );
}

/// S15.
#[test]
fn a_flood_of_empty_members_is_an_error() {
    let empty = gzip(b"");
    let flood = empty.repeat(200_000);
    assert!(decode(TAR, &flood).is_err());
    // Small members, as lazily pulled layers have them, are fine.
    let small = gzip(b"x").repeat(5000);
    assert_eq!(decode(TAR, &small).unwrap().len(), 5000);
}

/// S15: empty zstd frames cost their own bytes, and nothing else.
#[test]
fn a_flood_of_empty_frames_ends() {
    let flood = zstd::encode_all(&b""[..], 1).unwrap().repeat(100_000);
    assert_eq!(decode(TAR, &flood).unwrap(), b"");
}

/// S17: a window that wants 1 GiB of memory.
#[test]
fn a_huge_zstd_window_is_an_error() {
    // Magic, no content size, window descriptor: exponent 20 is 2^30 bytes; a raw last block of one byte.
    let window = |exponent: u8| [0x28, 0xb5, 0x2f, 0xfd, 0, exponent << 3, 9, 0, 0, b'x'];
    assert_eq!(decode(TAR, &window(13)).unwrap(), b"x");
    assert_eq!(decode(TAR, &window(17)).unwrap(), b"x");
    assert!(decode(TAR, &window(18)).is_err());
    assert!(decode(TAR, &window(20)).is_err());
    // Nobody gets more by asking for it, and less is possible.
    for (asked, log, ok) in [
        (40, 17, true),
        (40, 18, false),
        (23, 13, true),
        (23, 14, false),
    ] {
        let frame = window(log);
        let decoder = Decoder::detect(TAR, &frame[..], asked).unwrap();
        assert_eq!(io::read_to_string(decoder).is_ok(), ok, "{asked} {log}");
    }
}

/// S26, and what nobody can unpack.
#[test]
fn other_media_types_and_compressions_are_refused() {
    let types = [
        "application/vnd.erofs.layer.v1",
        "text/html",
        "application/vnd.oci.image.layer.v1.tarball",
    ];
    for media_type in types {
        assert!(decode(media_type, b"x").is_err(), "{media_type}");
    }
    assert!(decode(&format!("{TAR}+encrypted"), b"x").is_err());
    assert!(decode(TAR, b"BZh91AY&SY").is_err());
    assert!(decode(TAR, b"\xfd7zXZ\0\0").is_err());
    assert!(
        decode(
            "application/vnd.docker.image.rootfs.diff.tar.gzip",
            &gzip(b"x")
        )
        .is_ok()
    );
}
