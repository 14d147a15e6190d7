//! Names in archives: hostile bytes, that become components joined by single slashes.
//!
//! They are cleaned by their text, as path.Clean of Go does: `a/../b` is `b`, whatever `a` is.

/// The name of an entry, relative to the root and empty for the root itself; none if it leads above the root. Absolute names
/// cannot: what is above the root is the root.
pub(crate) fn beneath(raw: &[u8]) -> Option<Vec<u8>> {
    let (name, above) = clean(raw);
    (raw.starts_with(b"/") || !above).then_some(name)
}

/// The target of a hard link: a name as well, but of one that leads above the root the rest counts from the root.
pub(crate) fn target(raw: &[u8]) -> Vec<u8> {
    clean(raw).0
}

/// The names whose parents a target takes by `..`. Where one of them is a link, its text leads elsewhere than the kernel would.
pub(crate) fn left(raw: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    let ups = raw.windows(2).enumerate().filter(|(at, pair)| {
        let before = at.checked_sub(1).and_then(|before| raw.get(before));
        let after = raw.get(at + 2);
        *pair == b".." && before == Some(&b'/') && matches!(after, None | Some(b'/'))
    });
    ups.filter_map(|(at, _)| raw.get(..at))
        .map(target)
        .filter(|name| !name.is_empty())
}

fn clean(raw: &[u8]) -> (Vec<u8>, bool) {
    let mut parts = Vec::new();
    let mut above = false;
    for part in raw.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => above |= parts.pop().is_none(),
            part => parts.push(part),
        }
    }
    (parts.join(&b'/'), above)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_cleaned_by_their_text() {
        for (raw, name) in [
            ("a", "a"),
            ("./a/../b", "b"),
            ("a/./../b//c/", "b/c"),
            ("a/b/../../c", "c"),
            ("/abs/../x", "x"),
            ("/../x", "x"),
            ("/a/../../x", "x"),
            ("a/..", ""),
            (".", ""),
            ("", ""),
            ("...", "..."),
            ("a/..b", "a/..b"),
        ] {
            assert_eq!(beneath(raw.as_bytes()).unwrap(), name.as_bytes(), "{raw}");
            assert_eq!(target(raw.as_bytes()), name.as_bytes(), "{raw}");
        }
        for (raw, name) in [
            ("..", ""),
            ("../x", "x"),
            ("a/../../x", "x"),
            ("./../../a/b", "a/b"),
        ] {
            assert_eq!(beneath(raw.as_bytes()), None, "{raw}");
            assert_eq!(target(raw.as_bytes()), name.as_bytes(), "{raw}");
        }
    }

    #[test]
    fn what_is_left_again_is_known() {
        let left = |raw: &str| -> Vec<String> {
            let names = left(raw.as_bytes());
            names.map(|name| String::from_utf8(name).unwrap()).collect()
        };
        assert_eq!(left("./a/../b"), ["a"]);
        assert_eq!(left("a/b/../../c"), ["a/b", "a"]);
        assert_eq!(left("a/../../b/.."), ["a", "b"]);
        assert!(left("../a/..b/...").is_empty());
    }
}
