//! Who a container is, and what people attach to it: users of odd files, groups, commands, labels, annotations.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use berth_cri_api::v1::*;
use berth_tests::cri::image_spec;
use berth_tests::oci::{Flavor, Image, Layer, Pack, Recipe, Tree};
use berth_tests::pods::{
    Pod, container, mount, pod_config, script, security, unique, use_host_network,
};
use berth_tests::runner::{Case, Test};
use berth_tests::{ensure_eq, images, test};
use tonic::{Code, Request};

pub(crate) const TESTS: &[Test] = &[
    test!(odd_users_and_groups),
    test!(users_that_would_be_guessed_are_refused).berth_only("containerd takes them for root"),
    test!(groups_under_both_policies),
    test!(groups_of_the_users_own_name),
    test!(homes_without_an_account),
    test!(an_entrypoint_of_one_empty_word_is_none),
    test!(sysctls_as_they_are_printed),
    test!(the_domain_name_of_a_pod),
    test!(sysctls_that_are_none_are_refused_in_words).berth_only("containerd answers Unknown"),
    test!(selinux_options_where_selinux_is_off).unless(has_selinux),
    test!(lists_of_large_annotations).berth_only("containerd answers OUT_OF_RANGE"),
    test!(annotations_are_bounded).berth_only("containerd has no bound of its own"),
    test!(a_registry_cannot_write_lines_into_the_log).berth_only("it reads Berth's log"),
];

fn has_selinux() -> Option<&'static str> {
    let there = std::path::Path::new("/sys/fs/selinux/enforce").exists();
    there.then_some("SELinux is enabled here")
}

/// Builds images of busybox with other files, and pulls them.
struct Maker {
    busybox: Layer,
}

impl Maker {
    fn new() -> Result<Self> {
        Ok(Self {
            busybox: images::files::busybox_tree()?.layer(Pack::Gzip)?,
        })
    }

    fn recipe(&self, files: &[(&str, &str)]) -> Result<Recipe> {
        let mut tree = Tree::default();
        for (path, text) in files {
            tree.file(path, 0o644, text.as_bytes())?;
        }
        Ok(Recipe {
            layers: vec![self.busybox.clone(), tree.layer(Pack::Gzip)?],
            ..Recipe::default()
        })
    }

    async fn push(&self, case: &Case, name: &str, image: &Image) -> Result<String> {
        let (repository, tag) = (format!("identity/{name}"), unique().to_string());
        let registry = case.shared().registry.client();
        registry.push(&repository, &[&tag], image).await?;
        Ok(format!("berth.test/{repository}:{tag}"))
    }

    async fn pulled(&self, case: &Case, name: &str, recipe: &Recipe) -> Result<String> {
        let name = self.push(case, name, &recipe.build(Flavor::Oci)?).await?;
        case.cri()?.pull(&name).await?;
        Ok(name)
    }

    /// An image with these accounts and this `USER`.
    async fn with_user(
        &self,
        case: &Case,
        passwd: &str,
        group: &str,
        user: &str,
    ) -> Result<String> {
        let files = [("etc/passwd", passwd), ("etc/group", group)];
        let recipe = Recipe {
            user: user.to_owned(),
            ..self.recipe(&files)?
        };
        self.pulled(case, "user", &recipe).await
    }
}

/// Tells who it is, in numbers.
fn who(image: &str) -> ContainerConfig {
    let mut config = script("id -u; id -g; grep Groups: /proc/self/status");
    config.image = Some(image_spec(image));
    config
}

/// `uid gid groups` as the process sees them; ContainerStatus must say the same.
async fn identity(pod: &Pod, config: &ContainerConfig) -> Result<String> {
    let running = pod.start(config).await?;
    ensure_eq!(running.wait().await?.exit_code, 0);
    let text = running.stdout()?.replace("Groups:", "");
    let seen = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let told = running.status().await?.user.and_then(|user| user.linux);
    let told = told.context("ContainerStatus tells no user")?;
    let mut words = vec![told.uid, told.gid];
    words.extend(told.supplemental_groups);
    let told = words.iter().map(ToString::to_string).collect::<Vec<_>>();
    ensure_eq!(told.join(" "), seen);
    Ok(seen)
}

