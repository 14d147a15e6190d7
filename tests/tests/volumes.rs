//! What containers write to besides their layers: the volumes that images declare, and the files of their pod.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use berth_cri_api::v1::*;
use berth_tests::cri::{Cri, image_spec};
use berth_tests::images::files;
use berth_tests::oci::{Flavor, Pack, Recipe, Tree};
use berth_tests::pods::{Ctr, Pod, container, mount, pod_config, script, security};
use berth_tests::runner::{Case, Test};
use berth_tests::runtime::Instance;
use berth_tests::{ensure_eq, test};
use serde_json::{Map, Value, json};
use tonic::Code;

const OURS: &str = "Berth's own folders are looked at";
const FILES: &str = "containerd keeps these files on the node's own file system";

pub(crate) const TESTS: &[Test] = &[
    test!(a_volume_has_what_the_image_has_there),
    test!(volumes_are_where_links_lead).berth_only("containerd makes one for each spelling"),
    test!(mounts_of_the_pod_replace_volumes_and_go_into_them),
    test!(links_and_devices_make_what_they_name_in_volumes),
    test!(volumes_that_cannot_be_are_refused).berth_only("containerd mounts over /proc and /dev"),
    test!(volumes_are_counted_found_again_and_removed).berth_only(OURS),
    test!(a_volume_that_was_being_filled_is_swept).berth_only(OURS),
    test!(stopping_a_pod_does_not_wait_for_a_volume).berth_only(OURS),
    test!(a_container_cannot_fill_the_nodes_state).berth_only(FILES),
    test!(files_of_a_pod_that_were_unmounted_come_back).berth_only(FILES),
    test!(files_that_cannot_be_changed_are_removed).berth_only(FILES),
];

const MIB: usize = 1 << 20;

/// Pushes and pulls busybox with more in it and these volumes.
pub(crate) async fn image(
    case: &mut Case,
    cri: &Cri,
    name: &str,
    more: Tree,
    volumes: &[&str],
) -> Result<String> {
    let layers = vec![
        files::busybox_tree()?.layer(Pack::Plain)?,
        // Small, whatever it unpacks to: it is held by the registry's client too.
        more.layer(Pack::Zstd)?,
    ];
    let recipe = Recipe {
        layers,
        cmd: vec!["sh".to_owned()],
        ..Recipe::default()
    };
    let volumes: Map<String, Value> = volumes
        .iter()
        .map(|path| ((*path).to_owned(), json!({})))
        .collect();
    let image = recipe.build(Flavor::Oci)?.changed(|config, _| {
        config["config"]["Volumes"] = Value::Object(volumes);
    })?;
    let client = case.shared().registry.client();
    client.push(name, &["1"], &image).await?;
    let name = format!("berth.test/{name}:1");
    cri.pull(&name).await?;
    Ok(name)
}

fn run(image: &str, text: &str) -> ContainerConfig {
    let mut config = script(text);
    config.image = Some(image_spec(image));
    config
}

fn sleeper(image: &str) -> ContainerConfig {
    run(image, "exec sleep 4321")
}

/// Type and target of what is mounted in a container, as it sees it.
async fn mounted(container: &Ctr) -> Result<Vec<(String, String)>> {
    let table = container.sh("cat /proc/mounts").await?;
    let lines = table.lines().map(|line| {
        let mut words = line.split(' ').skip(1);
        let target = words.next().unwrap_or_default().to_owned();
        (target, words.next().unwrap_or_default().to_owned())
    });
    Ok(lines.collect())
}

fn is_mounted(table: &[(String, String)], path: &str) -> usize {
    table.iter().filter(|(target, _)| target == path).count()
}

fn tree() -> Result<Tree> {
    let mut tree = Tree::default();
    tree.dir("data", 0o751)?
        .dir("data/in", 0o700)?
        .file_of("data/in/file", 0o604, (7, 8), b"content\n")?
        .file("data/setuid", 0o4755, b"x")?
        .file("data/one", 0o755, b"y")?
        .hard_link("data/again", "data/one")?
        .symlink("data/link", "in/file")?
        .symlink("data/out", "/etc/passwd")?
        .symlink("alias", "data")?
        .symlink("dangling", "/not/there")?;
    Ok(tree)
}

