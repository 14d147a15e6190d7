//! Where a container's mounts, masks and devices end up, whatever its image has prepared.

use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use berth_cri_api::v1::*;
use berth_tests::cri::image_spec;
use berth_tests::images::files;
use berth_tests::machine::Mounted;
use berth_tests::oci::{Flavor, Pack, Recipe, Tree};
use berth_tests::pods::{Pod, mount, script, security, unique};
use berth_tests::runner::{Case, Test};
use berth_tests::{ensure_eq, test};
use tonic::Code;

pub(crate) const TESTS: &[Test] = &[
    test!(link_of_the_image_into_dev).berth_only("containerd makes its nodes in the volume"),
    test!(order_of_mounts_behind_links).berth_only("containerd orders by what is written"),
    test!(dangling_links_of_the_image),
    test!(dangling_link_into_a_volume).berth_only("containerd makes the target in the volume"),
    test!(masked_path_is_a_link),
    test!(what_cannot_be_masked_fails).berth_only("containerd mounts over its root"),
    test!(dev_of_the_host),
    test!(dev_of_the_host_with_a_terminal)
        .berth_only("runc opens the host's /dev/console, which the device rules refuse"),
    test!(dev_of_the_host_is_shared).berth_only("containerd's mounts travel to the host"),
    test!(mounts_below_dev),
    test!(mount_on_dev_null).berth_only("runc refuses it"),
    test!(device_outside_dev),
    test!(device_where_something_is),
    test!(devices_in_the_place_of_the_containers_own),
    test!(devices_that_cannot_be_given).berth_only("runc says nothing"),
    test!(directories_in_the_place_of_nodes),
    test!(links_into_processes).berth_only("runc follows them"),
    test!(odd_masked_paths)
        .berth_only("to runc a way back out of what does not exist leads nowhere"),
    test!(terminals_that_cannot_be_had).berth_only("the words are Berth's"),
    test!(working_directories_that_cannot_be).berth_only("the words are Berth's"),
    test!(directories_of_devices_are_ordinary),
    test!(tun_is_allowed),
    test!(failed_mounts_say_why).berth_only("the words are Berth's"),
];

/// An image of busybox and these symbolic links (path, target).
async fn image(case: &Case, links: &[(&str, &str)]) -> Result<String> {
    let mut tree = Tree::default();
    let mut dirs: Vec<&Path> = links
        .iter()
        .filter_map(|(path, _)| Path::new(path).parent())
        .flat_map(Path::ancestors)
        .filter(|dir| !dir.as_os_str().is_empty())
        .collect();
    dirs.sort_unstable();
    dirs.dedup();
    for dir in dirs {
        tree.dir(dir.to_str().context("no text")?, 0o755)?;
    }
    for (path, target) in links {
        tree.symlink(path, target)?;
    }
    tree.file(&format!("mark-{}", unique()), 0o644, b"")?;
    let recipe = Recipe {
        layers: vec![
            files::busybox_tree()?.layer(Pack::Gzip)?,
            tree.layer(Pack::Gzip)?,
        ],
        ..Recipe::default()
    };
    let tag = format!("t{}-{}", std::process::id(), unique());
    let client = case.shared().registry.client();
    client
        .push("destinations", &[&tag], &recipe.build(Flavor::Oci)?)
        .await?;
    Ok(format!("berth.test/destinations:{tag}"))
}

/// A pod, and a config of a container in it from an image with these links.
async fn prepared(
    case: &mut Case,
    links: &[(&str, &str)],
    text: &str,
) -> Result<(Pod, ContainerConfig)> {
    let image = image(case, links).await?;
    let pod = case.pod().await?;
    pod.cri.pull(&image).await?;
    let mut config = script(text);
    config.image = Some(image_spec(&image));
    Ok((pod, config))
}

fn volume(case: &mut Case, name: &str) -> Result<PathBuf> {
    let dir = case.instance()?.folder().join(name);
    std::fs::create_dir(&dir)?;
    std::fs::write(dir.join(name), name)?;
    Ok(dir)
}

