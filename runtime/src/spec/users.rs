//! Users and groups, resolved in the container's own `/etc/passwd` and `/etc/group`.
//!
//! Both files come from the image: they are hostile bytes. The caller reads them below the root with
//! openat2(2), regular files only, and at most [`MAX_FILE`] bytes (CVE-2026-47262); here nothing is
//! read twice as a number and as a name (CVE-2026-46680), and no number wraps (CVE-2024-40635).
//!
//! Otherwise the lines are read as every other runtime reads them (ADR 17): space around a line does not
//! count, fields may be missing, numbers may have leading zeros. What those take for 0 because it is no
//! number is refused here where it matters, for 0 is root.

use crate::model::{ContainerUser, GroupsPolicy, UserRequest};

/// Bytes of `/etc/passwd` or `/etc/group` that are looked at; a longer file is an error of the reader.
pub const MAX_FILE: u64 = 10 << 20;

/// The kernel takes no more supplementary groups (NGROUPS_MAX, setgroups(2)).
pub const MAX_GROUPS: usize = 65_536;

/// The highest id that a container is given as its own: what fits a signed 32-bit number, as Kubernetes
/// validates it.
const MAX_ID: u32 = i32::MAX.unsigned_abs();

/// The highest id there is: the next one means "no change" to the kernel (setresgid(2)).
const MAX_KERNEL_ID: u32 = u32::MAX - 1;

/// A hostile file has as many lines as it likes; as many are told of.
const MAX_WARNINGS: usize = 8;

/// Characters of a foreign text in a message.
const SHOWN: usize = 100;

/// Why a user cannot be resolved.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UserError {
    /// Both forms given.
    #[error("a user id and a user name were both given: only one of them may be")]
    Both,
    /// A group without a user.
    #[error("a group was given without a user: run_as_group needs run_as_user or run_as_username")]
    GroupWithoutUser,
    /// More than a user and a group.
    #[error(
        "{0:?} is not a user: \"user\" or \"user:group\" is wanted, each by name or number, with one group at most"
    )]
    Form(String),
    /// A number that is no id.
    #[error("{0:?} is not a user or group id: a number from 0 to 2147483647 is wanted")]
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
    /// A line that would have to be guessed at.
    #[error(
        "line {line} of the image's {file}, {name:?}: {why}; correct it in the image, or give a numeric user and group"
    )]
    Line {
        /// Which file.
        file: &'static str,
        /// Which line, from 1.
        line: usize,
        /// The line's first field.
        name: String,
        /// What is wrong with it.
        why: String,
    },
    /// More groups than the kernel takes.
    #[error("the user is in {0} groups, but the kernel allows 65536")]
    TooManyGroups(usize),
}

/// The credentials of a container's first process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// Who it runs as.
    pub user: ContainerUser,
    /// What was filled in where the image's files say nothing, in sentences.
    pub warnings: Vec<String>,
}

/// Finds out who a container runs as.
///
/// The request wins over the image's `USER` (`user[:group]`); neither means root, with group 0. `passwd`
/// and `group` are the files' bytes, `None` where there is no such file.
///
/// # Errors
/// See [`UserError`].
pub fn resolve(
    passwd: Option<&[u8]>,
    group: Option<&[u8]>,
    request: &UserRequest,
    image_user: &str,
) -> Result<Resolved, UserError> {
    let (passwd, group) = (passwd.unwrap_or_default(), group.unwrap_or_default());
    let asked = asked(request, image_user)?;
    let mut warnings = Vec::new();
    let (uid, account) = match asked.user {
        Some(Named::Text(name)) => {
            let account = accounts(passwd).find(|line| line.name() == name.as_bytes());
            let account = account.ok_or_else(|| UserError::NoUser(shown(name)))?;
            (account.uid()?, Some(account))
        }
        Some(Named::Id(uid)) => (uid, with_uid(passwd, uid)),
        None => (0, with_uid(passwd, 0)),
    };
    let gid = match (asked.group, &account) {
        (Some(Named::Id(gid)), _) => gid,
        (Some(Named::Text(name)), _) => {
            let found = groups_of(group).find(|line| line.name() == name.as_bytes());
            let found = found.ok_or_else(|| UserError::NoGroup(shown(name)))?;
            found.gid(GID_OF_GROUP, MAX_ID, &mut warnings)?
        }
        // As in containerd: who asks for nothing is root as it always was, whatever its line says.
        (None, Some(account)) if asked.user.is_some() => {
            account.gid(GID_OF_ACCOUNT, MAX_ID, &mut warnings)?
        }
        (None, _) => 0,
    };
    // As in containerd: the primary group is among the others too, unless nothing but others was asked for.
    let only_others = asked.is_nothing() && request.policy == GroupsPolicy::Strict;
    let mut groups = Vec::from_iter((!only_others).then_some(gid));
    for &extra in &request.supplemental_groups {
        groups.push(in_range(extra)?);
    }
    if let (GroupsPolicy::Merge, Some(account)) = (request.policy, &account) {
        for line in memberships(group, account.name()) {
            groups.push(line.gid(GID_OF_GROUP, MAX_KERNEL_ID, &mut warnings)?);
        }
    }
    groups.sort_unstable();
    groups.dedup();
    if groups.len() > MAX_GROUPS {
        return Err(UserError::TooManyGroups(groups.len()));
    }
    // As in runc: root's directory need not be there either where no account says so.
    let home = account.as_ref().and_then(Line::home).unwrap_or("/");
    let user = ContainerUser {
        uid,
        gid,
        groups,
        home: home.to_owned(),
    };
    Ok(Resolved { user, warnings })
}

