use super::*;

fn rule(
    allow: bool,
    kind: &str,
    major: Option<i64>,
    minor: Option<i64>,
    access: &str,
) -> DeviceRule {
    DeviceRule {
        allow,
        kind: kind.into(),
        major,
        minor,
        access: access.into(),
    }
}

/// Runs a program as the kernel would.
fn run(program: &[Instruction], kind: i32, access: i32, major: u32, minor: u32) -> bool {
    let context = [
        (access.cast_unsigned() << 16) | kind.cast_unsigned(),
        major,
        minor,
    ];
    let mut registers = [0u32; 11];
    let mut at = 0usize;
    for _ in 0..100_000 {
        let i = program[at];
        let to = usize::from(i.registers & 15);
        let from = usize::from(i.registers >> 4);
        let value = i.immediate.cast_unsigned();
        let mut jumps = false;
        match i.code {
            LOAD_WORD => registers[to] = context[usize::try_from(i.offset).unwrap() / 4],
            MOVE => registers[to] = registers[from],
            MOVE_CONSTANT => registers[to] = value,
            AND_CONSTANT => registers[to] &= value,
            SHIFT_RIGHT => registers[to] >>= value,
            UNLESS_EQUAL => jumps = registers[to] != value,
            IF_EQUAL => jumps = registers[to] == value,
            EXIT => return registers[0] != 0,
            other => panic!("operation {other:#x}"),
        }
        at += 1;
        if jumps {
            at += usize::try_from(i.offset).unwrap();
        }
    }
    panic!("no end");
}

/// What the rules mean, said plainly: for each access by itself, the last rule that matches.
fn meaning(rules: &[DeviceRule], kind: i32, access: i32, major: u32, minor: u32) -> bool {
    [(MKNOD, 'm'), (READ, 'r'), (WRITE, 'w')]
        .iter()
        .filter(|(bit, _)| access & bit != 0)
        .all(|(_, letter)| {
            rules
                .iter()
                .rev()
                .find(|r| {
                    r.access.contains(*letter)
                        && (r.kind == "a" || r.kind == if kind == BLOCK { "b" } else { "c" })
                        && r.major.is_none_or(|m| m == i64::from(major))
                        && r.minor.is_none_or(|m| m == i64::from(minor))
                })
                .is_some_and(|r| r.allow)
        })
}

fn usual() -> Vec<DeviceRule> {
    vec![
        rule(false, "a", None, None, "rwm"),
        rule(true, "c", None, None, "m"),
        rule(true, "b", None, None, "m"),
        rule(true, "c", Some(1), Some(3), "rwm"),
        rule(true, "c", Some(1), Some(5), "rwm"),
        rule(true, "c", Some(5), Some(0), "rwm"),
        rule(true, "c", Some(136), None, "rwm"),
        rule(true, "b", Some(7), Some(0), "r"),
        rule(true, "b", Some(7), Some(0), "w"),
        rule(false, "c", Some(10), Some(200), "rwm"),
        rule(false, "c", Some(1), Some(5), "w"),
    ]
}

#[test]
fn instructions_of_one_rule() {
    let program = assemble(&[rule(true, "c", Some(1), Some(3), "rw")]).unwrap();
    let expected = [
        (0x61, 0x12, 0, 0),      // type = context[0]
        (0xbc, 0x23, 0, 0),      // left = type
        (0x54, 0x02, 0, 0xffff), // type &= 0xffff
        (0x74, 0x03, 0, 16),     // left >>= 16
        (0x61, 0x14, 4, 0),      // major
        (0x61, 0x15, 8, 0),      // minor
        (0x56, 0x02, 6, 2),      // not a character device: next rule
        (0x56, 0x04, 5, 1),      // not major 1
        (0x56, 0x05, 4, 3),      // not minor 3
        (0x54, 0x03, 0, 1),      // left &= only mknod
        (0x56, 0x03, 2, 0),      // something left: next rule
        (0xb4, 0x00, 0, 1),      // yes
        (0x95, 0x00, 0, 0),
        (0xb4, 0x00, 0, 0), // no
        (0x95, 0x00, 0, 0),
    ]
    .map(|(code, registers, offset, immediate)| Instruction {
        code,
        registers,
        offset,
        immediate,
    });
    assert_eq!(program, expected);
}

#[test]
fn every_request_is_answered_as_the_rules_say() {
    let sets = [
        Vec::new(),
        usual(),
        vec![rule(true, "a", None, None, "rwm")],
        vec![
            rule(true, "a", None, None, "rwm"),
            rule(false, "b", Some(8), None, "w"),
        ],
        vec![
            rule(false, "a", None, None, "rwm"),
            rule(true, "a", Some(4_000_000_000), None, "r"),
        ],
    ];
    for rules in &sets {
        let program = assemble(rules).unwrap();
        for kind in [BLOCK, CHARACTER] {
            for access in 1..=ALL {
                for major in [0, 1, 5, 7, 8, 10, 136, 4_000_000_000] {
                    for minor in [0, 3, 5, 200] {
                        assert_eq!(
                            run(&program, kind, access, major, minor),
                            meaning(rules, kind, access, major, minor),
                            "{kind} {access} {major}:{minor} under {rules:?}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn nonsense_is_refused() {
    assert!(assemble(&[rule(true, "x", None, None, "r")]).is_err());
    assert!(assemble(&[rule(true, "c", None, None, "rx")]).is_err());
    assert!(assemble(&[rule(true, "c", None, None, "")]).is_err());
    assert!(assemble(&[rule(true, "c", Some(1 << 40), None, "r")]).is_err());
    assert!(assemble(&[rule(true, "c", Some(-2), None, "r")]).is_err());
}

#[test]
fn the_kernel_takes_the_program() {
    bpf::load_device_program(&assemble(&usual()).unwrap()).unwrap();
    bpf::load_device_program(&assemble(&[]).unwrap()).unwrap();
}

/// Attaches to a cgroup of its own in the unified hierarchy and replaces the program.
#[test]
fn attach_and_replace() {
    let root = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"]
        .into_iter()
        .find(|r| std::path::Path::new(r).join("cgroup.controllers").exists())
        .expect("no cgroup v2 hierarchy is mounted on this machine");
    let dir = format!("{root}/berth-devices-test-{}", std::process::id());
    std::fs::create_dir(&dir).unwrap();
    let attached = || bpf::attached(std::fs::File::open(&dir).unwrap().as_fd()).unwrap();
    let first = apply(&dir, &usual()).map(|()| attached());
    let second = apply(&dir, &[rule(true, "a", None, None, "rwm")]).map(|()| attached());
    std::fs::remove_dir(&dir).unwrap();
    let (first, second) = (first.unwrap(), second.unwrap());
    assert_eq!((first.len(), second.len()), (1, 1));
    assert_ne!(first, second);
}
