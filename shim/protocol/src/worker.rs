//! What a disposable worker is asked to do.
//!
//! A worker is started with a socket as fd 0, reads one [`Request`], answers with one [`Reply`]
//! (two for a pod: [`Outcome::Namespaces`] and then [`Outcome::Started`]) and ends.

/// One request; exactly one of the fields is set.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Request {
    /// The operation.
    #[prost(oneof = "Call", tags = "1, 2, 3, 4")]
    pub call: Option<Call>,
    /// Roles of the descriptors that came with the message, in order.
    #[prost(enumeration = "crate::Fd", repeated, tag = "15")]
    pub fds: Vec<i32>,
}

/// The operations.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Call {
    /// Make a container's init, which then waits for its start byte.
    #[prost(message, tag = "1")]
    Create(Create),
    /// Run a process in a container.
    #[prost(message, tag = "2")]
    Exec(Exec),
    /// Make and pin a pod's namespaces; a [`Call::Pause`] follows on the same socket, or end of file.
    #[prost(message, tag = "3")]
    Pod(Pod),
    /// Second half of a pod: start its pause process.
    #[prost(message, tag = "4")]
    Pause(Pause),
}

/// A worker's answer.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Reply {
    /// The outcome.
    #[prost(oneof = "Outcome", tags = "1, 2, 3")]
    pub outcome: Option<Outcome>,
    /// Roles of the descriptors that came with the message, in order.
    #[prost(enumeration = "crate::Fd", repeated, tag = "15")]
    pub fds: Vec<i32>,
}

/// Outcomes.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Outcome {
    /// It failed, and was undone.
    #[prost(message, tag = "1")]
    Failure(crate::monitor::Failure),
    /// The pod's namespaces exist and are pinned.
    #[prost(message, tag = "2")]
    Namespaces(Namespaces),
    /// The process exists. Its pidfd, and the console's master if one was asked for, come along.
    #[prost(message, tag = "3")]
    Started(Started),
}

/// The pod's namespaces exist and are pinned where [`Pod`] said.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Namespaces {}

/// A process was made.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Started {
    /// Its pid in the daemon's PID namespace.
    #[prost(int32, tag = "1")]
    pub pid: i32,
    /// Its start time in clock ticks since boot (field 22 of `/proc/PID/stat`, proc(5)).
    #[prost(uint64, tag = "2")]
    pub start_time: u64,
}

/// Make a container's init. Descriptors: `Rootfs`, `StartPipe`, `ErrorPipe`, `Stdin`, `Stdout`,
/// `Stderr` (none of the last three with a terminal), `Seccomp` where a filter is asked for.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Create {
    /// The container's id (64 hexadecimal digits).
    #[prost(string, tag = "1")]
    pub id: String,
    /// Directory with the OCI `config.json`.
    #[prost(string, tag = "2")]
    pub bundle: String,
    /// Directory for libcontainer's own state; the worker removes what it made in it.
    #[prost(string, tag = "3")]
    pub engine_root: String,
    /// A directory on a *private* mount of the host, where the worker, in a mount namespace of its
    /// own, attaches the root file system. `config.json` names the same path as its root.
    #[prost(string, tag = "4")]
    pub rootfs: String,
    /// The cgroup to make.
    #[prost(message, optional, tag = "5")]
    pub cgroup: Option<Cgroup>,
    /// The process to run.
    #[prost(message, optional, tag = "6")]
    pub process: Option<Process>,
    // Tags 7 and 8 are used up: propagation is among the options of the mounts in `config.json`.
    /// Resource limits that a user may exceed only with CAP_SYS_RESOURCE; applied to the worker
    /// before the container exists, inherited by init.
    #[prost(message, repeated, tag = "9")]
    pub rlimits: Vec<Rlimit>,
    // Tag 10 is used up: mount points are made when they are mounted on.
}

/// One resource limit (setrlimit(2)).
#[derive(Clone, PartialEq, prost::Message)]
pub struct Rlimit {
    /// The kernel's number, `RLIMIT_*`.
    #[prost(uint32, tag = "1")]
    pub resource: u32,
    /// Soft limit.
    #[prost(uint64, tag = "2")]
    pub soft: u64,
    /// Hard limit.
    #[prost(uint64, tag = "3")]
    pub hard: u64,
}

