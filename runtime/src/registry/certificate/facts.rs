//! What a certificate says of itself.

use std::fmt;

use super::der::Der;

/// Of a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Facts {
    /// Whose it is and who has issued it, as they stand in it.
    pub(crate) subject: Vec<u8>,
    /// See there.
    pub(crate) issuer: Vec<u8>,
    /// The algorithm by which it is signed, as it stands in it.
    pub(crate) algorithm: Vec<u8>,
    /// Seconds since 1970.
    pub(crate) not_before: i64,
    /// The same.
    pub(crate) not_after: i64,
    /// It may vouch for others: an authority, or of the first version, which had no way to say so.
    pub(crate) authority: bool,
    /// Authorities that may stand between it and a server.
    pub(crate) longest: Option<usize>,
    /// It vouches for certain names only.
    pub(crate) constrained: bool,
    /// Critical extensions that the TLS library does not know.
    pub(crate) critical: Vec<Vec<u8>>,
    /// Its key.
    pub(crate) key: Key,
    /// It may be a server's.
    for_servers: bool,
    /// Where it says that it is an authority's.
    flag: Option<usize>,
}

/// Why a certificate is not good now.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Unfit {
    /// Not yet.
    Early,
    /// No more.
    Expired,
    /// For another purpose.
    Purpose,
}

/// The kind of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Key {
    /// Bits of its modulus.
    Rsa(usize),
    /// In the words of those who make them.
    Other(&'static str),
}

const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];
const ORGANIZATION: &[u8] = &[0x55, 0x04, 0x0a];
const EXTENSION: &[u8] = &[0x55, 0x1d];
const SUBJECT_KEY_IDENTIFIER: u8 = 0x0e;
const KEY_USAGE: u8 = 0x0f;
const ALTERNATIVE_NAMES: u8 = 0x11;
const BASIC_CONSTRAINTS: u8 = 0x13;
const NAME_CONSTRAINTS: u8 = 0x1e;
const REVOCATION_LISTS: u8 = 0x1f;
const POLICIES: [u8; 4] = [0x20, 0x21, 0x24, 0x36];
const AUTHORITY_KEY_IDENTIFIER: u8 = 0x23;
const EXTENDED_KEY_USAGE: u8 = 0x25;
/// Any purpose.
pub(crate) const ANY_USAGE: &[u8] = &[0x55, 0x1d, 0x25, 0x00];
/// That of a server (RFC 5280, 4.2.1.12).
pub(crate) const SERVER_AUTHENTICATION: &[u8] = &[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x01];
const RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01];
const ELLIPTIC: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];

const BOOLEAN: u8 = 0x01;
const INTEGER: u8 = 0x02;
const BITS: u8 = 0x03;
const OCTETS: u8 = 0x04;
const OBJECT: u8 = 0x06;
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
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
        let algorithm = body.take(SEQUENCE)?.to_owned();
        let issuer = body.take(SEQUENCE)?.to_owned();
        let mut times = Der(body.take(SEQUENCE)?);
        let (not_before, not_after) = (times.time()?, times.time()?);
        let subject = body.take(SEQUENCE)?.to_owned();
        let mut facts = Self {
            subject,
            issuer,
            algorithm,
            not_before,
            not_after,
            authority: version < 2,
            longest: None,
            constrained: false,
            critical: Vec::new(),
            key: key(body.take(SEQUENCE)?)?,
            for_servers: true,
            flag: None,
        };
        let mut signs = true;
        while !body.0.is_empty() {
            let (tag, inner) = body.next()?;
            if tag == EXTENSIONS {
                facts.extensions(der, inner, &mut signs)?;
            }
        }
        facts.authority &= signs;
        whole.0.is_empty().then_some(facts)
    }

    fn extensions(&mut self, der: &[u8], inner: &[u8], signs: &mut bool) -> Option<()> {
        let mut list = Der(Der(inner).take(SEQUENCE)?);
        while !list.0.is_empty() {
            let mut extension = Der(list.take(SEQUENCE)?);
            let id = extension.take(OBJECT)?;
            let critical = extension.optional(BOOLEAN);
            let mut value = Der(extension.take(OCTETS)?);
            let known = match id.strip_prefix(EXTENSION) {
                Some([known]) => *known,
                _ => 0,
            };
            match known {
                BASIC_CONSTRAINTS => self.basic_constraints(der, Der(value.take(SEQUENCE)?))?,
                // The sixth bit is keyCertSign; the first byte counts the bits that are not used.
                KEY_USAGE => {
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
                NAME_CONSTRAINTS => self.constrained = true,
                ALTERNATIVE_NAMES | REVOCATION_LISTS => {}
                _ if critical.is_some_and(|flag| flag != [0]) => self.critical.push(id.to_owned()),
                _ => {}
            }
        }
        Some(())
    }

    fn basic_constraints(&mut self, der: &[u8], mut value: Der<'_>) -> Option<()> {
        let flag = value.optional(BOOLEAN);
        self.authority = flag.is_some_and(|flag| flag != [0]);
        self.flag = match flag {
            Some(flag @ [0xff]) => flag.as_ptr().addr().checked_sub(der.as_ptr().addr()),
            _ => None,
        };
        if let Some(number) = value.optional(INTEGER) {
            let add =
                |sum: usize, byte: &u8| sum.saturating_mul(256).saturating_add((*byte).into());
            self.longest = Some(number.iter().fold(0, add));
        }
        Some(())
    }

    /// The certificate as it were without the right to vouch for others; none: it has no such right.
    pub(crate) fn without_authority(&self, der: &[u8]) -> Option<Vec<u8>> {
        let mut other = der.to_owned();
        *other.get_mut(self.flag?)? = 0;
        Some(other)
    }

    /// Whether it may be shown now, by a server or on the way to one.
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

    /// Takes no room for what somebody else keeps.
    pub(crate) fn forget_names(&mut self) {
        (self.subject, self.issuer, self.algorithm) = Default::default();
    }

    /// It has issued itself, or says so.
    pub(crate) fn is_its_own(&self) -> bool {
        self.issuer == self.subject
    }

    /// A critical extension that even Go's programs do not know, who know those about policies.
    pub(crate) fn is_beyond_go(&self) -> bool {
        let known = |id: &Vec<u8>| match id.strip_prefix(EXTENSION) {
            Some([id]) => {
                POLICIES.contains(id)
                    || matches!(*id, SUBJECT_KEY_IDENTIFIER | AUTHORITY_KEY_IDENTIFIER)
            }
            _ => false,
        };
        !self.critical.iter().all(known)
    }

    /// The first critical extension that is not known here, as others write it.
    pub(crate) fn unknown(&self) -> Option<String> {
        self.critical.first().map(|id| dotted(id))
    }
}

