//! The daemon's conversation with a container's monitor.

/// A request of the daemon.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Request {
    /// Chosen by the daemon; the reply repeats it.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// The operation.
    #[prost(oneof = "Call", tags = "2, 3, 4, 5, 6, 7, 8")]
    pub call: Option<Call>,
    /// Roles of the descriptors that came with the message, in order.
    #[prost(enumeration = "crate::Fd", repeated, tag = "15")]
    pub fds: Vec<i32>,
}

/// The operations.
#[derive(Clone, PartialEq, prost::Oneof)]
#[expect(
    clippy::large_enum_variant,
    reason = "one at a time exists, for one step"
)]
pub enum Call {
    /// First message of every connection; answered by [`Outcome::Hello`].
    #[prost(message, tag = "2")]
    Hello(Hello),
    /// Make the container; first connection only, once. Answered by [`Outcome::Created`].
    #[prost(message, tag = "3")]
    Create(Create),
    /// Let the created init go on to `execve`; a second request joins one that is under way. Answered by [`Outcome::Running`],
    /// or a failure, after which the container is over. Its kind is [`FailureKind::Start`], and the exit code 128, where
    /// the command could not be executed.
    #[prost(message, tag = "4")]
    Start(Empty),
    /// Run a process in the container; answered by [`Outcome::ExecStarted`], later [`Event::ExecExited`].
    #[prost(message, tag = "5")]
    Exec(Exec),
    /// Open the log file anew, in the directory of the descriptor `LogDir`; without one, and by monitors that do not
    /// know it, in the directory it was in. Answered by [`Outcome::Done`] once the new file exists.
    #[prost(message, tag = "6")]
    ReopenLog(Empty),
    /// End the monitor and with it the container, whatever state it is in (removal, undo).
    #[prost(message, tag = "7")]
    Destroy(Empty),
    /// Kill one exec'd process and its tree now. Answered by [`Outcome::Done`].
    #[prost(message, tag = "8")]
    KillExec(KillExec),
}

/// What the monitor sends: replies and events.
#[derive(Clone, PartialEq, prost::Message)]
pub struct FromMonitor {
    /// One of both.
    #[prost(oneof = "Message", tags = "1, 2")]
    pub message: Option<Message>,
    /// Roles of the descriptors that came with the message, in order.
    #[prost(enumeration = "crate::Fd", repeated, tag = "15")]
    pub fds: Vec<i32>,
}

/// A reply or an event.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Message {
    /// Answer to a request.
    #[prost(message, tag = "1")]
    Reply(Reply),
    /// Something happened.
    #[prost(message, tag = "2")]
    Event(EventMessage),
}

/// Answer to the request with the same id.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Reply {
    /// The request's id.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// The outcome.
    #[prost(oneof = "Outcome", tags = "2, 3, 4, 5, 6, 7")]
    pub outcome: Option<Outcome>,
}

/// Outcomes.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Outcome {
    /// It failed.
    #[prost(message, tag = "2")]
    Failure(Failure),
    /// The handshake and the container's state.
    #[prost(message, tag = "3")]
    Hello(State),
    /// The container's init exists and waits. Its pidfd comes along.
    #[prost(message, tag = "4")]
    Created(crate::worker::Started),
    /// The container's process is running (its `execve` succeeded).
    #[prost(message, tag = "5")]
    Running(Running),
    /// The exec'd process is running.
    #[prost(message, tag = "6")]
    ExecStarted(ExecStarted),
    /// Done; nothing to say.
    #[prost(message, tag = "7")]
    Done(Empty),
}

/// Events go to every connection that has said hello.
#[derive(Clone, PartialEq, prost::Message)]
pub struct EventMessage {
    /// The event.
    #[prost(oneof = "Event", tags = "1, 2, 3")]
    pub event: Option<Event>,
}

