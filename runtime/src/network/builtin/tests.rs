//! The built-in network on a machine of its own: a network namespace plays the host, others the
//! pods and the world outside, so nothing of the real host is touched. They need root, `ip`, and
//! `nft` to read back what was written.

mod many;
mod mend;

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::time::{Duration, Instant};

use super::*;
use crate::model::Protocol;
use crate::network::tests::pod;
use crate::sys::netns;

const PATIENCE: Duration = Duration::from_secs(3);

/// A pretended machine with one interface to a pretended world.
struct Machine {
    dir: tempfile::TempDir,
    pods: std::cell::RefCell<Vec<PathBuf>>,
}

impl Machine {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("state")).unwrap();
        let machine = Self {
            dir,
            pods: std::cell::RefCell::default(),
        };
        netns::new_pinned(&machine.host()).unwrap();
        netns::new_pinned(&machine.world()).unwrap();
        let world = machine.world();
        machine.on_host(|| {
            let inode = std::fs::File::open(&world).unwrap();
            let fd = inode.as_raw_fd();
            ip(&format!(
                "link add up0 mtu 1400 type veth peer name up1 netns /proc/{}/fd/{fd}",
                std::process::id()
            ));
            ip("addr add 192.0.2.1/24 dev up0");
            ip("link set up0 up");
            ip("route add default via 192.0.2.2");
        });
        netns::run_in(&world, || {
            ip("addr add 192.0.2.2/24 dev up1");
            ip("link set up1 up");
        })
        .unwrap();
        machine
    }

    fn host(&self) -> PathBuf {
        self.dir.path().join("host")
    }

    fn world(&self) -> PathBuf {
        self.dir.path().join("world")
    }

    fn on_host<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        netns::run_in(&self.host(), work).unwrap()
    }

    fn open(&self) -> Builtin {
        let subnet = "10.85.0.0/16".parse().unwrap();
        self.open_with(Some(subnet))
    }

    fn open_with(&self, subnet: Option<Subnet>) -> Builtin {
        let dir = self.dir.path();
        Builtin::open(subnet, "berth", &dir.join("cache"), &dir.join("state")).unwrap()
    }

    fn pod(&self, ports: &[(Protocol, &str, u16, u16)]) -> PodNetwork {
        let mut pod = pod("");
        pod.netns = self.dir.path().join(pod.id.short());
        netns::new_pinned(&pod.netns).unwrap();
        self.pods.borrow_mut().push(pod.netns.clone());
        pod.port_mappings = ports
            .iter()
            .map(
                |(protocol, host_ip, host_port, container_port)| PortMapping {
                    protocol: *protocol,
                    host_ip: (*host_ip).into(),
                    host_port: *host_port,
                    container_port: *container_port,
                },
            )
            .collect();
        pod
    }

    fn setup(&self, builtin: &Builtin, pod: &PodNetwork) -> IpAddr {
        self.on_host(|| builtin.setup(pod)).unwrap().ips[0]
    }

    fn teardown(&self, builtin: &Builtin, pod: &PodNetwork) {
        self.on_host(|| builtin.teardown(&pod.id)).unwrap();
    }

    /// Everything on the machine that is not its own: interfaces and tables.
    fn leftovers(&self) -> String {
        self.on_host(|| {
            let links = output("ip", &["-br", "link"]);
            let links: Vec<_> = links
                .lines()
                .filter(|line| !line.starts_with("lo ") && !line.starts_with("up0@"))
                .filter(|line| !line.contains("NOARP"))
                .map(str::to_owned)
                .collect();
            links.join("\n") + &output("nft", &["list", "tables"])
        })
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let own = [self.host(), self.world()];
        for path in self.pods.borrow().iter().chain(&own) {
            let _ = netns::unpin(path);
        }
    }
}

use std::os::fd::AsRawFd as _;

fn output(program: &str, arguments: &[&str]) -> String {
    let done = Command::new(program).args(arguments).output().unwrap();
    assert!(done.status.success(), "{program} {arguments:?}: {done:?}");
    String::from_utf8(done.stdout).unwrap()
}

fn ip(line: &str) {
    output("ip", &line.split(' ').collect::<Vec<_>>());
}

