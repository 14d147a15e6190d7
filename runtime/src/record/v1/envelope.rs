//! The envelopes of version 1: each kind of file had one of its own.

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};

use crate::record::{Unreadable, open_envelope, sum};

fn parse<'a, T: Deserialize<'a>>(text: &'a [u8]) -> Result<T, Unreadable> {
    serde_json::from_slice(text).map_err(Unreadable::damaged)
}

/// Of pods and containers.
pub(crate) fn object<T: DeserializeOwned>(
    file: &[u8],
    kind: &'static str,
) -> Result<T, Unreadable> {
    parse(open_envelope(file, kind)?.get().as_bytes())
}

/// Of leases, attachments and what else the networks keep: the checksum is over the value, its keys in order.
pub(crate) fn network<T: DeserializeOwned>(file: &[u8]) -> Result<T, Unreadable> {
    #[derive(Deserialize)]
    struct Envelope {
        checksum: String,
        body: Value,
    }
    let envelope: Envelope = parse(file)?;
    let mut hash = Sha256::new();
    feed(&envelope.body, &mut hash);
    let sum: String = hash.finalize().iter().map(|b| format!("{b:02x}")).collect();
    if sum != envelope.checksum {
        return Err(Unreadable::damaged("its checksum does not fit"));
    }
    serde_json::from_value(envelope.body).map_err(Unreadable::damaged)
}

fn feed(value: &Value, hash: &mut Sha256) {
    match value {
        Value::Object(map) => {
            let mut entries: Vec<_> = map.iter().collect();
            entries.sort_by_key(|(key, _)| *key);
            hash.update(b"{");
            for (key, value) in entries {
                hash.update(Value::from(key.as_str()).to_string());
                feed(value, hash);
            }
            hash.update(b"}");
        }
        Value::Array(list) => {
            hash.update(b"[");
            list.iter().for_each(|value| feed(value, hash));
            hash.update(b"]");
        }
        other => {
            hash.update(other.to_string());
            hash.update(b",");
        }
    }
}

/// Of a row of the image index, which the database itself checks.
pub(crate) fn image_row<T: DeserializeOwned>(row: &[u8]) -> Result<T, Unreadable> {
    #[derive(Deserialize)]
    struct Envelope<R> {
        record: R,
    }
    parse::<Envelope<T>>(row).map(|envelope| envelope.record)
}

/// Of the copy of such a row, with the time when it was written, nanoseconds since the Unix epoch.
pub(crate) fn image_copy<T: DeserializeOwned>(file: &[u8]) -> Result<(u64, T), Unreadable> {
    #[derive(Deserialize)]
    struct Envelope<'a> {
        written_at: u64,
        checksum: String,
        #[serde(borrow)]
        record: &'a RawValue,
    }
    let envelope: Envelope<'_> = parse(file)?;
    if envelope.checksum != format!("sha256:{}", sum(envelope.record.get())) {
        return Err(Unreadable::damaged("its checksum does not fit"));
    }
    Ok((
        envelope.written_at,
        parse(envelope.record.get().as_bytes())?,
    ))
}
