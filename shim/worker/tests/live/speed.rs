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
