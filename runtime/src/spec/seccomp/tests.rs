use std::io::Write as _;
use std::process::{Command, Stdio};

use super::emit::Instruction;
use super::profile::{Action, Arches, Comparison, Conditions, Operator, ProfileRule};
use super::rules::{Decision, Filter};
use super::*;

const KERNEL: (u32, u32) = (6, 1);
const ALLOW: u32 = 0x7fff_0000;
const EPERM: u32 = 0x0005_0001;
const ENOSYS: u32 = 0x0005_0026;
const KILL_PROCESS: u32 = 0x8000_0000;

/// A system call as the kernel shows it to a filter.
#[derive(Clone, Copy, Debug)]
struct Call {
    arch: u32,
    number: u32,
    args: [u64; 6],
}

fn call(arch: Arch, name: &str, args: &[u64]) -> Call {
    let mut all = [0; 6];
    all[..args.len()].copy_from_slice(args);
    Call {
        arch: arch.audit(),
        number: arch.number(name).unwrap(),
        args: all,
    }
}

/// The classic BPF machine, as far as filters use it; a wrong program panics.
fn run(program: &[u8], call: Call) -> u32 {
    let mut data = Vec::new();
    data.extend(call.number.to_ne_bytes());
    data.extend(call.arch.to_ne_bytes());
    data.extend(0u64.to_ne_bytes());
    call.args
        .iter()
        .for_each(|arg| data.extend(arg.to_ne_bytes()));
    let (instructions, rest) = program.as_chunks::<8>();
    assert!(rest.is_empty() && instructions.len() <= 4096);
    let (mut at, mut accumulator) = (0, 0);
    loop {
        let [a, b, jump_true, jump_false, c, d, e, f] = instructions[at];
        let (code, value) = (u16::from_ne_bytes([a, b]), u32::from_ne_bytes([c, d, e, f]));
        at += 1;
        let jump = |holds: bool| usize::from(if holds { jump_true } else { jump_false });
        match code {
            0x20 => {
                let offset = usize::try_from(value).unwrap();
                accumulator = u32::from_ne_bytes(data[offset..offset + 4].try_into().unwrap());
            }
            0x05 => at += usize::try_from(value).unwrap(),
            0x15 => at += jump(accumulator == value),
            0x25 => at += jump(accumulator > value),
            0x35 => at += jump(accumulator >= value),
            0x45 => at += jump(accumulator & value != 0),
            0x54 => accumulator &= value,
            0x06 => return value,
            other => panic!("instruction {other:#x} at {at}"),
        }
    }
}

/// What a filter means, without a program.
fn judge(filter: &Filter, call: Call) -> u32 {
    let x32 = call.number >= arch::X32_BIT;
    let table = filter.tables.iter().find(|table| {
        table.arch.audit() == call.arch
            && (call.arch != Arch::X86_64.audit() || (table.arch == Arch::X32) == x32)
    });
    let Some(table) = table else {
        return if call.arch == Arch::X86_64.audit() && x32 {
            ENOSYS
        } else {
            KILL_PROCESS
        };
    };
    match table.calls.get(&call.number) {
        Some(Decision::Always(action)) => action.code(),
        Some(Decision::Cases(cases)) => {
            let case = cases.iter().find(|(comparisons, _)| {
                comparisons
                    .iter()
                    .all(|one| one.holds(call.args[usize::try_from(one.index).unwrap()]))
            });
            case.map_or(filter.default, |(_, action)| *action).code()
        }
        None if table.newest.is_some_and(|newest| call.number > newest) => ENOSYS,
        None => filter.default.code(),
    }
}

fn default_program(capabilities: u64) -> Program {
    compile(&builtin::profile(), capabilities, Arch::X86_64, KERNEL).unwrap()
}

const DOCKER: u64 = crate::spec::DEFAULT_CAPABILITIES;
const SYS_ADMIN: u64 = 1 << 21;

#[test]
fn every_name_of_our_own_table_is_a_call_somewhere() {
    let arches = [Arch::X86_64, Arch::X86, Arch::Aarch64, Arch::Arm];
    // Names that only some kernel's table has: kept, because a profile is read by people too.
    let missing: Vec<_> = builtin::profile()
        .rules
        .iter()
        .flat_map(|rule| rule.names.clone())
        .filter(|name| arches.iter().all(|arch| arch.number(name).is_none()))
        .collect();
    assert_eq!(
        missing,
        ["sync_file_range2"],
        "misspelt, or new to the table of numbers"
    );
}

