//! Runs an outside program: environment and standard input in, standard output back.
//!
//! Such a program is trusted to be what the administrator installed, and not trusted to work: its time,
//! its output and its messages are bounded.

use std::fmt;
use std::io;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};
use tokio::sync::watch;

use crate::model::one_line;

/// The most that a program may write, bytes.
pub const OUTPUT_LIMIT: usize = 1 << 20;
/// The part of what it wrote that goes into a message, bytes.
const MESSAGE_LIMIT: usize = 2048;
/// How long output is read after the program's end, when a child of it holds the pipe open.
const LINGER: Duration = Duration::from_millis(200);
/// Attempts, and the pause between them, while the executable is being written (`ETXTBSY`).
const BUSY_ATTEMPTS: u32 = 20;
const BUSY_PAUSE: Duration = Duration::from_millis(50);

/// What to run.
#[derive(Clone, Copy, Debug)]
pub struct Program<'a> {
    /// The executable.
    pub path: &'a Path,
    /// Its arguments, without its name.
    pub arguments: &'a [&'a str],
    /// Added to the daemon's own environment.
    pub environment: &'a [(&'a str, String)],
    /// Its standard input.
    pub input: &'a [u8],
    /// After this time it is killed, with its process group.
    pub limit: Duration,
}

/// How a program failed.
#[derive(Debug)]
pub enum Failure {
    /// It could not be run.
    Run(io::Error),
    /// It was killed, with all its group, when its time was up.
    Timeout(Duration),
    /// It wrote too much, and was killed.
    TooMuchOutput,
    /// It ended badly.
    Ended {
        /// How.
        status: ExitStatus,
        /// What it wrote to standard output.
        output: Vec<u8>,
        /// What it wrote to standard error.
        messages: Vec<u8>,
    },
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Run(error) => write!(f, "it cannot be run: {error}"),
            Self::Timeout(limit) => write!(f, "no answer in {limit:?}, it was killed"),
            Self::TooMuchOutput => write!(f, "it wrote more than {OUTPUT_LIMIT} bytes"),
            Self::Ended {
                status,
                output,
                messages,
            } => {
                let written = [printable(messages), printable(output)].into_iter();
                let written: Vec<_> = written.filter(|part| !part.is_empty()).collect();
                match written.is_empty() {
                    true => write!(f, "{status}: it wrote nothing"),
                    false => write!(f, "{status}: {}", written.join("; ")),
                }
            }
        }
    }
}

/// Runs a program and returns what it wrote to standard output.
///
/// # Errors
/// Everything but an end with status 0 in time. Nothing of its process group is left, also when this
/// future is dropped.
pub async fn run(program: &Program<'_>) -> Result<Vec<u8>, Failure> {
    let (input, limit) = (program.input, program.limit);
    let mut child = spawn(program).await.map_err(Failure::Run)?;
    // The group must not outlive this call, also when the caller goes away.
    let group = Group(child.id());
    let (ended, end) = watch::channel(false);
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let feed = async {
        if let Some(mut stdin) = stdin {
            // A program that does not read its input may have no need of it.
            let _ = stdin.write_all(input).await;
        }
    };
    let wait = async {
        let status = child.wait().await;
        let _ = ended.send(true);
        status
    };
    // A flood on standard output ends the program at once; on standard error it is only not kept.
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
    Err(Failure::Ended {
        status,
        output: output.kept,
        messages: messages.kept,
    })
}

async fn spawn(program: &Program<'_>) -> io::Result<Child> {
    let mut command = Command::new(program.path);
    command
        .args(program.arguments)
        .envs(program.environment.iter().map(|(key, value)| (key, value)))
        // Not for them: it would let them speak to the service manager as the daemon.
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

/// The process group of a program; killed when dropped armed.
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

/// Reads until the end, or a little longer than the program lives.
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

/// The end of what was written, on one line, with control characters escaped.
pub fn printable(bytes: &[u8]) -> String {
    let from = bytes.len().saturating_sub(MESSAGE_LIMIT);
    let text = String::from_utf8_lossy(bytes.get(from..).unwrap_or_default());
    let line = text.trim().replace('\n', " | ");
    one_line(&line).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    async fn try_run(body: &str, limit: Duration) -> Result<String, Failure> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("program");
        std::fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        let program = Program {
            path: &path,
            arguments: &["-x", "y z"],
            environment: &[("WORD", "here".to_owned())],
            input: b"the input",
            limit,
        };
        let output = run(&program).await?;
        Ok(String::from_utf8(output).unwrap())
    }

    const LONG: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn arguments_environment_input_and_output_pass_through() {
        let output = try_run("echo \"$1 $2 $WORD: $(cat)\"; echo noise >&2", LONG).await;
        assert_eq!(output.unwrap(), "-x y z here: the input\n");
    }

    #[tokio::test]
    async fn a_bad_end_is_told_with_what_it_wrote() {
        let failure = try_run("exit 3", LONG).await.unwrap_err().to_string();
        assert_eq!(failure, "exit status: 3: it wrote nothing");
        let body = "echo out; printf 'one\\ntwo' >&2; exit 4";
        let failure = try_run(body, LONG).await.unwrap_err().to_string();
        assert_eq!(failure, "exit status: 4: one | two; out");
    }

    #[tokio::test]
    async fn a_program_need_not_read_its_input() {
        let output = try_run("exec 0<&-; echo {}", LONG).await;
        assert_eq!(output.unwrap(), "{}\n");
    }

    #[tokio::test]
    async fn a_program_that_hangs_is_killed_with_its_children() {
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
}
