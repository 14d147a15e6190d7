//! The container's mounts and device nodes, as far as the engine does not make them.
//!
//! The engine mounts `/proc`, `/sys` and a `/dev` of the container's own, whose nodes and links therefore never meet
//! a volume. Everything else is attached by init, inside the container's root: sources are opened in the host's
//! mounts first (detached trees), destinations are resolved under the root, ordered by where they lead, judged,
//! and never looked up by name again. What makes the root smaller (read-only, masked) comes last, and sharing with
//! the host at the very end, so that nothing of all this travels there.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{CWD, FileType, Mode};
use rustix::mount::{FsMountFlags, FsOpenFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags};
use serde_json::{Value, json};

use crate::cover::Covers;
use crate::error::{Context, Error, Result};
use crate::mounts::{self, Propagation};
use crate::options::Options;
use crate::place::{self, Root, Shape};
use crate::{path, process, sys};

/// `PROC_SUPER_MAGIC` (include/uapi/linux/magic.h).
const PROCFS: u64 = 0x9fa0;

/// `RLIMIT_NOFILE` (include/uapi/asm-generic/resource.h).
const OPEN_FILES: u32 = 7;

/// The one node that the engine's work and masks need.
const NULL: &str = "/dev/null";

/// So many sources, with two descriptors each, can be open under every usual limit.
const FEW: usize = 200;

/// What init makes in its root.
#[derive(Debug)]
pub(crate) struct Tree {
    mounts: Vec<Wanted>,
    nodes: Vec<Node>,
    /// The container keeps the `/dev` that the engine makes.
    own_dev: bool,
    read_only: bool,
    read_only_paths: Vec<String>,
    masked_paths: Vec<String>,
    cwd: Vec<u8>,
    /// How many files could be open at once before this many sources were.
    files: Option<(u64, u64)>,
}

/// One mount.
#[derive(Debug)]
struct Wanted {
    destination: String,
    kind: String,
    source: String,
    options: Options,
    /// Nobody but the container and its pod has it (`own` in the `config.json`, which is no word of OCI's): what a link
    /// or a device names may be made in it.
    own: bool,
    opened: Option<Opened>,
}

/// A source of the host, cloned.
#[derive(Debug)]
struct Opened {
    tree: OwnedFd,
    directory: bool,
    procfs: bool,
    /// Another clone, which kept its peers on the host.
    peers: Option<OwnedFd>,
}

/// One device node (OCI `linux.devices`).
#[derive(Debug)]
struct Node {
    path: String,
    kind: FileType,
    device: u64,
    mode: Mode,
    uid: u32,
    gid: u32,
}

/// Mounts that are to be shared with the host once all is in place.
#[derive(Debug, Default)]
pub(crate) struct Shares {
    list: Vec<(String, OwnedFd, OwnedFd)>,
    /// The mounts that were attached, which stay with the container.
    private: Vec<u64>,
}

