//! The volumes that an image declares: one of the container's own at each place, with what the image has there.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::host::SourcePropagation;
use crate::id::ContainerId;
use crate::model::{Kind, Kinded, MountPropagation, MountRequest};
use crate::spec::{ResolvedMount, normalise};
use crate::storage::Storage;
use crate::sys::fs::{open_beneath, resolve_in_root};

/// Most volumes of one image: each is a mount.
const MOST: usize = 128;

/// How long filling all volumes of a container may take: the content of an image at a slow disk's speed.
const LIMIT: Duration = Duration::from_secs(600);

/// Where every container has a mount of its own, which serves an image that declares a volume there
/// (`/sys/fs/cgroup` is in every image that runs systemd).
const OWN: [&str; 7] = [
    "/dev/mqueue",
    "/dev/pts",
    "/dev/shm",
    "/etc/hostname",
    "/etc/hosts",
    "/etc/resolv.conf",
    "/sys/fs/cgroup",
];

/// Why there are no volumes.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// The image asks for what cannot be had.
    #[error("the image declares {0}")]
    Invalid(String),
    /// One could not be filled.
    #[error("the image's volume {place:?}")]
    Fill {
        /// Where it belongs.
        place: String,
        /// Why.
        #[source]
        source: crate::storage::Error,
    },
}

impl Kinded for Error {
    fn kind(&self) -> Kind {
        match self {
            Self::Invalid(_) => Kind::InvalidArgument,
            Self::Fill { source, .. } => source.kind(),
        }
    }
}

/// What volumes are made of.
pub(super) struct Source<'a> {
    pub(super) storage: &'a Storage,
    pub(super) id: &'a ContainerId,
    /// The container's root, before anything is mounted in it.
    pub(super) root: BorrowedFd<'a>,
    /// What the image declares.
    pub(super) declared: &'a [String],
    /// The mounts that the pod asks for.
    pub(super) mounts: &'a [MountRequest],
    /// Set when nobody wants the container any more.
    pub(super) closing: &'a AtomicBool,
}

/// Makes and fills the volumes, and gives their mounts. They go with the container's writable layer.
pub(super) fn make(from: &Source<'_>) -> Result<Vec<ResolvedMount>, Error> {
    if from.declared.is_empty() {
        return Ok(Vec::new());
    }
    let places = places(from.root, from.declared, from.mounts).map_err(Error::Invalid)?;
    let end = Instant::now() + LIMIT;
    let mut go_on = || {
        if from.closing.load(Ordering::Relaxed) {
            return Err(io::Error::other("its pod sandbox is being stopped"));
        }
        if Instant::now() > end {
            let problem = format!("it is not filled after {} s", LIMIT.as_secs());
            return Err(io::Error::new(io::ErrorKind::TimedOut, problem));
        }
        Ok(())
    };
    let mut made = Vec::with_capacity(places.len());
    for (number, (place, content)) in places.into_iter().enumerate() {
        let content = content.as_ref().map(AsFd::as_fd);
        let path = from
            .storage
            .make_volume(from.id, number, content, &mut go_on);
        let path = path.map_err(|source| Error::Fill {
            place: place.clone(),
            source,
        })?;
        made.push(ResolvedMount {
            request: MountRequest {
                container_path: place,
                host_path: path.display().to_string(),
                readonly: false,
                selinux_relabel: false,
                propagation: MountPropagation::Private,
                options: Vec::new(),
            },
            source: path,
            propagation: SourcePropagation::Private,
            own: true,
        });
    }
    Ok(made)
}

type Places = BTreeMap<String, Option<OwnedFd>>;

/// Where volumes belong, by the path without links, with what the image has there.
fn places(
    root: BorrowedFd<'_>,
    declared: &[String],
    mounts: &[MountRequest],
) -> Result<Places, String> {
    if declared.len() > MOST {
        return Err(format!(
            "{} volumes, more than the {MOST} that a container can have",
            declared.len()
        ));
    }
    let taken: Vec<String> = mounts
        .iter()
        .map(|mount| {
            let path = normalise(&mount.container_path);
            // What is wrong with it is told where the mount is looked at.
            resolve(root, &path).unwrap_or(path)
        })
        .collect();
    let mut places = Places::new();
    for text in declared {
        let place = place(root, text).map_err(|why| format!("a volume at {text:?}: {why}"))?;
        if taken.contains(&place) || OWN.contains(&place.as_str()) || places.contains_key(&place) {
            continue;
        }
        let content =
            content(root, &place).map_err(|why| format!("a volume at {text:?}: {why}"))?;
        places.insert(place, content);
    }
    Ok(places)
}

fn place(root: BorrowedFd<'_>, text: &str) -> Result<String, String> {
    if text.contains('\0') {
        return Err("its path contains a NUL byte".to_owned());
    }
    let path = normalise(text);
    let place = resolve(root, &path)?;
    if OWN.contains(&place.as_str()) {
        return Ok(place);
    }
    let within = |top: &str| Path::new(&place).starts_with(top);
    if place == "/" || ["/proc", "/sys", "/dev"].into_iter().any(within) {
        let leads = match place == path {
            true => String::new(),
            false => format!("it leads to {place:?}, and "),
        };
        return Err(format!(
            "{leads}no volume can be at /, or in /proc, /sys or /dev"
        ));
    }
    Ok(place)
}

