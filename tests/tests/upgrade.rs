//! From the last version whose records had other forms to this one, with pods that run. `make test-upgrade` builds
//! that version and names its programs in `$BERTH_TEST_OLD`.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use berth_cri_api::v1::*;
use berth_tests::cri::{Cri, image_spec};
use berth_tests::pods::{Ctr, Pod, container, mount, pod_config, script, use_host_network};
use berth_tests::runner::{Case, Test};
use berth_tests::runtime::{Instance, Net, Options};
use berth_tests::{ensure_eq, images, process, test};

/// The folder with the programs of the older version.
const OLD: &str = "BERTH_TEST_OLD";

pub(crate) const TESTS: &[Test] = &[
    test!(ten_pods_go_on_under_this_version).berth_only("it is about Berth's versions"),
    test!(pods_of_plugins_go_on_under_this_version).berth_only("it is about Berth's versions"),
    test!(the_older_version_does_not_start_again).berth_only("it is about Berth's versions"),
    test!(an_empty_node_can_go_back).berth_only("it is about Berth's versions"),
];

/// Whether there is an older version.
pub(crate) fn is_wanted() -> bool {
    std::env::var_os(OLD).is_some()
}

/// Its daemon; the others lie beside it.
fn old_program() -> Result<Option<PathBuf>> {
    let dir = std::env::var_os(OLD).map(PathBuf::from).context(OLD)?;
    Ok(Some(dir.join("berth")))
}

/// Starts the older version.
async fn old(case: &mut Case, options: Options) -> Result<&mut Instance> {
    let program = old_program()?;
    case.start_with(Options { program, ..options }).await
}

/// Ends the daemon, and starts this version in its place.
async fn upgrade(case: &mut Case) -> Result<Cri> {
    let instance = case.instance()?;
    instance.terminate().await?;
    instance.options.program = None;
    instance.launch().await?;
    let cri = instance.cri()?.clone();
    // What the older version has not: it is no leak.
    let own = own_files(instance.folder(), &instance.name)?;
    case.know(&own)?;
    Ok(cri)
}

/// What this version keeps for itself.
fn own_files(folder: &Path, name: &str) -> Result<Vec<PathBuf>> {
    let records = folder.join("root/records");
    let lock = Path::new("/run/berth-instances").join(format!("{name}.lock"));
    let mut files = vec![
        lock,
        records.join("pods"),
        records.join("containers"),
        records,
    ];
    for program in std::fs::read_dir(folder.join("state/bin"))? {
        let dir = program?.path();
        for file in std::fs::read_dir(&dir)? {
            files.push(file?.path());
        }
        files.push(dir);
    }
    Ok(files)
}

/// A container and what must not change about it.
struct Known {
    container: Ctr,
    status: ContainerStatus,
    /// Of its first process, its pid and its monitor's.
    pids: (u32, u32),
}

impl Known {
    async fn look(container: Ctr) -> Result<Self> {
        let pid = container.pid().await?;
        let monitor = process::process(pid).context("no process")?.parent;
        ensure_eq!(
            process::process(monitor).context("no monitor")?.name,
            "berth-shim"
        );
        Ok(Self {
            status: container.status().await?,
            pids: (pid, monitor),
            container,
        })
    }

    /// It runs as it did, under the monitor that it had.
    async fn goes_on(&mut self, cri: &Cri) -> Result<()> {
        self.container.cri = cri.clone();
        let (pid, monitor) = self.pids;
        ensure!(process::alive(pid), "process {pid} is gone");
        ensure_eq!(process::process(pid).context("no process")?.parent, monitor);
        ensure_eq!(self.container.pid().await?, pid);
        let status = self.container.status().await?;
        ensure_eq!(status, self.status);
        Ok(())
    }
}

