//! The CRI log format: `<RFC 3339 with nanoseconds> <stdout|stderr> <F|P> <payload>\n` (rows X001-X004).
//!
//! Pure: bytes in, records out.

use memchr::memchr;

/// Bytes of a record before its payload.
pub(crate) const PREFIX: usize = 40;

/// Bytes that a record needs besides its payload.
pub(crate) const OVERHEAD: usize = PREFIX + 1;

/// Where the tag stands in a prefix.
const TAG: usize = PREFIX - 2;

/// The beginning of a record, made once for many records.
pub(crate) type Prefix = [u8; PREFIX];

/// A stream's name in the log; both have six letters, which keeps prefixes of one length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// Standard output, and everything a terminal shows.
    Stdout,
    /// Standard error.
    Stderr,
}

/// Whether a record ends its line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tag {
    /// It does.
    Full,
    /// The line goes on in the next record of its stream.
    Partial,
}

/// The prefix of full records of a stream at a time (nanoseconds since the Unix epoch).
pub(crate) fn prefix(source: Source, time: i64) -> Prefix {
    let mut p = *b"0000-00-00T00:00:00.000000000Z stdout F ";
    let seconds = time.div_euclid(1_000_000_000);
    let (year, month, day) = civil(seconds.div_euclid(86_400));
    let second = seconds.rem_euclid(86_400);
    digits(&mut p[0..4], year);
    digits(&mut p[5..7], month);
    digits(&mut p[8..10], day);
    digits(&mut p[11..13], second / 3600);
    digits(&mut p[14..16], second / 60 % 60);
    digits(&mut p[17..19], second % 60);
    digits(&mut p[20..29], time.rem_euclid(1_000_000_000));
    if source == Source::Stderr {
        p[34..37].copy_from_slice(b"err");
    }
    p
}

/// Writes a number with leading zeros.
fn digits(to: &mut [u8], mut number: i64) {
    for byte in to.iter_mut().rev() {
        *byte = b'0' + u8::try_from(number.rem_euclid(10)).unwrap_or(0);
        number = number.div_euclid(10);
    }
}

