//! Runs one CNI plugin: environment and standard input in, JSON on standard output.
//!
//! A plugin is trusted to be what the administrator installed, and not trusted to work
//! ([`crate::program`]).

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use serde::Deserialize;

use crate::model::{Kind, Kinded};
use crate::program::{self, OUTPUT_LIMIT, Program, printable};

/// What a plugin is asked to do (CNI 1.1.0, section 2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Connect a container.
    Add,
    /// Disconnect it.
    Del,
    /// Is it still connected?
    Check,
    /// Are you ready?
    Status,
    /// Forget everything but these.
    Gc,
    /// Which versions do you speak?
    Version,
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Status => "STATUS",
            Self::Gc => "GC",
            Self::Version => "VERSION",
        })
    }
}

/// A plugin did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
#[error("cni plugin {plugin:?} of network {network:?} failed to {verb}: {failure}")]
pub struct PluginError {
    /// Type of the plugin.
    pub plugin: String,
    /// Name of the network.
    pub network: String,
    /// What was asked for.
    pub verb: Verb,
    /// Why not.
    pub failure: Failure,
}

/// How a plugin failed.
#[derive(Debug)]
pub enum Failure {
    /// Its type cannot be a file name (CVE-2021-20206).
    BadType,
    /// There is no such executable.
    Missing(Vec<PathBuf>),
    /// It could not be run.
    Run(io::Error),
    /// It was killed, with all its group, when its time was up.
    Timeout(Duration),
    /// It wrote too much, and was killed.
    TooMuchOutput,
    /// It ended well and wrote something that is no JSON.
    BadOutput(String),
    /// It said why (CNI 1.1.0, section 5, "Error").
    Said {
        /// Code, 1 to 99 from the specification.
        code: u64,
        /// Message and details, and what it wrote to standard error.
        message: String,
    },
    /// It ended badly without saying why.
    Ended {
        /// How.
        status: ExitStatus,
        /// What it wrote.
        output: String,
    },
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BadType => f.write_str("its type is not a plain file name"),
            Self::Missing(dirs) => write!(
                f,
                "no such executable in {dirs:?}: install it, or set [network] cni_bin_dirs"
            ),
            Self::Run(error) => write!(f, "it cannot be run: {error}"),
            Self::Timeout(limit) => write!(f, "no answer in {limit:?}, it was killed"),
            Self::TooMuchOutput => write!(f, "it wrote more than {OUTPUT_LIMIT} bytes"),
            Self::BadOutput(why) => write!(f, "its answer cannot be read: {why}"),
            Self::Said { code, message } => write!(f, "{message} (code {code})"),
            Self::Ended { status, output } => write!(f, "{status}: {output}"),
        }
    }
}

/// "Try again later" (section 5, table of codes).
const CODE_TRY_AGAIN: u64 = 11;

impl Kinded for PluginError {
    fn kind(&self) -> Kind {
        match self.failure {
            Failure::Said { code, .. } if code == CODE_TRY_AGAIN => Kind::Unavailable,
            Failure::Timeout(_) => Kind::DeadlineExceeded,
            _ => Kind::Unknown,
        }
    }
}

/// What a plugin writes when it fails.
#[derive(Deserialize)]
struct Said {
    code: u64,
    #[serde(default)]
    msg: String,
    #[serde(default)]
    details: String,
}

/// Finds the executable of a plugin type in the first directory that has it.
pub(super) fn find(kind: &str, dirs: &[PathBuf]) -> Result<PathBuf, Failure> {
    use std::os::unix::fs::PermissionsExt;
    if !is_plain_name(kind) {
        return Err(Failure::BadType);
    }
    dirs.iter()
        .map(|dir| dir.join(kind))
        .find(|path| {
            path.metadata()
                .is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
        })
        .ok_or_else(|| Failure::Missing(dirs.to_vec()))
}

