//! Proxies of the environment, by the rules of Go's programs (`golang.org/x/net/http/httpproxy`), which every
//! other container runtime follows: an entry of `NO_PROXY` may be a name with or without its
//! subdomains, an address, a network, each with a port, or `*`; this machine is never behind a proxy.

use std::net::IpAddr;

use reqwest::Url;

use super::client::is_loopback;

/// The proxies of this process.
#[derive(Default)]
pub(crate) struct Proxies {
    http: Option<Variable>,
    https: Option<Variable>,
    exempt: Vec<Exempt>,
}

/// The port of a SOCKS proxy that names none (RFC 1928).
const SOCKS: u16 = 1080;

/// A variable's name with its URL, or with what is wrong with it.
struct Variable(&'static str, Result<String, &'static str>);

impl std::fmt::Debug for Proxies {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Proxies(***)")
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Exempt {
    who: Who,
    port: Option<u16>,
}

#[derive(Debug, PartialEq, Eq)]
enum Who {
    Everybody,
    Address(IpAddr),
    /// Network address and the length of its prefix.
    Network(IpAddr, u32),
    /// `.domain`; and whether the domain itself is meant too.
    Domain(String, bool),
}

impl Proxies {
    /// Those that variables name; upper case wins.
    pub(crate) fn from_variables(get: impl Fn(&str) -> Option<String>) -> Self {
        let first = |names: [&'static str; 2]| {
            names
                .into_iter()
                .find_map(|name| Some((name, get(name).filter(|text| !text.trim().is_empty())?)))
        };
        let proxy = |names| {
            first(names).map(|(name, text): (&'static str, String)| Variable(name, usable(&text)))
        };
        let exempt = first(["NO_PROXY", "no_proxy"]).map(|(_, text)| text);
        Self {
            http: proxy(["HTTP_PROXY", "http_proxy"]),
            https: proxy(["HTTPS_PROXY", "https_proxy"]),
            exempt: exempt
                .unwrap_or_default()
                .split(',')
                .filter_map(entry)
                .collect(),
        }
    }

    /// The proxy on the way to a URL.
    ///
    /// # Errors
    /// The variable that names it is not usable; going there directly instead could leave the network that the
    /// operator meant.
    pub(crate) fn of(&self, url: &Url) -> Result<Option<&str>, String> {
        let variable = match url.scheme() {
            "https" => &self.https,
            _ => &self.http,
        };
        let host = url.host_str().unwrap_or_default();
        let (Some(Variable(name, proxy)), false) = (variable, is_loopback(host)) else {
            return Ok(None);
        };
        let port = url.port_or_known_default();
        if self.exempt.iter().any(|entry| entry.matches(host, port)) {
            return Ok(None);
        }
        match proxy {
            Ok(proxy) => Ok(Some(proxy)),
            Err(why) => Err(format!("the proxy of the variable {name} {why}")),
        }
    }
}

/// A proxy's URL as the HTTP library is to have it; without a scheme it is HTTP. Names are looked up by a SOCKS proxy
/// itself, as by those of Go's programs, whether its scheme says so (`socks5h`) or not.
///
/// # Errors
/// What is wrong with it, without its text, in which there may be a password.
pub(super) fn usable(text: &str) -> Result<String, &'static str> {
    let text = text.trim();
    let whole = match text.contains("://") {
        true => text.to_owned(),
        false => format!("http://{text}"),
    };
    let mut url = Url::parse(&whole).map_err(|_| "is not a URL")?;
    if url.host_str().is_none_or(str::is_empty) {
        return Err("names no host");
    }
    match url.scheme() {
        "http" | "https" => return Ok(whole),
        "socks5" | "socks5h" => {}
        _ => return Err("is of another kind than http://, https://, socks5:// and socks5h://"),
    }
    let port = url.port().unwrap_or(SOCKS);
    let unusable = |()| "is not a URL";
    url.set_scheme("socks5h").map_err(unusable)?;
    url.set_port(Some(port)).map_err(unusable)?;
    Ok(url.into())
}

fn entry(text: &str) -> Option<Exempt> {
    let text = text.trim().to_ascii_lowercase();
    let everywhere = |who| Some(Exempt { who, port: None });
    if text.is_empty() {
        return None;
    }
    if text == "*" {
        return everywhere(Who::Everybody);
    }
    if let Some((address, length)) = text.split_once('/') {
        let (address, length) = (address.parse().ok()?, length.parse().ok()?);
        return everywhere(Who::Network(address, length));
    }
    if let Ok(address) = text.parse::<IpAddr>() {
        return everywhere(Who::Address(address));
    }
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) => (host.to_owned(), Some(port.parse().ok()?)),
        None => (text, None),
    };
    if let Ok(address) = bare(&host).parse::<IpAddr>() {
        let who = Who::Address(address);
        return Some(Exempt { who, port });
    }
    let host = host
        .strip_prefix('*')
        .filter(|h| h.starts_with('.'))
        .unwrap_or(&host);
    let who = match host.strip_prefix('.') {
        Some(_) => Who::Domain(host.to_owned(), false),
        None => Who::Domain(format!(".{host}"), true),
    };
    Some(Exempt { who, port })
}