/// The part of a certificate that is signed.
pub(crate) fn signed(der: &[u8]) -> Option<&[u8]> {
    Der(Der(der).take(SEQUENCE)?).whole()
}

/// What a subject or an issuer is called, in quotes whatever it is.
pub(crate) fn name(of: &[u8]) -> String {
    let found = |wanted: &[u8]| {
        let mut sets = Der(of);
        while let Some(set) = sets.optional(SET) {
            let mut pairs = Der(set);
            while let Some(pair) = pairs.optional(SEQUENCE) {
                let mut pair = Der(pair);
                if pair.take(OBJECT)? == wanted {
                    return pair.next();
                }
            }
        }
        None
    };
    match found(COMMON_NAME).or_else(|| found(ORGANIZATION)) {
        Some((_, text)) => {
            let text: String = String::from_utf8_lossy(text).chars().take(60).collect();
            format!("{text:?}")
        }
        None => "without a name".to_owned(),
    }
}

/// An object identifier in numbers (X.690, 8.19).
fn dotted(id: &[u8]) -> String {
    let mut parts: Vec<u64> = Vec::new();
    let mut number = 0_u64;
    for byte in id.iter().take(40) {
        number = number << 7 | u64::from(byte & 0x7f);
        if byte & 0x80 == 0 {
            if parts.is_empty() {
                let first = (number / 40).min(2);
                parts.push(first);
                number -= first * 40;
            }
            parts.push(number);
            number = 0;
        }
    }
    let parts: Vec<_> = parts.iter().map(u64::to_string).collect();
    parts.join(".")
}

impl Key {
    /// Whether signatures of it are verified here.
    pub(crate) fn is_verified(self) -> bool {
        match self {
            Self::Rsa(bits) => (2048..=8192).contains(&bits),
            Self::Other(kind) => ["P-256", "P-384", "Ed25519"].contains(&kind),
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rsa(bits) => write!(f, "RSA with {bits} bits"),
            Self::Other(kind) => f.write_str(kind),
        }
    }
}

fn key(info: &[u8]) -> Option<Key> {
    let mut info = Der(info);
    let mut algorithm = Der(info.take(SEQUENCE)?);
    let bits = info.take(BITS)?;
    let id = algorithm.take(OBJECT)?;
    Some(Key::Other(match id {
        RSA => {
            let number = Der(Der(bits.get(1..)?).take(SEQUENCE)?).take(INTEGER)?;
            let zeros = number.iter().take_while(|byte| **byte == 0).count();
            let number = number.get(zeros..)?;
            let first = number.first().map_or(0, |first| first.leading_zeros());
            return Some(Key::Rsa(number.len() * 8 - first as usize));
        }
        ELLIPTIC => match algorithm.optional(OBJECT) {
            Some(curve) => curve_name(curve),
            None => "an elliptic curve of its own",
        },
        [0x2b, 0x65, 0x70] => "Ed25519",
        [0x2b, 0x65, 0x71] => "Ed448",
        [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0a] => "RSASSA-PSS",
        [0x2a, 0x86, 0x48, 0xce, 0x38, 0x04, 0x01] => "DSA",
        _ => "an unknown kind",
    }))
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