impl Tree {
    /// Takes what init makes out of a `config.json`; the engine is left with the rest.
    pub(crate) fn take(config: &mut Value, cwd: &[u8]) -> Result<Self> {
        let list = |value: Option<&mut Value>| match value.map(Value::take) {
            Some(Value::Array(list)) => list,
            _ => Vec::new(),
        };
        let all = list(config.get_mut("mounts"));
        let (mut engines, ours): (Vec<Value>, Vec<Value>) = all.into_iter().partition(engines);
        let own_dev = engines.iter().any(|m| text(m, "destination") == "/dev");
        if !own_dev {
            // For the nodes and links that the engine makes in any case. It goes before the pod's /dev comes.
            engines.push(json!({
                "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"],
            }));
        }
        let mounts = ours.iter().map(Wanted::parse).collect::<Result<_>>()?;
        let nodes = list(config.pointer_mut("/linux/devices"));
        let strings = |list: Vec<Value>| -> Vec<String> {
            list.iter()
                .filter_map(|v| v.as_str().map(str::to_owned))
                .collect()
        };
        let read_only_paths = strings(list(config.pointer_mut("/linux/readonlyPaths")));
        let masked_paths = strings(list(config.pointer_mut("/linux/maskedPaths")));
        let read_only = config
            .pointer_mut("/root/readonly")
            .map(Value::take)
            .is_some_and(|v| v == true);
        if let Some(root) = config.get_mut("root") {
            root["readonly"] = false.into();
        }
        config["mounts"] = engines.into();
        if let Some(linux) = config.get_mut("linux").and_then(Value::as_object_mut) {
            for done in ["devices", "readonlyPaths", "maskedPaths"] {
                linux.remove(done);
            }
            // No mount of the host is left in the container but the ones that are attached here.
            linux.insert("rootfsPropagation".to_owned(), "private".into());
        }
        Ok(Self {
            mounts,
            nodes: nodes.iter().map(Node::parse).collect::<Result<_>>()?,
            own_dev,
            read_only,
            read_only_paths,
            masked_paths,
            cwd: cwd.to_vec(),
            files: None,
        })
    }

    /// Opens the sources, in the host's mounts. `proc` is the host's procfs.
    pub(crate) fn open(&mut self, proc: BorrowedFd<'_>) -> Result<()> {
        if self.mounts.len() > FEW {
            let told = || "raise the number of open files".to_owned();
            let (soft, hard) = sys::resource_limit(OPEN_FILES).context(told)?;
            sys::set_resource_limit(OPEN_FILES, hard, hard).context(told)?;
            self.files = Some((soft, hard));
        }
        for mount in &mut self.mounts {
            if mount.kind == "bind" {
                mount.opened = Some(mount.open(proc)?);
            }
        }
        Ok(())
    }

    /// Makes it all in the root of this process, which the engine has prepared.
    pub(crate) fn build(mut self) -> Result<Shares> {
        // Modes are what they are meant to be, whatever umask the daemon was started with.
        let umask = rustix::process::umask(Mode::empty());
        let built = self.built();
        rustix::process::umask(umask);
        if let Some((soft, hard)) = self.files {
            sys::set_resource_limit(OPEN_FILES, soft, hard)
                .context(|| "put the number of open files back".to_owned())?;
        }
        built
    }

    fn built(&mut self) -> Result<Shares> {
        let mut root = Root::current()?;
        let dev = path::open_plain(root.as_fd(), b"dev")
            .context(|| "open the container's /dev".to_owned())?;
        let mut covers = Covers::new(root.as_fd(), !self.masked_paths.is_empty())?;
        let dev = if self.own_dev {
            root.add(&dev)
                .context(|| "stat the container's /dev".to_owned())?;
            self.make_way(dev.as_fd())?;
            Some(dev)
        } else {
            drop(dev);
            rustix::mount::unmount("/dev", UnmountFlags::DETACH)
                .context(|| "detach the engine's /dev".to_owned())?;
            None
        };
        let shares = self.attach(&mut root)?;
        let told = |node: &Node, e: Error| e.map(|m| format!("device {}: {m}", node.path));
        let (null, nodes): (Vec<_>, Vec<_>) = self
            .nodes
            .iter()
            .partition(|node| dev.is_some() && node.path == NULL);
        for node in nodes {
            node.make(&root).map_err(|e| told(node, e))?;
        }
        self.make_cwd(&root)?;
        if self.read_only {
            covers.read_only(&root, "/")?;
        }
        for path in &self.read_only_paths {
            covers.read_only(&root, path)?;
        }
        for path in &self.masked_paths {
            covers.mask(&root, path)?;
        }
        // What masks is a clone of the real one, and the kernel attaches none of what has no name any more.
        if let (Some(dev), Some(null)) = (&dev, null.first()) {
            null.replace_null(dev.as_fd()).map_err(|e| told(null, e))?;
        }
        let mut shares = shares;
        shares.private.extend(covers.mounts);
        Ok(shares)
    }

    /// What the engine made in the container's own `/dev` gives way to what was asked for in its place: a link to
    /// everything, a node to a device, a directory and what lies below one. A file is mounted over a node. The null
    /// device stays: no runtime starts a container without one, and another device takes its place at the end.
    fn make_way(&self, dev: BorrowedFd<'_>) -> Result<()> {
        let mounts = self.mounts.iter();
        let mounts = mounts.map(|mount| (&mount.destination, Some(mount.directory())));
        let nodes = self.nodes.iter().map(|node| (&node.path, None));
        for (path, mounted) in mounts.chain(nodes) {
            let Some(rest) = path.strip_prefix("/dev/") else {
                continue;
            };
            let (name, below) = match rest.split_once('/') {
                Some((name, _)) => (name, true),
                None => (rest, false),
            };
            let plain = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
            let Ok(there) = rustix::fs::statat(dev, name, plain) else {
                continue;
            };
            let goes = match (FileType::from_raw_mode(there.st_mode), mounted) {
                (FileType::Symlink, _) => true,
                (FileType::Directory, _) => false,
                _ if name == "null" => false,
                (_, Some(directory)) => directory || below,
                (_, None) => !below,
            };
            if goes {
                rustix::fs::unlinkat(dev, name, rustix::fs::AtFlags::empty())
                    .context(|| format!("make way for {path}"))?;
            }
        }
        Ok(())
    }

    fn attach(&mut self, root: &mut Root) -> Result<Shares> {
        // A path that leads nowhere yet is judged when its turn comes.
        let leads = |path: &str| match root.find(path.as_bytes()) {
            Ok(place) => place.path,
            Err(_) => path.as_bytes().to_vec(),
        };
        let mut mounts: Vec<(Vec<u8>, Wanted)> = std::mem::take(&mut self.mounts)
            .into_iter()
            .map(|m| (leads(&m.destination), m))
            .collect();
        // Outer ones first, or they would hide the inner ones. Equal depth keeps the order given: what comes
        // later wins.
        mounts.sort_by_key(|(place, _)| place::depth(place));
        let sharing = mounts.iter().any(|(_, m)| m.shared());
        let inner: Vec<Vec<u8>> = if sharing {
            let covers = self.masked_paths.iter().chain(&self.read_only_paths);
            let places = mounts.iter().map(|(place, _)| place.clone());
            places.chain(covers.map(|p| leads(p))).collect()
        } else {
            Vec::new()
        };
        let mut shares = Shares::default();
        let mut taken: Vec<Vec<u8>> = Vec::new();
        for (place, mut mount) in mounts {
            let destination = mount.destination.clone();
            let (source, kind) = (mount.source.clone(), mount.kind.clone());
            // It is itself one of them.
            if mount.shared() && inner.iter().filter(|i| place::below(i, &place)).count() == 1 {
                mount.keep_peers();
            }
            mount
                .attach(root, &mut taken, &mut shares)
                .map_err(|e| match kind.as_str() {
                    "bind" => e.map(|m| format!("mount {source} on {destination}: {m}")),
                    kind => e.map(|m| format!("mount a new {kind} on {destination}: {m}")),
                })?;
        }
        Ok(shares)
    }

    /// Once the root is read-only it cannot be made any more.
    fn make_cwd(&self, root: &Root) -> Result<()> {
        if !self.read_only {
            return Ok(());
        }
        match path::make_directories(root.as_fd(), &self.cwd) {
            Ok(_) => Ok(()),
            // A network file system may refuse root: it is entered as the user.
            Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => Ok(()),
            Err(e) => Err(process::no_cwd(&self.cwd, &e)),
        }
    }
}

