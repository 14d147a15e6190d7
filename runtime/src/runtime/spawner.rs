//! The thread that starts monitors and workers.
//!
//! On cgroup v1 it moves itself, alone, into the monitors' control groups, once: what it starts is born
//! there. On v2, where a thread cannot leave its process, each process is cloned into its group. A
//! `cgroup.procs` write for each start would wait for an RCU grace period on an idle node (7-15 ms).

use std::cell::RefCell;
use std::ffi::{CStr, OsStr};
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;

use tokio::sync::oneshot;

use super::Error;
use crate::sys::process::{self, OpenFiles};

/// Where monitors and workers live.
#[derive(Debug)]
pub(super) enum Groups {
    /// Control groups of ours: one for each v1 hierarchy, or one of v2. Made when they are missing.
    Own(Vec<PathBuf>),
    /// A v2 group that somebody else makes.
    Foreign(PathBuf),
}

/// In which control group a process begins.
#[derive(Clone, Copy, Debug)]
pub(super) enum Birth {
    /// The monitors'.
    Inside,
    /// The daemon's own.
    Outside,
}

/// One process to start.
struct Job {
    exe: Arc<OwnedFd>,
    name: &'static CStr,
    stdin: OwnedFd,
    birth: Birth,
    /// Gets its pid and pidfd.
    done: oneshot::Sender<io::Result<(i32, OwnedFd)>>,
}

