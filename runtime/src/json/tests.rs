use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::Value;

use super::*;

#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Sample {
    text: String,
    maybe: Option<String>,
    whole: u32,
    signed: i64,
    flag: bool,
    list: Vec<String>,
    map: BTreeMap<String, String>,
    inner: Inner,
    inners: Vec<Inner>,
    media_type: String,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
struct Inner {
    size: u64,
}

fn read(text: &str) -> Sample {
    from_slice(text.as_bytes()).unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn refused<'de, T: Deserialize<'de>>(text: &'de [u8]) -> String {
    match from_slice::<T>(text) {
        Ok(_) => panic!("{} was read", String::from_utf8_lossy(text)),
        Err(error) => error.to_string(),
    }
}

#[test]
fn null_is_nothing_wherever_it_stands() {
    for name in [
        "text", "maybe", "whole", "signed", "flag", "list", "map", "inner", "inners", "x",
    ] {
        assert_eq!(read(&format!("{{\"{name}\":null}}")), Sample::default());
    }
    assert_eq!(read("null"), Sample::default());
    assert_eq!(read(r#"{"list":[null,"a"]}"#).list, ["", "a"]);
    assert_eq!(read(r#"{"map":{"a":null}}"#).map["a"], "");
    assert_eq!(read(r#"{"inners":[null,{"size":null}]}"#).inners.len(), 2);
}

#[test]
fn names_are_matched_in_any_case_and_unknown_ones_stepped_over() {
    for name in [
        "mediaType",
        "mediatype",
        "MEDIATYPE",
        "MediaType",
        "media\\u0054ype",
    ] {
        assert_eq!(
            read(&format!("{{\"{name}\":\"x\"}}")).media_type,
            "x",
            "{name}"
        );
    }
    assert_eq!(read("{\"li\u{17f}t\":[\"\"]}").list.len(), 1);
    let deep = format!(
        "{{\"x\":{}1{},\"text\":\"y\",\"z\":{{\"a\":[{{}},-0.5e+7,\"\\ud800\"]}}}}",
        "[".repeat(9000),
        "]".repeat(9000)
    );
    assert_eq!(read(&deep).text, "y");
    assert_eq!(
        read("{\"media_type\":\"x\",\"media type\":\"x\"}").media_type,
        ""
    );
}

#[test]
fn a_member_in_two_cases_is_there_twice() {
    for text in [
        r#"{"text":"a","text":"a"}"#,
        r#"{"text":"a","Text":"a"}"#,
        r#"{"text":null,"TEXT":"a"}"#,
        "{\"list\":[],\"li\u{17f}t\":[]}",
        r#"{"map":{"a":"","a":""}}"#,
        r#"{"map":{"a":"","\u0061":""}}"#,
        r#"{"inner":{"size":1,"Size":1}}"#,
    ] {
        let said = refused::<Sample>(text.as_bytes());
        assert!(said.contains("duplicate member"), "{text}: {said}");
    }
    assert_eq!(read(r#"{"map":{"a":"","A":""},"x":1,"x":2}"#).map.len(), 2);
}

#[test]
fn strings_become_text_as_in_go() {
    for (raw, text) in [
        (&br"\ud800"[..], "\u{fffd}"),
        (br"\udc00\ud800x", "\u{fffd}\u{fffd}x"),
        (br"\ud800\u0041", "\u{fffd}A"),
        (br"\ud800\ud83d\ude00", "\u{fffd}\u{1f600}"),
        (br"\uD83D\uDE00", "\u{1f600}"),
        (br"\ud83d\n", "\u{fffd}\n"),
        (b"a\xffb", "a\u{fffd}b"),
        (b"\xe2\x82", "\u{fffd}\u{fffd}"),
        (b"\xed\xa0\x80", "\u{fffd}\u{fffd}\u{fffd}"),
        (b"\xc0\xaf\\t\xf4\x90", "\u{fffd}\u{fffd}\t\u{fffd}\u{fffd}"),
        (br#"\"\\\/\b\f\n\r\t\u0000"#, "\"\\/\u{8}\u{c}\n\r\t\0"),
        ("é\u{7f}".as_bytes(), "é\u{7f}"),
    ] {
        let bytes = [b"\"", raw, b"\""].concat();
        assert_eq!(from_slice::<String>(&bytes).unwrap(), text, "{raw:?}");
    }
    for bad in [
        &b"\"\n\""[..],
        b"\"\0\"",
        br#""\x""#,
        br#""\'""#,
        br#""\u12""#,
        br#""\u12g4""#,
        br#"""#,
        br#""\"#,
        br#""\u"#,
    ] {
        refused::<String>(bad);
        refused::<serde::de::IgnoredAny>(bad);
    }
}

#[test]
fn numbers_are_whole_where_whole_ones_are_wanted() {
    assert_eq!(read(r#"{"whole":4294967295,"signed":-1}"#).signed, -1);
    assert_eq!(read(r#"{"whole":-0}"#).whole, 0);
    for bad in [
        "1.0",
        "1e3",
        "1E0",
        "-1",
        "4294967296",
        "99999999999999999999999",
        "\"1\"",
        "true",
        "[]",
    ] {
        refused::<Sample>(format!("{{\"whole\":{bad}}}").as_bytes());
        // Nobody asked.
        read(&format!("{{\"other\":{bad}}}"));
    }
    for bad in [
        "01", "+1", "-", "1.", ".5", "1e", "1e+", "0x1", "NaN", "Infinity", "nul", "nulll",
    ] {
        refused::<Sample>(format!("{{\"other\":{bad}}}").as_bytes());
    }
}

#[test]
fn what_is_not_one_value_is_refused_and_the_place_told() {
    for bad in [
        "",
        " ",
        "{",
        "[",
        "{}{}",
        "{} x",
        "{,}",
        "{\"a\":1,}",
        "{\"a\" 1}",
        "{a:1}",
        "{'a':1}",
        "]",
        "{]",
        "[}",
        "{\"a\":[1 2]}",
        "{\"a\":[1,]}",
        "{\"a\":[,1]}",
        "{\"a\":}",
        "\u{feff}{}",
        "{}\0",
        "{\"list\":[\"a\",]}",
        "{\"list\":[,\"a\"]}",
        "{\"list\":[\"a\" \"b\"]}",
        "{\"map\":{,}}",
        "{\"map\":{\"a\":\"\",}}",
        "/**/{}",
    ] {
        refused::<Sample>(bad.as_bytes());
    }
    assert_eq!(
        read(" \t\r\n{ \"text\" : \"a\" , \"list\" : [ ] } \n").text,
        "a"
    );
    let said = refused::<Sample>(b"{\n \"text\": 5}");
    assert_eq!(said, "a string is wanted, not a number at line 2 column 10");
    let deep = [b"[".repeat(10_001), b"]".repeat(10_001)].concat();
    let said = refused::<serde::de::IgnoredAny>(&deep);
    assert!(said.contains("nested more than 10000 deep"), "{said}");
    refused::<Value>(&[b"[".repeat(101), b"]".repeat(101)].concat());
}

#[test]
fn what_is_kept_has_a_length() {
    let list = |count: usize| format!("[{}]", vec!["\"\""; count].join(","));
    let read = from_slice::<Vec<String>>;
    assert_eq!(
        read(list(MAX_ENTRIES).as_bytes()).unwrap().len(),
        MAX_ENTRIES
    );
    let long = list(MAX_ENTRIES + 1);
    assert!(refused::<Vec<String>>(long.as_bytes()).contains("more than 10000 entries"));
    let long = format!("{{\"text\":\"x\",\"other\":{long}}}");
    assert_eq!(from_slice::<Sample>(long.as_bytes()).unwrap().text, "x");
    let keys: Vec<_> = (0..=MAX_ENTRIES).map(|n| format!("\"{n}\":\"\"")).collect();
    let map = format!("{{{}}}", keys.join(","));
    assert!(
        refused::<BTreeMap<String, String>>(map.as_bytes()).contains("more than 10000 entries")
    );
}

#[test]
fn an_entry_of_another_form_is_none_and_one_in_two_ways_an_error() {
    let read = |text: &'static str| from_slice::<Vec<Lenient<Inner>>>(text.as_bytes());
    let sizes = |text| -> Vec<_> {
        let entries = read(text).unwrap().into_iter();
        entries
            .map(|entry| entry.0.map(|inner| inner.size))
            .collect()
    };
    assert_eq!(
        sizes(r#"[{"size":"x"},{"size":2},7,"",null,[],{}, {"size":1.5} ]"#),
        [None, Some(2), None, None, Some(0), None, Some(0), None]
    );
    for bad in [
        r#"[{"size":1,"SIZE":1}]"#,
        r#"[{"size":01}]"#,
        r#"[{"size":1}"#,
        r#"[{"size":1},]"#,
    ] {
        assert!(read(bad).is_err(), "{bad}");
    }
}

/// Foreign text in an error is printable.
#[test]
fn errors_are_printable() {
    let said = refused::<BTreeMap<String, String>>(
        "{\"a\\n\\u001b\":\"\",\"a\\n\\u001b\":\"\"}".as_bytes(),
    );
    assert!(!said.contains(char::is_control), "{said}");
    let said = refused::<Vec<crate::model::Digest>>(b"[\"a\\nb\"]");
    assert!(
        said.contains("is not a digest") && !said.contains('\n'),
        "{said}"
    );
}

fn is_plain(value: &Value) -> bool {
    match value {
        // A number that is not exact is read by other rules there.
        Value::Number(number) => !number.is_f64(),
        Value::Array(list) => list.iter().all(is_plain),
        Value::Object(map) => map.values().all(is_plain),
        _ => true,
    }
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = from_slice::<Sample>(&bytes);
        let _ = from_slice::<Value>(&bytes);
    }

    /// Text of JSON's own letters: what serde_json reads, this reads as well, and the same.
    #[test]
    fn what_others_read_is_read_the_same(text in "[\\[\\]{}:, \"a\\\\untrefls0-9.E-]{0,40}") {
        let ours = from_slice::<Value>(text.as_bytes());
        match serde_json::from_str::<Value>(&text) {
            Ok(theirs) if is_plain(&theirs) => match ours {
                Ok(ours) => prop_assert_eq!(ours, theirs),
                Err(error) => prop_assert!(error.to_string().contains("duplicate member"), "{}: {}", text, error),
            },
            Ok(_) => {}
            // A half of a pair.
            Err(_) => prop_assert!(ours.is_err() || text.contains("\\ud"), "{}", text),
        }
    }

    #[test]
    fn what_is_written_is_read_the_same(
        text in any::<String>(),
        whole in any::<u32>(),
        signed in any::<i64>(),
        list in prop::collection::vec(any::<String>(), 0..5),
        map in prop::collection::btree_map(any::<String>(), any::<String>(), 0..5),
    ) {
        let written = serde_json::json!({
            "text": text, "whole": whole, "signed": signed, "list": list, "map": map, "flag": true,
        });
        let read: Sample = from_slice(written.to_string().as_bytes()).unwrap();
        prop_assert_eq!((read.text, read.whole, read.signed), (text, whole, signed));
        prop_assert_eq!((read.list, read.map, read.flag), (list, map, true));
    }
}
