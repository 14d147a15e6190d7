use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use super::*;

fn temp() -> (tempfile::TempDir, OwnedFd) {
    let dir = tempfile::tempdir().unwrap();
    let fd = open_dir_path(dir.path()).unwrap();
    (dir, fd)
}

#[test]
fn links_are_resolved_inside_the_root() {
    let (dir, root) = temp();
    std::fs::create_dir(dir.path().join("etc")).unwrap();
    std::fs::write(dir.path().join("etc/passwd"), "inside").unwrap();
    symlink("/etc", dir.path().join("a")).unwrap();
    symlink("../../../../etc", dir.path().join("b")).unwrap();
    for path in ["a/passwd", "b/passwd", "/a/passwd", "../../b/../a/passwd"] {
        let fd = open_in_root(root.as_fd(), Path::new(path), OFlags::RDONLY, Mode::empty());
        let mut text = String::new();
        io::Read::read_to_string(&mut std::fs::File::from(fd.unwrap()), &mut text).unwrap();
        assert_eq!(text, "inside", "{path}");
        assert!(
            open_beneath(root.as_fd(), Path::new(path), OFlags::RDONLY, Mode::empty()).is_err(),
            "{path}"
        );
    }
}

#[test]
fn a_way_is_told_without_being_made() {
    let (dir, root) = temp();
    std::fs::create_dir_all(dir.path().join("usr/lib")).unwrap();
    std::fs::write(dir.path().join("file"), "").unwrap();
    symlink("/dev", dir.path().join("data")).unwrap();
    symlink("../../../run/now", dir.path().join("usr/dangling")).unwrap();
    symlink("usr/./lib/..", dir.path().join("usual")).unwrap();
    symlink("gone/../usr", dir.path().join("back")).unwrap();
    symlink("loop", dir.path().join("loop")).unwrap();
    let at = |path: &str| resolve_in_root(root.as_fd(), Path::new(path));
    for (path, real) in [
        ("", "/"),
        ("data", "/dev"),
        ("/data/x/../y", "/dev/y"),
        ("/usr/dangling/a", "/run/now/a"),
        ("/usual/lib", "/usr/lib"),
        ("/back/lib", "/usr/lib"),
        ("/../../file", "/file"),
        ("/no/such/../place", "/no/place"),
    ] {
        assert_eq!(at(path).unwrap(), Path::new(real), "{path}");
    }
    let errno = |path: &str| Errno::from_io_error(&at(path).unwrap_err());
    assert_eq!(errno("/loop/x"), Some(Errno::LOOP));
    assert_eq!(errno("/file/x"), Some(Errno::NOTDIR));
    assert_eq!(errno(&"x".repeat(300)), Some(Errno::NAMETOOLONG));
    assert!(!dir.path().join("run").exists() && !dir.path().join("no").exists());
}

#[test]
fn magic_links_are_refused() {
    let proc = open_dir_path(Path::new("/proc/self")).unwrap();
    let error = open_in_root(
        proc.as_fd(),
        Path::new("exe"),
        OFlags::RDONLY,
        Mode::empty(),
    );
    assert_eq!(Errno::from_io_error(&error.unwrap_err()), Some(Errno::LOOP));
}

#[test]
fn directories_are_made_behind_dangling_links() {
    let (dir, root) = temp();
    symlink("/usr/lib", dir.path().join("lib")).unwrap();
    symlink("../../lib/../lib", dir.path().join("lib64")).unwrap();
    let mut made = Vec::new();
    let mode = Mode::from_raw_mode(0o755);
    let place = make_dirs(root.as_fd(), Path::new("lib64/x/../y"), mode, &mut |path| {
        made.push(path.to_owned());
    });
    assert_eq!(place.unwrap().path, Path::new("usr/lib/y"));
    let wanted = ["usr", "usr/lib", "usr/lib/x", "usr/lib/y"].map(PathBuf::from);
    assert_eq!(made, wanted);
    make_dirs(root.as_fd(), Path::new("/../lib/z"), mode, &mut |_| {}).unwrap();
    assert!(dir.path().join("usr/lib/z").is_dir());
}

