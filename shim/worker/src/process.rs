//! The last steps of every process that the worker makes: from "inside the container as root" to
//! `execve`. Shared by init, exec and pause.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use shim_protocol::worker;

use crate::credentials::{ADMIN, Credentials, Keep};
use crate::error::{Context, Error, Result, reason};
use crate::options::Options;
use crate::{lsm, path, procfs, sys, tree};

/// Largest seccomp program the kernel takes, in bytes (`BPF_MAXINSNS` times `struct sock_filter`).
const MAX_SECCOMP: u64 = 4096 * 8;

/// Where an execve without `PATH` in its environment looks (as execvp(3)).
const DEFAULT_PATH: &[u8] = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A checked [`worker::Process`], everything ready that needs memory or the host's files.
#[derive(Debug)]
pub(crate) struct Plan {
    args: Vec<CString>,
    env: Vec<CString>,
    candidates: Vec<CString>,
    pub(crate) cwd: Vec<u8>,
    pub(crate) uid: u32,
    credentials: Credentials,
    umask: u32,
    seccomp: Option<Vec<u8>>,
    rlimits: Vec<worker::Rlimit>,
    label: lsm::Label,
}

impl Plan {
    /// Checks a process and reads its seccomp program.
    pub(crate) fn new(
        process: &worker::Process,
        seccomp: Option<OwnedFd>,
        rlimits: Vec<worker::Rlimit>,
    ) -> Result<Self> {
        let args = strings(&process.args, "argument")?;
        if args.first().is_none_or(|a| a.as_bytes().is_empty()) {
            return Err(Error::invalid("the process has no command (empty args)"));
        }
        let env = strings(&process.env, "environment variable")?;
        let candidates = candidates(&args[0], &process.env)?;
        if process.umask.is_some_and(|u| u > 0o777) {
            return Err(Error::invalid("umask is over 0777"));
        }
        Ok(Self {
            candidates,
            args,
            env,
            cwd: if process.cwd.is_empty() {
                b"/".to_vec()
            } else {
                process.cwd.clone()
            },
            uid: process.uid,
            credentials: Credentials::new(process)?,
            umask: process.umask.unwrap_or(0o022),
            seccomp: seccomp.map(read_seccomp).transpose()?,
            rlimits,
            label: lsm::Label::new(&process.apparmor, &process.selinux)?,
        })
    }

    /// Security labels for the coming execve. `proc` is the host's procfs.
    pub(crate) fn label(&self, proc: BorrowedFd<'_>) -> Result<()> {
        self.label.apply(proc)
    }

    /// Enters the working directory as root; made if missing when `make`. Returns whether it has to
    /// be tried again as the user (a network file system may refuse root).
    pub(crate) fn enter_cwd(&self, make: bool) -> Result<bool> {
        let opened = if make {
            path::make_directories(container_root()?.as_fd(), &self.cwd)
        } else {
            path::open_directory(container_root()?.as_fd(), &self.cwd)
        };
        match opened.and_then(|d| rustix::process::fchdir(d).map_err(io::Error::from)) {
            Ok(()) => Ok(false),
            Err(e) if matches!(e.raw_os_error(), Some(libc::EACCES | libc::EPERM)) => Ok(true),
            Err(e) => Err(no_cwd(&self.cwd, &e)),
        }
    }

    /// As [`Plan::enter_cwd`], as the user. Bound to the root like there, whatever links the path has.
    pub(crate) fn enter_cwd_again(&self) -> Result<()> {
        path::open_directory(container_root()?.as_fd(), &self.cwd)
            .and_then(|d| rustix::process::fchdir(d).map_err(io::Error::from))
            .map_err(|e| no_cwd(&self.cwd, &e))
    }

    /// Gives standard input, output and error to the user, so that `/dev/stdout` can be opened.
    ///
    /// A `/dev/null` of the host is replaced by the container's own.
    pub(crate) fn own_standard(&self) -> Result<()> {
        for at in 0..3 {
            let fd = sys::standard(at);
            let stat = rustix::fs::fstat(fd).context(|| format!("stat descriptor {at}"))?;
            let character = rustix::fs::FileType::from_raw_mode(stat.st_mode)
                == rustix::fs::FileType::CharacterDevice;
            if character && stat.st_rdev == rustix::fs::makedev(1, 3) {
                replace_null(at)?;
                continue;
            }
            let user = rustix::fs::Uid::from_raw(self.uid);
            match rustix::fs::fchown(fd, Some(user), None) {
                // A file of a kind or on a file system that has no owner to change (runc skips these too).
                Ok(())
                | Err(
                    rustix::io::Errno::INVAL | rustix::io::Errno::ROFS | rustix::io::Errno::PERM,
                ) => {}
                Err(e) => {
                    return Err(e).context(|| format!("give descriptor {at} to uid {}", self.uid));
                }
            }
        }
        Ok(())
    }

