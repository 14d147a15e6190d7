//! PEM bundles as Go's `crypto/x509` reads them, entry by entry, and the few facts of a certificate that the TLS library
//! does not tell.
//!
//! What a certificate is trusted for is decided by the library; the facts are those of certificates that the operator has
//! named, and those that make a sentence of a refusal.

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

/// As lenient as Go: bits that nobody needs may be set.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// What stands between a `BEGIN` and an `END`.
pub(crate) struct Entry {
    /// `CERTIFICATE`, `PRIVATE KEY` and the like.
    pub(crate) label: String,
    /// It has header lines, as keys that a password protects.
    pub(crate) headers: bool,
    /// The bytes; none: it is broken.
    pub(crate) der: Option<Vec<u8>>,
}

/// The entries of a PEM text. What stands around them is passed over, as are a mark of the byte order and the line ends of
/// other systems.
pub(crate) fn entries(text: &[u8]) -> Vec<Entry> {
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
    let mut found = Vec::new();
    let mut open: Option<(String, bool, Vec<u8>)> = None;
    let broken = |(label, headers, _)| Entry {
        label,
        headers,
        der: None,
    };
    for line in text.split(|byte| matches!(byte, b'\n' | b'\r')) {
        let line = line.trim_ascii();
        if let Some(label) = marked(line, b"-----BEGIN ") {
            found.extend(open.replace((label, false, Vec::new())).map(broken));
        } else if let Some(label) = marked(line, b"-----END ") {
            found.extend(open.take().map(|(begun, headers, body)| {
                Entry {
                    der: (begun == label)
                        .then(|| BASE64.decode(&body).ok())
                        .flatten(),
                    label: begun,
                    headers,
                }
            }));
        } else if let Some((_, headers, body)) = &mut open {
            match line.contains(&b':') {
                true => *headers = true,
                false => body.extend(line.iter().filter(|byte| !byte.is_ascii_whitespace())),
            }
        }
    }
    found.extend(open.map(broken));
    found
}

fn marked(line: &[u8], mark: &[u8]) -> Option<String> {
    let label = line.strip_prefix(mark)?.strip_suffix(b"-----")?;
    Some(String::from_utf8_lossy(label).into_owned())
}

/// The certificates of a bundle, and what is wrong with each of its other entries.
///
/// # Errors
/// In words, when there is no certificate in it.
pub(crate) fn bundle(text: &[u8]) -> Result<(Vec<Vec<u8>>, Vec<String>), String> {
    let (mut usable, mut others) = (Vec::new(), Vec::new());
    for (index, entry) in entries(text).into_iter().enumerate() {
        let why = match entry.der {
            _ if entry.label != "CERTIFICATE" => match entry.label.as_str() {
                "TRUSTED CERTIFICATE" => {
                    "in OpenSSL's own form, which `openssl x509` converts".to_owned()
                }
                label => format!("no certificate but {label:.40?}"),
            },
            _ if entry.headers => "a certificate with header lines".to_owned(),
            Some(der) if Facts::of(&der).is_some() => {
                usable.push(der);
                continue;
            }
            _ => "a broken certificate".to_owned(),
        };
        others.push(format!("entry {} is {why}", index + 1));
    }
    if !usable.is_empty() {
        return Ok((usable, others));
    }
    let why = match (others.first(), text) {
        (Some(first), _) => format!(": {first}"),
        (None, [0x30, 0x81..=0x84, ..]) => {
            "; if it is one in DER, convert it with `openssl x509 -inform der`".to_owned()
        }
        (None, _) => String::new(),
    };
    Err(format!("it holds no PEM certificate that can be used{why}"))
}

/// Of a certificate.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Facts {
    /// Seconds since 1970.
    not_before: i64,
    not_after: i64,
    /// It may vouch for others: an authority, or of the first version, which had no way to say so.
    pub(crate) authority: bool,
    /// It may be a server's.
    for_servers: bool,
    /// The kind of its key, in words.
    pub(crate) key: String,
}

/// Why a certificate that is trusted as such is not good now.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Unfit {
    /// Not yet.
    Early,
    /// No more.
    Expired,
    /// For another purpose.
    Purpose,
}

