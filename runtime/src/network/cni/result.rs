//! What a plugin's ADD returns, in any version (CNI 1.1.0, section 5).

use std::net::IpAddr;

use serde_json::{Map, Value, json};

use super::version::Version;

/// More addresses than any pod has: what is beyond is a broken plugin.
const ADDRESS_LIMIT: usize = 1024;
const INTERFACE_LIMIT: usize = 1024;

/// The names of the specification, for the result and for the members of its lists.
const RESULT: &[&str] = &[
    "cniVersion",
    "interfaces",
    "ips",
    "routes",
    "dns",
    "ip4",
    "ip6",
];
const INTERFACE: &[&str] = &["name", "mac", "mtu", "sandbox", "socketPath", "pciID"];
const ADDRESS: &[&str] = &["version", "interface", "address", "gateway"];
const ROUTE: &[&str] = &["dst", "gw", "mtu", "advmss", "priority", "table", "scope"];
const OLD_ADDRESS: &[&str] = &["ip", "gateway", "routes"];

/// Reads a plugin's output and converts it to the version that is spoken with the network.
pub(super) fn parse(output: &[u8], spoken: Version) -> Result<Value, String> {
    let value: Value = serde_json::from_slice(output).map_err(|error| error.to_string())?;
    let Value::Object(mut result) = value else {
        return Err("it is not a JSON object".into());
    };
    respell_all(&mut result)?;
    // Old plugins leave it out: then it is what they were asked in.
    let written = match result.get("cniVersion") {
        None | Some(Value::Null) => spoken,
        Some(Value::String(text)) if text.is_empty() => spoken,
        Some(Value::String(text)) => Version::parse(text)
            .ok_or_else(|| format!("its version {text:?} is not spoken here"))?,
        Some(other) => return Err(format!("cniVersion {other} is not a text")),
    };
    convert(&mut result, written, spoken)?;
    result.insert("cniVersion".into(), spoken.to_string().into());
    Ok(Value::Object(result))
}

/// Plugins are written against Go's decoder, which does not look at the case of a name; what is handed on to
/// the next plugin has the names of the specification.
fn respell_all(result: &mut Map<String, Value>) -> Result<(), String> {
    respell(result, RESULT)?;
    for (list, names) in [
        ("interfaces", INTERFACE),
        ("ips", ADDRESS),
        ("routes", ROUTE),
    ] {
        let objects = list_mut(result, list).iter_mut();
        for object in objects.filter_map(Value::as_object_mut) {
            respell(object, names)?;
        }
    }
    for family in ["ip4", "ip6"] {
        if let Some(Value::Object(old)) = result.get_mut(family) {
            respell(old, OLD_ADDRESS)?;
        }
    }
    Ok(())
}

fn respell(object: &mut Map<String, Value>, names: &[&str]) -> Result<(), String> {
    for name in names {
        let others: Vec<String> = object
            .keys()
            .filter(|key| key.eq_ignore_ascii_case(name) && key != name)
            .cloned()
            .collect();
        for other in others {
            let value = object.remove(&other).unwrap_or_default();
            if object.insert((*name).to_owned(), value).is_some() {
                return Err(format!("it has {name:?} twice, once as {other:?}"));
            }
        }
    }
    Ok(())
}

fn convert(result: &mut Map<String, Value>, from: Version, to: Version) -> Result<(), String> {
    let old = |version| version <= Version::V0_2;
    if old(from) && !old(to) {
        modernise(result);
    } else if old(to) && !old(from) {
        return Err(format!(
            "a result of version {from} cannot be told in version {to}"
        ));
    }
    if old(to) {
        return Ok(());
    }
    for address in list_mut(result, "ips")
        .iter_mut()
        .filter_map(Value::as_object_mut)
    {
        if to >= Version::V1_0 {
            address.remove("version");
        } else {
            let text = address
                .get("address")
                .and_then(Value::as_str)
                .unwrap_or_default();
            let version = if text.contains(':') { "6" } else { "4" };
            address.insert("version".into(), version.into());
        }
    }
    if to < Version::V1_1 {
        for (list, later) in [
            ("interfaces", &["mtu", "socketPath", "pciID"][..]),
            (
                "routes",
                &["mtu", "advmss", "priority", "table", "scope"][..],
            ),
        ] {
            for object in list_mut(result, list)
                .iter_mut()
                .filter_map(Value::as_object_mut)
            {
                object.retain(|key, _| !later.contains(&key.as_str()));
            }
        }
    }
    Ok(())
}

