//! AppArmor: which profile a process gets, and our default profile in the kernel.
//!
//! The default profile is named the same and has the same text for all Berths of one version on a machine.
//! It stays loaded when the daemon ends: containers go on under it.

use std::collections::BTreeSet;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex as StdMutex, PoisonError};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use tokio::sync::Mutex;

use crate::blocking;
use crate::model::{AppArmorProfile, Kind, Kinded};
use crate::program::{self, Program, printable};
use crate::sys;

/// Name of our default profile.
pub const DEFAULT: &str = "berth-default";

/// What leaves every profile. Said aloud, because a process that is told nothing may get a profile of the
/// host's: those are found by the path of an executable, and containers have a `/usr/sbin` too.
const UNCONFINED: &str = "unconfined";

const PROFILE: &str = include_str!("apparmor/berth-default");

/// How long after a failed attempt the profile is not tried again: creates wait for an attempt.
const RETRY: Duration = Duration::from_secs(60);

/// Where AppArmor's things are.
#[derive(Clone, Debug)]
pub struct Config {
    /// The kernel has it and it is on ([`crate::host::HostFacts::apparmor`]).
    pub enabled: bool,
    /// Its directory in securityfs.
    pub securityfs: PathBuf,
    /// Where the administrator's profiles are, and the parser's includes.
    pub policy_dir: PathBuf,
    /// Where its parser may be; the first one counts.
    pub parsers: Vec<PathBuf>,
    /// How long the parser may take.
    pub limit: Duration,
    /// Where volatile state is kept.
    pub state_dir: PathBuf,
}

impl Config {
    /// The usual places.
    pub fn of_host(enabled: bool, state_dir: PathBuf) -> Self {
        Self {
            enabled,
            securityfs: "/sys/kernel/security/apparmor".into(),
            policy_dir: "/etc/apparmor.d".into(),
            parsers: vec![
                "/sbin/apparmor_parser".into(),
                "/usr/sbin/apparmor_parser".into(),
            ],
            limit: Duration::from_secs(20),
            state_dir,
        }
    }
}