/// Pod number `number`: each is another kind.
async fn pod(instance: &Instance, number: u32) -> Result<Pod> {
    let mut config = pod_config(instance, &format!("pod-{number}"));
    match number {
        1 => use_host_network(&mut config),
        2 => {
            config.port_mappings = vec![PortMapping {
                protocol: Protocol::Tcp.into(),
                container_port: 80,
                host_port: 28_180,
                host_ip: String::new(),
            }];
        }
        _ => {}
    }
    Pod::run(instance.cri()?, config).await
}

/// Its container.
fn of_pod(instance: &Instance, number: u32) -> Result<ContainerConfig> {
    let mut config = script("while :; do echo on; sleep 0.2; done");
    match number {
        3 => {
            let volume = instance.folder().join("volume");
            std::fs::create_dir_all(&volume)?;
            config.mounts = vec![mount(&volume, "/data", false)];
        }
        4 => (config.tty, config.stdin) = (true, true),
        5 => {
            config.envs = vec![KeyValue {
                key: "NAME".into(),
                value: "wert ü".into(),
            }];
        }
        6 => config.image = Some(image_spec(images::CONFIGURED)),
        _ => {}
    }
    Ok(config)
}

async fn ten_pods_go_on_under_this_version(case: &mut Case) -> Result<()> {
    let options = case.options();
    let instance = old(case, options).await?;
    instance.cri()?.pull(images::CONFIGURED).await?;
    let (mut pods, mut running) = (Vec::new(), Vec::new());
    for number in 0..10 {
        let pod = pod(instance, number).await?;
        let container = pod.start(&of_pod(instance, number)?).await?;
        running.push(Known::look(container).await?);
        pods.push(pod);
    }
    let exited = pods[7].start(&script("exit 3")).await?;
    exited.wait().await?;
    let mut waiting = pods[8].create(&script("echo late")).await?;
    let (of_exited, of_waiting) = (exited.status().await?, waiting.status().await?);
    let before = instance.cri()?.list_images().await?;
    let mut statuses = Vec::new();
    for pod in &pods {
        statuses.push(pod.cri.pod_status(&pod.id).await?);
    }

    let cri = upgrade(case).await?;
    ensure_eq!(cri.list_images().await?, before);
    for (pod, before) in pods.iter_mut().zip(&statuses) {
        pod.cri = cri.clone();
        ensure_eq!(&cri.pod_status(&pod.id).await?, before);
    }
    ensure_eq!(cri.container_status(&exited.id).await?, of_exited);
    ensure_eq!(cri.container_status(&waiting.id).await?, of_waiting);
    for known in &mut running {
        known.goes_on(&cri).await?;
    }
    used(&running).await?;
    waiting.cri = cri.clone();
    cri.start(&waiting.id).await?;
    waiting.wait().await?;
    ensure_eq!(waiting.stdout()?, "late\n");
    // A container of this version beside those of the older one.
    let beside = pods[0].start(&script("exec sleep 4321")).await?;
    ensure_eq!(beside.sh("echo new").await?, "new\n");
    all_end(&cri, &pods, &running).await
}

