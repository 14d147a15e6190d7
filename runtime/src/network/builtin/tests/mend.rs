//! Others take away what pods stand on.

use super::*;

fn sysctl(name: &str) -> String {
    let path = format!("/proc/sys/net/ipv4/{name}");
    std::fs::read_to_string(path).unwrap().trim().to_owned()
}

fn reaches(machine: &Machine) -> bool {
    let target: SocketAddr = "192.0.2.1:7100".parse().unwrap();
    let connected = netns::run_in(&machine.world(), || {
        TcpStream::connect_timeout(&target, Duration::from_millis(700)).is_ok()
    });
    connected.unwrap()
}

#[test]
fn what_somebody_takes_away_is_put_back() {
    let machine = Machine::new();
    let builtin = machine.open();
    let mend = || machine.on_host(|| builtin.mend()).unwrap().join("; ");
    assert_eq!(mend(), "", "without a pod there is nothing to be there");
    assert_eq!(machine.leftovers(), "");
    let pod = machine.pod(&[
        (Protocol::Tcp, "", 7100, 80),
        (Protocol::Udp, "192.0.2.1", 53, 53),
    ]);
    serve(&pod.netns, 80);
    machine.setup(&builtin, &pod);
    assert_eq!(mend(), "");
    assert!(reaches(&machine));
    let host_end = host_interface(&pod.id);
    let takes: [(&str, &[&str], &str); 11] = [
        ("nft", &["flush", "ruleset"], "rules of chain"),
        ("nft", &["delete", "table", "ip", "berth"], "rules of chain"),
        ("nft", &["flush", "table", "ip", "berth"], "rules of chain"),
        (
            "nft",
            &["flush", "chain", "ip", "berth", "postrouting"],
            "\"postrouting\"",
        ),
        (
            "nft",
            &["flush", "map", "ip", "berth", "hostports"],
            "a host port of pod",
        ),
        (
            "nft",
            &["flush", "map", "ip", "berth", "hostports_by_address"],
            "a host port of pod",
        ),
        ("ip", &["link", "del", "berth0"], "bridge \"berth0\""),
        ("ip", &["link", "set", "berth0", "down"], "being up"),
        (
            "ip",
            &["addr", "flush", "dev", "berth0"],
            "address 10.85.0.1",
        ),
        (
            "ip",
            &["link", "set", &host_end, "nomaster"],
            "the link of pod",
        ),
        ("ip", &["link", "set", &host_end, "down"], "the link of pod"),
    ];
    for (program, arguments, missing) in takes {
        machine.on_host(|| output(program, arguments));
        // The links are looked at now and then only.
        let told = (0..10).map(|_| mend()).find(|told| !told.is_empty());
        let told = told.unwrap_or_default();
        assert!(told.contains(missing), "{program} {arguments:?}: {told}");
        let begun = Instant::now();
        while !reaches(&machine) {
            assert!(begun.elapsed() < PATIENCE * 3, "{program} {arguments:?}");
        }
        assert!((0..10).all(|_| mend().is_empty()));
    }
    for name in [
        "ip_forward",
        "conf/berth0/forwarding",
        "conf/berth0/route_localnet",
    ] {
        machine.on_host(|| std::fs::write(format!("/proc/sys/net/ipv4/{name}"), "0").unwrap());
        assert!(mend().contains(name));
        assert_eq!(machine.on_host(|| sysctl(name)), "1");
    }
    machine.teardown(&builtin, &pod);
    machine.on_host(|| output("nft", &["flush", "ruleset"]));
    assert_eq!(mend(), "");
    assert!(machine.on_host(|| builtin.shutdown()).unwrap());
    assert_eq!(machine.leftovers(), "");
}

#[test]
fn a_later_daemon_puts_back_what_went_while_none_was_there() {
    let machine = Machine::new();
    let pod = machine.pod(&[(Protocol::Tcp, "", 7100, 80)]);
    serve(&pod.netns, 80);
    machine.setup(&machine.open(), &pod);
    machine.on_host(|| {
        output("nft", &["flush", "ruleset"]);
        ip("link del berth0");
    });
    let builtin = machine.open();
    assert!(machine.on_host(|| builtin.mend()).unwrap().len() >= 2);
    assert!(reaches(&machine));
    machine.teardown(&builtin, &pod);
    // A lease of a pod whose namespace went with a reboot needs nothing.
    let gone = machine.pod(&[]);
    machine.setup(&builtin, &gone);
    netns::unpin(&gone.netns).unwrap();
    machine.on_host(|| output("nft", &["flush", "ruleset"]));
    assert!(machine.on_host(|| builtin.mend()).unwrap().is_empty());
    machine.teardown(&builtin, &gone);
}

#[test]
fn what_cannot_be_put_back_says_so() {
    let machine = Machine::new();
    let builtin = machine.open();
    let pod = machine.pod(&[]);
    machine.setup(&builtin, &pod);
    machine.on_host(|| {
        ip("link del berth0");
        ip("link add berth0 type veth peer name other0");
    });
    let error = machine.on_host(|| builtin.mend()).unwrap_err().to_string();
    assert!(
        error.contains("\"berth0\" exists and is not a bridge"),
        "{error}"
    );
    machine.on_host(|| ip("link del berth0"));
    assert!(!machine.on_host(|| builtin.mend()).unwrap().is_empty());
    machine.teardown(&builtin, &pod);
}

#[test]
fn what_has_ports_is_left_by_a_daemon_that_knows_of_none() {
    let machine = Machine::new();
    let builtin = machine.open();
    let pod = machine.pod(&[(Protocol::Tcp, "", 7100, 80)]);
    machine.setup(&builtin, &pod);
    let dir = machine.dir.path();
    let other = Builtin::open(None, "berth", &dir.join("other"), &dir.join("state")).unwrap();
    assert!(!machine.on_host(|| other.shutdown()).unwrap());
    serve(&pod.netns, 80);
    assert!(reaches(&machine));
    machine.teardown(&builtin, &pod);
    assert!(machine.on_host(|| other.shutdown()).unwrap());
    assert_eq!(machine.leftovers(), "");
}
