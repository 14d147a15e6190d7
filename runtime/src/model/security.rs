//! Security settings of pods and containers.

/// Which system call filter to load.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum SeccompProfile {
    /// None (row F031: also when nothing is said).
    #[default]
    Unconfined,
    /// Berth's own table.
    RuntimeDefault,
    /// An absolute file name with a profile in the OCI form.
    Localhost(String),
}

/// Which AppArmor profile to run under.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum AppArmorProfile {
    /// Nothing was said: Berth's own where it can be had (row F036).
    #[default]
    Unset,
    /// Berth's own.
    RuntimeDefault,
    /// None.
    Unconfined,
    /// The name of one that is loaded.
    Localhost(String),
}

/// Capabilities to add to and drop from the default set. Names as given; `ALL` allowed in both.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CapabilityRequest {
    /// Added.
    pub add: Vec<String>,
    /// Dropped.
    pub drop: Vec<String>,
    /// Added to the ambient set too.
    pub add_ambient: Vec<String>,
}

/// What `supplemental_groups` means together with the image's `/etc/group` (KEP-3619).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum GroupsPolicy {
    /// Given groups and those of the user in the image.
    #[default]
    Merge,
    /// Given groups only.
    Strict,
}

/// A signal by its Linux number and name (`SIGTERM`, `SIGRTMIN+3`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignalName {
    /// Linux number on this architecture.
    pub number: i32,
    /// Name with `SIG`.
    pub name: String,
}