const SUBJECT_KEY_USAGE: &[u8] = &[0x55, 0x1d, 0x0f];
const BASIC_CONSTRAINTS: &[u8] = &[0x55, 0x1d, 0x13];
const EXTENDED_KEY_USAGE: &[u8] = &[0x55, 0x1d, 0x25];
const ANY_USAGE: &[u8] = &[0x55, 0x1d, 0x25, 0x00];
const SERVER_AUTHENTICATION: &[u8] = &[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x01];
const RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01];
const ELLIPTIC: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];

const BOOLEAN: u8 = 0x01;
const INTEGER: u8 = 0x02;
const BITS: u8 = 0x03;
const OCTETS: u8 = 0x04;
const OBJECT: u8 = 0x06;
const UTC_TIME: u8 = 0x17;
const TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;
const VERSION: u8 = 0xa0;
const EXTENSIONS: u8 = 0xa3;

impl Facts {
    /// None: it is no certificate.
    pub(crate) fn of(der: &[u8]) -> Option<Self> {
        let mut whole = Der(der);
        let mut outer = Der(whole.take(SEQUENCE)?);
        let mut body = Der(outer.take(SEQUENCE)?);
        let version = match body.optional(VERSION) {
            Some(inner) => *Der(inner).take(INTEGER)?.last()?,
            None => 0,
        };
        body.take(INTEGER)?;
        body.take(SEQUENCE)?;
        body.take(SEQUENCE)?;
        let mut times = Der(body.take(SEQUENCE)?);
        let (not_before, not_after) = (times.time()?, times.time()?);
        body.take(SEQUENCE)?;
        let key = key(body.take(SEQUENCE)?)?;
        let mut facts = Self {
            not_before,
            not_after,
            authority: version < 2,
            for_servers: true,
            key,
        };
        let mut signs = true;
        while !body.0.is_empty() {
            let (tag, inner) = body.next()?;
            if tag == EXTENSIONS {
                facts.extensions(inner, &mut signs)?;
            }
        }
        facts.authority &= signs;
        whole.0.is_empty().then_some(facts)
    }

    fn extensions(&mut self, inner: &[u8], signs: &mut bool) -> Option<()> {
        let mut list = Der(Der(inner).take(SEQUENCE)?);
        while !list.0.is_empty() {
            let mut extension = Der(list.take(SEQUENCE)?);
            let id = extension.take(OBJECT)?;
            let _ = extension.optional(BOOLEAN);
            let mut value = Der(extension.take(OCTETS)?);
            match id {
                BASIC_CONSTRAINTS => {
                    let flag = Der(value.take(SEQUENCE)?).optional(BOOLEAN);
                    self.authority = flag.is_some_and(|flag| flag != [0]);
                }
                // The sixth bit is keyCertSign; the first byte counts the bits that are not used.
                SUBJECT_KEY_USAGE => {
                    let bits = value.take(BITS)?;
                    *signs = bits.get(1).is_some_and(|first| first & 0x04 != 0);
                }
                EXTENDED_KEY_USAGE => {
                    let mut uses = Der(value.take(SEQUENCE)?);
                    self.for_servers = false;
                    while let Some(usage) = uses.optional(OBJECT) {
                        self.for_servers |= usage == ANY_USAGE || usage == SERVER_AUTHENTICATION;
                    }
                }
                _ => {}
            }
        }
        Some(())
    }

    /// Whether a server may show it now.
    ///
    /// # Errors
    /// Why not.
    pub(crate) fn fit(&self, now: u64) -> Result<(), Unfit> {
        let now = i64::try_from(now).unwrap_or(i64::MAX);
        match self {
            _ if now < self.not_before => Err(Unfit::Early),
            _ if now > self.not_after => Err(Unfit::Expired),
            _ if !self.for_servers => Err(Unfit::Purpose),
            _ => Ok(()),
        }
    }
}

/// The kind of a key, in the words of those who make them.
fn key(info: &[u8]) -> Option<String> {
    let mut info = Der(info);
    let mut algorithm = Der(info.take(SEQUENCE)?);
    let bits = info.take(BITS)?;
    let id = algorithm.take(OBJECT)?;
    Some(match id {
        RSA => {
            let number = Der(Der(bits.get(1..)?).take(SEQUENCE)?).take(INTEGER)?;
            let zeros = number.iter().take_while(|byte| **byte == 0).count();
            let number = number.get(zeros..)?;
            let first = number.first().map_or(0, |first| first.leading_zeros());
            format!("RSA with {} bits", number.len() * 8 - first as usize)
        }
        ELLIPTIC => match algorithm.optional(OBJECT) {
            Some(curve) => curve_name(curve).to_owned(),
            None => "an elliptic curve of its own".to_owned(),
        },
        [0x2b, 0x65, 0x70] => "Ed25519".to_owned(),
        [0x2b, 0x65, 0x71] => "Ed448".to_owned(),
        [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0a] => "RSASSA-PSS".to_owned(),
        [0x2a, 0x86, 0x48, 0xce, 0x38, 0x04, 0x01] => "DSA".to_owned(),
        _ => "an unknown kind".to_owned(),
    })
}