/// Answers each connection with the address it came from.
fn serve(netns: &Path, port: u16) {
    let listener = netns::run_in(netns, || TcpListener::bind(("0.0.0.0", port)).unwrap()).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let peer = stream.peer_addr().unwrap().ip().to_string();
            let _ = stream.write_all(peer.as_bytes());
        }
    });
}

fn serve_udp(netns: &Path, port: u16, word: &'static str) {
    let socket = netns::run_in(netns, || UdpSocket::bind(("0.0.0.0", port)).unwrap()).unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((_, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(word.as_bytes(), from);
        }
    });
}

/// Which address the server sees when it is asked from there; `None`: not reached.
fn ask(from: &Path, target: &str) -> Option<String> {
    let target: SocketAddr = target.parse().unwrap();
    netns::run_in(from, || {
        let mut stream = TcpStream::connect_timeout(&target, PATIENCE).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        Some(answer)
    })
    .unwrap()
}

fn ask_udp(socket: &UdpSocket, target: &str, patience: Duration) -> Option<String> {
    socket.set_read_timeout(Some(patience)).unwrap();
    socket.send_to(b"?", target).ok()?;
    let mut buffer = [0; 64];
    let (count, _) = socket.recv_from(&mut buffer).ok()?;
    Some(String::from_utf8_lossy(&buffer[..count]).into_owned())
}

/// Every way of reaching the pods of a machine.
fn assert_reachable(machine: &Machine, web: &PodNetwork, other: &PodNetwork, ips: [IpAddr; 2]) {
    let (host, world) = (machine.host(), machine.world());
    let [web_ip, other_ip] = ips.map(|ip| ip.to_string());
    let gateway = "10.85.0.1";
    let some = |text: &str| Some(text.to_owned());
    // Pod to pod, host to pod, pod to host.
    assert_eq!(ask(&other.netns, &format!("{web_ip}:80")), some(&other_ip));
    assert_eq!(ask(&host, &format!("{web_ip}:80")), some(gateway));
    assert_eq!(ask(&web.netns, "10.85.0.1:7000"), some(&web_ip));
    assert_eq!(ask(&web.netns, "192.0.2.1:7000"), some(&web_ip));
    // Out into the world, which knows no route back to pods.
    assert_eq!(ask(&web.netns, "192.0.2.2:7001"), some("192.0.2.1"));
    // Host port: from the host by both addresses, from the world, from pods, from the pod itself.
    assert_eq!(ask(&host, "127.0.0.1:8080"), some(gateway));
    assert_eq!(ask(&host, "192.0.2.1:8080"), some("192.0.2.1"));
    assert_eq!(ask(&world, "192.0.2.1:8080"), some("192.0.2.2"));
    assert!(ask(&other.netns, "192.0.2.1:8080").is_some());
    assert!(ask(&web.netns, "192.0.2.1:8080").is_some());
    // Only by the address it was published on; and the other port not at all from the world.
    assert!(ask(&host, "127.0.0.1:8081").is_some());
    assert_eq!(ask(&world, "192.0.2.1:8081"), None);
    // What passes through is not touched.
    assert_eq!(ask(&web.netns, "192.0.2.2:8080"), some("192.0.2.1"));
    // The host's own loopback stays its own.
    assert_eq!(ask(&web.netns, "10.85.0.1:7002"), None);
}