async fn odd_users_and_groups(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let maker = Maker::new()?;
    for (passwd, group, user, want) in [
        ("app:x:10001:\n", "", "app", "10001 0 0"),
        ("app:x:10001\n", "", "10001", "10001 0 0"),
        ("app:x:10001:::/h:/bin/sh", "", "app", "10001 0 0"),
        ("a:x:0010:0020::/:\n", "g:x:030:a\n", "0010", "10 20 20 30"),
        ("", "", "+1000:007", "1000 7 7"),
        ("  a:x:1:2:::  \r\n", "g:x:5:b,a\r\n", "a", "1 2 2 5"),
        ("a:x:1:2:::\n", "g:x::a\n", "a", "1 2 0 2"),
        (
            "a:x:1:2:::\n",
            "far:x:3000000000:a\n",
            "a",
            "1 2 2 3000000000",
        ),
        (
            "bad:x:zz:zz\n+::::::\na:x:1:2:::\n",
            "bad:x:zz:b\n",
            "a",
            "1 2 2",
        ),
        ("root:x:0:99:::\n", "# two\ng:x:5:root\n", "", "0 0 0 5"),
        ("root:x:0:99:::\n", "", "root", "0 99 99"),
        ("a:x:1:2:::\n", "g:x:9:\n", ":g", "0 9 9"),
    ] {
        let image = maker.with_user(case, passwd, group, user).await?;
        let seen = identity(&pod, &who(&image)).await;
        let seen = seen.with_context(|| format!("USER {user:?} of {passwd:?} {group:?}"))?;
        ensure!(
            seen == want,
            "USER {user:?} of {passwd:?} {group:?}: {seen}, not {want}"
        );
    }
    Ok(())
}

async fn users_that_would_be_guessed_are_refused(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let maker = Maker::new()?;
    for (passwd, group, user, said) in [
        (
            "\napp:x::5\n",
            "",
            "app",
            "line 2 of the image's /etc/passwd, \"app\": it has no user id",
        ),
        (
            "app:x:zz:5\n",
            "",
            "app",
            "its user id \"zz\" is not a number",
        ),
        (
            "app:x:1:5x\n",
            "",
            "1",
            "its group id \"5x\" is not a number",
        ),
        (
            "app:x:1:5\n",
            "g:x:zz:app\n",
            "app",
            "line 1 of the image's /etc/group, \"g\"",
        ),
        (
            "app:x:1:5\n",
            "g:x:zz:\n",
            "app:g",
            "its group id \"zz\" is not a number",
        ),
        ("", "", "4294967296", "is not a user or group id"),
        ("", "", "-1", "is not a user or group id"),
    ] {
        let image = maker.with_user(case, passwd, group, user).await?;
        let answer = pod.cri.create(&pod.id, &who(&image), &pod.config).await;
        let error = answer
            .err()
            .with_context(|| format!("{passwd:?} was taken"))?;
        ensure_eq!(error.code(), Code::InvalidArgument);
        ensure!(error.message().contains(said), "{error}");
    }
    ensure_eq!(pod.cri.list_containers(None).await?, vec![]);
    Ok(())
}