fn resolve(root: BorrowedFd<'_>, path: &str) -> Result<String, String> {
    let place = resolve_in_root(root, Path::new(path)).map_err(|e| e.to_string())?;
    let text = place.to_str().map(str::to_owned);
    text.ok_or_else(|| format!("it leads to {place:?}, which is not UTF-8"))
}

/// What the image has at a place; nothing is fine.
fn content(root: BorrowedFd<'_>, place: &str) -> Result<Option<OwnedFd>, String> {
    let below = Path::new(place.trim_start_matches('/'));
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
    match open_beneath(root, below, flags, Mode::empty()) {
        Ok(dir) => Ok(Some(dir)),
        Err(error) => match Errno::from_io_error(&error) {
            Some(Errno::NOENT) => Ok(None),
            Some(Errno::NOTDIR) => Err(format!("{place:?} in the image is not a directory")),
            _ => Err(error.to_string()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::fs::open_dir_path;
    use std::os::unix::fs::symlink;

    struct Root(tempfile::TempDir);

    impl Root {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            for name in ["dev", "proc", "sys", "data/in", "etc"] {
                std::fs::create_dir_all(dir.path().join(name)).unwrap();
            }
            std::fs::write(dir.path().join("etc/passwd"), "").unwrap();
            for (name, target) in [
                ("link", "data"),
                ("loop", "loop"),
                ("to-dev", "/dev"),
                ("to-proc", "../../proc"),
                ("to-root", "/"),
                ("to-shm", "dev/shm"),
                ("dangling", "/not/yet"),
            ] {
                symlink(target, dir.path().join(name)).unwrap();
            }
            Self(dir)
        }

        fn places(&self, declared: &[&str], mounts: &[&str]) -> Result<Vec<String>, String> {
            let root = open_dir_path(self.0.path()).unwrap();
            let declared: Vec<String> = declared.iter().map(|path| (*path).to_owned()).collect();
            let mounts: Vec<MountRequest> = mounts
                .iter()
                .map(|path| MountRequest {
                    container_path: (*path).to_owned(),
                    host_path: "/tmp".into(),
                    readonly: true,
                    selinux_relabel: false,
                    propagation: MountPropagation::Private,
                    options: Vec::new(),
                })
                .collect();
            Ok(places(root.as_fd(), &declared, &mounts)?
                .into_keys()
                .collect())
        }
    }

    #[test]
    fn one_volume_for_each_place() {
        let root = Root::new();
        for (declared, wanted) in [
            (&["/data"][..], &["/data"][..]),
            (
                &["data", "/data/", "//data/.", "/link", "/x/../data"],
                &["/data"],
            ),
            (&["/data", "/data/in", "/link/in"], &["/data", "/data/in"]),
            (
                &["/missing/deep", "/dangling"],
                &["/missing/deep", "/not/yet"],
            ),
            (
                &["/sys/fs/cgroup", "/dev/shm", "/to-shm", "/etc/hosts"],
                &[],
            ),
        ] {
            assert_eq!(root.places(declared, &[]).unwrap(), wanted, "{declared:?}");
        }
    }

    #[test]
    fn a_mount_of_the_pod_at_the_same_place_wins() {
        let root = Root::new();
        for (mount, left) in [
            ("/data", &["/data/in"][..]),
            ("/link/", &["/data/in"]),
            ("/data/in", &["/data"]),
            ("/data/deeper", &["/data", "/data/in"]),
            ("/", &["/data", "/data/in"]),
        ] {
            let got = root.places(&["/data", "/link/in"], &[mount]).unwrap();
            assert_eq!(got, left, "{mount}");
        }
    }

    #[test]
    fn places_that_are_no_images_are_refused_by_name() {
        let root = Root::new();
        for (bad, said) in [
            ("/", "no volume can be at /"),
            ("", "no volume can be at /"),
            ("/..", "no volume can be at /"),
            ("/to-root", "it leads to \"/\""),
            ("/dev", "in /proc, /sys or /dev"),
            ("/dev/x", "in /proc, /sys or /dev"),
            ("proc", "in /proc, /sys or /dev"),
            ("/sys/kernel", "in /proc, /sys or /dev"),
            ("/to-dev", "it leads to \"/dev\""),
            ("/to-dev/x", "it leads to \"/dev/x\""),
            ("/to-proc/self", "it leads to \"/proc/self\""),
            (
                "/etc/passwd",
                "\"/etc/passwd\" in the image is not a directory",
            ),
            ("/etc/passwd/x", "ot a directory"),
            ("/loop", "symbolic links"),
            ("/a\0b", "NUL"),
        ] {
            let error = root.places(&["/data", bad], &[]).unwrap_err();
            assert!(error.contains(said), "{bad:?}: {error}");
        }
        let many: Vec<String> = (0..=MOST).map(|n| format!("/v{n}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert_eq!(root.places(&many[1..], &[]).unwrap().len(), MOST);
        let error = root.places(&many, &[]).unwrap_err();
        assert!(error.contains("129 volumes"), "{error}");
    }
}
