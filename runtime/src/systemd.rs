//! Transient scopes of systemd, by its D-Bus interface (org.freedesktop.systemd1(5)).
//!
//! systemd owns the cgroup tree of a machine that it runs: what Berth keeps there stands in scopes with
//! `Delegate=yes`, below which the tree is ours (<https://systemd.io/CGROUP_DELEGATION/>).

use std::fmt::Display;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use tokio::sync::{Mutex, broadcast};
use zbus::wire::OwnedObjectPath;
use zbus::{Connection, MatchRule, MessageStream, Variant, connection};

const SERVICE: &str = "org.freedesktop.systemd1";
const OBJECT: &str = "/org/freedesktop/systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";

/// How long connecting may take, and one job. systemd under load has been seen to take seconds.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
const JOB_LIMIT: Duration = Duration::from_secs(60);

/// Ends of jobs that a slow reader may fall behind.
const QUEUE: usize = 1024;

/// Why systemd did not do what it was asked.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The bus cannot be reached.
    #[error("systemd cannot be reached by the system bus ({0}): is dbus.socket active?")]
    Unreachable(String),
    /// It refused.
    #[error("systemd cannot {what}: {problem}")]
    Refused {
        /// What it was asked for.
        what: String,
        /// What it said.
        problem: String,
    },
    /// It began and did not succeed.
    #[error(
        "systemd could not {what}: its job ended with {result:?}; `journalctl -u {unit}` may tell why"
    )]
    Failed {
        /// What it was asked for.
        what: String,
        /// The unit.
        unit: String,
        /// The result of the job.
        result: String,
    },
    /// It did not answer in time.
    #[error("systemd did not {what} in {limit:?}")]
    Silent {
        /// What it was asked for.
        what: String,
        /// The limit.
        limit: Duration,
    },
}

/// A scope to be made.
#[derive(Clone, Debug)]
pub struct Scope<'a> {
    /// Its unit name, `….scope`.
    pub unit: &'a str,
    /// The slice in which it stands, `….slice`.
    pub slice: &'a str,
    /// For people, in `systemctl status`.
    pub description: &'a str,
    /// The process that is moved into it: a scope is not without one.
    pub pid: i32,
}

/// The manager of this machine. Connects when it is needed, and again when the connection is gone.
#[derive(Debug, Default)]
pub struct Systemd {
    link: Mutex<Option<Arc<Link>>>,
}

/// A job that systemd has ended.
#[derive(Clone, Debug)]
struct Ended {
    job: OwnedObjectPath,
    result: String,
}

#[derive(Debug)]
struct Link {
    connection: Connection,
    /// `None`: the connection is dead.
    ended: broadcast::Sender<Option<Ended>>,
}

/// How a call went wrong.
enum Trouble {
    /// Nobody knows whether it was heard.
    Lost(String),
    /// The name of the D-Bus error, and its text.
    Refused(String, String),
    Failed(String),
}

