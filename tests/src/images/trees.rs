//! Images with everything that a layer may contain, byte by byte, for comparisons with another runtime.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

use anyhow::{Context as _, Result};

use crate::oci::{Layer, Pack};

/// The largest file that is taken from this machine.
const LARGEST: u64 = 512 << 10;

/// What an entry of an archive says.
#[derive(Clone, Debug)]
pub struct Node {
    /// type flag
    pub kind: u8,
    /// permission bits
    pub mode: u32,
    /// user and group
    pub owner: (u32, u32),
    /// seconds and nanoseconds
    pub mtime: (i64, u32),
    /// link target
    pub link: Vec<u8>,
    /// major and minor
    pub device: (u32, u32),
    /// extended attributes and other pax records: keyword and value
    pub records: Vec<(Vec<u8>, Vec<u8>)>,
    /// content
    pub content: Vec<u8>,
}

impl Node {
    /// Something of root's, a file if nothing else is said.
    #[must_use]
    pub fn new(kind: u8, mode: u32) -> Self {
        Self {
            kind,
            mode,
            owner: (0, 0),
            mtime: (1_700_000_000, 0),
            link: Vec::new(),
            device: (0, 0),
            records: Vec::new(),
            content: Vec::new(),
        }
    }

    /// With an owner.
    #[must_use]
    pub fn owner(mut self, uid: u32, gid: u32) -> Self {
        self.owner = (uid, gid);
        self
    }

    /// With a time.
    #[must_use]
    pub fn mtime(mut self, sec: i64, nsec: u32) -> Self {
        self.mtime = (sec, nsec);
        self
    }

    /// With a link target.
    #[must_use]
    pub fn link(mut self, target: impl AsRef<[u8]>) -> Self {
        self.link = target.as_ref().to_vec();
        self
    }

    /// With a device number.
    #[must_use]
    pub fn device(mut self, major: u32, minor: u32) -> Self {
        self.device = (major, minor);
        self
    }

    /// With a pax record.
    #[must_use]
    pub fn record(mut self, key: &str, value: impl AsRef<[u8]>) -> Self {
        self.records
            .push((key.as_bytes().to_vec(), value.as_ref().to_vec()));
        self
    }

    /// With an extended attribute.
    #[must_use]
    pub fn xattr(self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.record(&format!("SCHILY.xattr.{name}"), value)
    }

    /// With content.
    #[must_use]
    pub fn content(mut self, content: impl AsRef<[u8]>) -> Self {
        self.content = content.as_ref().to_vec();
        self
    }
}

/// A file with content.
#[must_use]
pub fn file(mode: u32, content: impl AsRef<[u8]>) -> Node {
    Node::new(b'0', mode).content(content)
}

/// A directory.
#[must_use]
pub fn dir(mode: u32) -> Node {
    Node::new(b'5', mode)
}

/// An archive, in pax format unless something else is said: every entry has its name and time in full in an extended
/// header then.
#[derive(Debug, Default)]
pub struct Archive(Vec<u8>);

fn octal(field: &mut [u8], value: u64) {
    let width = field.len() - 1;
    let text = format!("{value:0width$o}");
    if text.len() == width {
        field[..width].copy_from_slice(text.as_bytes());
    }
}

fn record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let body = key.len() + value.len() + 3;
    let mut length = body;
    while length.to_string().len() + body != length {
        length = length.to_string().len() + body;
    }
    [length.to_string().as_bytes(), b" ", key, b"=", value, b"\n"].concat()
}

/// GNU's magic and version.
const GNU: &[u8; 8] = b"ustar  \0";

