//! The device rules of cgroup v2: an eBPF program of our own, since libcontainer attaches none.
//!
//! The program walks the rules from the last to the first and keeps the set of requested accesses
//! that no rule has allowed yet: a matching allow rule takes accesses out of it, a matching deny rule
//! refuses if it names one that is still in it. So the last word counts for each access by itself,
//! as on cgroup v1. What nobody has allowed is refused.

use std::os::fd::AsFd;

use rustix::fs::{Mode, OFlags};
use shim_protocol::worker::DeviceRule;

use crate::error::{Context, Error, Result};
use crate::sys::bpf::{self, Instruction};

// struct bpf_cgroup_dev_ctx: access_type (access << 16 | type), major, minor.
const BLOCK: i32 = 1;
const CHARACTER: i32 = 2;
const MKNOD: i32 = 1;
const READ: i32 = 2;
const WRITE: i32 = 4;
const ALL: i32 = MKNOD | READ | WRITE;

// Operations (include/uapi/linux/bpf.h, bpf_common.h).
const LOAD_WORD: u8 = 0x61; // BPF_LDX | BPF_MEM | BPF_W
const MOVE: u8 = 0xbc; // BPF_ALU | BPF_MOV | BPF_X
const MOVE_CONSTANT: u8 = 0xb4; // BPF_ALU | BPF_MOV | BPF_K
const AND_CONSTANT: u8 = 0x54; // BPF_ALU | BPF_AND | BPF_K
const SHIFT_RIGHT: u8 = 0x74; // BPF_ALU | BPF_RSH | BPF_K
const UNLESS_EQUAL: u8 = 0x56; // BPF_JMP32 | BPF_JNE | BPF_K
const IF_EQUAL: u8 = 0x16; // BPF_JMP32 | BPF_JEQ | BPF_K
const EXIT: u8 = 0x95; // BPF_JMP | BPF_EXIT

// Registers: r0 result, r1 context and then scratch.
const RESULT: u8 = 0;
const SCRATCH: u8 = 1;
const TYPE: u8 = 2;
const LEFT: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

/// Assembles the rules and attaches them to a cgroup directory, in place of what was attached.
pub(crate) fn apply(dir: &str, rules: &[DeviceRule]) -> Result<()> {
    let program = assemble(rules)?;
    let cgroup = rustix::fs::open(
        dir,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .context(|| format!("open cgroup {dir}"))?;
    let program =
        bpf::load_device_program(&program).context(|| "load the device program".to_owned())?;
    bpf::attach_device_program(cgroup.as_fd(), program.as_fd())
        .context(|| format!("attach the device program to {dir}"))
}

/// The program for a list of rules.
pub(crate) fn assemble(rules: &[DeviceRule]) -> Result<Vec<Instruction>> {
    let mut program = vec![
        load(TYPE, 0),
        register(MOVE, LEFT, TYPE),
        constant(AND_CONSTANT, TYPE, 0xffff),
        constant(SHIFT_RIGHT, LEFT, 16),
        load(MAJOR, 4),
        load(MINOR, 8),
    ];
    for rule in rules.iter().rev() {
        program.extend(block(rule)?);
    }
    program.extend(leave(0));
    Ok(program)
}

/// One rule: conditions that jump behind it, then its effect.
fn block(rule: &DeviceRule) -> Result<Vec<Instruction>> {
    let mut conditions = Vec::new();
    match rule.kind.as_str() {
        "a" => {}
        "b" => conditions.push((TYPE, BLOCK)),
        "c" | "u" => conditions.push((TYPE, CHARACTER)),
        other => {
            return Err(Error::invalid(format!(
                "device rule of type {other:?} (not a, b or c)"
            )));
        }
    }
    for (at, number) in [(MAJOR, rule.major), (MINOR, rule.minor)] {
        // OCI's -1 is "any" as well.
        if let Some(number) = number.filter(|n| *n != -1) {
            let number = u32::try_from(number)
                .map_err(|_| Error::invalid(format!("device number {number} is out of range")))?;
            conditions.push((at, number.cast_signed()));
        }
    }
    let access = accesses(&rule.access)?;
    let effect = if rule.allow {
        allow(access)
    } else {
        deny(access)
    };
    let length = conditions.len() + effect.len();
    let mut block = Vec::with_capacity(length);
    for (at, value) in conditions {
        let distance =
            i16::try_from(length - block.len() - 1).map_err(|e| Error::internal(e.to_string()))?;
        block.push(jump(UNLESS_EQUAL, at, value, distance));
    }
    block.extend(effect);
    Ok(block)
}

/// Takes accesses out of what is left; nothing left is "yes".
fn allow(access: i32) -> Vec<Instruction> {
    let mut effect = vec![
        constant(AND_CONSTANT, LEFT, ALL & !access),
        jump(UNLESS_EQUAL, LEFT, 0, 2),
    ];
    effect.extend(leave(1));
    effect
}

/// Refuses when one of the accesses is left.
fn deny(access: i32) -> Vec<Instruction> {
    let mut effect = vec![
        register(MOVE, SCRATCH, LEFT),
        constant(AND_CONSTANT, SCRATCH, access),
        jump(IF_EQUAL, SCRATCH, 0, 2),
    ];
    effect.extend(leave(0));
    effect
}

fn accesses(letters: &str) -> Result<i32> {
    let mut access = 0;
    for letter in letters.chars() {
        access |= match letter {
            'r' => READ,
            'w' => WRITE,
            'm' => MKNOD,
            _ => {
                return Err(Error::invalid(format!(
                    "device access {letters:?} (not of rwm)"
                )));
            }
        };
    }
    if access == 0 {
        return Err(Error::invalid("a device rule without access"));
    }
    Ok(access)
}

fn leave(result: i32) -> [Instruction; 2] {
    [
        constant(MOVE_CONSTANT, RESULT, result),
        Instruction {
            code: EXIT,
            registers: 0,
            offset: 0,
            immediate: 0,
        },
    ]
}

fn load(to: u8, offset: i16) -> Instruction {
    Instruction {
        code: LOAD_WORD,
        registers: to | (SCRATCH << 4),
        offset,
        immediate: 0,
    }
}

fn register(code: u8, to: u8, from: u8) -> Instruction {
    Instruction {
        code,
        registers: to | (from << 4),
        offset: 0,
        immediate: 0,
    }
}

fn constant(code: u8, to: u8, immediate: i32) -> Instruction {
    Instruction {
        code,
        registers: to,
        offset: 0,
        immediate,
    }
}

fn jump(code: u8, at: u8, immediate: i32, offset: i16) -> Instruction {
    Instruction {
        code,
        registers: at,
        offset,
        immediate,
    }
}

#[cfg(test)]
#[path = "devices/tests.rs"]
mod tests;