/// `ip4` and `ip6` become `ips` and `routes`.
fn modernise(result: &mut Map<String, Value>) {
    let (mut ips, mut routes) = (Vec::new(), Vec::new());
    for family in ["ip4", "ip6"] {
        let Some(Value::Object(mut old)) = result.remove(family) else {
            continue;
        };
        let mut address = Map::new();
        address.insert("address".into(), old.remove("ip").unwrap_or_default());
        address.extend(
            old.remove("gateway")
                .map(|gateway| ("gateway".into(), gateway)),
        );
        ips.push(Value::Object(address));
        if let Some(Value::Array(more)) = old.remove("routes") {
            routes.extend(more);
        }
    }
    result.insert("ips".into(), json!(ips));
    result.insert("routes".into(), json!(routes));
}

fn list_mut<'a>(result: &'a mut Map<String, Value>, key: &str) -> &'a mut [Value] {
    match result.get_mut(key) {
        Some(Value::Array(list)) => list,
        _ => &mut [],
    }
}

/// The addresses of the pod's interface: the first IPv4 address, then the rest in their order.
pub(super) fn addresses(result: &Value, interface: &str) -> Result<Vec<IpAddr>, String> {
    let list = |key: &str| match result.get(key) {
        None | Some(Value::Null) => Ok(&[][..]),
        Some(Value::Array(list)) => Ok(list.as_slice()),
        Some(_) => Err(format!("its {key} are not a list")),
    };
    let (interfaces, ips) = (list("interfaces")?, list("ips")?);
    if ips.len() > ADDRESS_LIMIT || interfaces.len() > INTERFACE_LIMIT {
        let (ips, interfaces) = (ips.len(), interfaces.len());
        return Err(format!(
            "it has {ips} addresses and {interfaces} interfaces, which is too many"
        ));
    }
    let mut found = Vec::new();
    for ip in ips {
        let text = ip
            .get("address")
            .and_then(Value::as_str)
            .unwrap_or_default();
        let address = parse_address(text).ok_or_else(|| format!("{text:?} is not an address"))?;
        if is_of(ip.get("interface"), interfaces, interface)? && !found.contains(&address) {
            found.push(address);
        }
    }
    for family in ["ip4", "ip6"] {
        if let Some(text) = result
            .pointer(&format!("/{family}/ip"))
            .and_then(Value::as_str)
        {
            let address = parse_address(text);
            found.push(address.ok_or_else(|| format!("{text:?} is not an address"))?);
        }
    }
    if let Some(first) = found.iter().position(IpAddr::is_ipv4) {
        let primary = found.remove(first);
        found.insert(0, primary);
    }
    match found.is_empty() {
        true => Err(format!("it has no address for {interface}")),
        false => Ok(found),
    }
}

/// Whether an address is the pod interface's. Without an index it is; -1 is how plugins wrote that when the
/// index was not optional.
fn is_of(index: Option<&Value>, interfaces: &[Value], name: &str) -> Result<bool, String> {
    let index = match index {
        None | Some(Value::Null) => return Ok(true),
        Some(index) if index.as_i64() == Some(-1) => return Ok(true),
        Some(index) => index,
    };
    let interface = index
        .as_u64()
        .and_then(|index| usize::try_from(index).ok())
        .and_then(|index| interfaces.get(index))
        .ok_or_else(|| format!("there is no interface {index}"))?;
    let named = |one: &Value| member(one, "name") == name;
    let inside = |one: &Value| !member(one, "sandbox").is_empty();
    // Many plugins name no sandbox. Where one of several interfaces of this name has one, the others are the host's.
    let told_apart = || interfaces.iter().any(|one| named(one) && inside(one));
    Ok(named(interface) && (inside(interface) || !told_apart()))
}

