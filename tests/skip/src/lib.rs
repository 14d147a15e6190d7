//! A test that cannot run here says so, and is counted.
//!
//! libtest counts a test that returns early as passed. One that finds out while it runs that the machine lacks something
//! calls [`skip!`]: what is lacking and why goes to the file that `$BERTH_TEST_SKIPS` names, and `hack/test.sh` takes it
//! off the passed ones and shows it at the end. Where `$BERTH_TEST_MAY_LACK` is set, it lists all that the machine may
//! lack, and a test that is skipped for anything else fails: so continuous integration never stops testing something
//! without anybody noticing.

use std::borrow::Cow;
use std::fmt;
use std::fs::OpenOptions;
use std::io::Write as _;

/// The file that gets a line for each skipped test.
const SKIPS: &str = "BERTH_TEST_SKIPS";
/// What the machine may lack: names between spaces.
const MAY_LACK: &str = "BERTH_TEST_MAY_LACK";

/// What a test needs and this machine does not have (or the other way round: what it has and the test cannot stand).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lack {
    what: &'static str,
    why: Cow<'static, str>,
}

impl Lack {
    /// Something with a short name, as `$BERTH_TEST_MAY_LACK` lists it, and how it shows that it is not there.
    pub fn new(what: &'static str, why: impl Into<Cow<'static, str>>) -> Self {
        Self {
            what,
            why: why.into(),
        }
    }

    /// Whether a test may be skipped for it on this machine.
    #[must_use]
    pub fn is_allowed(&self) -> bool {
        allows(std::env::var(MAY_LACK).ok().as_deref(), self.what)
    }

    /// Notes that a test is not run.
    ///
    /// # Errors
    /// What to say where this machine may not lack it.
    pub fn note(&self, test: &str) -> Result<(), String> {
        if !self.is_allowed() {
            return Err(format!(
                "{test} cannot run: {self}, and {MAY_LACK} does not say that this machine may lack it"
            ));
        }
        let Some(file) = std::env::var_os(SKIPS) else {
            return Ok(());
        };
        // One write, so that tests of other processes do not come between.
        let line = format!("SKIP {test}: {self}\n");
        OpenOptions::new()
            .create(true)
            .append(true)
            .open(&file)
            .and_then(|mut file| file.write_all(line.as_bytes()))
            .map_err(|e| {
                format!(
                    "{test} is skipped, but {} cannot say so: {e}",
                    file.display()
                )
            })
    }
}

impl fmt::Display for Lack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.why, self.what)
    }
}

fn allows(list: Option<&str>, what: &str) -> bool {
    list.is_none_or(|list| list.split_whitespace().any(|one| one == what))
}

/// Ends the test in which it stands: `skip!("cgroup-v2", "no hierarchy of it is mounted")`.
///
/// # Panics
/// Where the machine may not lack it, so that the test fails.
#[macro_export]
macro_rules! skip {
    ($what:expr, $($why:tt)+) => {
        return $crate::skipped(module_path!(), &$crate::Lack::new($what, format!($($why)+)))
    };
}

/// What [`skip!`] does before it returns.
///
/// # Panics
/// Where the machine may not lack it.
pub fn skipped(module: &str, lack: &Lack) {
    // libtest names the thread after the test, in its module.
    let thread = std::thread::current();
    let test = thread
        .name()
        .filter(|name| *name != "main")
        .unwrap_or(module);
    println!("SKIP {test}: {lack}");
    if let Err(error) = lack.note(test) {
        panic!("{error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_all_that_a_machine_may_lack() {
        assert!(allows(None, "loop-devices"));
        assert!(allows(Some("apparmor  loop-devices"), "loop-devices"));
        assert!(!allows(Some("apparmor"), "loop-devices"));
        assert!(!allows(Some(""), "apparmor"));
        assert!(!allows(Some("apparmor-parser"), "apparmor"));
    }
}
