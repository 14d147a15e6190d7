//! What makes a container's init: libcontainer today, behind a trait so that it can be replaced.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::rc::Rc;

use libcontainer::container::builder::ContainerBuilder;
use libcontainer::oci_spec::runtime::Spec;
use libcontainer::syscall::syscall::SyscallType;
use libcontainer::workload::{
    Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError,
};

use crate::error::{Context, Error, Result};
use crate::init::{self, Init, Ready};
use crate::procfs;
use crate::report::Report;

/// What an engine is to make.
#[derive(Debug)]
pub(crate) struct Job<'a> {
    /// The container's id.
    pub(crate) id: &'a str,
    /// Directory with the `config.json` to follow.
    pub(crate) bundle: &'a Path,
    /// Directory for the engine's own state; nothing in it is needed after [`Engine::create`].
    pub(crate) state: &'a Path,
    /// Standard input, output and error of init.
    pub(crate) standard: [OwnedFd; 3],
    /// What init does once it is inside: [`Init::prepare`], and then [`Init::run`].
    pub(crate) init: Init,
}

/// Makes a container in which init has prepared everything, is confined, and waits for its start byte.
pub(crate) trait Engine {
    /// Returns init's pid. Init is a child of this process's parent.
    fn create(&self, job: Job<'_>) -> Result<i32>;
}

/// libcontainer 0.7, for inits only (its exec drops seccomp and ignores user namespaces).
#[derive(Debug)]
pub(crate) struct Libcontainer;

impl Engine for Libcontainer {
    fn create(&self, job: Job<'_>) -> Result<i32> {
        let report = Report::install()?;
        let ready = Ready::new(job.init.proc.as_fd(), job.init.start.as_fd())?;
        let init = Rc::new(job.init.with_report(report.writer()?));
        let executor = Run(init.clone());
        let [stdin, stdout, stderr] = job.standard;
        let made = ContainerBuilder::new(job.id.to_owned(), SyscallType::default())
            .validate_id()
            .and_then(|b| b.with_root_path(job.state))
            .map(|b| b.with_stdin(stdin).with_stdout(stdout).with_stderr(stderr))
            .and_then(|b| {
                b.with_executor(executor)
                    .as_init(job.bundle)
                    .with_systemd(false)
                    .as_sibling(true)
                    .with_detach(true)
                    .build()
            });
        let mut container = match made {
            Ok(container) => container,
            Err(e) => return Err(report.explain(Error::internal(chain(&e)))),
        };
        let pid = container.pid().map(libcontainer_pid);
        // From here on it waits in our executor, on our pipe, not on libcontainer's socket.
        let general = match (container.start(), pid) {
            (Ok(()), Some(pid)) => match confined(&ready, &init, pid) {
                Ok(()) => return Ok(pid),
                Err(e) => e,
            },
            (Ok(()), None) => Error::internal("no pid"),
            (Err(e), _) => Error::internal(chain(&e)),
        };
        if let Some(pid) = pid.and_then(rustix::process::Pid::from_raw) {
            let _gone = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
        Err(report.explain(general))
    }
}

/// Waits until init is no more than the container is to be.
fn confined(ready: &Ready, init: &Init, pid: i32) -> Result<()> {
    let proc = init.proc.as_fd();
    if !ready.wait(pid)? {
        return Err(init::ended(
            procfs::exit_status(proc, pid),
            init.plan.filter_first(),
        ));
    }
    init.plan.sealed(proc, pid)
}

fn libcontainer_pid(pid: nix::unistd::Pid) -> i32 {
    pid.as_raw()
}

/// An error with all its sources, without repetitions.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let next = error.to_string();
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        source = error.source();
    }
    text
}

#[derive(Clone)]
struct Run(Rc<Init>);

impl Executor for Run {
    fn validate(&self, _: &Spec) -> std::result::Result<(), ExecutorValidationError> {
        self.0
            .prepare()
            .map_err(|e| ExecutorValidationError::ArgValidationError(e.to_string()))
    }

    fn setup_envs(
        &self,
        _: HashMap<String, String>,
    ) -> std::result::Result<(), ExecutorSetEnvsError> {
        // The environment goes to execve as it came: libcontainer's map loses order and duplicates.
        Ok(())
    }

    fn exec(&self, _: &Spec) -> std::result::Result<(), ExecutorError> {
        self.0.run()
    }
}

/// Opens `/dev/null` for a stream that has no descriptor.
pub(crate) fn null() -> Result<OwnedFd> {
    let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CLOEXEC;
    let null = rustix::fs::open("/dev/null", flags, rustix::fs::Mode::empty())
        .context(|| "open /dev/null".to_owned())?;
    above_standard(null)
}

/// libcontainer wants stream descriptors above 2.
pub(crate) fn above_standard(fd: OwnedFd) -> Result<OwnedFd> {
    rustix::io::fcntl_dupfd_cloexec(fd.as_fd(), 3).context(|| "duplicate a descriptor".to_owned())
}
