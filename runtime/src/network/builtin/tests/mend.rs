//! Others take away what pods stand on.

use std::sync::atomic::{AtomicBool, Ordering};

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
    let takes: [(&str, &[&str], &str); 13] = [
        (
            "nft",
            &["add table ip berth { flags dormant ; }"],
            "is dormant",
        ),
        (
            "ip",
            &[
                "link",
                "set",
                &host_end,
                "type",
                "bridge_slave",
                "hairpin",
                "off",
            ],
            "hairpin mode of the link of pod",
        ),
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

/// What somebody saved before, and loads again.
fn load(machine: &Machine, ruleset: &str) {
    let path = machine.dir.path().join("ruleset");
    std::fs::write(&path, ruleset).unwrap();
    machine.on_host(|| output("nft", &["-f", path.to_str().unwrap()]));
}

#[test]
fn host_ports_that_a_firewall_brings_back_are_taken_away() {
    let machine = Machine::new();
    let builtin = machine.open();
    let list = || machine.on_host(|| output("nft", &["list", "ruleset"]));
    let mend = || machine.on_host(|| builtin.mend()).unwrap().join("; ");
    let kept = machine.pod(&[(Protocol::Tcp, "", 7100, 80)]);
    let gone = machine.pod(&[
        (Protocol::Tcp, "", 7101, 80),
        (Protocol::Udp, "192.0.2.1", 53, 53),
    ]);
    machine.setup(&builtin, &kept);
    machine.setup(&builtin, &gone);
    let saved = list();
    machine.teardown(&builtin, &gone);
    let right = list();
    assert_eq!(mend(), "");

    machine.on_host(|| output("nft", &["flush", "ruleset"]));
    load(&machine, &saved);
    let told = mend();
    assert!(told.contains("the end of 2 host ports"), "{told}");
    assert!(told.contains(gone.id.as_str()), "{told}");
    assert_eq!(list(), right);
    assert_eq!(mend(), "");

    // A pod that comes before anybody looks has its port all the same.
    machine.on_host(|| output("nft", &["flush", "ruleset"]));
    load(&machine, &saved);
    let next = machine.pod(&[(Protocol::Tcp, "", 7101, 80)]);
    machine.setup(&builtin, &next);
    serve(&next.netns, 80);
    let target = "192.0.2.1:7101";
    assert_eq!(ask(&machine.world(), target).as_deref(), Some("192.0.2.2"));
    assert!(!list().contains(gone.id.as_str()));

    // Also when no lease is left at all.
    machine.teardown(&builtin, &next);
    machine.teardown(&builtin, &kept);
    machine.on_host(|| output("nft", &["flush", "ruleset"]));
    load(&machine, &saved);
    assert!(mend().contains("the end of 3 host ports"));
    assert_eq!(mend(), "");
    machine.on_host(|| output("nft", &["flush", "ruleset"]));
    load(&machine, &saved);
    assert!(machine.on_host(|| builtin.shutdown()).unwrap());
    assert_eq!(machine.leftovers(), "");
}

#[test]
fn host_ports_of_a_pod_that_lives_without_a_lease_stay() {
    let machine = Machine::new();
    let pod = machine.pod(&[(Protocol::Tcp, "", 7100, 80)]);
    machine.setup(&machine.open(), &pod);
    serve(&pod.netns, 80);
    // A daemon whose root was lost.
    let dir = machine.dir.path();
    let subnet = Some("10.85.0.0/16".parse().unwrap());
    let other = Builtin::open(subnet, "berth", &dir.join("other"), &dir.join("state")).unwrap();
    assert!((0..12).all(|_| machine.on_host(|| other.mend()).unwrap().is_empty()));
    assert!(reaches(&machine));
    machine.teardown(&machine.open(), &pod);
}

#[test]
fn pods_come_and_go_while_somebody_flushes_the_rules() {
    let machine = Machine::new();
    let builtin = machine.open();
    let port = |number: u16| machine.pod(&[(Protocol::Tcp, "", number, 80)]);
    let kept = port(7100);
    machine.setup(&builtin, &kept);
    let pods: Vec<_> = (0..4).map(|number| port(7200 + number)).collect();
    let (host, over) = (machine.host(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let (builtin, over) = (&builtin, &over);
        let churn = |pod| {
            let host = &host;
            scope.spawn(move || {
                netns::run_in(host, || {
                    for _ in 0..50 {
                        builtin.setup(pod).unwrap();
                        builtin.teardown(&pod.id).unwrap();
                    }
                })
                .unwrap();
            })
        };
        let all: Vec<_> = pods.iter().map(churn).collect();
        let flush = scope.spawn(|| {
            netns::run_in(&host, || {
                let mut takes = [
                    ("nft", &["flush", "ruleset"][..]),
                    ("nft", &["flush", "map", "ip", "berth", "hostports"]),
                    ("ip", &["link", "del", "berth0"]),
                ]
                .into_iter()
                .cycle();
                while !over.load(Ordering::Relaxed) {
                    let (program, arguments) = takes.next().unwrap();
                    // The table or the bridge may not be there.
                    Command::new(program).args(arguments).output().unwrap();
                    std::thread::sleep(Duration::from_millis(250));
                }
            })
            .unwrap();
        });
        let done: Vec<_> = all.into_iter().map(|one| one.join()).collect();
        over.store(true, Ordering::Relaxed);
        flush.join().unwrap();
        assert!(done.iter().all(Result::is_ok), "a pod failed");
    });
    machine.on_host(|| builtin.mend()).unwrap();
    let map = machine.on_host(|| output("nft", &["list", "table", "ip", "berth"]));
    assert_eq!(map.matches(" comment ").count(), 1, "{map}");
    assert!(map.contains("7100"), "{map}");
    assert_eq!(builtin.pods(), std::slice::from_ref(&kept.id));
    machine.teardown(&builtin, &kept);
}

#[test]
fn a_subnet_that_is_in_use_is_told_before_the_first_pod() {
    let machine = Machine::new();
    machine.on_host(|| ip("route add 10.85.7.0/24 dev up0"));
    let builtin = machine.open();
    for _ in 0..3 {
        let error = machine.on_host(|| builtin.mend()).unwrap_err().to_string();
        let told = "10.85.0.0/16 of the built-in network is in use: there is a route to 10.85.7.0/24 through";
        assert!(error.contains(told), "{error}");
    }
    machine.on_host(|| ip("route del 10.85.7.0/24 dev up0"));
    assert!(machine.on_host(|| builtin.mend()).unwrap().is_empty());
    // It comes later, and is told within a few looks.
    machine.on_host(|| ip("route add 10.85.7.0/24 dev up0"));
    assert!((0..10).any(|_| machine.on_host(|| builtin.mend()).is_err()));
    machine.on_host(|| ip("route del 10.85.7.0/24 dev up0"));
    assert!(machine.on_host(|| builtin.mend()).is_ok());
    assert_eq!(machine.leftovers(), "");
}

#[test]
fn pods_of_an_earlier_subnet_go_on_beside_those_of_the_new_one() {
    let machine = Machine::new();
    serve(&machine.world(), 7001);
    let old = machine.pod(&[(Protocol::Tcp, "", 7100, 80)]);
    serve(&old.netns, 80);
    machine.setup(&machine.open(), &old);
    let builtin = machine.open_with(Some("10.86.0.0/16".parse().unwrap()));
    let mend = || machine.on_host(|| builtin.mend()).unwrap();
    let addresses = || machine.on_host(|| output("ip", &["-br", "addr", "show", "berth0"]));
    let out = |pod: &PodNetwork| ask(&pod.netns, "192.0.2.2:7001");
    let seen = Some("192.0.2.1".to_owned());
    assert_eq!(mend(), [""; 0], "nobody took anything away");
    let new = machine.pod(&[]);
    assert_eq!(machine.setup(&builtin, &new).to_string(), "10.86.0.2");
    let all_is_well = || {
        assert_eq!(out(&old), seen);
        assert_eq!(out(&new), seen);
        assert_eq!(
            ask(&new.netns, "10.85.0.2:80").as_deref(),
            Some("10.86.0.2")
        );
        assert!(ask(&new.netns, "192.0.2.1:7100").is_some());
        assert!(reaches(&machine));
        assert!((0..11).all(|_| mend().is_empty()));
    };
    all_is_well();
    machine.on_host(|| {
        output("nft", &["flush", "ruleset"]);
        ip("link del berth0");
    });
    assert!(!mend().is_empty());
    all_is_well();

    // With the last pod of the earlier subnet all of it goes.
    machine.teardown(&builtin, &old);
    assert!(mend().is_empty());
    let table = machine.on_host(|| output("nft", &["list", "table", "ip", "berth"]));
    assert!(
        table.contains("10.86.0.0/16") && !table.contains("10.85."),
        "{table}"
    );
    assert!(!addresses().contains("10.85."), "{}", addresses());
    assert_eq!(out(&new), seen);
    machine.teardown(&builtin, &new);
    assert!(machine.on_host(|| builtin.shutdown()).unwrap());
    assert_eq!(machine.leftovers(), "");
}

#[test]
fn a_pod_that_comes_before_anybody_looks_finds_its_own_subnet() {
    let machine = Machine::new();
    serve(&machine.world(), 7001);
    let old = machine.pod(&[]);
    machine.setup(&machine.open(), &old);
    machine.teardown(&machine.open(), &old);
    let builtin = machine.open_with(Some("10.86.0.0/16".parse().unwrap()));
    let new = machine.pod(&[]);
    machine.setup(&builtin, &new);
    assert_eq!(
        ask(&new.netns, "192.0.2.2:7001").as_deref(),
        Some("192.0.2.1")
    );
    let addresses = machine.on_host(|| output("ip", &["-br", "addr", "show", "berth0"]));
    assert!(
        addresses.contains("10.86.0.1") && !addresses.contains("10.85."),
        "{addresses}"
    );
    machine.teardown(&builtin, &new);
    assert!(machine.on_host(|| builtin.shutdown()).unwrap());
    assert_eq!(machine.leftovers(), "");
}