#[test]
fn the_default_lets_ordinary_programs_work() {
    let program = default_program(DOCKER);
    assert!(
        program.len() / 8 < 1000,
        "{} instructions",
        program.len() / 8
    );
    for arch in [Arch::X86_64, Arch::X86] {
        for name in [
            "read",
            "write",
            "openat",
            "execve",
            "futex",
            "clone",
            "fork",
            "mmap",
            "exit_group",
            "chroot",
            "ptrace",
        ] {
            let flags = 0x11;
            let number = arch.number(name);
            assert!(number.is_some(), "{name}");
            assert_eq!(
                run(&program, call(arch, name, &[flags])),
                ALLOW,
                "{arch:?} {name}"
            );
        }
    }
}

#[test]
fn the_default_keeps_the_kernel_small() {
    let program = default_program(DOCKER);
    for name in [
        "mount",
        "umount2",
        "unshare",
        "setns",
        "bpf",
        "kexec_load",
        "add_key",
        "keyctl",
        "request_key",
        "userfaultfd",
        "io_uring_setup",
        "io_uring_enter",
        "io_uring_register",
        "init_module",
        "reboot",
        "perf_event_open",
        "swapon",
        "open_by_handle_at",
        "move_mount",
        "fsopen",
        "open_tree",
        "pivot_root",
        "settimeofday",
        "syslog",
    ] {
        for arch in [Arch::X86_64, Arch::X86] {
            assert_eq!(
                run(&program, call(arch, name, &[])),
                EPERM,
                "{arch:?} {name}"
            );
        }
    }
    assert_eq!(run(&program, call(Arch::X86_64, "clone3", &[])), ENOSYS);
    for flag in [
        0x2_0000u64,
        0x200_0000,
        0x400_0000,
        0x800_0000,
        0x1000_0000,
        0x2000_0000,
        0x4000_0000,
    ] {
        assert_eq!(
            run(&program, call(Arch::X86_64, "clone", &[flag | 17])),
            EPERM,
            "{flag:#x}"
        );
    }
    for (family, answer) in [
        (1, ALLOW),
        (2, ALLOW),
        (10, ALLOW),
        (16, ALLOW),
        (38, EPERM),
        (39, ALLOW),
        (40, EPERM),
        (41, ALLOW),
    ] {
        assert_eq!(
            run(&program, call(Arch::X86_64, "socket", &[family])),
            answer,
            "{family}"
        );
        assert_eq!(
            run(&program, call(Arch::X86, "socket", &[family])),
            answer,
            "{family}"
        );
    }
    assert_eq!(run(&program, call(Arch::X86, "socketcall", &[1])), ENOSYS);
    assert_eq!(run(&program, call(Arch::X86, "socketcall", &[3])), ALLOW);
    assert_eq!(
        run(&program, call(Arch::X86_64, "personality", &[0x2_0000])),
        ALLOW
    );
    assert_eq!(
        run(&program, call(Arch::X86_64, "personality", &[0x4_0000])),
        EPERM
    );
}

#[test]
fn x32_new_calls_and_strange_architectures() {
    let program = default_program(DOCKER);
    assert_eq!(run(&program, call(Arch::X32, "read", &[])), ENOSYS);
    let x86_64 = Arch::X86_64.audit();
    assert_eq!(
        run(
            &program,
            Call {
                arch: x86_64,
                number: u32::MAX,
                args: [0; 6]
            }
        ),
        ENOSYS
    );
    assert_eq!(
        run(
            &program,
            Call {
                arch: x86_64,
                number: 600,
                args: [0; 6]
            }
        ),
        ENOSYS
    );
    // Numbers that nobody has, below the newest known one.
    assert_eq!(
        run(
            &program,
            Call {
                arch: x86_64,
                number: 400,
                args: [0; 6]
            }
        ),
        EPERM
    );
    assert_eq!(
        run(
            &program,
            Call {
                arch: 0xc000_00b7,
                number: 0,
                args: [0; 6]
            }
        ),
        KILL_PROCESS
    );
}

