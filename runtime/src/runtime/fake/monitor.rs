//! Monitors that are entries of the table.

use std::io::Write as _;
use std::os::fd::OwnedFd;

use futures_util::future::BoxFuture;
use shim_protocol::monitor::{self as protocol, ExecExit};
use tokio::sync::oneshot;

use super::super::{Error, ExecHandle, ExecStdio, Monitor};
use super::{Call, Container, FIRST_PID, Fake, Mishap};
use crate::id::ContainerId;
use crate::model::{Process, now_nanos};

#[derive(Debug)]
pub(super) struct FakeMonitor {
    pub(super) fake: Fake,
    pub(super) id: ContainerId,
    pub(super) process: Process,
}

impl FakeMonitor {
    async fn meet(&self, call: Call) -> Result<Option<Mishap>, Error> {
        self.fake.meet(call, Some(&self.id)).await
    }

    /// Works with what the monitor has, if it is still there.
    fn with<T>(&self, work: impl FnOnce(&mut Container) -> T) -> Result<T, Error> {
        let mut world = self.fake.world();
        let container = world.containers.get_mut(&self.id);
        container.map(work).ok_or_else(|| Error::Gone {
            name: self.id.to_string(),
            what: "a test",
        })
    }
}

impl Monitor for FakeMonitor {
    fn process(&self) -> Option<Process> {
        Some(self.process.clone())
    }

    fn start(&self) -> BoxFuture<'_, Result<i64, Error>> {
        Box::pin(async move {
            // One that hangs or dies has read the request as well.
            let _ = self.with(|container| container.starting = true);
            let mishap = match self.meet(Call::Start).await {
                Err(error @ Error::Refused { .. }) => {
                    self.fake.end(&self.id, 128, "refused by the test");
                    return Err(error);
                }
                met => met?,
            };
            let started_at = self.with(|container| {
                if container.started_at == 0 {
                    container.started_at = now_nanos();
                }
                container.started_at
            })?;
            if let Some(Mishap::EndsFirst(code)) = mishap {
                self.fake.exit(&self.id, code);
            }
            Ok(started_at)
        })
    }

    fn exec(
        &self,
        exec: protocol::Exec,
        stdio: ExecStdio,
        _seccomp: Option<OwnedFd>,
    ) -> BoxFuture<'_, Result<ExecHandle, Error>> {
        Box::pin(async move {
            let (exit, ended) = oneshot::channel();
            let id = exec.exec_id;
            match self.meet(Call::Exec).await? {
                Some(Mishap::Runs) => {
                    self.with(|container| container.execs.insert(id, (stdio, exit)))?;
                }
                mishap => {
                    if let Some(out) = stdio.stdout {
                        std::fs::File::from(out).write_all(b"done\n").unwrap();
                    }
                    let code = match mishap {
                        Some(Mishap::EndsFirst(code)) => code,
                        _ => 0,
                    };
                    let _ = exit.send(ExecExit {
                        code,
                        ..ExecExit::default()
                    });
                }
            }
            let gone = || Error::Gone {
                name: "exec".to_owned(),
                what: "a test",
            };
            Ok(ExecHandle {
                pid: FIRST_PID,
                console: None,
                ended: Box::pin(async move { ended.await.map_err(|_| gone()) }),
            })
        })
    }

    fn kill_exec<'a>(&'a self, exec_id: &'a str) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            self.meet(Call::KillExec).await?;
            if let Some((_, exit)) = self.with(|container| container.execs.remove(exec_id))? {
                // Whoever waited for it may have left.
                let _ = exit.send(ExecExit {
                    code: 128 + libc::SIGKILL,
                    ..ExecExit::default()
                });
            }
            Ok(())
        })
    }

    fn reopen_log(&self, _dir: Option<OwnedFd>) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move { self.meet(Call::ReopenLog).await.map(drop) })
    }

    fn destroy(&self) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move {
            match self.meet(Call::Destroy).await {
                Ok(_) | Err(Error::Gone { .. } | Error::Silent { .. }) => {
                    self.fake.lose(&self.id);
                    Ok(())
                }
                Err(error) => Err(error),
            }
        })
    }

    fn kill(&self) -> BoxFuture<'_, bool> {
        Box::pin(async move {
            self.fake.world().asked.push(Call::Kill);
            self.fake.lose(&self.id);
            true
        })
    }
}