impl Archive {
    fn header(
        &mut self,
        kind: u8,
        name: &[u8],
        node: &Node,
        content: &[u8],
        edit: &dyn Fn(&mut [u8; 512]),
    ) {
        let mut header = [0u8; 512];
        let length = name.len().min(100);
        header[..length].copy_from_slice(&name[..length]);
        octal(&mut header[100..108], u64::from(node.mode));
        octal(&mut header[108..116], u64::from(node.owner.0));
        octal(&mut header[116..124], u64::from(node.owner.1));
        octal(&mut header[124..136], content.len() as u64);
        octal(
            &mut header[136..148],
            u64::try_from(node.mtime.0).unwrap_or(0),
        );
        header[148..156].fill(b' ');
        header[156] = kind;
        let length = node.link.len().min(100);
        header[157..157 + length].copy_from_slice(&node.link[..length]);
        header[257..265].copy_from_slice(b"ustar\x0000");
        octal(&mut header[329..337], u64::from(node.device.0));
        octal(&mut header[337..345], u64::from(node.device.1));
        edit(&mut header);
        let sum: u64 = header.iter().map(|byte| u64::from(*byte)).sum();
        octal(&mut header[148..155], sum);
        self.0.extend(header);
        self.0.extend(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
    }

    /// Adds an entry.
    pub fn add(&mut self, name: impl AsRef<[u8]>, node: &Node) -> &mut Self {
        let name = name.as_ref();
        let (sec, nsec) = node.mtime;
        let mut records = match (sec, nsec) {
            (sec, 0) => record(b"mtime", sec.to_string().as_bytes()),
            (sec, nsec) => record(b"mtime", format!("{sec}.{nsec:09}").as_bytes()),
        };
        records.extend(record(b"uid", node.owner.0.to_string().as_bytes()));
        records.extend(record(b"gid", node.owner.1.to_string().as_bytes()));
        // A sparse file has its name elsewhere.
        if !node
            .records
            .iter()
            .any(|(key, _)| key == b"GNU.sparse.name")
        {
            records.extend(record(b"path", name));
        }
        if !node.link.is_empty() {
            records.extend(record(b"linkpath", &node.link));
        }
        for (key, value) in &node.records {
            records.extend(record(key, value));
        }
        let extension = Node::new(b'x', 0o644);
        self.header(b'x', b"PaxHeader", &extension, &records, &|_| ());
        self.header(node.kind, name, node, &node.content, &|_| ());
        self
    }

    /// Adds an entry that has nothing but its header, with something changed in that.
    fn plain(&mut self, name: &str, node: &Node, edit: &dyn Fn(&mut [u8; 512])) {
        self.header(node.kind, name.as_bytes(), node, &node.content, edit);
    }

    /// Adds a name or link target for the next entry as GNU does.
    fn gnu_long(&mut self, kind: u8, text: &str) {
        let content = [text.as_bytes(), b"\0"].concat();
        let node = Node::new(kind, 0o644);
        self.header(kind, b"././@LongLink", &node, &content, &|header| {
            header[257..265].copy_from_slice(GNU);
        });
    }

    /// A sparse file in pax format 1.0 whose parts are `at`, each of one block.
    pub fn sparse(&mut self, name: &str, size: u64, at: &[u64]) -> &mut Self {
        let mut content = format!("{}\n", at.len()).into_bytes();
        for offset in at {
            content.extend(format!("{offset}\n4096\n").bytes());
        }
        content.resize(content.len().next_multiple_of(512), 0);
        for offset in at {
            content.extend([offset.to_le_bytes()[1] | 1; 4096]);
        }
        let node = file(0o600, content)
            .record("GNU.sparse.major", "1")
            .record("GNU.sparse.minor", "0")
            .record("GNU.sparse.name", name)
            .record("GNU.sparse.realsize", size.to_string());
        self.add("GNUSparseFile.0/sparse", &node)
    }

    /// The layer.
    ///
    /// # Errors
    /// When packing fails.
    pub fn layer(mut self, pack: Pack) -> Result<Layer> {
        self.0.extend([0; 1024]);
        Layer::of(self.0, pack)
    }
}

/// `security.capability` with CAP_NET_RAW permitted and effective.
const CAPABILITY: [u8; 20] = [
    1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
];

/// An access control list as the kernel has it, with one user more than the mode knows.
fn list(mask: u16) -> Vec<u8> {
    let mut bytes = 2u32.to_le_bytes().to_vec();
    let nobody = u32::MAX;
    for (tag, perm, id) in [
        (1u16, 6u16, nobody),
        (2, 7, 1000),
        (4, 4, nobody),
        (0x10, mask, nobody),
        (0x20, 0, nobody),
    ] {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(perm.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

/// Where [`everything`] has a sparse file: name, size, offsets of blocks with content.
pub const SPARSE: (&str, u64, [u64; 3]) = ("sparse", 50 << 20, [0, 1 << 20, 40 << 20]);

/// Directories of [`everything`] whose time is the unpacking's in one runtime and the lower layer's in another:
/// no entry of an upper layer describes them, and something in them changes.
pub const IMPLIED: [&str; 5] = ["", "etc", "etc/deep", "etc/deep/er", "only"];

fn base() -> Archive {
    let mut tar = Archive::default();
    tar.add("./", &dir(0o700).owner(5, 5).mtime(1000, 0));
    for (name, mode) in [
        ("etc/", 0o755),
        ("etc/deep/", 0o2775),
        ("etc/deep/er/", 0o1777),
        ("bin/", 0o755),
        ("dev/", 0o755),
        ("gone/", 0o755),
        ("opaque/", 0o711),
        ("becomes-file/", 0o755),
        ("replaced/", 0o700),
    ] {
        tar.add(
            name,
            &dir(mode).owner(0, 50).mtime(1_600_000_000, 123_456_789),
        );
    }
    tar.add("late/child", &file(0o644, "child"));
    tar.add("late/", &dir(0o750).owner(7, 8).mtime(77, 7));
    tar.add("bin/su", &file(0o4755, "setuid").owner(0, 0));
    tar.add("bin/wall", &file(0o2755, "setgid").owner(0, 5));
    tar.add(
        "bin/ping",
        &file(0o755, "ping").xattr("security.capability", CAPABILITY),
    );
    tar.add(
        "bin/odd",
        &file(0o7777, "odd").owner(4_000_000_000, 3_000_000_000),
    );
    tar.add("bin/none", &file(0, "no mode"));
    for (number, target) in ["/etc/passwd", "../nowhere", "x", "."].iter().enumerate() {
        let link = Node::new(b'2', 0o777).link(target).owner(9, 9).mtime(5, 5);
        tar.add(format!("link{number}"), &link);
    }
    tar.add("first", &file(0o640, "linked").owner(3, 4).mtime(11, 11));
    for name in ["second", "etc/third"] {
        let link = Node::new(b'1', 0o640)
            .link("first")
            .owner(3, 4)
            .mtime(11, 11);
        tar.add(name, &link);
    }
    tar.add("changed", &file(0o600, "changed by its link"));
    tar.add(
        "changer",
        &Node::new(b'1', 0o4711)
            .link("changed")
            .owner(1, 1)
            .mtime(3, 3),
    );
    tar.add(
        "link-of-link",
        &Node::new(b'1', 0o777).link("link0").owner(9, 9).mtime(5, 5),
    );
    tar.add("dev/null", &Node::new(b'3', 0o666).device(1, 3));
    tar.add(
        "dev/disk",
        &Node::new(b'4', 0o660).device(259, 1_048_575).owner(0, 6),
    );
    tar.add("dev/pipe", &Node::new(b'6', 0o622));
    odd(&mut tar);
    tar
}

fn odd(tar: &mut Archive) {
    let (name, size, at) = SPARSE;
    tar.sparse(name, size, &at);
    tar.add(
        "noted",
        &file(0o644, "x")
            .xattr("user.note", b"bin\0ary")
            .xattr("user.empty", ""),
    );
    tar.add(
        "list",
        &file(0o670, "x").xattr("system.posix_acl_access", list(7)),
    );
    tar.add(
        "narrow",
        &file(0o640, "x").xattr("system.posix_acl_access", list(7)),
    );
    tar.add(
        "lists/",
        &dir(0o750)
            .xattr("system.posix_acl_default", list(7))
            .xattr("user.dir", "1"),
    );
    tar.add("lists/heir", &file(0o664, "x"));
    tar.add("lists/dir/", &dir(0o755));
    tar.add(
        "text-list",
        &file(0o644, "x").record("SCHILY.acl.access", "user::rwx"),
    );
    tar.add("pipe-note", &Node::new(b'6', 0o600).xattr("user.note", "x"));
    for (name, sec, nsec) in [
        ("epoch", 0, 0),
        ("negative", -5, 0),
        ("fraction", 1_234_567_890, 123_456_789),
        ("far", 4_000_000_000, 999_999_999),
        ("beyond", 9_300_000_000, 0),
    ] {
        tar.add(format!("times/{name}"), &file(0o644, "").mtime(sec, nsec));
    }
    tar.add("times/", &dir(0o755).mtime(42, 42));
    tar.add(
        "read",
        &file(0o644, "x").mtime(5, 0).record("atime", "99.5"),
    );
    let long = "long".repeat(60);
    tar.add(format!("{long}/{long}/{long}"), &file(0o644, "long"));
    tar.add(format!("{long}/{long}/"), &dir(0o755));
    tar.add(format!("{long}/"), &dir(0o755));
    for name in [
        &b"caf\xe9"[..],
        b"caf\xc3\xa9",
        b"cafe\xcc\x81",
        b"a\nb",
        b"File",
        b"file",
    ] {
        tar.add(name, &file(0o644, name));
    }
    tar.add("twice", &file(0o600, "first"));
    tar.add("twice", &file(0o644, "second"));
    tar.add("was-dir/", &dir(0o755));
    tar.add("was-dir/child", &file(0o644, "x"));
    tar.add("was-dir", &file(0o644, "now a file"));
    tar.add("was-file", &file(0o644, "x"));
    tar.add("was-file/", &dir(0o755).mtime(8, 8));
    tar.add("was-link", &Node::new(b'2', 0o777).link("etc"));
    tar.add("was-link/", &dir(0o755).mtime(9, 9));
    tar.add("/absolute//name", &file(0o644, "x"));
    tar.add("./absolute/./", &dir(0o755).mtime(6, 6));
    for name in [
        "gone/a",
        "gone/b",
        "opaque/old",
        "etc/deep/er/kept",
        "etc/removed",
        "only/kept",
    ] {
        tar.add(name, &file(0o644, name));
    }
    tar.add("only/", &dir(0o711).owner(21, 22).xattr("user.only", "1"));
    tar.add("becomes-dir", &file(0o644, "x"));
    tar.add("replaced/below", &file(0o644, "x"));
}

fn middle() -> Archive {
    let mut tar = Archive::default();
    let mark = file(0o644, "");
    tar.add(".wh.gone", &mark);
    tar.add("etc/.wh.removed", &mark);
    tar.add("etc/.wh.never-there", &mark);
    tar.add("opaque/", &dir(0o755).owner(2, 2).mtime(31, 31));
    tar.add("opaque/before", &file(0o644, "x"));
    tar.add("opaque/.wh..wh..opq", &mark);
    tar.add("opaque/after", &file(0o644, "x"));
    tar.add("becomes-file", &file(0o755, "now a file"));
    tar.add("becomes-dir/", &dir(0o755).mtime(32, 32));
    tar.add("becomes-dir/child", &file(0o644, "x").mtime(33, 33));
    // Only the directory itself.
    tar.add("late/", &dir(0o700).owner(8, 7).mtime(34, 34));
    // In directories that only the layer below describes.
    tar.add("etc/deep/er/new", &file(0o644, "x"));
    tar.add("only/new", &file(0o644, "x"));
    tar.add("replaced", &Node::new(b'2', 0o777).link("etc"));
    tar.add("pair1", &file(0o644, "pair"));
    tar.add("pair2", &Node::new(b'1', 0o644).link("pair1"));
    tar.add(".wh.second", &mark);
    tar
}

fn top() -> Archive {
    let mut tar = Archive::default();
    let mark = file(0o644, "");
    tar.add("gone/", &dir(0o750).mtime(51, 51));
    tar.add("gone/new", &file(0o644, "again").mtime(52, 52));
    tar.add("opaque/.wh.before", &mark);
    tar.add("opaque/", &dir(0o777).mtime(53, 53));
    tar.add("etc/removed", &file(0o600, "back"));
    tar.add(".wh.was-file", &mark);
    tar.add("bin/", &dir(0o755).mtime(54, 54));
    tar.add("bin/su", &file(0o755, "replaced"));
    tar
}

/// What other writers than those of pax headers write.
fn formats() -> Archive {
    let mut tar = Archive::default();
    for name in [
        "formats/",
        "formats/prefix/",
        "formats/star/",
        "formats/old-go/",
    ] {
        tar.add(name, &dir(0o755).mtime(61, 61));
    }
    let prefix = |header: &mut [u8; 512], text: &[u8]| {
        header[345..345 + text.len()].copy_from_slice(text);
    };
    let node = |content: &str| file(0o640, content).owner(3, 4).mtime(62, 0);
    tar.plain("posix", &node("posix"), &|header| {
        prefix(header, b"formats/prefix");
    });
    tar.plain("star", &node("star"), &|header| {
        prefix(header, b"formats/star");
        octal(&mut header[476..488], 99);
        octal(&mut header[488..500], 99);
        header[508..512].copy_from_slice(b"tar\0");
    });
    // Where GNU has times, a prefix that never should have been there.
    tar.plain("old-go", &node("old-go"), &|header| {
        header[257..265].copy_from_slice(GNU);
        prefix(header, b"formats/old-go");
    });
    tar.plain("formats/gnu-times", &node("gnu-times"), &|header| {
        header[257..265].copy_from_slice(GNU);
        octal(&mut header[345..357], 99);
        octal(&mut header[357..369], 99);
    });
    let long = format!("formats/{}", "long".repeat(60));
    tar.gnu_long(b'L', &long);
    tar.plain("short", &node("gnu"), &|header| {
        header[257..265].copy_from_slice(GNU);
    });
    tar.gnu_long(b'K', &long);
    let link = Node::new(b'2', 0o777).link("short").mtime(62, 0);
    tar.plain("formats/long-link", &link, &|header| {
        header[257..265].copy_from_slice(GNU);
    });
    // Beyond octal digits: 4,000,000,000 and 2^33.
    tar.plain("formats/binary", &node("binary"), &|header| {
        header[257..265].copy_from_slice(GNU);
        header[108..116].copy_from_slice(&[0x80, 0, 0, 0, 0xee, 0x6b, 0x28, 0]);
        header[136..148].copy_from_slice(&[0x80, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0]);
    });
    tar.plain("formats/v7", &node("v7"), &|header| {
        header[156] = 0;
        header[257..].fill(0);
    });
    tar.plain("formats/v7-dir/", &dir(0o700).mtime(63, 0), &|header| {
        header[156] = 0;
        header[257..].fill(0);
    });
    tar
}

/// Four layers with everything that both runtimes take.
///
/// # Errors
/// When packing fails.
pub fn everything(pack: Pack) -> Result<Vec<Layer>> {
    Ok(vec![
        base().layer(pack)?,
        middle().layer(pack)?,
        top().layer(pack)?,
        formats().layer(pack)?,
    ])
}

/// A layer of folders of this machine as they are, without large files.
///
/// # Errors
/// When something cannot be read.
pub fn of_this_machine(folders: &[&str], pack: Pack) -> Result<Layer> {
    let mut tar = Archive::default();
    let mut links = BTreeMap::new();
    for folder in folders {
        let path = Path::new("/").join(folder);
        add_path(&mut tar, &path, &mut links).with_context(|| format!("packing {folder}"))?;
    }
    tar.layer(pack)
}

fn add_path(
    tar: &mut Archive,
    path: &Path,
    links: &mut BTreeMap<(u64, u64), Vec<u8>>,
) -> Result<()> {
    let meta = std::fs::symlink_metadata(path)?;
    let name = path.strip_prefix("/")?.as_os_str().as_bytes().to_vec();
    let kind = meta.file_type();
    let base = |kind: u8| {
        Node::new(kind, meta.mode() & 0o7777)
            .owner(meta.uid(), meta.gid())
            .mtime(meta.mtime(), u32::try_from(meta.mtime_nsec()).unwrap_or(0))
    };
    if kind.is_dir() {
        tar.add([&name, &b"/"[..]].concat(), &base(b'5'));
        let mut names: Vec<_> = std::fs::read_dir(path)?.collect::<std::io::Result<_>>()?;
        names.sort_by_key(std::fs::DirEntry::file_name);
        for entry in names {
            add_path(tar, &entry.path(), links)?;
        }
    } else if kind.is_symlink() {
        let target = std::fs::read_link(path)?;
        tar.add(&name, &base(b'2').link(target.as_os_str().as_bytes()));
    } else if kind.is_fifo() {
        tar.add(&name, &base(b'6'));
    } else if kind.is_file() && meta.size() <= LARGEST {
        let id = (meta.dev(), meta.ino());
        if let Some(first) = links.get(&id) {
            tar.add(&name, &base(b'1').link(first));
            return Ok(());
        }
        let mut content = Vec::new();
        std::fs::File::open(path)?.read_to_end(&mut content)?;
        let mut node = base(b'0').content(content);
        let mut value = vec![0; 1024];
        if let Ok(length) = rustix::fs::lgetxattr(path, "security.capability", &mut value[..]) {
            node = node.xattr("security.capability", &value[..length]);
        }
        tar.add(&name, &node);
        if meta.nlink() > 1 {
            links.insert(id, name);
        }
    }
    Ok(())
}
