//! Texts of cgroup files.

use crate::model::{Pressure, Stall};

/// Values of a flat-keyed file (Documentation/admin-guide/cgroup-v2.rst), in the order of `keys`; 0 for one
/// that is not there.
pub(super) fn keyed<const N: usize>(text: &str, keys: [&str; N]) -> [u64; N] {
    let mut values = [0; N];
    for (name, value) in text.lines().filter_map(|line| line.split_once(' ')) {
        if let Some(at) = keys.iter().position(|key| *key == name)
            && let Ok(value) = value.trim().parse()
        {
            values[at] = value;
        }
    }
    values
}

/// A pressure file (Documentation/accounting/psi.rst). `None`: it has no line `some`. An older kernel has no
/// line `full` for the CPU; the kubelet wants both, so that one is zeros then.
pub(super) fn pressure(text: &str) -> Option<Pressure> {
    let line = |name: &str| {
        let mut lines = text.lines().filter_map(|line| line.split_once(' '));
        let (_, values) = lines.find(|(kind, _)| *kind == name)?;
        Some(stall(values))
    };
    Some(Pressure {
        some: line("some")?,
        full: line("full").unwrap_or_default(),
    })
}

fn stall(values: &str) -> Stall {
    let mut stall = Stall::default();
    for (name, value) in values
        .split_whitespace()
        .filter_map(|pair| pair.split_once('='))
    {
        let share = || value.parse().unwrap_or_default();
        match name {
            "avg10" => stall.avg10 = share(),
            "avg60" => stall.avg60 = share(),
            "avg300" => stall.avg300 = share(),
            "total" => stall.total = value.parse().unwrap_or_default(),
            _ => {}
        }
    }
    stall
}
