//! Mount propagation of volumes. On a thread in a mount namespace of its own, made shared: this
//! machine's mounts may all be private, and the host's stay as they are.

use std::fs;
use std::path::Path;

use rustix::mount::MountPropagationFlags as Flags;
use serde_json::json;

use crate::driver::*;

fn on_a_host_with_shared_mounts(test: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // SAFETY: only this thread changes its mount namespace; it shares no file-system state after it.
            assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNS) }, 0);
            rustix::mount::mount_change("/", Flags::REC | Flags::PRIVATE).unwrap();
            test();
        });
        thread.join().unwrap();
    });
}

fn volume(fixture: &mut Fixture, at: &Path, name: &str) {
    let source = at.join(name);
    fs::create_dir(&source).unwrap();
    rustix::mount::mount_bind(&source, &source).unwrap();
    rustix::mount::mount_change(&source, Flags::SHARED).unwrap();
    fixture.mount(json!({
        "destination": format!("/{name}"), "type": "bind", "source": source,
        "options": ["rbind", "rw", format!("r{name}")],
    }));
}

fn tmpfs(at: &Path) {
    fs::create_dir_all(at).unwrap();
    rustix::mount::mount(
        "tmpfs",
        at,
        "tmpfs",
        rustix::mount::MountFlags::empty(),
        None,
    )
    .unwrap();
    fs::write(at.join("file"), "x").unwrap();
}

#[test]
fn each_volume_propagates_as_asked() {
    on_a_host_with_shared_mounts(|| {
        let host = tempfile::tempdir().unwrap();
        let mut fixture = Fixture::new();
        for name in ["private", "slave", "shared"] {
            volume(&mut fixture, host.path(), name);
        }
        let mut process = argv(&["cat"]);
        let sets = process.capabilities.as_mut().unwrap();
        for set in [&mut sets.bounding, &mut sets.permitted, &mut sets.effective] {
            *set |= 1 << 21;
        }
        let container = fixture.run(process.clone());
        for name in ["private", "slave", "shared"] {
            tmpfs(&host.path().join(name).join("host"));
        }
        let (text, _) =
            container.sh("cd / && cat private/host/file slave/host/file shared/host/file");
        let missing = "cat: can't open 'private/host/file': No such file or directory\n";
        assert_eq!(text, format!("{missing}xx"));
        process.args = sh("for v in private slave shared; do mkdir /$v/c; mount -t tmpfs t /$v/c && touch /$v/c/file; done").args;
        let (text, code) = container
            .try_exec(container.exec_request(process), None)
            .unwrap()
            .finish();
        assert_eq!(code, 0, "{text}");
        assert!(!host.path().join("private/c/file").exists());
        assert!(!host.path().join("slave/c/file").exists());
        assert!(host.path().join("shared/c/file").exists());
        // Nothing else of the container is anybody's peer.
        let (tags, _) = container.sh(
            "grep -vE ' /(slave|shared)(/| )' /proc/1/mountinfo | grep -cE ' (shared|master):'",
        );
        assert_eq!(tags.trim(), "0");
        drop(container);
    });
}

#[test]
fn host_to_container_alone_uses_slave_mounts() {
    on_a_host_with_shared_mounts(|| {
        let host = tempfile::tempdir().unwrap();
        let mut fixture = Fixture::new();
        volume(&mut fixture, host.path(), "slave");
        // A path with a link in it: resolved inside the container.
        let mounts = fixture.config["mounts"].as_array_mut().unwrap();
        mounts.last_mut().unwrap()["destination"] = "/link".into();
        fs::create_dir(fixture.tree("slave")).unwrap();
        std::os::unix::fs::symlink("/slave", fixture.tree("link")).unwrap();
        let container = fixture.run(argv(&["cat"]));
        tmpfs(&host.path().join("slave/host"));
        assert_eq!(container.sh("cat /slave/host/file"), ("x".into(), 0));
        drop(container);
    });
}

#[test]
fn a_volume_that_cannot_propagate_fails_the_create() {
    on_a_host_with_shared_mounts(|| {
        let host = tempfile::tempdir().unwrap();
        let mut fixture = Fixture::new();
        for wanted in ["rshared", "rslave"] {
            fixture.mount(json!({
                "destination": "/v", "type": "bind", "source": host.path(), "options": ["rbind", wanted],
            }));
            let error = fixture.try_create(sh("true")).err().unwrap();
            assert!(error.contains("volume at /v cannot propagate"), "{error}");
            fixture.config["mounts"].as_array_mut().unwrap().pop();
        }
    });
}

/// What the container has inside a shared volume (other volumes, masks) is its own.
#[test]
fn mounts_inside_a_shared_volume_stay_in_the_container() {
    on_a_host_with_shared_mounts(|| {
        let host = tempfile::tempdir().unwrap();
        let mut fixture = Fixture::new();
        let below = host.path().join("shared/below");
        volume(&mut fixture, host.path(), "shared");
        tmpfs(&below);
        fs::write(host.path().join("shared/secret"), "s").unwrap();
        let inner = host.path().join("inner");
        fs::create_dir(&inner).unwrap();
        fs::write(inner.join("mine"), "m").unwrap();
        for at in ["/shared/inner", "/shared/below/inner"] {
            fixture.mount(json!({
                "destination": at, "type": "bind", "source": inner, "options": ["rbind", "rprivate"],
            }));
        }
        fixture.config["linux"]["maskedPaths"] = json!(["/shared/secret"]);
        let mut process = argv(&["cat"]);
        let sets = process.capabilities.as_mut().unwrap();
        for set in [&mut sets.bounding, &mut sets.permitted, &mut sets.effective] {
            *set |= 1 << 21;
        }
        let container = fixture.run(process.clone());
        let seen =
            "cat /shared/inner/mine /shared/below/inner/mine /shared/below/file /shared/secret";
        assert_eq!(container.sh(seen), ("mmx".into(), 0));
        // On the host there is nothing of it.
        assert!(!host.path().join("shared/inner/mine").exists());
        assert!(!below.join("inner/mine").exists());
        assert_eq!(fs::read(host.path().join("shared/secret")).unwrap(), b"s");
        // And sharing goes on, both ways, on the volume and on what was mounted in it.
        for at in ["shared/late", "shared/below/late"] {
            tmpfs(&host.path().join(at));
            assert_eq!(container.sh(&format!("cat /{at}/file")), ("x".into(), 0));
        }
        process.args = sh("for v in /shared/c /shared/below/c; do mkdir $v; mount -t tmpfs t $v && touch $v/file; done").args;
        let exec = container.try_exec(container.exec_request(process), None);
        let (text, code) = exec.unwrap().finish();
        assert_eq!(code, 0, "{text}");
        assert!(host.path().join("shared/c/file").exists());
        assert!(below.join("c/file").exists());
        drop(container);
    });
}

#[test]
fn a_shared_staging_directory_is_refused() {
    on_a_host_with_shared_mounts(|| {
        let fixture = Fixture::new();
        rustix::mount::mount_change(&*fixture.request.rootfs, Flags::SHARED).unwrap();
        let error = fixture.try_create(sh("true")).err().unwrap();
        assert!(error.contains("is on a shared mount"), "{error}");
    });
}
