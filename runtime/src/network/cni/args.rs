//! What plugins are told of a pod: `CNI_ARGS` and the capability arguments.

use serde_json::{Map, Value, json};

use crate::network::{Error, PodNetwork};

/// `CNI_ARGS`: pairs separated by `;`. There is no way to write a `;` or `=` inside a value, so a
/// value with one is refused rather than smuggled in.
pub(super) fn arguments(pod: &PodNetwork) -> Result<String, Error> {
    let pairs = [
        ("IgnoreUnknown", "1"),
        ("K8S_POD_NAMESPACE", &pod.namespace),
        ("K8S_POD_NAME", &pod.name),
        ("K8S_POD_INFRA_CONTAINER_ID", pod.id.as_str()),
        ("K8S_POD_UID", &pod.uid),
    ];
    let mut words = Vec::new();
    for (key, value) in pairs {
        if value.contains([';', '=']) || value.chars().any(char::is_control) {
            return Err(Error::Invalid(format!(
                "{value:?} cannot be given to CNI plugins as {key}: it must not contain ';', '=' or control characters"
            )));
        }
        words.push(format!("{key}={value}"));
    }
    Ok(words.join(";"))
}

/// Everything there is to say under the well-known capability names. A plugin is given those that
/// its configuration declares.
pub(super) fn capabilities(pod: &PodNetwork, pod_cidrs: &[String]) -> Map<String, Value> {
    let mut all = Map::new();
    // Host port 0 means: not published.
    let ports: Vec<_> = pod
        .port_mappings
        .iter()
        .filter(|mapping| mapping.host_port > 0)
        .map(|mapping| {
            json!({
                "hostPort": mapping.host_port,
                "containerPort": mapping.container_port,
                "protocol": mapping.protocol.as_str(),
                "hostIP": mapping.host_ip,
            })
        })
        .collect();
    if !ports.is_empty() {
        all.insert("portMappings".into(), ports.into());
    }
    if let Some(bandwidth) = &pod.bandwidth {
        all.insert("bandwidth".into(), bandwidth.capability());
    }
    if let Some(dns) = &pod.dns {
        let value = json!({
            "servers": dns.servers,
            "searches": dns.searches,
            "options": dns.options,
        });
        all.insert("dns".into(), value);
    }
    // A set of ranges for each family: the pod gets an address from every set.
    let ranges: Vec<_> = pod_cidrs
        .iter()
        .map(|cidr| json!([{"subnet": cidr}]))
        .collect();
    if !ranges.is_empty() {
        all.insert("ipRanges".into(), ranges.into());
    }
    if !pod.cgroup_path.is_empty() {
        all.insert("cgroupPath".into(), pod.cgroup_path.clone().into());
    }
    if !pod.annotations.is_empty() {
        all.insert(
            "io.kubernetes.cri.pod-annotations".into(),
            json!(pod.annotations),
        );
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{DnsConfig, PortMapping, Protocol};
    use crate::network::{Bandwidth, tests::pod};

    #[test]
    fn arguments_are_pairs_and_cannot_be_forged() {
        let mut pod = pod("/run/netns/x");
        let id = pod.id.clone();
        assert_eq!(
            arguments(&pod).unwrap(),
            format!(
                "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web;K8S_POD_INFRA_CONTAINER_ID={id};K8S_POD_UID=u-1"
            )
        );
        for bad in ["a;IP=1.2.3.4", "a=b", "a\nb", "a\0"] {
            pod.name = bad.into();
            assert!(arguments(&pod).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn only_what_there_is_becomes_a_capability() {
        let mut pod = pod("/run/netns/x");
        pod.cgroup_path.clear();
        assert!(capabilities(&pod, &[]).is_empty());
        let mapping = |host_port| PortMapping {
            protocol: Protocol::Sctp,
            container_port: 80,
            host_port,
            host_ip: "192.0.2.1".into(),
        };
        pod.port_mappings = vec![mapping(0), mapping(8080)];
        pod.dns = Some(DnsConfig {
            servers: vec!["10.0.0.10".into()],
            searches: vec!["svc".into()],
            options: vec!["ndots:5".into()],
        });
        pod.cgroup_path = "/kubepods/x".into();
        pod.annotations.insert("a".into(), "b".into());
        pod.bandwidth = Some(Bandwidth {
            ingress: Some(1_000_000),
            egress: None,
        });
        let cidrs = ["10.0.0.0/24".to_owned(), "fd00::/64".to_owned()];
        assert_eq!(
            Value::Object(capabilities(&pod, &cidrs)),
            json!({
                "portMappings": [
                    {"hostPort": 8080, "containerPort": 80, "protocol": "sctp", "hostIP": "192.0.2.1"}
                ],
                "bandwidth": {"ingressRate": 1_000_000, "ingressBurst": 4_294_967_295_u32},
                "dns": {"servers": ["10.0.0.10"], "searches": ["svc"], "options": ["ndots:5"]},
                "ipRanges": [[{"subnet": "10.0.0.0/24"}], [{"subnet": "fd00::/64"}]],
                "cgroupPath": "/kubepods/x",
                "io.kubernetes.cri.pod-annotations": {"a": "b"}
            })
        );
    }
}
