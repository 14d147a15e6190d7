//! How long it takes. Run alone: `cargo test --profile shim -p berth-worker --test live -- --ignored --nocapture speed`;
//! `BERTH_WORKER` names the program to measure.

use std::time::{Duration, Instant};

use crate::driver::*;

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

#[test]
#[ignore = "a measurement, meaningless beside other tests"]
fn create_start_and_exec() {
    let fixture = Fixture::new();
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
    let container = fixture.run(argv(&["cat"]));
    for _ in 0..50 {
        let request = container.exec_request(argv(&["true"]));
        let begin = Instant::now();
        container.try_exec(request, None).unwrap().finish();
        exec.push(begin.elapsed());
    }
    println!("create {:?}, start {:?}, exec to its end {:?}", median(create), median(start), median(exec));
}
