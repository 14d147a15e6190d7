//! A container's init.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::MoveMountFlags;
use rustix::process::{Pid, PidfdFlags, Signal};
use serde_json::{Value, json};
use shim_protocol::{Fd, frame, worker};

use crate::engine::{self, Engine, Job};
use crate::error::{Context, Error, Result};
use crate::init::{Console, Init};
use crate::message::{Fds, Made};
use crate::process::{self, Plan};
use crate::tree::Tree;
use crate::{cgroup, inside, memory, mounts, path, procfs, sys};

/// Makes a container. Whatever fails, nothing of it is left.
pub(crate) fn create(
    request: &worker::Create,
    fds: &mut Fds,
    engine: &impl Engine,
) -> Result<Made> {
    let process = request
        .process
        .as_ref()
        .ok_or_else(|| Error::invalid("create without a process"))?;
    let cgroup = request
        .cgroup
        .as_ref()
        .ok_or_else(|| Error::invalid("create without a cgroup"))?;
    let plan = Plan::new(process, fds.take(Fd::Seccomp), request.rlimits.clone())?;
    let mut config = Config::read(request, &plan.cwd)?;
    let proc = procfs::open()?;
    process::raise_hard_limits(&request.rlimits)?;
    if let Some(score) = process.oom_score_adj {
        process::set_oom_score(proc.as_fd(), score)?;
    }
    let scratch = Scratch::new(request)?;
    let mut made = cgroup::make(cgroup)?;
    attach(
        request,
        fds.require(Fd::Rootfs)?,
        proc.as_fd(),
        &mut config.tree,
    )?;
    config.write(&scratch.bundle)?;
    let joins = made.enter(&cgroup.path)?;

    let (init, standard, ours) = init(process, plan, config, proc.as_fd(), fds)?;
    let job = Job {
        id: &request.id,
        bundle: &scratch.bundle,
        state: &scratch.root,
        standard,
        init,
    };
    let pid = match joins.v2() {
        Some(leaf) => inside::create(engine, job, leaf.as_fd(), |e| joins.refused(e)),
        None => engine.create(job),
    }
    .map_err(|e| memory::explain(cgroup, e))?;
    match finish(request, pid, proc.as_fd(), ours) {
        Ok(container) => {
            made.keep();
            Ok(container)
        }
        Err(e) => {
            if let Some(pid) = Pid::from_raw(pid) {
                let _gone = rustix::process::kill_process(pid, Signal::KILL);
            }
            Err(e)
        }
    }
}

/// What init is to do, its standard streams, and where its terminal comes out.
fn init(
    process: &worker::Process,
    plan: Plan,
    config: Config,
    proc: BorrowedFd<'_>,
    fds: &mut Fds,
) -> Result<(Init, [OwnedFd; 3], Option<UnixStream>)> {
    let proc = proc
        .try_clone_to_owned()
        .context(|| "duplicate a descriptor".to_owned())?;
    let (start, error) = (fds.require(Fd::StartPipe)?, fds.require(Fd::ErrorPipe)?);
    let mut init = Init::new(plan, start, error, proc);
    init.tree = Some(config.tree).into();
    let (console, standard) = streams(process, fds)?;
    if !config.users.is_empty() && !process.terminal {
        process::own_streams(&standard, process.uid, &config.users)?;
    }
    let (theirs, ours) = console.unzip();
    init.console = theirs;
    Ok((init, standard, ours))
}

fn finish(
    request: &worker::Create,
    pid: i32,
    proc: BorrowedFd<'_>,
    console: Option<UnixStream>,
) -> Result<Made> {
    let leaves = request
        .cgroup
        .as_ref()
        .map(|c| c.leaves.as_slice())
        .unwrap_or_default();
    cgroup::join_rest(leaves, pid)?;
    let raw = Pid::from_raw(pid).ok_or_else(|| Error::internal("the engine gave no pid"))?;
    let pidfd = rustix::process::pidfd_open(raw, PidfdFlags::empty())
        .context(|| format!("open a pidfd of init {pid}"))?;
    let start_time = procfs::start_time(proc, pid)?;
    let mut fds = vec![(Fd::Pidfd, pidfd)];
    if let Some(console) = console {
        let master = frame::recv(console)
            .context(|| "receive the terminal".to_owned())?
            .and_then(|frame| frame.fds.into_iter().next())
            .ok_or_else(|| Error::internal("init sent no terminal"))?;
        fds.push((Fd::Console, master));
    }
    Ok(Made {
        started: worker::Started { pid, start_time },
        fds,
    })
}

