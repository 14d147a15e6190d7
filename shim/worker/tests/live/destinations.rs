//! Where mounts, masks and device nodes of a container end up, whatever the image and the volumes have prepared.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::driver::*;

/// A fixture and a directory of the host beside it.
pub(crate) struct Case {
    pub(crate) fixture: Fixture,
    host: tempfile::TempDir,
}

impl Case {
    pub(crate) fn new() -> Self {
        Self {
            fixture: Fixture::new(),
            host: tempfile::tempdir().unwrap(),
        }
    }

    fn link(&self, target: &str, name: &str) {
        let path = self.fixture.tree(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink(target, path).unwrap();
    }

    /// A directory of the host with one file named as itself.
    pub(crate) fn volume(&self, name: &str) -> PathBuf {
        let dir = self.host.path().join(name);
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join(name), name).unwrap();
        dir
    }

    fn file(&self, name: &str) -> PathBuf {
        let file = self.host.path().join(name);
        fs::write(&file, name).unwrap();
        file
    }

    pub(crate) fn bind(&mut self, source: &Path, destination: &str) {
        self.fixture.mount(json!({
            "destination": destination, "type": "bind", "source": source, "options": ["rbind", "rprivate", "rw"],
        }));
    }

    pub(crate) fn refused(&self) -> String {
        self.fixture.try_create(sh("true")).err().expect("created")
    }
}