/// Events.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Event {
    /// The container is over. By then its log is complete and its exit record is on disk; the
    /// monitor ends right after.
    #[prost(message, tag = "1")]
    Exited(Exit),
    /// An exec'd process is over.
    #[prost(message, tag = "2")]
    ExecExited(ExecExit),
    /// The kernel's OOM killer took a process of the container, and the container is still running.
    #[prost(message, tag = "3")]
    Oom(Oom),
}

/// Nothing.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Empty {}

/// The first message of a connection.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Hello {
    /// The newest version the daemon speaks.
    #[prost(uint32, tag = "1")]
    pub version: u32,
    /// The oldest version the daemon speaks.
    #[prost(uint32, tag = "2")]
    pub oldest: u32,
}

/// A failure, in words for the operator.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Failure {
    /// What kind of failure.
    #[prost(enumeration = "FailureKind", tag = "1")]
    pub kind: i32,
    /// Names the object and the cause.
    #[prost(string, tag = "2")]
    pub message: String,
}

/// Kinds of failure that the daemon treats differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum FailureKind {
    /// Anything else.
    Internal = 0,
    /// The process could not be executed (command not found, permission, format).
    Start = 1,
    /// The request does not fit the container's state.
    State = 2,
    /// No common protocol version.
    Version = 3,
    /// What was asked for cannot be had on this machine or is malformed.
    Invalid = 4,
    /// Time was up before it was done; what had been begun was killed.
    Timeout = 5,
    /// Memory ran out before it was done: the kernel killed what was to do it.
    Memory = 6,
    /// There is no room for one more of these now.
    Busy = 7,
}

/// Make the container. Descriptors: `WorkerExe`, `Listener`, `StateDir`, `Rootfs`, `Seccomp` where a filter
/// is asked for, `LogDir` where there is a log.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Create {
    /// What the worker is to make; the monitor adds pipes and passes it on.
    #[prost(message, optional, tag = "1")]
    pub container: Option<crate::worker::Create>,
    /// The boot id, for the exit record (`/proc/sys/kernel/random/boot_id`).
    #[prost(string, tag = "2")]
    pub boot_id: String,
    /// File name of the log, relative to the descriptor `LogDir`; empty: output is thrown away.
    #[prost(string, tag = "3")]
    pub log_name: String,
    /// Payload bytes of a log line before it is cut into partial records; 0 is 16384.
    #[prost(uint32, tag = "4")]
    pub log_line: u32,
    /// Keep a pipe for the container's standard input; else it reads end of file.
    #[prost(bool, tag = "5")]
    pub stdin: bool,
    /// Close standard input when the first attached client leaves.
    #[prost(bool, tag = "6")]
    pub stdin_once: bool,
    /// Where out-of-memory kills are counted.
    #[prost(message, optional, tag = "7")]
    pub oom: Option<OomSource>,
    /// Kill what is left in these cgroup directories before the exit is reported: the container has
    /// no PID namespace of its own. Empty: the kernel does it.
    #[prost(string, repeated, tag = "8")]
    pub kill_cgroup: Vec<String>,
    /// The container's own cgroup leaves, removed after its end (best effort; the daemon repeats it).
    #[prost(string, repeated, tag = "9")]
    pub leaves: Vec<String>,
}

/// Where the kernel counts out-of-memory kills.
#[derive(Clone, PartialEq, prost::Message)]
pub struct OomSource {
    /// v2: the container's directory (`memory.events`); empty on v1.
    #[prost(string, tag = "1")]
    pub v2_dir: String,
    /// v2: the pod's directory, whose hierarchical counter still stands when the container's is gone.
    #[prost(string, tag = "2")]
    pub v2_pod_dir: String,
    /// v1: the container's directory in the memory hierarchy (`memory.oom_control`).
    #[prost(string, tag = "3")]
    pub v1_dir: String,
}