/// Whether a plugin type can only name a file directly inside a directory.
pub(super) fn is_plain_name(kind: &str) -> bool {
    !kind.is_empty() && kind != "." && kind != ".." && !kind.contains(['/', '\\', '\0'])
}

/// Runs a plugin and returns what it wrote to standard output.
pub(super) async fn run(
    path: &Path,
    environment: &[(&str, String)],
    input: &[u8],
    limit: Duration,
) -> Result<Vec<u8>, Failure> {
    let plugin = Program {
        path,
        arguments: &[],
        environment,
        input,
        limit,
    };
    program::run(&plugin).await.map_err(|failed| match failed {
        program::Failure::Run(error) => Failure::Run(error),
        program::Failure::Timeout(limit) => Failure::Timeout(limit),
        program::Failure::TooMuchOutput => Failure::TooMuchOutput,
        program::Failure::Ended {
            status,
            output,
            messages,
        } => failure(status, &output, &messages),
    })
}

fn failure(status: ExitStatus, output: &[u8], messages: &[u8]) -> Failure {
    let stderr = printable(messages);
    let Ok(said) = serde_json::from_slice::<Said>(output) else {
        let parts = [stderr, printable(output)];
        let parts: Vec<_> = parts.into_iter().filter(|part| !part.is_empty()).collect();
        let output = match parts.is_empty() {
            true => "it wrote nothing".into(),
            false => parts.join("; "),
        };
        return Failure::Ended { status, output };
    };
    let parts = [
        printable(said.msg.as_bytes()),
        printable(said.details.as_bytes()),
        stderr,
    ];
    let parts: Vec<_> = parts.into_iter().filter(|part| !part.is_empty()).collect();
    Failure::Said {
        code: said.code,
        message: parts.join("; "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn script(dir: &Path, body: &str) -> PathBuf {
        let path = dir.join("plugin");
        std::fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    async fn try_run(body: &str, limit: Duration) -> Result<String, Failure> {
        let dir = tempfile::tempdir().unwrap();
        let path = script(dir.path(), body);
        run(&path, &[], b"the input", limit)
            .await
            .map(|output| String::from_utf8(output).unwrap())
    }

    const LONG: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn an_error_in_json_is_told_with_code_message_details_and_stderr() {
        let body = r#"echo '{"cniVersion":"1.0.0","code":11,"msg":"not yet","details":"really"}'
            printf 'one\ntwo\033[0m\n' >&2; exit 1"#;
        let failure = try_run(body, LONG).await.unwrap_err();
        assert_eq!(
            failure.to_string(),
            "not yet; really; one | two\\u{1b}[0m (code 11)"
        );
        let error = PluginError {
            plugin: "x".into(),
            network: "n".into(),
            verb: Verb::Add,
            failure,
        };
        assert_eq!(error.kind(), Kind::Unavailable);
    }

    #[tokio::test]
    async fn an_end_without_a_word_is_told_by_its_status() {
        let failure = try_run("exit 3", LONG).await.unwrap_err().to_string();
        assert_eq!(failure, "exit status: 3: it wrote nothing");
        let failure = try_run("echo oops >&2; kill -9 $$", LONG)
            .await
            .unwrap_err();
        assert!(failure.to_string().contains("signal: 9"), "{failure}");
        assert!(failure.to_string().contains("oops"), "{failure}");
    }

    #[test]
    fn only_plain_names_are_looked_up() {
        let dir = tempfile::tempdir().unwrap();
        let path = script(dir.path(), "");
        let dirs = [PathBuf::from("/nonexistent"), dir.path().to_path_buf()];
        assert_eq!(find("plugin", &dirs).unwrap(), path);
        for bad in ["", ".", "..", "../plugin", "/bin/sh", "a/b", "a\0b"] {
            assert!(matches!(find(bad, &dirs), Err(Failure::BadType)), "{bad}");
        }
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(find("plugin", &dirs), Err(Failure::Missing(_))));
    }
}
