//! What pods and containers use (rows F141, F143 to F154).

use berth_cri_api::v1;

use super::{container_status, image, pod};
use crate::model::{
    CgroupUsage, ContainerFilter, ContainerStats, CpuUsage, InterfaceUsage, MemoryUsage,
    NetworkUsage, PodFilter, PodStats, Pressure, Stall, SwapUsage,
};

/// Which containers are to be measured.
pub(in crate::cri) fn container_filter(given: Option<v1::ContainerStatsFilter>) -> ContainerFilter {
    let given = given.unwrap_or_default();
    ContainerFilter {
        id: given.id,
        pod: given.pod_sandbox_id,
        state: None,
        labels: given.label_selector,
    }
}

/// Which pods are to be measured.
pub(in crate::cri) fn pod_filter(given: Option<v1::PodSandboxStatsFilter>) -> PodFilter {
    let given = given.unwrap_or_default();
    PodFilter {
        id: given.id,
        state: None,
        labels: given.label_selector,
    }
}

/// A container. The kubelet drops one without attributes, and reads them without asking.
pub(in crate::cri) fn container(stats: &ContainerStats) -> v1::ContainerStats {
    let (subject, spec) = (&stats.subject, &stats.subject.spec);
    let cgroup = stats.cgroup.as_ref();
    v1::ContainerStats {
        attributes: Some(v1::ContainerAttributes {
            id: subject.id.to_string(),
            metadata: Some(container_status::metadata(&spec.metadata)),
            labels: spec.labels.clone(),
            annotations: spec.annotations.clone(),
        }),
        cpu: cgroup.and_then(cpu),
        memory: cgroup.and_then(memory),
        writable_layer: stats.writable.as_ref().map(image::usage),
        swap: cgroup.and_then(swap),
        io: cgroup.and_then(io),
    }
}

/// A pod. `linux` is always there: the kubelet reads it without asking.
pub(in crate::cri) fn pod(stats: &PodStats) -> v1::PodSandboxStats {
    let (subject, spec) = (&stats.subject, &stats.subject.spec);
    v1::PodSandboxStats {
        attributes: Some(v1::PodSandboxAttributes {
            id: subject.id.to_string(),
            metadata: Some(pod::metadata_to_proto(&spec.metadata)),
            labels: spec.labels.clone(),
            annotations: spec.annotations.clone(),
        }),
        linux: Some(v1::LinuxPodSandboxStats {
            cpu: cpu(&stats.cgroup),
            memory: memory(&stats.cgroup),
            network: stats.network.as_ref().map(network),
            process: stats.processes.map(|count| v1::ProcessUsage {
                timestamp: stats.cgroup.at,
                process_count: number(count),
            }),
            containers: stats.containers.iter().map(container).collect(),
            io: io(&stats.cgroup),
        }),
        windows: None,
    }
}

fn number(value: u64) -> Option<v1::UInt64Value> {
    Some(v1::UInt64Value { value })
}

fn cpu(cgroup: &CgroupUsage) -> Option<v1::CpuUsage> {
    let convert = |cpu: CpuUsage| v1::CpuUsage {
        timestamp: cgroup.at,
        usage_core_nano_seconds: number(cpu.nanoseconds),
        usage_nano_cores: cpu.nano_cores.and_then(number),
        psi: cpu.pressure.map(pressure),
    };
    cgroup.cpu.map(convert)
}

fn memory(cgroup: &CgroupUsage) -> Option<v1::MemoryUsage> {
    let convert = |memory: MemoryUsage| v1::MemoryUsage {
        timestamp: cgroup.at,
        working_set_bytes: number(memory.working_set),
        available_bytes: memory.available.and_then(number),
        usage_bytes: number(memory.usage),
        rss_bytes: number(memory.rss),
        page_faults: number(memory.page_faults),
        major_page_faults: number(memory.major_page_faults),
        psi: memory.pressure.map(pressure),
    };
    cgroup.memory.map(convert)
}

fn swap(cgroup: &CgroupUsage) -> Option<v1::SwapUsage> {
    let convert = |swap: SwapUsage| v1::SwapUsage {
        timestamp: cgroup.at,
        swap_available_bytes: swap.available.and_then(number),
        swap_usage_bytes: number(swap.usage),
    };
    cgroup.swap.map(convert)
}

fn io(cgroup: &CgroupUsage) -> Option<v1::IoUsage> {
    let convert = |io| v1::IoUsage {
        timestamp: cgroup.at,
        psi: Some(pressure(io)),
    };
    cgroup.io.map(convert)
}

fn pressure(pressure: Pressure) -> v1::PsiStats {
    let line = |stall: Stall| {
        Some(v1::PsiData {
            total: stall.total,
            avg10: stall.avg10,
            avg60: stall.avg60,
            avg300: stall.avg300,
        })
    };
    v1::PsiStats {
        full: line(pressure.full),
        some: line(pressure.some),
    }
}

fn network(network: &NetworkUsage) -> v1::NetworkUsage {
    let interface = |one: &InterfaceUsage| v1::NetworkInterfaceUsage {
        name: one.name.clone(),
        rx_bytes: number(one.rx_bytes),
        rx_errors: number(one.rx_errors),
        tx_bytes: number(one.tx_bytes),
        tx_errors: number(one.tx_errors),
    };
    v1::NetworkUsage {
        timestamp: network.at,
        default_interface: Some(interface(&network.default)),
        interfaces: network.others.iter().map(interface).collect(),
    }
}