async fn a_volume_has_what_the_image_has_there(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let image = image(case, &pod.cri, "volume", tree()?, &["/data"]).await?;
    let mut config = sleeper(&image);
    security(&mut config).readonly_rootfs = true;
    let first = pod.start(&config).await?;
    let seen = first
        .sh("cd /data; stat -c '%n %a %u:%g %h' . in in/file setuid one again; readlink link; readlink out; cat in/file")
        .await?;
    let wanted = ". 751 0:0 3\nin 700 0:0 2\nin/file 604 7:8 1\nsetuid 4755 0:0 1\n\
                  one 755 0:0 2\nagain 755 0:0 2\nin/file\n/etc/passwd\ncontent\n";
    ensure_eq!(seen, wanted);
    let table = mounted(&first).await?;
    let kind = table.iter().find(|(target, _)| target == "/data");
    ensure!(kind.is_some_and(|(_, kind)| kind != "overlay"), "{table:?}");
    first
        .sh("echo mine > /data/in/file; touch /data/new")
        .await?;
    ensure!(
        first.exec(&["touch", "/x"]).await?.code != 0,
        "the root is writable"
    );
    // Another one has a volume of its own, and the image what it had.
    let mut config = sleeper(&image);
    security(&mut config).privileged = false;
    let second = pod.start(&config).await?;
    ensure_eq!(
        second.sh("cat /data/in/file; ls /data").await?,
        "content\nagain\nin\nlink\none\nout\nsetuid\n"
    );
    // Nobody is told of a mount that the pod did not ask for.
    ensure_eq!(first.status().await?.mounts, []);
    Ok(())
}

async fn volumes_are_where_links_lead(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let declared = [
        "data/",
        "/alias",
        "/x/../data",
        "/alias/in",
        "/dangling",
        "empty",
        "/sys/fs/cgroup",
        "/dev/shm",
    ];
    let image = image(case, &pod.cri, "places", tree()?, &declared).await?;
    let running = pod.start(&sleeper(&image)).await?;
    let table = mounted(&running).await?;
    for place in ["/data", "/data/in", "/not/there", "/empty", "/dev/shm"] {
        ensure_eq!((place, is_mounted(&table, place)), (place, 1));
    }
    ensure!(is_mounted(&table, "/sys/fs/cgroup") > 0, "{table:?}");
    running.sh("ls /sys/fs/cgroup | grep .").await?;
    ensure_eq!(
        running.sh("cat /data/in/file; stat -c '%a %u:%g' /empty; touch /dangling/x; ls /not/there; echo y > /data/in/file; cat /alias/in/file").await?,
        "content\n755 0:0\nx\ny\n"
    );
    Ok(())
}

async fn mounts_of_the_pod_replace_volumes_and_go_into_them(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let image = image(case, &pod.cri, "replaced", tree()?, &["/data", "/empty"]).await?;
    let host = case.instance()?.folder().join("host");
    std::fs::create_dir(&host)?;
    std::fs::write(host.join("host"), "")?;
    for (place, wanted) in [
        ("/data", "host\n"),
        ("/data/", "host\n"),
        ("/data/in", "again\nin\nlink\none\nout\nsetuid\n"),
        (
            "/data/deeper/still",
            "again\ndeeper\nin\nlink\none\nout\nsetuid\n",
        ),
    ] {
        let mut config = sleeper(&image);
        config.mounts = vec![mount(&host, place, true)];
        let running = pod.start(&config).await?;
        ensure_eq!(running.sh("ls /data").await?, wanted);
        ensure_eq!(running.sh(&format!("ls {place}")).await?, "host\n");
        running.sh("touch /empty/x").await?;
    }
    ensure_eq!(std::fs::read_dir(&host)?.count(), 1);
    Ok(())
}