fn member<'a>(object: &'a Value, key: &str) -> &'a str {
    object.get(key).and_then(Value::as_str).unwrap_or_default()
}

fn parse_address(text: &str) -> Option<IpAddr> {
    let (address, prefix) = text.split_once('/')?;
    let address: IpAddr = address.parse().ok()?;
    let prefix: u8 = prefix.parse().ok()?;
    // An IPv4 address in the clothes of IPv6 is one to everybody who gets it from Go.
    (prefix <= if address.is_ipv4() { 32 } else { 128 }).then_some(address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_json(value: &Value, spoken: Version) -> Result<Value, String> {
        parse(value.to_string().as_bytes(), spoken)
    }

    fn dual() -> Value {
        json!({
            "cniVersion": "1.1.0",
            "interfaces": [
                {"name": "br0", "mac": "x"},
                {"name": "eth0", "mtu": 1500},
                {"name": "eth0", "sandbox": "/run/netns/x", "mtu": 1400}
            ],
            "ips": [
                {"address": "192.0.2.1/24", "interface": 1},
                {"address": "2001:db8::5/64", "interface": 2},
                {"address": "10.0.0.5/24", "gateway": "10.0.0.1", "interface": 2},
                {"address": "10.0.0.6/24", "interface": 2}
            ],
            "routes": [{"dst": "0.0.0.0/0", "mtu": 1400}],
            "dns": {"nameservers": ["10.0.0.1"]}
        })
    }

    #[test]
    fn the_pod_interface_has_its_addresses_with_ipv4_first() {
        let found = addresses(&dual(), "eth0").unwrap();
        let texts: Vec<_> = found.iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["10.0.0.5", "2001:db8::5", "10.0.0.6"]);
    }

    #[test]
    fn addresses_without_an_index_are_the_pods() {
        let result = json!({"ips": [{"address": "2001:db8::1/64"}]});
        assert_eq!(addresses(&result, "eth0").unwrap().len(), 1);
    }

    #[test]
    fn broken_results_are_refused() {
        let many = vec![json!({"address": "10.0.0.1/8"}); 10_000];
        for (result, why) in [
            (json!({}), "no address for eth0"),
            (json!({"ips": {}}), "not a list"),
            (json!({"ips": [{"address": "10.0.0.1"}]}), "not an address"),
            (
                json!({"ips": [{"address": "10.0.0.1/33"}]}),
                "not an address",
            ),
            (
                json!({"ips": [{"address": "10.0.0.1/8", "interface": 0}]}),
                "no interface 0",
            ),
            (
                json!({"ips": [{"address": "10.0.0.1/8", "interface": -2}]}),
                "no interface -2",
            ),
            (
                json!({"interfaces": [{"name": "eth0"}], "ips": [{"address": "10.0.0.1/8", "interface": 1}]}),
                "no interface 1",
            ),
            (
                json!({"interfaces": [{"name": "eth0"}], "ips": [{"address": "10.0.0.1/8", "interface": "0"}]}),
                "no interface \"0\"",
            ),
            (
                json!({"interfaces": [{"name": "net1", "sandbox": "/x"}], "ips": [{"address": "10.0.0.1/8", "interface": 0}]}),
                "no address for eth0",
            ),
            (json!({"ips": [null]}), "not an address"),
            (json!({"ips": many}), "too many"),
        ] {
            let error = addresses(&result, "eth0").unwrap_err();
            assert!(error.contains(why), "{error}");
        }
        assert!(parse(b"", Version::V1_0).is_err());
        assert!(parse(b"[]", Version::V1_0).is_err());
        assert!(parse("[".repeat(1000).as_bytes(), Version::V1_0).is_err());
        assert!(parse(br#"{"cniVersion":"7"}"#, Version::V1_0).is_err());
        assert!(parse(br#"{"cniVersion":"1.0.0"}"#, Version::V0_2).is_err());
    }

    /// What plugins in the field leave out or write otherwise, as Go's decoder and containerd take it.
    #[test]
    fn what_a_plugin_may_leave_out_is_not_missed() {
        let one = |interfaces: Value, index: Value| json!({"interfaces": interfaces, "ips": [{"address": "10.0.0.5/24", "interface": index}]});
        for result in [
            one(json!([{"name": "eth0"}]), json!(0)),
            one(json!([{"name": "eth0", "sandbox": null}]), json!(0)),
            one(json!([{"name": "eth0", "sandbox": ""}]), json!(0)),
            one(json!([{"name": "veth1"}, {"name": "eth0"}]), json!(1)),
            one(
                json!([{"name": "eth0"}, {"name": "eth0", "sandbox": "/x"}]),
                json!(1),
            ),
            one(json!([null, {"name": "eth0"}]), json!(1)),
            one(json!([{"name": "other"}]), json!(null)),
            one(json!([{"name": "other"}]), json!(-1)),
            one(json!([]), json!(null)),
            one(json!(null), json!(-1)),
            json!({"ips": [{"address": "10.0.0.5/24"}], "routes": null, "dns": null, "more": {"x": [1]}}),
            json!({"ips": [{"version": null, "address": "10.0.0.5/24", "gateway": null}]}),
            json!({"CNIVersion": null, "Interfaces": [{"Name": "eth0", "Mac": "x"}], "IPs": [{"Address": "10.0.0.5/24", "Interface": 0}]}),
            json!({"ips": [{"address": "::ffff:10.0.0.5/120"}]}),
        ] {
            for spoken in [Version::V0_3_1, Version::V0_4, Version::V1_0, Version::V1_1] {
                let read = parse_json(&result, spoken).unwrap();
                let found = addresses(&read, "eth0").unwrap_or_else(|e| panic!("{result}: {e}"));
                assert_eq!(found, [IpAddr::from([10, 0, 0, 5])], "{result}");
                assert_eq!(read["cniVersion"], spoken.to_string());
            }
        }
        // The host's interface of the same name is not the pod's when the plugin tells them apart.
        let host = one(
            json!([{"name": "eth0"}, {"name": "eth0", "sandbox": "/x"}]),
            json!(0),
        );
        assert!(addresses(&host, "eth0").is_err());
        let twice = json!({"ips": [], "IPs": []});
        assert!(
            parse_json(&twice, Version::V1_0)
                .unwrap_err()
                .contains("twice")
        );
    }

    #[test]
    fn newer_results_are_told_in_older_versions() {
        let result = parse_json(&dual(), Version::V0_4).unwrap();
        assert_eq!(result["cniVersion"], "0.4.0");
        assert_eq!(result["ips"][1]["version"], "6");
        assert_eq!(result["ips"][2]["version"], "4");
        assert!(result["interfaces"][2].get("mtu").is_none());
        assert!(result["routes"][0].get("mtu").is_none());
        assert_eq!(result["dns"], dual()["dns"]);
        let same = parse_json(&dual(), Version::V1_1).unwrap();
        assert_eq!(same, dual());
    }

    #[test]
    fn older_results_are_told_in_newer_versions() {
        let old =
            json!({"cniVersion": "0.3.1", "ips": [{"version": "4", "address": "10.0.0.2/24"}]});
        let result = parse_json(&old, Version::V1_0).unwrap();
        let expected = json!({"cniVersion": "1.0.0", "ips": [{"address": "10.0.0.2/24"}]});
        assert_eq!(result, expected);

        let oldest = json!({
            "ip4": {"ip": "10.0.0.2/24", "gateway": "10.0.0.1", "routes": [{"dst": "0.0.0.0/0"}]},
            "ip6": {"ip": "fd00::2/64"},
            "dns": {}
        });
        let same = parse_json(&oldest, Version::V0_2).unwrap();
        assert_eq!(addresses(&same, "eth0").unwrap().len(), 2);
        let mut oldest = oldest;
        oldest["cniVersion"] = "0.2.0".into();
        let result = parse_json(&oldest, Version::V1_0).unwrap();
        assert_eq!(addresses(&result, "eth0").unwrap().len(), 2);
        assert_eq!(result["ips"][0]["gateway"], "10.0.0.1");
        assert_eq!(result["routes"], json!([{"dst": "0.0.0.0/0"}]));
        assert!(result.get("ip4").is_none());
    }
}