    /// What is the same whoever the process will be: signals, attributes, umask, resource limits.
    pub(crate) fn reset(&self) -> Result<()> {
        sys::reset_signals(0).context(|| "reset signals".to_owned())?;
        sys::reset_attributes();
        rustix::process::umask(Mode::from_raw_mode(self.umask));
        for limit in &self.rlimits {
            sys::set_resource_limit(limit.resource, limit.soft, limit.hard).context(|| {
                format!(
                    "set resource limit {} to {}:{}",
                    limit.resource, limit.soft, limit.hard
                )
            })?;
        }
        Ok(())
    }

    /// Becomes the user, with the capabilities it is to have and what is to be kept until [`Plan::seal`].
    pub(crate) fn confine(&self, keep: Keep) -> Result<()> {
        self.credentials.take(Keep {
            admin: keep.admin || self.filter_first(),
            ..keep
        })
    }

    /// The user's files from here on, where root's were kept.
    pub(crate) fn own_files(&self) -> Result<()> {
        self.credentials.own_files()
    }

    /// The last of what is privileged: a filter without `no_new_privs` needs CAP_SYS_ADMIN, which goes
    /// then. From here on the process has nothing that its program will not have, and little but reading
    /// and execve(2) may be allowed.
    pub(crate) fn seal(&self) -> Result<()> {
        if !self.filter_first() {
            return self.credentials.give_up();
        }
        self.filter()?;
        self.credentials.give_up().map_err(|e| {
            Error::invalid(format!(
                "the seccomp profile refuses capset(2), by which CAP_SYS_ADMIN is given up that the filter was loaded \
                 with ({e}): allow it, or set no_new_privs (allowPrivilegeEscalation: false)"
            ))
        })
    }

    /// Looks from outside whether a process has done what [`Plan::seal`] does: its filter may answer without doing it.
    /// `proc` is the host's procfs.
    pub(crate) fn sealed(&self, proc: BorrowedFd<'_>, pid: i32) -> Result<()> {
        if !self.filter_first() || self.credentials.has_admin() {
            return Ok(());
        }
        if procfs::permitted(proc, pid)? & ADMIN == 0 {
            return Ok(());
        }
        Err(Error::invalid(
            "the seccomp profile answers capset(2) without doing it, so that CAP_SYS_ADMIN is not given up that the \
             filter was loaded with: allow it, or set no_new_privs (allowPrivilegeEscalation: false)",
        ))
    }

    /// Executes; returns only on failure. A filter that needs no privilege is loaded here, so that it has to
    /// allow nothing but that.
    pub(crate) fn execute(&self) -> Error {
        match self.late_filter() {
            Ok(()) => self.execve(),
            Err(e) => e,
        }
    }

    /// All steps, with the program given as a file (pause).
    pub(crate) fn execute_file(&self, file: BorrowedFd<'_>, name: &CStr) -> Error {
        let confined = self
            .confine(Keep::default())
            .and_then(|()| self.seal())
            .and_then(|()| self.late_filter());
        match confined {
            Ok(()) => Error::internal(format!("exec: {}", reason(&sys::execute_file(file, name)))),
            Err(e) => e,
        }
    }

    /// Whether [`Plan::seal`] loads a filter.
    pub(crate) fn filter_first(&self) -> bool {
        self.seccomp.is_some() && !self.credentials.no_new_privs
    }

    fn late_filter(&self) -> Result<()> {
        if self.filter_first() {
            Ok(())
        } else {
            self.filter()
        }
    }

    fn filter(&self) -> Result<()> {
        let Some(program) = &self.seccomp else {
            return Ok(());
        };
        sys::load_seccomp(program).context(|| "load the seccomp filter".to_owned())
    }

    fn execve(&self) -> Error {
        let mut denied = false;
        for candidate in &self.candidates {
            let Err(errno) = nix::unistd::execve(candidate, &self.args, &self.env);
            match errno {
                nix::errno::Errno::ENOENT | nix::errno::Errno::ENOTDIR if self.searches() => {}
                nix::errno::Errno::EACCES if self.searches() => denied = true,
                errno => return self.refused(&reason(&errno.into())),
            }
        }
        self.refused(if denied {
            "permission denied"
        } else {
            "executable file not found in $PATH"
        })
    }

    fn refused(&self, why: &str) -> Error {
        Error::internal(format!("exec: {:?}: {why}", self.args[0].to_string_lossy()))
    }

    fn searches(&self) -> bool {
        !self.args[0].as_bytes().contains(&b'/')
    }
}