#[test]
fn a_file_or_a_loop_on_the_way_is_an_error() {
    let (dir, root) = temp();
    std::fs::write(dir.path().join("file"), "").unwrap();
    symlink("loop", dir.path().join("loop")).unwrap();
    for path in ["file/x", "loop/x"] {
        assert!(
            make_dirs(root.as_fd(), Path::new(path), Mode::RWXU, &mut |_| {}).is_err(),
            "{path}"
        );
    }
}

#[test]
fn a_tree_is_removed_but_not_what_its_links_point_at() {
    let (dir, root) = temp();
    let canary = tempfile::tempdir().unwrap();
    std::fs::write(canary.path().join("alive"), "").unwrap();
    std::fs::create_dir_all(dir.path().join("x/a/b")).unwrap();
    symlink(canary.path(), dir.path().join("x/a/out")).unwrap();
    std::fs::write(dir.path().join("x/a/b/f"), "").unwrap();
    std::fs::set_permissions(dir.path().join("x/a"), PermissionsExt::from_mode(0o000)).unwrap();
    remove_tree(root.as_fd(), "x").unwrap();
    remove_tree(root.as_fd(), "x").unwrap();
    assert!(!dir.path().join("x").exists());
    assert!(canary.path().join("alive").exists());
}

#[test]
fn a_very_deep_tree_is_removed() {
    let (_dir, root) = temp();
    rustix::fs::mkdirat(&root, "deep", Mode::RWXU).unwrap();
    let mut here = open_dir(root.as_fd(), OsStr::new("deep")).unwrap();
    for _ in 0..3000 {
        rustix::fs::mkdirat(&here, "d", Mode::RWXU).unwrap();
        here = open_dir(here.as_fd(), OsStr::new("d")).unwrap();
    }
    drop(here);
    remove_tree(root.as_fd(), "deep").unwrap();
    assert!(names(root.as_fd()).unwrap().is_empty());
}

/// S24: somebody swaps a directory for a link while we remove.
#[test]
fn a_swapped_link_does_not_lead_removal_outside() {
    let (dir, root) = temp();
    let canary = tempfile::tempdir().unwrap();
    std::fs::create_dir(canary.path().join("keep")).unwrap();
    std::fs::write(canary.path().join("keep/alive"), "").unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (real, link) = (dir.path().join("real"), dir.path().join("link"));
            std::fs::create_dir(&real).unwrap();
            symlink(canary.path(), &link).unwrap();
            let (real, link) = (real.as_path(), link.as_path());
            let cwd = rustix::fs::CWD;
            while !stop.load(Ordering::Relaxed) {
                for swap in [real, link] {
                    let _ = rustix::fs::renameat_with(
                        cwd,
                        swap,
                        cwd,
                        dir.path().join("tree/a/b"),
                        rustix::fs::RenameFlags::EXCHANGE,
                    );
                }
            }
        });
        for _ in 0..2000 {
            std::fs::create_dir_all(dir.path().join("tree/a/b/keep")).ok();
            // Losing the race is fine, leaving the root is not.
            let _ = remove_tree(root.as_fd(), "tree");
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(canary.path().join("keep/alive").exists());
}

#[test]
fn an_atomic_write_replaces_and_leaves_nothing_beside_it() {
    let (dir, root) = temp();
    for text in ["one", "two"] {
        let mode = Mode::from_raw_mode(0o640);
        write_atomic(root.as_fd(), "f", text.as_bytes(), mode, true).unwrap();
    }
    let path = dir.path().join("f");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "two");
    assert_eq!(
        std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777,
        0o640
    );
    std::fs::create_dir(dir.path().join("d")).unwrap();
    assert!(write_atomic(root.as_fd(), "d", b"", Mode::RUSR, false).is_err());
    assert_eq!(names(root.as_fd()).unwrap().len(), 2);
}