/// Execs into all of them, and their logs go on.
async fn used(running: &[Known]) -> Result<()> {
    for (number, known) in running.iter().enumerate() {
        let container = &known.container;
        ensure_eq!(container.sh("echo $((6 * 7))").await?, "42\n");
        let slow = container.cri.exec(&container.id, &["sleep", "60"], 1).await;
        ensure!(slow.is_err(), "pod {number}: an exec without end");
        let lines = container.lines()?.len();
        container.cri.reopen_log(&container.id).await?;
        for _ in 0..100 {
            if container.lines()?.len() > lines {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        ensure!(
            container.lines()?.len() > lines,
            "pod {number}: a silent log"
        );
    }
    ensure_eq!(running[5].container.sh("echo $NAME").await?, "wert ü\n");
    ensure!(
        Path::new("/proc")
            .join(running[3].pids.0.to_string())
            .join("root/data")
            .is_dir()
    );
    Ok(())
}

/// Stops and removes everything, and nothing is left: the runner looks too.
async fn all_end(cri: &Cri, pods: &[Pod], running: &[Known]) -> Result<()> {
    for known in running {
        let id = &known.container.id;
        cri.stop(id, 1).await?;
        let status = cri.container_status(id).await?;
        ensure_eq!(status.state(), ContainerState::ContainerExited);
        ensure_eq!(status.exit_code, 137);
        ensure!(!process::alive(known.pids.0), "it lives on");
        cri.remove(id).await?;
        ensure!(!process::alive(known.pids.1), "its monitor lives on");
    }
    for pod in pods {
        pod.remove().await?;
    }
    ensure!(
        cri.list_containers(None).await?.is_empty(),
        "something is left"
    );
    Ok(())
}

async fn pods_of_plugins_go_on_under_this_version(case: &mut Case) -> Result<()> {
    let options = Options {
        net: Net::Cni,
        ..case.options()
    };
    let instance = old(case, options).await?;
    let mut pod = pod(instance, 2).await?;
    let mut known = Known::look(pod.start(&script("exec sleep 4321")).await?).await?;
    let status = pod.cri.pod_status(&pod.id).await?;
    let cri = upgrade(case).await?;
    pod.cri = cri.clone();
    ensure_eq!(cri.pod_status(&pod.id).await?, status);
    known.goes_on(&cri).await?;
    ensure_eq!(known.container.sh("echo $((6 * 7))").await?, "42\n");
    pod.remove().await
}

/// It would take the records for damaged and end every pod, so it must not come so far.
async fn the_older_version_does_not_start_again(case: &mut Case) -> Result<()> {
    let options = case.options();
    let instance = old(case, options).await?;
    let pod = pod(instance, 2).await?;
    let mut known = Known::look(pod.start(&script("exec sleep 4321")).await?).await?;
    // Without images nothing but the records keeps it from starting.
    for has_images in [true, false] {
        let cri = upgrade(case).await?;
        known.goes_on(&cri).await?;
        if !has_images {
            for image in cri.list_images().await? {
                cri.remove_image(&image.id).await?;
            }
        }
        let instance = case.instance()?;
        instance.kill().await?;
        instance.options.program = old_program()?;
        for _ in 0..2 {
            let refused = instance.launch().await.err().context("it started")?;
            let told = format!("{refused:#}");
            ensure!(told.contains("the daemon ended"), "{told}");
            ensure!(process::alive(known.pids.0), "the container was ended");
        }
        instance.options.program = None;
        instance.launch().await?;
        let cri = instance.cri()?.clone();
        known.goes_on(&cri).await?;
        ensure_eq!(known.container.sh("echo $((6 * 7))").await?, "42\n");
    }
    Ok(())
}

/// As the package's script leaves it: without pods, containers and images, and what keeps older versions out removed.
async fn an_empty_node_can_go_back(case: &mut Case) -> Result<()> {
    let options = case.options();
    let instance = old(case, options).await?;
    pod(instance, 2).await?.remove().await?;
    let cri = upgrade(case).await?;
    for image in cri.list_images().await? {
        cri.remove_image(&image.id).await?;
    }
    let instance = case.instance()?;
    instance.terminate().await?;
    let root = instance.folder().join("root");
    for kind in ["pods", "containers"] {
        ensure_eq!(
            std::fs::read_dir(root.join("records").join(kind))?.count(),
            0
        );
        std::fs::remove_file(root.join(kind))?;
    }
    instance.options.program = old_program()?;
    instance.launch().await?;
    let cri = instance.cri()?.clone();
    cri.pull(images::BUSYBOX).await?;
    let pod = pod(instance, 2).await?;
    let mut known = Known::look(pod.start(&container(&["sleep", "4321"])).await?).await?;
    // And on again, with what it made meanwhile.
    let cri = upgrade(case).await?;
    known.goes_on(&cri).await?;
    Ok(())
}
