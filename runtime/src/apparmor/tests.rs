//! What is chosen, when the parser runs, and what the profile denies.

use super::*;
use std::process::{Command, Stdio};

/// A machine: its directories, and a parser that counts its runs and puts the profile into the list.
struct Machine {
    dir: tempfile::TempDir,
}

const LOADS: &str = "echo 'berth-default (enforce)' >> profiles";

impl Machine {
    fn new(parser: &str) -> Self {
        let machine = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        for name in ["securityfs", "state", "policy"] {
            std::fs::create_dir(machine.path(name)).unwrap();
        }
        machine.list("cups-browsed (enforce)\n");
        machine.parser(parser);
        machine
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn list(&self, text: &str) {
        std::fs::write(self.path("securityfs/profiles"), text).unwrap();
    }

    fn parser(&self, body: &str) {
        let path = self.path("parser");
        let runs = self.path("runs").display().to_string();
        let there = self.path("securityfs").display().to_string();
        let script =
            format!("#!/bin/sh\necho \"$@\" >> {runs}\ncat > {runs}.input\ncd {there}\n{body}\n");
        std::fs::write(&path, script).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// How often the parser ran.
    fn runs(&self) -> usize {
        std::fs::read_to_string(self.path("runs")).map_or(0, |text| text.lines().count())
    }

    /// A daemon that starts.
    fn start(&self, enabled: bool) -> AppArmor {
        AppArmor::open(Config {
            enabled,
            securityfs: self.path("securityfs"),
            policy_dir: self.path("policy"),
            parsers: vec![self.path("nowhere"), self.path("parser")],
            limit: Duration::from_secs(20),
            state_dir: self.path("state"),
        })
    }
}

const UNSET: AppArmorProfile = AppArmorProfile::Unset;

fn named(name: &str) -> AppArmorProfile {
    AppArmorProfile::Localhost(name.to_owned())
}

#[test]
fn names_in_the_list_may_hold_anything() {
    let list = "berth-default (enforce)\n/usr/sbin/cupsd (complain)\nwith space (kill)\n\
                odd (name) (enforce)\nparent//child (unconfined)\n\nnonsense\n";
    assert_eq!(
        names(list).collect::<Vec<_>>(),
        [
            "berth-default",
            "/usr/sbin/cupsd",
            "with space",
            "odd (name)",
            "parent//child"
        ]
    );
}

#[tokio::test]
async fn what_is_applied_where_it_works() {
    let machine = Machine::new(LOADS);
    let apparmor = machine.start(true);
    assert!(apparmor.works());
    let default = AppArmorProfile::RuntimeDefault;
    for (wanted, privileged, expected) in [
        (UNSET, false, DEFAULT),
        (UNSET, true, "unconfined"),
        (default.clone(), false, DEFAULT),
        (default, true, "unconfined"),
        (AppArmorProfile::Unconfined, false, "unconfined"),
        (AppArmorProfile::Unconfined, true, "unconfined"),
        (named("cups-browsed"), false, "cups-browsed"),
        (named("cups-browsed"), true, "cups-browsed"),
    ] {
        let profile = apparmor.resolve(&wanted, privileged).await.unwrap();
        assert_eq!(profile, expected, "{wanted:?} {privileged}");
    }
    let error = apparmor.resolve(&named("cups"), false).await.unwrap_err();
    assert_eq!(error.kind(), Kind::FailedPrecondition);
    let error = error.to_string();
    assert!(error.contains("\"cups\" is not loaded"), "{error}");
    assert!(error.contains("apparmor_parser -r"), "{error}");
    assert_eq!(apparmor.notices(), Vec::<String>::new());
}

#[tokio::test]
async fn what_is_applied_where_it_does_not_work() {
    let off = Machine::new(LOADS);
    let no_securityfs = Machine::new(LOADS);
    std::fs::remove_file(no_securityfs.path("securityfs/profiles")).unwrap();
    for (machine, enabled, notices) in [(&off, false, 0), (&no_securityfs, true, 1)] {
        let apparmor = machine.start(enabled);
        apparmor.load_default().await;
        assert!(!apparmor.works());
        assert_eq!(apparmor.notices().len(), notices);
        let default = AppArmorProfile::RuntimeDefault;
        for (wanted, privileged) in [
            (UNSET, false),
            (AppArmorProfile::Unconfined, false),
            (default.clone(), true),
        ] {
            assert_eq!(apparmor.resolve(&wanted, privileged).await.unwrap(), "");
        }
        for wanted in [default, named("x")] {
            let error = apparmor.resolve(&wanted, false).await.unwrap_err();
            assert!(
                error.to_string().contains("not enabled on this host"),
                "{error}"
            );
        }
        assert_eq!(machine.runs(), 0);
    }
}

#[tokio::test]
async fn it_is_loaded_once_and_again_when_it_is_gone_or_changed() {
    let machine = Machine::new(LOADS);
    let apparmor = machine.start(true);
    apparmor.load_default().await;
    apparmor.load_default().await;
    assert_eq!(machine.runs(), 1);
    let input = || std::fs::read_to_string(machine.path("runs.input")).unwrap();
    assert_eq!(input(), PROFILE);
    let arguments = std::fs::read_to_string(machine.path("runs")).unwrap();
    assert_eq!(arguments.trim(), "--skip-cache --replace");

    // The next daemon of the same version finds it there.
    machine.start(true).load_default().await;
    assert_eq!(machine.runs(), 1);

    // Somebody has removed it while the daemon runs.
    machine.list("other (enforce)\n");
    assert_eq!(apparmor.resolve(&UNSET, false).await.unwrap(), DEFAULT);
    assert_eq!(machine.runs(), 2);

    // It has another text: the administrator has upgraded the parser, or this is a new version.
    std::fs::create_dir(machine.path("policy/abi")).unwrap();
    std::fs::write(machine.path("policy/abi/3.0"), "").unwrap();
    machine.start(true).load_default().await;
    assert_eq!(machine.runs(), 3);
    assert_eq!(input(), format!("abi <abi/3.0>,\n{PROFILE}"));

    // A reboot empties the kernel and the state directory.
    machine.list("");
    std::fs::remove_dir_all(machine.path("state")).unwrap();
    machine.start(true).load_default().await;
    assert_eq!(machine.runs(), 4);
}

#[tokio::test]
async fn a_failure_is_told_and_not_repeated_at_every_create() {
    let machine = Machine::new("echo 'syntax error at line 3' >&2; exit 1");
    let apparmor = machine.start(true);
    apparmor.load_default().await;
    // Pods that say nothing run all the same; nobody is told to be confined and is not.
    assert_eq!(apparmor.resolve(&UNSET, false).await.unwrap(), "unconfined");
    let default = AppArmorProfile::RuntimeDefault;
    let error = apparmor.resolve(&default, false).await.unwrap_err();
    assert!(
        error.to_string().contains("syntax error at line 3"),
        "{error}"
    );
    assert_eq!(machine.runs(), 1);
    let notices = apparmor.notices();
    assert!(notices[0].contains("syntax error at line 3"), "{notices:?}");
    // Named profiles do not need ours.
    let other = apparmor.resolve(&named("cups-browsed"), false).await;
    assert_eq!(other.unwrap(), "cups-browsed");

    machine.parser(LOADS);
    let next = machine.start(true);
    next.load_default().await;
    assert_eq!((machine.runs(), next.notices().len()), (2, 0));
}

#[tokio::test]
async fn an_older_profile_stays_where_the_new_one_cannot_be_loaded() {
    let machine = Machine::new("exit 1");
    machine.list("berth-default (enforce)\n");
    let apparmor = machine.start(true);
    apparmor.load_default().await;
    for wanted in [UNSET, AppArmorProfile::RuntimeDefault] {
        assert_eq!(apparmor.resolve(&wanted, false).await.unwrap(), DEFAULT);
    }
    assert_eq!(machine.runs(), 1);
    let notices = apparmor.notices();
    assert!(notices[0].contains("earlier Berth"), "{notices:?}");
}

#[tokio::test]
async fn a_parser_that_is_missing_hangs_or_lies_fails() {
    let machine = Machine::new("exit 0");
    let error = machine.start(true).ensure_default().await.unwrap_err();
    assert!(error.to_string().contains("loaded nothing"), "{error}");

    machine.parser("sleep 300");
    let mut hanging = machine.start(true);
    hanging.config.limit = Duration::from_millis(300);
    let error = hanging.ensure_default().await.unwrap_err();
    assert!(error.to_string().contains("it was killed"), "{error}");

    std::fs::remove_file(machine.path("parser")).unwrap();
    let error = machine.start(true).ensure_default().await.unwrap_err();
    assert!(
        error.to_string().contains("install the package apparmor"),
        "{error}"
    );
}

/// What a kernel of AppArmor 3 can do.
const FEATURES: &str = "/etc/apparmor.d/abi/3.0";

/// Compiles a profile for a kernel with the features of AppArmor 3, whatever this machine's kernel has.
fn compile(parser: &Path, text: &str) -> Result<Vec<u8>, String> {
    let mut child = Command::new(parser)
        .args(["--skip-kernel-load", "--skip-cache", "--stdout"])
        .arg("--kernel-features")
        .arg(FEATURES)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    std::io::Write::write_all(&mut stdin, text.as_bytes()).unwrap();
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    match output.status.success() {
        true => Ok(output.stdout),
        false => Err(said),
    }
}

#[test]
fn the_real_parser_takes_the_profile() {
    let parser = ["/sbin/apparmor_parser", "/usr/sbin/apparmor_parser"].map(Path::new);
    let parser = parser.into_iter().find(|path| path.exists());
    let Some(parser) = parser.filter(|_| Path::new(FEATURES).exists()) else {
        berth_skip::skip!(
            "apparmor-parser",
            "none of AppArmor 3 or later is installed"
        );
    };
    let with_abi = text(Path::new("/etc/apparmor.d"));
    for text in [PROFILE, &with_abi] {
        let compiled = compile(parser, text).unwrap();
        let name = DEFAULT.as_bytes();
        assert!(compiled.windows(name.len()).any(|at| at == name));
    }
    let refused = compile(parser, "profile berth-default { deny nonsense, }");
    assert!(refused.unwrap_err().contains("syntax error"));
}

#[test]
fn the_profile_is_the_one_it_is_loaded_as() {
    assert!(PROFILE.contains(&format!("\nprofile {DEFAULT} flags=")));
    assert!(PROFILE.contains(&format!("signal (send, receive) peer={DEFAULT},")));
    assert!(PROFILE.contains(&format!("tracedby) peer={DEFAULT},")));
}

/// The globs, without their first slash, of the profile's denials that have this letter.
fn denied(letter: char) -> Vec<&'static str> {
    let rules = PROFILE.lines().filter_map(|line| {
        let (glob, access) = line.trim().strip_prefix("deny /")?.split_once(' ')?;
        access.contains(letter).then_some(glob)
    });
    rules.collect()
}

/// Whether a path matches a glob of apparmor.d(5), as far as the profile uses them: `*`, `**`, `{a,b}`, `[^a]`.
fn matches(glob: &[u8], path: &[u8]) -> bool {
    match glob {
        [] => path.is_empty(),
        [b'*', b'*', rest @ ..] => (0..=path.len()).any(|at| matches(rest, &path[at..])),
        [b'*', rest @ ..] => (0..=path.len())
            .take_while(|at| !path[..*at].contains(&b'/'))
            .any(|at| matches(rest, &path[at..])),
        [b'{', rest @ ..] => {
            let end = rest.iter().position(|b| *b == b'}').unwrap();
            let (choices, rest) = (&rest[..end], &rest[end + 1..]);
            choices
                .split(|b| *b == b',')
                .any(|choice| matches(&[choice, rest].concat(), path))
        }
        [b'[', b'^', rest @ ..] => {
            let end = rest.iter().position(|b| *b == b']').unwrap();
            let (class, rest) = (&rest[..end], &rest[end + 1..]);
            let Some((first, path)) = path.split_first() else {
                return false;
            };
            let digits = class.starts_with(b"0-9") && first.is_ascii_digit();
            let class = class.strip_prefix(b"0-9").unwrap_or(class);
            !digits && !class.contains(first) && matches(rest, path)
        }
        [letter, rest @ ..] => path.first() == Some(letter) && matches(rest, &path[1..]),
    }
}

fn is_denied(letter: char, path: &str) -> bool {
    let path = path.strip_prefix('/').unwrap().as_bytes();
    denied(letter)
        .iter()
        .any(|glob| matches(glob.as_bytes(), path))
}

#[test]
fn what_of_proc_and_sys_may_not_be_written() {
    for path in [
        "/proc/sysrq-trigger",
        "/proc/kcore",
        "/proc/mtrr",
        "/proc/swaps",
        "/proc/scsi/scsi",
        "/proc/acpi/wakeup",
        "/proc/irq/0/smp_affinity",
        "/proc/bus/pci/00/00.0",
        "/proc/fs/ext4/options",
        "/proc/sysvipc/shm",
        "/proc/sys/abi/x",
        "/proc/sys/fs/file-max",
        "/proc/sys/fs/binfmt_misc/register",
        "/proc/sys/fs/mount-max",
        "/proc/sys/kernel/core_pattern",
        "/proc/sys/kernel/modprobe",
        "/proc/sys/kernel/hostname",
        "/proc/sys/kernel/sysrq",
        "/proc/sys/kernel/seccomp/actions_logged",
        "/proc/sys/kernel/sched_rt_runtime_us",
        "/proc/sys/kernel/yama/ptrace_scope",
        "/proc/sys/kernel/keys/maxkeys",
        "/proc/sys/net/core/bpf_jit_enable",
        "/proc/sys/user/max_user_namespaces",
        "/proc/sys/vm/panic_on_oom",
        "/sys/power/state",
        "/sys/kernel/uevent_helper",
        "/sys/kernel/security/apparmor/.remove",
        "/sys/firmware/efi/vars/x",
        "/sys/fs/bpf/x",
        "/sys/fs/ext4/vda/trigger_fs_error",
        "/sys/devices/system/cpu/cpu0/online",
        "/sys/module/x/parameters/y",
    ] {
        assert!(is_denied('w', path), "{path} may be written");
    }
}

#[test]
fn what_of_proc_and_sys_may_be_written_and_read() {
    for path in [
        "/proc/1/oom_score_adj",
        "/proc/4321/task/4322/comm",
        "/proc/99/net/x",
        "/proc/sys/kernel/shmmax",
        "/proc/sys/kernel/msgmnb",
        "/proc/sys/kernel/sem",
        "/proc/sys/fs/mqueue/msg_max",
        "/sys/fs/cgroup/memory.max",
        "/sys/fs/cgroup/a/b/cgroup.procs",
        "/procedures/x",
        "/system/x",
        "/tmp/proc/sys/vm/x",
    ] {
        assert!(!is_denied('w', path), "{path} may not be written");
    }
    for (path, expected) in [
        ("/proc/kcore", true),
        ("/proc/sysrq-trigger", true),
        ("/sys/firmware/acpi/tables/DSDT", true),
        ("/sys/kernel/security/apparmor/profiles", true),
        ("/sys/devices/virtual/powercap/intel-rapl/energy_uj", true),
        ("/proc/sys/vm/swappiness", false),
        ("/proc/cpuinfo", false),
        ("/sys/devices/system/cpu/online", false),
        ("/sys/kernel/mm/transparent_hugepage/enabled", false),
    ] {
        assert_eq!(is_denied('r', path), expected, "reading {path}");
    }
}