/// A container's cgroup: made, then written, by the worker. Directories are absolute paths in the
/// host's cgroup file systems.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Cgroup {
    /// Path below each hierarchy's root, for the OCI `cgroupsPath` ("/kubepods/…/ID").
    #[prost(string, tag = "1")]
    pub path: String,
    /// Directories to make, outermost first (v1: one chain for each hierarchy).
    #[prost(string, repeated, tag = "2")]
    pub dirs: Vec<String>,
    /// v2: controllers to enable in the `cgroup.subtree_control` of the given directory.
    #[prost(message, repeated, tag = "3")]
    pub enable: Vec<CgroupWrite>,
    /// Files to write, in this order.
    #[prost(message, repeated, tag = "4")]
    pub writes: Vec<CgroupWrite>,
    /// v2: device program to attach to this directory (empty: none). The rules are in `devices`.
    #[prost(string, tag = "5")]
    pub device_dir: String,
    /// v2 device rules, first deny-all where nothing else is said; the last match wins.
    #[prost(message, repeated, tag = "6")]
    pub devices: Vec<DeviceRule>,
    /// The container's own leaf directories (one for v2, one for each hierarchy on v1): joined by
    /// pause, removed at the end.
    #[prost(string, repeated, tag = "7")]
    pub leaves: Vec<String>,
}

/// A value for a file of a cgroup.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CgroupWrite {
    /// Absolute path of the file.
    #[prost(string, tag = "1")]
    pub file: String,
    /// What to write.
    #[prost(string, tag = "2")]
    pub value: String,
    /// Absence of the file is not an error (a controller that the kernel does not have, a limit of 0).
    #[prost(bool, tag = "3")]
    pub optional: bool,
}

/// One device rule (OCI `linux.resources.devices`).
#[derive(Clone, PartialEq, prost::Message)]
pub struct DeviceRule {
    /// Allow or deny.
    #[prost(bool, tag = "1")]
    pub allow: bool,
    /// `a`, `b` or `c`.
    #[prost(string, tag = "2")]
    pub kind: String,
    /// Major number; absent is any.
    #[prost(int64, optional, tag = "3")]
    pub major: Option<i64>,
    /// Minor number; absent is any.
    #[prost(int64, optional, tag = "4")]
    pub minor: Option<i64>,
    /// Any of `rwm`.
    #[prost(string, tag = "5")]
    pub access: String,
}

/// A process to execute, as init or by exec. Bytes stay bytes: an environment value need not be UTF-8.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Process {
    /// argv; never empty. `argv[0]` without a slash is looked up in the `PATH` of `env`, in the container.
    #[prost(bytes = "vec", repeated, tag = "1")]
    pub args: Vec<Vec<u8>>,
    /// `KEY=value` in the order to be kept; always has `PATH` and `HOME`.
    #[prost(bytes = "vec", repeated, tag = "2")]
    pub env: Vec<Vec<u8>>,
    /// Working directory in the container; made if missing (init only).
    #[prost(bytes = "vec", tag = "3")]
    pub cwd: Vec<u8>,
    /// User id in the container.
    #[prost(uint32, tag = "4")]
    pub uid: u32,
    /// Group id in the container.
    #[prost(uint32, tag = "5")]
    pub gid: u32,
    /// Supplementary groups; set even when empty.
    #[prost(uint32, repeated, tag = "6")]
    pub groups: Vec<u32>,
    /// Capability sets.
    #[prost(message, optional, tag = "7")]
    pub capabilities: Option<Capabilities>,
    /// `PR_SET_NO_NEW_PRIVS`.
    #[prost(bool, tag = "8")]
    pub no_new_privs: bool,
    /// Value for `/proc/self/oom_score_adj`; absent leaves what was inherited.
    #[prost(int32, optional, tag = "9")]
    pub oom_score_adj: Option<i32>,
    /// Give it a terminal.
    #[prost(bool, tag = "10")]
    pub terminal: bool,
    /// Rows and columns of the terminal, 0 where unknown.
    #[prost(uint32, tag = "11")]
    pub rows: u32,
    /// Columns.
    #[prost(uint32, tag = "12")]
    pub columns: u32,
    /// File mode creation mask; absent is 022.
    #[prost(uint32, optional, tag = "13")]
    pub umask: Option<u32>,
    /// AppArmor profile to change to at execve ("" is none to set).
    #[prost(string, tag = "14")]
    pub apparmor: String,
    /// SELinux label to change to at execve ("" is none to set).
    #[prost(string, tag = "15")]
    pub selinux: String,
}

