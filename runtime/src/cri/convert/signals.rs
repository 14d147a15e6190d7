//! Signals. CRI numbers them in its own way, alphabetically (row F053); its numbers appear nowhere else.

use berth_cri_api::v1;

use super::{At, Error};
use crate::model::SignalName;

/// Name, number in CRI, number in Linux (x86-64 and arm64 agree, signal(7)). Of two names for one Linux
/// number the canonical one comes first.
const SIGNALS: [(&str, v1::Signal, i32); 34] = [
    ("SIGABRT", v1::Signal::Sigabrt, 6),
    ("SIGALRM", v1::Signal::Sigalrm, 14),
    ("SIGBUS", v1::Signal::Sigbus, 7),
    ("SIGCHLD", v1::Signal::Sigchld, 17),
    ("SIGCLD", v1::Signal::Sigcld, 17),
    ("SIGCONT", v1::Signal::Sigcont, 18),
    ("SIGFPE", v1::Signal::Sigfpe, 8),
    ("SIGHUP", v1::Signal::Sighup, 1),
    ("SIGILL", v1::Signal::Sigill, 4),
    ("SIGINT", v1::Signal::Sigint, 2),
    ("SIGIO", v1::Signal::Sigio, 29),
    ("SIGIOT", v1::Signal::Sigiot, 6),
    ("SIGKILL", v1::Signal::Sigkill, 9),
    ("SIGPIPE", v1::Signal::Sigpipe, 13),
    ("SIGPOLL", v1::Signal::Sigpoll, 29),
    ("SIGPROF", v1::Signal::Sigprof, 27),
    ("SIGPWR", v1::Signal::Sigpwr, 30),
    ("SIGQUIT", v1::Signal::Sigquit, 3),
    ("SIGSEGV", v1::Signal::Sigsegv, 11),
    ("SIGSTKFLT", v1::Signal::Sigstkflt, 16),
    ("SIGSTOP", v1::Signal::Sigstop, 19),
    ("SIGSYS", v1::Signal::Sigsys, 31),
    ("SIGTERM", v1::Signal::Sigterm, 15),
    ("SIGTRAP", v1::Signal::Sigtrap, 5),
    ("SIGTSTP", v1::Signal::Sigtstp, 20),
    ("SIGTTIN", v1::Signal::Sigttin, 21),
    ("SIGTTOU", v1::Signal::Sigttou, 22),
    ("SIGURG", v1::Signal::Sigurg, 23),
    ("SIGUSR1", v1::Signal::Sigusr1, 10),
    ("SIGUSR2", v1::Signal::Sigusr2, 12),
    ("SIGVTALRM", v1::Signal::Sigvtalrm, 26),
    ("SIGWINCH", v1::Signal::Sigwinch, 28),
    ("SIGXCPU", v1::Signal::Sigxcpu, 24),
    ("SIGXFSZ", v1::Signal::Sigxfsz, 25),
];

/// The first real-time signal that programs may use, and the last (glibc keeps 32 and 33).
const RTMIN: i32 = 34;
const RTMAX: i32 = 64;

/// The real-time signals follow one another in both numberings, from RTMIN here to RTMAX.
const CRI_RTMIN: i32 = v1::Signal::Sigrtmin as i32;
const CRI_RTMAX: i32 = v1::Signal::Sigrtmax as i32;

/// The signal of a request; `None` is the default.
pub(super) fn stop_signal(at: &At<'_>, number: i32) -> Result<Option<SignalName>, Error> {
    let signal: v1::Signal = at.known(number)?;
    if signal == v1::Signal::RuntimeDefault {
        return Ok(None);
    }
    if let Some((name, _, number)) = SIGNALS.iter().find(|s| s.1 == signal) {
        return Ok(Some(SignalName {
            number: *number,
            name: (*name).to_owned(),
        }));
    }
    let number = RTMIN + (signal as i32 - CRI_RTMIN);
    Ok(Some(SignalName {
        number,
        name: realtime_name(number),
    }))
}

/// The signal of an answer.
pub(super) fn to_proto(signal: &SignalName) -> v1::Signal {
    let by_name = SIGNALS.iter().find(|s| s.0 == signal.name);
    if let Some((_, found, _)) = by_name.or_else(|| SIGNALS.iter().find(|s| s.2 == signal.number)) {
        return *found;
    }
    let realtime = CRI_RTMIN + (signal.number - RTMIN);
    if (CRI_RTMIN..=CRI_RTMAX).contains(&realtime) {
        return v1::Signal::try_from(realtime).unwrap_or_default();
    }
    v1::Signal::RuntimeDefault
}

/// The name as in kill(1): from the nearer end.
fn realtime_name(number: i32) -> String {
    const LAST_FROM_MIN: i32 = RTMIN + 15;
    match number {
        RTMIN => "SIGRTMIN".to_owned(),
        RTMAX => "SIGRTMAX".to_owned(),
        n if n <= LAST_FROM_MIN => format!("SIGRTMIN+{}", n - RTMIN),
        n => format!("SIGRTMAX-{}", RTMAX - n),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_signal_of_cri_is_one_of_linux_and_comes_back() {
        let at = At::root("config").field("stop_signal").to_string();
        assert_eq!(at, "config.stop_signal");
        let at = At::root("stop_signal");
        assert_eq!(stop_signal(&at, 0).unwrap(), None);
        for number in 1..=CRI_RTMAX {
            let signal = stop_signal(&at, number).unwrap().unwrap();
            let wanted = v1::Signal::try_from(number).unwrap();
            assert!((1..=RTMAX).contains(&signal.number), "{signal:?}");
            assert_eq!(to_proto(&signal), wanted, "{signal:?}");
            // SIGNAL_SIGRTMINPLUS3 is SIGRTMIN+3.
            let ours = signal.name.replace('+', "PLUS").replace('-', "MINUS");
            assert_eq!(wanted.as_str_name(), format!("SIGNAL_{ours}"));
        }
        assert!(stop_signal(&at, CRI_RTMAX + 1).is_err());
        assert!(stop_signal(&at, -1).is_err());
    }

    #[test]
    fn numbers_are_those_of_the_kernel() {
        for (name, _, number) in SIGNALS {
            let expected = match name {
                "SIGTERM" => libc::SIGTERM,
                "SIGKILL" => libc::SIGKILL,
                "SIGUSR1" => libc::SIGUSR1,
                "SIGPOLL" | "SIGIO" => libc::SIGIO,
                "SIGSTKFLT" => libc::SIGSTKFLT,
                "SIGSYS" => libc::SIGSYS,
                "SIGPWR" => libc::SIGPWR,
                "SIGWINCH" => libc::SIGWINCH,
                "SIGABRT" | "SIGIOT" => libc::SIGABRT,
                _ => continue,
            };
            assert_eq!(number, expected, "{name}");
        }
    }

    #[test]
    fn a_signal_of_an_image_is_reported_by_its_number() {
        let image = SignalName {
            number: 37,
            name: "37".into(),
        };
        assert_eq!(to_proto(&image), v1::Signal::Sigrtminplus3);
        let image = SignalName {
            number: 3,
            name: "QUIT".into(),
        };
        assert_eq!(to_proto(&image), v1::Signal::Sigquit);
    }
}