/// An anonymous volume is the container's own, and `/dev/shm` its pod's.
async fn links_and_devices_make_what_they_name_in_volumes(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let mut tree = Tree::default();
    tree.dir("run", 0o755)?
        .dir("data", 0o755)?
        .symlink("etc/resolv.conf", "../run/systemd/resolve/stub-resolv.conf")?
        .symlink("etc/hosts", "own/hosts")?
        .symlink("data/link", "made")?;
    let image = image(case, &pod.cri, "named", tree, &["/run", "/etc", "/data"]).await?;
    let host = case.instance()?.folder().join("host");
    std::fs::create_dir(&host)?;
    std::fs::write(host.join("host"), "")?;
    for read_only in [false, true] {
        let mut config = sleeper(&image);
        security(&mut config).readonly_rootfs = read_only;
        config.mounts = vec![mount(&host, "/data/link", true)];
        config.devices = ["/data/deep/zero", "/dev/shm/zero", "/dev/fd/9"]
            .map(|place| Device {
                host_path: "/dev/zero".into(),
                container_path: place.into(),
                permissions: "rwm".into(),
            })
            .to_vec();
        config.working_dir = "/data/new/dir".into();
        let running = pod.start(&config).await?;
        let text = "ls /data/made; cat /run/systemd/resolve/stub-resolv.conf | grep -c nameserver; \
                    grep -c localhost /etc/own/hosts > /dev/null && echo hosts; pwd; \
                    stat -c '%F %t:%T' /data/deep/zero /dev/shm/zero /dev/fd/9";
        let node = "character special file 1:5\n".repeat(3);
        let wanted = format!("host\n1\nhosts\n/data/new/dir\n{node}");
        ensure_eq!(running.sh(text).await?, wanted);
        running.cri.remove(&running.id).await?;
    }
    ensure_eq!(std::fs::read_dir(&host)?.count(), 1);
    Ok(())
}