async fn groups_under_both_policies(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let maker = Maker::new()?;
    let (passwd, group) = (
        "root:x:0:0:::\na:x:7:8:::\n",
        "root:x:0:root\nw:x:10:root,a\n",
    );
    let image = maker.with_user(case, passwd, group, "").await?;
    let (merge, strict) = (
        SupplementalGroupsPolicy::Merge,
        SupplementalGroupsPolicy::Strict,
    );
    for (policy, user, supplemental, want) in [
        (merge, None, &[1234, 5678][..], "0 0 0 10 1234 5678"),
        (merge, None, &[5678, 0, 1234, 5678], "0 0 0 10 1234 5678"),
        (merge, Some((0, None)), &[1234], "0 0 0 10 1234"),
        (merge, Some((0, Some(0))), &[1234], "0 0 0 10 1234"),
        (merge, Some((7, None)), &[8, 5], "7 8 5 8 10"),
        (merge, Some((7, Some(9))), &[5], "7 9 5 9 10"),
        (strict, None, &[1234], "0 0 1234"),
        (strict, None, &[], "0 0"),
        (strict, Some((0, None)), &[1234], "0 0 0 1234"),
        (strict, Some((7, None)), &[8, 5, 5], "7 8 5 8"),
        (strict, Some((7, Some(9))), &[], "7 9 9"),
    ] {
        let mut config = who(&image);
        let given = security(&mut config);
        given.supplemental_groups = supplemental.to_vec();
        given.supplemental_groups_policy = policy.into();
        if let Some((uid, gid)) = user {
            given.run_as_user = Some(Int64Value { value: uid });
            given.run_as_group = gid.map(|value| Int64Value { value });
        }
        let seen = identity(&pod, &config).await;
        let about = || format!("{policy:?} {user:?} {supplemental:?}");
        let seen = seen.with_context(about)?;
        ensure!(seen == want, "{}: {seen}, not {want}", about());
    }
    Ok(())
}

async fn groups_of_the_users_own_name(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let maker = Maker::new()?;
    for (passwd, group, (uid, gid), want) in [
        (
            "root:x:0:0:::\n",
            "root:x:0:root\nbin:x:1:root,bin\n",
            (0, Some(1000)),
            "0 1000 1 1000",
        ),
        ("app:x:7:8:::\n", "app:x:7:app\n", (7, None), "7 8 8"),
        (
            "app:x:7:8:::\n",
            "app:x:7:app\napps:x:9:app\n",
            (7, None),
            "7 8 8 9",
        ),
        (
            "\u{b}app:x:7:8:::\n",
            "\u{a0}g:x:5:app\u{85}\n",
            (7, None),
            "7 8 5 8",
        ),
    ] {
        let image = maker.with_user(case, passwd, group, "").await?;
        let mut config = who(&image);
        let given = security(&mut config);
        given.run_as_user = Some(Int64Value { value: uid });
        given.run_as_group = gid.map(|value| Int64Value { value });
        let seen = identity(&pod, &config)
            .await
            .with_context(|| format!("{passwd:?}"))?;
        ensure!(seen == want, "{passwd:?} {group:?}: {seen}, not {want}");
    }
    Ok(())
}

async fn homes_without_an_account(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let maker = Maker::new()?;
    for (passwd, user, want) in [
        ("app:x:7:8::/h:\n", "", "/"),
        ("app:x:7:8::/h:\n", ":5", "/"),
        ("app:x:7:8::/h:\n", "99", "/"),
        ("", "0", "/"),
        ("root:x:0:0::/r:\n", ":5", "/r"),
        ("root:x:0:0::/r:\n", "", "/r"),
    ] {
        let image = maker.with_user(case, passwd, "", user).await?;
        let mut config = script("echo $HOME");
        config.image = Some(image_spec(&image));
        let home = pod.output_of(&config).await?;
        ensure!(
            home.trim() == want,
            "USER {user:?} of {passwd:?}: {home}, not {want}"
        );
    }
    Ok(())
}

async fn an_entrypoint_of_one_empty_word_is_none(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let maker = Maker::new()?;
    let words = |list: &[&str]| {
        list.iter()
            .map(|word| (*word).to_owned())
            .collect::<Vec<_>>()
    };
    let recipe = Recipe {
        entrypoint: words(&[""]),
        cmd: words(&["echo", "from the image", ""]),
        ..maker.recipe(&[])?
    };
    let image = maker.pulled(case, "entrypoint", &recipe).await?;
    let mut config = container(&[]);
    config.image = Some(image_spec(&image));
    ensure_eq!(pod.output_of(&config).await?, "from the image \n");

    let mut config = container(&[]);
    config.image = Some(image_spec(&image));
    config.args = words(&["echo", "from the request"]);
    ensure_eq!(pod.output_of(&config).await?, "from the request\n");

    let mut config = container(&["echo"]);
    config.image = Some(image_spec(&image));
    config.args = words(&["both"]);
    ensure_eq!(pod.output_of(&config).await?, "both\n");

    let recipe = Recipe {
        entrypoint: words(&[""]),
        ..maker.recipe(&[])?
    };
    let image = maker.pulled(case, "entrypoint", &recipe).await?;
    let mut config = container(&[]);
    config.image = Some(image_spec(&image));
    let answer = pod.cri.create(&pod.id, &config, &pod.config).await;
    let error = answer
        .err()
        .context("an image without any command was taken")?;
    ensure!(error.message().contains("command"), "{error}");
    Ok(())
}