fn entries(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn a_link_of_the_image_into_dev_proc_or_sys_takes_no_mount_there() {
    for (target, name, destination, place) in [
        ("/dev", "data", "/data", "/dev"),
        ("../sys", "a/data", "/a/data", "/sys"),
        ("/proc", "data", "/data/x", "/proc/x"),
        ("one", "data", "/data", "/dev/shm"),
        ("/", "data", "/data", "root itself"),
    ] {
        let mut case = Case::new();
        case.link(target, name);
        case.link("/dev/shm", "one");
        let volume = case.volume("v");
        case.bind(&volume, destination);
        let error = case.refused();
        assert!(
            error.contains(place) && error.contains(destination),
            "{destination}: {error}"
        );
        assert_eq!(entries(&volume), ["v"]);
    }
}

#[test]
fn a_link_of_a_volume_leads_nowhere_else() {
    let mut case = Case::new();
    let (outer, inner) = (case.volume("outer"), case.volume("inner"));
    symlink("/dev", outer.join("dev")).unwrap();
    symlink("../../../../../../../../tmp/berth-made", outer.join("up")).unwrap();
    symlink("missing", outer.join("dangling")).unwrap();
    case.bind(&outer, "/data");
    case.bind(&inner, "/data/dev");
    assert!(case.refused().contains("/dev"));
    let replace = |case: &mut Case, destination: &str| {
        let mounts = case.fixture.config["mounts"].as_array_mut().unwrap();
        mounts.last_mut().unwrap()["destination"] = destination.into();
    };
    replace(&mut case, "/data/dangling");
    let error = case.refused();
    assert!(
        error.contains("/data/missing") && error.contains("in a volume"),
        "{error}"
    );
    // Inside the root, in the container's own layer.
    replace(&mut case, "/data/up");
    let text = case.fixture.sh("cat /tmp/berth-made/inner");
    assert_eq!(text, ("inner".into(), 0));
    assert!(!Path::new("/tmp/berth-made").exists());
    assert!(case.fixture.tree("tmp/berth-made").is_dir());
    assert_eq!(entries(&outer), ["dangling", "dev", "outer", "up"]);
}

#[test]
fn mounts_are_made_in_the_order_of_where_they_lead() {
    let mut case = Case::new();
    case.link("../run", "var/run");
    case.link("/deep/er", "flat");
    fs::create_dir_all(case.fixture.tree("deep/er")).unwrap();
    let [token, run, er, inner] = ["token", "run", "er", "inner"].map(|n| case.volume(n));
    // The inner ones first, and by another name.
    case.bind(&inner, "/flat/in");
    case.bind(&token, "/var/run/secrets/token");
    case.bind(&er, "/deep/er");
    case.bind(&run, "/run");
    let (text, code) = case
        .fixture
        .sh("cat /run/run /run/secrets/token/token /deep/er/er /deep/er/in/inner");
    assert_eq!((text.as_str(), code), ("runtokenerinner", 0));

    // Of two in one place the later one wins.
    let mut case = Case::new();
    case.link("one", "two");
    fs::create_dir(case.fixture.tree("one")).unwrap();
    let (a, b) = (case.volume("a"), case.volume("b"));
    case.bind(&a, "/two");
    case.bind(&b, "/one");
    assert_eq!(case.fixture.sh("ls /one /two").0, "/one:\nb\n\n/two:\nb\n");
}

#[test]
fn the_target_of_a_dangling_link_is_made_in_the_root() {
    for (links, destination, made) in [
        (
            &[("/run/resolv.conf", "etc/resolv.conf")][..],
            "/etc/resolv.conf",
            "run/resolv.conf",
        ),
        (
            &[("../run/systemd/x", "etc/localtime")],
            "/etc/localtime",
            "run/systemd/x",
        ),
        (&[("b", "a"), ("/c/d", "b")], "/a", "c/d"),
        (&[("/gone", "way")], "/way/on/file", "gone/on/file"),
        (&[("../../../../../../out", "up")], "/up", "out"),
    ] {
        for read_only in [false, true] {
            let mut case = Case::new();
            for (target, name) in links {
                case.link(target, name);
            }
            let file = case.file("file");
            case.bind(&file, destination);
            case.fixture.config["root"]["readonly"] = read_only.into();
            let text = case.fixture.sh(&format!(
                "cat {destination}; touch /x 2>/dev/null && echo w"
            ));
            let writable = if read_only { "" } else { "w\n" };
            assert_eq!(text.0, format!("file{writable}"), "{destination}");
            assert!(case.fixture.tree(made).is_file(), "{made}");
            assert_eq!(fs::read(&file).unwrap(), b"file");
        }
    }
}

#[test]
fn what_cannot_take_the_mount_is_named_with_the_reason() {
    let mut case = Case::new();
    case.link("loop", "loop");
    fs::write(case.fixture.tree("file"), "").unwrap();
    let volume = case.volume("v");
    let long = format!("/{}", "n".repeat(300));
    for (destination, why) in [
        ("/loop/x", "circle"),
        ("/file", "/file is no directory"),
        ("/file/below", "not a directory"),
        (long.as_str(), "longer than"),
        ("/proc/sys", "procfs"),
    ] {
        case.bind(&volume, destination);
        let error = case.refused();
        assert!(
            error.contains(why) && error.contains(destination),
            "{error}"
        );
        assert!(error.contains(volume.to_str().unwrap()), "{error}");
        case.fixture.config["mounts"].as_array_mut().unwrap().pop();
    }
    let file = case.file("f");
    case.bind(&file, "/tmp");
    assert!(case.refused().contains("/tmp is a directory"));
    // Below a volume that may not be written.
    let mut case = Case::new();
    let (outer, inner) = (case.volume("outer"), case.volume("inner"));
    case.fixture.mount(json!({
        "destination": "/ro", "type": "bind", "source": outer, "options": ["rbind", "ro"],
    }));
    case.bind(&inner, "/ro/inner");
    let error = case.refused();
    assert!(
        error.contains("/ro/inner") && error.contains("read-only"),
        "{error}"
    );
}

/// A stand-in for the host's `/dev`.
fn host_dev(case: &Case) -> PathBuf {
    let dev = case.host.path().join("dev");
    fs::create_dir_all(dev.join("shm")).unwrap();
    for (name, minor) in [("null", 3), ("zero", 5)] {
        let kind = rustix::fs::FileType::CharacterDevice;
        let mode = rustix::fs::Mode::from_raw_mode(0o666);
        let path = dev.join(name);
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &path,
            kind,
            mode,
            rustix::fs::makedev(1, minor),
        )
        .unwrap();
    }
    symlink("/proc/self/fd", dev.join("fd")).unwrap();
    dev
}

