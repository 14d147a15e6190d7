//! Runs one CNI plugin: environment and standard input in, JSON on standard output.
//!
//! A plugin is trusted to be what the administrator installed, and not trusted to work: its time,
//! its output and its messages are bounded.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};
use tokio::sync::watch;

use crate::model::{Kind, Kinded};

/// The most that a plugin may write, bytes.
const OUTPUT_LIMIT: usize = 1 << 20;
/// The part of a plugin's standard error that goes into a message, bytes.
const MESSAGE_LIMIT: usize = 2048;
/// How long output is read after the plugin's end, when a child of it holds the pipe open.
const LINGER: Duration = Duration::from_millis(200);
/// Attempts, and the pause between them, while the executable is being written (`ETXTBSY`).
const BUSY_ATTEMPTS: u32 = 20;
const BUSY_PAUSE: Duration = Duration::from_millis(50);

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
    let mut child = spawn(path, environment).await.map_err(Failure::Run)?;
    // The group must not outlive this call, also when the caller goes away.
    let group = Group(child.id());
    let (ended, end) = watch::channel(false);
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let feed = async {
        if let Some(mut stdin) = stdin {
            // A plugin that does not read its input may have no need of it.
            let _ = stdin.write_all(input).await;
        }
    };
    let wait = async {
        let status = child.wait().await;
        let _ = ended.send(true);
        status
    };
    // A flood on standard output ends the plugin at once; on standard error it is only not kept.
    let work = async {
        tokio::join!(
            feed,
            wait,
            collect(stdout, end.clone(), || group.kill()),
            collect(stderr, end.clone(), || ())
        )
    };
    let Ok(((), status, output, messages)) = tokio::time::timeout(limit, work).await else {
        group.kill();
        let _ = child.wait().await;
        return Err(Failure::Timeout(limit));
    };
    group.disarm();
    let status = status.map_err(Failure::Run)?;
    if output.overflow {
        return Err(Failure::TooMuchOutput);
    }
    if status.success() {
        return Ok(output.kept);
    }
    Err(failure(status, &output.kept, &messages.kept))
}

async fn spawn(path: &Path, environment: &[(&str, String)]) -> io::Result<Child> {
    let mut command = Command::new(path);
    command
        .envs(environment.iter().map(|(key, value)| (key, value)))
        // Not for plugins: it would let them speak to the service manager as the daemon.
        .env_remove("NOTIFY_SOCKET")
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0);
    let mut attempt = 1;
    loop {
        match command.spawn() {
            Err(error)
                if error.kind() == io::ErrorKind::ExecutableFileBusy && attempt < BUSY_ATTEMPTS =>
            {
                attempt += 1;
                tokio::time::sleep(BUSY_PAUSE).await;
            }
            other => return other,
        }
    }
}

/// The process group of a plugin; killed when dropped armed.
struct Group(Option<u32>);

impl Group {
    fn kill(&self) {
        let pid = self.0.and_then(|id| Pid::from_raw(id.cast_signed()));
        if let Some(pid) = pid {
            // It may have ended already.
            let _ = kill_process_group(pid, Signal::KILL);
        }
    }

    fn disarm(mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
    }
}

/// What came through a pipe.
#[derive(Default)]
struct Collected {
    kept: Vec<u8>,
    /// There was more than the limit, and only the beginning was kept.
    overflow: bool,
}

/// Reads until the end, or a little longer than the plugin lives.
async fn collect<R: AsyncRead + Unpin>(
    pipe: Option<R>,
    mut ended: watch::Receiver<bool>,
    too_much: impl Fn(),
) -> Collected {
    let mut all = Collected::default();
    let Some(mut pipe) = pipe else {
        return all;
    };
    let over = async {
        let _ = ended.wait_for(|ended| *ended).await;
        tokio::time::sleep(LINGER).await;
    };
    tokio::pin!(over);
    let mut buffer = vec![0; 16 << 10];
    loop {
        tokio::select! {
            read = pipe.read(&mut buffer) => match read {
                Ok(0) | Err(_) => break,
                Ok(count) if !all.overflow => {
                    all.kept.extend(buffer.iter().take(count));
                    if all.kept.len() > OUTPUT_LIMIT {
                        all.overflow = true;
                        all.kept.truncate(MESSAGE_LIMIT);
                        too_much();
                    }
                }
                Ok(_) => {}
            },
            () = &mut over => break,
        }
    }
    all
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

/// The end of what was written, on one line, with control characters escaped.
fn printable(bytes: &[u8]) -> String {
    let from = bytes.len().saturating_sub(MESSAGE_LIMIT);
    let text = String::from_utf8_lossy(bytes.get(from..).unwrap_or_default());
    let line = text.trim().replace('\n', " | ");
    line.chars()
        .flat_map(|c| {
            let escaped = c.is_control().then(|| c.escape_default());
            let plain = (!c.is_control()).then_some(c);
            escaped.into_iter().flatten().chain(plain)
        })
        .collect()
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
        let environment = [("CNI_COMMAND", "ADD".to_owned())];
        run(&path, &environment, b"the input", limit)
            .await
            .map(|output| String::from_utf8(output).unwrap())
    }

    const LONG: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn input_environment_and_output_pass_through() {
        let output = try_run("echo \"$CNI_COMMAND: $(cat)\"; echo noise >&2", LONG).await;
        assert_eq!(output.unwrap(), "ADD: the input\n");
    }

    #[tokio::test]
    async fn a_plugin_need_not_read_its_input() {
        let output = try_run("exec 0<&-; echo {}", LONG).await;
        assert_eq!(output.unwrap(), "{}\n");
    }

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

    #[tokio::test]
    async fn a_plugin_that_hangs_is_killed_with_its_children() {
        let dir = tempfile::tempdir().unwrap();
        let mark = dir.path().join("pid");
        let body = format!("sleep 300 & echo $! > {}; wait", mark.display());
        let failure = try_run(&body, Duration::from_secs(2)).await.unwrap_err();
        assert!(matches!(failure, Failure::Timeout(_)), "{failure}");
        let pid = std::fs::read_to_string(mark).unwrap();
        // Reaped by whoever inherited it, or a zombie; soon, for signals take a moment.
        let ended = || {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim()));
            stat.map_or(true, |stat| stat.contains(") Z "))
        };
        let start = std::time::Instant::now();
        while !ended() {
            assert!(
                start.elapsed() < Duration::from_secs(10),
                "child {pid} lives"
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    #[tokio::test]
    async fn a_flood_is_cut_off() {
        let failure = try_run("yes", LONG).await.unwrap_err();
        assert!(matches!(failure, Failure::TooMuchOutput), "{failure}");
        let output = try_run("head -c 3000000 /dev/zero >&2; echo {}", LONG).await;
        assert_eq!(output.unwrap(), "{}\n");
    }

    #[tokio::test]
    async fn a_child_that_holds_the_pipe_is_not_waited_for() {
        let start = std::time::Instant::now();
        let output = try_run("sleep 5 & echo {}", LONG).await;
        assert_eq!(output.unwrap(), "{}\n");
        assert!(start.elapsed() < Duration::from_secs(3));
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
