//! ExecSync (rows R036, F124, F125).

use std::sync::Arc;
use std::time::Duration;

use berth_cri_api::MAX_MESSAGE_BYTES;
use berth_cri_api::v1::{ExecSyncRequest, ExecSyncResponse};
use tonic::Status;

use crate::cri::convert::{self, At};
use crate::cri::detach::detached;
use crate::cri::layer::about_container;
use crate::cri::{Deps, status};
use crate::model::{ExecOutput, ExecRequest};

/// What both streams may hold together: the answer must fit into one message, or the caller would get
/// neither output nor exit code.
const OUTPUT_BYTES: usize = MAX_MESSAGE_BYTES - 1024;

pub(super) async fn handle(
    deps: &Arc<Deps>,
    request: ExecSyncRequest,
) -> Result<ExecSyncResponse, Status> {
    let (id, request) = convert(request).map_err(status::of)?;
    about_container(&id);
    let containers = deps.containers.clone();
    detached(async move {
        let output = containers.exec_sync(&id, request).await;
        Ok(answer(output.map_err(status::of)?, OUTPUT_BYTES))
    })
    .await
}

fn convert(request: ExecSyncRequest) -> Result<(String, ExecRequest), convert::Error> {
    let id = convert::id("container_id", request.container_id)?;
    let at = At::root("cmd");
    if request.cmd.is_empty() {
        return Err(at.invalid("is empty"));
    }
    let command = at.each(request.cmd, At::text)?;
    let at = At::root("timeout");
    let timeout = u64::try_from(request.timeout)
        .map_err(|_| at.invalid(format!("{} s is below 0", request.timeout)))?;
    let timeout = (timeout > 0).then(|| Duration::from_secs(timeout));
    let tty = false;
    Ok((
        id,
        ExecRequest {
            command,
            tty,
            timeout,
        },
    ))
}

/// Cuts what does not fit; each stream keeps at least half of the room if it needs that much.
fn answer(output: ExecOutput, room: usize) -> ExecSyncResponse {
    let (mut stdout, mut stderr) = (output.stdout, output.stderr);
    let errors = stderr.len().min(room / 2);
    stdout.truncate(room - errors);
    stderr.truncate(room - stdout.len());
    ExecSyncResponse {
        stdout,
        stderr,
        exit_code: output.exit_code,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message;

    fn lengths(stdout: usize, stderr: usize, room: usize) -> (usize, usize) {
        let output = ExecOutput {
            stdout: vec![b'o'; stdout],
            stderr: vec![b'e'; stderr],
            exit_code: 3,
        };
        let answer = answer(output, room);
        assert_eq!(answer.exit_code, 3);
        (answer.stdout.len(), answer.stderr.len())
    }

    #[test]
    fn output_is_cut_fairly_and_only_when_it_does_not_fit() {
        assert_eq!(lengths(40, 60, 100), (40, 60));
        assert_eq!(lengths(200, 0, 100), (100, 0));
        assert_eq!(lengths(200, 10, 100), (90, 10));
        assert_eq!(lengths(200, 300, 100), (50, 50));
        assert_eq!(lengths(10, 300, 100), (10, 90));
    }

    #[test]
    fn the_largest_answer_fits_into_a_message() {
        let output = ExecOutput {
            stdout: vec![0; MAX_MESSAGE_BYTES],
            stderr: vec![0; MAX_MESSAGE_BYTES],
            exit_code: -1,
        };
        assert!(answer(output, OUTPUT_BYTES).encoded_len() <= MAX_MESSAGE_BYTES);
    }

    #[test]
    fn a_command_and_a_sensible_time_are_wanted() {
        let request = |cmd: &[&str], timeout| ExecSyncRequest {
            container_id: "abc".into(),
            cmd: cmd.iter().map(|s| (*s).to_owned()).collect(),
            timeout,
        };
        assert!(convert(request(&[], 0)).is_err());
        assert!(convert(request(&["true"], -1)).is_err());
        assert_eq!(convert(request(&["true"], 0)).unwrap().1.timeout, None);
        let limited = convert(request(&["true"], 2)).unwrap().1;
        assert_eq!(limited.timeout, Some(Duration::from_secs(2)));
    }
}
