//! Networks that others disturb: rules and bridges taken away, odd files and answers of plugins, ports by the thousand.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use berth_cri_api::v1::*;
use berth_tests::pods::{Pod, pod_config};
use berth_tests::runner::{Case, Test};
use berth_tests::runtime::{Instance, Net, Options};
use berth_tests::{ensure_eq, test};

use crate::beside::{OWN, bridge_of, mkfifo, reached_within, run, server};

pub(crate) const TESTS: &[Test] = &[
    test!(a_bridge_that_went_while_the_daemon_was_dead_is_put_back).berth_only(OWN),
    test!(rules_and_bridge_that_somebody_takes_away_come_back).berth_only(OWN),
    test!(pods_come_and_go_while_rules_are_taken_away).berth_only(OWN),
    test!(host_ports_of_pods_that_are_gone_are_taken_away).berth_only(OWN),
    test!(many_host_ports_come_and_go).berth_only("the plugins take minutes for them"),
    test!(odd_files_in_the_cni_directory_hold_nobody_up)
        .berth_only("containerd waits for the FIFO"),
    test!(cni_results_that_leave_things_out_are_taken),
];

async fn a_bridge_that_went_while_the_daemon_was_dead_is_put_back(case: &mut Case) -> Result<()> {
    case.start().await?;
    let (pod, address) = server(case, case.first()?).await?;
    reached_within(address, Duration::from_secs(10)).await?;
    let bridge = bridge_of(&pod).await?;
    let table = format!("berth-{}", case.first()?.name);
    case.instance()?.kill().await?;
    run("ip", &["link", "del", &bridge])?;
    run("nft", &["delete", "table", "ip", &table])?;
    case.instance()?.launch().await?;
    // Before the first call is answered; a forwarding table of a bridge port takes its moment.
    reached_within(address, Duration::from_secs(4)).await?;
    let cri = case.cri()?.clone();
    Pod { cri, ..pod }.remove().await
}

async fn rules_and_bridge_that_somebody_takes_away_come_back(case: &mut Case) -> Result<()> {
    case.start().await?;
    let (pod, address) = server(case, case.first()?).await?;
    reached_within(address, Duration::from_secs(10)).await?;
    let bridge = bridge_of(&pod).await?;
    let table = format!("berth-{}", case.first()?.name);
    let takes: [(&str, &[&str]); 5] = [
        ("nft", &["delete", "table", "ip", &table]),
        ("nft", &["flush", "table", "ip", &table]),
        ("ip", &["link", "set", &bridge, "down"]),
        ("ip", &["addr", "flush", "dev", &bridge]),
        ("ip", &["link", "del", &bridge]),
    ];
    for (program, arguments) in takes {
        run(program, arguments)?;
        reached_within(address, Duration::from_secs(8))
            .await
            .with_context(|| format!("after {program} {arguments:?}"))?;
    }
    let log = std::fs::read_to_string(case.first()?.log_file())?;
    ensure!(
        log.contains("it was put back"),
        "nothing is said of it: {log}"
    );
    // What cannot be put back makes the node not ready, with the reason.
    run("ip", &["link", "del", &bridge])?;
    run(
        "ip",
        &[
            "link",
            "add",
            &bridge,
            "type",
            "veth",
            "peer",
            "name",
            "bt-in-the-way",
        ],
    )?;
    let told = network_becomes(case, false).await;
    run("ip", &["link", "del", &bridge])?;
    let told = told?;
    ensure!(
        told.contains(&bridge) && told.contains("not a bridge"),
        "{told}"
    );
    network_becomes(case, true).await?;
    reached_within(address, Duration::from_secs(8)).await?;
    pod.remove().await
}