async fn sysctls_as_they_are_printed(case: &mut Case) -> Result<()> {
    let instance = case.start().await?;
    let mut config = pod_config(instance, "sysctl");
    let linux = config.linux.get_or_insert_default();
    let sysctls = [
        ("net.ipv4.tcp_rmem", "4096\t131072\t6291456"),
        ("net.ipv4.ip_local_port_range", " 10000\t20000\n"),
        ("net/ipv4/conf/lo/forwarding", "1\n"),
        ("kernel.sem", "32000\t1024000000\t500\t32000"),
        ("fs.mqueue.msg_max", "77\n"),
    ];
    let sysctls = sysctls.map(|(key, value)| (key.to_owned(), value.to_owned()));
    linux.sysctls = sysctls.into();
    let pod = Pod::run(instance.cri()?, config.clone()).await?;
    let read = "cd /proc/sys; cat net/ipv4/tcp_rmem net/ipv4/ip_local_port_range \
                net/ipv4/conf/lo/forwarding kernel/sem fs/mqueue/msg_max";
    let want = "4096\t131072\t6291456\n10000\t20000\n1\n32000\t1024000000\t500\t32000\n77\n";
    ensure_eq!(pod.output_of(&script(read)).await?, want);

    let before = std::fs::read_to_string("/proc/sys/kernel/sem")?;
    for (key, value) in [
        ("net.ipv4.tcp_rmem\nkernel.panic", "1"),
        ("net/../kernel/panic", "1"),
        ("net.ipv4.tcp_rmem", "4096 many"),
        ("kernel.sem", "1\tmany"),
    ] {
        let mut config = pod_config(instance, "sysctl");
        let linux = config.linux.get_or_insert_default();
        linux.sysctls = [(key.to_owned(), value.to_owned())].into();
        let answer = instance.cri()?.run_pod(&config).await;
        ensure!(answer.is_err(), "{key:?} = {value:?} was taken");
    }
    ensure_eq!(std::fs::read_to_string("/proc/sys/kernel/sem")?, before);
    Ok(())
}

async fn the_domain_name_of_a_pod(case: &mut Case) -> Result<()> {
    let instance = case.start().await?;
    let before = std::fs::read_to_string("/proc/sys/kernel/domainname")?;
    let with_domain = |config: &mut PodSandboxConfig| {
        let linux = config.linux.get_or_insert_default();
        let sysctl = ("kernel.domainname".to_owned(), "berth.example".to_owned());
        linux.sysctls = [sysctl].into();
    };
    let mut config = pod_config(instance, "domain");
    with_domain(&mut config);
    let pod = Pod::run(instance.cri()?, config).await?;
    let read = "cat /proc/sys/kernel/domainname /proc/sys/kernel/hostname";
    ensure_eq!(
        pod.output_of(&script(read)).await?,
        "berth.example\ndomain\n"
    );
    // Where the host's names are the pod's it would be the host's.
    let mut config = pod_config(instance, "host");
    use_host_network(&mut config);
    with_domain(&mut config);
    let answer = instance.cri()?.run_pod(&config).await;
    ensure!(answer.is_err(), "the host's domain name was taken");
    ensure_eq!(
        std::fs::read_to_string("/proc/sys/kernel/domainname")?,
        before
    );
    Ok(())
}