/// A user or group, as somebody names it.
#[derive(Clone, Copy)]
enum Named<'a> {
    Id(u32),
    Text(&'a str),
}

struct Asked<'a> {
    user: Option<Named<'a>>,
    group: Option<Named<'a>>,
}

impl Asked<'_> {
    fn is_nothing(&self) -> bool {
        self.user.is_none() && self.group.is_none()
    }
}

fn asked<'a>(request: &'a UserRequest, image_user: &'a str) -> Result<Asked<'a>, UserError> {
    let own_group = request.gid.map(in_range).transpose()?.map(Named::Id);
    // A name that is asked for may have a group behind it as the image's may, for it does in containerd.
    let text = match (request.uid, request.username.as_str()) {
        (Some(_), name) if !name.is_empty() => return Err(UserError::Both),
        (Some(uid), _) => {
            return Ok(Asked {
                user: Some(Named::Id(in_range(uid)?)),
                group: own_group,
            });
        }
        (None, "") if request.gid.is_some() => return Err(UserError::GroupWithoutUser),
        (None, "") => image_user,
        (None, name) => name,
    };
    let (user, group) = match text.split_once(':') {
        None => (text, own_group),
        Some((user, group)) if own_group.is_none() && !group.contains(':') => (user, named(group)?),
        Some(_) => return Err(UserError::Form(shown(text))),
    };
    Ok(Asked {
        user: named(user)?,
        group,
    })
}

/// What is a number is never looked up as a name; nothing at all asks for nothing.
fn named(text: &str) -> Result<Option<Named<'_>>, UserError> {
    match number(text.as_bytes()) {
        _ if text.is_empty() => Ok(None),
        None => Ok(Some(Named::Text(text))),
        Some(id) => match u32::try_from(id) {
            Ok(id) if id <= MAX_ID => Ok(Some(Named::Id(id))),
            _ => Err(UserError::OutOfRange(shown(text))),
        },
    }
}

/// A number as Go's `strconv.Atoi` takes it: a sign and digits. What is too large for any id stays too large.
fn number(text: &[u8]) -> Option<i64> {
    let (sign, digits) = match text {
        [b'-', digits @ ..] => (-1, digits),
        [b'+', digits @ ..] => (1, digits),
        digits => (1, digits),
    };
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let append = |number: i64, digit: &u8| {
        let digit = i64::from(digit - b'0');
        number.saturating_mul(10).saturating_add(digit)
    };
    Some(sign * digits.iter().fold(0, append))
}

fn in_range(id: u32) -> Result<u32, UserError> {
    if id > MAX_ID {
        return Err(UserError::OutOfRange(id.to_string()));
    }
    Ok(id)
}

fn shown(text: &str) -> String {
    text.chars().take(SHOWN).collect()
}

/// Place of the group id in a line of `/etc/passwd` (passwd(5)).
const GID_OF_ACCOUNT: usize = 3;
/// Place of the group id in a line of `/etc/group` (group(5)).
const GID_OF_GROUP: usize = 2;

/// A line of one of the files. Fields that are not there are empty.
struct Line<'a> {
    file: &'static str,
    number: usize,
    fields: [&'a [u8]; 6],
}

