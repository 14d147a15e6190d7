//! Networks: Berth's own, the CNI plugins, and none.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use berth_cri_api::v1::*;
use berth_tests::cri::image_spec;
use berth_tests::pods::{Pod, container, pod_config, script};
use berth_tests::runner::{Case, Test};
use berth_tests::runtime::{Net, Options};
use berth_tests::{ensure_eq, images, test};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

pub(crate) const TESTS: &[Test] = &[
    test!(builtin_addresses_differ_and_reach_each_other),
    test!(builtin_host_ports),
    test!(builtin_shared_localhost),
    test!(builtin_many_at_once),
    test!(cni_addresses_and_reach),
    test!(cni_host_ports),
    test!(cni_delete_without_the_plugin),
    test!(cni_delete_under_another_configuration)
        .berth_only("containerd asks the plugins that are configured now"),
    test!(cni_failing_plugin_fails_the_pod)
        .berth_only("containerd leaves the first plugin's lease and rule"),
    test!(no_configuration_is_not_ready)
        .berth_only("containerd leaves an empty folder for namespaces"),
    test!(configuration_that_comes_later_is_seen),
    test!(loopback_is_up),
];

async fn with(case: &mut Case, net: Net) -> Result<()> {
    let options = Options {
        net,
        ..case.options()
    };
    case.start_with(options).await.map(drop)
}

async fn new_pod(case: &mut Case, name: &str) -> Result<Pod> {
    let instance = case.instance()?;
    Pod::run(instance.cri()?, pod_config(instance, name)).await
}

fn web() -> ContainerConfig {
    container(&[
        "sh",
        "-c",
        "mkdir /w; echo hello > /w/index.html; exec httpd -f -p 80 -h /w",
    ])
}