async fn sysctls_that_are_none_are_refused_in_words(case: &mut Case) -> Result<()> {
    let instance = case.start().await?;
    let long = "x".repeat(65);
    for (key, value, words) in [
        // The first separator decides, as for sysctl(8): this one names a file with dots.
        ("net.ipv4/conf/lo/rp_filter", "1", "there is no such"),
        ("net.ipv4.no_such", "1", "there is no such"),
        ("net.ipv4.conf.none.rp_filter", "1", "there is no such"),
        ("net/ipv4/conf", "1", "a group of parameters"),
        ("net.ipv4.ip_forward", "many", "net.ipv4.ip_forward"),
        ("kernel.shm_no_such", "1", "kernel.shm_no_such"),
        ("kernel.shmmni", "many", "kernel.shmmni"),
        ("fs.mqueue.no_such", "1", "fs.mqueue.no_such"),
        ("kernel.domainname", &long, "more than 64 bytes"),
        ("kernel.hostname", "x", "\"hostname\""),
        ("kernel.panic", "1", "would change the host"),
    ] {
        let mut config = pod_config(instance, "sysctl");
        let linux = config.linux.get_or_insert_default();
        linux.sysctls = [(key.to_owned(), value.to_owned())].into();
        let answer = instance.cri()?.run_pod(&config).await;
        let told = answer.err().context(format!("{key:?} was taken"))?;
        let code = told.code();
        ensure!(code == Code::InvalidArgument, "{key:?}: {told}");
        ensure!(told.message().contains(words), "{key:?}: {told}");
    }
    ensure_eq!(instance.cri()?.list_pods(None).await?.len(), 0);
    Ok(())
}

