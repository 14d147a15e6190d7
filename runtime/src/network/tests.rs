//! The whole with fake plugins: shell scripts that write down what they are given and do what a
//! file beside them says.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Instant;

use serde_json::{Value, json};

use super::*;
use crate::model::{Kind, Kinded as _, Protocol};

/// A pod for tests.
pub(super) fn pod(netns: impl Into<PathBuf>) -> PodNetwork {
    PodNetwork {
        id: PodId::generate().unwrap(),
        name: "web".into(),
        namespace: "default".into(),
        uid: "u-1".into(),
        netns: netns.into(),
        port_mappings: Vec::new(),
        dns: None,
        bandwidth: None,
        cgroup_path: "/kubepods/podu-1".into(),
        annotations: BTreeMap::new(),
    }
}

/// Directories of a Berth, with plugins `one` and `two`.
struct Node {
    dir: tempfile::TempDir,
    netns: Vec<PathBuf>,
}

const SCRIPT: &str = r#"#!/bin/sh
at=$(dirname "$0")/../did; me=$at/$(basename "$0").$CNI_COMMAND
echo "$(basename "$0") $CNI_COMMAND" >> "$at/log"
cat > "$me.in"; env | grep ^CNI_ | sort > "$me.env"
[ -f "$me.hang" ] && sleep 300
[ -f "$me.fail" ] && { cat "$me.fail"; exit 1; }
[ -f "$me.out" ] && cat "$me.out"
exit 0
"#;

fn answer(address: &str) -> Value {
    json!({
        "cniVersion": "1.0.0",
        "interfaces": [{"name": "eth0", "sandbox": "/x"}],
        "ips": [{"address": address, "interface": 0}]
    })
}

impl Node {
    fn new() -> Self {
        let node = Self {
            dir: tempfile::tempdir().unwrap(),
            netns: Vec::new(),
        };
        for dir in ["bin", "did"] {
            fs::create_dir(node.path(dir)).unwrap();
        }
        for plugin in ["one", "two"] {
            let path = node.path("bin").join(plugin);
            fs::write(&path, SCRIPT).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
            node.say(plugin, "ADD.out", &answer("10.9.0.5/24").to_string());
        }
        node
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A configuration with both plugins.
    fn configure(&self, version: &str) {
        let plugin = |kind| json!({"type": kind, "key": kind, "capabilities": {"portMappings": true, "dns": false}});
        let list = json!({
            "cniVersion": version,
            "name": "net",
            "plugins": [plugin("one"), plugin("two")]
        });
        fs::create_dir_all(self.path("conf")).unwrap();
        let unfinished = self.path("conf").join("10-net.tmp");
        fs::write(&unfinished, list.to_string()).unwrap();
        fs::rename(unfinished, self.path("conf").join("10-net.conflist")).unwrap();
    }

    fn open(&self) -> Network {
        self.open_with(Duration::from_secs(30))
    }

    fn open_with(&self, plugin_timeout: Duration) -> Network {
        Network::open(NetworkConfig {
            cni_conf_dir: self.path("conf"),
            cni_bin_dirs: vec![self.path("no"), self.path("bin")],
            cache_dir: self.path("root/cni"),
            builtin: None,
            instance: "test".into(),
            state_dir: self.path("state"),
            netns_dir: self.path("netns"),
            plugin_timeout,
        })
        .unwrap()
    }

    fn pod(&mut self) -> PodNetwork {
        let netns = self.path(&format!("ns{}", self.netns.len()));
        netns::new_pinned(&netns).unwrap();
        self.netns.push(netns.clone());
        pod(netns)
    }

    /// Tells a plugin what to do.
    fn say(&self, plugin: &str, what: &str, text: &str) {
        fs::write(self.path("did").join(format!("{plugin}.{what}")), text).unwrap();
    }

    fn unsay(&self, plugin: &str, what: &str) {
        fs::remove_file(self.path("did").join(format!("{plugin}.{what}"))).unwrap();
    }

    /// What plugins were run since the last time.
    fn log(&self) -> String {
        let path = self.path("did/log");
        let text = fs::read_to_string(&path).unwrap_or_default();
        let _ = fs::remove_file(path);
        text.lines().collect::<Vec<_>>().join(", ")
    }

    fn input(&self, what: &str) -> Value {
        let path = self.path("did").join(format!("{what}.in"));
        serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
    }

    fn environment(&self, what: &str) -> String {
        fs::read_to_string(self.path("did").join(format!("{what}.env"))).unwrap()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        for path in &self.netns {
            let _ = netns::unpin(path);
        }
    }
}

async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(10), "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn plugins_are_chained_and_undone_in_reverse_by_what_add_used() {
    let mut node = Node::new();
    node.configure("1.0.0");
    let dual = json!({
        "cniVersion": "1.0.0",
        "interfaces": [{"name": "eth0", "sandbox": "/x"}],
        "ips": [{"address": "fd00::5/64", "interface": 0}, {"address": "10.9.0.6/24", "interface": 0}]
    });
    node.say("two", "ADD.out", &dual.to_string());
    let network = node.open();
    assert!(network.status().ready);
    let mut pod = node.pod();
    let mapping = |host_port| PortMapping {
        protocol: Protocol::Tcp,
        container_port: 80,
        host_port,
        host_ip: String::new(),
    };
    pod.port_mappings = vec![mapping(0), mapping(8080)];
    pod.dns = Some(DnsConfig::default());
    let found = network.setup(&pod).await.unwrap();
    let ips: Vec<_> = found.ips.iter().map(ToString::to_string).collect();
    assert_eq!(ips, ["10.9.0.6", "fd00::5"]);
    assert_eq!(found.raw, dual);
    assert_eq!(node.log(), "one ADD, two ADD");
    let ports = json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": ""}]);
    let config = json!({
        "type": "one", "key": "one", "name": "net", "cniVersion": "1.0.0",
        "runtimeConfig": {"portMappings": ports}
    });
    assert_eq!(node.input("one.ADD"), config);
    assert_eq!(node.input("two.ADD")["prevResult"], answer("10.9.0.5/24"));
    let environment = node.environment("one.ADD");
    for line in [
        format!("CNI_CONTAINERID={}", pod.id),
        format!("CNI_NETNS={}", pod.netns.display()),
        "CNI_IFNAME=eth0".into(),
        format!(
            "CNI_PATH={}:{}",
            node.path("no").display(),
            node.path("bin").display()
        ),
        format!(
            "CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web;K8S_POD_INFRA_CONTAINER_ID={};K8S_POD_UID=u-1",
            pod.id
        ),
    ] {
        assert!(
            environment.lines().any(|l| l == line),
            "{line} is not in {environment}"
        );
    }

