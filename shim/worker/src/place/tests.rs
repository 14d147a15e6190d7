use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use super::*;

fn root(dir: &Path) -> Root {
    let flags = OFlags::PATH | OFlags::DIRECTORY;
    Root::new(rustix::fs::open(dir, flags, Mode::empty()).unwrap()).unwrap()
}

fn leads(root: &Root, path: &str) -> String {
    String::from_utf8(root.find(path.as_bytes()).unwrap().path).unwrap()
}

#[test]
fn links_are_followed_inside_the_root_and_what_is_missing_is_taken_as_written() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    std::fs::create_dir_all(at("run/lock")).unwrap();
    std::fs::create_dir(at("var")).unwrap();
    symlink("../../../run", at("var/run")).unwrap();
    symlink("/dev", at("data")).unwrap();
    symlink("one", at("chain")).unwrap();
    symlink("/two", at("one")).unwrap();
    symlink("gone/../run/lock", at("two")).unwrap();
    let root = root(dir.path());
    for (path, place) in [
        ("/var/run/secrets/a", "/run/secrets/a"),
        ("/data/x", "/dev/x"),
        ("/chain/y", "/run/lock/y"),
        ("/no/such", "/no/such"),
        ("/var/run/lock", "/run/lock"),
        ("/", "/"),
    ] {
        assert_eq!(leads(&root, path), place);
    }
    assert_eq!(depth(&root.find(b"/var/run/lock/x").unwrap().path), 3);
}

#[test]
fn only_what_a_link_names_counts_as_dangling() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("etc")).unwrap();
    symlink("/run/resolv.conf", dir.path().join("etc/resolv.conf")).unwrap();
    symlink("etc", dir.path().join("conf")).unwrap();
    let root = root(dir.path());
    assert!(root.find(b"/etc/resolv.conf").unwrap().dangling);
    assert!(!root.find(b"/conf/hosts").unwrap().dangling);
    assert!(!root.find(b"/new/hosts").unwrap().dangling);
    let made = root.find(b"/etc/resolv.conf").unwrap();
    made.mount_point(&root, Shape::File).unwrap();
    assert!(dir.path().join("run/resolv.conf").is_file());
    let mode = std::fs::metadata(dir.path().join("run")).unwrap();
    assert_eq!(mode.permissions().mode() & 0o777, 0o755);
}

#[test]
fn loops_files_on_the_way_and_long_names_say_so() {
    let dir = tempfile::tempdir().unwrap();
    symlink("loop", dir.path().join("loop")).unwrap();
    std::fs::write(dir.path().join("file"), "").unwrap();
    let root = root(dir.path());
    let why = |path: &str| root.find(path.as_bytes()).unwrap_err().to_string();
    assert!(why("/loop/x").contains("circle"), "{}", why("/loop/x"));
    assert!(why("/file/x").contains("no directory"));
    assert!(why(&format!("/{}", "n".repeat(300))).contains("longer than"));
    let file = root.find(b"/file").unwrap();
    let error = file.mount_point(&root, Shape::Directory).unwrap_err();
    assert!(
        error.to_string().contains("/file is no directory"),
        "{error}"
    );
}

#[test]
fn a_link_into_dev_proc_or_sys_is_refused_and_a_written_path_is_not() {
    for (wanted, place, fits) in [
        ("/data", "/dev", false),
        ("/data/x", "/sys/x", false),
        ("/dev/fd/1", "/proc/1/fd/1", false),
        ("/dev", "/dev", true),
        ("/dev/shm", "/dev/shm", true),
        ("/sys/class", "/sys/devices", true),
        ("/device", "/devices", true),
        ("/a", "/", false),
    ] {
        let judged = judge(wanted, place.as_bytes());
        assert_eq!(judged.is_ok(), fits, "{wanted} {place}");
        if let Err(e) = judged
            && place != "/"
        {
            assert!(e.to_string().contains(place), "{e}");
        }
    }
    for (place, procfs, fits) in [
        ("/proc", true, true),
        ("/proc", false, false),
        ("/proc/uptime", false, true),
        ("/proc/sys", false, false),
        ("/process", false, true),
    ] {
        assert_eq!(
            judge_proc(place.as_bytes(), procfs).is_ok(),
            fits,
            "{place}"
        );
    }
}

#[test]
fn a_node_is_made_once_and_never_over_something_else() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("file"), "keep").unwrap();
    let root = root(dir.path());
    let null = rustix::fs::makedev(1, 3);
    let make = |path: &str| {
        let place = root.find(path.as_bytes()).unwrap();
        place.node(&root, FileType::CharacterDevice, null, Mode::RUSR)
    };
    assert!(make("/deep/er/node").unwrap().is_some());
    assert!(make("/deep/er/node").unwrap().is_none());
    // What the image has there stays.
    assert!(make("/file").unwrap().is_none());
    assert_eq!(std::fs::read(dir.path().join("file")).unwrap(), b"keep");
    let mode = std::fs::metadata(dir.path().join("deep")).unwrap();
    assert_eq!(mode.permissions().mode() & 0o777, 0o755);
}

#[test]
fn links_into_processes_are_not_followed() {
    // The machine's own procfs: its root has plain links too.
    let root = root(Path::new("/"));
    assert!(leads(&root, "/proc/self/fd").starts_with("/proc/"));
    for path in [
        "/proc/self/exe",
        "/proc/self/root/etc",
        "/proc/thread-self/fd/0",
    ] {
        let error = root.find(path.as_bytes()).unwrap_err();
        assert!(error.is_invalid(), "{error}");
        assert!(
            error.to_string().contains("a link into a process"),
            "{error}"
        );
    }
    let place = root.find(b"/proc/mounts").unwrap();
    assert!(place.path.ends_with(b"/mounts"));
}

#[test]
fn what_is_missing_is_made_only_where_it_is_the_containers_own() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("vol")).unwrap();
    symlink("gone", dir.path().join("vol/link")).unwrap();
    let mount = || {
        let options = crate::options::Options::parse(std::iter::empty());
        let tree = crate::tree::file_system("tmpfs", "tmpfs", &options).unwrap();
        rustix::fs::symlinkat("gone", &tree, "link").unwrap();
        let point = rustix::fs::open(dir.path().join("vol"), PLAIN, Mode::empty()).unwrap();
        crate::tree::put(tree.as_fd(), point.as_fd()).unwrap();
        tree
    };
    let unmount = || {
        let flags = rustix::mount::UnmountFlags::DETACH;
        rustix::mount::unmount(dir.path().join("vol"), flags).unwrap();
    };
    let null = rustix::fs::makedev(1, 3);
    for own in [false, true] {
        let tree = mount();
        let mut root = root(dir.path());
        if own {
            root.add(&tree).unwrap();
        }
        let point = root.find(b"/vol/link").unwrap();
        let made = point.mount_point(&root, Shape::File);
        let node = root.find(b"/vol/in/node").unwrap();
        let node = node.node(&root, FileType::CharacterDevice, null, Mode::RUSR);
        unmount();
        for error in [made.err(), node.err()] {
            let told = error.map(|e| e.to_string()).unwrap_or_default();
            assert_eq!(told.contains("in a volume"), !own, "{told}");
        }
    }
}