async fn refused(pod: &Pod, config: &ContainerConfig) -> Result<tonic::Status> {
    let answer = pod.cri.create(&pod.id, config, &pod.config).await;
    answer.err().context("the container was created")
}

/// For another container of the same pod, with a log of its own.
fn again(config: &mut ContainerConfig) {
    let metadata = config.metadata.get_or_insert_default();
    metadata.attempt += 1;
    config.log_path = format!("again-{}.log", metadata.attempt);
}

fn names(dir: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

async fn link_of_the_image_into_dev(case: &mut Case) -> Result<()> {
    let links = [
        ("data", "/dev"),
        ("a/b", "../../sys"),
        ("chain", "/c2"),
        ("c2", "proc"),
        ("whole", "."),
    ];
    let (pod, mut config) = prepared(case, &links, "true").await?;
    let volume = volume(case, "v")?;
    for (path, place) in [
        ("/data", "/dev"),
        ("/data/shm", "/dev/shm"),
        ("/a/b", "/sys"),
        ("/chain", "/proc"),
        ("/whole", "root"),
    ] {
        config.mounts = vec![mount(&volume, path, false)];
        let error = refused(&pod, &config).await?;
        ensure_eq!(error.code(), Code::InvalidArgument);
        let text = error.message();
        ensure!(text.contains(path) && text.contains(place), "{text}");
        ensure_eq!(names(&volume)?, ["v"]);
    }
    // A device is no other thing.
    config.mounts.clear();
    config.devices = vec![device("/dev/null", "/data/one")];
    let error = refused(&pod, &config).await?;
    ensure!(error.message().contains("/dev/one"), "{error}");
    Ok(())
}

async fn order_of_mounts_behind_links(case: &mut Case) -> Result<()> {
    let links = [
        ("var/run", "/run"),
        ("app", "opt/deep/app"),
        ("opt/deep/app/x", "y"),
    ];
    let text = "cat /run/run /run/secrets/tok/tok /app/app /opt/deep/app/in/in";
    let (pod, mut config) = prepared(case, &links, text).await?;
    for (name, path) in [
        ("in", "/app/in"),
        ("tok", "/var/run/secrets/tok"),
        ("app", "/opt/deep/app"),
        ("run", "/run"),
    ] {
        let source = volume(case, name)?;
        config.mounts.push(mount(&source, path, false));
    }
    ensure_eq!(pod.output_of(&config).await?, "runtokappin");
    again(&mut config);
    config.mounts.reverse();
    ensure_eq!(pod.output_of(&config).await?, "runtokappin");
    Ok(())
}

async fn dangling_links_of_the_image(case: &mut Case) -> Result<()> {
    let links = [
        ("etc/resolv.conf", "../run/systemd/resolve/stub-resolv.conf"),
        ("etc/localtime", "/usr/share/zoneinfo/Mars"),
        ("etc/hosts", "/gone/hosts"),
        ("one", "two"),
        ("two", "../../../three"),
        ("way", "/nowhere/yet"),
    ];
    let text = "cat /etc/localtime /one /way/on; cat /etc/resolv.conf >/dev/null && grep -q localhost /etc/hosts && \
                test -f /run/systemd/resolve/stub-resolv.conf -a -f /three -a -f /nowhere/yet/on && echo fine";
    let (pod, mut config) = prepared(case, &links, text).await?;
    let file = volume(case, "f")?.join("f");
    let paths = ["/etc/localtime", "/one", "/way/on"];
    config.mounts = paths.iter().map(|path| mount(&file, path, true)).collect();
    for read_only in [false, true] {
        again(&mut config);
        security(&mut config).readonly_rootfs = read_only;
        ensure_eq!(pod.output_of(&config).await?, "ffffine\n");
    }
    for path in [
        "/run/systemd/resolve/stub-resolv.conf",
        "/three",
        "/nowhere/yet",
        "/gone",
    ] {
        ensure!(!Path::new(path).exists(), "{path} was made on the host");
    }
    Ok(())
}

async fn dangling_link_into_a_volume(case: &mut Case) -> Result<()> {
    let links = [("etc/resolv.conf", "/vol/resolv.conf"), ("loop", "loop")];
    let (pod, mut config) = prepared(case, &links, "true").await?;
    let volume = volume(case, "v")?;
    std::os::unix::fs::symlink("missing", volume.join("link"))?;
    config.mounts = vec![mount(&volume, "/vol", false)];
    let error = refused(&pod, &config).await?;
    ensure_eq!(error.code(), Code::InvalidArgument);
    ensure!(
        error.message().contains("/vol/resolv.conf") && error.message().contains("in a volume"),
        "{error}"
    );
    config.mounts = vec![
        mount(&volume, "/v2", false),
        mount(&volume, "/v2/link", false),
    ];
    let error = refused(&pod, &config).await?;
    ensure!(error.message().contains("/v2/missing"), "{error}");
    config.mounts = vec![mount(&volume, "/loop", false)];
    let error = refused(&pod, &config).await?;
    ensure!(error.message().contains("circle"), "{error}");
    ensure_eq!(names(&volume)?, ["link", "v"]);
    Ok(())
}

async fn masked_path_is_a_link(case: &mut Case) -> Result<()> {
    let links = [
        ("etc/alias", "group"),
        ("dirs", "/usr/keep"),
        ("usr/keep/inside", "x"),
        ("etc/dangling", "/no/such"),
        ("ro", "/usr/keep"),
    ];
    let text = "cat /etc/group /etc/alias | wc -c; ls /usr/keep /dirs/ | grep -c inside; cat /vol/v; \
                touch /vol/new && echo new";
    let (pod, mut config) = prepared(case, &links, text).await?;
    let volume = volume(case, "v")?;
    config.mounts = vec![mount(&volume, "/vol", false)];
    security(&mut config).masked_paths = [
        "/etc/alias",
        "/dirs",
        "/etc/dangling",
        "/no/such/path",
        "/vol/v",
    ]
    .map(str::to_owned)
    .to_vec();
    let running = pod.start(&config).await?;
    running.wait().await?;
    ensure_eq!(running.stdout()?, "0\n0\nnew\n");
    ensure_eq!(std::fs::read(volume.join("v"))?, b"v");
    let mut config = script("touch /usr/keep/new || echo read-only");
    config.image = Some(image_spec(&image(case, &links).await?));
    pod.cri
        .pull(&config.image.clone().unwrap_or_default().image)
        .await?;
    config.metadata.get_or_insert_default().attempt = 1;
    security(&mut config).readonly_paths = vec!["/ro".into(), "/etc/dangling".into()];
    ensure_eq!(pod.output_of(&config).await?, "read-only\n");
    Ok(())
}

async fn what_cannot_be_masked_fails(case: &mut Case) -> Result<()> {
    let links = [("up", ".."), ("loop", "loop")];
    let (pod, mut config) = prepared(case, &links, "true").await?;
    // Below a file there is nothing.
    security(&mut config).masked_paths = vec!["/etc/passwd/below".into()];
    pod.output_of(&config).await?;
    again(&mut config);
    for (path, why) in [
        ("/up", "root itself"),
        ("/", "root itself"),
        ("/proc/1/root/etc", "is a link into a process"),
        ("/loop", "lead in a circle"),
    ] {
        security(&mut config).masked_paths = vec![path.into()];
        let error = refused(&pod, &config).await?;
        ensure_eq!(error.code(), Code::InvalidArgument);
        let text = error.message();
        ensure!(
            text.contains(&format!("mask {path}")) && text.contains(why),
            "{text}"
        );
    }
    security(&mut config).masked_paths.clear();
    security(&mut config).readonly_paths = vec!["/loop".into()];
    let error = refused(&pod, &config).await?;
    ensure!(error.message().contains("make /loop read-only"), "{error}");
    Ok(())
}

fn device(host: &str, inside: &str) -> Device {
    Device {
        host_path: host.into(),
        container_path: inside.into(),
        permissions: "rwm".into(),
    }
}

/// A folder that looks like a `/dev`, so that the machine's own is not written to. It is a mount of its own: `/tmp` may
/// be one on which no device opens.
fn stand_in(case: &mut Case) -> Result<(PathBuf, Mounted)> {
    let dev = case.instance()?.folder().join("dev");
    std::fs::create_dir(&dev)?;
    let flags = rustix::mount::MountFlags::empty();
    rustix::mount::mount("tmpfs", &dev, "tmpfs", flags, Some(c"mode=755"))?;
    let mounted = Mounted(dev.clone());
    std::fs::create_dir(dev.join("shm"))?;
    for (name, minor) in [("null", 3), ("zero", 5), ("urandom", 9)] {
        rustix::fs::mknodat(
            rustix::fs::CWD,
            dev.join(name),
            rustix::fs::FileType::CharacterDevice,
            rustix::fs::Mode::from_raw_mode(0o666),
            rustix::fs::makedev(1, minor),
        )?;
    }
    std::os::unix::fs::symlink("/proc/self/fd", dev.join("fd"))?;
    Ok((dev, mounted))
}

async fn dev_of_the_host(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let (dev, _mounted) = stand_in(case)?;
    let log = volume(case, "log")?.join("log");
    for (attempt, privileged) in [false, true].into_iter().enumerate() {
        let mut pod_config = pod.config.clone();
        let text = "ls /dev; cat /dev/termination-log; echo x > /dev/shm/x && ls /dev/shm; \
                    head -c 1 /dev/zero | wc -c";
        let mut config = script(text);
        config.metadata.get_or_insert_default().attempt = u32::try_from(attempt)?;
        config.mounts = vec![
            mount(&log, "/dev/termination-log", false),
            mount(&dev, "/dev", false),
        ];
        config.devices = vec![device("/dev/zero", "/dev/zero")];
        security(&mut config).privileged = privileged;
        let pod = if privileged {
            let metadata = pod_config.metadata.get_or_insert_default();
            metadata.name = "privileged".into();
            let linux = pod_config.linux.get_or_insert_default();
            linux.security_context.get_or_insert_default().privileged = true;
            Pod::run(&pod.cri, pod_config).await?
        } else {
            Pod::run(&pod.cri, {
                pod_config.metadata.get_or_insert_default().name = "plain".into();
                pod_config
            })
            .await?
        };
        ensure_eq!(
            pod.output_of(&config).await?,
            "fd\nnull\nshm\ntermination-log\nurandom\nzero\nlogx\n1\n"
        );
        pod.remove().await?;
    }
    // Only the mount point was made; the pod's shared memory is its own.
    ensure_eq!(
        names(&dev)?,
        ["fd", "null", "shm", "termination-log", "urandom", "zero"]
    );
    ensure!(
        std::fs::symlink_metadata(dev.join("null"))?
            .file_type()
            .is_char_device()
    );
    ensure!(names(&dev.join("shm"))?.is_empty());
    Ok(())
}

async fn dev_of_the_host_with_a_terminal(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let mut config = script("tty; test -c /dev/console && echo console > /dev/console");
    config.tty = true;
    config.mounts = vec![mount(Path::new("/dev"), "/dev", false)];
    let had_console = Path::new("/dev/console").exists();
    let running = pod.start(&config).await?;
    let status = running.wait().await?;
    let text = running.stdout()?;
    if !had_console {
        std::fs::remove_file("/dev/console")?;
    }
    ensure!(status.exit_code == 0, "{text}");
    ensure!(
        text.starts_with("/dev/pts/") && text.contains("console"),
        "{text}"
    );
    Ok(())
}

/// What the container has inside a Bidirectional volume does not come to the host.
async fn dev_of_the_host_is_shared(case: &mut Case) -> Result<()> {
    use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_change};
    let pod = case.pod().await?;
    let (dev, mounted) = stand_in(case)?;
    let log = volume(case, "log")?.join("log");
    mount_change(&dev, MountPropagationFlags::SHARED)?;
    let inner = dev.join("late");
    let result = async {
        let mut config = script("exec sleep 4321");
        config.mounts = vec![
            Mount {
                propagation: MountPropagation::PropagationBidirectional.into(),
                ..mount(&dev, "/dev", false)
            },
            mount(&log, "/dev/termination-log", false),
        ];
        let running = pod.start(&config).await?;
        ensure_eq!(std::fs::read(dev.join("termination-log"))?, b"");
        let table = std::fs::read_to_string("/proc/self/mountinfo")?;
        let here = dev.to_str().context("no text")?;
        ensure_eq!(table.lines().filter(|line| line.contains(here)).count(), 1);
        std::fs::create_dir(&inner)?;
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("tmpfs", &inner, "tmpfs", flags, None)?;
        std::fs::write(inner.join("file"), "late")?;
        ensure_eq!(running.sh("cat /dev/late/file").await?, "late");
        Ok(())
    }
    .await;
    let _not_mounted = rustix::mount::unmount(&inner, UnmountFlags::DETACH);
    drop(mounted);
    result
}