    network.check(&pod.id).await.unwrap();
    assert_eq!(node.log(), "one CHECK, two CHECK");
    assert_eq!(node.input("one.CHECK")["prevResult"], dual);

    // Another life, another configuration, and the namespace is gone.
    drop(network);
    fs::remove_dir_all(node.path("conf")).unwrap();
    let network = node.open();
    assert_eq!(network.known().unwrap(), std::slice::from_ref(&pod.id));
    assert_eq!(network.result(&pod.id).await.unwrap().unwrap(), found);
    netns::unpin(&pod.netns).unwrap();
    network.teardown(&pod).await.unwrap();
    assert_eq!(node.log(), "two DEL, one DEL");
    assert_eq!(node.input("one.DEL")["prevResult"], dual);
    assert_eq!(
        node.input("one.DEL")["runtimeConfig"]["portMappings"],
        ports
    );
    assert!(node.environment("two.DEL").contains("CNI_NETNS=\n"));
    network.teardown(&pod).await.unwrap();
    assert_eq!(node.log(), "");
    assert!(network.known().unwrap().is_empty());
    assert_eq!(network.result(&pod.id).await.unwrap(), None);
}

#[tokio::test]
async fn a_failed_add_is_undone_and_may_be_repeated() {
    let mut node = Node::new();
    node.configure("0.4.0");
    let network = node.open();
    let pod = node.pod();
    let said = json!({"cniVersion": "0.4.0", "code": 11, "msg": "no room", "details": "really"});
    node.say("two", "ADD.fail", &said.to_string());
    let error = network.setup(&pod).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable);
    assert_eq!(
        error.to_string(),
        "cni plugin \"two\" of network \"net\" failed to ADD: no room; really (code 11)"
    );
    assert_eq!(node.log(), "one ADD, two ADD, two DEL, one DEL");
    assert!(node.input("one.DEL").get("prevResult").is_none());
    assert!(network.known().unwrap().is_empty());

    // DEL fails as well: the pod stays known, the other plugin is run nevertheless.
    node.say("two", "DEL.fail", "nothing in JSON");
    let error = network.setup(&pod).await.unwrap_err().to_string();
    assert!(
        error.contains("no room") && error.contains("failed to DEL"),
        "{error}"
    );
    assert_eq!(node.log(), "one ADD, two ADD, two DEL, one DEL");
    assert_eq!(network.known().unwrap(), std::slice::from_ref(&pod.id));
    assert!(network.forget(&pod.id).await.is_err());
    node.unsay("two", "DEL.fail");
    node.unsay("two", "ADD.fail");
    network.forget(&pod.id).await.unwrap();
    assert!(network.known().unwrap().is_empty());
    network.setup(&pod).await.unwrap();
    assert_eq!(
        node.input("two.ADD")["prevResult"]["ips"][0]["version"],
        "4"
    );
    network.teardown(&pod).await.unwrap();
}