#[test]
fn reading_is_bounded_and_never_through_links_or_pipes() {
    let (dir, root) = temp();
    std::fs::write(dir.path().join("f"), "12345").unwrap();
    symlink("f", dir.path().join("l")).unwrap();
    rustix::fs::mkfifoat(&root, "p", Mode::RWXU).unwrap();
    let read = |name: &str, limit| read_limited(root.as_fd(), OsStr::new(name), limit);
    assert_eq!(read("f", 5).unwrap(), b"12345");
    assert!(read("f", 4).is_err());
    assert!(read("l", 5).is_err());
    assert!(read("p", 5).is_err());
}

#[test]
fn usage_adds_up_blocks_and_names() {
    let (dir, root) = temp();
    let before = tree_usage(root.as_fd()).unwrap();
    assert_eq!(before.inodes, 1);
    std::fs::create_dir(dir.path().join("d")).unwrap();
    std::fs::write(dir.path().join("d/f"), vec![1; 100_000]).unwrap();
    symlink("/", dir.path().join("d/l")).unwrap();
    let after = tree_usage(root.as_fd()).unwrap();
    assert_eq!(after.inodes, 4);
    assert!(after.bytes - before.bytes >= 100_000, "{after:?}");
}

#[test]
fn a_visit_sees_everything_once_however_deep() {
    let dir = tempfile::tempdir().unwrap();
    let root = open_dir_path(dir.path()).unwrap();
    // Two branches that part far below the directories that are kept open.
    let deep = vec!["d"; 150].join("/");
    for branch in ["a", "b"] {
        let path = dir.path().join(&deep).join(branch).join(&deep);
        std::fs::create_dir_all(&path).unwrap();
        std::fs::write(path.join("f"), b"x").unwrap();
    }
    for number in 0..100 {
        std::fs::write(dir.path().join(format!("d/d/f{number}")), b"x").unwrap();
    }
    std::os::unix::fs::symlink("/", dir.path().join("d/link")).unwrap();
    let mut seen = std::collections::HashSet::new();
    visit_tree(root.as_fd(), &mut |visit| {
        assert!(seen.insert(visit.path.to_owned()), "{:?}", visit.path);
        Ok(Next::Enter)
    })
    .unwrap();
    assert_eq!(seen.len(), 150 + 2 * (1 + 150 + 1) + 100 + 1);
    let usage = tree_usage(root.as_fd()).unwrap();
    assert_eq!(usage.inodes, seen.len() as u64 + 1);
}

#[test]
fn a_visit_ends_when_the_way_back_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let root = open_dir_path(dir.path()).unwrap();
    let deep = vec!["d"; 60].join("/");
    std::fs::create_dir_all(dir.path().join("in").join(&deep)).unwrap();
    std::fs::create_dir(dir.path().join("out")).unwrap();
    let mut visits = 0;
    visit_tree(root.as_fd(), &mut |visit| {
        visits += 1;
        if visit.path.components().count() == 50 && visit.path.starts_with("in") {
            std::fs::rename(dir.path().join("in/d/d"), dir.path().join("out/moved")).unwrap();
        }
        Ok(Next::Enter)
    })
    .unwrap();
    assert!((61..200).contains(&visits), "{visits}");
}

#[test]
fn immutable_and_append_only_things_can_be_unlocked() {
    use rustix::fs::IFlags;
    let (dir, root) = temp();
    std::fs::create_dir_all(dir.path().join("a/b")).unwrap();
    std::fs::write(dir.path().join("a/b/file"), "").unwrap();
    std::fs::write(dir.path().join("a/log"), "").unwrap();
    for (name, lock) in [
        ("a/b/file", IFlags::IMMUTABLE),
        ("a/b", IFlags::APPEND),
        ("a/log", IFlags::APPEND),
        ("a", IFlags::IMMUTABLE),
    ] {
        let file = std::fs::File::open(dir.path().join(name)).unwrap();
        let flags = rustix::fs::ioctl_getflags(&file).unwrap();
        rustix::fs::ioctl_setflags(&file, flags | lock).unwrap();
    }
    assert!(remove_tree(root.as_fd(), "a").is_err());
    unlock_tree(root.as_fd(), "a").unwrap();
    remove_tree(root.as_fd(), "a").unwrap();
    assert!(!dir.path().join("a").exists());
}
