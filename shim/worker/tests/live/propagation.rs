//! Mount propagation of volumes. On a thread in a mount namespace of its own, made shared: this
//! machine's mounts may all be private, and the host's stay as they are.

use std::fs;
use std::path::Path;

use rustix::mount::MountPropagationFlags as Flags;
use serde_json::json;
use shim_protocol::worker::Propagation;

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
        "destination": format!("/{name}"), "type": "bind", "source": source, "options": ["rbind", "rw"],
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
        fixture.config["linux"]["rootfsPropagation"] = "rshared".into();
        fixture.request.all_private = false;
        let want = |path: &str, mode| Propagation {
            path: path.into(),
            mode,
        };
        fixture.request.propagation = vec![want("/slave", 1), want("/shared", 2)];
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
        std::os::unix::fs::symlink("/slave", fixture.tree("link")).unwrap();
        fixture.config["linux"]["rootfsPropagation"] = "rslave".into();
        fixture.request.all_private = false;
        fixture.request.propagation = vec![Propagation {
            path: "/link".into(),
            mode: 1,
        }];
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
        fixture.mount(json!({ "destination": "/v", "type": "bind", "source": host.path(), "options": ["rbind"] }));
        fixture.config["linux"]["rootfsPropagation"] = "shared".into();
        fixture.request.all_private = false;
        fixture.request.propagation = vec![Propagation {
            path: "/nomount".into(),
            mode: 2,
        }];
        let error = fixture.try_create(sh("true")).err().unwrap();
        assert!(error.contains("/nomount"), "{error}");
        fixture.config["linux"]["rootfsPropagation"] = "private".into();
        fixture.request.propagation = vec![Propagation {
            path: "/v".into(),
            mode: 2,
        }];
        let error = fixture.try_create(sh("true")).err().unwrap();
        assert!(error.contains("volume at /v cannot propagate"), "{error}");
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
