//! The daemon beside others: other daemons, other servers' sockets, other people's files and firewalls.

use std::net::SocketAddr;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use berth_cri_api::v1::*;
use berth_tests::pods::{Pod, container, pod_config};
use berth_tests::runner::{Case, Test};
use berth_tests::runtime::{Instance, Options};
use berth_tests::{ensure_eq, images, paths, test};
use rustix::process::Signal;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

pub(crate) const OWN: &str = "Berth's own ways";

pub(crate) const TESTS: &[Test] = &[
    test!(a_second_daemon_of_one_instance_is_refused).berth_only(OWN),
    test!(files_and_living_sockets_are_never_taken).berth_only(OWN),
    test!(a_lock_that_is_a_link_is_not_followed).berth_only(OWN),
    test!(root_and_state_in_one_place_are_refused).berth_only(OWN),
    test!(a_start_that_fails_leaves_nothing).berth_only(OWN),
    test!(a_start_without_helpers_leaves_nothing)
        .berth_only(OWN)
        .unless(helpers_are_installed),
    test!(sighup_reloads).berth_only(OWN),
    test!(signals_that_mean_nothing_end_nothing).berth_only(OWN),
    test!(a_root_within_anothers_is_refused).berth_only(OWN),
    test!(a_broken_configuration_is_not_taken_up).berth_only(OWN),
    test!(odd_files_as_configuration_are_refused).berth_only(OWN),
    test!(a_cgroup_parent_that_is_a_file_is_refused_and_released)
        .berth_only("containerd leaves the sandbox")
        .unless(systemd_names_slices),
];

fn systemd_names_slices() -> Option<&'static str> {
    berth_tests::machine::has_systemd().then_some("systemd's driver takes slices, not paths")
}

fn helpers_are_installed() -> Option<&'static str> {
    let there = Path::new("/usr/libexec/berth/berth-shim").exists();
    there.then_some("a package has helpers for every daemon here")
}

/// Runs a daemon that is to end by itself; gives what it said.
async fn refused(mut command: tokio::process::Command) -> Result<String> {
    let output = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .output();
    let output = tokio::time::timeout(Duration::from_secs(20), output).await??;
    ensure!(!output.status.success(), "it runs");
    Ok(String::from_utf8_lossy(&output.stderr).into_owned())
}

pub(crate) fn edit(instance: &Instance, from: &str, to: &str) -> Result<()> {
    let file = instance.config_file();
    let text = std::fs::read_to_string(&file)?;
    ensure!(text.contains(from), "{from:?} is not in {text}");
    Ok(std::fs::write(file, text.replace(from, to))?)
}

