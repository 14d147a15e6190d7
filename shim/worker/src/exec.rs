//! A process in a running container: setns(2) and clone, without libcontainer.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{AtFlags, Mode, OFlags};
use shim_protocol::{Fd, worker};

use crate::cgroup::{self, Joins};
use crate::credentials::{self, Keep};
use crate::engine;
use crate::error::{Context, Error, Result};
use crate::init::fail;
use crate::message::{Fds, Made};
use crate::process::{self, Plan};
use crate::procfs;
use crate::sys::{self, Cloned};
use crate::terminal::Terminal;

/// Namespaces by their name in `/proc/PID/ns`.
const NAMESPACES: [(&str, i32); 8] = [
    ("user", libc::CLONE_NEWUSER),
    ("mnt", libc::CLONE_NEWNS),
    ("net", libc::CLONE_NEWNET),
    ("ipc", libc::CLONE_NEWIPC),
    ("uts", libc::CLONE_NEWUTS),
    ("pid", libc::CLONE_NEWPID),
    ("cgroup", libc::CLONE_NEWCGROUP),
    ("time", libc::CLONE_NEWTIME),
];

/// Everything the new process needs.
struct Child<'a> {
    plan: &'a Plan,
    proc: BorrowedFd<'a>,
    error: BorrowedFd<'a>,
    terminal: Option<&'a Terminal>,
    standard: [OwnedFd; 3],
    user_namespace: bool,
    /// To be entered by the new process only.
    late: Option<OwnedFd>,
    /// What this process has kept for the new one; absent until it has become who that is to be.
    kept: Option<Keep>,
    /// The user has to enter its directory itself.
    chdir_again: bool,
}

/// Starts a process in a container, as a child of this process's parent.
pub(crate) fn exec(request: &worker::Exec, fds: &mut Fds) -> Result<Made> {
    let process = request
        .process
        .as_ref()
        .ok_or_else(|| Error::invalid("exec without a process"))?;
    let plan = Plan::new(process, fds.take(Fd::Seccomp), request.rlimits.clone())?;
    let init = fds.require(Fd::Pidfd)?;
    let error = fds.require(Fd::ErrorPipe)?;
    let mut stream = |role| {
        fds.take(role)
            .map_or_else(engine::null, engine::above_standard)
    };
    let standard = [stream(Fd::Stdin)?, stream(Fd::Stdout)?, stream(Fd::Stderr)?];
    let proc = procfs::open()?;

    let flags = namespaces(proc.as_fd(), request)?;
    require_alive(init.as_fd())?;
    if flags & libc::CLONE_NEWUSER != 0 && !process.terminal {
        let map = procfs::user_map(proc.as_fd(), request.init)?;
        process::own_streams(&standard, process.uid, &map)?;
    }
    process::raise_hard_limits(&request.rlimits)?;
    if let Some(score) = process.oom_score_adj {
        process::set_oom_score(proc.as_fd(), score)?;
    }
    let (own, joins) = cgroups(request)?;

    let (late, late_file) = late_namespace(proc.as_fd(), request, &joins, flags)?;
    // From here on the container's files, users and processes are all around; only descriptors are ours.
    enter(init.as_fd(), flags & !late)?;
    let terminal = process
        .terminal
        .then(|| Terminal::open(plan.uid, process.rows, process.columns))
        .transpose()
        .map_err(Error::of_the_state)?;
    let mut child = Child {
        plan: &plan,
        proc: proc.as_fd(),
        error: error.as_fd(),
        terminal: terminal.as_ref(),
        standard,
        user_namespace: flags & libc::CLONE_NEWUSER != 0,
        late: late_file,
        kept: None,
        chdir_again: false,
    };
    child.become_user(joins.v2().is_some())?;
    let (pid, pidfd) = start(&mut child, &joins)?;
    own.keep();
    // Gone already and reaped is no failure of the exec.
    let start_time = procfs::start_time(proc.as_fd(), pid).unwrap_or_default();
    let mut fds = vec![(Fd::Pidfd, pidfd)];
    fds.extend(terminal.map(|t| (Fd::Console, t.master)));
    Ok(Made {
        started: worker::Started { pid, start_time },
        fds,
    })
}

/// The namespaces to enter: those of init that are not ours already.
fn namespaces(proc: BorrowedFd<'_>, request: &worker::Exec) -> Result<i32> {
    let mut flags = 0;
    for (name, flag) in NAMESPACES {
        if flag == libc::CLONE_NEWUSER && !request.user_namespace {
            continue;
        }
        let identity = |of: &str| {
            rustix::fs::statat(proc, format!("{of}/ns/{name}"), AtFlags::empty())
                .map(|s| (s.st_dev, s.st_ino))
        };
        let ours = match identity("self") {
            // A kernel without this kind of namespace.
            Err(rustix::io::Errno::NOENT) => continue,
            other => other.context(|| format!("look at our {name} namespace"))?,
        };
        let theirs = identity(&request.init.to_string()).map_err(|_| {
            Error::state(format!(
                "the container's init (pid {}) is gone",
                request.init
            ))
        })?;
        if ours != theirs {
            flags |= flag;
        }
    }
    Ok(flags)
}

/// The cgroup namespace comes last, in the child: under nsdelegate a process inside it may not be cloned into a v2 cgroup
/// from outside.
fn late_namespace(
    proc: BorrowedFd<'_>,
    request: &worker::Exec,
    joins: &Joins,
    flags: i32,
) -> Result<(i32, Option<OwnedFd>)> {
    let late = match joins.v2() {
        Some(_) => flags & libc::CLONE_NEWCGROUP,
        None => 0,
    };
    let file = (late != 0)
        .then(|| open_namespace(proc, request.init, "cgroup"))
        .transpose()?;
    Ok((late, file))
}