#[test]
fn a_dev_of_the_pods_is_taken_as_it_is() {
    let mut case = Case::new();
    let dev = host_dev(&case);
    let (log, shm) = (case.file("log"), case.volume("s"));
    let mounts = case.fixture.config["mounts"].as_array_mut().unwrap();
    mounts.retain(|m| !m["destination"].as_str().unwrap().starts_with("/dev"));
    case.bind(&shm, "/dev/shm");
    case.bind(&dev, "/dev");
    case.bind(&log, "/dev/termination-log");
    case.fixture.config["linux"]["devices"] =
        json!([{ "path": "/dev/zero", "type": "c", "major": 1, "minor": 5 }]);
    let (text, code) = case
        .fixture
        .sh("ls /dev; cat /dev/shm/s /dev/termination-log; cut -d' ' -f5 /proc/self/mountinfo | grep -c '^/dev'");
    assert_eq!(
        (text.as_str(), code),
        ("fd\nnull\nshm\ntermination-log\nzero\nslog3\n", 0)
    );
    // The mount point was made where it was missing, and nothing else.
    assert_eq!(
        entries(&dev),
        ["fd", "null", "shm", "termination-log", "zero"]
    );
    assert_eq!(fs::read(dev.join("termination-log")).unwrap(), b"");
    assert!(entries(&dev.join("shm")).is_empty());

    // A node that would have to be made there is refused.
    case.fixture.config["linux"]["devices"] =
        json!([{ "path": "/dev/full", "type": "c", "major": 1, "minor": 7 }]);
    remove_cgroup(&case.fixture.leaves());
    let error = case.refused();
    assert!(
        error.contains("/dev/full") && error.contains("in a volume"),
        "{error}"
    );
    assert!(!dev.join("full").exists());
}

#[test]
fn a_mount_takes_the_place_of_what_the_container_has_in_dev() {
    for name in [
        "null", "tty", "urandom", "fd", "stdin", "ptmx", "console", "new/one",
    ] {
        let mut case = Case::new();
        let file = case.file("f");
        case.bind(&file, &format!("/dev/{name}"));
        let (text, code) = case.fixture.sh(&format!("cat /dev/{name}"));
        assert_eq!((text.as_str(), code), ("f", 0), "{name}");
        assert_eq!(fs::read(&file).unwrap(), b"f");
        assert!(entries(&case.fixture.tree("dev")).is_empty());
    }
    let mut case = Case::new();
    let volume = case.volume("v");
    case.bind(&volume, "/dev/fd");
    assert_eq!(case.fixture.sh("ls /dev/fd").0, "v\n");
}

#[test]
fn a_terminal_in_a_dev_of_the_pods() {
    let mut case = Case::new();
    let mounts = case.fixture.config["mounts"].as_array_mut().unwrap();
    mounts.retain(|m| !m["destination"].as_str().unwrap().starts_with("/dev"));
    case.bind(Path::new("/dev"), "/dev");
    let before = entries(Path::new("/dev"));
    let mut process = sh("test -t 0 && tty > /dev/console");
    process.terminal = true;
    let mut container = case.fixture.create(process);
    let console = container.console.take().unwrap();
    container.start().unwrap();
    let text = read(console);
    assert!(text.starts_with("/dev/pts/"), "{text}");
    assert_eq!(container.wait(), 0);
    let mut after = entries(Path::new("/dev"));
    if !before.contains(&"console".to_owned()) {
        fs::remove_file("/dev/console").unwrap();
        after.retain(|name| name != "console");
    }
    assert_eq!(after, before);
}