#[test]
fn pods_reach_each_other_the_host_and_the_world_also_after_a_restart() {
    let machine = Machine::new();
    let (host, world) = (machine.host(), machine.world());
    serve(&host, 7000);
    serve(&world, 7001);
    serve(&world, 8080);
    let builtin = machine.open();
    let web = machine.pod(&[
        (Protocol::Tcp, "", 8080, 80),
        (Protocol::Tcp, "127.0.0.1", 8081, 80),
        (Protocol::Sctp, "0.0.0.0", 9000, 9000),
        (Protocol::Tcp, "", 0, 81),
    ]);
    let other = machine.pod(&[]);
    serve(&web.netns, 80);
    let ips = [
        machine.setup(&builtin, &web),
        machine.setup(&builtin, &other),
    ];
    assert_eq!(ips.map(|ip| ip.to_string()), ["10.85.0.2", "10.85.0.3"]);
    let table = machine.on_host(|| output("nft", &["list", "table", "ip", "berth"]));
    for part in [
        "tcp . 8080 comment",
        "127.0.0.1 . tcp . 8081 comment",
        "sctp . 9000 comment",
        "10.85.0.2 . 80",
        web.id.as_str(),
    ] {
        assert!(table.contains(part), "{part:?} is not in {table}");
    }
    assert_reachable(&machine, &web, &other, ips);
    let link = netns::run_in(&web.netns, || output("ip", &["link", "show", "eth0"])).unwrap();
    assert!(link.contains("mtu 1400"), "{link}");

    // Another life of the daemon, and somebody flushed all rules meanwhile.
    drop(builtin);
    machine.on_host(|| output("nft", &["flush", "ruleset"]));
    let builtin = machine.open();
    assert_eq!(builtin.result(&web.id).unwrap().ips, [ips[0]]);
    let third = machine.pod(&[]);
    assert_eq!(machine.setup(&builtin, &third).to_string(), "10.85.0.4");
    assert_reachable(&machine, &web, &other, ips);
    assert!(!machine.on_host(|| builtin.shutdown()).unwrap());

    machine.teardown(&builtin, &web);
    assert_eq!(ask(&world, "192.0.2.1:8080"), None);
    // One with its namespace gone, and every one twice.
    netns::unpin(&other.netns).unwrap();
    for pod in [&web, &other, &third, &other] {
        machine.teardown(&builtin, pod);
    }
    assert!(builtin.pods().is_empty());
    assert!(machine.on_host(|| builtin.shutdown()).unwrap());
    assert!(machine.on_host(|| builtin.shutdown()).unwrap());
    assert_eq!(machine.leftovers(), "");
    let leases = machine.dir.path().join("cache/leases");
    assert_eq!(
        std::fs::read_dir(leases).unwrap().count(),
        1,
        "only the pointer is left"
    );
}

#[test]
fn loopback_of_the_host_cannot_be_reached_from_a_pod() {
    let machine = Machine::new();
    let builtin = machine.open();
    let pod = machine.pod(&[]);
    machine.setup(&builtin, &pod);
    serve(&machine.host(), 7003);
    // CVE-2020-8558: a pod sends to 127.0.0.1 through the bridge.
    let reached = netns::run_in(&pod.netns, || {
        std::fs::write("/proc/sys/net/ipv4/conf/all/route_localnet", "1").unwrap();
        ip("addr del 127.0.0.1/8 dev lo");
        ip("route add 127.0.0.1/32 via 10.85.0.1 src 10.85.0.2 dev eth0");
        let target = "127.0.0.1:7003".parse().unwrap();
        TcpStream::connect_timeout(&target, Duration::from_millis(700)).is_ok()
    });
    assert!(!reached.unwrap());
    machine.teardown(&builtin, &pod);
}

#[test]
fn a_taken_host_port_is_told_and_leaves_nothing_behind() {
    let machine = Machine::new();
    let builtin = machine.open();
    let ports = [(Protocol::Udp, "", 53, 53), (Protocol::Tcp, "", 53, 53)];
    let (first, second) = (machine.pod(&ports[..1]), machine.pod(&ports));
    machine.setup(&builtin, &first);
    let error = machine.on_host(|| builtin.setup(&second)).unwrap_err();
    let expected = format!("host port 53/udp is in use by pod {}", first.id);
    assert!(error.to_string().starts_with(&expected), "{error}");
    assert_eq!(builtin.pods(), std::slice::from_ref(&first.id));
    machine.teardown(&builtin, &first);
    // Free again; and a repeated setup of the same pod begins anew.
    machine.setup(&builtin, &second);
    machine.setup(&builtin, &second);
    machine.teardown(&builtin, &second);
    let bad = machine.pod(&[(Protocol::Tcp, "::1", 53, 53)]);
    assert!(matches!(
        machine.on_host(|| builtin.setup(&bad)),
        Err(Error::Invalid(_))
    ));
    let gone = pod("/nonexistent");
    assert!(machine.on_host(|| builtin.setup(&gone)).is_err());
    assert!(builtin.pods().is_empty());
}