#[test]
fn capabilities_and_the_kernel_open_calls() {
    let admin = default_program(DOCKER | SYS_ADMIN);
    for (name, arg) in [
        ("mount", 0),
        ("clone3", 0),
        ("clone", 0x1000_0000),
        ("setns", 0),
        ("open_tree_attr", 0),
    ] {
        assert_eq!(
            run(&admin, call(Arch::X86_64, name, &[arg])),
            ALLOW,
            "{name}"
        );
    }
    assert_eq!(run(&admin, call(Arch::X86_64, "reboot", &[])), EPERM);
    let old = compile(&builtin::profile(), DOCKER, Arch::X86_64, (4, 7)).unwrap();
    assert_eq!(run(&old, call(Arch::X86_64, "ptrace", &[])), EPERM);
    assert_eq!(
        run(&default_program(0), call(Arch::X86_64, "chroot", &[])),
        EPERM
    );
}

#[test]
fn the_default_on_arm() {
    let program = compile(&builtin::profile(), DOCKER, Arch::Aarch64, KERNEL).unwrap();
    for (arch, name, arg, answer) in [
        (Arch::Aarch64, "newfstatat", 0, ALLOW),
        (Arch::Aarch64, "clone", 17, ALLOW),
        (Arch::Aarch64, "clone", 0x1000_0000, EPERM),
        (Arch::Aarch64, "mount", 0, EPERM),
        (Arch::Arm, "set_tls", 0, ALLOW),
        (Arch::Arm, "open", 0, ALLOW),
    ] {
        assert_eq!(
            run(&program, call(arch, name, &[arg])),
            answer,
            "{arch:?} {name}"
        );
    }
    let unknown = Call {
        arch: Arch::Arm.audit(),
        number: 700,
        args: [0; 6],
    };
    assert_eq!(run(&program, unknown), ENOSYS);
    assert_eq!(run(&program, call(Arch::X86_64, "read", &[])), KILL_PROCESS);
}

fn from_json(text: &str) -> Result<Program, Error> {
    compile(
        &Profile::parse(text.as_bytes())?,
        DOCKER,
        Arch::X86_64,
        KERNEL,
    )
}

#[test]
fn profiles_in_the_oci_form() {
    let program = from_json(
        r#"{"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X32"],
            "flags": ["SECCOMP_FILTER_FLAG_LOG"],
            "syscalls": [
              {"names": ["mkdir", "no_such_call"], "action": "SCMP_ACT_ERRNO", "errnoRet": 5},
              {"name": "rmdir", "action": "SCMP_ACT_KILL_PROCESS"},
              {"names": ["kill"], "action": "SCMP_ACT_TRAP", "args": [
                 {"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}, {"index": 1, "value": 9, "valueTwo": 0, "op": "SCMP_CMP_EQ"}]},
              {"names": ["chmod"], "action": "SCMP_ACT_TRACE", "errnoRet": 7, "args": null},
              {"names": ["acct"], "action": "SCMP_ACT_KILL"}, {"names": ["sync"], "action": "SCMP_ACT_LOG"},
              {"names": ["dup"], "action": "SCMP_ACT_ERRNO", "includes": {"caps": ["CAP_SYS_ADMIN"]}},
              {"names": ["dup2"], "action": "SCMP_ACT_ERRNO", "excludes": {"minKernel": "6.0"}},
              {"names": ["dup3"], "action": "SCMP_ACT_ERRNO", "includes": {"arches": ["arm64"], "minKernel": ""}}]}"#,
    )
    .unwrap();
    for (arch, name, args, answer) in [
        (Arch::X86_64, "mkdir", [0, 0], 0x5_0005),
        (Arch::X32, "mkdir", [0, 0], 0x5_0005),
        (Arch::X86_64, "rmdir", [0, 0], KILL_PROCESS),
        (Arch::X86_64, "kill", [1, 9], 0x3_0000),
        (Arch::X86_64, "kill", [1, 8], ALLOW),
        (Arch::X86_64, "chmod", [0, 0], 0x7ff0_0007),
        (Arch::X86_64, "acct", [0, 0], 0),
        (Arch::X86_64, "sync", [0, 0], 0x7ffc_0000),
        (Arch::X86_64, "dup", [0, 0], ALLOW),
        (Arch::X86_64, "dup2", [0, 0], ALLOW),
        (Arch::X86_64, "dup3", [0, 0], ALLOW),
    ] {
        assert_eq!(
            run(&program, call(arch, name, &args)),
            answer,
            "{arch:?} {name} {args:?}"
        );
    }
    // A default that allows needs no answer for new calls.
    let new = Call {
        arch: Arch::X86_64.audit(),
        number: 5000,
        args: [0; 6],
    };
    assert_eq!(run(&program, new), ALLOW);
}

#[test]
fn two_comparisons_of_one_argument_are_alternatives() {
    let program = from_json(
        r#"{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"names": ["close"], "action": "SCMP_ACT_ALLOW", "args": [
            {"index": 0, "value": 3, "op": "SCMP_CMP_EQ"}, {"index": 0, "value": 5, "op": "SCMP_CMP_EQ"}]}]}"#,
    )
    .unwrap();
    for (fd, answer) in [(3, ALLOW), (4, EPERM), (5, ALLOW)] {
        assert_eq!(run(&program, call(Arch::X86_64, "close", &[fd])), answer);
    }
}

