//! Emits a filter as classic BPF (Documentation/networking/filter.rst, seccomp(2)).
//!
//! Conditional jumps reach 255 instructions forward, and only forward. So the program is written from its
//! end: every target exists before the jump to it, its distance is known, and where it is too far a `ret`
//! or a long jump is put in between.

use std::collections::HashMap;

use super::Error;
use super::arch::{Arch, X32_BIT};
use super::profile::{Action, Comparison, Operator};
use super::rules::{Decision, Filter, NEWER, Table};

/// BPF_MAXINSNS (include/uapi/linux/bpf_common.h).
const MAX_INSTRUCTIONS: usize = 4096;

/// Offsets in `struct seccomp_data` (include/uapi/linux/seccomp.h).
const OFFSET_NUMBER: u32 = 0;
const OFFSET_ARCH: u32 = 4;
const OFFSET_ARGS: u32 = 16;

/// BPF_LD|BPF_W|BPF_ABS and so on (include/uapi/linux/bpf_common.h).
const LOAD: u16 = 0x20;
const JUMP: u16 = 0x05;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_GREATER: u16 = 0x25;
const JUMP_GREATER_OR_EQUAL: u16 = 0x35;
const AND: u16 = 0x54;
const RETURN: u16 = 0x06;

/// `struct sock_filter`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Instruction {
    pub(super) code: u16,
    pub(super) jump_true: u8,
    pub(super) jump_false: u8,
    pub(super) value: u32,
}

impl Instruction {
    pub(super) fn bytes(&self) -> [u8; 8] {
        let ([a, b], [c, d, e, f]) = (self.code.to_ne_bytes(), self.value.to_ne_bytes());
        [a, b, self.jump_true, self.jump_false, c, d, e, f]
    }
}

/// A place in the program, counted from its end.
type Label = usize;

/// Where a jump goes.
#[derive(Clone, Copy)]
enum Target {
    Label(Label),
    Return(Action),
}

#[derive(Default)]
struct Program {
    /// Last instruction first.
    reversed: Vec<Instruction>,
    /// The nearest `ret` of each action.
    returns: HashMap<Action, Label>,
}

pub(super) fn emit(filter: &Filter) -> Result<Vec<Instruction>, Error> {
    let mut program = Program::default();
    // An architecture without a table cannot be judged.
    let mut next = program.place(Target::Return(Action::KillProcess));
    for table in filter.tables.iter().filter(|table| table.arch != Arch::X32) {
        let entry = program.section(table, filter);
        next = program.jump_if(
            JUMP_EQUAL,
            table.arch.audit(),
            Target::Label(entry),
            Target::Label(next),
        );
    }
    program.push(LOAD, 0, 0, OFFSET_ARCH);
    if program.reversed.len() > MAX_INSTRUCTIONS {
        return Err(Error::TooLong(program.reversed.len()));
    }
    Ok(program.reversed.into_iter().rev().collect())
}

/// Calls with numbers from `first` on, up to the next range, end the same way.
struct Range<'a> {
    first: u32,
    decision: &'a Decision,
}

impl Program {
    fn push(&mut self, code: u16, jump_true: u8, jump_false: u8, value: u32) -> Label {
        self.reversed.push(Instruction {
            code,
            jump_true,
            jump_false,
            value,
        });
        self.reversed.len() - 1
    }

    /// How far a jump that is emitted now has to go, if a jump can go that far.
    fn distance(&self, label: Label) -> Option<u8> {
        u8::try_from(self.reversed.len() - 1 - label).ok()
    }

    /// A label for the target, near enough for a jump that is emitted within the next two instructions.
    fn place(&mut self, target: Target) -> Label {
        match target {
            Target::Return(action) => {
                let near = self
                    .returns
                    .get(&action)
                    .filter(|&&label| self.reversed.len() - label <= 250);
                if let Some(&label) = near {
                    return label;
                }
                let label = self.push(RETURN, 0, 0, action.code());
                self.returns.insert(action, label);
                label
            }
            Target::Label(label) if self.reversed.len() - label <= 250 => label,
            Target::Label(label) => {
                self.fall_through_to(label);
                self.reversed.len() - 1
            }
        }
    }

    fn jump_if(&mut self, code: u16, value: u32, then: Target, or: Target) -> Label {
        let (then, or) = (self.place(then), self.place(or));
        // `place` keeps both within 250, and emits at most one more instruction after the first.
        let (jump_true, jump_false) = (
            self.distance(then).unwrap_or(u8::MAX),
            self.distance(or).unwrap_or(u8::MAX),
        );
        self.push(code, jump_true, jump_false, value)
    }

    /// Makes `label` what the next instruction emitted is followed by.
    fn fall_through_to(&mut self, label: Label) {
        let distance = self.reversed.len() - 1 - label;
        if distance > 0 {
            self.push(JUMP, 0, 0, u32::try_from(distance).unwrap_or(u32::MAX));
        }
    }

    /// The rules of one architecture, from the load of the number on.
    fn section(&mut self, table: &Table, filter: &Filter) -> Label {
        let mut entry = self.calls(table, filter.default);
        if table.arch == Arch::X86_64 {
            // x32 calls have the same architecture: they go to their own rules, or do not exist.
            let x32 = filter.tables.iter().find(|table| table.arch == Arch::X32);
            let target = match x32 {
                Some(table) => Target::Label(self.calls(table, filter.default)),
                None => Target::Return(NEWER),
            };
            entry = self.jump_if(JUMP_GREATER_OR_EQUAL, X32_BIT, target, Target::Label(entry));
        }
        self.fall_through_to(entry);
        self.push(LOAD, 0, 0, OFFSET_NUMBER)
    }

