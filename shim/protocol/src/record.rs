//! The exit record that a monitor leaves behind: one line of JSON around a checksummed body.
//!
//! `{"crc32":"89abcdef","record":{"version":1,...}}` and a line feed. The checksum covers the bytes
//! of the inner object, so that a reader can tell a torn or altered record before it believes it.

use crate::monitor::Exit;

/// Version of the record's body.
pub const VERSION: u32 = 1;

const HEAD: &str = "{\"crc32\":\"";
const MIDDLE: &str = "\",\"record\":";
const TAIL: &str = "}\n";

/// Writes the record of one container's end.
pub fn encode(boot_id: &str, exit: &Exit) -> String {
    let mut body = format!("{{\"version\":{VERSION},\"boot_id\":");
    quote(&mut body, boot_id);
    let numbers = [
        (",\"code\":", i64::from(exit.code).to_string()),
        (",\"started_at\":", exit.started_at.to_string()),
        (",\"finished_at\":", exit.finished_at.to_string()),
        (",\"oom\":", exit.oom.to_string()),
        (",\"log_dropped\":", exit.log_dropped.to_string()),
    ];
    for (key, value) in numbers {
        body.push_str(key);
        body.push_str(&value);
    }
    body.push_str(",\"start_error\":");
    quote(&mut body, &exit.start_error);
    body.push('}');
    let sum = crc32(body.as_bytes());
    format!("{HEAD}{sum:08x}{MIDDLE}{body}{TAIL}")
}

/// The body of a record whose checksum is right; `None` for anything else.
pub fn body(text: &str) -> Option<&str> {
    let rest = text.strip_prefix(HEAD)?;
    let (sum, rest) = rest.split_at_checked(8)?;
    let body = rest.strip_prefix(MIDDLE)?.strip_suffix(TAIL)?;
    let sum = u32::from_str_radix(sum, 16).ok()?;
    (crc32(body.as_bytes()) == sum).then_some(body)
}

/// Appends a JSON string (RFC 8259 section 7).
fn quote(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => {
                out.push('\\');
                out.push(c);
            }
            c if c < ' ' => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
}

/// CRC-32 as in IEEE 802.3. A record has a few hundred bytes: no table is worth its memory.
fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0xEDB8_8320 & (crc & 1).wrapping_neg());
        }
    }
    !crc
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_checksum_is_the_common_one() {
        assert_eq!(crc32(b"123456789"), 0xCBF4_3926);
    }

    #[test]
    fn a_record_reads_as_json() {
        let exit = Exit {
            code: 128,
            finished_at: 2,
            oom: true,
            log_dropped: 3,
            start_error: "exec \"a\\b\"\n".into(),
            started_at: 1,
        };
        let text = encode("boot", &exit);
        assert_eq!(
            body(&text).unwrap(),
            "{\"version\":1,\"boot_id\":\"boot\",\"code\":128,\"started_at\":1,\"finished_at\":2,\
             \"oom\":true,\"log_dropped\":3,\"start_error\":\"exec \\\"a\\\\b\\\"\\u000a\"}"
        );
    }

    proptest! {
        #[test]
        fn any_altered_byte_is_noticed(error in ".*", at in any::<prop::sample::Index>(), by in 1u8..) {
            let text = encode("b", &Exit { start_error: error, ..Exit::default() });
            prop_assert!(body(&text).is_some());
            let mut bytes = text.into_bytes();
            let at = at.index(bytes.len());
            let old = bytes[at];
            bytes[at] = old.wrapping_add(by);
            // Hexadecimal digits of the checksum may change their case and stay the same number.
            let same = old.eq_ignore_ascii_case(&bytes[at]);
            let read = std::str::from_utf8(&bytes).ok().and_then(body);
            prop_assert!(same || read.is_none());
        }

        #[test]
        fn a_cut_record_is_noticed(cut in any::<prop::sample::Index>()) {
            let text = encode("b", &Exit::default());
            prop_assert!(body(&text[..cut.index(text.len())]).is_none());
        }
    }
}
