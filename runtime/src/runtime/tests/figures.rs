//! What containers cost. Printed and not judged: other tests run in this process, others on this machine.

use super::*;

/// A field of a process's `smaps_rollup`, in KiB.
fn memory(pid: &str, field: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let line = text.lines().find(|l| l.starts_with(field)).unwrap();
    line.split_ascii_whitespace()
        .nth(1)
        .unwrap()
        .parse()
        .unwrap()
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

#[tokio::test]
async fn thirty_containers() {
    const COUNT: usize = 30;
    let bench = Bench::new();
    let mut fixtures: Vec<Fixture> = (0..COUNT)
        .map(|_| Fixture::script("exec sleep 1000"))
        .collect();
    let (mut warm, mut made, mut started, mut execs) = (None, Vec::new(), Vec::new(), Vec::new());
    let mut monitors = Vec::new();
    for fixture in &mut fixtures {
        let began = Instant::now();
        let (monitor, _) = fixture.create(&bench).await.unwrap();
        made.push(began.elapsed());
        let began = Instant::now();
        monitor.start().await.unwrap();
        started.push(began.elapsed());
        let exec = fixture.exec("a", &["true"]);
        let began = Instant::now();
        run(&monitor, exec).await;
        execs.push(began.elapsed());
        monitors.push(monitor);
        // What the first ones allocate is there for all.
        if monitors.len() == 5 {
            warm = Some(memory("self", "Private_Dirty:"));
        }
    }
    let growth = memory("self", "Private_Dirty:").saturating_sub(warm.unwrap());
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let mut pss = 0;
    for fixture in &fixtures {
        let connect = bench.runtime().connect(&fixture.id, fixture.dir.path());
        pss += memory(&connect.await.unwrap().1.monitor_pid.to_string(), "Pss:");
    }
    println!(
        "median of {COUNT}: create {:?}, start {:?}, exec {:?}; each: monitor {} KiB PSS, daemon {} KiB",
        median(made),
        median(started),
        median(execs),
        pss / COUNT as u64,
        growth / (COUNT as u64 - 5),
    );
    for monitor in &monitors {
        monitor.destroy().await.unwrap();
    }
    for fixture in &fixtures {
        fixture.is_clean(true).await;
    }
}