/// Run a process in the container. Descriptors: `WorkerExe`; `Seccomp` where the container has a filter; `Stdin`, `Stdout`, `Stderr` as far as wanted
/// (an absent one is `/dev/null`); with a terminal the master comes back with [`ExecStarted`] instead.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Exec {
    /// Chosen by the daemon, unique for the monitor's life.
    #[prost(string, tag = "1")]
    pub exec_id: String,
    /// What the worker is to do; the monitor fills in `init` and adds the descriptors.
    #[prost(message, optional, tag = "2")]
    pub exec: Option<crate::worker::Exec>,
    /// Kill the process and its tree after this many milliseconds; 0 is never.
    #[prost(uint64, tag = "3")]
    pub timeout_ms: u64,
    /// Kill the process and its tree when the connection that asked for it ends: nobody waits for it then.
    #[prost(bool, tag = "4")]
    pub attended: bool,
}

/// An exec'd process is running. Its pidfd comes along.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ExecStarted {
    /// Its pid in the daemon's PID namespace.
    #[prost(int32, tag = "1")]
    pub pid: i32,
}

/// Kill one exec'd process.
#[derive(Clone, PartialEq, prost::Message)]
pub struct KillExec {
    /// Which.
    #[prost(string, tag = "1")]
    pub exec_id: String,
}

/// The container's process is running.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Running {
    /// Nanoseconds since the Unix epoch.
    #[prost(int64, tag = "1")]
    pub started_at: i64,
}

/// How the container ended.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Exit {
    /// Exit status; 128 + signal number after a signal; 128 when it was never executed.
    #[prost(int32, tag = "1")]
    pub code: i32,
    /// Nanoseconds since the Unix epoch.
    #[prost(int64, tag = "2")]
    pub finished_at: i64,
    /// The kernel's OOM killer took a process of the container.
    #[prost(bool, tag = "3")]
    pub oom: bool,
    /// Bytes of output that could not be written to the log.
    #[prost(uint64, tag = "4")]
    pub log_dropped: u64,
    /// Why it was never executed, else empty.
    #[prost(string, tag = "5")]
    pub start_error: String,
    /// When it began to run, nanoseconds since the Unix epoch; 0: it never did.
    #[prost(int64, tag = "6")]
    pub started_at: i64,
}

/// How an exec'd process ended.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ExecExit {
    /// Which.
    #[prost(string, tag = "1")]
    pub exec_id: String,
    /// Exit status; 128 + signal number after a signal. 137 also stands for a process that was killed and has
    /// not ended for seconds (an uninterruptible wait): it is not awaited any longer.
    #[prost(int32, tag = "2")]
    pub code: i32,
    /// It was killed because its time was up.
    #[prost(bool, tag = "3")]
    pub timed_out: bool,
}

/// Out-of-memory kills so far.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Oom {
    /// How many.
    #[prost(uint64, tag = "1")]
    pub kills: u64,
}

/// A container as its monitor knows it.
#[derive(Clone, PartialEq, prost::Message)]
pub struct State {
    /// The version that this conversation will use.
    #[prost(uint32, tag = "1")]
    pub version: u32,
    /// The monitor's pid.
    #[prost(int32, tag = "2")]
    pub monitor_pid: i32,
    /// The container's init, once it exists; its pidfd comes along while it lives.
    #[prost(message, optional, tag = "3")]
    pub init: Option<crate::worker::Started>,
    /// When it began to run; 0: it has not.
    #[prost(int64, tag = "4")]
    pub started_at: i64,
    /// How it ended, once it has.
    #[prost(message, optional, tag = "5")]
    pub exit: Option<Exit>,
    /// Out-of-memory kills so far.
    #[prost(uint64, tag = "6")]
    pub oom_kills: u64,
    /// Bytes of output dropped so far.
    #[prost(uint64, tag = "7")]
    pub log_dropped: u64,
    /// It is being started: [`Call::Start`] waits for the outcome.
    #[prost(bool, tag = "8")]
    pub starting: bool,
}
