//! Names of entries: hostile bytes until they have been here.

use crate::tarball::name;

/// What the last component of a name means.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Class<'n> {
    /// Directory and last component.
    Plain(&'n [u8], &'n [u8]),
    /// Directory and the name in it that lower layers lose.
    Whiteout(&'n [u8], &'n [u8]),
    /// The directory whose content in lower layers is hidden.
    Opaque(&'n [u8]),
    /// What aufs kept for itself; it means nothing here.
    Metadata,
}

const WHITEOUT: &[u8] = b".wh.";
const AUFS: &[u8] = b".wh..wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// Components joined by single slashes, with none in front; empty for the root.
///
/// S3: absolute names are taken relative to the root, and those that lead above it are refused.
pub(super) fn clean(raw: &[u8], limit: usize) -> Result<Vec<u8>, &'static str> {
    plain(raw, limit)?;
    name::beneath(raw).ok_or("its name leads out of the layer")
}

/// The same of a hard link's target, of which what leads above the root stays at the root.
pub(super) fn clean_target(raw: &[u8], limit: usize) -> Result<Vec<u8>, &'static str> {
    plain(raw, limit)?;
    Ok(name::target(raw))
}

fn plain(raw: &[u8], limit: usize) -> Result<(), &'static str> {
    if raw.is_empty() {
        return Err("it has no name");
    }
    if raw.len() > limit {
        return Err("its name is too long");
    }
    match raw.contains(&0) {
        true => Err("its name contains a NUL"),
        false => Ok(()),
    }
}

/// Directory and last component of a clean name.
pub(super) fn split(name: &[u8]) -> (&[u8], &[u8]) {
    match name.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => {
            let (dir, base) = name.split_at(slash);
            (dir, base.get(1..).unwrap_or_default())
        }
        None => (b"", name),
    }
}

/// S20: what a clean name that is not empty means (OCI image-spec, layer.md, "Whiteouts").
pub(super) fn classify(name: &[u8]) -> Result<Class<'_>, &'static str> {
    let (dir, base) = split(name);
    for part in dir.split(|byte| *byte == b'/') {
        if part.starts_with(AUFS) {
            return Ok(Class::Metadata);
        }
        if part.starts_with(WHITEOUT) {
            return Err("a whiteout is no directory");
        }
    }
    if base == OPAQUE {
        return Ok(Class::Opaque(dir));
    }
    if base.starts_with(AUFS) {
        return Ok(Class::Metadata);
    }
    match base.strip_prefix(WHITEOUT) {
        Some(b"" | b"." | b"..") => Err("a whiteout hides a name, and this is none"),
        Some(hidden) => Ok(Class::Whiteout(dir, hidden)),
        None => Ok(Class::Plain(dir, base)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_relative_and_plain() {
        for (raw, wanted) in [
            ("a", "a"),
            ("./a//b/.", "a/b"),
            ("/abs/x/", "abs/x"),
            ("./", ""),
            ("/", ""),
            (".", ""),
            ("...", "..."),
            ("a/../b", "b"),
            ("a/b/../.wh.c", "a/.wh.c"),
            ("/..", ""),
            ("a/..", ""),
        ] {
            assert_eq!(
                clean(raw.as_bytes(), 100).unwrap(),
                wanted.as_bytes(),
                "{raw}"
            );
        }
        for raw in ["", "..", "../x", "a/../../b", "./..", "x\0y"] {
            assert!(clean(raw.as_bytes(), 100).is_err(), "{raw}");
        }
        for raw in ["", "x\0y"] {
            assert!(clean_target(raw.as_bytes(), 100).is_err(), "{raw}");
        }
        assert_eq!(clean_target(b"../../a/./../b/", 100).unwrap(), b"b");
        assert!(clean(&[b'a'; 101], 100).is_err());
        assert!(clean_target(&[b'a'; 101], 100).is_err());
        assert_eq!(clean(b"\xff/\xfe", 100).unwrap(), b"\xff/\xfe");
    }

    #[test]
    fn whiteouts_are_told_from_other_names() {
        use Class::{Metadata, Opaque, Plain, Whiteout};
        for (name, wanted) in [
            ("a/b", Plain(b"a", b"b")),
            ("b", Plain(b"", b"b")),
            ("a/.wh.b", Whiteout(b"a", b"b")),
            (".wh....", Whiteout(b"", b"...")),
            ("a/.wh..wh..opq", Opaque(b"a")),
            (".wh..wh..opq", Opaque(b"")),
            (".wh..wh.plnk", Metadata),
            (".wh..wh.plnk/1.2", Metadata),
            (".wh..wh..opq/x", Metadata),
            ("a/.whx", Plain(b"a", b".whx")),
        ] {
            assert_eq!(classify(name.as_bytes()).unwrap(), wanted, "{name}");
        }
        for name in [".wh.", "a/.wh..", ".wh...", ".wh.x/y"] {
            assert!(classify(name.as_bytes()).is_err(), "{name}");
        }
    }
}
