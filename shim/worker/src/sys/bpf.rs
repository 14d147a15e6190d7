//! bpf(2), as much of it as attaching a device program takes.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

// Commands and constants of include/uapi/linux/bpf.h.
const PROG_LOAD: libc::c_int = 5;
const PROG_ATTACH: libc::c_int = 8;
const PROG_GET_FD_BY_ID: libc::c_int = 13;
const PROG_QUERY: libc::c_int = 16;
const PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const ATTACH_CGROUP_DEVICE: u32 = 6;
const ALLOW_MULTI: u32 = 2;
const REPLACE: u32 = 4;

/// One instruction, laid out as the kernel's `struct bpf_insn`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Instruction {
    /// Operation.
    pub(crate) code: u8,
    /// Destination register in the low half, source register in the high half.
    pub(crate) registers: u8,
    /// Jump distance or memory offset.
    pub(crate) offset: i16,
    /// Constant.
    pub(crate) immediate: i32,
}

#[repr(C)]
#[derive(Default)]
struct Load {
    kind: u32,
    count: u32,
    instructions: u64,
    licence: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
}

#[repr(C)]
#[derive(Default)]
struct Attach {
    target: u32,
    program: u32,
    kind: u32,
    flags: u32,
    replaced: u32,
}

#[repr(C)]
#[derive(Default)]
struct Query {
    target: u32,
    kind: u32,
    query_flags: u32,
    attach_flags: u32,
    ids: u64,
    count: u32,
    padding: u32,
    program_flags: u64,
    link_ids: u64,
    link_flags: u64,
    revision: u64,
}

// Since Linux 6.17 a query of a cgroup writes `revision` whatever size the caller gives
// (`__cgroup_bpf_query` in kernel/bpf/cgroup.c).
const _: () = assert!(std::mem::offset_of!(Query, revision) == 56 && size_of::<Query>() == 64);

#[repr(C)]
#[derive(Default)]
struct ById {
    id: u32,
    next: u32,
    flags: u32,
}

fn call<T>(command: libc::c_int, attributes: &mut T) -> io::Result<i32> {
    // SAFETY: each T is a repr(C) prefix of union bpf_attr for its command, and its size is given;
    // the pointers in it are to buffers that the callers keep alive.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(attributes),
            size_of::<T>(),
        )
    };
    let result = super::check(result)?;
    i32::try_from(result).map_err(io::Error::other)
}

fn number(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().unsigned_abs()
}

fn owned(fd: i32) -> OwnedFd {
    // SAFETY: the kernel has just returned this descriptor to us.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Loads a program of type `BPF_PROG_TYPE_CGROUP_DEVICE`; the error carries the verifier's words.
pub(crate) fn load_device_program(program: &[Instruction]) -> io::Result<OwnedFd> {
    let mut load = Load {
        kind: PROG_TYPE_CGROUP_DEVICE,
        count: u32::try_from(program.len()).map_err(io::Error::other)?,
        instructions: program.as_ptr() as u64,
        licence: c"Apache-2.0".as_ptr() as u64,
        ..Load::default()
    };
    load.name[..9].copy_from_slice(b"berth_dev");
    let error = match call(PROG_LOAD, &mut load) {
        Ok(fd) => return Ok(owned(fd)),
        Err(error) => error,
    };
    let mut log = vec![0u8; 64 << 10];
    load.log_level = 1;
    load.log_size = 64 << 10;
    load.log = log.as_mut_ptr() as u64;
    if let Ok(fd) = call(PROG_LOAD, &mut load) {
        return Ok(owned(fd));
    }
    let log = String::from_utf8_lossy(&log);
    let said = log
        .trim_end_matches('\0')
        .trim()
        .lines()
        .next_back()
        .unwrap_or_default();
    Err(io::Error::new(
        error.kind(),
        format!("{error}; verifier: {said:?}"),
    ))
}

/// Attaches a device program to a cgroup v2 directory, in place of the one that is there.
pub(crate) fn attach_device_program(
    cgroup: BorrowedFd<'_>,
    program: BorrowedFd<'_>,
) -> io::Result<()> {
    let mut attach = Attach {
        target: number(cgroup),
        program: number(program),
        kind: ATTACH_CGROUP_DEVICE,
        flags: ALLOW_MULTI,
        replaced: 0,
    };
    // Only a single program can be ours to replace; beside several, ours is one more that must allow.
    let present = attached(cgroup)?;
    let old = match present.as_slice() {
        [id] => {
            let mut by_id = ById {
                id: *id,
                ..ById::default()
            };
            Some(owned(call(PROG_GET_FD_BY_ID, &mut by_id)?))
        }
        _ => None,
    };
    if let Some(old) = &old {
        use std::os::fd::AsFd;
        attach.flags |= REPLACE;
        attach.replaced = number(old.as_fd());
    }
    call(PROG_ATTACH, &mut attach).map(drop)
}

/// Ids of the device programs that are attached to a cgroup v2 directory itself.
pub(crate) fn attached(cgroup: BorrowedFd<'_>) -> io::Result<Vec<u32>> {
    let mut ids = [0u32; 64];
    let mut query = Query {
        target: number(cgroup),
        kind: ATTACH_CGROUP_DEVICE,
        ids: ids.as_mut_ptr() as u64,
        count: 64,
        ..Query::default()
    };
    call(PROG_QUERY, &mut query)?;
    Ok(ids.iter().copied().take(query.count as usize).collect())
}