#[tokio::test]
async fn an_unusable_result_is_undone() {
    let mut node = Node::new();
    node.configure("1.0.0");
    let network = node.open();
    let pod = node.pod();
    for output in ["", "{", "{}", r#"{"cniVersion":"3.0.0"}"#] {
        node.say("two", "ADD.out", output);
        let error = network.setup(&pod).await.unwrap_err();
        assert_eq!(node.log(), "one ADD, two ADD, two DEL, one DEL", "{error}");
        assert!(network.known().unwrap().is_empty());
    }
}

#[tokio::test]
async fn what_a_crash_during_add_leaves_is_found() {
    let mut node = Node::new();
    node.configure("1.0.0");
    let pod = node.pod();
    node.say("two", "ADD.hang", "");
    {
        let network = node.open();
        let cut_short = tokio::time::timeout(Duration::from_secs(1), network.setup(&pod)).await;
        assert!(cut_short.is_err());
    }
    let network = node.open();
    assert_eq!(network.known().unwrap(), std::slice::from_ref(&pod.id));
    assert_eq!(network.result(&pod.id).await.unwrap(), None);
    network.forget(&pod.id).await.unwrap();
    assert_eq!(node.log(), "one ADD, two ADD, two DEL, one DEL");
    assert!(network.known().unwrap().is_empty());

    // A plugin that hangs is killed, and everything is undone.
    let network = node.open_with(Duration::from_secs(1));
    let error = network.setup(&pod).await.unwrap_err();
    assert_eq!(error.kind(), Kind::DeadlineExceeded);
    assert!(network.known().unwrap().is_empty());
}

#[tokio::test]
async fn a_torn_attachment_is_undone_by_the_configuration() {
    let mut node = Node::new();
    node.configure("1.0.0");
    let network = node.open();
    let pod = node.pod();
    network.setup(&pod).await.unwrap();
    node.log();
    let file = node.path("root/cni/attachments").join(pod.id.as_str());
    fs::write(&file, "{\"version\":1").unwrap();
    fs::write(node.path("root/cni/attachments/.new-x"), "").unwrap();
    assert_eq!(network.known().unwrap(), std::slice::from_ref(&pod.id));
    network.teardown(&pod).await.unwrap();
    assert_eq!(node.log(), "two DEL, one DEL");
    assert!(!file.exists());
}

#[tokio::test]
async fn configuration_is_followed_without_a_restart() {
    let mut node = Node::new();
    let network = node.open();
    let status = network.status();
    let missing = format!(
        "cni plugin not initialized: no network config found in {}",
        node.path("conf").display()
    );
    assert!(!status.ready);
    assert_eq!(status.reason, "NetworkPluginNotReady");
    assert_eq!(status.message, missing);
    let pod = node.pod();
    let error = network.setup(&pod).await.unwrap_err();
    assert_eq!(
        (error.kind(), error.to_string()),
        (Kind::Unavailable, missing.clone())
    );
    network.teardown(&pod).await.unwrap();

    // Somebody who cannot wait finds it at once, everybody else within seconds.
    node.configure("1.0.0");
    network.setup(&pod).await.unwrap();
    network.teardown(&pod).await.unwrap();
    fs::remove_dir_all(node.path("conf")).unwrap();
    eventually("not ready again", || !network.status().ready).await;
    fs::create_dir_all(node.path("conf")).unwrap();
    fs::write(node.path("conf/05-bad.conf"), "{").unwrap();
    eventually("the bad file is named", || {
        let message = network.status().message;
        message.starts_with(&missing) && message.contains("05-bad.conf")
    })
    .await;
    node.configure("1.0.0");
    eventually("ready past a bad file", || network.status().ready).await;
    // Now the directory is watched.
    let start = Instant::now();
    fs::remove_file(node.path("conf/10-net.conflist")).unwrap();
    eventually("gone at once", || !network.status().ready).await;
    assert!(
        start.elapsed() < Duration::from_secs(2),
        "inotify did not tell"
    );
}