    fn calls(&mut self, table: &Table, default: Action) -> Label {
        let otherwise = Decision::Always(default);
        let newer = Decision::Always(NEWER);
        let mut ranges: Vec<Range<'_>> = vec![Range {
            first: 0,
            decision: &otherwise,
        }];
        let mut next = 0;
        let mut add = |first, decision| extend(&mut ranges, Range { first, decision });
        let new_from = table.newest.map_or(u32::MAX, |newest| newest + 1);
        for (&number, decision) in &table.calls {
            if number > next {
                // Between two calls with a rule; beyond the newest these are unknown ones.
                add(next, if next >= new_from { &newer } else { &otherwise });
                if next < new_from && new_from < number {
                    add(new_from, &newer);
                }
            }
            add(number, decision);
            next = number + 1;
        }
        add(next, if next >= new_from { &newer } else { &otherwise });
        if next < new_from && table.newest.is_some() {
            add(new_from, &newer);
        }
        self.tree(&ranges, default)
    }

    /// A binary search over the ranges.
    fn tree(&mut self, ranges: &[Range<'_>], default: Action) -> Label {
        let (low, high) = ranges.split_at(ranges.len() / 2);
        if low.is_empty() {
            return match high.first().map(|range| range.decision) {
                Some(Decision::Cases(cases)) => self.cases(cases, default),
                Some(Decision::Always(action)) => self.place(Target::Return(*action)),
                None => self.place(Target::Return(default)),
            };
        }
        let pivot = high.first().map_or(0, |range| range.first);
        let target = |program: &mut Self, half: &[Range<'_>]| match half {
            [
                Range {
                    decision: Decision::Always(action),
                    ..
                },
            ] => Target::Return(*action),
            half => Target::Label(program.tree(half, default)),
        };
        let (then, or) = (target(self, high), target(self, low));
        self.jump_if(JUMP_GREATER_OR_EQUAL, pivot, then, or)
    }

    /// The comparisons of a call, one case after the other.
    fn cases(&mut self, cases: &[(Vec<Comparison>, Action)], default: Action) -> Label {
        let mut next = Target::Return(default);
        for (comparisons, action) in cases.iter().rev() {
            let mut then = Target::Return(*action);
            for comparison in comparisons.iter().rev() {
                then = Target::Label(self.comparison(comparison, then, next));
            }
            next = then;
        }
        self.place(next)
    }

    /// 64 bits are compared as two halves; the accumulator no longer holds the number then, and need not.
    fn comparison(&mut self, comparison: &Comparison, then: Target, or: Target) -> Label {
        let (value, second) = (comparison.value, comparison.second);
        let argument = OFFSET_ARGS + 8 * comparison.index;
        // Little endian on both machines: the low half comes first.
        let words = Words {
            low: argument,
            high: argument + 4,
        };
        match comparison.operator {
            Operator::Equal => self.equal(words, (u64::MAX, value), then, or),
            Operator::NotEqual => self.equal(words, (u64::MAX, value), or, then),
            Operator::MaskedEqual => self.equal(words, (value, second), then, or),
            Operator::Greater => self.ordered(words, JUMP_GREATER, value, then, or),
            Operator::LessOrEqual => self.ordered(words, JUMP_GREATER, value, or, then),
            Operator::GreaterOrEqual => self.ordered(words, JUMP_GREATER_OR_EQUAL, value, then, or),
            Operator::Less => self.ordered(words, JUMP_GREATER_OR_EQUAL, value, or, then),
        }
    }

    fn equal(
        &mut self,
        words: Words,
        (mask, value): (u64, u64),
        then: Target,
        or: Target,
    ) -> Label {
        let low = self.masked(words.low, low(mask), low(value), then, or);
        self.masked(words.high, high(mask), high(value), Target::Label(low), or)
    }

    fn masked(&mut self, offset: u32, mask: u32, value: u32, then: Target, or: Target) -> Label {
        self.jump_if(JUMP_EQUAL, value, then, or);
        if mask != u32::MAX {
            self.push(AND, 0, 0, mask);
        }
        self.push(LOAD, 0, 0, offset)
    }

    /// The high halves decide unless they are equal.
    fn ordered(
        &mut self,
        words: Words,
        low_test: u16,
        value: u64,
        then: Target,
        or: Target,
    ) -> Label {
        self.jump_if(low_test, low(value), then, or);
        let low = self.push(LOAD, 0, 0, words.low);
        let equal = self.jump_if(JUMP_EQUAL, high(value), Target::Label(low), or);
        self.jump_if(JUMP_GREATER, high(value), then, Target::Label(equal));
        self.push(LOAD, 0, 0, words.high)
    }
}

/// Adds a range behind the others; equal neighbours become one.
fn extend<'a>(ranges: &mut Vec<Range<'a>>, range: Range<'a>) {
    match ranges.last_mut() {
        Some(last) if last.decision == range.decision => {}
        Some(last) if last.first == range.first => *last = range,
        _ => ranges.push(range),
    }
}

#[derive(Clone, Copy)]
struct Words {
    low: u32,
    high: u32,
}

fn low(value: u64) -> u32 {
    u32::try_from(value & u64::from(u32::MAX)).unwrap_or_default()
}

fn high(value: u64) -> u32 {
    u32::try_from(value >> 32).unwrap_or_default()
}
