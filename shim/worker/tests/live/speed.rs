//! How long it takes. Run alone: `cargo test --profile shim -p berth-worker --test live -- --ignored --nocapture speed`;
//! `BERTH_WORKER` names the program to measure.

use std::time::{Duration, Instant};

use crate::driver::*;

/// Median, and the fastest, which a busy machine disturbs least.
fn summary(mut times: Vec<Duration>) -> String {
    times.sort();
    format!("{:?} (fastest {:?})", times[times.len() / 2], times[0])
}

/// CPU time of the children reaped so far, which other load does not change.
fn cpu() -> Duration {
    // SAFETY: rusage is plain data; getrusage fills it.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_CHILDREN, &mut usage);
        usage
    };
    let time = |t: libc::timeval| {
        Duration::from_micros(u64::try_from(t.tv_sec * 1_000_000 + t.tv_usec).unwrap())
    };
    time(usage.ru_utime) + time(usage.ru_stime)
}

#[test]
#[ignore = "a measurement, meaningless beside other tests"]
fn create_start_and_exec() {
    let fixture = Fixture::new();
    let before = cpu();
    let (mut create, mut start, mut exec) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..50 {
        let begin = Instant::now();
        let mut container = fixture.create(argv(&["cat"]));
        create.push(begin.elapsed());
        let begin = Instant::now();
        container.start().unwrap();
        start.push(begin.elapsed());
        drop(container);
        remove_cgroup(&fixture.leaves());
    }
    println!("CPU of worker and init: {:?} each", (cpu() - before) / 50);
    let container = fixture.run(argv(&["cat"]));
    let before = cpu();
    for _ in 0..50 {
        let request = container.exec_request(argv(&["true"]));
        let begin = Instant::now();
        container.try_exec(request, None).unwrap().finish();
        exec.push(begin.elapsed());
    }
    println!(
        "CPU of worker and exec'd process: {:?} each",
        (cpu() - before) / 50
    );
    println!(
        "create {}, start {}, exec to its end {}",
        summary(create),
        summary(start),
        summary(exec)
    );
}

/// For how long others in a shared PID namespace see a process that has more than its program will have.
#[test]
#[ignore = "a measurement, meaningless beside other tests"]
fn how_long_privileged_processes_are_seen() {
    let mut fixture = Fixture::new();
    fixture.seccomp = Some(forbid(libc::SYS_mkdir));
    let thread = rustix::thread::gettid().as_raw_nonzero();
    let children = format!("/proc/self/task/{thread}/children");
    let inits = seen(&children, "INIT", 30, || {
        drop(fixture.create(argv(&["cat"])));
        remove_cgroup(&fixture.leaves());
    });
    let container = fixture.run(argv(&["cat"]));
    let filter = fixture.seccomp.as_ref().unwrap();
    let execs = seen(&children, "berth-worker", 200, || {
        use std::os::fd::AsFd;
        let request = container.exec_request(argv(&["true"]));
        let exec = container.try_exec(request, Some(filter.as_fd())).unwrap();
        exec.finish();
    });
    println!("inits {} of 30, execs {} of 200", inits.len(), execs.len());
    println!("init {}, exec {}", summary(inits), summary(execs));
}

/// Runs something again and again, and watches processes of that name inside another PID namespace: how long each
/// is seen with more capabilities than usual.
fn seen(children: &str, name: &str, times: u32, mut work: impl FnMut()) -> Vec<Duration> {
    use std::collections::BTreeMap;
    use std::sync::atomic::{AtomicBool, Ordering};
    let done = AtomicBool::new(false);
    let watch = || {
        let mut seen: BTreeMap<String, (Instant, Instant)> = BTreeMap::new();
        while !done.load(Ordering::Relaxed) {
            let pids = std::fs::read_to_string(children).unwrap_or_default();
            for pid in pids.split_whitespace() {
                let status = std::fs::read_to_string(format!("/proc/{pid}/status"));
                let status = status.unwrap_or_default();
                let line = |key: &str| {
                    status
                        .lines()
                        .find_map(|l| l.strip_prefix(key))
                        .unwrap_or("")
                };
                let more =
                    u64::from_str_radix(line("CapPrm:").trim(), 16).is_ok_and(|m| m & !USUAL != 0);
                let inside = line("NSpid:").split_whitespace().count() > 1;
                if more && inside && line("Name:").contains(name) {
                    let now = Instant::now();
                    seen.entry(pid.to_owned()).or_insert((now, now)).1 = now;
                }
            }
        }
        seen.into_values()
            .map(|(first, last)| last - first)
            .collect()
    };
    std::thread::scope(|scope| {
        let watcher = scope.spawn(watch);
        (0..times).for_each(|_| work());
        done.store(true, Ordering::Relaxed);
        watcher.join().unwrap()
    })
}
