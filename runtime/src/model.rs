//! The vocabulary: plain values that the border parses protobuf into, the domain keeps, and the
//! mechanisms are given. No behaviour, no I/O (docs/adr/0001).

mod container;
mod error;
mod explain;
mod image;
mod labels;
mod pod;
mod resources;
mod security;
mod stats;
mod text;

pub use container::{
    ContainerExit, ContainerFilter, ContainerMetadata, ContainerSpec, ContainerState,
    ContainerStatus, ContainerUser, DeviceRequest, ExecRequest, ExitReason, MountPropagation,
    MountRequest, Process, UserRequest,
};
pub use error::{Kind, Kinded, chain, now_nanos};
pub use explain::{ExplainExchange, ExplainHost, ExplainImage, ExplainStep, Explanation};
pub use image::{
    ChainId, Digest, FsUsage, Image, ImageConfig, ImageId, ImageUser, NotADigest, RegistryAuth,
    ResolvedImage,
};
pub use labels::has_labels;
pub use pod::{
    DnsConfig, NamespaceMode, NamespaceModes, PodFilter, PodMetadata, PodSpec, PodState, PodStatus,
    PortMapping, Protocol, ReadyPod,
};
pub use resources::{HugepageLimit, Resources};
pub use security::{AppArmorProfile, CapabilityRequest, GroupsPolicy, SeccompProfile, SignalName};
pub use stats::{
    CgroupUsage, ContainerStats, ContainerSubject, CpuUsage, InterfaceUsage, MemoryUsage,
    NetworkUsage, PodCgroup, PodStats, PodSubject, Pressure, Stall, SwapUsage,
};
pub use text::{lines_for_terminal, one_line};