/// Year, month and day of a day since the Unix epoch, in the Gregorian calendar.
///
/// Counts days from 1 March of year 0, so that the leap day is the last of its year.
fn civil(day: i64) -> (i64, i64, i64) {
    let day = day + 719_468;
    let era = day.div_euclid(146_097);
    let of_era = day.rem_euclid(146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (year + era * 400 + i64::from(month <= 2), month, day)
}

/// Takes records.
pub(crate) trait Sink {
    /// Takes one record.
    fn record(&mut self, prefix: &Prefix, tag: Tag, payload: &[u8]);
}

/// Cuts `data`, which begins at the beginning of a record, into records of at most `max` payload
/// bytes. Returns how many bytes were used; the rest, at most `max` + 1 bytes, belongs before the next data.
pub(crate) fn frame(data: &[u8], max: usize, prefix: &Prefix, sink: &mut impl Sink) -> usize {
    let mut at = 0;
    while let Some(length) = memchr(b'\n', &data[at..]) {
        let line = &data[at..at + length];
        at += length + 1;
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.len() <= max {
            sink.record(prefix, Tag::Full, line);
        } else {
            let rest = partials(line, max, prefix, sink);
            sink.record(prefix, Tag::Full, &line[rest..]);
        }
    }
    let rest = &data[at..];
    // A carriage return at the end may yet turn out to belong to the line feed.
    let sure = rest.strip_suffix(b"\r").unwrap_or(rest);
    if sure.len() > max {
        at += partials(sure, max, prefix, sink);
    }
    at
}

/// Writes partial records while more than `max` bytes are left; returns how many bytes they took.
fn partials(line: &[u8], max: usize, prefix: &Prefix, sink: &mut impl Sink) -> usize {
    let mut at = 0;
    while line.len() - at > max {
        sink.record(prefix, Tag::Partial, &line[at..at + max]);
        at += max;
    }
    at
}

/// Writes what is left at the end of a stream, which no line feed has ended.
pub(crate) fn finish(rest: &[u8], max: usize, prefix: &Prefix, sink: &mut impl Sink) {
    for piece in rest.chunks(max) {
        sink.record(prefix, Tag::Partial, piece);
    }
}

/// Puts a record at the beginning of `to`, which has room for it, and returns its length.
pub(crate) fn put(to: &mut [u8], prefix: &Prefix, tag: Tag, payload: &[u8]) -> usize {
    let length = payload.len() + OVERHEAD;
    let to = &mut to[..length];
    to[..PREFIX].copy_from_slice(prefix);
    if tag == Tag::Partial {
        to[TAG] = b'P';
    }
    copy(&mut to[PREFIX..length - 1], payload);
    to[length - 1] = b'\n';
    length
}

/// Copies short payloads in pieces of a size known to the compiler: musl's memcpy has a start-up
/// cost that a line of 64 bytes does not earn back.
fn copy(to: &mut [u8], from: &[u8]) {
    const PIECE: usize = 32;
    let length = from.len();
    if !(PIECE..=512).contains(&length) {
        to.copy_from_slice(from);
        return;
    }
    let mut at = 0;
    while at + PIECE <= length {
        to[at..at + PIECE].copy_from_slice(&from[at..at + PIECE]);
        at += PIECE;
    }
    to[length - PIECE..length].copy_from_slice(&from[length - PIECE..]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Default)]
    struct Records(Vec<u8>);

    impl Sink for Records {
        fn record(&mut self, prefix: &Prefix, tag: Tag, payload: &[u8]) {
            let old = self.0.len();
            self.0.resize(old + payload.len() + OVERHEAD, 0);
            let n = put(&mut self.0[old..], prefix, tag, payload);
            assert_eq!(old + n, self.0.len());
        }
    }

    /// Reads a log as the kubelet does: partial records are joined, full ones end a line.
    fn parse(log: &[u8], max: usize) -> Vec<u8> {
        let mut text = Vec::new();
        for record in log.split_inclusive(|b| *b == b'\n') {
            let (record, end) = record.split_at(record.len() - 1);
            assert_eq!(end, b"\n");
            let (prefix, payload) = record.split_at(PREFIX);
            assert!(payload.len() <= max, "{} bytes", payload.len());
            assert_eq!(
                &prefix[..TAG],
                &b"1970-01-01T00:00:01.000000002Z stdout "[..]
            );
            text.extend_from_slice(payload);
            match prefix[TAG] {
                b'F' => text.push(b'\n'),
                b'P' => assert!(!payload.is_empty()),
                other => panic!("tag {other}"),
            }
        }
        text
    }

    fn log(data: &[u8], max: usize, cuts: impl Iterator<Item = usize>) -> Vec<u8> {
        let prefix = prefix(Source::Stdout, 1_000_000_002);
        let mut records = Records::default();
        let mut rest = Vec::new();
        let mut data = data;
        for cut in cuts {
            let (now, later) = data.split_at(cut.min(data.len()));
            data = later;
            rest.extend_from_slice(now);
            let used = frame(&rest, max, &prefix, &mut records);
            rest.drain(..used);
            assert!(rest.len() <= max + 1);
        }
        rest.extend_from_slice(data);
        let used = frame(&rest, max, &prefix, &mut records);
        finish(&rest[used..], max, &prefix, &mut records);
        records.0
    }

    #[test]
    fn times_are_rfc3339() {
        for (time, text) in [
            (0, "1970-01-01T00:00:00.000000000Z stdout F "),
            (
                951_782_400_000_000_001,
                "2000-02-29T00:00:00.000000001Z stdout F ",
            ),
            (
                1_795_131_880_123_456_789,
                "2026-11-19T23:44:40.123456789Z stdout F ",
            ),
            (
                4_107_542_399_999_999_999,
                "2100-02-28T23:59:59.999999999Z stdout F ",
            ),
            (
                4_107_542_400_000_000_000,
                "2100-03-01T00:00:00.000000000Z stdout F ",
            ),
        ] {
            let made = prefix(Source::Stdout, time);
            assert_eq!(std::str::from_utf8(&made).unwrap(), text);
        }
        let made = prefix(Source::Stderr, 0);
        assert_eq!(&made[30..], b" stderr F ");
    }

    #[test]
    fn lines_are_cut_as_containerd_cuts_them() {
        let payloads = |data: &[u8]| -> Vec<String> {
            log(data, 4, std::iter::repeat_n(1, data.len()))
                .split_inclusive(|b| *b == b'\n')
                .map(|r| String::from_utf8_lossy(&r[TAG..r.len() - 1]).into_owned())
                .collect()
        };
        assert_eq!(payloads(b"abcd\n"), ["F abcd"]);
        assert_eq!(payloads(b"abcde\n"), ["P abcd", "F e"]);
        assert_eq!(payloads(b"abcdefgh\n\n"), ["P abcd", "F efgh", "F "]);
        assert_eq!(payloads(b"abcd\r\nx\r\r\n\r\n"), ["F abcd", "F x\r", "F "]);
        assert_eq!(payloads(b"abcd\rx\ry"), ["P abcd", "P \rx\ry"]);
        assert_eq!(payloads(b"abcd\r"), ["P abcd", "P \r"]);
        assert_eq!(payloads(b"tail"), ["P tail"]);
        assert!(payloads(b"").is_empty());
    }

    proptest! {
        #[test]
        fn any_bytes_in_any_pieces_come_back(
            data in prop::collection::vec(prop_oneof![4 => any::<u8>(), 1 => Just(b'\n'), 1 => Just(b'\r')], 0..2000),
            cuts in prop::collection::vec(0usize..300, 0..40),
            max in 1usize..700,
        ) {
            let read = parse(&log(&data, max, cuts.into_iter()), max);
            let mut expected = Vec::new();
            for line in data.split_inclusive(|b| *b == b'\n') {
                match line.strip_suffix(b"\r\n") {
                    Some(line) => { expected.extend_from_slice(line); expected.push(b'\n'); }
                    None => expected.extend_from_slice(line),
                }
            }
            prop_assert_eq!(read, expected);
        }

        #[test]
        fn the_pieces_do_not_matter(
            data in prop::collection::vec(prop_oneof![2 => any::<u8>(), 1 => Just(b'\n'), 1 => Just(b'\r')], 0..500),
            cuts in prop::collection::vec(0usize..40, 0..40),
            max in 1usize..20,
        ) {
            prop_assert_eq!(log(&data, max, cuts.into_iter()), log(&data, max, std::iter::empty()));
        }
    }
}
