//! The OCI form of a profile (runtime-spec, config-linux.md, "Seccomp"), with Docker's additions.

use serde::Deserialize;

use super::Error;
use super::arch::Arch;

/// A profile, read and checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Profile {
    /// For calls that no rule names.
    pub(super) default: Action,
    /// `architectures`, or Docker's `archMap`.
    pub(super) arches: Arches,
    /// The rules, in order.
    pub(super) rules: Vec<ProfileRule>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Arches {
    /// These, and the machine's own.
    List(Vec<Arch>),
    /// For each machine, the others that run on it.
    Map(Vec<(Option<Arch>, Vec<Arch>)>),
}

/// What happens to a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Action {
    Allow,
    Log,
    Errno(u16),
    Trap,
    Trace(u16),
    KillThread,
    KillProcess,
}

/// One entry of `syscalls`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ProfileRule {
    pub(super) names: Vec<String>,
    pub(super) action: Action,
    pub(super) args: Vec<Comparison>,
    pub(super) includes: Conditions,
    pub(super) excludes: Conditions,
}

/// A comparison of one argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Comparison {
    pub(super) index: u32,
    pub(super) operator: Operator,
    /// The value; for `MaskedEqual` the mask.
    pub(super) value: u64,
    /// For `MaskedEqual`: what the masked argument must be.
    pub(super) second: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operator {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    MaskedEqual,
}