/// Why a profile cannot be given.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No AppArmor.
    #[error(
        "AppArmor profile {0} cannot be applied: AppArmor is not enabled on this host; \
         leave the profile out, or use a node that has AppArmor"
    )]
    NotThere(String),
    /// A profile that the kernel does not know.
    #[error(
        "AppArmor profile {0:?} is not loaded on this host: \
         load it with `apparmor_parser -r FILE` on every node that the pod may run on"
    )]
    NotLoaded(String),
    /// Our own could not be loaded.
    #[error("the default AppArmor profile {DEFAULT:?} cannot be applied: {0}")]
    NoDefault(String),
    /// The kernel's list.
    #[error("the list of loaded AppArmor profiles {path} cannot be read")]
    List {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl Kinded for Error {
    fn kind(&self) -> Kind {
        match self {
            Self::NotThere(_) => Kind::InvalidArgument,
            Self::NotLoaded(_) | Self::NoDefault(_) => Kind::FailedPrecondition,
            Self::List { .. } => Kind::Unknown,
        }
    }
}

/// AppArmor on this machine, if it is there.
#[derive(Debug)]
pub struct AppArmor {
    config: Config,
    works: bool,
    /// The text in the kernel is known to be ours.
    current: AtomicBool,
    /// One attempt at a time; the last one, if it failed.
    failed: Mutex<Option<(Instant, String)>>,
    problem: StdMutex<Option<Problem>>,
}

/// Why the default profile cannot be loaded.
#[derive(Debug)]
struct Problem {
    why: String,
    /// An earlier Berth's is in the kernel.
    older: bool,
}

impl AppArmor {
    /// Looks whether it is there. Loads nothing.
    pub fn open(config: Config) -> Self {
        // In a container that has no securityfs it may be on, but not for us to use.
        let works = config.enabled && config.securityfs.join("profiles").exists();
        Self {
            config,
            works,
            current: AtomicBool::new(false),
            failed: Mutex::new(None),
            problem: StdMutex::new(None),
        }
    }

    /// Profiles can be applied.
    pub fn works(&self) -> bool {
        self.works
    }

    /// Loads the default profile where it is missing or has another text; what fails is told in the log and
    /// by [`AppArmor::notices`].
    pub async fn load_default(&self) {
        if self.works {
            let _told = self.ensure_default().await;
        }
    }

    /// What somebody who looks for the cause of a surprise should know.
    pub fn notices(&self) -> Vec<String> {
        if self.config.enabled && !self.works {
            return vec![format!(
                "AppArmor is enabled, but {} is not there: containers run without a profile, and requests that \
                 name one are refused; mount securityfs on /sys/kernel/security and restart Berth",
                self.config.securityfs.display()
            )];
        }
        let problem = self.problem();
        let notice = problem.as_ref().map(|Problem { why, older }| {
            let meaning = match older {
                true => "the one of an earlier Berth stays in force",
                false => {
                    "containers that name no profile run unconfined, and RuntimeDefault is refused"
                }
            };
            format!("the default AppArmor profile {DEFAULT:?} cannot be loaded ({why}): {meaning}")
        });
        notice.into_iter().collect()
    }

    /// The profile that a process is to change to when it is executed; empty: there is nothing to set.
    ///
    /// Privileged means unconfined, unless a profile is named. Nothing said means the default profile where
    /// it can be had, as with other runtimes; asked for by name it is never left out.
    ///
    /// # Errors
    /// A profile is asked for that cannot be applied.
    pub async fn resolve(
        &self,
        wanted: &AppArmorProfile,
        privileged: bool,
    ) -> Result<String, Error> {
        if !self.works {
            return match wanted {
                AppArmorProfile::RuntimeDefault if !privileged => {
                    Err(Error::NotThere("RuntimeDefault".to_owned()))
                }
                AppArmorProfile::Localhost(name) => Err(Error::NotThere(format!("{name:?}"))),
                _ => Ok(String::new()),
            };
        }
        match wanted {
            AppArmorProfile::Localhost(name) if self.loaded().await?.contains(name) => {
                Ok(name.clone())
            }
            AppArmorProfile::Localhost(name) => Err(Error::NotLoaded(name.clone())),
            AppArmorProfile::Unconfined => Ok(UNCONFINED.to_owned()),
            _ if privileged => Ok(UNCONFINED.to_owned()),
            AppArmorProfile::RuntimeDefault => {
                self.ensure_default().await?;
                Ok(DEFAULT.to_owned())
            }
            AppArmorProfile::Unset => Ok(match self.ensure_default().await {
                Ok(()) => DEFAULT,
                // Said in the log and in the notices; a machine without the parser must still run pods.
                Err(_) => UNCONFINED,
            }
            .to_owned()),
        }
    }

    /// Makes sure that our profile is in the kernel: somebody may have removed it since.
    async fn ensure_default(&self) -> Result<(), Error> {
        let there = self.loaded().await?.contains(DEFAULT);
        if there && self.current.load(Ordering::Relaxed) {
            return Ok(());
        }
        let mut failed = self.failed.lock().await;
        let text = text(&self.config.policy_dir);
        let hash = hash(&text);
        // Another create may have loaded it meanwhile.
        let there = self.loaded().await?.contains(DEFAULT);
        let current = there && self.noted(&hash);
        if !current && let Err(why) = self.attempt(&mut failed, &text, &hash).await {
            *self.problem() = Some(Problem {
                why: why.clone(),
                older: there,
            });
            // An older text confines better than none.
            return there.then_some(()).ok_or(Error::NoDefault(why));
        }
        *failed = None;
        *self.problem() = None;
        self.current.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Loads it, unless that failed a moment ago.
    async fn attempt(
        &self,
        failed: &mut Option<(Instant, String)>,
        text: &str,
        hash: &str,
    ) -> Result<(), String> {
        if let Some((_, why)) = failed.as_ref().filter(|(at, _)| at.elapsed() < RETRY) {
            return Err(why.clone());
        }
        let loaded = self.load(text, hash).await;
        if let Err(why) = &loaded {
            tracing::warn!(profile = DEFAULT, %why, "the default AppArmor profile cannot be loaded");
            *failed = Some((Instant::now(), why.clone()));
        }
        loaded
    }

    fn problem(&self) -> std::sync::MutexGuard<'_, Option<Problem>> {
        self.problem.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// It was loaded with this text: the kernel itself only knows a hash of what was compiled.
    fn noted(&self, hash: &str) -> bool {
        sys::fs::read_regular_text(&self.note(), 4096).is_ok_and(|noted| noted == hash)
    }

    fn note(&self) -> PathBuf {
        self.config.state_dir.join("apparmor").join(DEFAULT)
    }

    async fn load(&self, text: &str, hash: &str) -> Result<(), String> {
        let parser = self.parser()?;
        let program = Program {
            path: parser,
            // The administrator's cache is not ours to fill, and standard input has no date.
            arguments: &["--skip-cache", "--replace"],
            environment: &[("LC_ALL", "C".to_owned())],
            input: text.as_bytes(),
            limit: self.config.limit,
        };
        let said = program::run(&program)
            .await
            .map_err(|failure| format!("{}: {failure}", parser.display()))?;
        let loaded = self
            .loaded()
            .await
            .map_err(|e| crate::model::chain(&e))?
            .contains(DEFAULT);
        if !loaded {
            return Err(format!(
                "{} ended well and loaded nothing: {:?}",
                parser.display(),
                printable(&said)
            ));
        }
        let note = self.note();
        let noted = note
            .parent()
            .map_or(Ok(()), std::fs::create_dir_all)
            .and_then(|()| std::fs::write(&note, hash));
        if let Err(error) = noted {
            // It only means that the next start loads it again.
            tracing::warn!(file = %note.display(), %error, "cannot note which AppArmor profile is loaded");
        }
        tracing::info!(profile = DEFAULT, "loaded the default AppArmor profile");
        Ok(())
    }

    fn parser(&self) -> Result<&Path, String> {
        let executable = |path: &&PathBuf| {
            path.metadata()
                .is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
        };
        let found = self.config.parsers.iter().find(executable);
        found.map(PathBuf::as_path).ok_or_else(|| {
            let places: Vec<_> = self
                .config
                .parsers
                .iter()
                .map(|p| p.display().to_string())
                .collect();
            format!(
                "there is no parser at {}: install the package apparmor",
                places.join(" or ")
            )
        })
    }

    /// The names of the profiles in the kernel.
    async fn loaded(&self) -> Result<BTreeSet<String>, Error> {
        let path = self.config.securityfs.join("profiles");
        let read = path.clone();
        let list = blocking::run("read the list of AppArmor profiles", move || {
            std::fs::read(read)
        });
        match list.await {
            Ok(bytes) => Ok(names(&String::from_utf8_lossy(&bytes))
                .map(str::to_owned)
                .collect()),
            Err(source) => Err(Error::List { path, source }),
        }
    }
}

/// The names in the kernel's list, whose lines are a name, which may hold spaces and brackets, and a mode in
/// brackets.
fn names(list: &str) -> impl Iterator<Item = &str> {
    list.lines().filter_map(|line| {
        let (name, mode) = line.rsplit_once(" (")?;
        mode.ends_with(')').then_some(name)
    })
}

/// What the parser is given. Without a feature ABI it compiles for what AppArmor 2 knew, which leaves rules
/// out; parsers that old do not know the line, and their machines do not have the file.
fn text(policy_dir: &Path) -> String {
    let abi = "abi/3.0";
    if policy_dir.join(abi).is_file() {
        format!("abi <{abi}>,\n{PROFILE}")
    } else {
        PROFILE.to_owned()
    }
}

fn hash(text: &str) -> String {
    let digest = Sha256::digest(text);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests;