/// Capability sets as bit masks (bit N is capability number N, capabilities(7)).
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Capabilities {
    /// Bounding set.
    #[prost(uint64, tag = "1")]
    pub bounding: u64,
    /// Effective set.
    #[prost(uint64, tag = "2")]
    pub effective: u64,
    /// Permitted set.
    #[prost(uint64, tag = "3")]
    pub permitted: u64,
    /// Inheritable set.
    #[prost(uint64, tag = "4")]
    pub inheritable: u64,
    /// Ambient set.
    #[prost(uint64, tag = "5")]
    pub ambient: u64,
}

/// Run a process in a container. Descriptors: `Pidfd` (of init), `ErrorPipe`, `Stdin`, `Stdout`,
/// `Stderr` (none of the last three with a terminal), `Seccomp` where the container has a filter.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Exec {
    /// The container's id.
    #[prost(string, tag = "1")]
    pub container: String,
    /// Pid of the container's init, for `/proc/PID/cgroup` and messages.
    #[prost(int32, tag = "2")]
    pub init: i32,
    /// The process to run.
    #[prost(message, optional, tag = "3")]
    pub process: Option<Process>,
    /// Directories of the exec's own cgroup: made by the worker, joined by the process, removed by the
    /// monitor after the process has ended. v1: in the pids hierarchy; v2: the child cgroup.
    #[prost(string, repeated, tag = "4")]
    pub own_cgroup: Vec<String>,
    /// Cgroups to join besides (v1: the container's leaf in every other hierarchy).
    #[prost(string, repeated, tag = "5")]
    pub join_cgroup: Vec<String>,
    /// Join the container's user namespace too.
    #[prost(bool, tag = "6")]
    pub user_namespace: bool,
    /// The container's resource limits, as [`Create::rlimits`]; else those of the monitor are inherited.
    #[prost(message, repeated, tag = "7")]
    pub rlimits: Vec<Rlimit>,
}

/// Make and pin a pod's namespaces. An empty path means: the host's, nothing to make.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Pod {
    /// The pod's id.
    #[prost(string, tag = "1")]
    pub id: String,
    /// Where to pin the network namespace.
    #[prost(string, tag = "2")]
    pub net: String,
    /// Where to pin the IPC namespace.
    #[prost(string, tag = "3")]
    pub ipc: String,
    /// Where to pin the UTS namespace.
    #[prost(string, tag = "4")]
    pub uts: String,
    /// Host name for the new UTS namespace.
    #[prost(string, tag = "5")]
    pub hostname: String,
    /// Sysctls of the new IPC and UTS namespaces, dotted names (`kernel.shm*`, `kernel.msg*`, `kernel.sem`,
    /// `fs.mqueue.*`; `kernel.domainname`).
    #[prost(message, repeated, tag = "6")]
    pub sysctls: Vec<Sysctl>,
}

/// A kernel parameter.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Sysctl {
    /// Dotted name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Value.
    #[prost(string, tag = "2")]
    pub value: String,
}

/// Start the pod's pause process in the namespaces made before. Descriptors: `PauseExe`,
/// `Seccomp` where a filter is asked for.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Pause {
    /// Where to pin pause's own PID namespace; empty: pause runs in the host's.
    #[prost(string, tag = "1")]
    pub pid: String,
    /// The cgroup to make and run in.
    #[prost(message, optional, tag = "2")]
    pub cgroup: Option<Cgroup>,
    /// Credentials and the rest; args, env and cwd are ignored.
    #[prost(message, optional, tag = "3")]
    pub process: Option<Process>,
}