/// A terminal is asked for, and what it needs is masked, missing or led elsewhere by links.
#[test]
fn a_terminal_that_cannot_be_had_says_what_is_missing() {
    let mut process = sh("tty > /dev/console");
    process.terminal = true;
    let mut case = Case::new();
    for masked in ["/dev/pts", "/dev/pts/ptmx", "/dev"] {
        case.fixture.config["linux"]["maskedPaths"] = json!([masked]);
        let error = case.fixture.try_create(process.clone()).err().unwrap();
        assert!(error.contains("/dev/pts"), "{error}");
    }
    for (target, told) in [
        ("gone/deep", "/dev/gone/deep"),
        ("console", "circle"),
        ("/proc/x", "/proc/x"),
    ] {
        let mut case = Case::new();
        let dev = host_dev(&case);
        fs::create_dir(dev.join("pts")).unwrap();
        symlink(target, dev.join("console")).unwrap();
        let mounts = case.fixture.config["mounts"].as_array_mut().unwrap();
        let pts = mounts
            .iter()
            .position(|m| m["destination"] == "/dev/pts")
            .unwrap();
        let pts = mounts.remove(pts);
        mounts.retain(|m| m["destination"] != "/dev");
        case.bind(&dev, "/dev");
        case.fixture.mount(pts);
        let error = case.fixture.try_create(process.clone()).err().unwrap();
        assert!(
            error.contains("/dev/console") && error.contains(told),
            "{error}"
        );
        assert_eq!(
            entries(&dev),
            ["console", "fd", "null", "pts", "shm", "zero"]
        );
        // One that leads somewhere is followed.
        fs::remove_file(dev.join("console")).unwrap();
        symlink("zero", dev.join("console")).unwrap();
        let mut container = case.fixture.create(process.clone());
        let console = container.console.take().unwrap();
        container.start().unwrap();
        let text = read(console);
        assert!(text.starts_with("/dev/pts/"), "{text}");
        assert_eq!(container.wait(), 0);
    }
}

#[test]
fn a_working_directory_that_cannot_be_is_named() {
    for read_only in [false, true] {
        let mut case = Case::new();
        case.link("gone", "dangling");
        case.link("loop", "loop");
        fs::write(case.fixture.tree("file"), "").unwrap();
        case.fixture.config["root"]["readonly"] = read_only.into();
        for (cwd, why) in [
            ("/dangling", "leads to nothing or in a circle"),
            ("/dangling/below", "leads to nothing or in a circle"),
            ("/loop", "leads to nothing or in a circle"),
            ("/file", "not a directory"),
            ("/file/below", "not a directory"),
        ] {
            let mut process = sh("true");
            process.cwd = cwd.into();
            let error = case.fixture.try_create(process).err().unwrap();
            assert!(
                error.contains(&format!("{cwd:?}")) && error.contains(why),
                "{error}"
            );
        }
        assert!(!case.fixture.tree("gone").exists());
    }
}

#[test]
fn devices_take_the_place_of_the_engines_links() {
    let mut case = Case::new();
    let node = |path: &str| json!({ "path": path, "type": "c", "major": 1, "minor": 5, "fileMode": 0o666 });
    case.fixture.config["linux"]["devices"] =
        json!([node("/dev/fd/9"), node("/dev/stdin"), node("/dev/core/x")]);
    let text = case
        .fixture
        .sh("stat -c '%F %t:%T' /dev/fd/9 /dev/stdin /dev/core/x");
    assert_eq!(text, ("character special file 1:5\n".repeat(3), 0));
}

#[test]
fn odd_paths_to_mask_are_read_as_they_are_meant() {
    let mut case = Case::new();
    for name in ["a", "b", "c"] {
        fs::write(case.fixture.tree(name), name).unwrap();
    }
    case.fixture.config["linux"]["maskedPaths"] = json!([
        "",
        "/no/such/../../a",
        "b",
        "/c/..//./c",
        "/no/../x",
        "/no/.."
    ]);
    case.fixture.config["linux"]["readonlyPaths"] = json!(["", "/no/../tmp"]);
    let text = case
        .fixture
        .sh("cat /a /b /c; touch /w; touch /tmp/w 2>/dev/null || echo ro");
    assert_eq!(text, ("ro\n".into(), 0));
    case.fixture.config["linux"]["maskedPaths"] = json!(["/a\0b"]);
    remove_cgroup(&case.fixture.leaves());
    assert!(case.refused().contains("NUL"));
}

