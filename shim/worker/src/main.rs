//! `berth-worker`: a disposable, single-threaded helper that makes one thing and ends.
//!
//! It is started with a unix stream socket as descriptor 0, by a monitor (create, exec) or by the
//! daemon (pod), reads a request of [`shim_protocol::worker`] and answers. It exists because the work
//! changes namespaces, directory, dumpability and OOM score of the process that does it, and because
//! cloning without execve is safe only in a process without threads.

use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;

use shim_protocol::worker::{Call, Namespaces, Outcome};

mod cgroup;
mod cover;
mod create;
mod credentials;
mod devices;
mod engine;
mod error;
mod exec;
mod init;
mod inside;
mod lsm;
mod memory;
mod message;
mod mounts;
mod options;
mod path;
mod pause;
mod place;
mod pod;
mod process;
mod procfs;
mod report;
mod sys;
mod terminal;
mod tree;

use error::{Context, Error, Result};

fn main() -> ExitCode {
    match serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            use std::io::Write;
            // The socket is broken: the parent sees its end, and this is for the journal.
            let _nobody = writeln!(std::io::stderr(), "berth-worker: {e}");
            ExitCode::FAILURE
        }
    }
}

fn serve() -> Result<()> {
    sys::clear_environment();
    credentials::not_dumpable()?;
    rustix::thread::set_name(c"berth-worker").context(|| "set the name".to_owned())?;
    let socket = take_socket()?;
    let socket = socket.as_fd();
    let (call, mut fds) = match message::receive(socket) {
        Ok(Some(request)) => request,
        Ok(None) => return Ok(()),
        Err(e) => return message::answer(socket, Err(e), &[]),
    };
    match call {
        Call::Create(create) => {
            let made = create::create(&create, &mut fds, &engine::Libcontainer);
            message::answer_made(socket, made)
        }
        Call::Exec(exec) => message::answer_made(socket, exec::exec(&exec, &mut fds)),
        Call::Pod(pod) => match pod::make(&pod) {
            Ok(pins) => {
                // Taken away again where nobody is there to hear of them.
                message::answer(socket, Ok(Outcome::Namespaces(Namespaces {})), &[])?;
                pins.into_iter().for_each(pod::Pin::keep);
                pause(socket)
            }
            Err(e) => message::answer(socket, Err(e), &[]),
        },
        Call::Pause(_) => {
            let first = Error::invalid("pause without the pod's namespaces before it");
            message::answer(socket, Err(first), &[])
        }
    }
}

/// The second half of a pod.
fn pause(socket: std::os::fd::BorrowedFd<'_>) -> Result<()> {
    match message::receive(socket) {
        Ok(None) => Ok(()),
        Ok(Some((Call::Pause(pause), mut fds))) => match pause::start(&pause, &mut fds) {
            Ok((made, unkept)) => {
                message::answer_made(socket, Ok(made))?;
                unkept.keep();
                Ok(())
            }
            Err(e) => message::answer(socket, Err(e), &[]),
        },
        Ok(Some(_)) => {
            message::answer(socket, Err(Error::invalid("only pause follows a pod")), &[])
        }
        Err(e) => message::answer(socket, Err(e), &[]),
    }
}

/// Moves the socket away from descriptor 0, which children would take for standard input.
fn take_socket() -> Result<OwnedFd> {
    let socket = engine::above_standard(
        sys::standard(0)
            .try_clone_to_owned()
            .context(|| "duplicate the socket".to_owned())?,
    )?;
    let null = engine::null()?;
    sys::replace_standard(null.as_fd(), 0).context(|| "replace descriptor 0".to_owned())?;
    Ok(socket)
}
