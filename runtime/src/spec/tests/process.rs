//! Command, environment, working directory, mounts, pause.

use super::case::{Case, pod_spec, shown_cgroup};
use super::*;

#[test]
fn commands_follow_dockers_rules() {
    let run = |command: &[&str], args: &[&str], entrypoint: &[&str], cmd: &[&str]| {
        let owned = |words: &[&str]| {
            words
                .iter()
                .map(|word| (*word).to_owned())
                .collect::<Vec<_>>()
        };
        let mut case = Case::v2();
        (case.spec.command, case.spec.args) = (owned(command), owned(args));
        (case.image.entrypoint, case.image.cmd) = (owned(entrypoint), owned(cmd));
        case.plan().map(|plan| {
            plan.process
                .args
                .iter()
                .map(|word| String::from_utf8_lossy(word).into_owned())
                .collect::<Vec<_>>()
                .join(" ")
        })
    };
    assert_eq!(run(&[], &[], &["e"], &["c"]).unwrap(), "e c");
    assert_eq!(run(&[], &["a"], &["e"], &["c"]).unwrap(), "e a");
    assert_eq!(run(&["x"], &[], &["e"], &["c"]).unwrap(), "x");
    assert_eq!(run(&["x"], &["a"], &["e"], &["c"]).unwrap(), "x a");
    assert_eq!(run(&[], &[], &[], &["c"]).unwrap(), "c");
    assert!(matches!(run(&[], &[], &[], &[]), Err(Error::NoCommand)));
    // One empty word is how images say that they have no entry point.
    assert_eq!(run(&[], &[], &[""], &["c", ""]).unwrap(), "c ");
    assert_eq!(run(&[], &["a", "b"], &[""], &["c"]).unwrap(), "a b");
    assert_eq!(run(&["x"], &["a"], &[""], &["c"]).unwrap(), "x a");
    assert!(matches!(run(&[], &[], &[""], &[]), Err(Error::NoCommand)));
    // Anywhere else it is a word, and no program's name.
    assert_eq!(run(&[], &[], &["e"], &[""]).unwrap(), "e ");
    for (command, args, entrypoint, cmd) in [
        (&[][..], &[][..], &[][..], &[""][..]),
        (&[], &[""], &[""], &["c"]),
        (&[], &[], &["", "e"], &["c"]),
        (&[], &[], &["", ""], &["c"]),
        (&[""], &["a"], &["e"], &["c"]),
    ] {
        assert!(matches!(
            run(command, args, entrypoint, cmd),
            Err(Error::Command { index: 0, .. })
        ));
    }
    assert!(matches!(
        run(&["a\0b"], &[], &[], &[]),
        Err(Error::Command { .. })
    ));
}

#[test]
fn environment_keeps_order_and_bytes() {
    let mut case = Case::v2();
    case.spec.envs = vec![
        ("LANG".into(), b"x".to_vec()),
        ("RAW".into(), vec![0xff, b'\n', 0xfe]),
        ("LANG".into(), b"y".to_vec()),
    ];
    let env = case.plan().unwrap().process.env;
    let expected: Vec<&[u8]> = vec![
        b"PATH=/opt/bin:/bin",
        b"HOSTNAME=web-0",
        b"LANG=y",
        b"RAW=\xff\n\xfe",
        b"HOME=/home/app",
    ];
    assert_eq!(env, expected);
}

#[test]
fn environment_that_cannot_be_is_refused() {
    for (name, value) in [
        ("HOME", "/a\nroot::0:0"),
        ("", "x"),
        ("A=B", "x"),
        ("A", "x\0y"),
        ("A\0", "x"),
    ] {
        let mut case = Case::v2();
        case.spec.envs = vec![(name.into(), value.as_bytes().to_vec())];
        let error = case.plan().unwrap_err();
        assert!(
            matches!(error, Error::Environment { .. }) && error.kind() == Kind::InvalidArgument,
            "{name}: {error}"
        );
    }
    let mut case = Case::v2();
    case.image.env = vec!["HOME=/x\ny".into()];
    assert!(case.plan().is_err());
}

