//! What a process of ours is between its making and its execve: no more than what it is to become.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use shim_protocol::worker::Process;

use crate::driver::*;

const SYS_ADMIN: u64 = 1 << 21;

fn status(pid: i32) -> String {
    fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default()
}

/// A line of `/proc/PID/status`, its words joined by one blank.
fn field(status: &str, name: &str) -> String {
    let line = status.lines().find_map(|l| l.strip_prefix(name));
    let words = line.and_then(|l| l.strip_prefix(':')).unwrap_or_default();
    words.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn mask(status: &str, name: &str) -> u64 {
    u64::from_str_radix(&field(status, name), 16).unwrap_or(u64::MAX)
}

fn as_user(mut process: Process, uid: u32) -> Process {
    process.uid = uid;
    process.gid = uid;
    process.groups = vec![uid + 7];
    process
}

#[test]
fn an_init_that_waits_is_the_container_s_already() {
    for (uid, no_new_privs, filtered) in [
        (0, false, false),
        (0, false, true),
        (1000, false, true),
        (1000, true, true),
        (0, true, true),
    ] {
        let mut fixture = Fixture::new();
        fixture.seccomp = filtered.then(|| forbid(libc::SYS_mkdir));
        let mut process = as_user(argv(&["cat"]), uid);
        process.no_new_privs = no_new_privs;
        let sets = process.capabilities.as_mut().unwrap();
        (sets.inheritable, sets.ambient) = (1 << 10, 1 << 10);
        let sets = *sets;
        let mut container = fixture.create(process);
        let pid = container.started.pid;
        let seen = status(pid);
        let masks = ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"].map(|n| mask(&seen, n));
        let expected = [
            sets.inheritable,
            sets.permitted,
            sets.effective,
            sets.bounding,
            sets.ambient,
        ];
        assert_eq!(masks, expected, "{seen}");
        let ids = [uid; 4].map(|id| id.to_string()).join(" ");
        assert_eq!(
            (field(&seen, "Uid"), field(&seen, "Gid")),
            (ids.clone(), ids)
        );
        assert_eq!(field(&seen, "Groups"), (uid + 7).to_string());
        assert_eq!(
            field(&seen, "NoNewPrivs"),
            u8::from(no_new_privs).to_string()
        );
        // With no_new_privs the filter comes last.
        let mode = if filtered && !no_new_privs { "2" } else { "0" };
        assert_eq!(field(&seen, "Seccomp"), mode);
        // The files of a process that may be looked into are its user's (proc(5)).
        let owner = fs::metadata(format!("/proc/{pid}/status")).unwrap().uid();
        assert_eq!(owner, 0);
        container.start().unwrap();
        let running = status(pid);
        assert_eq!(field(&running, "Seccomp"), if filtered { "2" } else { "0" });
        assert_eq!(
            fs::metadata(format!("/proc/{pid}/status")).unwrap().uid(),
            uid
        );
    }
}

/// All that a start does is forbidden, but for execve: with no_new_privs the filter is loaded just before.
#[test]
fn a_filter_that_allows_little_but_execve_starts_with_no_new_privs() {
    let calls = [
        libc::SYS_read,
        libc::SYS_write,
        libc::SYS_close,
        libc::SYS_close_range,
        libc::SYS_poll,
        libc::SYS_ppoll,
        libc::SYS_capset,
        libc::SYS_capget,
        libc::SYS_prctl,
        libc::SYS_setresuid,
        libc::SYS_setresgid,
        libc::SYS_setgroups,
        libc::SYS_seccomp,
        libc::SYS_chdir,
        libc::SYS_fchdir,
        libc::SYS_keyctl,
    ];
    let mut fixture = Fixture::new();
    fixture.seccomp = Some(forbid_all(&calls));
    let mut process = as_user(argv(&["true"]), 1000);
    process.no_new_privs = true;
    assert_eq!(fixture.run(process).finish(), (String::new(), 0));
    remove_cgroup(&fixture.leaves());
    // Without it, everything but reading may be forbidden, and one change of capabilities.
    let few: Vec<_> = calls
        .into_iter()
        .filter(|call| ![libc::SYS_read, libc::SYS_capset].contains(call))
        .collect();
    fixture.seccomp = Some(forbid_all(&few));
    assert_eq!(
        fixture.run(as_user(argv(&["true"]), 1000)).finish(),
        (String::new(), 0)
    );
}

/// What a filter may say instead of letting a call be: errors, one that asks to try again and one that is none, signals.
const REFUSALS: [u32; 6] = [
    libc::SECCOMP_RET_ERRNO | 1,
    libc::SECCOMP_RET_ERRNO | 4,
    libc::SECCOMP_RET_ERRNO,
    libc::SECCOMP_RET_TRAP,
    libc::SECCOMP_RET_KILL_THREAD,
    libc::SECCOMP_RET_KILL_PROCESS,
];

#[test]
fn a_filter_under_which_nobody_can_wait_fails_the_create() {
    let filters = REFUSALS.into_iter().flat_map(|refusal| {
        let whole = |call, name| (answer(&[call], refusal, libc::SECCOMP_RET_ALLOW), name);
        [
            whole(libc::SYS_read, "read"),
            whole(libc::SYS_capset, "capset"),
            // The descriptor on which the start is waited for.
            (answer_about(libc::SYS_read, 3, refusal), "read"),
        ]
        .map(|(filter, name)| (filter, name, refusal))
    });
    for (filter, name, refusal) in filters {
        let mut fixture = Fixture::new();
        fixture.seccomp = Some(filter);
        let begun = Instant::now();
        let error = fixture.try_create(sh("true")).err().unwrap();
        assert!(begun.elapsed().as_secs() < 5, "{name} {refusal:x}");
        let told = error.contains("seccomp profile") && error.contains(name);
        assert!(told, "{name} {refusal:x}: {error}");
        let kills = refusal & libc::SECCOMP_RET_ACTION_FULL != libc::SECCOMP_RET_ERRNO;
        assert_eq!(
            error.contains("SIGSYS"),
            kills,
            "{name} {refusal:x}: {error}"
        );
    }
}

/// What a static program needs to begin and to end, and what it takes to wait for that.
#[test]
fn a_filter_that_kills_for_all_but_little_starts() {
    let calls = [
        libc::SYS_read,
        libc::SYS_capset,
        libc::SYS_execve,
        libc::SYS_exit_group,
        libc::SYS_brk,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_arch_prctl,
        libc::SYS_set_tid_address,
        libc::SYS_set_robust_list,
        libc::SYS_rseq,
        libc::SYS_prlimit64,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_readlink,
        libc::SYS_readlinkat,
        libc::SYS_getrandom,
        libc::SYS_mprotect,
        libc::SYS_getuid,
        libc::SYS_mmap,
        libc::SYS_prctl,
        libc::SYS_newfstatat,
        libc::SYS_getgid,
        libc::SYS_setgid,
        libc::SYS_setuid,
    ];
    for uid in [0, 1000] {
        let mut fixture = Fixture::new();
        let kill = libc::SECCOMP_RET_KILL_PROCESS;
        fixture.seccomp = Some(answer(&calls, libc::SECCOMP_RET_ALLOW, kill));
        let container = fixture.run(as_user(argv(&["true"]), uid));
        assert_eq!(container.finish(), (String::new(), 0));
    }
}

/// The C library asks for ever.
#[test]
fn a_process_that_may_not_exit_ends_all_the_same() {
    let exits = [libc::SYS_exit_group, libc::SYS_exit];
    for (more, told) in [(None, true), (Some(libc::SYS_write), false)] {
        for no_new_privs in [true, false] {
            let mut fixture = Fixture::new();
            let calls: Vec<_> = exits.into_iter().chain(more).collect();
            fixture.seccomp = Some(forbid_all(&calls));
            let mut process = argv(&["nosuch"]);
            process.no_new_privs = no_new_privs;
            let mut container = fixture.create(process);
            let said = container.start().err().unwrap_or_default();
            assert_eq!(said.contains("nosuch"), told, "{said}");
            assert_eq!(container.wait(), 128 + libc::SIGILL);
        }
    }
}

/// Of 40 execs some are seen between clone and execve.
#[test]
fn an_exec_is_seen_with_no_more_than_it_is_to_have() {
    for (uid, no_new_privs, extra) in [(1000, true, 0), (0, true, 0), (1000, false, SYS_ADMIN)] {
        let mut fixture = Fixture::new();
        fixture.seccomp = Some(forbid(libc::SYS_mkdir));
        let mut process = as_user(argv(&["cat"]), uid);
        process.no_new_privs = no_new_privs;
        let container = fixture.run(process.clone());
        process.args = vec![b"true".to_vec()];
        let filter = fixture.seccomp.as_ref().unwrap().as_fd();
        let done = AtomicBool::new(false);
        let thread = rustix::thread::gettid().as_raw_nonzero();
        let children = format!("/proc/self/task/{thread}/children");
        let seen = std::thread::scope(|scope| {
            let watcher = scope.spawn(|| watch(&children, &done));
            for _ in 0..40 {
                let exec = container
                    .try_exec(container.exec_request(process.clone()), Some(filter))
                    .unwrap();
                assert_eq!(exec.finish().1, 0);
            }
            done.store(true, Ordering::Relaxed);
            watcher.join().unwrap()
        });
        assert!(!seen.is_empty(), "no exec was seen before its execve");
        for status in seen {
            for name in ["CapPrm", "CapEff", "CapBnd"] {
                let more = if name == "CapBnd" { 0 } else { extra };
                assert_eq!(mask(&status, name) & !(USUAL | more), 0, "{status}");
            }
            let ids = field(&status, "Uid");
            let real = ids.split(' ').take(3).all(|id| id == uid.to_string());
            assert!(real, "{ids}");
        }
    }
}

/// What the worker's processes look like from the container's PID namespace.
fn watch(children: &str, done: &AtomicBool) -> Vec<String> {
    let mut seen = Vec::new();
    while !done.load(Ordering::Relaxed) {
        let pids = fs::read_to_string(children).unwrap_or_default();
        for pid in pids.split_whitespace() {
            let status = status(pid.parse().unwrap());
            let inside = field(&status, "NSpid").contains(' ');
            if inside && field(&status, "Name") == "berth-worker" && status.contains("CapAmb") {
                seen.push(status);
            }
        }
    }
    seen
}

/// A clone into a cgroup of v2 asks for the right to its files, which an ordinary user lacks.
#[test]
fn an_exec_of_an_ordinary_user_gets_a_cgroup_of_its_own() {
    let fixture = Fixture::new();
    let container = fixture.run(argv(&["cat"]));
    let process = as_user(sh("id -u; grep -E '^(Uid|CapEff)' /proc/self/status"), 1000);
    let mut request = container.exec_request(process);
    request.own_cgroup = request
        .join_cgroup
        .drain(..)
        .map(|leaf| format!("{leaf}/exec-9"))
        .collect();
    let exec = container.try_exec(request.clone(), None).unwrap();
    let (text, code) = exec.finish();
    assert_eq!(code, 0, "{text}");
    assert_eq!(
        text,
        "1000\nUid:\t1000\t1000\t1000\t1000\nCapEff:\t0000000000000000\n"
    );
    for dir in &request.own_cgroup {
        until("the exec's cgroup can be removed", || {
            fs::remove_dir(dir).is_ok()
        });
    }
}
