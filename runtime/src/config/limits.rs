//! Resource limits as text: `NAME=SOFT[:HARD]`, as `docker run --ulimit` and CRI-O's `default_ulimits` have it.

/// One resource limit (setrlimit(2)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResourceLimit {
    /// The kernel's number, `RLIMIT_*`.
    pub resource: u32,
    /// Soft limit; [`libc::RLIM_INFINITY`] for none.
    pub soft: u64,
    /// Hard limit, likewise.
    pub hard: u64,
}

/// Names as in limits.conf(5) and getrlimit(2), lower case.
const NAMES: &[(&str, libc::__rlimit_resource_t)] = &[
    ("as", libc::RLIMIT_AS),
    ("core", libc::RLIMIT_CORE),
    ("cpu", libc::RLIMIT_CPU),
    ("data", libc::RLIMIT_DATA),
    ("fsize", libc::RLIMIT_FSIZE),
    ("locks", libc::RLIMIT_LOCKS),
    ("memlock", libc::RLIMIT_MEMLOCK),
    ("msgqueue", libc::RLIMIT_MSGQUEUE),
    ("nice", libc::RLIMIT_NICE),
    ("nofile", libc::RLIMIT_NOFILE),
    ("nproc", libc::RLIMIT_NPROC),
    ("rss", libc::RLIMIT_RSS),
    ("rtprio", libc::RLIMIT_RTPRIO),
    ("rttime", libc::RLIMIT_RTTIME),
    ("sigpending", libc::RLIMIT_SIGPENDING),
    ("stack", libc::RLIMIT_STACK),
];

/// Reads one limit.
pub(super) fn parse(text: &str) -> Result<ResourceLimit, String> {
    let (name, values) = text
        .split_once('=')
        .ok_or_else(|| format!("{text:?} is not NAME=SOFT[:HARD]"))?;
    let lower = name.to_ascii_lowercase();
    let lower = lower.strip_prefix("rlimit_").unwrap_or(&lower);
    let Some((_, resource)) = NAMES.iter().find(|(known, _)| *known == lower) else {
        let known: Vec<&str> = NAMES.iter().map(|(name, _)| *name).collect();
        return Err(format!(
            "names {name:?}, which is no limit; there are {}",
            known.join(", ")
        ));
    };
    let (soft, hard) = values.split_once(':').unwrap_or((values, values));
    let limit = ResourceLimit {
        resource: *resource,
        soft: value(soft, text)?,
        hard: value(hard, text)?,
    };
    if limit.soft > limit.hard {
        return Err(format!("{text:?}: the soft limit is above the hard one"));
    }
    Ok(limit)
}

fn value(text: &str, whole: &str) -> Result<u64, String> {
    match text {
        "unlimited" | "infinity" | "-1" => Ok(libc::RLIM_INFINITY),
        number => number.parse().map_err(|_| {
            format!("{whole:?}: {number:?} is neither a whole number nor \"unlimited\"")
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_forms() {
        let limit = |resource, soft, hard| {
            Ok(ResourceLimit {
                resource,
                soft,
                hard,
            })
        };
        assert_eq!(
            parse("nofile=1024:524288"),
            limit(libc::RLIMIT_NOFILE, 1024, 524_288)
        );
        assert_eq!(parse("nproc=100"), limit(libc::RLIMIT_NPROC, 100, 100));
        assert_eq!(
            parse("RLIMIT_CORE=0:unlimited"),
            limit(libc::RLIMIT_CORE, 0, libc::RLIM_INFINITY)
        );
        assert_eq!(
            parse("memlock=-1"),
            limit(
                libc::RLIMIT_MEMLOCK,
                libc::RLIM_INFINITY,
                libc::RLIM_INFINITY
            )
        );
    }

    #[test]
    fn everything_else_is_told() {
        for (text, part) in [
            ("nofile", "NAME=SOFT[:HARD]"),
            ("files=1", "names \"files\", which is no limit"),
            ("nofile=", "neither a whole number"),
            ("nofile=1:2:3", "\"2:3\""),
            ("nofile=9:1", "above the hard one"),
            ("nofile=-2", "\"-2\""),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