#[test]
fn working_directories() {
    let cwd = |asked: &str, image: &str| {
        let mut case = Case::v2();
        (case.spec.working_dir, case.image.working_dir) = (asked.into(), image.into());
        case.plan()
            .map(|plan| String::from_utf8(plan.process.cwd).unwrap())
    };
    assert_eq!(cwd("", "").unwrap(), "/");
    assert_eq!(cwd("", "srv").unwrap(), "/srv");
    assert_eq!(cwd("/a/b", "srv").unwrap(), "/a/b");
    for bad in [
        "/proc/self/fd/7",
        "/proc/1/cwd/x",
        "/a/../proc/self/root",
        "/a\0",
        &"a".repeat(5000),
    ] {
        assert!(cwd("", bad).is_err(), "{bad}");
    }
}

#[test]
fn the_requests_mounts_win_over_our_own() {
    let mut case = Case::v2();
    for path in ["/etc/resolv.conf", "/dev/shm", "/sys", "/proc"] {
        case.mount(path, |_| {});
    }
    for path in ["/etc/resolv.conf", "/dev/shm", "/sys", "/proc"] {
        let found = case.mounts_on(path);
        assert_eq!(found.len(), 1, "{path}");
        assert_eq!(found[0]["source"], "/srv/real");
    }
    assert!(
        case.mounts_on("/sys/fs/cgroup").is_empty(),
        "it would lie in the host's /sys"
    );
}

#[test]
fn mounts_that_cannot_be_are_refused() {
    let refused = |path: &str, change: fn(&mut ResolvedMount)| {
        let mut case = Case::v2();
        case.mount(path, change);
        matches!(case.plan(), Err(Error::Mount { .. }))
    };
    assert!(refused("", |_| {}) && refused("/", |_| {}) && refused("/a\0", |_| {}));
    assert!(refused("/a", |mount| mount.request.options = vec!["sync".into()]));
    assert!(refused("/a", |mount| mount.source = "relative".into()));
    assert!(refused("/a", |mount| mount.request.propagation =
        MountPropagation::HostToContainer));
    assert!(refused("/a", |mount| {
        mount.request.propagation = MountPropagation::Bidirectional;
        mount.propagation = SourcePropagation::Slave;
    }));
}

#[test]
fn propagation_is_among_the_options_and_the_root_is_private() {
    let mut case = Case::v2();
    case.mount("/none", |_| {});
    case.mount("/down", |mount| {
        mount.request.propagation = MountPropagation::HostToContainer;
        mount.propagation = SourcePropagation::Slave;
    });
    case.mount("/both", |mount| {
        mount.request.propagation = MountPropagation::Bidirectional;
        mount.propagation = SourcePropagation::Shared;
    });
    for (path, option) in [
        ("/none", "rprivate"),
        ("/down", "rslave"),
        ("/both", "rshared"),
    ] {
        let options = case.mounts_on(path)[0]["options"].clone();
        assert!(options.as_array().unwrap().contains(&option.into()));
    }
    let plan = case.plan().unwrap();
    assert_eq!(plan.oci["linux"]["rootfsPropagation"], "private");
}

#[test]
fn a_dev_of_the_pods_comes_with_what_is_in_it() {
    let mut case = Case::v2();
    case.mount("/dev/", |_| {});
    assert_eq!(case.mounts_on("/dev")[0]["source"], "/srv/real");
    for gone in ["/dev/pts", "/dev/mqueue"] {
        assert!(case.mounts_on(gone).is_empty(), "{gone}");
    }
    assert_eq!(case.mounts_on("/dev/shm").len(), 1);
    let mut case = Case::v2();
    case.mount("/dev/tty", |_| {});
    assert_eq!(case.mounts_on("/dev")[0]["type"], "tmpfs");
    assert_eq!(case.mounts_on("/dev/pts").len(), 1);
}

