//! A pod's pause process.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, UnmountFlags,
};
use rustix::pipe::PipeFlags;
use rustix::process::{Signal, WaitId, WaitIdOptions};
use shim_protocol::{Fd, worker};

use crate::cgroup::Joins;
use crate::error::{Context, Error, Result};
use crate::init::fail;
use crate::message::{Fds, Made};
use crate::pod::{Pin, namespace_of};
use crate::process::{self, Plan};
use crate::procfs;
use crate::sys::{self, Cloned};
use crate::{cgroup, engine};

/// SIGINT, SIGTERM and SIGCHLD as a signal set.
const WAITED_FOR: u64 =
    1 << (libc::SIGINT - 1) | 1 << (libc::SIGTERM - 1) | 1 << (libc::SIGCHLD - 1);

/// Starts pause in the namespaces that this process is in. It is an orphan, so a child of pid 1, once
/// this process has ended, and is kept.
pub(crate) fn start(request: &worker::Pause, fds: &mut Fds) -> Result<(Made, Unkept)> {
    let cgroup = request
        .cgroup
        .as_ref()
        .ok_or_else(|| Error::invalid("pause without a cgroup"))?;
    let asked = request.process.clone().unwrap_or_default();
    let score = asked.oom_score_adj;
    // It needs no privilege at all, so it is given none, whatever the request says.
    let process = worker::Process {
        args: vec![b"pause".to_vec()],
        env: Vec::new(),
        capabilities: None,
        no_new_privs: true,
        ..asked
    };
    let plan = Plan::new(&process, fds.take(Fd::Seccomp), Vec::new())?;
    let exe = fds.require(Fd::PauseExe)?;
    let proc = procfs::open()?;
    if let Some(score) = score {
        // A negative value needs a capability that the daemon may lack, and pause is small prey.
        let _clamped = process::set_oom_score(proc.as_fd(), score);
    }
    let made = cgroup::make(cgroup)?;
    let pause = Program {
        plan: &plan,
        exe: &exe,
        proc: &proc,
    };
    let mut running = Running::spawn(&pause, &made.joins()?, !request.pid.is_empty())?;
    let pin = if request.pid.is_empty() {
        None
    } else {
        Some(Pin::new(
            Path::new(&request.pid),
            &namespace_of(running.pid, "pid"),
        )?)
    };
    let pidfd = running.executed(proc.as_fd())?;
    let started = worker::Started {
        pid: running.pid,
        start_time: procfs::start_time(proc.as_fd(), running.pid)?,
    };
    let unkept = Unkept {
        running,
        pin,
        cgroup: made,
    };
    let fds = vec![(Fd::Pidfd, pidfd)];
    Ok((Made { started, fds }, unkept))
}

/// A pause process of which nobody has heard yet: on drop it ends, and what was made for it goes.
pub(crate) struct Unkept {
    running: Running,
    pin: Option<Pin>,
    cgroup: cgroup::Made,
}

impl Unkept {
    /// It stays.
    pub(crate) fn keep(mut self) {
        self.running.pidfd = None;
        self.pin.into_iter().for_each(Pin::keep);
        self.cgroup.keep();
    }
}

/// What the new process executes, and the host's procfs.
struct Program<'a> {
    plan: &'a Plan,
    exe: &'a OwnedFd,
    proc: &'a OwnedFd,
}

/// A pause process; killed on drop.
struct Running {
    pid: i32,
    pidfd: Option<OwnedFd>,
    error: OwnedFd,
}

impl Running {
    fn spawn(program: &Program<'_>, joins: &Joins, pid_namespace: bool) -> Result<Self> {
        let null = engine::null()?;
        let (error, child_error) =
            rustix::pipe::pipe_with(PipeFlags::CLOEXEC).context(|| "make a pipe".to_owned())?;
        let mut flags = libc::CLONE_NEWNS;
        if pid_namespace {
            flags |= libc::CLONE_NEWPID;
        }
        let flags = u64::from(flags.cast_unsigned());
        match sys::clone_process(flags, joins.v2().map(AsFd::as_fd))
            .context(|| "clone pause".to_owned())?
        {
            Cloned::Parent(pid, pidfd) => Ok(Self {
                pid,
                pidfd: Some(pidfd),
                error,
            }),
            Cloned::Child => {
                let plan = program.plan;
                let settled = settle(joins, &null).and_then(|()| plan.label(program.proc.as_fd()));
                let failure = match settled {
                    Ok(()) => plan.execute_file(program.exe.as_fd(), c"pause"),
                    Err(e) => e,
                };
                fail(child_error.as_fd(), &failure.to_string())
            }
        }
    }

