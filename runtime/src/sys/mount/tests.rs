use std::os::unix::fs::PermissionsExt;

use rustix::fs::{Mode, OFlags};

use super::*;
use crate::sys::fs::open_dir_path;

fn write_in(mount: &OwnedFd, name: &str) -> io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC;
    rustix::fs::openat(mount, name, flags, Mode::RUSR)?;
    Ok(())
}

#[test]
fn mountinfo_is_parsed_with_escapes_and_optional_fields() {
    let text = b"36 35 98:0 /mnt1 /mnt\\0402\\134x rw,noatime shared:7 master:1 unbindable - ext3 /dev/root rw,errors=continue\n\
        37 36 0:5 / /dev ro - tmpfs none rw\n";
    let parsed = parse_mountinfo(text).unwrap();
    assert_eq!(parsed[0].mount_point, Path::new("/mnt 2\\x"));
    assert_eq!((parsed[0].shared, parsed[0].master), (Some(7), Some(1)));
    assert_eq!(parsed[0].fs_type, "ext3");
    assert_eq!(
        (parsed[1].id, parsed[1].parent, parsed[1].shared),
        (37, 36, None)
    );
    assert!(parse_mountinfo(b"36 35 98:0 / / rw\n").is_err());
    assert!(
        mounts()
            .unwrap()
            .iter()
            .any(|mount| mount.mount_point == Path::new("/proc"))
    );
}

#[test]
fn a_detached_bind_lives_without_a_place_and_can_be_made_read_only() {
    let dir = tempfile::tempdir().unwrap();
    let before = mounts().unwrap().len();
    let mount = detached_bind(dir.path(), true).unwrap();
    write_in(&mount, "a").unwrap();
    let change = MountChange {
        set: Some(MountAttrFlags::MOUNT_ATTR_RDONLY),
        ..MountChange::default()
    };
    set_attr(mount.as_fd(), change, true).unwrap();
    assert_eq!(
        write_in(&mount, "b").unwrap_err().kind(),
        io::ErrorKind::ReadOnlyFilesystem
    );
    assert!(dir.path().join("a").exists());
    let _ = before;
    let here = dir.path();
    assert!(
        mounts()
            .unwrap()
            .iter()
            .all(|mount| mount.mount_point != here)
    );
}

#[test]
fn a_sealed_program_runs_and_cannot_be_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("true");
    std::fs::copy("/bin/true", &path).unwrap();
    let sealed = sealed_exe(&path).unwrap();
    let by_fd = format!("/proc/self/fd/{}", sealed.as_raw_fd());
    let error = std::fs::OpenOptions::new()
        .write(true)
        .open(by_fd)
        .unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ReadOnlyFilesystem);
    // Inherited by number: the test's own descriptor is close-on-exec, its copy is not.
    let copy = rustix::io::dup(&sealed).unwrap();
    let status = std::process::Command::new(format!("/proc/self/fd/{}", copy.as_raw_fd()))
        .status()
        .unwrap();
    assert!(status.success());
}

#[test]
fn a_tmpfs_has_the_size_and_mode_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("shm");
    std::fs::create_dir(&target).unwrap();
    mount_tmpfs(&target, TmpfsOptions::shm(64 << 20)).unwrap();
    let result = std::panic::catch_unwind(|| {
        assert!(is_mount_point(&target).unwrap());
        let stat = rustix::fs::statvfs(&target).unwrap();
        assert_eq!(stat.f_blocks * stat.f_frsize, 64 << 20);
        let mode = std::fs::metadata(&target).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o1777);
        let all = mounts().unwrap();
        let mount = all
            .iter()
            .find(|mount| mount.mount_point == target)
            .unwrap();
        for option in ["nosuid", "nodev", "noexec"] {
            assert!(mount.options.contains(option), "{}", mount.options);
        }
    });
    detach_unmount(&target).unwrap();
    result.unwrap();
    assert!(!is_mount_point(&target).unwrap());
    detach_unmount(&target).unwrap();
    detach_unmount(&dir.path().join("absent")).unwrap();
}

#[test]
fn a_private_mount_is_made_once() {
    let dir = tempfile::tempdir().unwrap();
    for _ in 0..2 {
        make_private_mount(dir.path()).unwrap();
    }
    let all = mounts().unwrap();
    let ours: Vec<_> = all
        .iter()
        .filter(|mount| mount.mount_point == dir.path())
        .collect();
    detach_unmount(dir.path()).unwrap();
    assert_eq!(ours.len(), 1);
    assert_eq!((ours[0].shared, ours[0].master), (None, None));
}

#[test]
fn overlays_are_made_by_every_method_the_kernel_has() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["low", "mid", "up", "work", "scratch"] {
        std::fs::create_dir(dir.path().join(name)).unwrap();
    }
    std::fs::write(dir.path().join("low/a"), "low").unwrap();
    std::fs::write(dir.path().join("mid/a"), "mid").unwrap();
    let open = |name: &str| open_dir_path(&dir.path().join(name)).unwrap();
    let (low, mid, up, work) = (open("low"), open("mid"), open("up"), open("work"));
    let lower = [mid.as_fd(), low.as_fd()];
    let layers = OverlayLayers {
        lower: &lower,
        upper: Some((up.as_fd(), work.as_fd())),
    };
    let best = probe_overlay(low.as_fd()).unwrap();
    let all = [Method::Descriptors, Method::Paths, Method::OptionString];
    let from = all.iter().position(|method| *method == best).unwrap();
    for method in &all[from..] {
        let mount = detached_overlay(*method, &layers, &dir.path().join("scratch")).unwrap();
        let file = rustix::fs::openat(&mount, "a", OFlags::RDONLY, Mode::empty()).unwrap();
        let mut text = String::new();
        io::Read::read_to_string(&mut std::fs::File::from(file), &mut text).unwrap();
        assert_eq!(text, "mid", "{method:?}");
        write_in(&mount, &format!("by-{method:?}")).unwrap();
        assert!(dir.path().join(format!("up/by-{method:?}")).exists());
    }
    assert_eq!(
        std::fs::read_dir(dir.path().join("scratch"))
            .unwrap()
            .count(),
        0
    );
    let attached = mounts().unwrap();
    assert!(
        attached
            .iter()
            .all(|mount| !mount.mount_point.starts_with(dir.path()))
    );
}
