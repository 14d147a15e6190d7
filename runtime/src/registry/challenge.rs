//! `WWW-Authenticate`, as servers write it: several challenges in one header or in several, in any order and case, with
//! spaces, tabs and commas where none belong, values with and without quotes, and bytes of any encoding.

use reqwest::header::{HeaderMap, WWW_AUTHENTICATE};

use super::redirect::ascii;

/// Headers that are looked at.
const MAX_HEADERS: usize = 32;
/// Schemes and parameters of one header that are looked at.
const MAX_PARTS: usize = 256;

/// What a Bearer challenge says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Bearer {
    pub(crate) realm: String,
    pub(crate) service: String,
    pub(crate) scope: String,
}

/// What can be answered.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Challenge {
    /// With a user and a password.
    Basic,
    /// With a token.
    Bearer(Bearer),
}

/// The first challenge that we can answer; Bearer before Basic.
pub(crate) fn challenge(headers: &HeaderMap) -> Option<Challenge> {
    let mut basic = None;
    for value in headers.get_all(WWW_AUTHENTICATE).iter().take(MAX_HEADERS) {
        for one in parse(value.as_bytes()) {
            let param = |name| one.params.iter().find(|(key, _)| *key == name);
            let value = |name| param(name).map(|(_, value)| &value[..]).unwrap_or_default();
            match one.scheme.as_str() {
                "bearer" if !value("realm").is_empty() => {
                    return Some(Challenge::Bearer(Bearer {
                        realm: ascii(value("realm")),
                        service: text(value("service")),
                        scope: text(value("scope")),
                    }));
                }
                "basic" => basic = Some(Challenge::Basic),
                _ => {}
            }
        }
    }
    basic
}

/// Old servers write Latin-1.
fn text(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.iter().copied().map(char::from).collect(),
    }
}

struct One {
    /// Lower case.
    scheme: String,
    /// Names in lower case.
    params: Vec<(String, Vec<u8>)>,
}

fn parse(header: &[u8]) -> Vec<One> {
    let mut found: Vec<One> = Vec::new();
    let mut rest = Rest(header);
    for _ in 0..MAX_PARTS {
        rest.skip(|byte| is_space(byte) || byte == b',');
        let name = rest.until(|byte| is_space(byte) || matches!(byte, b',' | b'=' | b'"'));
        let name = String::from_utf8_lossy(name).to_ascii_lowercase();
        rest.skip(is_space);
        match rest.0.first() {
            Some(b'=') => {
                rest.0 = &rest.0[1..];
                rest.skip(is_space);
                let value = rest.value();
                if let Some(one) = found.last_mut() {
                    one.params.push((name, value));
                }
            }
            // A quote that nothing has led to.
            Some(b'"') if name.is_empty() => {
                rest.value();
            }
            None if name.is_empty() => break,
            _ => {
                let params = Vec::new();
                found.push(One {
                    scheme: name,
                    params,
                });
                rest.token68();
            }
        }
    }
    found
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t')
}

struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn skip(&mut self, over: impl Fn(u8) -> bool) {
        self.until(|byte| !over(byte));
    }

    fn until(&mut self, end: impl Fn(u8) -> bool) -> &'a [u8] {
        let at = self.0.iter().position(|byte| end(*byte));
        let (before, rest) = self.0.split_at(at.unwrap_or(self.0.len()));
        self.0 = rest;
        before
    }

    /// In quotes, in which a backslash takes the next byte as it is; or up to a comma or a space.
    fn value(&mut self) -> Vec<u8> {
        let Some(quoted) = self.0.strip_prefix(b"\"") else {
            return self.until(|byte| is_space(byte) || byte == b',').to_vec();
        };
        let (mut value, mut bytes) = (Vec::new(), quoted.iter());
        while let Some(&byte) = bytes.next() {
            match byte {
                b'"' => break,
                b'\\' => value.extend(bytes.next()),
                _ => value.push(byte),
            }
        }
        self.0 = bytes.as_slice();
        value
    }

    /// What Negotiate and its kind say after their name: it may end with `=`, and is no parameter.
    fn token68(&mut self) {
        let before = self.0;
        let is_part = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~+/".contains(&byte);
        let body = self.until(|byte| !is_part(byte));
        self.skip(|byte| byte == b'=');
        let ended = matches!(self.0.first(), None | Some(b','));
        if body.is_empty() || !ended {
            self.0 = before;
        }
    }
}

#[cfg(test)]
mod tests;