async fn network_becomes(case: &Case, wanted: bool) -> Result<String> {
    for _ in 0..100 {
        let status = case.cri()?.status(false).await?.status;
        let conditions = status.context("no status")?.conditions;
        let network = conditions.iter().find(|one| one.r#type == "NetworkReady");
        let network = network.context("no NetworkReady")?;
        if network.status == wanted {
            return Ok(network.message.clone());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    bail!("NetworkReady does not become {wanted}")
}

/// What a kubelet would send for a pod with one host port, on an address at which nobody else on the machine is asked.
fn with_host_port(instance: &Instance, name: &str, port: i32) -> PodSandboxConfig {
    let mut config = pod_config(instance, name);
    config.port_mappings = vec![PortMapping {
        protocol: Protocol::Tcp.into(),
        container_port: 80,
        host_port: port,
        host_ip: "127.9.8.7".into(),
    }];
    config
}

/// The host ports that are published, by what nft shows: each with the pod that has it.
fn published(table: &str) -> Result<Vec<String>> {
    let text = run("nft", &["list", "table", "ip", table])?;
    Ok(text
        .split(['{', ',', '}'])
        .filter(|part| part.contains(" comment "))
        .map(|part| part.trim().to_owned())
        .collect())
}

async fn pods_come_and_go_while_rules_are_taken_away(case: &mut Case) -> Result<()> {
    case.start().await?;
    let table = format!("berth-{}", case.first()?.name);
    let kept = with_host_port(case.first()?, "kept", 20_000);
    let kept = Pod::run(case.cri()?, kept).await?;
    let end = Instant::now() + Duration::from_secs(8);
    let mut comers = tokio::task::JoinSet::new();
    for number in 1..=4 {
        let name = format!("comer-{number}");
        let config = with_host_port(case.first()?, &name, 20_000 + number);
        let cri = case.cri()?.clone();
        comers.spawn(async move {
            let mut count = 0_u32;
            while Instant::now() < end {
                Pod::run(&cri, config.clone()).await?.remove().await?;
                count += 1;
            }
            anyhow::Ok(count)
        });
    }
    let taker = tokio::spawn(async move {
        let mut taken = 0_u32;
        while Instant::now() < end {
            tokio::time::sleep(Duration::from_secs(1)).await;
            // Nobody may have put it back yet.
            taken += u32::from(run("nft", &["delete", "table", "ip", &table]).is_ok());
        }
        taken
    });
    let mut count = 0;
    while let Some(comer) = comers.join_next().await {
        count += comer?.context("a pod that came while the rules went")?;
    }
    let taken = taker.await?;
    println!("{count} pods came and went while the rules were taken away {taken} times");
    ensure!(taken >= 4 && count >= 8, "{taken} times, {count} pods");
    let table = format!("berth-{}", case.first()?.name);
    only(&table, &[(20_000, &kept.id)]).await?;
    kept.remove().await
}

/// Waits until exactly these host ports of these pods are published.
async fn only(table: &str, wanted: &[(u16, &str)]) -> Result<()> {
    let begun = Instant::now();
    loop {
        let there = published(table).unwrap_or_default();
        let is_there = |(port, pod): &(u16, &str)| {
            there
                .iter()
                .any(|one| one.contains(&port.to_string()) && one.contains(pod))
        };
        if there.len() == wanted.len() && wanted.iter().all(is_there) {
            return Ok(());
        }
        ensure!(
            begun.elapsed() < Duration::from_secs(8),
            "published: {there:?}, wanted: {wanted:?}"
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// A firewall that loads what it saved brings them back.
async fn host_ports_of_pods_that_are_gone_are_taken_away(case: &mut Case) -> Result<()> {
    case.start().await?;
    let table = format!("berth-{}", case.first()?.name);
    let folder = case.first()?.folder().to_owned();
    let pod = async |case: &Case, name: &str, port| {
        let config = with_host_port(case.first()?, name, port);
        Pod::run(case.cri()?, config).await
    };
    let (kept, gone) = (
        pod(case, "kept", 20_000).await?,
        pod(case, "gone", 20_001).await?,
    );
    let saved = folder.join("saved.nft");
    std::fs::write(&saved, run("nft", &["list", "table", "ip", &table])?)?;
    let saved = saved.display().to_string();
    let load = || {
        run("nft", &["delete", "table", "ip", &table])?;
        run("nft", &["-f", &saved])
    };
    gone.remove().await?;
    load()?;
    only(&table, &[(20_000, &kept.id)]).await?;
    // A pod that comes before anybody has looked has its port.
    load()?;
    let next = pod(case, "next", 20_001).await?;
    only(&table, &[(20_000, &kept.id), (20_001, &next.id)]).await?;
    // With no pod left at all.
    next.remove().await?;
    kept.remove().await?;
    load()?;
    only(&table, &[]).await
}

async fn many_host_ports_come_and_go(case: &mut Case) -> Result<()> {
    case.start().await?;
    let table = format!("berth-{}", case.first()?.name);
    for (count, protocol) in [
        (257, Protocol::Tcp),
        (1000, Protocol::Udp),
        (5000, Protocol::Sctp),
    ] {
        let mut config = pod_config(case.first()?, "ports");
        config.port_mappings = (0..count)
            .map(|number| PortMapping {
                protocol: protocol.into(),
                container_port: 1 + number,
                host_port: 20_000 + number,
                // Nobody else on the machine is asked there.
                host_ip: "127.9.8.7".into(),
            })
            .collect();
        let pod = Pod::run(case.cri()?, config).await?;
        ensure_eq!(published(&table)?.len(), usize::try_from(count)?);
        if count == 1000 {
            case.instance()?.kill().await?;
            run("nft", &["delete", "table", "ip", &table])?;
            case.instance()?.launch().await?;
            ensure_eq!(published(&table)?.len(), usize::try_from(count)?);
        }
        let cri = case.cri()?.clone();
        cri.stop_pod(&pod.id).await?;
        ensure_eq!(published(&table)?.len(), 0);
        cri.remove_pod(&pod.id).await?;
    }
    Ok(())
}

async fn odd_files_in_the_cni_directory_hold_nobody_up(case: &mut Case) -> Result<()> {
    let options = Options {
        net: Net::Cni,
        ..case.options()
    };
    case.start_with(options).await?;
    case.instance()?.terminate().await?;
    let folder = case.first()?.folder().join("cni");
    mkfifo(&folder.join("00-fifo.conflist"))?;
    std::os::unix::fs::symlink("/dev/zero", folder.join("01-endless.conf"))?;
    let took = case.instance()?.launch().await?;
    ensure!(took < Duration::from_secs(10), "it took {took:?}");
    let pod = Pod::run(case.cri()?, pod_config(case.first()?, "x")).await?;
    pod.remove().await?;
    // Alone, they are why there is no network.
    let real = folder.join("10-bt.conflist");
    let text = std::fs::read(&real)?;
    std::fs::remove_file(&real)?;
    let told = network_becomes(case, false).await?;
    ensure!(
        told.contains("a FIFO") && told.contains("a device"),
        "{told}"
    );
    std::fs::write(&real, text)?;
    network_becomes(case, true).await.map(drop)
}

async fn cni_results_that_leave_things_out_are_taken(case: &mut Case) -> Result<()> {
    let options = Options {
        net: Net::Cni,
        ..case.options()
    };
    let instance = case.start_with(options).await?;
    let (plugin, answer) = (
        instance.plugins().join("odd"),
        instance.folder().join("answer"),
    );
    std::fs::write(
        &plugin,
        format!(
            "#!/bin/sh\ncat > /dev/null\n[ $CNI_COMMAND = ADD ] && cat {}\nexit 0\n",
            answer.display()
        ),
    )?;
    std::fs::set_permissions(&plugin, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let list = instance.folder().join("cni/10-bt.conflist");
    let kept = std::fs::read(&list)?;
    let write = |version: &str| {
        let list_of_one =
            serde_json::json!({"cniVersion": version, "name": "odd", "plugins": [{"type": "odd"}]});
        std::fs::write(&list, list_of_one.to_string())
    };
    instance.terminate().await?;
    for (version, result) in [
        (
            "1.0.0",
            r#"{"cniVersion":"1.0.0","interfaces":[{"name":"eth0"}],"ips":[{"address":"10.9.8.7/24","interface":0}]}"#,
        ),
        (
            "0.3.1",
            r#"{"cniVersion":"0.3.1","ips":[{"address":"10.9.8.7/24"}],"routes":null,"dns":null}"#,
        ),
        (
            "0.4.0",
            r#"{"cniVersion":"0.4.0","interfaces":[{"name":"eth0","sandbox":null}],"ips":[{"version":"4","address":"10.9.8.7/24","interface":0}],"extra":{}}"#,
        ),
        (
            "1.0.0",
            r#"{"CNIVersion":"1.0.0","Interfaces":[{"Name":"veth0"},{"Name":"eth0"}],"IPs":[{"Address":"10.9.8.7/24","Interface":1}]}"#,
        ),
    ] {
        write(version)?;
        std::fs::write(&answer, result)?;
        case.instance()?.launch().await?;
        let pod = Pod::run(case.cri()?, pod_config(case.first()?, "odd"))
            .await
            .context(result)?;
        ensure_eq!(pod.ip().await?, "10.9.8.7");
        pod.remove().await?;
        case.instance()?.terminate().await?;
    }
    std::fs::write(&list, kept)?;
    case.instance()?.launch().await?;
    Ok(())
}
