//! The RPCs by name: a bounded set of labels, and what to expect of each.

/// What an RPC does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// Only looks.
    Read,
    /// Changes something and should be quick.
    Change,
    /// May take as long as its request says, or the network takes.
    Long,
}

/// An RPC.
#[derive(Clone, Copy, Debug)]
pub(super) struct Method {
    /// Its name.
    pub(super) name: &'static str,
    /// What it does.
    pub(super) class: Class,
}

const fn read(name: &'static str) -> Method {
    Method {
        name,
        class: Class::Read,
    }
}

const fn change(name: &'static str) -> Method {
    Method {
        name,
        class: Class::Change,
    }
}

const fn long(name: &'static str) -> Method {
    Method {
        name,
        class: Class::Long,
    }
}

/// All of both services; no name is in both.
const METHODS: [Method; 43] = [
    read("Version"),
    change("RunPodSandbox"),
    change("StopPodSandbox"),
    change("RemovePodSandbox"),
    read("PodSandboxStatus"),
    read("ListPodSandbox"),
    read("StreamPodSandboxes"),
    change("CreateContainer"),
    change("StartContainer"),
    long("StopContainer"),
    change("RemoveContainer"),
    read("ListContainers"),
    read("StreamContainers"),
    read("ContainerStatus"),
    change("UpdateContainerResources"),
    change("ReopenContainerLog"),
    long("ExecSync"),
    change("Exec"),
    change("Attach"),
    change("PortForward"),
    read("ContainerStats"),
    read("ListContainerStats"),
    read("StreamContainerStats"),
    read("PodSandboxStats"),
    read("ListPodSandboxStats"),
    read("StreamPodSandboxStats"),
    change("UpdateRuntimeConfig"),
    read("Status"),
    long("CheckpointContainer"),
    long("CheckpointPod"),
    long("RestorePod"),
    read("GetContainerEvents"),
    read("ListMetricDescriptors"),
    read("ListPodSandboxMetrics"),
    read("StreamPodSandboxMetrics"),
    read("RuntimeConfig"),
    change("UpdatePodSandboxResources"),
    read("ListImages"),
    read("StreamImages"),
    read("ImageStatus"),
    long("PullImage"),
    change("RemoveImage"),
    read("ImageFsInfo"),
];

/// The RPC of a request's path, `/runtime.v1.Service/Name`.
pub(super) fn of_path(path: &str) -> Method {
    let name = path.rsplit('/').next().unwrap_or_default();
    let known = METHODS.iter().find(|m| m.name == name);
    known.copied().unwrap_or(read("unknown"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_rpc_of_the_interface_is_named() {
        let proto = include_str!("../../../cri-api/proto/api.proto");
        let rpcs: BTreeSet<&str> = proto
            .lines()
            .filter_map(|line| line.trim().strip_prefix("rpc ")?.split('(').next())
            .collect();
        let named: BTreeSet<&str> = METHODS.iter().map(|m| m.name).collect();
        assert_eq!(rpcs, named);
        assert_eq!(
            of_path("/runtime.v1.ImageService/PullImage").class,
            Class::Long
        );
        assert_eq!(of_path("/x/Nonsense").name, "unknown");
    }
}
