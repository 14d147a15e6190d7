//! What the daemon is told by signals. Listened to from the beginning: a reload must not end a daemon that is
//! just starting.

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Signals that would end a process that does not listen, and mean nothing here (signal(7)): of two that are left to
/// programs, timers, limits and the like. Rust ignores SIGPIPE itself.
const IGNORED: [i32; 9] = [
    libc::SIGUSR2,
    libc::SIGALRM,
    libc::SIGVTALRM,
    libc::SIGPROF,
    libc::SIGIO,
    libc::SIGPWR,
    libc::SIGSTKFLT,
    libc::SIGXCPU,
    libc::SIGXFSZ,
];

/// What a signal means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// SIGHUP.
    Reload,
    /// SIGTERM, SIGINT, SIGQUIT.
    Stop,
}

/// The signals that mean something.
#[derive(Debug)]
pub(super) struct Signals {
    hangup: Signal,
    terminate: Signal,
    interrupt: Signal,
    quit: Signal,
    report: Option<Signal>,
}

impl Signals {
    pub(super) fn listen() -> Result<Self, String> {
        let listen = |kind| signal(kind).map_err(|e| format!("cannot listen for signals: {e}"));
        let real_time = libc::SIGRTMIN()..=libc::SIGRTMAX();
        for number in IGNORED.into_iter().chain(real_time) {
            // A handler stays, whoever listens; an execve puts the default back, where an ignored signal stays ignored.
            let _unheard = listen(SignalKind::from_raw(number))?;
        }
        Ok(Self {
            hangup: listen(SignalKind::hangup())?,
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            quit: listen(SignalKind::quit())?,
            report: Some(listen(SignalKind::user_defined1())?),
        })
    }

    /// SIGUSR1, which asks for a report; for one listener.
    pub(super) fn take_report(&mut self) -> Option<Signal> {
        self.report.take()
    }

    /// The next one.
    pub(super) async fn next(&mut self) -> Told {
        tokio::select! {
            _ = self.hangup.recv() => Told::Reload,
            () = Self::stopped(&mut self.terminate, &mut self.interrupt, &mut self.quit) => Told::Stop,
        }
    }

    /// Ends when the daemon is told to stop; what else comes waits for [`Signals::next`].
    pub(super) async fn stop(&mut self) {
        Self::stopped(&mut self.terminate, &mut self.interrupt, &mut self.quit).await;
    }

    async fn stopped(terminate: &mut Signal, interrupt: &mut Signal, quit: &mut Signal) {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            _ = quit.recv() => {}
        }
    }
}