/// What has to be mounted before the host's mounts are gone (a user namespace may mount procfs and sysfs only
/// where one is visible), and what the engine works in.
fn engines(mount: &Value) -> bool {
    matches!(
        (text(mount, "destination"), text(mount, "type")),
        ("/proc", "proc") | ("/sys", "sysfs") | ("/dev", "tmpfs")
    )
}

fn text<'v>(value: &'v Value, key: &str) -> &'v str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

impl Wanted {
    fn parse(mount: &Value) -> Result<Self> {
        let destination = text(mount, "destination").to_owned();
        if !destination.starts_with('/') {
            return Err(Error::invalid(format!(
                "mount destination {destination:?} is not absolute"
            )));
        }
        let words = mount.get("options").and_then(Value::as_array);
        let words = words.into_iter().flatten().filter_map(Value::as_str);
        let options = Options::parse(words);
        let kind = match text(mount, "type") {
            // The name in a config.json; on cgroup v1 it is refused.
            "cgroup" => "cgroup2",
            "" | "none" | "bind" => "bind",
            _ if options.bind => "bind",
            other => other,
        };
        if kind == "bind"
            && let Some(unknown) = options.data.first()
        {
            return Err(Error::invalid(format!(
                "mount on {destination}: option {unknown:?} is not known"
            )));
        }
        Ok(Self {
            kind: kind.to_owned(),
            source: text(mount, "source").to_owned(),
            destination,
            options,
            own: mount.get("own").and_then(Value::as_bool) == Some(true),
            opened: None,
        })
    }