async fn mounts_below_dev(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let file = volume(case, "f")?.join("f");
    let list = ["urandom", "tty", "new/deep"];
    for (attempt, name) in list.into_iter().enumerate() {
        let mut config = script(&format!("cat /dev/{name}"));
        config.metadata.get_or_insert_default().attempt = u32::try_from(attempt)?;
        config.mounts = vec![mount(&file, &format!("/dev/{name}"), false)];
        ensure_eq!(pod.output_of(&config).await?, "f");
    }
    let folder = volume(case, "d")?;
    for (attempt, name) in ["shm", "fd", "mqueue"].into_iter().enumerate() {
        let mut config = script(&format!("ls /dev/{name}"));
        config.metadata.get_or_insert_default().attempt = 100 + u32::try_from(attempt)?;
        config.mounts = vec![mount(&folder, &format!("/dev/{name}"), false)];
        ensure_eq!(pod.output_of(&config).await?, "d\n");
    }
    ensure_eq!(std::fs::read(&file)?, b"f");
    Ok(())
}

/// What has no input gets a null device all the same, in an exec too.
async fn mount_on_dev_null(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let file = volume(case, "f")?.join("f");
    let mut config = script("cat; cat /dev/null; echo; exec sleep 4321");
    config.mounts = vec![mount(&file, "/dev/null", false)];
    let running = pod.start(&config).await?;
    running.wait_for_log("f").await?;
    ensure_eq!(running.stdout()?, "f\n");
    ensure_eq!(running.sh("cat; cat /dev/null").await?, "f");
    ensure_eq!(std::fs::read(&file)?, b"f");
    Ok(())
}