/// Why a working directory cannot be made or entered.
pub(crate) fn no_cwd(cwd: &[u8], why: &io::Error) -> Error {
    let shown = String::from_utf8_lossy(cwd);
    let means = match why.raw_os_error() {
        Some(libc::ELOOP) => {
            " (a link on its way leads to nothing or in a circle: mend the image, or choose another directory)"
        }
        Some(libc::EROFS) => {
            " (it does not exist, and what it lies on is read-only: make it there first, or choose another directory)"
        }
        _ => "",
    };
    Error::invalid(format!(
        "working directory {shown:?}: {}{means}",
        reason(why)
    ))
}

fn container_root() -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open("/", flags, Mode::empty()).context(|| "open the container's root".to_owned())
}

/// Dies with the monitor from here on. Set after the last change of ids, which would clear it
/// (prctl(2)), and only then is it sure that a monitor which has died before is noticed: the read end of
/// the error pipe is gone when the monitor is.
pub(crate) fn die_with_monitor(error_pipe: BorrowedFd<'_>) -> Result<()> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
        .context(|| "set the parent death signal".to_owned())?;
    if hung_up(error_pipe) {
        sys::exit_now(255);
    }
    Ok(())
}

/// Whether the other end of a pipe is gone.
pub(crate) fn hung_up(pipe: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::new(&pipe, PollFlags::empty())];
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    poll(&mut fds, Some(&now)).is_ok()
        && fds[0].revents().intersects(PollFlags::ERR | PollFlags::HUP)
}

/// Raises hard limits that only the host's root may raise, before a user namespace is entered.
/// The exact values follow in [`Plan::reset`], so that they cannot hinder the worker's own steps.
pub(crate) fn raise_hard_limits(limits: &[worker::Rlimit]) -> Result<()> {
    for limit in limits {
        if limit.soft > limit.hard {
            return Err(Error::invalid(format!(
                "resource limit {}: soft value {} is over the hard value {}",
                limit.resource, limit.soft, limit.hard
            )));
        }
        let (soft, hard) = sys::resource_limit(limit.resource)
            .context(|| format!("read resource limit {}", limit.resource))?;
        if limit.hard > hard {
            sys::set_resource_limit(limit.resource, soft, limit.hard).context(|| {
                format!(
                    "raise the hard value of resource limit {} to {}",
                    limit.resource, limit.hard
                )
            })?;
        }
    }
    Ok(())
}

