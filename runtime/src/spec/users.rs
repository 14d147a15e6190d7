//! Users and groups, resolved in the container's own `/etc/passwd` and `/etc/group`.
//!
//! Both files come from the image: they are hostile bytes. The caller reads them below the root with
//! openat2(2), regular files only, and at most [`MAX_FILE`] bytes (CVE-2026-47262); here nothing is
//! read twice as a number and as a name (CVE-2026-46680), and no number wraps (CVE-2024-40635).

use crate::model::{ContainerUser, GroupsPolicy, UserRequest};

/// Bytes of `/etc/passwd` or `/etc/group` that are looked at; a longer file is an error of the reader.
pub const MAX_FILE: u64 = 10 << 20;

/// The kernel takes no more supplementary groups (NGROUPS_MAX, setgroups(2)).
pub const MAX_GROUPS: usize = 65_536;

/// The highest id: what fits a signed 32-bit number, as Kubernetes validates it.
const MAX_ID: u32 = i32::MAX.unsigned_abs();

/// Why a user cannot be resolved.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UserError {
    /// Both forms given.
    #[error("a user id and a user name were both given: only one of them may be")]
    Both,
    /// A group without a user.
    #[error("a group was given without a user: run_as_group needs run_as_user or run_as_username")]
    GroupWithoutUser,
    /// A number that is no id.
    #[error(
        "{0:?} is not a user or group id: a number from 0 to 2147483647 without leading zeros is wanted"
    )]
    OutOfRange(String),
    /// Not in the file.
    #[error(
        "user {0:?} is not in the image's /etc/passwd: give a numeric id or add the user to the image"
    )]
    NoUser(String),
    /// Not in the file.
    #[error(
        "group {0:?} is not in the image's /etc/group: give a numeric id or add the group to the image"
    )]
    NoGroup(String),
    /// More groups than the kernel takes.
    #[error("the user is in {0} groups, but the kernel allows 65536")]
    TooManyGroups(usize),
}

struct Account<'a> {
    name: &'a [u8],
    uid: u32,
    gid: u32,
    home: &'a [u8],
}

/// The credentials of a container's first process.
///
/// The request wins over the image's `USER` (`user[:group]`); neither means root. `passwd` and `group`
/// are the files' bytes, `None` where there is no such file.
///
/// # Errors
/// See [`UserError`].
pub fn resolve(
    passwd: Option<&[u8]>,
    group: Option<&[u8]>,
    request: &UserRequest,
    image_user: &str,
) -> Result<ContainerUser, UserError> {
    let (passwd, group) = (passwd.unwrap_or_default(), group.unwrap_or_default());
    let asked = asked(request, image_user)?;
    let (uid, account) = user(passwd, asked.user)?;
    let gid = match (request.gid, asked.group) {
        (Some(gid), _) => in_range(gid)?,
        (None, Some(name)) => group_id(group, name)?,
        (None, None) => account
            .as_ref()
            .map_or(Ok(0), |account| in_range(account.gid))?,
    };
    let mut groups = vec![gid];
    for &extra in &request.supplemental_groups {
        groups.push(in_range(extra)?);
    }
    if let (GroupsPolicy::Merge, Some(account)) = (request.policy, &account) {
        groups.extend(memberships(group, account.name));
    }
    groups.sort_unstable();
    groups.dedup();
    if groups.len() > MAX_GROUPS {
        return Err(UserError::TooManyGroups(groups.len()));
    }
    let home = account
        .as_ref()
        .and_then(home)
        .unwrap_or(if uid == 0 { "/root" } else { "/" });
    Ok(ContainerUser {
        uid,
        gid,
        groups,
        home: home.to_owned(),
    })
}

enum Asked<'a> {
    Id(u32),
    Text(&'a str),
}

struct Who<'a> {
    user: Asked<'a>,
    group: Option<&'a str>,
}