async fn device_outside_dev(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let text = "stat -c '%F %t:%T' /opt/deep/zero /zero; head -c 2 /opt/deep/zero | wc -c";
    let mut config = script(text);
    config.devices = vec![
        device("/dev/zero", "/opt/deep/zero"),
        device("/dev/zero", "/zero"),
    ];
    let node = "character special file 1:5\n".repeat(2);
    ensure_eq!(pod.output_of(&config).await?, format!("{node}2\n"));
    Ok(())
}

/// What the image has in the place of a device stays.
async fn device_where_something_is(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let mut config = script("head -c 5 /etc/group; test -d /bin && echo dir");
    config.devices = vec![
        device("/dev/zero", "/etc/group"),
        device("/dev/zero", "/bin"),
    ];
    ensure_eq!(pod.output_of(&config).await?, "root:dir\n");
    Ok(())
}

/// What is asked for is what the container sees, not what every container has.
async fn devices_in_the_place_of_the_containers_own(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let mut config = script("cd /dev; stat -c %t:%T random zero tty full console x");
    config.devices = vec![
        device("/dev/urandom", "/dev/random"),
        device("/dev/null", "/dev/zero"),
        device("/dev/null", "/dev/tty"),
        device("/dev/zero", "/dev/full"),
        device("/dev/null", "/dev/console"),
        device("/dev/zero", "/dev/x"),
    ];
    let want = "1:9\n1:3\n1:3\n1:5\n1:3\n1:5\n";
    ensure_eq!(pod.output_of(&config).await?, want);
    let mut privileged = pod.config.clone();
    privileged.metadata.get_or_insert_default().name = "privileged".into();
    let linux = privileged.linux.get_or_insert_default();
    linux.security_context.get_or_insert_default().privileged = true;
    let pod = Pod::run(&pod.cri, privileged).await?;
    security(&mut config).privileged = true;
    again(&mut config);
    ensure_eq!(pod.output_of(&config).await?, want);
    pod.remove().await
}