/// Cilium and CSI drivers send them to every machine.
async fn selinux_options_where_selinux_is_off(case: &mut Case) -> Result<()> {
    let instance = case.start().await?;
    let options = SeLinuxOption {
        user: "system_u".into(),
        role: "system_r".into(),
        r#type: "spc_t".into(),
        level: "s0:c1,c2".into(),
    };
    let mut config = pod_config(instance, "labelled");
    let linux = config.linux.get_or_insert_default();
    let given = linux.security_context.get_or_insert_default();
    given.selinux_options = Some(options.clone());
    let folder = instance.folder().join("relabelled");
    std::fs::create_dir(&folder)?;
    let pod = Pod::run(instance.cri()?, config).await?;
    let mut config = script("echo fine > /data/file; cat /data/file");
    security(&mut config).selinux_options = Some(options);
    let mut volume = mount(&folder, "/data", false);
    volume.selinux_relabel = true;
    config.mounts = vec![volume];
    ensure_eq!(pod.output_of(&config).await?, "fine\n");
    let status = pod.cri.status(true).await?;
    let conditions = status.status.context("no status")?.conditions;
    let ready = conditions.iter().find(|one| one.r#type == "RuntimeReady");
    ensure!(ready.is_some_and(|one| one.status), "{conditions:?}");
    Ok(())
}

const QUARTER: usize = 256 << 10;

fn notes(entries: &[(&str, usize)]) -> BTreeMap<String, String> {
    let entries = entries.iter();
    entries
        .map(|(key, length)| ((*key).to_owned(), "v".repeat(*length)))
        .collect()
}

async fn lists_of_large_annotations(case: &mut Case) -> Result<()> {
    let instance = case.start().await?;
    let cri = instance.cri()?.clone();
    let keys = [
        ("kubectl.kubernetes.io/last-applied-configuration", QUARTER),
        ("kubernetes.io/config.source", 3),
        ("io.kubernetes.x", 1000),
    ];
    let mut first = None;
    for number in 0..66 {
        let mut config = pod_config(instance, &format!("large-{number}"));
        use_host_network(&mut config);
        config.annotations = notes(&keys);
        let pod = Pod::run(&cri, config).await?;
        first.get_or_insert(pod);
    }
    let pod = first.context("no pod")?;
    let listed = cri.list_pods(None).await?;
    ensure_eq!(listed.len(), 66);
    ensure!(listed.iter().all(|pod| pod.annotations.len() >= 2));
    ensure!(
        listed
            .iter()
            .all(|pod| pod.annotations.contains_key("io.kubernetes.x"))
    );
    let whole = listed.iter().filter(|pod| pod.annotations.len() == 3);
    ensure!((50..66).contains(&whole.count()), "too many were cut");
    for pod in &listed {
        let status = cri.pod_status_verbose(&pod.id).await?;
        ensure_eq!(
            status.status.context("no status")?.annotations,
            notes(&keys)
        );
    }

    // The same of containers, and of what is told of their use.
    let large = [("large", (2 << 20) - 5)];
    for _ in 0..9 {
        let mut config = script("sleep 1000");
        config.annotations = notes(&large);
        pod.start(&config).await?;
    }
    let listed = cri.list_containers(None).await?;
    ensure_eq!(listed.len(), 9);
    for container in &listed {
        let status = cri.container_status_verbose(&container.id).await?;
        ensure_eq!(
            status.status.context("no status")?.annotations,
            notes(&large)
        );
    }
    ensure_eq!(cri.list_container_stats(None).await?.len(), 9);
    let stats = cri
        .pod_stats(&pod.id)
        .await?
        .linux
        .context("no statistics")?;
    ensure_eq!(stats.containers.len(), 9);
    ensure_eq!(cri.list_pod_stats(None).await?.len(), 66);
    let mut runtime = cri.runtime.clone();
    let request = Request::new(StreamPodSandboxStatsRequest::default());
    let mut stream = runtime
        .stream_pod_sandbox_stats(request)
        .await?
        .into_inner();
    let mut streamed = 0;
    while let Some(message) = stream.message().await? {
        streamed += message.pod_sandbox_stats.len();
    }
    ensure_eq!(streamed, 66);
    let text = crate::resume::metrics(case).await?;
    let counted = text
        .lines()
        .find_map(|line| line.strip_prefix("berth_list_annotations_dropped_total "))
        .context("nothing is counted")?;
    ensure!(counted.parse::<u64>()? >= 7, "{counted}");
    let log = std::fs::read_to_string(case.instance()?.log_file())?;
    ensure_eq!(
        log.matches("its largest annotations are left out").count(),
        1
    );
    Ok(())
}

async fn annotations_are_bounded(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let most = 2 << 20;
    for (bytes, fits) in [(most, true), (most + 1, false)] {
        let large = notes(&[("k", bytes - 1)]);
        let mut sandbox = pod.config.clone();
        sandbox.metadata.get_or_insert_default().name = format!("bounded-{bytes}");
        sandbox.annotations.clone_from(&large);
        let mut inside = script("true");
        inside.annotations = large;
        let answers = [
            pod.cri.run_pod(&sandbox).await,
            pod.cri.create(&pod.id, &inside, &pod.config).await,
        ];
        for answer in answers {
            match answer {
                Ok(_) => ensure!(fits, "{bytes} bytes were taken"),
                Err(error) => {
                    ensure!(!fits, "{bytes} bytes were refused: {error}");
                    ensure_eq!(error.code(), Code::InvalidArgument);
                    ensure!(error.message().contains("2097152 are the most"), "{error}");
                }
            }
        }
    }
    Ok(())
}

/// What a registry, an image or a plugin says reaches errors and the log escaped.
async fn a_registry_cannot_write_lines_into_the_log(case: &mut Case) -> Result<()> {
    case.start().await?;
    let maker = Maker::new()?;
    let hostile = "s390x\n2026-01-01T00:00:00Z  INFO all is well\r\u{1b}[2J";
    let recipe = maker.recipe(&[])?;
    let wrong = recipe.build_for(Flavor::Oci, hostile)?;
    let index = Image::index(Flavor::Oci, &[(hostile, &wrong)])?;
    for image in [wrong, index] {
        let name = maker.push(case, "hostile", &image).await?;
        let error = case
            .cri()?
            .pull(&name)
            .await
            .err()
            .context("it was pulled")?;
        ensure!(
            !error.message().contains(char::is_control),
            "{:?}",
            error.message()
        );
        ensure!(error.message().contains("s390x\\n2026-01-01"), "{error}");
    }
    let log = std::fs::read_to_string(case.instance()?.log_file())?;
    ensure!(
        log.contains("s390x\\n2026-01-01"),
        "the log does not tell of it"
    );
    ensure!(
        !log.lines()
            .any(|line| line.starts_with("2026-01-01T00:00:00Z"))
    );
    ensure!(!log.contains(['\r', '\u{1b}']));
    Ok(())
}