impl<'a> Line<'a> {
    fn name(&self) -> &'a [u8] {
        self.fields[0]
    }

    fn members(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        self.fields[3].split(|&b| b == b',')
    }

    fn home(&self) -> Option<&'a str> {
        let home = std::str::from_utf8(self.fields[5]).ok()?;
        (home.starts_with('/') && !home.chars().any(char::is_control)).then_some(home)
    }

    fn uid(&self) -> Result<u32, UserError> {
        let uid = self.id("user", self.fields[2], MAX_ID)?;
        uid.ok_or_else(|| self.wrong("it has no user id".to_owned()))
    }

    /// The group id, up to the highest one that is allowed; none at all is 0.
    fn gid(
        &self,
        field: usize,
        highest: u32,
        warnings: &mut Vec<String>,
    ) -> Result<u32, UserError> {
        let gid = self.id("group", self.fields[field], highest)?;
        if gid.is_none() && warnings.len() < MAX_WARNINGS {
            let (file, number, name) = (self.file, self.number, text(self.name()));
            warnings.push(format!(
                "line {number} of the image's {file}, {name:?}, has no group id: 0 is taken"
            ));
        }
        Ok(gid.unwrap_or(0))
    }

    fn id(&self, what: &str, field: &[u8], highest: u32) -> Result<Option<u32>, UserError> {
        if field.is_empty() {
            return Ok(None);
        }
        let given = text(field);
        let id = number(field)
            .ok_or_else(|| self.wrong(format!("its {what} id {given:?} is not a number")))?;
        match u32::try_from(id) {
            Ok(id) if id <= highest => Ok(Some(id)),
            _ => Err(self.wrong(format!(
                "its {what} id {given:?} is not from 0 to {highest}"
            ))),
        }
    }

    fn wrong(&self, why: String) -> UserError {
        UserError::Line {
            file: self.file,
            line: self.number,
            name: text(self.name()),
            why,
        }
    }
}

fn text(field: &[u8]) -> String {
    shown(&String::from_utf8_lossy(
        &field[..field.len().min(4 * SHOWN)],
    ))
}

fn lines<'a>(file: &'static str, bytes: &'a [u8]) -> impl Iterator<Item = Line<'a>> {
    let lines = bytes.split(|&b| b == b'\n').zip(1..);
    lines.filter_map(move |(line, number)| {
        let line = trim(line);
        let mut fields = [&line[..0]; 6];
        for (field, text) in fields.iter_mut().zip(line.split(|&b| b == b':')) {
            *field = text;
        }
        (!line.is_empty()).then_some(Line {
            file,
            number,
            fields,
        })
    })
}

/// Without the white space at its ends, as Go's `TrimSpace` sees it: Unicode's, of which each takes up to three bytes.
fn trim(mut line: &[u8]) -> &[u8] {
    let is_space = |bytes: &[u8]| {
        let text = std::str::from_utf8(bytes).unwrap_or_default();
        let mut chars = text.chars();
        chars.next().is_some_and(char::is_whitespace) && chars.next().is_none()
    };
    let lengths = |line: &[u8]| 1..=line.len().min(3);
    while let Some(n) = lengths(line).find(|n| is_space(&line[..*n])) {
        line = &line[n..];
    }
    while let Some(n) = lengths(line).find(|n| is_space(&line[line.len() - n..])) {
        line = &line[..line.len() - n];
    }
    line
}

fn accounts(passwd: &[u8]) -> impl Iterator<Item = Line<'_>> {
    lines("/etc/passwd", passwd)
}

/// The first account with that number. A line whose own is none, or no id, has another one.
fn with_uid(passwd: &[u8], uid: u32) -> Option<Line<'_>> {
    accounts(passwd).find(|line| number(line.fields[2]) == Some(uid.into()))
}

/// Here, and in the other file not, a comment is one to the other runtimes.
fn groups_of(group: &[u8]) -> impl Iterator<Item = Line<'_>> {
    lines("/etc/group", group).filter(|line| !line.name().starts_with(b"#"))
}

/// The groups that list `name` as a member, but for the one of its own name: to containerd that is no supplementary one.
fn memberships<'a>(group: &'a [u8], name: &'a [u8]) -> impl Iterator<Item = Line<'a>> {
    let mine = move |line: &Line<'_>| line.members().any(|member| member == name);
    groups_of(group).filter(move |line| !name.is_empty() && line.name() != name && mine(line))
}

#[cfg(test)]
mod tests;