type Streams = (Option<(Console, UnixStream)>, [OwnedFd; 3]);

fn streams(process: &worker::Process, fds: &mut Fds) -> Result<Streams> {
    if process.terminal {
        let (ours, theirs) = UnixStream::pair().context(|| "make a socket pair".to_owned())?;
        let console = Console {
            socket: theirs.into(),
            rows: process.rows,
            columns: process.columns,
        };
        return Ok((
            Some((console, ours)),
            [engine::null()?, engine::null()?, engine::null()?],
        ));
    }
    let mut stream = |role| {
        fds.take(role)
            .map_or_else(engine::null, engine::above_standard)
    };
    Ok((
        None,
        [stream(Fd::Stdin)?, stream(Fd::Stdout)?, stream(Fd::Stderr)?],
    ))
}

/// Attaches the root file system in a mount namespace of our own and prepares what the engine would
/// otherwise look up by name in a tree that the image made.
fn attach(
    request: &worker::Create,
    rootfs: OwnedFd,
    proc: BorrowedFd<'_>,
    tree: &mut Tree,
) -> Result<()> {
    // Modes are what they are meant to be, whatever umask the daemon was started with.
    rustix::process::umask(Mode::from_raw_mode(0o022));
    // Propagation of the host's mounts stays as it is: a Bidirectional volume needs its peers.
    sys::unshare(libc::CLONE_NEWNS).context(|| "make a mount namespace".to_owned())?;
    mounts::require_private(proc, &request.rootfs)?;
    // Before the root is attached: a volume of the host's whole tree must not show it.
    tree.open(proc)?;
    rustix::mount::move_mount(
        &rootfs,
        "",
        CWD,
        request.rootfs.as_str(),
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )
    .context(|| format!("attach the root file system at {}", request.rootfs))?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(request.rootfs.as_str(), flags, Mode::empty())
        .context(|| format!("open the root file system at {}", request.rootfs))?;
    for name in ["dev", "proc", "sys"] {
        let ordinary = path::ordinary_directory(root.as_fd(), name)
            .context(|| format!("look at /{name} of the image"))?;
        if !ordinary {
            return Err(Error::invalid(format!(
                "/{name} of the image must be an ordinary directory"
            )));
        }
    }
    Ok(())
}

/// The engine's directories of this container; removed whatever happens.
#[derive(Debug)]
struct Scratch {
    root: PathBuf,
    bundle: PathBuf,
    state: PathBuf,
}

impl Scratch {
    fn new(request: &worker::Create) -> Result<Self> {
        if request.id.is_empty()
            || !request
                .id
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
        {
            return Err(Error::invalid(format!("container id {:?}", request.id)));
        }
        let root = PathBuf::from(&request.engine_root);
        let scratch = Self {
            bundle: root.join(format!("{}.bundle", request.id)),
            state: root.join(&request.id),
            root,
        };
        fs::create_dir_all(&scratch.bundle)
            .context(|| format!("make {}", scratch.bundle.display()))?;
        Ok(scratch)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        for dir in [&self.bundle, &self.state] {
            // The daemon sweeps the whole engine directory with the container.
            let _left = fs::remove_dir_all(dir);
        }
    }
}

/// `config.json`, checked and with a process section that keeps libcontainer from doing what we do.
#[derive(Debug)]
struct Config {
    value: Value,
    users: Vec<procfs::Range>,
    /// What init makes itself.
    tree: Tree,
}

impl Config {
    fn read(request: &worker::Create, cwd: &[u8]) -> Result<Self> {
        let file = Path::new(&request.bundle).join("config.json");
        let bytes = fs::read(&file).context(|| format!("read {}", file.display()))?;
        let value: Value = serde_json::from_slice(&bytes)
            .map_err(|e| Error::invalid(format!("{}: {e}", file.display())))?;
        Self::check(value, &request.rootfs, cgroup::unified(), cwd)
            .map_err(|e| e.map(|m| format!("{}: {m}", file.display())))
    }