async fn devices_that_cannot_be_given(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    for path in [
        "/dev/pts/z",
        "/dev/pts/ptmx",
        "/dev/shm",
        "/etc/hosts",
        "/proc/uptime",
    ] {
        let mut config = script("true");
        config.devices = vec![device("/dev/zero", path)];
        let error = refused(&pod, &config).await?;
        ensure_eq!(error.code(), Code::InvalidArgument);
        ensure!(error.message().contains("ask for another path"), "{error}");
    }
    // The same path as on the host, where none is said.
    let mut config = script("stat -c %t:%T /dev/full /dev/null");
    config.devices = vec![device("/dev/full", ""), device("/dev/zero", "/dev/null")];
    ensure_eq!(pod.output_of(&config).await?, "1:7\n1:5\n");
    Ok(())
}

async fn directories_in_the_place_of_nodes(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let folder = volume(case, "d")?;
    let places = ["urandom", "tty", "full", "random", "zero"];
    let mut config = script("cd /dev; ls urandom tty full random zero; echo x > null");
    let list = places.map(|name| mount(&folder, &format!("/dev/{name}"), false));
    config.mounts = list.to_vec();
    let text = pod.output_of(&config).await?;
    ensure_eq!(text.matches("d\n").count(), places.len());
    again(&mut config);
    config.mounts = vec![mount(&folder, "/dev/null", false)];
    if let Ok(id) = pod.cri.create(&pod.id, &config, &pod.config).await {
        ensure!(pod.cri.start(&id).await.is_err(), "without a null device");
    }
    Ok(())
}