impl Systemd {
    /// Makes a delegated scope. When this returns the process is in it.
    ///
    /// # Errors
    /// When systemd cannot be reached or refuses.
    pub async fn start_scope(&self, scope: &Scope<'_>) -> Result<(), Error> {
        let pid = u32::try_from(scope.pid).unwrap_or_default();
        let properties: Vec<(&str, Variant<'_>)> = vec![
            ("Description", scope.description.into()),
            ("Slice", scope.slice.into()),
            ("Delegate", true.into()),
            ("PIDs", vec![pid].into()),
            // It is stopped late at shutdown, by us or with its containers, not for a unit that goes.
            ("DefaultDependencies", false.into()),
            // One process that the kernel kills for memory is its container's matter.
            ("OOMPolicy", "continue".into()),
            ("CollectMode", "inactive-or-failed".into()),
        ];
        let auxiliary: Vec<(&str, Vec<(&str, Variant<'_>)>)> = Vec::new();
        let body = (scope.unit, "fail", properties, auxiliary);
        let what = format!("make {} in {}", scope.unit, scope.slice);
        match self
            .job(&what, scope.unit, "StartTransientUnit", &body)
            .await
        {
            // The first of two tries was heard, although its answer was lost.
            Err(Error::Refused { .. }) if is_in(scope.pid, scope.unit) => Ok(()),
            other => other,
        }
    }

    /// Stops a unit with everything in it. One that is gone is fine.
    ///
    /// # Errors
    /// When systemd cannot be reached or refuses.
    pub async fn stop(&self, unit: &str) -> Result<(), Error> {
        let what = format!("stop {unit}");
        match self.job(&what, unit, "StopUnit", &(unit, "replace")).await {
            Err(Error::Refused { problem, .. }) if problem.contains("not loaded") => Ok(()),
            other => other,
        }
    }

    /// Calls a method that gives a job, and waits for the end of it. Once more on a new connection if the old
    /// one turns out to be dead, as after `systemctl daemon-reexec`.
    async fn job<B>(&self, what: &str, unit: &str, method: &str, body: &B) -> Result<(), Error>
    where
        B: serde::Serialize + zbus::wire::DynamicType + Sync,
    {
        let mut last = String::new();
        for _ in 0..2 {
            let link = self.link().await?;
            let silent = || Error::Silent {
                what: what.to_owned(),
                limit: JOB_LIMIT,
            };
            let outcome = tokio::time::timeout(JOB_LIMIT, link.job(method, body)).await;
            match outcome.map_err(|_| silent())? {
                Ok(()) => return Ok(()),
                Err(Trouble::Lost(why)) => last = why,
                Err(Trouble::Refused(name, text)) => {
                    return Err(Error::Refused {
                        what: what.to_owned(),
                        problem: format!("{text} ({name})"),
                    });
                }
                Err(Trouble::Failed(result)) => {
                    return Err(Error::Failed {
                        what: what.to_owned(),
                        unit: unit.to_owned(),
                        result,
                    });
                }
            }
            self.forget(&link).await;
        }
        Err(Error::Refused {
            what: what.to_owned(),
            problem: format!("the connection broke twice: {last}"),
        })
    }

    async fn link(&self) -> Result<Arc<Link>, Error> {
        let mut held = self.link.lock().await;
        if let Some(link) = &*held {
            return Ok(link.clone());
        }
        let link = Arc::new(connect().await?);
        *held = Some(link.clone());
        Ok(link)
    }

    async fn forget(&self, dead: &Arc<Link>) {
        let mut held = self.link.lock().await;
        if held.as_ref().is_some_and(|link| Arc::ptr_eq(link, dead)) {
            *held = None;
        }
    }
}

async fn connect() -> Result<Link, Error> {
    match within(connection::Builder::system().build()).await {
        Ok(connection) => open(connection).await,
        Err(problem) => Err(Error::Unreachable(problem)),
    }
}

async fn within<T>(work: impl Future<Output = zbus::Result<T>>) -> Result<T, String> {
    match tokio::time::timeout(CONNECT_LIMIT, work).await {
        Ok(outcome) => outcome.map_err(|e| e.to_string()),
        Err(_) => Err(format!("no answer in {CONNECT_LIMIT:?}")),
    }
}

/// Begins to listen for ends of jobs, which are sent to subscribers only.
async fn open(connection: Connection) -> Result<Link, Error> {
    let refused = |problem: &dyn Display| Error::Refused {
        what: "tell of the ends of its jobs".to_owned(),
        problem: problem.to_string(),
    };
    let rule = MatchRule::builder()
        .msg_type(zbus::message::Type::Signal)
        .interface(MANAGER)
        .member("JobRemoved")
        .build()
        .map_err(|e| refused(&e))?;
    let listen = MessageStream::for_match_rule(rule, &connection, None);
    let mut signals = listen.await.map_err(|e| refused(&e))?;
    let subscribed = connection.call_method(Some(SERVICE), OBJECT, Some(MANAGER), "Subscribe", &());
    within(subscribed).await.map_err(|e| refused(&e))?;
    let (ended, _) = broadcast::channel(QUEUE);
    let tell = ended.downgrade();
    tokio::spawn(async move {
        while let Some(Ok(message)) = signals.next().await {
            let body = message.body();
            let removed: zbus::Result<(u32, OwnedObjectPath, String, String)> = body.deserialize();
            let Some(tell) = tell.upgrade() else { return };
            if let Ok((_, job, _, result)) = removed {
                // Nobody may be waiting for it.
                let _ = tell.send(Some(Ended { job, result }));
            }
        }
        if let Some(tell) = tell.upgrade() {
            let _ = tell.send(None);
        }
    });
    Ok(Link { connection, ended })
}

impl Link {
    async fn job<B>(&self, method: &str, body: &B) -> Result<(), Trouble>
    where
        B: serde::Serialize + zbus::wire::DynamicType + Sync,
    {
        // Before the call: the end of the job may come before the answer is looked at.
        let mut ends = self.ended.subscribe();
        let called = self
            .connection
            .call_method(Some(SERVICE), OBJECT, Some(MANAGER), method, body)
            .await;
        let answer = called.map_err(trouble)?;
        let job: OwnedObjectPath = answer
            .body()
            .deserialize()
            .map_err(|e| Trouble::Lost(e.to_string()))?;
        loop {
            match ends.recv().await {
                Ok(Some(end)) if end.job == job => {
                    return match end.result.as_str() {
                        "done" | "skipped" => Ok(()),
                        _ => Err(Trouble::Failed(end.result)),
                    };
                }
                Ok(Some(_)) => {}
                Ok(None) => return Err(Trouble::Lost("it was closed".to_owned())),
                Err(error) => return Err(Trouble::Lost(error.to_string())),
            }
        }
    }
}

fn trouble(error: zbus::Error) -> Trouble {
    match error {
        zbus::Error::MethodError(name, text, _) => {
            Trouble::Refused(name.to_string(), text.unwrap_or_default())
        }
        zbus::Error::FDO(error) => {
            Trouble::Refused("org.freedesktop.DBus.Error".to_owned(), error.to_string())
        }
        other => Trouble::Lost(other.to_string()),
    }
}

/// Whether a process is in a unit's cgroup.
fn is_in(pid: i32, unit: &str) -> bool {
    let text = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("cgroup"));
    let v2 = text.unwrap_or_default();
    let path = v2.lines().find_map(|line| line.strip_prefix("0::"));
    path.is_some_and(|path| path.split('/').any(|part| part == unit))
}
