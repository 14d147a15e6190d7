//! Foreign text on its way to a log, an error or a terminal.

use std::borrow::Cow;

/// Text as a part of one line: what could end the line, steer a terminal or turn the order of what is
/// read around is escaped as in a string literal. Most texts have nothing of that and are not copied.
pub fn one_line(text: &str) -> Cow<'_, str> {
    escape(text, |_| false)
}

/// Text of several lines for a terminal: as [`one_line`], but for line ends and tabs.
pub fn lines_for_terminal(text: &str) -> Cow<'_, str> {
    escape(text, |c| matches!(c, '\n' | '\t'))
}

fn escape(text: &str, keep: impl Fn(char) -> bool) -> Cow<'_, str> {
    let is_odd = |c: char| !is_plain(c) && !keep(c);
    if !text.contains(is_odd) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            c if is_odd(c) => escaped.extend(c.escape_default()),
            c => escaped.push(c),
        }
    }
    Cow::Owned(escaped)
}

/// Neither a control character nor one that is invisible and changes what stands around it: line and
/// paragraph separators, bidirectional marks (UTS 39, "Bidi_Control"), zero widths and tags.
fn is_plain(c: char) -> bool {
    !matches!(c,
        '\0'..='\x1f' | '\x7f'..='\u{9f}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_steers_is_escaped_and_the_rest_is_not() {
        for (text, want) in [
            ("linux/amd64", "linux/amd64"),
            ("a\nb\r\tc", "a\\nb\\r\\tc"),
            ("\x1b[2J\x07\0\x7f", "\\u{1b}[2J\\u{7}\\u{0}\\u{7f}"),
            ("\u{9b}31m", "\\u{9b}31m"),
            ("x\u{202e}txt.exe", "x\\u{202e}txt.exe"),
            ("a\u{2028}b\u{feff}", "a\\u{2028}b\\u{feff}"),
            ("größer 日本 🦀", "größer 日本 🦀"),
        ] {
            assert_eq!(one_line(text), want);
        }
        assert!(matches!(one_line("plain"), Cow::Borrowed(_)));
        assert_eq!(lines_for_terminal("a\n\tb\x1b[0m\r"), "a\n\tb\\u{1b}[0m\\r");
    }

    proptest! {
        #[test]
        fn a_line_stays_one_and_is_escaped_once(text in any::<String>()) {
            let line = one_line(&text).into_owned();
            prop_assert!(!line.contains(|c: char| c.is_control()));
            prop_assert_eq!(one_line(&line), line.as_str());
        }
    }
}