#[tokio::test]
async fn plugins_are_asked_for_their_status_and_may_collect_garbage() {
    let node = Node::new();
    node.configure("1.1.0");
    let said = json!({"cniVersion": "1.1.0", "code": 50, "msg": "no daemon"});
    node.say("two", "STATUS.fail", &said.to_string());
    let network = node.open();
    assert!(!network.status().ready);
    eventually("the plugin's words", || {
        network.status().message.contains("no daemon")
    })
    .await;
    node.unsay("two", "STATUS.fail");
    eventually("ready", || network.status().ready).await;
    assert!(node.log().starts_with("one STATUS, two STATUS"));
    assert!(!node.environment("one.STATUS").contains("CNI_CONTAINERID"));

    let id = PodId::generate().unwrap();
    network.gc(std::slice::from_ref(&id)).await.unwrap();
    let valid = json!([{"containerID": id, "ifname": "eth0"}]);
    assert_eq!(node.input("two.GC")["cni.dev/valid-attachments"], valid);

    node.say(
        "one",
        "VERSION.out",
        r#"{"supportedVersions":["1.0.0","1.1.0"]}"#,
    );
    assert!(network.plugin_versions().await.is_err());
    node.say("two", "VERSION.out", r#"{"supportedVersions":[]}"#);
    let versions = network.plugin_versions().await.unwrap();
    assert_eq!(
        versions[0],
        ("one".into(), vec!["1.0.0".into(), "1.1.0".into()])
    );
}

#[tokio::test]
async fn pod_ranges_are_kept_and_given_to_plugins_that_ask() {
    let mut node = Node::new();
    let conf = json!({
        "cniVersion": "1.0.0", "name": "net", "type": "one", "capabilities": {"ipRanges": true}
    });
    fs::create_dir_all(node.path("conf")).unwrap();
    fs::write(node.path("conf/1.conf"), conf.to_string()).unwrap();
    let network = node.open();
    for bad in ["x", "10.0.0.0", "10.0.0.0/33", "10.0.0.0/8,,"] {
        assert_eq!(
            network.pod_cidr(bad).await.unwrap_err().kind(),
            Kind::InvalidArgument
        );
    }
    network.pod_cidr("10.0.0.0/24,fd00::/64").await.unwrap();
    network.pod_cidr("").await.unwrap();
    drop(network);
    let network = node.open();
    let pod = node.pod();
    network.setup(&pod).await.unwrap();
    let ranges = json!({"ipRanges": [[{"subnet": "10.0.0.0/24"}], [{"subnet": "fd00::/64"}]]});
    assert_eq!(node.input("one.ADD")["runtimeConfig"], ranges);
    network.teardown(&pod).await.unwrap();
}

#[tokio::test]
async fn an_instance_needs_a_plain_name() {
    let node = Node::new();
    let config = |instance: &str| NetworkConfig {
        cni_conf_dir: node.path("conf"),
        cni_bin_dirs: Vec::new(),
        cache_dir: node.path("root/cni"),
        builtin: Some("10.85.0.0/16".parse().unwrap()),
        instance: instance.into(),
        state_dir: node.path("state"),
        netns_dir: node.path("netns"),
        plugin_timeout: DEFAULT_PLUGIN_TIMEOUT,
    };
    for bad in ["", "a b", "a;b", "a/b"] {
        assert!(Network::open(config(bad)).is_err(), "{bad:?}");
    }
    let network = Network::open(config("x")).unwrap();
    assert!(network.status().ready);
    assert!(network.known().unwrap().is_empty());
    let gone = network.setup(&pod("/nonexistent")).await.unwrap_err();
    assert!(gone.to_string().contains("/nonexistent"), "{gone}");
}

/// Where `hack/tools.sh cni` puts the plugins that clusters use.
fn plugins() -> PathBuf {
    let build = std::env::var_os("BERTH_BUILD_DIR").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../.build"),
        PathBuf::from,
    );
    build.join("bin/cni")
}

