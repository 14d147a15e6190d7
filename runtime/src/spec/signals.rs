//! Signals as images and people write them.

use super::Error;
use crate::model::SignalName;

/// First and last real-time signal that a C library hands out (signal(7)).
const RTMIN: i32 = 34;
const RTMAX: i32 = 64;

/// Name without `SIG`, Linux number (x86-64 and arm64 agree, signal(7)).
const TABLE: [(&str, i32); 34] = [
    ("ABRT", 6),
    ("ALRM", 14),
    ("BUS", 7),
    ("CHLD", 17),
    ("CLD", 17),
    ("CONT", 18),
    ("FPE", 8),
    ("HUP", 1),
    ("ILL", 4),
    ("INT", 2),
    ("IO", 29),
    ("IOT", 6),
    ("KILL", 9),
    ("PIPE", 13),
    ("POLL", 29),
    ("PROF", 27),
    ("PWR", 30),
    ("QUIT", 3),
    ("SEGV", 11),
    ("STKFLT", 16),
    ("STOP", 19),
    ("SYS", 31),
    ("TERM", 15),
    ("TRAP", 5),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("USR1", 10),
    ("USR2", 12),
    ("VTALRM", 26),
    ("WINCH", 28),
    ("XCPU", 24),
    ("XFSZ", 25),
];

/// SIGTERM, what StopContainer sends when nobody says otherwise.
pub fn term() -> SignalName {
    SignalName {
        number: 15,
        name: "SIGTERM".into(),
    }
}

/// From text: `SIGTERM`, `TERM`, `term`, `15`, `SIGRTMIN+3`, `RTMAX-1`.
///
/// # Errors
/// Anything else.
pub fn parse(text: &str) -> Result<SignalName, Error> {
    let upper = text.to_ascii_uppercase();
    let bare = upper.strip_prefix("SIG").unwrap_or(&upper);
    by_number(bare)
        .or_else(|| by_name(bare))
        .or_else(|| by_offset(bare))
        .ok_or_else(|| Error::Signal(text.chars().take(40).collect()))
}

fn digits(text: &str) -> Option<i32> {
    let plain = !text.is_empty() && text.len() <= 2 && text.bytes().all(|b| b.is_ascii_digit());
    plain.then(|| text.parse().ok()).flatten()
}

fn by_number(text: &str) -> Option<SignalName> {
    let number = digits(text)?;
    if (RTMIN..=RTMAX).contains(&number) {
        return Some(real_time(number));
    }
    // The first of two names for a number is the usual one, but for SIGABRT and SIGIO that is so too.
    let (name, _) = TABLE.iter().find(|(_, linux)| *linux == number)?;
    Some(SignalName {
        number,
        name: format!("SIG{name}"),
    })
}

fn by_name(text: &str) -> Option<SignalName> {
    let (name, number) = TABLE.iter().find(|(name, _)| *name == text)?;
    Some(SignalName {
        number: *number,
        name: format!("SIG{name}"),
    })
}

fn by_offset(text: &str) -> Option<SignalName> {
    let number = match (text.strip_prefix("RTMIN"), text.strip_prefix("RTMAX")) {
        (Some(""), _) => RTMIN,
        (_, Some("")) => RTMAX,
        (Some(rest), _) => RTMIN + digits(rest.strip_prefix('+')?)?,
        (_, Some(rest)) => RTMAX - digits(rest.strip_prefix('-')?)?,
        _ => return None,
    };
    (RTMIN..=RTMAX).contains(&number).then(|| real_time(number))
}

/// Named as CRI names them: counted up from the first to the sixteenth, then down to the last.
fn real_time(number: i32) -> SignalName {
    let name = match number {
        RTMIN => "SIGRTMIN".to_owned(),
        RTMAX => "SIGRTMAX".to_owned(),
        number if number <= RTMIN + 15 => format!("SIGRTMIN+{}", number - RTMIN),
        number => format!("SIGRTMAX-{}", RTMAX - number),
    };
    SignalName { number, name }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_forms() {
        for text in ["SIGTERM", "TERM", "sigterm", "15"] {
            assert_eq!(parse(text).unwrap(), term(), "{text}");
        }
        assert_eq!(parse("SIGRTMIN+3").unwrap().number, 37);
        assert_eq!(parse("RTMAX-14").unwrap().number, 50);
        assert_eq!(parse("37").unwrap().name, "SIGRTMIN+3");
        for bad in [
            "",
            "0",
            "65",
            "32",
            "SIG",
            "SIGRTMIN-1",
            "SIGRTMIN+31",
            "RTMAX+1",
            "+15",
            "SIGNOPE",
            "1e1",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
