//! Users, groups and profiles (rows F024 to F040, F066 to F069).

use berth_cri_api::v1;

use super::{Abilities, At, Error, SelinuxOptions};
use crate::model::{AppArmorProfile, GroupsPolicy, SeccompProfile};

/// The prefix of the older text forms, which some clients put before the newer ones too (row G030).
const LOCALHOST: &str = "localhost/";

/// The system call filter: the newer field wins over the older text, and nothing means none (row F031).
pub(super) fn seccomp(
    at: &At<'_>,
    profile: Option<v1::SecurityProfile>,
    older: String,
) -> Result<SeccompProfile, Error> {
    let at_profile = at.field("seccomp");
    if let Some(profile) = profile {
        let kind = at_profile
            .field("profile_type")
            .known(profile.profile_type)?;
        return match kind {
            v1::security_profile::ProfileType::RuntimeDefault => Ok(SeccompProfile::RuntimeDefault),
            v1::security_profile::ProfileType::Unconfined => Ok(SeccompProfile::Unconfined),
            v1::security_profile::ProfileType::Localhost => {
                file(&at_profile.field("localhost_ref"), &profile.localhost_ref)
            }
        };
    }
    let at_older = at.field("seccomp_profile_path");
    match older.as_str() {
        "" | "unconfined" => Ok(SeccompProfile::Unconfined),
        "runtime/default" | "docker/default" => Ok(SeccompProfile::RuntimeDefault),
        other if other.starts_with(LOCALHOST) => file(&at_older, other),
        other => Err(at_older.invalid(format!("{other:?} is not a seccomp profile"))),
    }
}

fn file(at: &At<'_>, name: &str) -> Result<SeccompProfile, Error> {
    let name = name.strip_prefix(LOCALHOST).unwrap_or(name);
    if !name.starts_with('/') {
        return Err(at.invalid(format!("{name:?} is not an absolute file name")));
    }
    Ok(SeccompProfile::Localhost(at.text(name.to_owned())?))
}

/// The AppArmor profile: the newer field wins over the older text.
///
/// On a host without AppArmor whoever names a profile counts on it and is refused, the default one too: the
/// kubelet sends RuntimeDefault only for a pod that asks for it, and itself turns such a pod away there. What
/// means unconfined passes: nothing said, Unconfined, and RuntimeDefault for a privileged container. Whether
/// a named profile is loaded is seen when it is applied.
pub(super) fn apparmor(
    at: &At<'_>,
    profile: Option<v1::SecurityProfile>,
    older: &str,
    privileged: bool,
    abilities: Abilities,
) -> Result<AppArmorProfile, Error> {
    let newer = profile.is_some();
    let at = at.field(if newer {
        "apparmor"
    } else {
        "apparmor_profile"
    });
    let wanted = match profile {
        Some(profile) => match at.field("profile_type").known(profile.profile_type)? {
            v1::security_profile::ProfileType::RuntimeDefault => AppArmorProfile::RuntimeDefault,
            v1::security_profile::ProfileType::Unconfined => AppArmorProfile::Unconfined,
            v1::security_profile::ProfileType::Localhost => {
                loaded(&at.field("localhost_ref"), &profile.localhost_ref)?
            }
        },
        None => match older {
            "" => AppArmorProfile::Unset,
            "runtime/default" => AppArmorProfile::RuntimeDefault,
            "unconfined" => AppArmorProfile::Unconfined,
            other if other.starts_with(LOCALHOST) => loaded(&at, other)?,
            other => return Err(at.invalid(format!("{other:?} is not an AppArmor profile"))),
        },
    };
    let counted_on = match &wanted {
        AppArmorProfile::Unset | AppArmorProfile::Unconfined => None,
        AppArmorProfile::RuntimeDefault if privileged => None,
        AppArmorProfile::RuntimeDefault => Some("RuntimeDefault"),
        AppArmorProfile::Localhost(name) => Some(name.as_str()),
    };
    match counted_on.filter(|_| !abilities.apparmor) {
        None => Ok(wanted),
        Some(name) => Err(at.invalid(format!(
            "names the profile {name:?}, but AppArmor is not enabled on this host; \
             leave the profile out, or use a node that has AppArmor"
        ))),
    }
}

fn loaded(at: &At<'_>, name: &str) -> Result<AppArmorProfile, Error> {
    let name = name.strip_prefix(LOCALHOST).unwrap_or(name);
    let name = at.line(at.filled(name.to_owned())?)?;
    Ok(AppArmorProfile::Localhost(name))
}

/// Labels are refused where SELinux enforces: somebody counts on them. Elsewhere nothing would come of them,
/// and charts send them to every machine (ADR 17).
pub(super) fn selinux(
    at: &At<'_>,
    options: Option<v1::SeLinuxOption>,
    abilities: Abilities,
) -> Result<(), Error> {
    match options {
        Some(some) if some != v1::SeLinuxOption::default() => labelled(at, abilities),
        _ => Ok(()),
    }
}

/// For a field that asks for a label.
pub(super) fn labelled(at: &At<'_>, abilities: Abilities) -> Result<(), Error> {
    match abilities.selinux {
        SelinuxOptions::Ignored => Ok(()),
        SelinuxOptions::Refused => Err(at.not_built(
            "SELinux enforces on this machine, and SELinux labels are not built into this version of Berth: \
             the configuration key containers.selinux = \"off\" runs containers without them",
        )),
    }
}

/// A user or group that may be absent.
pub(super) fn id(at: &At<'_>, value: Option<v1::Int64Value>) -> Result<Option<u32>, Error> {
    value.map(|v| number(at, v.value)).transpose()
}

/// Supplementary groups.
pub(super) fn groups(at: &At<'_>, ids: Vec<i64>) -> Result<Vec<u32>, Error> {
    let ids = ids.into_iter().enumerate();
    ids.map(|(i, id)| number(&at.index(i), id)).collect()
}

/// What they mean.
pub(super) fn groups_policy(at: &At<'_>, number: i32) -> Result<GroupsPolicy, Error> {
    Ok(match at.known(number)? {
        v1::SupplementalGroupsPolicy::Merge => GroupsPolicy::Merge,
        v1::SupplementalGroupsPolicy::Strict => GroupsPolicy::Strict,
    })
}

/// The largest 32-bit number means "no change" to the kernel (setresuid(2)) and is nobody's id.
fn number(at: &At<'_>, id: i64) -> Result<u32, Error> {
    u32::try_from(id)
        .ok()
        .filter(|id| *id != u32::MAX)
        .ok_or_else(|| at.invalid(format!("{id} is not a user or group id")))
}
