//! The process: argv, environment, working directory, credentials.

use shim_protocol::worker::{Capabilities, Process};

use super::{ContainerInput, Error};
use crate::model::{ContainerSpec, ExecRequest, ImageConfig};

/// Where programs are looked for when neither image nor request says so.
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Bytes of argv and of the environment that are let through, each: the kernel's own limit depends on
/// the stack limit, but is 6 MiB at most (execve(2)), and an image may not fill our memory first.
const MAX_BYTES: usize = 6 << 20;

/// The first process of a container, and whether its `oom_score_adj` had to be raised.
pub(super) fn first(
    input: &ContainerInput<'_>,
    capabilities: Capabilities,
) -> Result<(Process, bool), Error> {
    let spec = input.spec;
    let (oom_score_adj, clamped) =
        oom_score_adj(spec.resources.oom_score_adj, input.facts.min_oom_score_adj);
    let process = Process {
        args: args(spec, input.image)?,
        env: environment(input)?,
        cwd: working_dir(spec, input.image)?,
        uid: input.user.uid,
        gid: input.user.gid,
        groups: input.user.groups.clone(),
        capabilities: Some(capabilities),
        no_new_privs: spec.no_new_privs,
        oom_score_adj: Some(oom_score_adj),
        terminal: spec.tty,
        rows: 0,
        columns: 0,
        umask: None,
        apparmor: input.apparmor.to_owned(),
        selinux: String::new(),
    };
    Ok((process, clamped))
}

/// A process that joins a container: the container's own, with another command.
///
/// # Errors
/// A command that execve cannot take.
pub fn exec(process: &Process, request: &ExecRequest) -> Result<Process, Error> {
    let mut env = process.env.clone();
    if request.tty && !env.iter().any(|entry| entry.starts_with(b"TERM=")) {
        env.push(b"TERM=xterm".to_vec());
    }
    Ok(Process {
        args: words(request.command.iter())?,
        env,
        terminal: request.tty,
        rows: 0,
        columns: 0,
        ..process.clone()
    })
}

/// The value that can be set, and whether it is higher than the one asked for.
pub(super) fn oom_score_adj(asked: i64, lowest: i32) -> (i32, bool) {
    let asked = i32::try_from(asked.clamp(-1000, 1000)).unwrap_or(0);
    (asked.max(lowest), asked < lowest)
}

/// Docker's rule (row F043): `command` replaces the entry point and drops the image's command, `args`
/// replaces the command. `ENTRYPOINT [""]` is how images say that they have none.
fn args(spec: &ContainerSpec, image: &ImageConfig) -> Result<Vec<Vec<u8>>, Error> {
    let words_of = |first: &[String], then: &[String]| words(first.iter().chain(then));
    let entrypoint = match image.entrypoint.as_slice() {
        [word] if word.is_empty() => &[],
        words => words,
    };
    match (spec.command.as_slice(), spec.args.as_slice()) {
        ([], []) => words_of(entrypoint, &image.cmd),
        ([], args) => words_of(entrypoint, args),
        (command, args) => words_of(command, args),
    }
}

fn words<'a>(words: impl Iterator<Item = &'a String>) -> Result<Vec<Vec<u8>>, Error> {
    let mut args: Vec<Vec<u8>> = Vec::new();
    let mut bytes = 0;
    for (index, word) in words.enumerate() {
        bytes += word.len() + 1;
        let why = match word {
            word if word.contains('\0') => "it contains a NUL byte",
            word if index == 0 && word.is_empty() => "the program's name is empty",
            _ if bytes > MAX_BYTES => "the command is longer than 6 MiB",
            _ => {
                args.push(word.clone().into_bytes());
                continue;
            }
        };
        return Err(Error::Command { index, why });
    }
    if args.is_empty() {
        Err(Error::NoCommand)
    } else {
        Ok(args)
    }
}

/// An ordered list of `KEY=value` in which a later value takes the place of an earlier one.
#[derive(Default)]
struct Environment {
    entries: Vec<(String, Vec<u8>)>,
    index: std::collections::HashMap<String, usize>,
    bytes: usize,
}

impl Environment {
    fn set(&mut self, name: &str, value: &[u8]) -> Result<(), Error> {
        self.bytes += name.len() + value.len() + 2;
        let why = match name {
            "" => "its name is empty",
            name if name.contains(['=', '\0']) => "its name contains '=' or a NUL byte",
            _ if value.contains(&0) => "its value contains a NUL byte",
            // Tools write HOME into /etc/passwd, which is made of lines (CVE-2022-4318).
            "HOME" if value.contains(&b'\n') || value.contains(&b'\r') => {
                "its value contains a line end"
            }
            _ if self.bytes > MAX_BYTES => "the environment is larger than 6 MiB",
            _ => {
                match self.index.get(name) {
                    Some(&at) => value.clone_into(&mut self.entries[at].1),
                    None => {
                        self.index.insert(name.to_owned(), self.entries.len());
                        self.entries.push((name.to_owned(), value.to_owned()));
                    }
                }
                return Ok(());
            }
        };
        Err(Error::Environment {
            name: name.chars().take(100).collect(),
            why,
        })
    }

    fn into_bytes(self) -> Vec<Vec<u8>> {
        let join = |(name, value): (String, Vec<u8>)| {
            let mut entry = name.into_bytes();
            entry.push(b'=');
            entry.extend(value);
            entry
        };
        self.entries.into_iter().map(join).collect()
    }
}

fn environment(input: &ContainerInput<'_>) -> Result<Vec<Vec<u8>>, Error> {
    let mut env = Environment::default();
    let path = DEFAULT_PATH.split_once('=').map_or("", |(_, path)| path);
    env.set("PATH", path.as_bytes())?;
    env.set("HOSTNAME", input.pod.hostname.as_bytes())?;
    if input.spec.tty {
        env.set("TERM", b"xterm")?;
    }
    for entry in &input.image.env {
        // An entry without '=' says nothing: shells do not export it either.
        if let Some((name, value)) = entry.split_once('=') {
            env.set(name, value.as_bytes())?;
        }
    }
    for (name, value) in &input.spec.envs {
        env.set(name, value)?;
    }
    if !env.index.contains_key("HOME") {
        env.set("HOME", input.user.home.as_bytes())?;
    }
    Ok(env.into_bytes())
}

/// The request's, else the image's, else `/`; made absolute, because execve knows no other place to start from.
fn working_dir(spec: &ContainerSpec, image: &ImageConfig) -> Result<Vec<u8>, Error> {
    let asked = if spec.working_dir.is_empty() {
        &image.working_dir
    } else {
        &spec.working_dir
    };
    let wrong = |why| Error::WorkingDir {
        path: asked.chars().take(200).collect(),
        why,
    };
    if asked.contains('\0') {
        return Err(wrong("it contains a NUL byte"));
    }
    if asked.len() > 4095 {
        return Err(wrong("it is longer than 4095 bytes"));
    }
    let path = super::mounts::normalise(asked);
    // Such a path leads through somebody's open descriptor, possibly out of the container (CVE-2024-21626).
    // The worker checks again where it has got to; this is the better message.
    let mut parts = path.split('/').skip(1);
    if parts.next() == Some("proc")
        && parts.any(|part| matches!(part, "fd" | "cwd" | "root" | "map_files"))
    {
        return Err(wrong("it leads through /proc into another process"));
    }
    Ok(path.into_bytes())
}
