//! The envelope and what it refuses. What the forms look like is frozen in `golden`, by files that versions wrote.

use super::form::Bytes;
use super::*;

/// Something that is kept, and was once kept in the networks' envelope.
#[derive(Debug, PartialEq, Eq)]
struct Thing {
    text: Vec<u8>,
}

#[derive(Serialize, Deserialize)]
struct ThingForm {
    text: Bytes,
}

convert!(ThingForm as Thing { text });

impl Kept for Thing {
    const KIND: &'static str = "thing";
    type Form = ThingForm;

    fn read_other(file: &[u8]) -> Result<Self, Unreadable> {
        let form: ThingForm = v1::network(file)?;
        Ok(form.thaw()?)
    }
}

fn thing(text: &[u8]) -> Thing {
    let text = text.to_vec();
    Thing { text }
}

#[test]
fn bytes_stand_as_text_where_they_are() {
    for (bytes, form) in [
        (&b"a\n\"b\""[..], r#""data":{"text":"a\n\"b\""}"#),
        (b"", r#""data":{"text":""}"#),
        (b"A=\xff\x00", r#""data":{"text":{"base64":"QT3/AA=="}}"#),
    ] {
        let file = encode(&thing(bytes)).unwrap();
        let text = String::from_utf8(file.clone()).unwrap();
        assert!(text.contains(form), "{text}");
        assert_eq!(decode::<Thing>(&file).unwrap(), thing(bytes));
    }
}

#[test]
fn what_cannot_be_read_says_why() {
    let whole = String::from_utf8(encode(&thing(b"x")).unwrap()).unwrap();
    for (text, word) in [
        (whole.replace("\"x\"", "\"y\""), "checksum"),
        (
            whole.replace("\"thing\"", "\"pod\""),
            "the record of \"pod\", not of \"thing\"",
        ),
        (
            whole.replace("\"version\":2", "\"version\":3"),
            "version 3, and this Berth reads 1 and 2",
        ),
        (whole.replace("\"version\":2", "\"version\":0"), "version 0"),
        (whole.replace("\"version\":2", "\"version\":1"), "damaged"),
        (whole[..whole.len() - 1].to_owned(), "damaged"),
        (String::new(), "damaged"),
        ("null".to_owned(), "damaged"),
    ] {
        let error = decode::<Thing>(text.as_bytes()).unwrap_err().to_string();
        assert!(error.contains(word), "{text}: {error}");
    }
}

#[test]
fn the_networks_first_envelope_is_read_whatever_the_order_of_its_keys() {
    let sum = "cd2f1b0a";
    let file = format!(r#"{{"version":1,"checksum":"{sum}","body":{{"text":"x"}}}}"#);
    let error = decode::<Thing>(file.as_bytes()).unwrap_err();
    assert_eq!(error, Unreadable::damaged("its checksum does not fit"));
    // SHA-256 of {"text""x",}, as the first version summed it up.
    let sum: String = Sha256::digest("{\"text\"\"x\",}")
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect();
    let file = format!(r#"{{"body":{{"text":"x"}},"checksum":"{sum}","version":1}}"#);
    assert_eq!(decode::<Thing>(file.as_bytes()).unwrap(), thing(b"x"));
}

#[test]
fn an_identity_comes_back_and_never_changes() {
    let identity = Identity {
        kind: "pod".to_owned(),
        id: "a".repeat(64),
        name: "web".to_owned(),
        labels: [("k".to_owned(), "v".to_owned())].into(),
        processes: vec![Process {
            role: ProcessRole::Pause,
            pid: 7,
            start_time: 9,
        }],
        cgroup: vec!["/sys/fs/cgroup/a".into()],
        ..Identity::default()
    };
    let file = identity.encode().unwrap();
    assert_eq!(Identity::decode(&file).unwrap(), identity);
    let text = String::from_utf8(file).unwrap();
    insta::assert_snapshot!(text);
    for broken in [
        text.replace("web", "wed"),
        text[1..].to_owned(),
        "{}".to_owned(),
    ] {
        assert!(Identity::decode(broken.as_bytes()).is_err(), "{broken}");
    }
}
