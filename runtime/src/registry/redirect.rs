//! Where an answer leads, and whether bytes may come from there.

use reqwest::header::LOCATION;
use reqwest::{Response, Url};

use super::Error;
use super::client::{host_port, is_link_local, is_loopback};

/// Redirects that are followed for one request.
pub(crate) const MAX_HOPS: usize = 10;

/// A redirect that is not followed.
#[derive(Debug)]
pub(crate) struct Refused {
    to: String,
    reason: &'static str,
}

impl Refused {
    /// To a URL.
    pub(crate) fn new(to: &Url, reason: &'static str) -> Self {
        let to = host_port(to);
        Self { to, reason }
    }

    /// For a message about what `from` was asked for.
    pub(crate) fn error(self, from: &Url, what: &str) -> Error {
        Error::Redirect {
            host: host_port(from),
            what: what.to_owned(),
            to: self.to,
            reason: self.reason,
        }
    }
}

/// One more redirect after the last that is followed.
pub(crate) fn endless(to: &Url) -> Refused {
    Refused::new(to, "too many redirects, or they lead in a circle")
}

/// The next URL; none: the answer is no redirect.
///
/// # Errors
/// A redirect that must not be followed.
pub(crate) fn next(first: &Url, from: &Url, response: &Response) -> Result<Option<Url>, Refused> {
    if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
        return Ok(None);
    }
    let value = response.headers().get(LOCATION);
    match value.and_then(|value| joined(from, value.as_bytes())) {
        Some(next) => match check_target(first, from, &next) {
            Ok(()) => Ok(Some(next)),
            Err(reason) => Err(Refused::new(&next, reason)),
        },
        None => Err(Refused {
            to: "nowhere".to_owned(),
            reason: "the Location header is missing or not a URL",
        }),
    }
}

fn joined(from: &Url, location: &[u8]) -> Option<Url> {
    if location.is_empty() {
        return None;
    }
    let mut next = from.join(&ascii(location)).ok()?;
    // User information in a redirect would become credentials that nobody gave us.
    let _ = next.set_username("");
    let _ = next.set_password(None);
    next.set_fragment(None);
    Some(next)
}

/// A URL as it came in a header, whatever its encoding: bytes that a URL cannot have are written as such.
pub(crate) fn ascii(text: &[u8]) -> String {
    let mut ascii = String::with_capacity(text.len());
    for &byte in text {
        match byte.is_ascii() {
            true => ascii.push(char::from(byte)),
            false => ascii.push_str(&format!("%{byte:02X}")),
        }
    }
    ascii
}

/// Whether bytes may come from `next` when `from` points there.
pub(crate) fn check_target(first: &Url, from: &Url, next: &Url) -> Result<(), &'static str> {
    if !matches!(next.scheme(), "http" | "https") {
        return Err("only http and https are spoken");
    }
    if from.scheme() == "https" && next.scheme() == "http" {
        return Err("it would leave TLS");
    }
    let host = |url: &Url| url.host_str().unwrap_or_default().to_owned();
    if is_link_local(&host(next)) {
        return Err("link-local addresses serve no images");
    }
    if is_loopback(&host(next)) && !is_loopback(&host(first)) {
        return Err("it points into this machine");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        Url::parse(text).unwrap()
    }

    #[test]
    fn redirects_go_where_images_can_be() {
        let check = |a: &str, b: &str| check_target(&url(a), &url(a), &url(b));
        check("https://r.io/v2", "https://cdn.net/x").unwrap();
        check("http://r.io/v2", "http://cdn.net/x").unwrap();
        check("http://127.0.0.1:1/v2", "http://127.0.0.1:2/x").unwrap();
        for bad in [
            "http://r.io/x",
            "https://169.254.169.254/x",
            "https://[fe80::1]/x",
            "https://[::ffff:169.254.1.1]/",
            "https://localhost/x",
            "https://127.0.0.1/",
            "https://[::1]/",
            "https://0.0.0.0/",
            "ftp://r.io/",
        ] {
            assert!(check("https://r.io/v2", bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn locations_are_read_as_they_come() {
        let from = url("https://r.io:5000/v2/x/blobs/y?ns=z");
        for (location, want) in [
            (&b"/a/b"[..], "https://r.io:5000/a/b"),
            (b"../c?d=e#f", "https://r.io:5000/v2/x/c?d=e"),
            (b"//cdn.net/x", "https://cdn.net/x"),
            (b"https://u:p@cdn.net/x", "https://cdn.net/x"),
            (b" https://cdn.net/a b ", "https://cdn.net/a%20b"),
            (
                b"https://cdn.net/\xc3\xa9?n=\xe9",
                "https://cdn.net/%C3%A9?n=%E9",
            ),
            (
                b"https://b\xc3\xbccher.example/x",
                "https://xn--bcher-kva.example/x",
            ),
            (
                b"https://[2001:db8::1]:5000/x",
                "https://[2001:db8::1]:5000/x",
            ),
            (b"HTTPS://CDN.net:443/X", "https://cdn.net/X"),
        ] {
            let got = joined(&from, location).map(String::from);
            assert_eq!(got.as_deref(), Some(want), "{location:?}");
        }
        for bad in [&b""[..], b"https://", b"https://[::1", b"https://a:99999/"] {
            assert_eq!(joined(&from, bad), None, "{bad:?}");
        }
    }
}