fn curve_name(curve: &[u8]) -> &'static str {
    match curve {
        [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07] => "P-256",
        [0x2b, 0x81, 0x04, 0x00, 0x21] => "P-224",
        [0x2b, 0x81, 0x04, 0x00, 0x22] => "P-384",
        [0x2b, 0x81, 0x04, 0x00, 0x23] => "P-521",
        [0x2b, 0x81, 0x04, 0x00, 0x0a] => "secp256k1",
        _ => "an unusual elliptic curve",
    }
}

/// The algorithm of a public key or a signature as the TLS library repeats it, in words.
pub(crate) fn algorithm(id: &[u8]) -> &'static str {
    let mut parts = Der(id);
    match (parts.optional(OBJECT), parts.optional(OBJECT)) {
        (Some(ELLIPTIC), Some(curve)) => curve_name(curve),
        (Some([0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x01]), _) => "ECDSA with SHA-1",
        (Some([0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x04]), _) => "ECDSA with SHA-512",
        (Some([0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, ..]), _) => "ECDSA",
        (Some([0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x04]), _) => "RSA with MD5",
        (Some([0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x05]), _) => "RSA with SHA-1",
        (Some([0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, ..]), _) => "RSA",
        (Some([0x2b, 0x65, 0x71]), _) => "Ed448",
        _ => "an unknown algorithm",
    }
}

/// What is left of an encoding.
struct Der<'a>(&'a [u8]);

impl<'a> Der<'a> {
    /// Tag and content of the next element.
    fn next(&mut self) -> Option<(u8, &'a [u8])> {
        let (&tag, rest) = self.0.split_first()?;
        let (&first, mut rest) = rest.split_first()?;
        let mut length = usize::from(first);
        if first >= 0x80 {
            let bytes;
            (bytes, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            if bytes.is_empty() || bytes.len() > 4 {
                return None;
            }
            let add = |sum, byte: &u8| sum << 8 | usize::from(*byte);
            length = bytes.iter().fold(0, add);
        }
        let (content, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some((tag, content))
    }

    /// The next element, if it has this tag.
    fn optional(&mut self, wanted: u8) -> Option<&'a [u8]> {
        let before = self.0;
        match self.next() {
            Some((tag, content)) if tag == wanted => Some(content),
            _ => {
                self.0 = before;
                None
            }
        }
    }

    /// The same, where nothing else may be.
    fn take(&mut self, wanted: u8) -> Option<&'a [u8]> {
        self.optional(wanted)
    }

    /// Seconds since 1970.
    fn time(&mut self) -> Option<i64> {
        let (tag, text) = self.next()?;
        let text = std::str::from_utf8(text).ok()?;
        let digits = text.strip_suffix('Z')?;
        if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        let (year, rest) = match tag {
            UTC_TIME if digits.len() == 12 => {
                let year: i64 = digits[..2].parse().ok()?;
                (year + if year < 50 { 2000 } else { 1900 }, &digits[2..])
            }
            TIME if digits.len() == 14 => (digits[..4].parse().ok()?, &digits[4..]),
            _ => return None,
        };
        let part = |at: usize| rest[at..at + 2].parse::<i64>().ok();
        let (month, day) = (part(0)?, part(2)?);
        if !(1..=12).contains(&month) || !(1..=31).contains(&day) {
            return None;
        }
        // Days of the Gregorian calendar, counted from a March, so that a leap day is a year's last.
        let (year, month) = match month > 2 {
            true => (year, month - 3),
            false => (year - 1, month + 9),
        };
        let days = year * 365 + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
        let days = days + (month * 153 + 2) / 5 + day - 1 - 719_468;
        Some(days * 86_400 + part(4)? * 3600 + part(6)? * 60 + part(8)?)
    }
}

#[cfg(test)]
mod tests;