fn asked<'a>(request: &'a UserRequest, image_user: &'a str) -> Result<Who<'a>, UserError> {
    match (request.uid, request.username.as_str()) {
        (Some(_), name) if !name.is_empty() => Err(UserError::Both),
        (Some(uid), _) => Ok(Who {
            user: Asked::Id(in_range(uid)?),
            group: None,
        }),
        (None, "") if request.gid.is_some() => Err(UserError::GroupWithoutUser),
        (None, "") => {
            let (user, group) = match image_user.split_once(':') {
                Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
                None => (image_user, None),
            };
            let user = if user.is_empty() {
                Asked::Id(0)
            } else {
                Asked::Text(user)
            };
            Ok(Who { user, group })
        }
        (None, name) => Ok(Who {
            user: Asked::Text(name),
            group: None,
        }),
    }
}

fn user<'a>(passwd: &'a [u8], asked: Asked<'_>) -> Result<(u32, Option<Account<'a>>), UserError> {
    let uid = match asked {
        Asked::Id(uid) => uid,
        Asked::Text(text) => match number(text)? {
            Some(uid) => uid,
            None => {
                let account = accounts(passwd).find(|account| account.name == text.as_bytes());
                let account = account.ok_or_else(|| UserError::NoUser(shown(text)))?;
                return Ok((in_range(account.uid)?, Some(account)));
            }
        },
    };
    Ok((uid, accounts(passwd).find(|account| account.uid == uid)))
}

fn group_id(group: &[u8], text: &str) -> Result<u32, UserError> {
    if let Some(gid) = number(text)? {
        return Ok(gid);
    }
    let found = groups(group).find(|(name, ..)| *name == text.as_bytes());
    let (_, gid, _) = found.ok_or_else(|| UserError::NoGroup(shown(text)))?;
    in_range(gid)
}

/// The groups that list `name` as a member.
fn memberships<'a>(group: &'a [u8], name: &'a [u8]) -> impl Iterator<Item = u32> + 'a {
    let mine = groups(group)
        .filter(move |(_, _, members)| members.split(|&b| b == b',').any(|member| member == name));
    mine.map(|(_, gid, _)| gid).filter(|&gid| gid <= MAX_ID)
}

fn home<'a>(account: &Account<'a>) -> Option<&'a str> {
    let home = std::str::from_utf8(account.home).ok()?;
    (home.starts_with('/') && !home.chars().any(char::is_control)).then_some(home)
}

/// Text of digits only is a number and never a name; `None` means it is a name.
fn number(text: &str) -> Result<Option<u32>, UserError> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return Ok(None);
    }
    let wrong = || UserError::OutOfRange(shown(text));
    if text.len() > 1 && text.starts_with('0') {
        return Err(wrong());
    }
    in_range(text.parse().map_err(|_| wrong())?).map(Some)
}

fn in_range(id: u32) -> Result<u32, UserError> {
    if id > MAX_ID {
        return Err(UserError::OutOfRange(id.to_string()));
    }
    Ok(id)
}

fn shown(text: &str) -> String {
    text.chars().take(100).collect()
}

fn accounts(passwd: &[u8]) -> impl Iterator<Item = Account<'_>> {
    passwd.split(|&b| b == b'\n').filter_map(|line| {
        let mut fields = line.split(|&b| b == b':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let uid = id_field(fields.nth(1)?)?;
        let gid = id_field(fields.next()?)?;
        let home = fields.nth(1).unwrap_or_default();
        Some(Account {
            name,
            uid,
            gid,
            home,
        })
    })
}

fn groups(group: &[u8]) -> impl Iterator<Item = (&[u8], u32, &[u8])> {
    group.split(|&b| b == b'\n').filter_map(|line| {
        let mut fields = line.split(|&b| b == b':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let gid = id_field(fields.nth(1)?)?;
        Some((name, gid, fields.next().unwrap_or_default()))
    })
}

/// A line whose id is not a plain number is no account at all.
fn id_field(field: &[u8]) -> Option<u32> {
    if field.is_empty() || !field.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(field).ok()?.parse().ok()
}

#[cfg(test)]
mod tests;