    fn open(&self, proc: BorrowedFd<'_>) -> Result<Opened> {
        let (source, destination) = (&self.source, &self.destination);
        let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        if self.options.recursive {
            flags |= OpenTreeFlags::AT_RECURSIVE;
        }
        let clone = || {
            rustix::mount::open_tree(CWD, source.as_str(), flags)
                .context(|| format!("mount {source} on {destination}: open the source"))
        };
        let told = || format!("mount {source} on {destination}: set its options");
        let tree = clone()?;
        let wanted = self.options.propagation;
        if wanted != Propagation::Private {
            mounts::require_peers(proc, source, destination, wanted)?;
        }
        let peers = (wanted == Propagation::Shared).then(clone).transpose()?;
        if let Some(peers) = &peers {
            // A private mount below gets a group of its own.
            sys::set_mount(peers.as_fd(), &Propagation::Shared.change(), true).context(told)?;
        }
        let kept = match wanted {
            Propagation::Slave => Propagation::Slave,
            _ => Propagation::Private,
        };
        sys::set_mount(tree.as_fd(), &kept.change(), true).context(told)?;
        for tree in std::iter::once(&tree).chain(&peers) {
            sys::set_mount(tree.as_fd(), &self.options.top, false).context(told)?;
            sys::set_mount(tree.as_fd(), &self.options.all, true).context(told)?;
        }
        let stat = rustix::fs::fstat(&tree).context(|| format!("stat {source}"))?;
        let directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        let system = rustix::fs::fstatfs(&tree).context(|| format!("stat {source}"))?;
        Ok(Opened {
            procfs: u64::try_from(system.f_type) == Ok(PROCFS),
            tree,
            directory,
            peers,
        })
    }

    fn directory(&self) -> bool {
        self.opened.as_ref().is_none_or(|o| o.directory)
    }

    fn shared(&self) -> bool {
        self.opened.as_ref().is_some_and(|o| o.peers.is_some())
    }

    /// Nothing of the container is mounted in it, so it need not be cut off from the host meanwhile.
    fn keep_peers(&mut self) {
        if let Some(opened) = &mut self.opened
            && let Some(peers) = opened.peers.take()
        {
            opened.tree = peers;
        }
    }

    fn attach(self, root: &mut Root, taken: &mut Vec<Vec<u8>>, shares: &mut Shares) -> Result<()> {
        let place = root.find(self.destination.as_bytes())?;
        place::judge(&self.destination, &place.path)?;
        let procfs = self.kind == "proc" || self.opened.as_ref().is_some_and(|o| o.procfs);
        place::judge_proc(&place.path, procfs)?;
        let hidden = taken
            .iter()
            .find(|t| **t != place.path && place::below(t, &place.path));
        if let Some(hidden) = hidden {
            return Err(Error::invalid(format!(
                "a link in a volume leads to {}, where it would hide the mount on {}: name the real path",
                String::from_utf8_lossy(&place.path),
                String::from_utf8_lossy(hidden),
            )));
        }
        let shape = if self.directory() {
            Shape::Directory
        } else {
            Shape::File
        };
        let path = place.path.clone();
        let point = place.mount_point(root, shape)?;
        let (tree, peers) = match self.opened {
            Some(opened) => (opened.tree, opened.peers),
            None => (file_system(&self.kind, &self.source, &self.options)?, None),
        };
        put(tree.as_fd(), point.as_fd()).context(|| "attach it".to_owned())?;
        if self.own {
            root.add(&tree).context(|| "stat it".to_owned())?;
        }
        shares
            .private
            .push(path::mount_id(&tree).context(|| "stat it".to_owned())?);
        taken.push(path);
        if let Some(peers) = peers {
            shares.list.push((self.destination, tree, peers));
        }
        Ok(())
    }
}

/// Attaches a detached mount.
pub(crate) fn put(tree: BorrowedFd<'_>, point: BorrowedFd<'_>) -> std::io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(rustix::mount::move_mount(tree, "", point, "", flags)?)
}

/// A new mount of a file system, attached nowhere.
pub(crate) fn file_system(kind: &str, source: &str, options: &Options) -> Result<OwnedFd> {
    let make = || -> rustix::io::Result<OwnedFd> {
        let context = rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
        if !source.is_empty() {
            rustix::mount::fsconfig_set_string(&context, "source", source)?;
        }
        for option in &options.data {
            match option.split_once('=') {
                Some((key, value)) => rustix::mount::fsconfig_set_string(&context, key, value)?,
                None => rustix::mount::fsconfig_set_flag(&context, option.as_str())?,
            }
        }
        rustix::mount::fsconfig_create(&context)?;
        let attributes = options.attributes();
        rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
    };
    make().context(|| "make it".to_owned())
}

impl Node {
    fn parse(device: &Value) -> Result<Self> {
        let path = text(device, "path").to_owned();
        let kind = match text(device, "type") {
            "b" => FileType::BlockDevice,
            "c" | "u" => FileType::CharacterDevice,
            "p" => FileType::Fifo,
            other => {
                return Err(Error::invalid(format!(
                    "device {path}: type {other:?} is not known"
                )));
            }
        };
        let number = |key: &str, default: u32| match device.get(key) {
            None | Some(Value::Null) => Ok(default),
            Some(value) => value
                .as_u64()
                .and_then(|n| u32::try_from(n).ok())
                .ok_or_else(|| Error::invalid(format!("device {path}: {key} is malformed"))),
        };
        Ok(Self {
            device: rustix::fs::makedev(number("major", 0)?, number("minor", 0)?),
            mode: Mode::from_raw_mode(number("fileMode", 0o666)?),
            uid: number("uid", 0)?,
            gid: number("gid", 0)?,
            path,
            kind,
        })
    }

