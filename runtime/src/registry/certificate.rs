//! PEM bundles as Go's `crypto/x509` reads them, entry by entry, and the few facts of a certificate that the TLS library
//! does not tell.

mod der;
mod facts;

pub(crate) use facts::{
    ANY_USAGE, Facts, Key, SERVER_AUTHENTICATION, Unfit, algorithm, name, signed,
};

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

#[cfg(test)]
mod tests;