async fn volumes_that_cannot_be_are_refused(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let many: Vec<String> = (0..129).map(|n| format!("/v/{n}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let bad: [(&[&str], &str); 9] = [
        (&["/"], "no volume can be at /"),
        (&[""], "no volume can be at /"),
        (&["/data", "/proc"], "in /proc, /sys or /dev"),
        (&["sys"], "in /proc, /sys or /dev"),
        (&["/dev/"], "in /proc, /sys or /dev"),
        (&["/to-dev"], "it leads to \"/dev\""),
        (&["/to-proc/self"], "it leads to \"/proc/self\""),
        (&["/data/setuid"], "not a directory"),
        (&many, "129 volumes"),
    ];
    let folder = case.instance()?.folder().join("root/snapshots");
    for (number, (volumes, said)) in bad.into_iter().enumerate() {
        let mut tree = tree()?;
        tree.symlink("to-dev", "/dev")?
            .symlink("to-proc", "../proc")?;
        let image = image(case, &pod.cri, &format!("bad{number}"), tree, volumes).await?;
        let answer = pod.cri.create(&pod.id, &sleeper(&image), &pod.config).await;
        let error = answer
            .err()
            .with_context(|| format!("{volumes:?} were made"))?;
        ensure_eq!(error.code(), Code::InvalidArgument);
        ensure!(error.message().contains(said), "{volumes:?}: {error}");
        ensure_eq!(std::fs::read_dir(&folder)?.count(), 0);
    }
    Ok(())
}

async fn used(container: &Ctr) -> Result<(u64, u64)> {
    let stats = container.cri.container_stats(&container.id).await?;
    let layer = stats.writable_layer.context("no writable layer")?;
    let bytes = layer.used_bytes.context("no bytes")?.value;
    Ok((bytes, layer.inodes_used.context("no inodes")?.value))
}

async fn volumes_are_counted_found_again_and_removed(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let mut tree = Tree::default();
    tree.dir("big", 0o755)?
        .file("big/file", 0o644, &vec![b'x'; 3 * MIB])?;
    let image = image(case, &pod.cri, "counted", tree, &["/big", "/empty"]).await?;
    let mut running = pod.start(&sleeper(&image)).await?;
    let (bytes, inodes) = used(&running).await?;
    ensure!((3 * MIB as u64..4 * MIB as u64).contains(&bytes), "{bytes}");
    running
        .sh("head -c 5242880 /dev/urandom > /empty/file; sync")
        .await?;
    let snapshot = case
        .instance()?
        .folder()
        .join("root/snapshots")
        .join(&running.id);
    ensure!(snapshot.join("volumes").is_dir(), "they are not there");
    case.instance()?.kill().await?;
    case.instance()?.launch().await?;
    running.cri = case.cri()?.clone();
    // A new daemon remembers no size.
    let (more, names) = used(&running).await?;
    ensure!(more >= bytes + 5 * MIB as u64, "{more} after {bytes}");
    ensure_eq!(names, inodes + 1);
    ensure_eq!(running.sh("ls /big /empty | wc -w").await?.trim(), "4");
    running.cri.remove(&running.id).await?;
    ensure!(!snapshot.exists(), "something is left of the container");
    Ok(())
}

/// An image whose volume takes a while to fill.
async fn large(case: &mut Case, cri: &Cri) -> Result<String> {
    let mut tree = Tree::default();
    tree.dir("big", 0o755)?;
    let content = vec![b'x'; 16 * MIB];
    for number in 0..24 {
        tree.file(&format!("big/{number}"), 0o644, &content)?;
    }
    image(case, cri, "large", tree, &["/big"]).await
}

/// Begins to make a container, and waits until its volume is being filled.
async fn fill(
    case: &mut Case,
    pod: &Pod,
    image: &str,
) -> Result<(tokio::task::JoinHandle<bool>, PathBuf)> {
    let snapshots = case.instance()?.folder().join("root/snapshots");
    let (cri, id, config) = (pod.cri.clone(), pod.id.clone(), pod.config.clone());
    let wanted = sleeper(image);
    let creating = tokio::spawn(async move { cri.create(&id, &wanted, &config).await.is_ok() });
    let start = Instant::now();
    loop {
        ensure!(start.elapsed() < Duration::from_secs(20), "it never begins");
        // Its files come in the file system's order.
        let begun = std::fs::read_dir(&snapshots)?.flatten().any(|entry| {
            std::fs::read_dir(entry.path().join("volumes/0"))
                .is_ok_and(|mut files| files.next().is_some())
        });
        if begun {
            return Ok((creating, snapshots));
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

async fn a_volume_that_was_being_filled_is_swept(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let image = large(case, &pod.cri).await?;
    let (creating, snapshots) = fill(case, &pod, &image).await?;
    case.instance()?.kill().await?;
    ensure!(!creating.await?, "the container was made too fast");
    case.instance()?.launch().await?;
    ensure_eq!(std::fs::read_dir(&snapshots)?.count(), 0);
    // The next attempt begins anew.
    let again = Pod {
        cri: case.cri()?.clone(),
        ..pod
    };
    let running = again.start(&sleeper(&image)).await?;
    ensure_eq!(running.sh("ls /big | wc -l").await?.trim(), "24");
    Ok(())
}

async fn stopping_a_pod_does_not_wait_for_a_volume(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let image = large(case, &pod.cri).await?;
    let (creating, snapshots) = fill(case, &pod, &image).await?;
    pod.remove().await?;
    ensure!(!creating.await?, "the container was made in a stopped pod");
    ensure_eq!(std::fs::read_dir(&snapshots)?.count(), 0);
    Ok(())
}

fn files_of(instance: &Instance, pod: &Pod) -> PathBuf {
    let pods = instance.folder().join("state/pods");
    pods.join(&pod.id).join("files")
}

fn capacity(place: &Path) -> Result<(u64, u64)> {
    let stat = rustix::fs::statvfs(place)?;
    Ok((stat.f_blocks * stat.f_frsize, stat.f_files))
}

async fn a_container_cannot_fill_the_nodes_state(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let place = files_of(case.instance()?, &pod);
    let state = case.instance()?.folder().join("state");
    ensure!(
        std::fs::metadata(&place)?.dev() != std::fs::metadata(&state)?.dev(),
        "the pod's files are on the file system of the node's state"
    );
    let (size, names) = capacity(&place)?;
    ensure!(
        size <= 2 * MIB as u64 && names <= 64,
        "{size} bytes, {names} names"
    );
    let mut config = script("exec sleep 4321");
    security(&mut config).capabilities = Some(Capability {
        add_capabilities: vec!["ALL".into()],
        ..Capability::default()
    });
    let running = pod.start(&config).await?;
    for name in ["hosts", "hostname", "resolv.conf"] {
        ensure_eq!(
            running.sh(&format!("stat -c %a /etc/{name}")).await?,
            "644\n"
        );
        let full = running
            .exec(&[
                "dd",
                "if=/dev/zero",
                &format!("of=/etc/{name}"),
                "bs=1M",
                "count=8",
            ])
            .await?;
        ensure!(
            full.code != 0 && full.stderr.contains("No space"),
            "{name}: {full:?}"
        );
    }
    let taken: u64 = std::fs::read_dir(&place)?
        .flatten()
        .filter(|entry| entry.file_name() != "shm")
        .map(|entry| entry.metadata().map_or(0, |file| file.blocks() * 512))
        .sum();
    ensure!(taken <= size, "{taken} of {size} bytes");
    // Shared memory has a bound of its own, which is not used up.
    running
        .sh("dd if=/dev/zero of=/dev/shm/x bs=1M count=60")
        .await?;
    let full = running
        .exec(&["dd", "if=/dev/zero", "of=/dev/shm/y", "bs=1M", "count=60"])
        .await?;
    ensure!(full.code != 0, "/dev/shm has no bound");
    // Nobody else notices.
    let other = Pod::run(&pod.cri, pod_config(case.instance()?, "other")).await?;
    let text = other.output_of(&script("id -u; cat /etc/hostname")).await?;
    ensure_eq!(text, "0\nother\n");
    let mut reader = container(&["cat", "/etc/hosts", "/etc/resolv.conf"]);
    security(&mut reader).run_as_user = Some(Int64Value { value: 12345 });
    ensure!(
        other.output_of(&reader).await?.contains("nameserver"),
        "it cannot be read"
    );
    Ok(())
}

async fn files_of_a_pod_that_were_unmounted_come_back(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let running = pod.start(&script("exec sleep 4321")).await?;
    running
        .sh("echo '1.2.3.4 mine' >> /etc/hosts; echo m > /dev/shm/m")
        .await?;
    let place = files_of(case.instance()?, &pod);
    // A later daemon finds them as they are.
    case.instance()?.kill().await?;
    case.instance()?.launch().await?;
    let pod = Pod {
        cri: case.cri()?.clone(),
        ..pod
    };
    let text = pod.output_of(&script("cat /etc/hosts /dev/shm/m")).await?;
    ensure!(text.ends_with("1.2.3.4 mine\nm\n"), "{text}");
    // Without them nothing of the node's state is handed out instead.
    rustix::mount::unmount(&place, rustix::mount::UnmountFlags::DETACH)?;
    let answer = pod.cri.create(&pod.id, &script("true"), &pod.config).await;
    let error = answer
        .err()
        .context("a container was made without the pod's files")?;
    ensure!(error.message().contains("not mounted any more"), "{error}");
    case.instance()?.kill().await?;
    case.instance()?.launch().await?;
    let pod = Pod {
        cri: case.cri()?.clone(),
        ..pod
    };
    let text = pod
        .output_of(&script("cat /etc/hostname; grep -c /dev/shm /proc/mounts"))
        .await?;
    ensure_eq!(text, "pod\n1\n");
    ensure_eq!(capacity(&place.join("shm"))?.0, 64 * MIB as u64);
    Ok(())
}

/// Whatever a privileged container does to its files, its pod can be removed.
async fn files_that_cannot_be_changed_are_removed(case: &mut Case) -> Result<()> {
    let instance = case.start().await?;
    let mut config = pod_config(instance, "pod");
    let linux = config.linux.get_or_insert_default();
    linux.security_context.get_or_insert_default().privileged = true;
    let pod = Pod::run(instance.cri()?, config).await?;
    let tree = tree()?;
    let image = image(case, &pod.cri, "immutable", tree, &["/data"]).await?;
    let mut config = sleeper(&image);
    security(&mut config).privileged = true;
    let running = pod.start(&config).await?;
    running
        .sh("mkdir -p /own/dir; touch /own/dir/file; chattr +i /etc/hosts /data/in/file /data/in /own/dir/file; chattr +a /own/dir")
        .await?;
    pod.cri.remove(&running.id).await?;
    pod.remove().await
}