/// The thread's front.
#[derive(Debug)]
pub(super) struct Spawner {
    /// `None` once it was closed.
    jobs: Mutex<Option<mpsc::Sender<Job>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Spawner {
    /// Starts the thread, which ends when this is dropped.
    pub(super) fn start(cgroups: Groups, files: OpenFiles) -> Result<Self, Error> {
        let (jobs, queue) = mpsc::channel::<Job>();
        let (ready, placed) = mpsc::channel();
        let work = move || match Place::enter(cgroups, files) {
            Ok(place) => {
                let _ = ready.send(Ok(()));
                queue.into_iter().for_each(|job| place.run(job));
            }
            Err(error) => {
                let _ = ready.send(Err(error));
            }
        };
        let thread = std::thread::Builder::new()
            .name("spawner".to_owned())
            .spawn(work);
        let thread = thread.map_err(|source| failed("start a thread", source))?;
        let ended = || failed("place a thread", io::ErrorKind::BrokenPipe.into());
        placed.recv().map_err(|_| ended())??;
        Ok(Self {
            jobs: Mutex::new(Some(jobs)),
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Starts a program with a socket as its descriptor 0; gives its pid and pidfd. It is killed when nobody
    /// waits for that any more.
    ///
    /// # Errors
    /// `ENOENT` or `ENODEV` where it was to be born into a foreign group that is not there.
    pub(super) async fn spawn(
        &self,
        exe: &Arc<OwnedFd>,
        name: &'static CStr,
        stdin: OwnedFd,
        birth: Birth,
    ) -> io::Result<(i32, OwnedFd)> {
        let (done, started) = oneshot::channel();
        let job = Job {
            exe: exe.clone(),
            name,
            stdin,
            birth,
            done,
        };
        self.send(job)?;
        started.await.map_err(|_| io::ErrorKind::BrokenPipe)?
    }
}

impl Spawner {
    fn send(&self, job: Job) -> io::Result<()> {
        let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        let sent = jobs.as_ref().map(|jobs| jobs.send(job));
        match sent {
            Some(Ok(())) => Ok(()),
            _ => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    /// Ends the thread and waits for that: it stands in the monitors' cgroups, which stay as long as it does.
    pub(super) fn close(&self) {
        drop(
            self.jobs
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take(),
        );
        let thread = self
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(thread) = thread {
            // A panic of it was logged when it happened.
            let _ = thread.join();
        }
    }
}

fn failed(what: &'static str, source: io::Error) -> Error {
    Error::Io {
        name: "monitors".to_owned(),
        what,
        source,
    }
}

/// Where new processes belong.
struct Place {
    /// v2: into which each one is born.
    born: Option<Cgroup>,
    null: OwnedFd,
    /// What they may open.
    files: OpenFiles,
}

/// A cgroup of v2.
struct Cgroup {
    path: PathBuf,
    /// Kept for one of our own. That of another is not held: it would stay, dead, when it is removed.
    own: Option<RefCell<OwnedFd>>,
}

impl Cgroup {
    fn own(path: PathBuf) -> io::Result<Self> {
        let own = Some(RefCell::new(fs::File::open(&path)?.into()));
        Ok(Self { path, own })
    }

    fn foreign(path: PathBuf) -> Self {
        Self { path, own: None }
    }

    /// Starts a program in it; one of our own is made again after somebody has removed it.
    fn bear(&self, program: process::Program<'_>) -> io::Result<(i32, OwnedFd)> {
        let Some(own) = &self.own else {
            return process::spawn_into(program, fs::File::open(&self.path)?.as_fd());
        };
        match process::spawn_into(program, own.borrow().as_fd()) {
            Err(e) if matches!(e.raw_os_error(), Some(libc::ENODEV | libc::ENOENT)) => {}
            other => return other,
        }
        make(&self.path)?;
        own.replace(fs::File::open(&self.path)?.into());
        process::spawn_into(program, own.borrow().as_fd())
    }
}

impl Place {
    /// Moves this thread where that is possible.
    fn enter(groups: Groups, files: OpenFiles) -> Result<Self, Error> {
        let null = fs::File::options().read(true).write(true).open("/dev/null");
        let null = null
            .map_err(|source| failed("open /dev/null", source))?
            .into();
        let mut place = Self {
            born: None,
            null,
            files,
        };
        let paths = match groups {
            Groups::Own(paths) => paths,
            Groups::Foreign(path) => {
                place.born = Some(Cgroup::foreign(path));
                return Ok(place);
            }
        };
        for path in paths {
            let entered = make(&path).and_then(|()| {
                let tasks = path.join("tasks");
                if tasks.exists() {
                    // 0 is the writing thread.
                    return write(&tasks, "0");
                }
                place.born = Some(Cgroup::own(path.clone())?);
                Ok(())
            });
            entered.map_err(|source| Error::Cgroup { path, source })?;
        }
        Ok(place)
    }

    fn run(&self, job: Job) {
        let started = match (&self.born, job.birth) {
            (Some(cgroup), Birth::Inside) => self.bear(cgroup, &job.exe, job.name, &job.stdin),
            _ => start(&job.exe, job.name, job.stdin),
        };
        // It waits for its first message, and makes nothing before.
        let started = started.and_then(|(pid, pidfd)| self.files.give(pid).map(|()| (pid, pidfd)));
        if let Err(Ok((_, pidfd))) = job.done.send(started) {
            kill(&pidfd);
        }
    }

    fn bear(
        &self,
        cgroup: &Cgroup,
        exe: &OwnedFd,
        name: &CStr,
        stdin: &OwnedFd,
    ) -> io::Result<(i32, OwnedFd)> {
        let (exe, stdin, null) = (exe.as_fd(), stdin.as_fd(), self.null.as_fd());
        let program = process::Program {
            exe,
            name,
            stdin,
            null,
        };
        cgroup.bear(program)
    }
}

fn start(exe: &OwnedFd, name: &CStr, stdin: OwnedFd) -> io::Result<(i32, OwnedFd)> {
    let child = Command::new(format!("/proc/self/fd/{}", exe.as_raw_fd()))
        .arg0(OsStr::from_bytes(name.to_bytes()))
        .env_clear()
        .stdin(Stdio::from(stdin))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    // The pid cannot be another's: the child is not reaped.
    let pid = i32::try_from(child.id()).map_err(io::Error::other)?;
    Ok((pid, process::pidfd_open(pid)?))
}

/// Ends a process that has not been given anything to do.
pub(super) fn kill(pidfd: &OwnedFd) {
    let _ = process::send_signal(pidfd.as_fd(), libc::SIGKILL);
    let _ = process::has_ended(pidfd.as_fd(), std::time::Duration::from_secs(1));
    process::reap(pidfd.as_fd());
}

/// Makes a control group that may exist; on v1 a new cpuset takes over what its parent may use.
fn make(dir: &Path) -> io::Result<()> {
    match fs::create_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
        made => made?,
    }
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let (own, parent) = (dir.join(file), dir.parent().map(|p| p.join(file)));
        // Only on v1 does it come empty with a parent that is not.
        let empty = fs::read_to_string(&own).is_ok_and(|text| text.trim().is_empty());
        if let (true, Some(Ok(text))) = (empty, parent.map(fs::read_to_string)) {
            write(&own, text.trim())?;
        }
    }
    Ok(())
}

/// Writes to a control file that exists.
pub(super) fn write(file: &Path, value: &str) -> io::Result<()> {
    let mut file = fs::OpenOptions::new().write(true).open(file)?;
    io::Write::write_all(&mut file, value.as_bytes())
}
