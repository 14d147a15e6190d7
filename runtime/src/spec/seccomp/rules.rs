//! Decides a profile for one container on one machine: what is left is numbers.

use std::collections::{BTreeMap, BTreeSet};

use super::Error;
use super::arch::{ARM_PRIVATE, Arch, X32_BIT};
#[cfg(test)]
use super::profile::Operator;
use super::profile::{Action, Arches, Comparison, Conditions, Profile, ProfileRule};

const ENOSYS: u16 = 38;

/// A filter, ready to be emitted.
#[derive(Debug)]
pub(super) struct Filter {
    /// One for each architecture; x32 is apart from x86-64.
    pub(super) tables: Vec<Table>,
    pub(super) default: Action,
}

/// The rules of one architecture.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) arch: Arch,
    /// By system call number.
    pub(super) calls: BTreeMap<u32, Decision>,
    /// Numbers above this one are newer than the profile.
    pub(super) newest: Option<u32>,
}

/// What happens to one call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    Always(Action),
    /// The first whose comparisons all hold; else the default.
    Cases(Vec<(Vec<Comparison>, Action)>),
}

/// The answer for calls that are newer than the profile: a program falls back, where EPERM would end it.
pub(super) const NEWER: Action = Action::Errno(ENOSYS);

pub(super) fn decide(
    profile: &Profile,
    capabilities: u64,
    machine: Arch,
    kernel: (u32, u32),
) -> Result<Filter, Error> {
    let facts = Facts {
        capabilities,
        machine,
        kernel,
    };
    let active: Vec<_> = profile
        .rules
        .iter()
        .filter(|rule| facts.active(rule))
        .collect();
    // A default that lets calls through, or says ENOSYS already, needs no other answer.
    let answer_newer = !matches!(profile.default, Action::Allow | Action::Log | NEWER);
    let tables = arches(profile, machine).into_iter().map(|arch| Table {
        arch,
        calls: calls(&active, arch, profile.default),
        newest: if answer_newer {
            newest(profile, arch)
        } else {
            None
        },
    });
    Ok(Filter {
        tables: tables.collect(),
        default: profile.default,
    })
}

struct Facts {
    capabilities: u64,
    machine: Arch,
    kernel: (u32, u32),
}

impl Facts {
    /// All that `includes` names must hold, nothing that `excludes` names may.
    fn active(&self, rule: &ProfileRule) -> bool {
        let (with, without) = (&rule.includes, &rule.excludes);
        let arch = |conditions: &Conditions| {
            conditions
                .arches
                .iter()
                .any(|name| name == self.machine.go_name())
        };
        self.capabilities & with.capabilities == with.capabilities
            && (with.arches.is_empty() || arch(with))
            && with.min_kernel.is_none_or(|least| self.kernel >= least)
            && self.capabilities & without.capabilities == 0
            && !arch(without)
            && without.min_kernel.is_none_or(|least| self.kernel < least)
    }
}

fn arches(profile: &Profile, machine: Arch) -> BTreeSet<Arch> {
    let listed: Vec<Arch> = match &profile.arches {
        Arches::List(list) => list.clone(),
        Arches::Map(map) => {
            let mine = map.iter().filter(|(arch, _)| *arch == Some(machine));
            mine.flat_map(|(_, others)| others.clone()).collect()
        }
    };
    let usable = listed.into_iter().filter(|arch| arch.runs_on(machine));
    usable.chain([machine]).collect()
}

/// The highest number that the profile names at all, also in rules that are not active here: a call that is
/// left out on purpose is not new.
fn newest(profile: &Profile, arch: Arch) -> Option<u32> {
    let names = profile.rules.iter().flat_map(|rule| &rule.names);
    let numbers = names.filter_map(|name| arch.number(name));
    numbers
        .filter(|number| number & !X32_BIT < ARM_PRIVATE)
        .max()
}

fn calls(rules: &[&ProfileRule], arch: Arch, default: Action) -> BTreeMap<u32, Decision> {
    let mut calls: BTreeMap<u32, Decision> = BTreeMap::new();
    for rule in rules {
        // libseccomp refuses a rule that does what the default does, and runc leaves it out.
        if rule.action == default {
            continue;
        }
        for number in rule.names.iter().filter_map(|name| arch.number(name)) {
            for comparisons in alternatives(&rule.args) {
                add(
                    calls
                        .entry(number)
                        .or_insert_with(|| Decision::Cases(Vec::new())),
                    comparisons,
                    rule.action,
                    arch,
                );
            }
        }
    }
    calls
}

/// Comparisons of different arguments must all hold. Two of the same argument are alternatives: libseccomp
/// cannot join them, and so every profile means it.
fn alternatives(args: &[Comparison]) -> Vec<Vec<Comparison>> {
    let different: BTreeSet<_> = args.iter().map(|arg| arg.index).collect();
    if different.len() == args.len() {
        vec![args.to_vec()]
    } else {
        args.iter().map(|arg| vec![*arg]).collect()
    }
}

/// A rule without comparisons beats those with; of two without, the first stands.
fn add(decision: &mut Decision, comparisons: Vec<Comparison>, action: Action, arch: Arch) {
    if let Decision::Cases(cases) = decision {
        if comparisons.is_empty() {
            *decision = Decision::Always(action);
        } else {
            let narrow = |comparison: Comparison| {
                if arch.narrow() {
                    comparison.narrowed()
                } else {
                    comparison
                }
            };
            cases.push((comparisons.into_iter().map(narrow).collect(), action));
        }
    }
}

impl Comparison {
    /// For arguments of 32 bits.
    fn narrowed(self) -> Self {
        let low = |value: u64| value & u64::from(u32::MAX);
        Self {
            value: low(self.value),
            second: low(self.second),
            ..self
        }
    }

    /// Does it hold?
    #[cfg(test)]
    pub(super) fn holds(&self, argument: u64) -> bool {
        match self.operator {
            Operator::Equal => argument == self.value,
            Operator::NotEqual => argument != self.value,
            Operator::Less => argument < self.value,
            Operator::LessOrEqual => argument <= self.value,
            Operator::Greater => argument > self.value,
            Operator::GreaterOrEqual => argument >= self.value,
            Operator::MaskedEqual => argument & self.value == self.second,
        }
    }
}
