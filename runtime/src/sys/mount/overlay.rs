//! Overlay mounts that are attached nowhere.

use std::fmt::Write;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::symlink;
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, UnmountFlags};
use rustix::thread::UnshareFlags;

/// How this kernel is told the layers of an overlay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// `lowerdir+` with a descriptor each (Linux 6.13).
    Descriptors,
    /// `lowerdir+` with a path each (Linux 6.7).
    Paths,
    /// One option string of at most a page, by mount(2) in a mount namespace made for it.
    OptionString,
    /// Not at all: the writable layer stands for the overlay. For tests, which have no root.
    #[cfg(test)]
    Never,
}

/// What an overlay is made of.
#[derive(Debug)]
pub struct OverlayLayers<'a> {
    /// Read-only layers, the topmost first; at least one, two when there is no upper.
    pub lower: &'a [BorrowedFd<'a>],
    /// Writable layer and the work directory beside it.
    pub upper: Option<(BorrowedFd<'a>, BorrowedFd<'a>)>,
}

/// Asked for explicitly, so that neither the kernel's build nor a module parameter decides: no file of
/// a layer may redirect lookups or borrow another file's data, and a layer may be shared and moved.
const OPTIONS: [(&str, &str); 4] = [
    ("index", "off"),
    ("metacopy", "off"),
    ("redirect_dir", "nofollow"),
    ("nfs_export", "off"),
];

/// Finds the best method that the kernel has, by trying, with any directory.
///
/// # Errors
/// When overlay is not there at all.
pub fn probe_overlay(dir: BorrowedFd<'_>) -> io::Result<Method> {
    let context = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    if rustix::mount::fsconfig_set_fd(&context, "lowerdir+", dir).is_ok() {
        return Ok(Method::Descriptors);
    }
    let context = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let path = descriptor_path(dir);
    if rustix::mount::fsconfig_set_string(&context, "lowerdir+", path.as_str()).is_ok() {
        return Ok(Method::Paths);
    }
    Ok(Method::OptionString)
}

/// Makes an overlay that is attached nowhere. `scratch` is a directory for short names of the layers;
/// it is used, and left empty, with [`Method::OptionString`] only.
///
/// # Errors
/// What the kernel says.
pub fn detached_overlay(
    method: Method,
    layers: &OverlayLayers<'_>,
    scratch: &Path,
) -> io::Result<OwnedFd> {
    #[cfg(test)]
    if let (Method::Never, Some((upper, _))) = (method, layers.upper) {
        return upper.try_clone_to_owned();
    }
    if method == Method::OptionString {
        return by_option_string(layers, scratch);
    }
    let context = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    configure(&context, method, layers).map_err(|error| explain(&context, error))?;
    let flags = FsMountFlags::FSMOUNT_CLOEXEC;
    Ok(rustix::mount::fsmount(
        &context,
        flags,
        MountAttrFlags::empty(),
    )?)
}

fn configure(context: &OwnedFd, method: Method, layers: &OverlayLayers<'_>) -> io::Result<()> {
    rustix::mount::fsconfig_set_string(context, "source", "berth")?;
    for (key, value) in OPTIONS {
        rustix::mount::fsconfig_set_string(context, key, value)?;
    }
    let set = |key: &str, dir: BorrowedFd<'_>| match method {
        Method::Descriptors => rustix::mount::fsconfig_set_fd(context, key, dir),
        _ => rustix::mount::fsconfig_set_string(context, key, descriptor_path(dir).as_str()),
    };
    for dir in layers.lower {
        set("lowerdir+", *dir)?;
    }
    if let Some((upper, work)) = layers.upper {
        set("upperdir", upper)?;
        set("workdir", work)?;
    }
    Ok(rustix::mount::fsconfig_create(context)?)
}

/// Adds what the kernel wrote into the context's log: `EINVAL` alone helps nobody.
fn explain(context: &OwnedFd, error: io::Error) -> io::Error {
    let mut message = [0; 1024];
    let mut log = String::new();
    while let Ok(length @ 1..) = rustix::io::read(context, &mut message) {
        let line = String::from_utf8_lossy(message.get(..length).unwrap_or_default());
        let line = line.trim_start_matches("e ").trim_end().to_owned();
        let _ = write!(log, "{}{line}", if log.is_empty() { "" } else { "; " });
    }
    if log.is_empty() {
        return error;
    }
    io::Error::new(error.kind(), format!("{error}: {log}"))
}

fn descriptor_path(dir: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", dir.as_raw_fd())
}

fn real_path(dir: BorrowedFd<'_>) -> io::Result<std::path::PathBuf> {
    std::fs::read_link(descriptor_path(dir))
}

/// mount(2) has to attach, so it does in a mount namespace that a thread makes, and that is gone with
/// the thread once a detached copy has been taken. 500 layers fit into the page of options because the
/// thread's working directory holds links with names of one to three bytes. The links lead to paths, not
/// to descriptors: those belong to the mounts of the namespace that was left, which overlay refuses.
fn by_option_string(layers: &OverlayLayers<'_>, scratch: &Path) -> io::Result<OwnedFd> {
    let links = scratch.join(crate::sys::fs::unique_name("overlay-"));
    std::fs::create_dir(&links)?;
    let made = std::thread::scope(|scope| {
        let work = || mount_in_own_namespace(layers, &links);
        let thread = std::thread::Builder::new().name("overlay-mount".into());
        let thread = thread.spawn_scoped(scope, work)?;
        let ended = thread.join();
        ended.unwrap_or_else(|_| Err(io::Error::other("the mounting thread panicked")))
    });
    let swept = std::fs::remove_dir_all(&links);
    let mount = made?;
    swept?;
    Ok(mount)
}

fn mount_in_own_namespace(layers: &OverlayLayers<'_>, links: &Path) -> io::Result<OwnedFd> {
    // SAFETY: unsharing the file system attributes and the mount namespace changes this thread alone,
    // which was made for this call; no descriptor table is unshared.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FS | UnshareFlags::NEWNS) }?;
    let private =
        rustix::mount::MountPropagationFlags::PRIVATE | rustix::mount::MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private)?;
    let here = rustix::fs::open(links, OFlags::PATH | OFlags::DIRECTORY, Mode::empty())?;
    rustix::process::fchdir(&here)?;

    let mut options = String::new();
    for (key, value) in OPTIONS {
        let _ = write!(options, "{key}={value},");
    }
    options.push_str("lowerdir=");
    for (number, dir) in layers.lower.iter().enumerate() {
        symlink(real_path(*dir)?, links.join(format!("{number:x}")))?;
        let _ = write!(options, "{}{number:x}", if number == 0 { "" } else { ":" });
    }
    if let Some((upper, work)) = layers.upper {
        symlink(real_path(upper)?, links.join("u"))?;
        symlink(real_path(work)?, links.join("w"))?;
        options.push_str(",upperdir=u,workdir=w");
    }
    std::fs::create_dir(links.join("m"))?;
    let options = std::ffi::CString::new(options)?;
    let flags = MountFlags::empty();
    rustix::mount::mount("berth", "m", "overlay", flags, options.as_c_str())?;
    let copy = super::detached_bind(Path::new("m"), false);
    // The copy keeps the overlay alive; the attached one would stay busy until the namespace is gone.
    rustix::mount::unmount("m", UnmountFlags::DETACH)?;
    let copy = copy?;
    let change = super::MountChange {
        propagation: Some(rustix::mount::MountPropagationFlags::PRIVATE),
        ..super::MountChange::default()
    };
    super::set_attr(copy.as_fd(), change, false)?;
    Ok(copy)
}