#[test]
fn masks_and_read_only_paths_follow_links() {
    let mut case = Case::new();
    fs::create_dir_all(case.fixture.tree("etc/dir/sub")).unwrap();
    for name in ["etc/secret", "etc/dir/file", "etc/kept"] {
        fs::write(case.fixture.tree(name), "secret").unwrap();
    }
    case.link("secret", "etc/alias");
    case.link("/etc/dir", "dirs");
    case.link("gone", "etc/dangling");
    case.link("kept", "etc/ro");
    let volume = case.volume("v");
    let null = case.file("n");
    case.bind(&volume, "/vol");
    // What masks files is not what the pod calls /dev/null.
    case.bind(&null, "/dev/null");
    case.fixture.config["linux"]["maskedPaths"] = json!([
        "/etc/alias",
        "/dirs/",
        "/etc/dangling",
        "/no/such",
        "/etc/kept/below",
        "/vol/v",
        "/etc/alias",
    ]);
    case.fixture.config["linux"]["readonlyPaths"] = json!(["/etc/ro", "/no/such", "/bin/."]);
    let (text, code) = case.fixture.sh(
        "cat /etc/secret /etc/alias /vol/v; ls /etc/dir; touch /etc/dir/x && echo wrong; cat /etc/kept; \
         touch /tmp/w; echo x > /etc/kept || touch /bin/x || echo ' ro'",
    );
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("secret") && text.contains(" ro\n"), "{text}");
    assert_eq!(text.matches("secret").count(), 1, "{text}");
    assert!(
        !text.contains("wrong") && text.contains("Read-only"),
        "{text}"
    );
    assert_eq!(fs::read(volume.join("v")).unwrap(), b"v");
    assert_eq!(
        fs::read(case.fixture.tree("etc/secret")).unwrap(),
        b"secret"
    );
}

#[test]
fn what_exists_and_cannot_be_masked_fails_the_create() {
    for (path, why) in [
        ("/", "root itself"),
        ("/up", "root itself"),
        ("/proc/1/root/etc", "/proc/1/root is a link into a process"),
        ("/proc/self/cwd", "is a link into a process"),
        ("/loop", "lead in a circle"),
        ("/loop/below", "lead in a circle"),
    ] {
        for list in ["maskedPaths", "readonlyPaths"] {
            if list == "readonlyPaths" && why == "root itself" {
                continue;
            }
            let mut case = Case::new();
            case.link("../..", "up");
            case.link("loop", "loop");
            case.fixture.config["linux"][list] = json!([path]);
            let error = case.refused();
            assert!(error.contains(path) && error.contains(why), "{error}");
        }
    }
}

#[test]
fn device_nodes_go_where_they_are_asked_for_in_ordinary_directories() {
    let mut case = Case::new();
    case.link("/real", "link");
    fs::create_dir(case.fixture.tree("real")).unwrap();
    let node = |path: &str| json!({ "path": path, "type": "c", "major": 1, "minor": 3, "fileMode": 0o640, "uid": 7, "gid": 8 });
    case.fixture.config["linux"]["devices"] = json!([
        node("/dev/a/b/one"),
        node("/opt/deep/two"),
        node("/link/three"),
        node("/dev/null"),
    ]);
    // SAFETY of other tests: umask is the process's, so a child of this one gets it by a shell.
    let script = "stat -c '%a %F' /dev/a /dev/a/b /opt /opt/deep; \
                  stat -c '%a %u %g %t:%T' /dev/a/b/one /opt/deep/two /real/three";
    let (text, code) = case.fixture.sh(script);
    let dir = "755 directory\n".repeat(4);
    let nodes = "640 7 8 1:3\n".repeat(3);
    assert_eq!((text, code), (format!("{dir}{nodes}"), 0));
    let made = fs::symlink_metadata(case.fixture.tree("opt/deep/two")).unwrap();
    assert!(made.file_type().is_char_device());
    assert_eq!(made.rdev(), rustix::fs::makedev(1, 3));
    let deep = fs::metadata(case.fixture.tree("opt/deep")).unwrap();
    assert_eq!(deep.permissions().mode() & 0o7777, 0o755);

    for (path, why) in [
        ("/vol/x", "in a volume"),
        ("/dev2", "by way of a link"),
        ("/proc/x", "can be made there"),
        ("/proc/self/root/x", "link into a process"),
    ] {
        let mut case = Case::new();
        let volume = case.volume("v");
        case.bind(&volume, "/vol");
        case.link("/sys/x", "dev2");
        case.fixture.config["linux"]["devices"] = json!([node(path)]);
        let error = case.refused();
        assert!(error.contains(path) && error.contains(why), "{error}");
        assert_eq!(entries(&volume), ["v"]);
    }
    // What the image or the volume has there stays what it is.
    let mut case = Case::new();
    let volume = case.volume("v");
    case.bind(&volume, "/vol");
    fs::write(case.fixture.tree("file"), "keep").unwrap();
    fs::create_dir(case.fixture.tree("dir")).unwrap();
    case.fixture.config["linux"]["devices"] = json!([node("/file"), node("/vol/v"), node("/dir")]);
    let text = case.fixture.sh("cat /file /vol/v; test -d /dir");
    assert_eq!(text, ("keepv".into(), 0));
}

