//! More host ports than one message, one socket buffer or one transaction holds.

use super::*;

fn ports(
    protocols: &[Protocol],
    first: u16,
    count: u16,
) -> Vec<(Protocol, &'static str, u16, u16)> {
    protocols
        .iter()
        .flat_map(|protocol| (first..first + count).map(|port| (*protocol, "", port, port)))
        .collect()
}

/// Elements in the maps, by what nft shows.
fn published(machine: &Machine) -> usize {
    machine.on_host(|| {
        output("nft", &["list", "table", "ip", "berth"])
            .matches(" comment ")
            .count()
    })
}

#[test]
fn any_number_of_host_ports_comes_and_goes() {
    let machine = Machine::new();
    let builtin = machine.open();
    let all = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
    for list in [
        ports(&all[..1], 10_000, 256),
        ports(&all[..1], 10_000, 257),
        ports(&all, 10_000, 334),
        ports(&all, 10_000, 5000),
    ] {
        let pod = machine.pod(&list);
        machine.setup(&builtin, &pod);
        assert_eq!(published(&machine), list.len());
        machine.teardown(&builtin, &pod);
        assert_eq!(published(&machine), 0);
    }
    // On one address: the other map.
    let one: Vec<_> = (1..=2000)
        .map(|p| (Protocol::Tcp, "192.0.2.1", p, p))
        .collect();
    let pod = machine.pod(&one);
    serve(&pod.netns, 1999);
    machine.setup(&builtin, &pod);
    assert!(machine.on_host(|| {
        output(
            "nft",
            &["list", "map", "ip", "berth", "hostports_by_address"],
        )
        .contains(" . 2000 ")
    }));
    machine.teardown(&builtin, &pod);
    assert!(machine.on_host(|| builtin.shutdown()).unwrap());
    assert_eq!(machine.leftovers(), "");
}

#[test]
fn many_host_ports_of_which_one_is_taken_leave_nothing() {
    let machine = Machine::new();
    let builtin = machine.open();
    let first = machine.pod(&[(Protocol::Tcp, "", 14_500, 80)]);
    machine.setup(&builtin, &first);
    // The refusal comes in the fifth transaction.
    let second = machine.pod(&ports(&[Protocol::Tcp], 10_000, 5000));
    let error = machine.on_host(|| builtin.setup(&second)).unwrap_err();
    let expected = format!("host port 14500/tcp is in use by pod {}", first.id);
    assert!(error.to_string().starts_with(&expected), "{error}");
    assert_eq!(published(&machine), 1);
    assert_eq!(builtin.pods(), std::slice::from_ref(&first.id));

    let mut twice = ports(&[Protocol::Udp], 10_000, 600);
    twice.push((Protocol::Udp, "", 10_300, 1));
    let double = machine.pod(&twice);
    let error = machine.on_host(|| builtin.setup(&double)).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("host port 10300/udp is mapped twice"),
        "{error}"
    );
    assert_eq!(published(&machine), 1);
    machine.teardown(&builtin, &first);
    machine.setup(&builtin, &second);
    machine.teardown(&builtin, &second);
}

#[test]
fn many_host_ports_come_back_with_the_table() {
    let machine = Machine::new();
    let pods: Vec<_> = (0..3)
        .map(|n| {
            machine.pod(&ports(
                &[Protocol::Tcp, Protocol::Udp],
                10_000 + n * 1000,
                1000,
            ))
        })
        .collect();
    {
        let builtin = machine.open();
        for pod in &pods {
            machine.setup(&builtin, pod);
        }
    }
    machine.on_host(|| output("nft", &["delete", "table", "ip", "berth"]));
    // Another daemon, and another pod that finds the table missing.
    let builtin = machine.open();
    let more = machine.pod(&[]);
    machine.setup(&builtin, &more);
    assert_eq!(published(&machine), 6000);
    for pod in pods.iter().chain([&more]) {
        machine.teardown(&builtin, pod);
    }
    assert_eq!(published(&machine), 0);
}

#[test]
fn many_pods_with_many_ports_at_once_see_whole_lists() {
    let machine = Machine::new();
    let builtin = machine.open();
    let pods: Vec<_> = (0..8)
        .map(|n| machine.pod(&ports(&[Protocol::Tcp], 20_000 + n * 1000, 1000)))
        .collect();
    std::thread::scope(|scope| {
        for pod in &pods {
            let (host, builtin) = (machine.host(), &builtin);
            scope.spawn(move || {
                netns::run_in(&host, || {
                    builtin.setup(pod).unwrap();
                    builtin.teardown(&pod.id).unwrap();
                })
                .unwrap();
            });
        }
    });
    assert_eq!(published(&machine), 0);
    assert!(builtin.pods().is_empty());
}