    fn check(mut value: Value, rootfs: &str, unified: bool, cwd: &[u8]) -> Result<Self> {
        for ours in ["/linux/resources", "/linux/seccomp"] {
            if value.pointer(ours).is_some_and(|v| !v.is_null()) {
                return Err(Error::invalid(format!(
                    "{ours} is set, but the worker applies it itself"
                )));
            }
        }
        if value.pointer("/root/path").and_then(Value::as_str) != Some(rootfs) {
            return Err(Error::invalid(format!("/root/path is not {rootfs}")));
        }
        let absolute = |v: &Value| v.as_str().is_some_and(|p| p.starts_with('/'));
        if !value.pointer("/linux/cgroupsPath").is_some_and(absolute) {
            return Err(Error::invalid("/linux/cgroupsPath is not absolute"));
        }
        let cgroup = |m: &Value| m.get("type").and_then(Value::as_str) == Some("cgroup");
        let mounts = value.get("mounts").and_then(Value::as_array);
        if !unified && mounts.into_iter().flatten().any(cgroup) {
            return Err(Error::invalid(
                "a mount of type cgroup would be writable on cgroup v1; use binds",
            ));
        }
        value["process"] = json!({
            "terminal": false,
            "user": { "uid": 0, "gid": 0 },
            "args": ["init"],
            "env": ["PATH=/", "HOME=/"],
            "cwd": "/",
        });
        Ok(Self {
            users: users(&value)?,
            tree: Tree::take(&mut value, cwd)?,
            value,
        })
    }

    fn write(&self, bundle: &Path) -> Result<()> {
        let file = bundle.join("config.json");
        fs::write(&file, self.value.to_string()).context(|| format!("write {}", file.display()))
    }
}

/// The user namespace's ids (OCI `linux.uidMappings`).
fn users(config: &Value) -> Result<Vec<procfs::Range>> {
    let number = |range: &Value, key: &str| {
        range
            .get(key)
            .and_then(Value::as_u64)
            .and_then(|n| u32::try_from(n).ok())
    };
    let list = config
        .pointer("/linux/uidMappings")
        .and_then(Value::as_array);
    list.into_iter()
        .flatten()
        .map(|r| {
            Some((
                number(r, "containerID")?,
                number(r, "hostID")?,
                number(r, "size")?,
            ))
        })
        .collect::<Option<_>>()
        .ok_or_else(|| Error::invalid("/linux/uidMappings is malformed"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Value {
        json!({
            "root": { "path": "/r", "readonly": true },
            "process": { "capabilities": {}, "noNewPrivileges": false },
            "mounts": [{ "destination": "/proc", "type": "proc" }],
            "linux": { "cgroupsPath": "/a/b", "rootfsPropagation": "rslave" },
        })
    }

    #[test]
    fn the_process_section_is_ours() {
        let config = Config::check(config(), "/r", false, b"/").unwrap();
        assert_eq!(config.value.pointer("/process/capabilities"), None);
        assert_eq!(config.value.pointer("/process/noNewPrivileges"), None);
    }

    #[test]
    fn what_libcontainer_would_get_wrong_is_refused() {
        let with = |pointer: &str, new: Value| {
            let mut value = config();
            let (parent, key) = pointer.rsplit_once('/').unwrap();
            value.pointer_mut(parent).unwrap()[key] = new;
            Config::check(value, "/r", false, b"/")
        };
        assert!(with("/linux/resources", json!({})).is_err());
        assert!(with("/linux/seccomp", json!({})).is_err());
        assert!(with("/linux/cgroupsPath", json!("a:b:c")).is_err());
        assert!(with("/root/path", json!("/elsewhere")).is_err());
        let cgroup = json!([{ "destination": "/sys/fs/cgroup", "type": "cgroup" }]);
        assert!(with("/mounts", cgroup.clone()).is_err());
        let mut value = config();
        value["mounts"] = cgroup;
        assert!(Config::check(value, "/r", true, b"/").is_ok());
    }
}