#[test]
fn links_and_devices_make_what_they_name_in_the_containers_own_volumes() {
    let mut case = Case::new();
    case.link("../run/systemd/resolve/stub", "etc/resolv.conf");
    let (run, own, file) = (case.volume("run"), case.volume("own"), case.file("f"));
    symlink("real", own.join("here")).unwrap();
    case.bind(&file, "/etc/resolv.conf");
    case.bind(&file, "/own/here");
    case.bind(&run, "/run");
    case.bind(&own, "/own");
    let error = case.refused();
    assert!(error.contains("in a volume"), "{error}");
    assert_eq!(
        (entries(&run), entries(&own)),
        (vec!["run".into()], vec!["here".into(), "own".into()])
    );

    let mounts = case.fixture.config["mounts"].as_array_mut().unwrap();
    for mount in mounts.iter_mut().rev().take(2) {
        mount["own"] = true.into();
    }
    case.fixture.config["linux"]["devices"] = json!([
        { "path": "/own/deep/zero", "type": "c", "major": 1, "minor": 5, "fileMode": 0o666 },
    ]);
    case.fixture.config["root"]["readonly"] = true.into();
    let text = case.fixture.sh(
        "cat /etc/resolv.conf /own/here /run/systemd/resolve/stub /own/real; stat -c '%F %t:%T' /own/deep/zero",
    );
    assert_eq!(text, ("ffffcharacter special file 1:5\n".into(), 0));
    assert_eq!(entries(&own), ["deep", "here", "own", "real"]);
}

#[test]
fn directories_have_their_modes_under_any_umask() {
    let mut case = Case::new();
    case.link("/run/there", "etc/here");
    let volume = case.volume("v");
    case.bind(&volume, "/etc/here/in");
    case.fixture.config["linux"]["devices"] =
        json!([{ "path": "/dev/x/y", "type": "c", "major": 1, "minor": 3, "fileMode": 0o666 }]);
    let script = "stat -c %a /dev /dev/x /dev/x/y /dev/null /run /run/there /proc";
    // A worker inherits its parent's.
    let before = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    let container = case.fixture.try_create(sh(script));
    rustix::process::umask(before);
    let mut container = container.unwrap();
    container.start().unwrap();
    assert_eq!(container.finish().0, "755\n755\n666\n666\n755\n755\n555\n");
    for name in ["run", "run/there", "proc"] {
        let mode = fs::metadata(case.fixture.tree(name)).unwrap().permissions();
        assert_eq!(mode.mode() & 0o777, 0o755, "{name}");
    }
}

#[test]
fn many_mounts_need_no_higher_limit_of_open_files() {
    let mut case = Case::new();
    let file = case.file("f");
    for n in 0..1100 {
        case.bind(&file, &format!("/many/{n}"));
    }
    let (text, code) = case
        .fixture
        .sh("cat /many/* | wc -c; ulimit -Sn > /tmp/limit; ls /proc/self/fd | wc -l");
    assert_eq!((text.as_str(), code), ("1100\n4\n", 0));
    let limit = fs::read_to_string(case.fixture.tree("tmp/limit")).unwrap();
    let now = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    assert_eq!(limit.trim(), now.current.unwrap().to_string());
}