#[test]
fn a_client_that_goes_on_sending_udp_finds_the_next_pod() {
    let machine = Machine::new();
    let builtin = machine.open();
    let client = netns::run_in(&machine.world(), || {
        UdpSocket::bind("192.0.2.2:5000").unwrap()
    })
    .unwrap();
    let ports = [(Protocol::Udp, "", 5300, 53)];
    for word in ["one", "two"] {
        let pod = machine.pod(&ports);
        serve_udp(&pod.netns, 53, word);
        machine.setup(&builtin, &pod);
        assert_eq!(
            ask_udp(&client, "192.0.2.1:5300", PATIENCE).as_deref(),
            Some(word)
        );
        machine.teardown(&builtin, &pod);
        assert_eq!(
            ask_udp(&client, "192.0.2.1:5300", Duration::from_millis(500)),
            None
        );
    }
}

#[test]
fn a_subnet_that_is_in_use_is_refused() {
    let machine = Machine::new();
    let builtin = machine.open_with(Some("192.0.2.0/25".parse().unwrap()));
    let pod = machine.pod(&[]);
    // The uplink's route is wider; its own addresses are inside.
    machine.on_host(|| ip("route add 192.0.2.64/26 dev up0"));
    let error = machine.on_host(|| builtin.setup(&pod)).unwrap_err();
    let told = "a route to 192.0.2.64/26 through interface \"up0\";";
    assert!(error.to_string().contains(told), "{error}");
    assert!(builtin.pods().is_empty());
    // Switched off, it connects nobody, and still disconnects.
    let off = machine.open_with(None);
    assert!(machine.on_host(|| off.setup(&pod)).is_err());
    machine.teardown(&off, &pod);
}

#[test]
fn many_at_once_share_nothing() {
    let machine = Machine::new();
    let builtin = machine.open();
    let pods: Vec<_> = (0..20)
        .map(|n| machine.pod(&[(Protocol::Tcp, "", 10_000 + n, 80)]))
        .collect();
    let each = |work: &(dyn Fn(&PodNetwork) + Sync)| {
        std::thread::scope(|scope| {
            for pod in &pods {
                let host = machine.host();
                scope.spawn(move || netns::run_in(&host, || work(pod)).unwrap());
            }
        });
    };
    each(&|pod| {
        builtin.setup(pod).unwrap();
    });
    let addresses: std::collections::BTreeSet<_> = pods
        .iter()
        .map(|pod| builtin.result(&pod.id).unwrap().ips[0])
        .collect();
    assert_eq!(addresses.len(), 20);
    each(&|pod| builtin.teardown(&pod.id).unwrap());
    assert!(machine.on_host(|| builtin.shutdown()).unwrap());
    assert_eq!(machine.leftovers(), "");
}

/// Prints what it costs; the limits only catch what is far off, on a machine that others use too.
#[test]
fn connecting_a_pod_takes_milliseconds() {
    let machine = Machine::new();
    let builtin = machine.open();
    let ports = [(Protocol::Tcp, "", 8080, 80)];
    let (mut up, mut down) = (Vec::new(), Vec::new());
    let first = machine.pod(&[]);
    machine.setup(&builtin, &first);
    for _ in 0..20 {
        let pod = machine.pod(&ports);
        machine.on_host(|| {
            let start = Instant::now();
            builtin.setup(&pod).unwrap();
            up.push(start.elapsed());
            let start = Instant::now();
            builtin.teardown(&pod.id).unwrap();
            down.push(start.elapsed());
        });
    }
    up.sort();
    down.sort();
    println!(
        "built-in network, one host port, 20 times: setup p50 {:?} max {:?}, teardown p50 {:?} max {:?}",
        up[10], up[19], down[10], down[19]
    );
    assert!(up[10] < Duration::from_millis(100), "{up:?}");
    assert!(down[10] < Duration::from_millis(300), "{down:?}");
}

#[test]
fn names_fit_and_differ() {
    assert_eq!(names("berth"), ("berth0".into(), "berth".into()));
    let (bridge, table) = names("test-instance-with-a-long-name");
    assert_eq!(bridge.len(), 15);
    assert_eq!(table, "berth-test-instance-with-a-long-name");
    assert_ne!(names("a"), names("b"));
}