/// GET / with patience, since a server needs a moment.
async fn get(address: SocketAddr) -> Result<String> {
    let mut last = anyhow::anyhow!("never tried");
    for _ in 0..50 {
        match get_once(address).await {
            Ok(text) => return Ok(text),
            Err(error) => last = error,
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Err(last.context(format!("no answer from {address}")))
}

async fn get_once(address: SocketAddr) -> Result<String> {
    let connect = TcpStream::connect(address);
    let mut stream = tokio::time::timeout(Duration::from_secs(2), connect).await??;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await?;
    ensure!(text.contains("200 OK"), "{text}");
    Ok(text)
}

async fn address(pod: &Pod) -> Result<SocketAddr> {
    Ok(SocketAddr::new(pod.ip().await?.parse::<IpAddr>()?, 80))
}

async fn reach(case: &mut Case) -> Result<()> {
    let server = new_pod(case, "server").await?;
    let client = new_pod(case, "client").await?;
    ensure!(
        server.ip().await? != client.ip().await?,
        "two pods have one address"
    );
    server.start(&web()).await?;
    ensure!(
        get(address(&server).await?).await?.contains("hello"),
        "the host cannot reach the pod"
    );
    let fetch = format!("wget -q -T 5 -O - http://{}/", server.ip().await?);
    ensure_eq!(client.output_of(&script(&fetch)).await?, "hello\n");
    // hairpin: a pod reaches itself by its own address
    let own = script(&fetch);
    ensure_eq!(server.output_of(&own).await?, "hello\n");
    let shown = client.output_of(&script("ip -o -4 addr show eth0")).await?;
    ensure!(
        shown.contains(&client.ip().await?),
        "eth0 has another address: {shown}"
    );
    Ok(())
}

async fn builtin_addresses_differ_and_reach_each_other(case: &mut Case) -> Result<()> {
    with(case, Net::Builtin).await?;
    reach(case).await
}

async fn cni_addresses_and_reach(case: &mut Case) -> Result<()> {
    with(case, Net::Cni).await?;
    reach(case).await
}

fn free_port() -> Result<u16> {
    Ok(std::net::TcpListener::bind(("0.0.0.0", 0))?
        .local_addr()?
        .port())
}

async fn host_ports(case: &mut Case) -> Result<()> {
    let port = free_port()?;
    let mut config = pod_config(case.instance()?, "ports");
    config.port_mappings = vec![
        PortMapping {
            container_port: 80,
            host_port: i32::from(port),
            ..PortMapping::default()
        },
        PortMapping {
            container_port: 81,
            host_port: 0,
            ..PortMapping::default()
        },
    ];
    let pod = Pod::run(case.cri()?, config).await?;
    pod.start(&web()).await?;
    ensure!(
        get(SocketAddr::from(([127, 0, 0, 1], port)))
            .await?
            .contains("hello"),
        "loopback"
    );
    let own = host_address()?;
    ensure!(
        get(SocketAddr::new(own, port)).await?.contains("hello"),
        "the host's address {own}"
    );
    pod.remove().await?;
    ensure!(
        get_once(SocketAddr::from(([127, 0, 0, 1], port)))
            .await
            .is_err(),
        "the port is still open"
    );
    Ok(())
}

/// An address of this machine that is not the loopback's; connecting a UDP socket sends nothing.
fn host_address() -> Result<IpAddr> {
    let socket = std::net::UdpSocket::bind(("0.0.0.0", 0))?;
    match socket.connect(("192.0.2.1", 9)) {
        Ok(()) => Ok(socket.local_addr()?.ip()),
        Err(_) => Ok(IpAddr::from([127, 0, 0, 1])),
    }
}

async fn builtin_host_ports(case: &mut Case) -> Result<()> {
    with(case, Net::Builtin).await?;
    host_ports(case).await
}

async fn cni_host_ports(case: &mut Case) -> Result<()> {
    with(case, Net::Cni).await?;
    host_ports(case).await
}

async fn builtin_shared_localhost(case: &mut Case) -> Result<()> {
    with(case, Net::Builtin).await?;
    let pod = new_pod(case, "pair").await?;
    pod.start(&web()).await?;
    let fetch =
        "for i in 1 2 3 4 5; do wget -q -O - http://127.0.0.1/ && exit; sleep 0.2; done; exit 1";
    ensure_eq!(pod.output_of(&script(fetch)).await?, "hello\n");
    Ok(())
}

async fn builtin_many_at_once(case: &mut Case) -> Result<()> {
    with(case, Net::Builtin).await?;
    let instance = case.instance()?;
    let cri = instance.cri()?.clone();
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..20 {
        let (cri, config) = (cri.clone(), pod_config(instance, &format!("p{number}")));
        tasks.spawn(async move { Pod::run(&cri, config).await?.ip().await });
    }
    let mut addresses = std::collections::BTreeSet::new();
    while let Some(result) = tasks.join_next().await {
        addresses.insert(result??);
    }
    ensure_eq!(addresses.len(), 20);
    Ok(())
}

/// The plugins vanish (an upgrade that went wrong): Stop must say so, keep the pod, and succeed when they are back.
async fn cni_delete_without_the_plugin(case: &mut Case) -> Result<()> {
    with(case, Net::Cni).await?;
    let pod = new_pod(case, "orphan").await?;
    let plugin = case.instance()?.plugins().join("bridge");
    let program = std::fs::read_link(&plugin)?;
    std::fs::remove_file(&plugin)?;
    let error = pod.cri.stop_pod(&pod.id).await.err();
    let error = error.context("it stopped without the plugin")?;
    ensure!(error.message().contains("bridge"), "{error}");
    ensure_eq!(pod.cri.list_pods(None).await?.len(), 1);
    std::os::unix::fs::symlink(program, &plugin)?;
    pod.cri.stop_pod(&pod.id).await?;
    pod.remove().await
}

/// Another configuration is for other pods: DEL runs with the one that was kept at ADD.
async fn cni_delete_under_another_configuration(case: &mut Case) -> Result<()> {
    with(case, Net::Cni).await?;
    let pod = new_pod(case, "orphan").await?;
    let file = case.instance()?.folder().join("cni/10-bt.conflist");
    let text = std::fs::read_to_string(&file)?;
    std::fs::write(&file, text.replace("\"bridge\"", "\"no-such-plugin\""))?;
    fails_in_time(case, "no-such-plugin").await?;
    pod.cri.stop_pod(&pod.id).await?;
    std::fs::write(&file, text)?;
    pod.remove().await
}

/// New pods fail, with an error that says `what`, as soon as the changed configuration is read.
async fn fails_in_time(case: &mut Case, what: &str) -> Result<()> {
    let begun = Instant::now();
    loop {
        match new_pod(case, "x").await {
            Ok(pod) => pod.remove().await?,
            Err(error) => {
                let error = format!("{error:#}");
                ensure!(error.contains(what), "the error does not name it: {error}");
                return Ok(());
            }
        }
        ensure!(begun.elapsed() < Duration::from_secs(10), "pods still run");
    }
}

async fn cni_failing_plugin_fails_the_pod(case: &mut Case) -> Result<()> {
    with(case, Net::Cni).await?;
    let instance = case.instance()?;
    let file = instance.folder().join("cni/10-bt.conflist");
    let text = std::fs::read_to_string(&file)?;
    // The second plugin of the chain fails: what the first one did must be undone.
    std::fs::write(&file, text.replace("\"portmap\"", "\"no-such-plugin\""))?;
    fails_in_time(case, "no-such-plugin").await?;
    std::fs::write(&file, text)?;
    let begun = Instant::now();
    loop {
        match new_pod(case, "again").await {
            Ok(pod) => return pod.remove().await,
            Err(error) if begun.elapsed() > Duration::from_secs(10) => return Err(error),
            Err(_) => {}
        }
    }
}

async fn network_ready(case: &Case) -> Result<(bool, String)> {
    let status = case
        .cri()?
        .status(false)
        .await?
        .status
        .context("no status")?;
    let condition = status
        .conditions
        .iter()
        .find(|one| one.r#type == "NetworkReady");
    let condition = condition.context("no NetworkReady")?;
    Ok((
        condition.status,
        format!("{} {}", condition.reason, condition.message),
    ))
}

async fn no_configuration_is_not_ready(case: &mut Case) -> Result<()> {
    with(case, Net::None).await?;
    let (ready, why) = network_ready(case).await?;
    ensure!(!ready && !why.trim().is_empty(), "ready {ready}, {why:?}");
    let instance = case.instance()?;
    let mut config = pod_config(instance, "x");
    ensure!(
        instance.cri()?.run_pod(&config).await.is_err(),
        "a pod without a network runs"
    );
    berth_tests::pods::use_host_network(&mut config);
    Pod::run(case.cri()?, config)
        .await
        .context("host network needs no network")?
        .remove()
        .await
}

async fn configuration_that_comes_later_is_seen(case: &mut Case) -> Result<()> {
    with(case, Net::None).await?;
    let instance = case.instance()?;
    let list = serde_json::json!({
        "cniVersion": "1.0.0",
        "name": instance.name,
        "plugins": [{ "type": "loopback" }],
    });
    std::fs::write(
        instance.folder().join("cni/10-late.conflist"),
        list.to_string(),
    )?;
    for _ in 0..60 {
        if network_ready(case).await?.0 {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    bail!("the network is not ready six seconds after its configuration came")
}

async fn loopback_is_up(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let mut config = script("ip -o addr show lo; ping -c 1 -W 2 127.0.0.1 > /dev/null && echo up");
    config.image = Some(image_spec(images::BUSYBOX));
    let text = pod.output_of(&config).await?;
    ensure!(
        text.contains("127.0.0.1/8") && text.ends_with("up\n"),
        "{text}"
    );
    Ok(())
}