#[test]
fn oom_score_adj_is_clamped_and_said_so() {
    for (asked, lowest, given, clamped) in [
        (-998, -1000, -998, false),
        (-998, 0, 0, true),
        (500, 0, 500, false),
        (5000, 0, 1000, false),
    ] {
        let mut case = Case::v2();
        case.facts.min_oom_score_adj = lowest;
        case.spec.resources.oom_score_adj = asked;
        let plan = case.plan().unwrap();
        assert_eq!(
            (plan.process.oom_score_adj, plan.oom_score_clamped),
            (Some(given), clamped)
        );
    }
}

#[test]
fn the_apparmor_profile_reaches_every_process() {
    let mut case = Case::v2();
    case.apparmor = "with space".into();
    let plan = case.plan().unwrap();
    assert_eq!(plan.process.apparmor, "with space");
    // For people only: libcontainer never sees it, the worker applies it.
    assert_eq!(plan.oci["process"]["apparmorProfile"], "with space");
    let request = ExecRequest {
        command: vec!["ls".into()],
        tty: false,
        timeout: None,
    };
    let made = exec(&plan.process, &request).unwrap();
    assert_eq!(made.apparmor, "with space");
}

#[test]
fn exec_takes_the_containers_credentials() {
    let process = Case::v2().plan().unwrap().process;
    let request = |tty, command: &[&str]| ExecRequest {
        command: command.iter().map(|word| (*word).to_owned()).collect(),
        tty,
        timeout: None,
    };
    let made = exec(&process, &request(true, &["ls", "-l"])).unwrap();
    assert_eq!(made.args, [b"ls".to_vec(), b"-l".to_vec()]);
    assert!(made.terminal && made.env.contains(&b"TERM=xterm".to_vec()));
    assert_eq!(
        (made.uid, &made.groups, made.capabilities),
        (1000, &vec![5, 1001], process.capabilities)
    );
    assert_eq!(made.oom_score_adj, process.oom_score_adj);
    assert!(
        !exec(&process, &request(false, &["ls"]))
            .unwrap()
            .env
            .contains(&b"TERM=xterm".to_vec())
    );
    assert!(exec(&process, &request(false, &[])).is_err());
}

#[test]
fn pause_has_no_privileges_and_its_own_cgroup() {
    let plan = |change: fn(&mut PodSpec), case: Case| {
        let mut spec = pod_spec();
        change(&mut spec);
        pause(&PauseInput {
            id: &case.pod.id,
            spec: &spec,
            cgroup_parent: "/kubepods/pod1",
            facts: &case.facts,
            cpuset: case.cpuset.as_ref(),
            apparmor: &case.apparmor,
        })
    };
    let made = plan(|_| {}, Case::v1()).unwrap();
    assert_eq!(
        (made.process.uid, made.process.gid, &made.process.groups),
        (65_535, 65_535, &vec![65_535])
    );
    assert_eq!(made.process.capabilities.unwrap().bounding, 0);
    assert_eq!(made.process.oom_score_adj, Some(-998));
    let mut confined = Case::v1();
    confined.apparmor = "own".into();
    assert_eq!(plan(|_| {}, confined).unwrap().process.apparmor, "own");
    assert_eq!(made.seccomp, SeccompProfile::RuntimeDefault);
    assert_json_snapshot!("pause_v1", shown_cgroup(&made.cgroup));
    assert_json_snapshot!(
        "pause_v2",
        shown_cgroup(&plan(|_| {}, Case::v2()).unwrap().cgroup)
    );
    let named = plan(
        |spec| {
            (
                spec.run_as_user,
                spec.run_as_group,
                spec.supplemental_groups,
            ) = (Some(7), Some(8), vec![9])
        },
        Case::v2(),
    );
    assert_eq!(named.unwrap().process.groups, [8, 9]);
    assert!(plan(|spec| spec.run_as_group = Some(8), Case::v2()).is_err());
    assert!(plan(|spec| spec.run_as_user = Some(1 << 31), Case::v2()).is_err());
}