async fn links_into_processes(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let volume = volume(case, "v")?;
    for path in [
        "/proc/self/root/x",
        "/proc/1/cwd/x",
        "/proc/thread-self/fd/0",
    ] {
        let mut config = script("true");
        config.mounts = vec![mount(&volume, path, false)];
        let by_mount = refused(&pod, &config).await?;
        config.mounts.clear();
        config.devices = vec![device("/dev/zero", path)];
        for error in [by_mount, refused(&pod, &config).await?] {
            ensure_eq!(error.code(), Code::InvalidArgument);
            let text = error.message();
            ensure!(text.contains("is a link into a process"), "{text}");
        }
    }
    ensure_eq!(names(&volume)?, ["v"]);
    Ok(())
}

async fn odd_masked_paths(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let mut config = script("cat /etc/group | wc -c; touch /x && echo writable");
    security(&mut config).masked_paths = ["", "/no/such", "/nowhere/../etc/group"]
        .map(str::to_owned)
        .to_vec();
    security(&mut config).readonly_paths = vec![String::new()];
    ensure_eq!(pod.output_of(&config).await?, "0\nwritable\n");
    Ok(())
}

/// For a container and for a command in one.
async fn terminals_that_cannot_be_had(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let mut config = script("true");
    config.tty = true;
    security(&mut config).masked_paths = vec!["/dev/pts".into()];
    let error = refused(&pod, &config).await?;
    ensure_eq!(error.code(), Code::InvalidArgument);
    ensure!(error.message().contains("at /dev/pts"), "{error}");
    let (dev, _mounted) = stand_in(case)?;
    std::fs::create_dir(dev.join("pts"))?;
    std::os::unix::fs::symlink("gone", dev.join("console"))?;
    security(&mut config).masked_paths.clear();
    let pts = || mount(Path::new("/dev/pts"), "/dev/pts", false);
    config.mounts = vec![mount(&dev, "/dev", false), pts()];
    let error = refused(&pod, &config).await?;
    ensure_eq!(error.code(), Code::InvalidArgument);
    let text = error.message();
    ensure!(
        text.contains("/dev/console") && text.contains("/dev/gone"),
        "{text}"
    );
    ensure!(!names(&dev)?.contains(&"gone".to_owned()), "it was made");
    Ok(())
}