    fn make(&self, root: &Root) -> Result<()> {
        let place = root.find(self.path.as_bytes())?;
        place::judge(&self.path, &place.path)?;
        let Some((dir, name)) = place.node(root, self.kind, self.device, self.mode)? else {
            return Ok(());
        };
        self.give(dir.as_fd(), &name)
    }

    /// Puts it in the place of the null device in the container's own `/dev`, unless something is mounted there.
    fn replace_null(&self, dev: BorrowedFd<'_>) -> Result<()> {
        let name = b"null";
        match rustix::fs::unlinkat(dev, name.as_slice(), rustix::fs::AtFlags::empty()) {
            Err(rustix::io::Errno::BUSY) => return Ok(()),
            other => other.context(|| "remove the null device".to_owned())?,
        }
        rustix::fs::mknodat(dev, name.as_slice(), self.kind, self.mode, self.device)
            .context(|| "make it".to_owned())?;
        self.give(dev, name)
    }

    fn give(&self, dir: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
        let (uid, gid) = (
            rustix::fs::Uid::from_raw(self.uid),
            rustix::fs::Gid::from_raw(self.gid),
        );
        let plain = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
        rustix::fs::chownat(dir, name, Some(uid), Some(gid), plain)
            .context(|| format!("give it to {}:{}", self.uid, self.gid))
    }
}

impl Shares {
    /// Joins the mounts to their peers on the host. `proc` is the host's procfs.
    pub(crate) fn share(&self, proc: BorrowedFd<'_>) -> Result<()> {
        for (destination, tree, peers) in &self.list {
            mounts::join(proc, tree.as_fd(), peers.as_fd(), &self.private)
                .map_err(|e| e.map(|m| format!("share the mount on {destination}: {m}")))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_engine_gets_what_it_works_in_and_init_the_rest() {
        let mut config = json!({
            "root": { "path": "/r", "readonly": true },
            "mounts": [
                { "destination": "/proc", "type": "proc", "source": "proc" },
                { "destination": "/dev", "type": "bind", "source": "/dev", "options": ["rbind", "rshared"] },
                { "destination": "/sys", "type": "sysfs", "source": "sysfs" },
                { "destination": "/dev/shm", "type": "bind", "source": "/s", "options": ["bind"] },
            ],
            "linux": {
                "devices": [{ "path": "/x", "type": "c", "major": 1, "minor": 3 }],
                "maskedPaths": ["/a"], "readonlyPaths": ["/b"],
            },
        });
        let tree = Tree::take(&mut config, b"/w").unwrap();
        assert!(!tree.own_dev && tree.read_only);
        assert_eq!((tree.mounts.len(), tree.nodes.len()), (2, 1));
        assert_eq!(tree.mounts[0].options.propagation, Propagation::Shared);
        assert!(tree.mounts[0].options.recursive && !tree.mounts[1].options.recursive);
        let left = config["mounts"].as_array().unwrap();
        let kinds: Vec<_> = left.iter().map(|m| text(m, "type")).collect();
        assert_eq!(kinds, ["proc", "sysfs", "tmpfs"]);
        assert_eq!(config["root"]["readonly"], false);
        assert_eq!(config["linux"], json!({ "rootfsPropagation": "private" }));
    }

    #[test]
    fn malformed_mounts_and_devices_are_refused() {
        let take = |mounts: Value, devices: Value| {
            let mut config = json!({ "mounts": mounts, "linux": { "devices": devices } });
            Tree::take(&mut config, b"/").map(drop)
        };
        let bind = |to: &str, option: &str| json!([{ "destination": to, "type": "bind", "source": "/s", "options": [option] }]);
        assert!(take(bind("/a", "rbind"), json!([])).is_ok());
        assert!(take(bind("a", "rbind"), json!([])).is_err());
        assert!(take(bind("/a", "size=1"), json!([])).is_err());
        assert!(take(json!([]), json!([{ "path": "/x", "type": "q" }])).is_err());
        assert!(
            take(
                json!([]),
                json!([{ "path": "/x", "type": "c", "major": -1 }])
            )
            .is_err()
        );
    }
}
