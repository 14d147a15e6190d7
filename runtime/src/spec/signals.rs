//! Signals by name and number: Linux's, and CRI's, whose enum counts alphabetically (row F053).

use super::Error;
use crate::model::SignalName;

/// First and last real-time signal that a C library hands out (signal(7)).
const RTMIN: i32 = 34;
const RTMAX: i32 = 64;

/// Name without `SIG`, Linux number (x86-64 and arm64 agree), CRI number.
const TABLE: [(&str, i32, i32); 34] = [
    ("ABRT", 6, 1),
    ("ALRM", 14, 2),
    ("BUS", 7, 3),
    ("CHLD", 17, 4),
    ("CLD", 17, 5),
    ("CONT", 18, 6),
    ("FPE", 8, 7),
    ("HUP", 1, 8),
    ("ILL", 4, 9),
    ("INT", 2, 10),
    ("IO", 29, 11),
    ("IOT", 6, 12),
    ("KILL", 9, 13),
    ("PIPE", 13, 14),
    ("POLL", 29, 15),
    ("PROF", 27, 16),
    ("PWR", 30, 17),
    ("QUIT", 3, 18),
    ("SEGV", 11, 19),
    ("STKFLT", 16, 20),
    ("STOP", 19, 21),
    ("SYS", 31, 22),
    ("TERM", 15, 23),
    ("TRAP", 5, 24),
    ("TSTP", 20, 25),
    ("TTIN", 21, 26),
    ("TTOU", 22, 27),
    ("URG", 23, 28),
    ("USR1", 10, 29),
    ("USR2", 12, 30),
    ("VTALRM", 26, 31),
    ("WINCH", 28, 32),
    ("XCPU", 24, 33),
    ("XFSZ", 25, 34),
];

/// CRI numbers of SIGRTMIN, SIGRTMIN+15, SIGRTMAX-14 and SIGRTMAX.
const CRI_RTMIN: i32 = 35;
const CRI_RTMAX: i32 = 65;

/// SIGTERM, what StopContainer sends when nobody says otherwise.
pub fn term() -> SignalName {
    SignalName {
        number: 15,
        name: "SIGTERM".into(),
    }
}

/// From CRI's enum. 0 is the runtime's default, which is `None` here.
///
/// # Errors
/// A number outside the enum.
pub fn from_cri(value: i32) -> Result<Option<SignalName>, Error> {
    if value == 0 {
        return Ok(None);
    }
    if let Some((name, number, _)) = TABLE.iter().find(|(_, _, cri)| *cri == value) {
        return Ok(Some(SignalName {
            number: *number,
            name: format!("SIG{name}"),
        }));
    }
    if (CRI_RTMIN..=CRI_RTMAX).contains(&value) {
        return Ok(Some(real_time(RTMIN + value - CRI_RTMIN)));
    }
    Err(Error::Signal(value.to_string()))
}

/// To CRI's enum; an alias keeps its own value. 0 for what the enum cannot say.
pub fn to_cri(signal: &SignalName) -> i32 {
    let bare = signal.name.strip_prefix("SIG").unwrap_or(&signal.name);
    let by_name = TABLE.iter().find(|(name, _, _)| *name == bare);
    let found = by_name.or_else(|| TABLE.iter().find(|(_, number, _)| *number == signal.number));
    match found {
        Some((_, _, cri)) => *cri,
        None if (RTMIN..=RTMAX).contains(&signal.number) => CRI_RTMIN + signal.number - RTMIN,
        None => 0,
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
    let (name, ..) = TABLE.iter().find(|(_, linux, _)| *linux == number)?;
    Some(SignalName {
        number,
        name: format!("SIG{name}"),
    })
}

fn by_name(text: &str) -> Option<SignalName> {
    let (name, number, _) = TABLE.iter().find(|(name, ..)| *name == text)?;
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
    fn cri_numbers_are_not_linux_numbers() {
        let linux = |cri| from_cri(cri).unwrap().map(|signal| signal.number);
        assert_eq!(linux(0), None);
        assert_eq!(linux(23), Some(15));
        assert_eq!(linux(13), Some(9));
        assert_eq!(linux(5), Some(17));
        assert_eq!(linux(35), Some(34));
        assert_eq!(linux(50), Some(49));
        assert_eq!(linux(51), Some(50));
        assert_eq!(linux(65), Some(64));
        assert!(from_cri(66).is_err() && from_cri(-1).is_err());
    }

    #[test]
    fn every_cri_value_comes_back() {
        for cri in 1..=65 {
            let signal = from_cri(cri).unwrap().unwrap();
            assert_eq!(to_cri(&signal), cri, "{signal:?}");
            assert_eq!(parse(&signal.name).unwrap(), signal);
        }
    }

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