async fn working_directories_that_cannot_be(case: &mut Case) -> Result<()> {
    let links = [("dangling", "gone"), ("loop", "loop")];
    let (pod, mut config) = prepared(case, &links, "pwd").await?;
    for read_only in [false, true] {
        security(&mut config).readonly_rootfs = read_only;
        again(&mut config);
        for (path, words) in [
            ("/dangling", "leads to nothing"),
            ("/dangling/below", "leads to nothing"),
            ("/loop", "in a circle"),
            ("/etc/passwd", "not a directory"),
        ] {
            config.working_dir = path.into();
            let error = refused(&pod, &config).await?;
            ensure_eq!(error.code(), Code::InvalidArgument);
            let text = error.message();
            ensure!(text.contains(path) && text.contains(words), "{text}");
        }
        config.working_dir = "/new/one".into();
        ensure_eq!(pod.output_of(&config).await?, "/new/one\n");
    }
    Ok(())
}

async fn directories_of_devices_are_ordinary(case: &mut Case) -> Result<()> {
    case.start().await?;
    let mut pod_config = berth_tests::pods::pod_config(case.instance()?, "privileged");
    let linux = pod_config.linux.get_or_insert_default();
    linux.security_context.get_or_insert_default().privileged = true;
    let pod = Pod::run(case.cri()?, pod_config).await?;
    let mut config = script(
        "find /dev -xdev -type d ! -path /dev/shm ! -path /dev/mqueue -exec stat -c '%a %n' {} + | grep -v ^755; stat -c %a /dev/my /opt/my",
    );
    security(&mut config).privileged = true;
    config.devices = vec![
        device("/dev/null", "/dev/my/null"),
        device("/dev/null", "/opt/my/null"),
    ];
    ensure_eq!(pod.output_of(&config).await?, "755\n755\n");
    let host = std::fs::metadata("/dev")?.permissions().mode() & 0o777;
    ensure_eq!(host, 0o755);
    pod.remove().await
}

async fn tun_is_allowed(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    // What is allowed opens (and says EBADFD to a read before it is set up); what is not is refused.
    let text = "mkdir /t; mknod /t/tun c 10 200; mknod /t/fuse c 10 229; \
                (: < /t/tun) 2>/dev/null && echo tun; (: < /t/fuse) 2>/dev/null || echo no fuse";
    ensure_eq!(pod.output_of(&script(text)).await?, "tun\nno fuse\n");
    Ok(())
}

async fn failed_mounts_say_why(case: &mut Case) -> Result<()> {
    let (pod, mut config) = prepared(case, &[("loop", "loop")], "true").await?;
    let folder = volume(case, "v")?;
    let file = folder.join("v");
    let read_only = Mount {
        readonly: true,
        ..mount(&folder, "/ro", true)
    };
    let long = format!("/{}", "n".repeat(300));
    for (mounts, words) in [
        (
            vec![mount(&folder, "/etc/passwd", false)],
            "/etc/passwd is no directory",
        ),
        (vec![mount(&file, "/etc", false)], "/etc is a directory"),
        (
            vec![mount(&file, "/etc/passwd/x", false)],
            "not a directory",
        ),
        (vec![mount(&folder, &long, false)], "longer than"),
        (vec![read_only, mount(&file, "/ro/new", false)], "read-only"),
        (vec![mount(&folder, "/proc/sys", false)], "procfs"),
    ] {
        config.mounts = mounts;
        let path = config
            .mounts
            .last()
            .context("no mount")?
            .container_path
            .clone();
        let error = refused(&pod, &config).await?;
        let text = error.message();
        ensure!(error.code() == Code::InvalidArgument, "{error}");
        ensure!(text.contains(words) && text.contains(&path), "{text}");
        ensure!(text.contains(folder.to_str().context("no text")?), "{text}");
        ensure!(!text.contains("syscall"), "{text}");
    }
    ensure_eq!(names(&folder)?, ["v"]);
    Ok(())
}