pub(crate) fn run(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program).args(arguments).output()?;
    ensure!(
        output.status.success(),
        "{program} {arguments:?}: {output:?}"
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

pub(crate) fn mkfifo(path: &Path) -> Result<()> {
    run("mkfifo", &[&path.display().to_string()]).map(drop)
}

/// A pod with a server, and the port of the host that leads to it.
pub(crate) async fn server(case: &Case, instance: &Instance) -> Result<(Pod, SocketAddr)> {
    let port = std::net::TcpListener::bind(("0.0.0.0", 0))?
        .local_addr()?
        .port();
    let mut config = pod_config(instance, "server");
    config.port_mappings = vec![PortMapping {
        container_port: 80,
        host_port: i32::from(port),
        ..PortMapping::default()
    }];
    let pod = Pod::run(case.cri()?, config).await?;
    let web = "mkdir /w; echo hello > /w/index.html; exec httpd -f -p 80 -h /w";
    pod.start(&container(&["sh", "-c", web])).await?;
    Ok((pod, SocketAddr::from(([127, 0, 0, 1], port))))
}

async fn get(address: SocketAddr) -> Result<()> {
    let connect = tokio::net::TcpStream::connect(address);
    let mut stream = tokio::time::timeout(Duration::from_secs(1), connect).await??;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await?;
    ensure!(text.contains("hello"), "{text}");
    Ok(())
}

pub(crate) async fn reached_within(address: SocketAddr, patience: Duration) -> Result<()> {
    let begun = Instant::now();
    loop {
        match get(address).await {
            Ok(()) => return Ok(()),
            Err(error) if begun.elapsed() > patience => return Err(error.context("not reached")),
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

/// The bridge that has the gateway of a pod's subnet.
pub(crate) async fn bridge_of(pod: &Pod) -> Result<String> {
    let routed = run("ip", &["-o", "route", "get", &pod.ip().await?])?;
    let mut words = routed.split_whitespace().skip_while(|word| *word != "dev");
    Ok(words.nth(1).context("no route to the pod")?.to_owned())
}

async fn a_second_daemon_of_one_instance_is_refused(case: &mut Case) -> Result<()> {
    case.start().await?;
    let first = case.first()?;
    let (pod, address) = server(case, first).await?;
    reached_within(address, Duration::from_secs(10)).await?;
    let second = Instance::prepare(case.options())?;
    edit(
        &second,
        &format!("instance = \"{}\"", second.name),
        &format!("instance = \"{}\"", first.name),
    )?;
    let said = refused(second.command()?).await?;
    let pid = first.pid().context("it does not run")?.to_string();
    ensure!(
        said.contains(&format!("instance name {:?}", first.name)) && said.contains(&pid),
        "{said}"
    );
    ensure!(!second.socket().exists(), "it left its socket");
    get(address).await.context("the first one's pod")?;
    bridge_of(&pod).await?;
    pod.remove().await
}

async fn files_and_living_sockets_are_never_taken(case: &mut Case) -> Result<()> {
    let instance = Instance::prepare(case.options())?;
    let admin = instance.folder().join("state/admin.sock");
    for path in [instance.socket(), admin] {
        std::fs::write(&path, "precious")?;
        let said = refused(instance.command()?).await?;
        ensure!(said.contains("a regular file"), "{said}");
        ensure_eq!(std::fs::read_to_string(&path)?, "precious");
        std::fs::remove_file(&path)?;

        std::os::unix::fs::symlink(instance.config_file(), &path)?;
        let said = refused(instance.command()?).await?;
        ensure!(said.contains("a symbolic link"), "{said}");
        ensure!(path.is_symlink(), "the link is gone");
        std::fs::remove_file(&path)?;

        let living = std::os::unix::net::UnixListener::bind(&path)?;
        let said = refused(instance.command()?).await?;
        ensure!(
            said.contains(&format!("(pid {})", std::process::id())),
            "{said}"
        );
        std::os::unix::net::UnixStream::connect(&path).context("its socket was taken")?;
        drop(living);
        // Dead now: the next one takes it.
    }
    let mut instance = instance;
    instance.launch().await?;
    instance.terminate().await?;
    ensure!(!instance.socket().exists(), "the socket stays");

    // One socket, two daemons with everything else their own.
    case.start().await?;
    let other = Instance::prepare(case.options())?;
    let (theirs, ours) = (other.socket(), case.first()?.socket());
    edit(
        &other,
        &theirs.display().to_string(),
        &ours.display().to_string(),
    )?;
    let said = refused(other.command()?).await?;
    ensure!(said.contains("in use by \"berth\""), "{said}");
    case.cri()?.version().await?;
    Ok(())
}

async fn a_lock_that_is_a_link_is_not_followed(case: &mut Case) -> Result<()> {
    let instance = Instance::prepare(case.options())?;
    let precious = instance.folder().join("precious");
    std::fs::write(&precious, "1234 precious bytes")?;
    for dir in ["root", "state"] {
        let lock = instance.folder().join(dir).join("lock");
        let _ = std::fs::remove_file(&lock);
        std::os::unix::fs::symlink(&precious, &lock)?;
        let said = refused(instance.command()?).await?;
        ensure!(said.contains("a symbolic link"), "{said}");
        ensure_eq!(std::fs::read_to_string(&precious)?, "1234 precious bytes");
        std::fs::remove_file(&lock)?;
        std::fs::hard_link(&precious, &lock)?;
        let said = refused(instance.command()?).await?;
        ensure!(said.contains("other names"), "{said}");
        ensure_eq!(std::fs::read_to_string(&precious)?, "1234 precious bytes");
        std::fs::remove_file(&lock)?;
    }
    Ok(())
}

fn entries(dir: &Path) -> Result<Vec<String>> {
    let names = std::fs::read_dir(dir)?
        .map(|entry| entry.map(|e| e.file_name().to_string_lossy().into_owned()));
    Ok(names.collect::<Result<_, _>>()?)
}

async fn root_and_state_in_one_place_are_refused(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    pod.start(&container(&["sleep", "1000"])).await?;
    let first = case.first()?.folder().to_owned();
    let (root, state) = (first.join("root"), first.join("state"));
    let second = Instance::prepare(case.options())?;
    let own = second.folder().join("state").display().to_string();
    let link = second.folder().join("link");
    std::os::unix::fs::symlink(second.folder().join("root"), &link)?;
    let text = std::fs::read_to_string(second.config_file())?;
    for (place, what) in [
        (second.folder().join("root"), "are one directory"),
        (second.folder().join("root/"), "are one directory"),
        (second.folder().join("cni/../root"), "are one directory"),
        (link, "are one directory"),
        (second.folder().join("root/pods/x"), "lies in \"pods\""),
    ] {
        let place = place.display().to_string();
        std::fs::write(second.config_file(), text.replace(&own, &place))?;
        let said = refused(second.command()?).await?;
        ensure!(said.contains(what), "{place}: {said}");
    }
    ensure!(
        entries(&second.folder().join("root"))?.is_empty(),
        "something was made"
    );
    // Whatever a daemon keeps in its directories, the other directory must not lie in it.
    let others = second.folder().join("root").display().to_string();
    for (outer, (inner_key, outer_key)) in [(root, ("state", "root")), (state, ("root", "state"))] {
        for name in entries(&outer)? {
            let inner = outer.join(&name);
            let changed = match inner_key {
                "state" => text
                    .replace(&others, &outer.display().to_string())
                    .replace(&own, &inner.display().to_string()),
                _ => text
                    .replace(&own, &outer.display().to_string())
                    .replace(&others, &inner.display().to_string()),
            };
            std::fs::write(second.config_file(), changed)?;
            let said = refused(second.command()?).await?;
            ensure!(
                said.contains(&format!("`{inner_key}` = "))
                    && said.contains(&format!("`{outer_key}` = ")),
                "{name}: {said}"
            );
        }
    }
    pod.remove().await
}

/// Mounts, cgroups and sockets that have an instance's name or lie in its folder.
fn left_of(instance: &Instance) -> Result<Vec<String>> {
    let folder = instance.folder().display().to_string();
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    let mut left: Vec<String> = mounts
        .lines()
        .filter(|line| line.contains(&folder))
        .map(str::to_owned)
        .collect();
    let mut dirs = vec![
        PathBuf::from("/sys/fs/cgroup"),
        instance.folder().to_owned(),
    ];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
            let (path, kind) = (entry.path(), entry.file_type()?);
            let named = path.starts_with("/sys") && path.to_string_lossy().contains(&instance.name);
            if named || kind.is_socket() {
                left.push(path.display().to_string());
            }
            if kind.is_dir() {
                dirs.push(path);
            }
        }
    }
    left.extend(
        entries(Path::new("/run/berth-instances"))
            .into_iter()
            .flatten()
            .filter(|name| name.contains(&instance.name)),
    );
    Ok(left)
}

async fn a_start_that_fails_leaves_nothing(case: &mut Case) -> Result<()> {
    for (extra, what) in [
        ("pinned = [\"not an image!\"]\n", "not an image"),
        ("\n[cgroup.x]\n", "cgroup.x"),
    ] {
        let options = Options {
            extra: extra.to_owned(),
            ..case.options()
        };
        let instance = Instance::prepare(options)?;
        let said = refused(instance.command()?).await?;
        ensure!(said.contains(what), "{said}");
        ensure_eq!(left_of(&instance)?, Vec::<String>::new());
    }
    // A network whose subnet makes no sense, and a monitors' cgroup that is a file of the kernel.
    for (from, to, what) in [
        ("builtin = \"", "builtin = \"x", "network.builtin"),
        ("shims = \"", "shims = \"tasks\" #", "tasks"),
    ] {
        if to.contains("tasks") && !Path::new("/sys/fs/cgroup/memory/tasks").exists() {
            continue;
        }
        let instance = Instance::prepare(case.options())?;
        edit(&instance, from, to)?;
        let said = refused(instance.command()?).await?;
        ensure!(said.contains(what), "{said}");
        ensure_eq!(left_of(&instance)?, Vec::<String>::new());
    }
    Ok(())
}

/// That shows when the staging directory is a mount already.
async fn a_start_without_helpers_leaves_nothing(case: &mut Case) -> Result<()> {
    let instance = Instance::prepare(case.options())?;
    let alone = instance.folder().join("berth");
    std::fs::copy(paths::berth_dir().join("berth"), &alone)?;
    let mut command = tokio::process::Command::new(&alone);
    command
        .args(["serve", "--config"])
        .arg(instance.config_file());
    let said = refused(command).await?;
    ensure!(said.contains("berth-shim"), "{said}");
    ensure_eq!(left_of(&instance)?, Vec::<String>::new());
    Ok(())
}

async fn logged(case: &Case, what: &str, since: usize) -> Result<String> {
    for _ in 0..100 {
        let log = std::fs::read_to_string(case.first()?.log_file())?;
        if let Some(at) = log[since..].find(what) {
            return Ok(log[since + at..].to_owned());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    bail!("{what:?} is not in the log\n{}", case.first()?.log_tail())
}

fn log_length(case: &Case) -> Result<usize> {
    Ok(std::fs::read_to_string(case.first()?.log_file())?.len())
}

async fn signals_that_mean_nothing_end_nothing(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let running = pod.start(&container(&["sleep", "1000"])).await?;
    let pid = case.first()?.pid();
    for signal in [
        Signal::USR2,
        Signal::ALARM,
        Signal::PIPE,
        Signal::VTALARM,
        Signal::PROF,
        Signal::POWER,
        Signal::XFSZ,
    ] {
        case.first()?.signal(signal)?;
        case.cri()?.status(false).await?;
        ensure_eq!(case.first()?.pid(), pid);
    }
    let before = log_length(case)?;
    case.first()?.signal(Signal::USR1)?;
    let log = logged(case, "asked by SIGUSR1", before).await?;
    let line = log.lines().next().unwrap_or_default();
    for what in ["calls_under_way=", "pods=1", "running=1"] {
        ensure!(line.contains(what), "{line}");
    }
    ensure_eq!(
        running.status().await?.state(),
        ContainerState::ContainerRunning
    );
    // The end that SIGTERM is.
    case.first()?.signal(Signal::QUIT)?;
    logged(case, "stopping; containers go on", before).await?;
    case.instance()?.terminate().await?;
    case.instance()?.launch().await?;
    Ok(())
}

async fn a_root_within_anothers_is_refused(case: &mut Case) -> Result<()> {
    case.start().await?;
    let first = case.first()?.folder().join("root");
    let second = Instance::prepare(case.options())?;
    let own = second.folder().join("root").display().to_string();
    let inner = first.join("second").display().to_string();
    let text = std::fs::read_to_string(second.config_file())?;
    for (place, how) in [
        (inner, "lies in"),
        (
            case.first()?.folder().display().to_string(),
            "has inside it",
        ),
    ] {
        std::fs::write(second.config_file(), text.replace(&own, &place))?;
        let said = refused(second.command()?).await?;
        ensure!(
            said.contains(how) && said.contains("another berth"),
            "{place}: {said}"
        );
    }
    Ok(())
}

const RELOADED: &str = "are reloaded";

async fn sighup_reloads(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let running = pod.start(&container(&["sleep", "1000"])).await?;
    let instance = case.first()?;
    let (pid, empty) = (instance.pid(), instance.folder().join("hosts"));
    let hosts = instance.options.hosts.display().to_string();
    std::fs::create_dir_all(empty.join("broken.example"))?;
    std::fs::write(empty.join("broken.example/hosts.toml"), "server = 7\n")?;
    // Other hosts, another log filter, and a key that waits.
    edit(instance, &hosts, &empty.display().to_string())?;
    edit(
        instance,
        "instance = ",
        "log_level = \"debug\"\ninstance = ",
    )?;
    edit(
        instance,
        "[images]\n",
        "[images]\nmax_concurrent_layers = 2\n",
    )?;
    let before = log_length(case)?;
    case.first()?.signal(Signal::HUP)?;
    let log = logged(case, RELOADED, before).await?;
    ensure!(!log.is_empty(), "nothing is said");
    logged(case, "images.max_concurrent_layers", before).await?;
    logged(case, "broken.example", before).await?;
    ensure_eq!(case.first()?.pid(), pid);
    let error = case.cri()?.pull("broken.example/a:b").await.err();
    let error = error.context("the old hosts are still in use")?;
    ensure!(
        error.message().contains("broken.example/hosts.toml"),
        "{error}"
    );
    let config = case.cri()?.status(true).await?.info;
    let config = config.get("config").context("no configuration")?;
    ensure!(config.contains(&empty.display().to_string()), "{config}");
    // And back, with another one right behind it.
    edit(case.first()?, &empty.display().to_string(), &hosts)?;
    let before = log_length(case)?;
    case.first()?.signal(Signal::HUP)?;
    case.first()?.signal(Signal::HUP)?;
    logged(case, RELOADED, before).await?;
    case.cri()?.pull(images::BUSYBOX).await?;
    ensure_eq!(
        running.status().await?.state(),
        ContainerState::ContainerRunning
    );
    pod.remove().await
}

/// Waits until a program that has just been executed catches SIGHUP, which no program does from its first instruction on.
async fn heeds_hangup(pid: rustix::process::Pid) -> Result<()> {
    let begun = std::time::Instant::now();
    loop {
        let status = std::fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero()))?;
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
        let caught = u64::from_str_radix(caught.context("no SigCgt")?.trim(), 16)?;
        if caught & 1 != 0 {
            return Ok(());
        }
        ensure!(
            begun.elapsed() < Duration::from_secs(10),
            "it catches no SIGHUP"
        );
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

async fn a_broken_configuration_is_not_taken_up(case: &mut Case) -> Result<()> {
    let instance = case.start().await?;
    let file = instance.config_file();
    let text = std::fs::read_to_string(&file)?;
    for broken in [
        format!("no_such_key = 1\n{text}"),
        format!("log_level = \"loud\"\n{text}"),
        text.replace(
            "registry_hosts_dir = \"",
            "registry_hosts_dir = \"not/absolute",
        ),
    ] {
        std::fs::write(&file, broken)?;
        let before = log_length(case)?;
        case.first()?.signal(Signal::HUP)?;
        logged(case, "the old one stays in force", before).await?;
        case.cri()?.pull(images::BUSYBOX).await?;
    }
    std::fs::remove_file(&file)?;
    mkfifo(&file)?;
    let before = log_length(case)?;
    case.first()?.signal(Signal::HUP)?;
    logged(case, "a FIFO", before).await?;
    std::fs::remove_file(&file)?;
    std::fs::write(&file, text)?;
    let before = log_length(case)?;
    case.first()?.signal(Signal::HUP)?;
    logged(case, RELOADED, before).await?;
    // A daemon that is just starting is not ended by it.
    case.instance()?.terminate().await?;
    let mut child = case.first()?.command()?.spawn()?;
    let pid = child
        .id()
        .and_then(|pid| i32::try_from(pid).ok())
        .and_then(rustix::process::Pid::from_raw);
    let pid = pid.context("it has ended")?;
    heeds_hangup(pid).await?;
    rustix::process::kill_process(pid, Signal::HUP)?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    ensure!(child.try_wait()?.is_none(), "it ended");
    rustix::process::kill_process(pid, Signal::TERM)?;
    child.wait().await?;
    case.instance()?.launch().await?;
    Ok(())
}

async fn odd_files_as_configuration_are_refused(case: &mut Case) -> Result<()> {
    let instance = Instance::prepare(case.options())?;
    let drop_ins = instance.folder().join("conf.d");
    std::fs::create_dir(&drop_ins)?;
    mkfifo(&drop_ins.join("a.toml"))?;
    let said = refused(instance.command()?).await?;
    ensure!(said.contains("a.toml") && said.contains("a FIFO"), "{said}");
    std::fs::remove_dir_all(&drop_ins)?;
    std::fs::remove_file(instance.config_file())?;
    std::os::unix::fs::symlink("/dev/zero", instance.config_file())?;
    let said = refused(instance.command()?).await?;
    ensure!(said.contains("a device"), "{said}");

    // A registry's hosts, and the node's credentials.
    let instance = case.start().await?;
    let hosts = instance.folder().join("odd-hosts");
    std::fs::create_dir_all(hosts.join("fifo.example"))?;
    mkfifo(&hosts.join("fifo.example/hosts.toml"))?;
    edit(
        instance,
        &instance.options.hosts.display().to_string(),
        &hosts.display().to_string(),
    )?;
    instance.terminate().await?;
    instance.launch().await?;
    let pull = case.cri()?.pull("fifo.example/a:b");
    let error = tokio::time::timeout(Duration::from_secs(10), pull)
        .await?
        .err();
    let error = error.context("it pulls")?;
    ensure!(error.message().contains("a FIFO"), "{error}");
    Ok(())
}

async fn a_cgroup_parent_that_is_a_file_is_refused_and_released(case: &mut Case) -> Result<()> {
    case.start().await?;
    for parent in [
        "/cgroup.procs",
        "/cgroup.procs/pod1",
        "/memory.limit_in_bytes/a/b",
    ] {
        if parent.contains("memory")
            && !Path::new("/sys/fs/cgroup/memory/memory.limit_in_bytes").exists()
        {
            continue;
        }
        let mut config = pod_config(case.first()?, "file");
        config.linux.get_or_insert_default().cgroup_parent = parent.to_owned();
        let error = case.cri()?.run_pod(&config).await.err().context(parent)?;
        ensure!(
            error.message().contains("is a file of the kernel"),
            "{parent}: {error}"
        );
        ensure_eq!(error.code(), tonic::Code::InvalidArgument);
        ensure!(
            case.cri()?.list_pods(None).await?.is_empty(),
            "{parent}: the pod stays"
        );
    }
    Ok(())
}