fn bare(host: &str) -> &str {
    let inner = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
    inner.unwrap_or(host)
}

impl Exempt {
    fn matches(&self, host: &str, port: Option<u16>) -> bool {
        if self.port.is_some() && self.port != port {
            return false;
        }
        let host = host.to_ascii_lowercase();
        let address = bare(&host)
            .parse::<IpAddr>()
            .ok()
            .map(|ip| ip.to_canonical());
        match &self.who {
            Who::Everybody => true,
            Who::Address(one) => address == Some(one.to_canonical()),
            Who::Network(net, length) => address.is_some_and(|ip| within(ip, *net, *length)),
            Who::Domain(domain, itself) => {
                address.is_none()
                    && (host.ends_with(domain) || (*itself && domain.get(1..) == Some(&host)))
            }
        }
    }
}

fn within(ip: IpAddr, net: IpAddr, length: u32) -> bool {
    let same = |a: u128, b: u128, width: u32| {
        let rest = width.checked_sub(length);
        // A shift by the whole width leaves nothing, which is equal.
        rest.is_some_and(|rest| (a ^ b).checked_shr(rest).unwrap_or(0) == 0)
    };
    match (ip, net) {
        (IpAddr::V4(a), IpAddr::V4(b)) => same(a.to_bits().into(), b.to_bits().into(), 32),
        (IpAddr::V6(a), IpAddr::V6(b)) => same(a.to_bits(), b.to_bits(), 128),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxies(pairs: &[(&str, &str)]) -> Proxies {
        Proxies::from_variables(|name| {
            let hit = pairs.iter().find(|(key, _)| *key == name);
            hit.map(|(_, value)| (*value).to_owned())
        })
    }

    fn of<'a>(proxies: &'a Proxies, url: &str) -> Option<&'a str> {
        proxies.of(&Url::parse(url).unwrap()).unwrap()
    }

    #[test]
    fn each_scheme_has_its_proxy_and_upper_case_wins() {
        let p = proxies(&[
            ("HTTP_PROXY", "one:3128"),
            ("http_proxy", "two:3128"),
            ("https_proxy", "https://u:p@three/"),
        ]);
        let socks = |text| proxies(&[("HTTPS_PROXY", text)]);
        for text in ["socks5://u:p@s:1", "SOCKS5://u:p@s:1", "socks5h://u:p@s:1"] {
            assert_eq!(of(&socks(text), "https://r.io"), Some("socks5h://u:p@s:1"));
        }
        assert_eq!(
            of(&socks("socks5://s"), "https://r.io"),
            Some("socks5h://s:1080")
        );
        assert_eq!(of(&p, "http://r.io/v2"), Some("http://one:3128"));
        assert_eq!(of(&p, "https://r.io/v2"), Some("https://u:p@three/"));
        for own in [
            "http://localhost:5000/",
            "http://127.0.0.1/",
            "https://[::1]/",
        ] {
            assert_eq!(of(&p, own), None, "{own}");
        }
        assert_eq!(of(&proxies(&[("HTTPS_PROXY", " ")]), "https://r.io"), None);
    }

    #[test]
    fn exempt_are_names_addresses_and_networks() {
        let p = proxies(&[
            ("HTTPS_PROXY", "p:1"),
            (
                "no_proxy",
                "a.io, .b.io,*.c.io,d.io:5000,10.0.0.0/8,192.168.1.7,fd00::/8,[fe00::1]:443,1.2.3.4:8443",
            ),
        ]);
        for (host, direct) in [
            ("a.io", true),
            ("x.a.io", true),
            ("xa.io", false),
            ("b.io", false),
            ("x.B.io", true),
            ("c.io", false),
            ("x.y.c.io", true),
            ("d.io", false),
            ("d.io:5000", true),
            ("10.255.0.1:99", true),
            ("11.0.0.1", false),
            ("192.168.1.7", true),
            ("192.168.1.8", false),
            ("[fd12::1]", true),
            ("[fe12::1]", false),
            ("[fe00::1]", true),
            ("1.2.3.4", false),
            ("1.2.3.4:8443", true),
        ] {
            let found = of(&p, &format!("https://{host}/")).is_none();
            assert_eq!(found, direct, "{host}");
        }
        let all = proxies(&[("HTTPS_PROXY", "p:1"), ("NO_PROXY", "*")]);
        assert_eq!(of(&all, "https://r.io/"), None);
        assert!(within([1, 2, 3, 4].into(), [9, 9, 9, 9].into(), 0));
    }

    #[test]
    fn a_proxy_that_cannot_be_used_is_named_without_its_password() {
        for bad in [
            "socks4://u:canary@h:1",
            "http://",
            "socks5://",
            "ftp://canary",
        ] {
            let p = proxies(&[("https_proxy", bad)]);
            let error = p.of(&Url::parse("https://r.io").unwrap()).unwrap_err();
            assert!(
                error.contains("https_proxy") && !error.contains("canary"),
                "{error}"
            );
        }
    }
}