/// With `bridge`, `host-local` and `portmap`. The pretended host is the test's own network namespace.
#[test]
fn real_plugins_connect_a_pod() {
    let bin = plugins();
    if !bin.exists() {
        berth_skip::skip!(
            "cni-plugins",
            "{} is missing: run `hack/tools.sh cni`",
            bin.display()
        );
    }
    let mut node = Node::new();
    let host = node.path("host");
    netns::new_pinned(&host).unwrap();
    node.netns.push(host.clone());
    let list = json!({
        "cniVersion": "1.0.0",
        "name": "real",
        "plugins": [
            {"type": "bridge", "bridge": "cni-t0", "isGateway": true, "ipMasq": true,
             "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.88.7.0/24"}]],
                      "dataDir": node.path("ipam"), "routes": [{"dst": "0.0.0.0/0"}]}},
            {"type": "portmap", "capabilities": {"portMappings": true}, "backend": "iptables"}
        ]
    });
    fs::create_dir_all(node.path("conf")).unwrap();
    fs::write(node.path("conf/1.conflist"), list.to_string()).unwrap();
    let mut pod = node.pod();
    pod.port_mappings.push(PortMapping {
        protocol: Protocol::Tcp,
        container_port: 80,
        host_port: 8088,
        host_ip: String::new(),
    });
    let config = NetworkConfig {
        cni_conf_dir: node.path("conf"),
        cni_bin_dirs: vec![bin],
        cache_dir: node.path("root/cni"),
        builtin: None,
        instance: "test".into(),
        state_dir: node.path("state"),
        netns_dir: node.path("netns"),
        plugin_timeout: DEFAULT_PLUGIN_TIMEOUT,
    };
    // Plugins are started by this thread, so they live in its namespace.
    let work = || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let network = Network::open(config.clone()).unwrap();
            let start = Instant::now();
            let found = network.setup(&pod).await.unwrap();
            let added = start.elapsed();
            assert_eq!(found.ips, ["10.88.7.2".parse::<IpAddr>().unwrap()]);
            network.check(&pod.id).await.unwrap();
            assert!(network.plugin_versions().await.unwrap().len() == 2);
            drop(network);
            let network = Network::open(config).unwrap();
            let start = Instant::now();
            network.teardown(&pod).await.unwrap();
            println!(
                "bridge and portmap: ADD {added:?}, DEL {:?}",
                start.elapsed()
            );
            network.setup(&pod).await.unwrap();
            netns::unpin(&pod.netns).unwrap();
            network.teardown(&pod).await.unwrap();
        });
        let leases = fs::read_dir(node.path("ipam/real")).unwrap();
        let names = leases.map(|entry| entry.unwrap().file_name());
        assert!(
            names
                .into_iter()
                .all(|name| !name.to_string_lossy().starts_with("10."))
        );
    };
    netns::run_in(&host, work).unwrap();
}

#[tokio::test]
async fn many_port_mappings_reach_the_plugins() {
    let mut node = Node::new();
    node.configure("1.0.0");
    let network = node.open();
    let mut pod = node.pod();
    pod.port_mappings = (1..=5000)
        .map(|port| PortMapping {
            protocol: Protocol::Sctp,
            container_port: port,
            host_port: port,
            host_ip: "192.0.2.1".into(),
        })
        .collect();
    network.setup(&pod).await.unwrap();
    for what in ["one.ADD", "two.ADD"] {
        let ports = node.input(what)["runtimeConfig"]["portMappings"].clone();
        assert_eq!(ports.as_array().unwrap().len(), 5000);
    }
    network.teardown(&pod).await.unwrap();
    let ports = node.input("one.DEL")["runtimeConfig"]["portMappings"].clone();
    assert_eq!(ports.as_array().unwrap().len(), 5000);
}