/// Docker's `includes` and `excludes`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Conditions {
    /// Mask of capabilities.
    pub(super) capabilities: u64,
    /// Go's names.
    pub(super) arches: Vec<String>,
    pub(super) min_kernel: Option<(u32, u32)>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RawProfile {
    default_action: String,
    default_errno_ret: Option<u32>,
    architectures: Option<Vec<String>>,
    arch_map: Option<Vec<RawArch>>,
    flags: Option<Vec<String>>,
    listener_path: Option<String>,
    syscalls: Option<Vec<RawRule>>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RawArch {
    architecture: String,
    sub_architectures: Option<Vec<String>>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RawRule {
    names: Option<Vec<String>>,
    name: Option<String>,
    action: String,
    errno_ret: Option<u32>,
    args: Option<Vec<RawComparison>>,
    includes: Option<RawConditions>,
    excludes: Option<RawConditions>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RawComparison {
    index: u32,
    value: u64,
    value_two: u64,
    op: String,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RawConditions {
    caps: Option<Vec<String>>,
    arches: Option<Vec<String>>,
    min_kernel: Option<String>,
}

impl Profile {
    /// Reads a profile.
    ///
    /// # Errors
    /// Not of the form, or something in it is not known or not supported.
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        let raw: RawProfile = crate::json::from_slice(bytes).map_err(Error::Syntax)?;
        if raw.listener_path.is_some_and(|path| !path.is_empty()) {
            return Err(Error::Notify);
        }
        // These change how the kernel logs or speculates, not what is allowed: left at the kernel's default.
        const HARMLESS: [&str; 3] = [
            "SECCOMP_FILTER_FLAG_LOG",
            "SECCOMP_FILTER_FLAG_SPEC_ALLOW",
            "SECCOMP_FILTER_FLAG_TSYNC",
        ];
        let flags = raw.flags.unwrap_or_default();
        if let Some(flag) = flags
            .into_iter()
            .find(|flag| !HARMLESS.contains(&flag.as_str()))
        {
            return Err(Error::Flag(flag));
        }
        let rules = raw
            .syscalls
            .unwrap_or_default()
            .into_iter()
            .map(rule)
            .collect::<Result<_, _>>()?;
        Ok(Self {
            default: Action::parse(&raw.default_action, raw.default_errno_ret)?,
            arches: arches(raw.architectures, raw.arch_map)?,
            rules,
        })
    }
}

fn arches(list: Option<Vec<String>>, map: Option<Vec<RawArch>>) -> Result<Arches, Error> {
    let known = |names: &[String]| -> Result<Vec<Arch>, Error> {
        let parsed: Vec<_> = names
            .iter()
            .map(|name| Arch::parse(name))
            .collect::<Result<_, _>>()?;
        Ok(parsed.into_iter().flatten().collect())
    };
    match (list, map) {
        (None, Some(map)) => {
            let entry = |raw: RawArch| {
                Ok((
                    Arch::parse(&raw.architecture)?,
                    known(&raw.sub_architectures.unwrap_or_default())?,
                ))
            };
            Ok(Arches::Map(
                map.into_iter().map(entry).collect::<Result<_, Error>>()?,
            ))
        }
        (list, _) => Ok(Arches::List(known(&list.unwrap_or_default())?)),
    }
}

fn rule(raw: RawRule) -> Result<ProfileRule, Error> {
    let mut names = raw.names.unwrap_or_default();
    names.extend(raw.name);
    let args = raw.args.unwrap_or_default();
    let shown = names.first().cloned().unwrap_or_default();
    Ok(ProfileRule {
        action: Action::parse(&raw.action, raw.errno_ret)?,
        args: args
            .iter()
            .map(|arg| comparison(arg, &shown))
            .collect::<Result<_, _>>()?,
        includes: conditions(raw.includes.unwrap_or_default())?,
        excludes: conditions(raw.excludes.unwrap_or_default())?,
        names,
    })
}

fn comparison(raw: &RawComparison, name: &str) -> Result<Comparison, Error> {
    if raw.index > 5 {
        return Err(Error::Argument(raw.index, name.to_owned()));
    }
    let operator = match raw.op.as_str() {
        "SCMP_CMP_EQ" => Operator::Equal,
        "SCMP_CMP_NE" => Operator::NotEqual,
        "SCMP_CMP_LT" => Operator::Less,
        "SCMP_CMP_LE" => Operator::LessOrEqual,
        "SCMP_CMP_GT" => Operator::Greater,
        "SCMP_CMP_GE" => Operator::GreaterOrEqual,
        "SCMP_CMP_MASKED_EQ" => Operator::MaskedEqual,
        other => return Err(Error::Operator(other.to_owned())),
    };
    Ok(Comparison {
        index: raw.index,
        operator,
        value: raw.value,
        second: raw.value_two,
    })
}

fn conditions(raw: RawConditions) -> Result<Conditions, Error> {
    let mut capabilities = 0;
    for name in raw.caps.unwrap_or_default() {
        capabilities |= super::super::parse_capability(&name).ok_or(Error::Capability(name))?;
    }
    let min_kernel = raw.min_kernel.filter(|text| !text.is_empty());
    Ok(Conditions {
        capabilities,
        arches: raw.arches.unwrap_or_default(),
        min_kernel: min_kernel.map(version).transpose()?,
    })
}

fn version(text: String) -> Result<(u32, u32), Error> {
    let parsed = text.split_once('.').and_then(|(major, minor)| {
        let minor = minor.split('.').next()?;
        Some((major.parse().ok()?, minor.parse().ok()?))
    });
    parsed.ok_or(Error::MinKernel(text))
}

impl Action {
    fn parse(name: &str, errno: Option<u32>) -> Result<Self, Error> {
        // EPERM, where the profile says nothing; for a tracer it is the message.
        let errno = errno.unwrap_or(1);
        let data = || {
            u16::try_from(errno)
                .ok()
                .filter(|&data| data <= 4095)
                .ok_or(Error::Errno(errno))
        };
        match name {
            "SCMP_ACT_ALLOW" => Ok(Self::Allow),
            "SCMP_ACT_LOG" => Ok(Self::Log),
            "SCMP_ACT_ERRNO" => Ok(Self::Errno(data()?)),
            "SCMP_ACT_TRAP" => Ok(Self::Trap),
            "SCMP_ACT_TRACE" => Ok(Self::Trace(data()?)),
            "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => Ok(Self::KillThread),
            "SCMP_ACT_KILL_PROCESS" => Ok(Self::KillProcess),
            "SCMP_ACT_NOTIFY" => Err(Error::Notify),
            other => Err(Error::Action(other.to_owned())),
        }
    }

    /// The value that a filter returns (include/uapi/linux/seccomp.h).
    pub(super) fn code(self) -> u32 {
        match self {
            Self::KillProcess => 0x8000_0000,
            Self::KillThread => 0,
            Self::Trap => 0x0003_0000,
            Self::Errno(errno) => 0x0005_0000 | u32::from(errno),
            Self::Trace(data) => 0x7ff0_0000 | u32::from(data),
            Self::Log => 0x7ffc_0000,
            Self::Allow => 0x7fff_0000,
        }
    }
}