fn require_alive(init: BorrowedFd<'_>) -> Result<()> {
    let mut fds = [PollFd::new(&init, PollFlags::IN)];
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    let ended = poll(&mut fds, Some(&now)).context(|| "poll the container's init".to_owned())? > 0;
    if ended {
        return Err(Error::state("the container is not running"));
    }
    Ok(())
}

fn cgroups(request: &worker::Exec) -> Result<(cgroup::Own, Joins)> {
    let own = request.own_cgroup.iter().map(PathBuf::from);
    let mut dirs: Vec<PathBuf> = request.join_cgroup.iter().map(PathBuf::from).collect();
    let parents = own.clone().filter_map(|d| d.parent().map(Path::to_owned));
    let watched: Vec<PathBuf> = dirs.iter().cloned().chain(parents).collect();
    cgroup::refuse_frozen(&watched)?;
    let made = cgroup::Own::new(&request.own_cgroup)?;
    dirs.extend(own);
    let joins = cgroup::joins(&dirs)?;
    // Here, and inherited: one grace period of the kernel, not one more for the child.
    joins.enter_v1()?;
    Ok((made, joins))
}

fn enter(init: BorrowedFd<'_>, flags: i32) -> Result<()> {
    if flags == 0 {
        return Ok(());
    }
    match sys::enter_namespaces(init, u64::from(flags.cast_unsigned())) {
        // A process that exits leaves its namespaces a moment before it has ended.
        Err(e) if e.raw_os_error() == Some(libc::ESRCH) => {
            Err(Error::state("the container is not running"))
        }
        entered => entered.context(|| "enter the container's namespaces".to_owned()),
    }
}

/// The file of one of the container's namespaces.
fn open_namespace(proc: BorrowedFd<'_>, init: i32, name: &str) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    rustix::fs::openat(proc, format!("{init}/ns/{name}"), flags, Mode::empty())
        .context(|| format!("open the container's {name} namespace"))
}

fn start(child: &mut Child<'_>, joins: &Joins) -> Result<(i32, OwnedFd)> {
    let parent = u64::from(libc::CLONE_PARENT.cast_unsigned());
    let cloned = sys::clone_process(parent, joins.v2().map(AsFd::as_fd));
    match cloned.map_err(|e| joins.refused(&e))? {
        Cloned::Parent(pid, pidfd) => Ok((pid, pidfd)),
        Cloned::Child => {
            let failure = child.become_process();
            fail(child.error, &failure.to_string())
        }
    }
}

impl Child<'_> {
    /// In the worker, which nobody in the container sees: what is cloned there is then seen with no more than it is
    /// to have. A user namespace's users are not ours to become; in it, root is nobody on the host.
    ///
    /// What fails from here on is undone by the monitor: the exec's cgroup may not be this user's to remove.
    fn become_user(&mut self, cloned_into_cgroup: bool) -> Result<()> {
        if self.user_namespace {
            return Ok(());
        }
        // It is inherited; a process that is not privileged may get another one than it asks for.
        self.plan.label(self.proc)?;
        self.enter_place()?;
        let keep = Keep {
            admin: self.late.is_some(),
            files: cloned_into_cgroup,
        };
        self.plan.confine(keep)?;
        self.kept = Some(keep);
        Ok(())
    }

    /// Streams and working directory, as the container's root.
    fn enter_place(&mut self) -> Result<()> {
        if self.terminal.is_none() {
            for (fd, at) in self.standard.iter().zip(0..) {
                sys::replace_standard(fd.as_fd(), at)
                    .context(|| format!("put a stream on descriptor {at}"))?;
            }
            self.plan.own_standard()?;
        }
        self.chdir_again = self.plan.enter_cwd(false)?;
        Ok(())
    }

    /// In the new process; returns only on failure.
    fn become_process(&mut self) -> Error {
        match self.settle() {
            Ok(()) => self.plan.execute(),
            Err(e) => e,
        }
    }

    fn settle(&mut self) -> Result<()> {
        rustix::process::setsid().context(|| "start a session".to_owned())?;
        if let Some(namespace) = &self.late {
            let flag = u64::from(libc::CLONE_NEWCGROUP.cast_unsigned());
            sys::enter_namespaces(namespace, flag)
                .context(|| "enter the container's cgroup namespace".to_owned())?;
        }
        if self.kept.is_none() {
            // The namespace's own root, so that files made from here on are its.
            nix::unistd::setgroups(&[]).context(|| "clear groups".to_owned())?;
            credentials::change_ids(0, 0)?;
            self.plan.label(self.proc)?;
            self.enter_place()?;
        }
        if let Some(terminal) = self.terminal {
            terminal.take()?;
        }
        self.plan.reset()?;
        // Not only closed by execve: while that resolves its path, `/proc/self/fd/N/..` of the image would lead
        // to the host through any directory that is still open here (CVE-2024-21626).
        sys::close_others(self.error).context(|| "close descriptors".to_owned())?;
        match self.kept {
            None => self.plan.confine(Keep::default())?,
            Some(keep) if keep.files => self.plan.own_files()?,
            Some(_) => {}
        }
        if self.chdir_again {
            self.plan.enter_cwd_again()?;
        }
        process::die_with_monitor(self.error)?;
        self.plan.seal()
    }
}