/// Writes this process's `oom_score_adj`, which its children inherit.
pub(crate) fn set_oom_score(proc: BorrowedFd<'_>, value: i32) -> Result<()> {
    let file = rustix::fs::openat(
        proc,
        "self/oom_score_adj",
        OFlags::WRONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .context(|| "open oom_score_adj".to_owned())?;
    rustix::io::write(file, value.to_string().as_bytes()).map(drop).context(|| {
        format!("set oom_score_adj to {value} (a value below the present one needs CAP_SYS_RESOURCE)")
    })
}

/// Gives streams to a user of a user namespace, from outside: inside, nobody may.
pub(crate) fn own_streams(streams: &[OwnedFd], uid: u32, map: &[procfs::Range]) -> Result<()> {
    let host = map
        .iter()
        .find_map(|(inside, host, count)| {
            uid.checked_sub(*inside)
                .filter(|at| at < count)
                .and_then(|at| host.checked_add(at))
        })
        .ok_or_else(|| Error::invalid(format!("uid {uid} is not mapped in the user namespace")))?;
    for stream in streams {
        let stat = rustix::fs::fstat(stream).context(|| "stat a stream".to_owned())?;
        // Only pipes and sockets are the container's alone; /dev/null is everybody's.
        let kind = rustix::fs::FileType::from_raw_mode(stat.st_mode);
        if matches!(
            kind,
            rustix::fs::FileType::Fifo | rustix::fs::FileType::Socket
        ) {
            rustix::fs::fchown(stream, Some(rustix::fs::Uid::from_raw(host)), None)
                .context(|| format!("give a stream to uid {host}"))?;
        }
    }
    Ok(())
}

fn replace_null(at: i32) -> Result<()> {
    let null = match container_null()? {
        Some(null) => null,
        None => private_null()?,
    };
    sys::replace_standard(null.as_fd(), at).context(|| "replace /dev/null".to_owned())
}

/// The container's null device, unless a mount of its pod has put something else in that place.
fn container_null() -> Result<Option<OwnedFd>> {
    let open = |flags| {
        rustix::fs::open(
            "/dev/null",
            flags | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
        )
    };
    let is_null = |fd: &OwnedFd| -> Result<bool> {
        let stat = rustix::fs::fstat(fd).context(|| "stat the container's /dev/null".to_owned())?;
        let kind = rustix::fs::FileType::from_raw_mode(stat.st_mode);
        Ok(kind == rustix::fs::FileType::CharacterDevice
            && stat.st_rdev == rustix::fs::makedev(1, 3))
    };
    // Looked at before it is opened: opening another device may do something.
    match open(OFlags::PATH) {
        Ok(found) if is_null(&found)? => {}
        _ => return Ok(None),
    }
    let null = open(OFlags::RDWR).context(|| "open the container's /dev/null".to_owned())?;
    Ok(is_null(&null)?.then_some(null))
}

/// A null device in a file system of its own: not the host's, whose mode and owner the container could change.
fn private_null() -> Result<OwnedFd> {
    let options = Options::parse(["nosuid", "noexec"].into_iter());
    let place = tree::file_system("tmpfs", "tmpfs", &options)
        .map_err(|e| e.map(|m| format!("a tmpfs for a null device: {m}")))?;
    let make = || {
        use rustix::fs::{AtFlags, FileType, chmodat, makedev, mknodat, openat};
        let mode = Mode::from_raw_mode(0o666);
        mknodat(
            &place,
            "null",
            FileType::CharacterDevice,
            mode,
            makedev(1, 3),
        )?;
        chmodat(&place, "null", mode, AtFlags::empty())?;
        openat(
            &place,
            "null",
            OFlags::RDWR | OFlags::CLOEXEC,
            Mode::empty(),
        )
    };
    make().context(|| "make a null device".to_owned())
}

fn strings(bytes: &[Vec<u8>], what: &str) -> Result<Vec<CString>> {
    bytes
        .iter()
        .map(|b| CString::new(b.as_slice()))
        .collect::<std::result::Result<_, _>>()
        .map_err(|_| Error::invalid(format!("an {what} has a zero byte")))
}

/// The files to try, in order, for `argv[0]`.
fn candidates(name: &CStr, env: &[Vec<u8>]) -> Result<Vec<CString>> {
    let name = name.to_bytes();
    if name.contains(&b'/') {
        return strings(&[name.to_vec()], "argument");
    }
    // getenv(3), which programs use, takes the first of duplicates.
    let path = env
        .iter()
        .find_map(|e| e.strip_prefix(b"PATH="))
        .unwrap_or(DEFAULT_PATH);
    let files: Vec<Vec<u8>> = path
        .split(|b| *b == b':')
        // An empty or relative entry is the working directory's, which an image may fill: never searched.
        .filter(|dir| dir.first() == Some(&b'/'))
        .map(|dir| [dir, b"/", name].concat())
        .collect();
    strings(&files, "environment variable")
}

fn read_seccomp(file: OwnedFd) -> Result<Vec<u8>> {
    let file = File::from(file);
    let size = file
        .metadata()
        .context(|| "stat the seccomp program".to_owned())?
        .len();
    if size == 0 || size > MAX_SECCOMP || size % 8 != 0 {
        return Err(Error::invalid(format!("a seccomp program of {size} bytes")));
    }
    let mut program = vec![0; usize::try_from(size).unwrap_or_default()];
    file.read_exact_at(&mut program, 0)
        .context(|| "read the seccomp program".to_owned())?;
    Ok(program)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process() -> worker::Process {
        worker::Process {
            args: vec![b"sh".to_vec()],
            env: vec![b"PATH=/a:rel::/b".to_vec(), b"PATH=/c".to_vec()],
            ..worker::Process::default()
        }
    }

    #[test]
    fn the_first_path_counts_and_only_absolute_entries() {
        let plan = Plan::new(&process(), None, Vec::new()).unwrap();
        assert_eq!(plan.candidates, [c"/a/sh".to_owned(), c"/b/sh".to_owned()]);
    }

    #[test]
    fn a_slash_is_never_looked_up() {
        let mut process = process();
        process.args = vec![b"./x".to_vec()];
        let plan = Plan::new(&process, None, Vec::new()).unwrap();
        assert_eq!(plan.candidates, [c"./x".to_owned()]);
    }

    #[test]
    fn empty_args_zero_bytes_and_unknown_capabilities_are_refused() {
        let mut empty = process();
        empty.args.clear();
        assert!(
            Plan::new(&empty, None, Vec::new())
                .unwrap_err()
                .to_string()
                .contains("empty args")
        );
        let mut zero = process();
        zero.env.push(b"A=\0".to_vec());
        assert!(Plan::new(&zero, None, Vec::new()).is_err());
        let mut unknown = process();
        unknown.capabilities = Some(worker::Capabilities {
            ambient: 1 << 63,
            ..worker::Capabilities::default()
        });
        assert!(Plan::new(&unknown, None, Vec::new()).is_err());
    }
}
