//! Who a process is: ids, groups, capabilities, `no_new_privs`.

use caps::{CapSet, Capability};
use shim_protocol::worker;

use crate::error::{Context, Error, Result};
use crate::sys::{self, CapabilitySets};

/// What a filter without `no_new_privs`, and a namespace that is still to be entered, need.
pub(crate) const ADMIN: u64 = 1 << 21;

/// What a process is to be, checked.
#[derive(Debug)]
pub(crate) struct Credentials {
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
    bounding: u64,
    ambient: u64,
    sets: CapabilitySets,
    pub(crate) no_new_privs: bool,
}

/// What is kept for a moment beyond what the process will be.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Keep {
    /// CAP_SYS_ADMIN, until [`Credentials::give_up`].
    pub(crate) admin: bool,
    /// Root's right to its own files, until [`Credentials::own_files`]: a clone into a cgroup asks for it.
    pub(crate) files: bool,
}

impl Credentials {
    /// Checks the capability sets.
    pub(crate) fn new(process: &worker::Process) -> Result<Self> {
        let given = process.capabilities.unwrap_or_default();
        let known = caps::all()
            .iter()
            .fold(0, |known, cap| known | cap.bitmask());
        let set = |mask: u64, name: &str| match mask & !known {
            0 => Ok(mask),
            unknown => Err(Error::invalid(format!(
                "the {name} capability set has unknown bits ({unknown:#x})"
            ))),
        };
        Ok(Self {
            uid: process.uid,
            gid: process.gid,
            groups: process.groups.clone(),
            bounding: set(given.bounding, "bounding")?,
            ambient: set(given.ambient, "ambient")?,
            sets: CapabilitySets {
                effective: set(given.effective, "effective")?,
                permitted: set(given.permitted, "permitted")?,
                inheritable: set(given.inheritable, "inheritable")?,
            },
            no_new_privs: process.no_new_privs,
        })
    }

    /// Takes them, all but what is to be kept. The death signal is cleared by that (prctl(2)).
    pub(crate) fn take(&self, keep: Keep) -> Result<()> {
        // Else the keys of whoever started the daemon are in the container's possession.
        sys::new_session_keyring().context(|| "make a session keyring".to_owned())?;
        drop_bounding(self.bounding)?;
        let groups: Vec<nix::unistd::Gid> = self
            .groups
            .iter()
            .copied()
            .map(nix::unistd::Gid::from_raw)
            .collect();
        nix::unistd::setgroups(&groups).context(|| "set supplementary groups".to_owned())?;
        rustix::thread::set_keep_capabilities(true).context(|| "keep capabilities".to_owned())?;
        change_ids(self.uid, self.gid)?;
        let held = sys::capabilities().context(|| "read the capability sets".to_owned())?;
        missing(held.permitted, self.sets.permitted)?;
        if keep.files && self.uid != 0 {
            // A change from root to another user has emptied the effective set.
            sys::set_capabilities(CapabilitySets {
                effective: held.permitted,
                ..held
            })
            .context(|| "raise the capability sets".to_owned())?;
            sys::set_file_user(0);
            not_dumpable()?;
        }
        rustix::thread::clear_ambient_capability_set()
            .context(|| "clear ambient capabilities".to_owned())?;
        let kept = if keep.admin {
            ADMIN & held.permitted
        } else {
            0
        };
        self.set(kept)?;
        for cap in capabilities_of(self.ambient) {
            caps::raise(None, CapSet::Ambient, cap)
                .map_err(|e| Error::internal(format!("set the ambient capability set: {e}")))?;
        }
        if self.no_new_privs {
            rustix::thread::set_no_new_privs(true).context(|| "set no_new_privs".to_owned())?;
        }
        Ok(())
    }

    /// Files are the user's from here on, too.
    pub(crate) fn own_files(&self) -> Result<()> {
        sys::set_file_user(self.uid);
        not_dumpable()?;
        // The change has taken what concerns files out of the effective set.
        let held = sys::capabilities().context(|| "read the capability sets".to_owned())?;
        self.set(held.permitted & ADMIN)
    }

    /// Gives up what was kept. One system call, and none where nothing was: a filter may be in force.
    pub(crate) fn give_up(&self) -> Result<()> {
        if self.has_admin() {
            return Ok(());
        }
        self.set(0)
    }

    /// Whether CAP_SYS_ADMIN is the process's own, so that it is never given up.
    pub(crate) fn has_admin(&self) -> bool {
        self.sets.effective & self.sets.permitted & ADMIN != 0
    }

    fn set(&self, kept: u64) -> Result<()> {
        sys::set_capabilities(CapabilitySets {
            effective: self.sets.effective | kept,
            permitted: self.sets.permitted | kept,
            inheritable: self.sets.inheritable,
        })
        .context(|| "set the capability sets".to_owned())
    }
}

/// Changes the user and group ids. Each change makes the process dumpable or not by a host setting
/// (`fs.suid_dumpable`, proc(5)), and until execve it must not be.
pub(crate) fn change_ids(uid: u32, gid: u32) -> Result<()> {
    let (user, group) = (
        nix::unistd::Uid::from_raw(uid),
        nix::unistd::Gid::from_raw(gid),
    );
    nix::unistd::setresgid(group, group, group).context(|| format!("change to gid {gid}"))?;
    not_dumpable()?;
    nix::unistd::setresuid(user, user, user).context(|| format!("change to uid {uid}"))?;
    not_dumpable()
}

/// Until execve, nobody in the container may look into a process of ours.
pub(crate) fn not_dumpable() -> Result<()> {
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
        .context(|| "make the process non-dumpable".to_owned())
}

fn capabilities_of(mask: u64) -> impl Iterator<Item = Capability> {
    let mut all: Vec<Capability> = caps::all().into_iter().collect();
    all.sort_by_key(|cap| cap.index());
    all.into_iter().filter(move |cap| mask & cap.bitmask() != 0)
}

fn drop_bounding(keep: u64) -> Result<()> {
    let mut present = 0;
    for cap in caps::all() {
        // An error is a capability that this kernel does not know.
        if caps::has_cap(None, CapSet::Bounding, cap).unwrap_or(false) {
            present |= cap.bitmask();
        }
    }
    missing(present, keep)?;
    for cap in capabilities_of(present & !keep) {
        caps::drop(None, CapSet::Bounding, cap)
            .map_err(|e| Error::internal(format!("drop a bounding capability: {e}")))?;
    }
    Ok(())
}

fn missing(held: u64, wanted: u64) -> Result<()> {
    let names: Vec<String> = capabilities_of(wanted & !held)
        .map(|cap| cap.to_string())
        .collect();
    if names.is_empty() {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "cannot give capabilities that this machine does not give berth: {}",
        names.join(", ")
    )))
}