#[test]
fn what_is_not_understood_is_refused() {
    let rule =
        |rule: &str| format!(r#"{{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{rule}]}}"#);
    let bad = [
        String::new(),
        "{}".into(),
        "[]".into(),
        r#"{"defaultAction": "SCMP_ACT_MAYBE"}"#.into(),
        r#"{"defaultAction": "SCMP_ACT_NOTIFY"}"#.into(),
        r#"{"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 4096}"#.into(),
        r#"{"defaultAction": "SCMP_ACT_ERRNO", "listenerPath": "/run/agent.sock"}"#.into(),
        r#"{"defaultAction": "SCMP_ACT_ERRNO", "flags": ["SECCOMP_FILTER_FLAG_NEW_LISTENER"]}"#
            .into(),
        r#"{"defaultAction": "SCMP_ACT_ERRNO", "architectures": ["SCMP_ARCH_VAX"]}"#.into(),
        rule(r#"{"names": ["kill"], "action": "SCMP_ACT_NOTIFY"}"#),
        rule(
            r#"{"names": ["kill"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 6, "value": 0, "op": "SCMP_CMP_EQ"}]}"#,
        ),
        rule(
            r#"{"names": ["kill"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 0, "op": "SCMP_CMP_XX"}]}"#,
        ),
        rule(
            r#"{"names": ["kill"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": -1, "op": "SCMP_CMP_EQ"}]}"#,
        ),
        rule(
            r#"{"names": ["kill"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_NOPE"]}}"#,
        ),
        rule(
            r#"{"names": ["kill"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "new"}}"#,
        ),
    ];
    for text in bad {
        assert!(from_json(&text).is_err(), "{text}");
    }
}

#[test]
fn a_program_beyond_the_kernels_limit_is_refused() {
    let args: Vec<_> = (0..2000)
        .map(|value| format!(r#"{{"names": ["close"], "action": "SCMP_ACT_ALLOW", "args": [{{"index": 0, "value": {value}, "op": "SCMP_CMP_EQ"}}]}}"#))
        .collect();
    let text = format!(
        r#"{{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{}]}}"#,
        args.join(",")
    );
    assert!(matches!(from_json(&text), Err(Error::TooLong(_))));
}

#[test]
fn the_compiler_keeps_programs_by_profile_and_capabilities() {
    let compiler = Compiler::new(KERNEL).unwrap();
    let first = compiler.compile(Source::RuntimeDefault, DOCKER).unwrap();
    assert!(Arc::ptr_eq(
        &first,
        &compiler.compile(Source::RuntimeDefault, DOCKER).unwrap()
    ));
    assert!(!Arc::ptr_eq(
        &first,
        &compiler.compile(Source::RuntimeDefault, SYS_ADMIN).unwrap()
    ));
    let begin = std::time::Instant::now();
    compiler.compile(Source::RuntimeDefault, 1).unwrap();
    println!(
        "compiling our own profile took {:?}, {} instructions",
        begin.elapsed(),
        first.len() / 8
    );
}

/// Builds a helper program, or says why it cannot be built.
fn helper(
    name: &str,
    source: &str,
    libraries: &[&str],
) -> Result<(tempfile::TempDir, std::path::PathBuf), String> {
    let dir = tempfile::tempdir().unwrap();
    let (code, program) = (dir.path().join("helper.c"), dir.path().join(name));
    std::fs::write(&code, source).unwrap();
    let built = Command::new("cc")
        .arg("-O1")
        .arg("-o")
        .arg(&program)
        .arg(&code)
        .args(libraries)
        .output();
    match built {
        Ok(output) if output.status.success() => Ok((dir, program)),
        Ok(output) => Err(format!(
            "cc says {}",
            String::from_utf8_lossy(&output.stderr).trim()
        )),
        Err(error) => Err(format!("no cc: {error}")),
    }
}

mod against;
mod random;
