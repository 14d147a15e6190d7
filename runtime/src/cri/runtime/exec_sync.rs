//! ExecSync (rows R036, F124, F125).

use std::sync::Arc;
use std::time::Duration;

use berth_cri_api::MAX_MESSAGE_BYTES;
use berth_cri_api::v1::{ExecSyncRequest, ExecSyncResponse};
use tonic::{Response, Status};

use crate::container::ExecOutput;
use crate::cri::convert::{self, At};
use crate::cri::layer::about_container;
use crate::cri::{Deps, status};
use crate::model::ExecRequest;

/// What both streams may hold together: the answer must fit into one message, or the caller would get
/// neither output nor exit code.
const OUTPUT_BYTES: usize = MAX_MESSAGE_BYTES - 1024;

/// Not detached, as nothing else is: a command ends with its caller (ADR 20).
pub(super) async fn handle(
    deps: &Arc<Deps>,
    request: ExecSyncRequest,
) -> Result<Response<ExecSyncResponse>, Status> {
    let (id, request) = convert(request).map_err(status::of)?;
    about_container(&id);
    let output = deps.containers.exec_sync(&id, request).await;
    Ok(answer(output.map_err(status::of)?))
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

/// What the output takes stays counted until the last byte of the answer is sent (`layer`).
fn answer(output: ExecOutput) -> Response<ExecSyncResponse> {
    let exit_code = output.exit_code;
    let (stdout, stderr, held) = output.fit(OUTPUT_BYTES);
    let mut answer = Response::new(ExecSyncResponse {
        stdout,
        stderr,
        exit_code,
    });
    answer.extensions_mut().insert(held);
    answer
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message;

    #[test]
    fn the_largest_answer_fits_into_a_message() {
        let answer = ExecSyncResponse {
            stdout: vec![0; OUTPUT_BYTES / 2],
            stderr: vec![0; OUTPUT_BYTES / 2],
            exit_code: -1,
        };
        assert!(answer.encoded_len() <= MAX_MESSAGE_BYTES);
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
