//! Bandwidth limits of a pod, from the annotations that Kubernetes defines for them.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::Error;

const INGRESS: &str = "kubernetes.io/ingress-bandwidth";
const EGRESS: &str = "kubernetes.io/egress-bandwidth";
/// Kubernetes allows limits from 1k to 1P.
const ALLOWED: std::ops::RangeInclusive<u64> = 1_000..=1_000_000_000_000_000;

/// Limits in bits per second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bandwidth {
    /// Into the pod.
    pub ingress: Option<u64>,
    /// Out of the pod.
    pub egress: Option<u64>,
}

impl Bandwidth {
    /// The limits that a pod's annotations ask for.
    ///
    /// # Errors
    /// When a value is not a quantity from 1k to 1P.
    pub fn from_annotations(annotations: &BTreeMap<String, String>) -> Result<Option<Self>, Error> {
        let limit = |key: &str| {
            let Some(text) = annotations.get(key) else {
                return Ok(None);
            };
            let value = quantity(text).filter(|value| ALLOWED.contains(value));
            value.map(Some).ok_or_else(|| {
                Error::Invalid(format!(
                    "annotation {key:?} is {text:?}: a quantity from 1k to 1P bits per second is wanted"
                ))
            })
        };
        let limits = Self {
            ingress: limit(INGRESS)?,
            egress: limit(EGRESS)?,
        };
        Ok((limits != Self::default()).then_some(limits))
    }

    /// As the `bandwidth` capability. The burst has no annotation: it is as large as the plugin's
    /// 32 bits allow.
    pub(super) fn capability(self) -> Value {
        let mut all = Map::new();
        for (name, rate) in [("ingress", self.ingress), ("egress", self.egress)] {
            if let Some(rate) = rate {
                all.insert(format!("{name}Rate"), rate.into());
                all.insert(format!("{name}Burst"), u32::MAX.into());
            }
        }
        Value::Object(all)
    }
}

/// A Kubernetes quantity (`10M`, `1.5Gi`, `2e6`) as a whole number, rounded up.
fn quantity(text: &str) -> Option<u64> {
    let digits_end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.' && c != '+')
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at(digits_end);
    let number = number.strip_prefix('+').unwrap_or(number);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = format!("{whole}{fraction}");
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let digits: u128 = digits.parse().ok()?;
    let (multiplier, divisor) = scale(suffix)?;
    let places = u32::try_from(fraction.len()).ok()?;
    let divisor = 10_u128.checked_pow(places)?.checked_mul(divisor)?;
    u64::try_from(digits.checked_mul(multiplier)?.div_ceil(divisor)).ok()
}

/// What a suffix multiplies and divides by.
fn scale(suffix: &str) -> Option<(u128, u128)> {
    let decimal = ["", "k", "M", "G", "T", "P", "E"];
    let binary = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    let power = |list: &[&str]| {
        let position = list.iter().position(|known| *known == suffix)?;
        u32::try_from(position).ok()
    };
    if let Some(power) = power(&decimal) {
        return Some((1_000_u128.pow(power), 1));
    }
    if let Some(power) = power(&binary) {
        return Some((1_024_u128.pow(power), 1));
    }
    match suffix {
        "m" => Some((1, 1_000)),
        "u" => Some((1, 1_000_000)),
        "n" => Some((1, 1_000_000_000)),
        _ => {
            let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
            let size = 10_u128.checked_pow(exponent.unsigned_abs())?;
            Some(if exponent < 0 { (1, size) } else { (size, 1) })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_as_kubernetes_writes_them() {
        for (text, value) in [
            ("0", 0),
            ("10M", 10_000_000),
            ("1.5k", 1_500),
            ("1.5Gi", 1_610_612_736),
            ("2e6", 2_000_000),
            ("2E3", 2_000),
            ("1E", 1_000_000_000_000_000_000),
            ("+5k", 5_000),
            ("1500m", 2),
            (".5k", 500),
            ("15e-1", 2),
        ] {
            assert_eq!(quantity(text), Some(value), "{text}");
        }
        for bad in [
            "",
            ".",
            "k",
            "-1",
            "1 k",
            "1K",
            "1kk",
            "1e",
            "1..2",
            "1.2.3",
            "1+2",
            "99999999999E",
            "1e400",
        ] {
            assert_eq!(quantity(bad), None, "{bad}");
        }
    }

    #[test]
    fn annotations_become_limits() {
        let annotations = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
            let pairs = pairs.iter().map(|(k, v)| ((*k).into(), (*v).into()));
            pairs.collect()
        };
        let none = Bandwidth::from_annotations(&annotations(&[("x", "1M")]));
        assert_eq!(none.unwrap(), None);
        let both = annotations(&[(INGRESS, "1M"), (EGRESS, "2Mi")]);
        let both = Bandwidth::from_annotations(&both).unwrap().unwrap();
        assert_eq!(both.ingress, Some(1_000_000));
        assert_eq!(both.egress, Some(2_097_152));
        for bad in ["", "999", "2P", "fast"] {
            let error = Bandwidth::from_annotations(&annotations(&[(EGRESS, bad)])).unwrap_err();
            assert!(error.to_string().contains(EGRESS));
        }
    }
}