    /// Waits until it has become the pause program; gives a descriptor of it.
    fn executed(&mut self, proc: BorrowedFd<'_>) -> Result<OwnedFd> {
        let mut text = String::new();
        let error = rustix::io::dup(&self.error).context(|| "duplicate a descriptor".to_owned())?;
        File::from(error)
            .read_to_string(&mut text)
            .context(|| "wait for pause".to_owned())?;
        if !text.is_empty() {
            return Err(Error::internal(format!("pause: {text}")));
        }
        let executed = procfs::has_executed(proc, self.pid)?;
        match &self.pidfd {
            Some(pidfd) if executed => {
                rustix::io::fcntl_dupfd_cloexec(pidfd, 0).context(|| "duplicate a pidfd".to_owned())
            }
            Some(pidfd) => Err(lost(pidfd)),
            None => Err(Error::internal("pause has no pidfd")),
        }
    }
}

/// Why a process ends that has neither become pause nor said why not.
fn lost(pidfd: &OwnedFd) -> Error {
    let _ends = rustix::process::pidfd_send_signal(pidfd, Signal::KILL);
    let end = rustix::process::waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED);
    match end.ok().flatten().and_then(|end| end.terminating_signal()) {
        Some(libc::SIGSYS | libc::SIGILL) => Error::invalid(
            "pause: the pod's seccomp profile ended it before it was executed: it has to allow execveat, and of \
             pause prctl, rt_sigprocmask, rt_sigtimedwait, wait4 and exit_group",
        ),
        _ => Error::internal("pause: it ended before it was executed"),
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(pidfd) = self.pidfd.take() {
            let _gone = rustix::process::pidfd_send_signal(&pidfd, Signal::KILL);
            let _reaped =
                rustix::process::waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED);
        }
    }
}

/// In the new process: cgroups, an empty root that cannot be written, nothing of the host open.
fn settle(joins: &Joins, null: &OwnedFd) -> Result<()> {
    joins.enter_v1()?;
    rustix::process::setsid().context(|| "start a session".to_owned())?;
    rustix::mount::mount_change(
        "/",
        MountPropagationFlags::REC | MountPropagationFlags::PRIVATE,
    )
    .context(|| "make the host's mounts private".to_owned())?;
    let root = empty_root()?;
    // On top of the root, where there is always a directory; the namespace is ours alone.
    rustix::mount::move_mount(
        &root,
        "",
        rustix::fs::CWD,
        "/",
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )
    .context(|| "attach an empty root".to_owned())?;
    rustix::process::fchdir(&root).context(|| "enter the empty root".to_owned())?;
    rustix::process::pivot_root(".", ".").context(|| "change to the empty root".to_owned())?;
    rustix::mount::unmount(".", UnmountFlags::DETACH)
        .context(|| "detach the host's files".to_owned())?;
    rustix::process::chdir("/").context(|| "enter the empty root".to_owned())?;
    for at in 0..3 {
        sys::replace_standard(null.as_fd(), at)
            .context(|| "silence the standard streams".to_owned())?;
    }
    sys::close_on_exec_from(3).context(|| "mark descriptors close-on-exec".to_owned())?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    sys::reset_attributes();
    // What pause waits for, blocked from the start: a signal that came before it has blocked them itself
    // would be lost, since a pid 1 gets none that it does not handle.
    sys::reset_signals(WAITED_FOR).context(|| "reset signals".to_owned())
}

fn empty_root() -> Result<OwnedFd> {
    let what = || "make an empty root".to_owned();
    let tmpfs = rustix::mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).context(what)?;
    rustix::mount::fsconfig_set_string(&tmpfs, "mode", "0555").context(what)?;
    rustix::mount::fsconfig_set_string(&tmpfs, "nr_inodes", "1").context(what)?;
    rustix::mount::fsconfig_create(&tmpfs).context(what)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    rustix::mount::fsmount(&tmpfs, FsMountFlags::FSMOUNT_CLOEXEC, attributes).context(what)
}
