//! Random profiles and calls: a program answers as its profile means.

use proptest::prelude::*;

use super::*;

/// Calls that random profiles name, with argument values near the ones that they compare with.
pub(super) const NAMES: [&str; 12] = [
    "read", "write", "open", "close", "kill", "clone", "socket", "mmap", "ioctl", "prctl",
    "clone3", "openat2",
];
pub(super) const VALUES: [u64; 9] = [
    0,
    1,
    2,
    0xff,
    0xffff_fffe,
    0xffff_ffff,
    0x1_0000_0000,
    0x1_0000_0001,
    u64::MAX,
];

pub(super) fn operators() -> impl Strategy<Value = Operator> {
    prop_oneof![
        Just(Operator::Equal),
        Just(Operator::NotEqual),
        Just(Operator::Less),
        Just(Operator::LessOrEqual),
        Just(Operator::Greater),
        Just(Operator::GreaterOrEqual),
        Just(Operator::MaskedEqual),
    ]
}

pub(super) fn comparisons() -> impl Strategy<Value = Comparison> {
    let value = || prop::sample::select(VALUES.to_vec());
    (0..3u32, operators(), value(), value()).prop_map(|(index, operator, value, second)| {
        let second = if operator == Operator::MaskedEqual {
            second & value
        } else {
            0
        };
        Comparison {
            index,
            operator,
            value,
            second,
        }
    })
}

pub(super) fn actions() -> impl Strategy<Value = Action> {
    prop_oneof![
        Just(Action::Allow),
        Just(Action::Log),
        Just(Action::Errno(1)),
        Just(Action::Errno(38)),
        Just(Action::Trap),
        Just(Action::KillThread),
        Just(Action::KillProcess),
    ]
}

pub(super) fn profile_rules() -> impl Strategy<Value = ProfileRule> {
    let names = prop::collection::vec(prop::sample::select(NAMES.to_vec()), 1..4);
    (names, actions(), prop::collection::vec(comparisons(), 0..4)).prop_map(
        |(names, action, args)| ProfileRule {
            names: names.into_iter().map(str::to_owned).collect(),
            action,
            args,
            includes: Conditions::default(),
            excludes: Conditions::default(),
        },
    )
}

pub(super) fn profiles() -> impl Strategy<Value = Profile> {
    let arches = prop::sample::subsequence(vec![Arch::X86, Arch::X32], 0..3);
    (
        actions(),
        arches,
        prop::collection::vec(profile_rules(), 0..30),
    )
        .prop_map(|(default, arches, rules)| Profile {
            default,
            arches: Arches::List(arches),
            rules,
        })
}

pub(super) fn calls() -> impl Strategy<Value = Call> {
    let arch = prop::sample::select(vec![Arch::X86_64, Arch::X86, Arch::X32, Arch::Aarch64]);
    let value = || prop::sample::select(VALUES.to_vec());
    (arch, 0..NAMES.len() + 2, [value(), value(), value()]).prop_map(|(arch, name, args)| {
        let number = NAMES.get(name).and_then(|name| arch.number(name));
        let number = number.unwrap_or(if name % 2 == 0 { 333 } else { 9_999 });
        // 32-bit programs have no upper halves.
        let args = args.map(|arg| {
            if arch.narrow() {
                arg & 0xffff_ffff
            } else {
                arg
            }
        });
        Call {
            arch: arch.audit(),
            number,
            args: [args[0], args[1], args[2], 0, 0, 0],
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn programs_do_what_profiles_mean(profile in profiles(), calls in prop::collection::vec(calls(), 200)) {
        let filter = rules::decide(&profile, DOCKER, Arch::X86_64, KERNEL).unwrap();
        let program: Vec<u8> = emit::emit(&filter).unwrap().iter().flat_map(Instruction::bytes).collect();
        for call in calls {
            prop_assert_eq!(run(&program, call), judge(&filter, call), "{:?}", call);
        }
    }

    #[test]
    fn any_text_is_read_or_refused(text in "\\PC*") {
        let _ = from_json(&text);
    }
}
