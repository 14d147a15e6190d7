//! What was seen of a case on one runtime, with the names that belong to that runtime taken out.

use std::collections::BTreeMap;

use crate::pods::Ctr;
use crate::runtime::Instance;

/// What was seen, by name.
pub type View = BTreeMap<String, String>;

/// Takes out of texts what is each runtime's own: ids, folders, names, addresses.
#[derive(Debug, Default)]
pub struct Names(Vec<(String, String)>);

impl Names {
    /// What is an instance's own.
    #[must_use]
    pub fn of(instance: &Instance) -> Self {
        let mut names = Self::default();
        names.add(&instance.folder().display().to_string(), "FOLDER");
        let subnet = instance.subnet();
        names.add(&subnet, "SUBNET");
        let network = subnet.split('/').next().unwrap_or_default();
        names.add(&format!("{}.", network.trim_end_matches(".0")), "NETWORK.");
        names.add(&instance.name, "INSTANCE");
        for kind in ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"] {
            let ours = std::fs::read_link(format!("/proc/self/ns/{kind}"));
            if let Ok(ours) = ours {
                names.add(&ours.display().to_string(), "of the host");
            }
        }
        names
    }

    /// A text of the runtime's own, and what stands for it.
    pub fn add(&mut self, own: &str, name: &str) {
        if !own.is_empty() {
            self.0.push((own.to_owned(), name.to_owned()));
        }
    }

    /// What others gathered, after what is there.
    pub fn add_all(&mut self, others: Self) {
        self.0.extend(others.0);
    }

    /// The text without what is the runtime's own.
    #[must_use]
    pub fn plain(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for (own, name) in &self.0 {
            text = text.replace(own.as_str(), name);
        }
        text
    }
}

/// Puts the lines of a probe into the view, each name with `prefix` before it.
pub fn add_probe(view: &mut View, names: &Names, prefix: &str, text: &str) {
    let mut mounts = Vec::new();
    for line in text.lines() {
        let Some((key, value)) = line.split_once('\t') else {
            continue;
        };
        let value = names.plain(value.trim_end_matches('\r'));
        let (key, value) = match key {
            "mountinfo" => {
                mounts.extend(Mount::parse(&value));
                continue;
            }
            "limits" => limit(&value),
            // The host's terminals are numbered.
            "tty" | "fd.0" | "fd.1" | "fd.2" => (key.to_owned(), unnumbered(&value)),
            "stat./dev/console" => (key.to_owned(), unnumbered(&value)),
            key if key.starts_with("ns.") => (key.to_owned(), namespace(&value)),
            // Of several lines, each is there or not.
            "env" | "text" | "cgroup" | "device" | "controller" | "interface" | "address"
            | "route" | "process" => (format!("{key}: {value}"), "there".to_owned()),
            key if key.starts_with("text.") => (format!("{key}: {value}"), "there".to_owned()),
            key => (key.to_owned(), value),
        };
        insert(view, format!("{prefix}{key}"), value);
    }
    for mount in mounts.iter().filter(|mount| mount.is_seen(&mounts)) {
        view.insert(format!("{prefix}mount.{}", mount.point), mount.text.clone());
        view.insert(
            format!("{prefix}sharing.{}", mount.point),
            mount.sharing.clone(),
        );
    }
}

/// The text without the numbers after the last `/` or `,` of each word.
fn unnumbered(text: &str) -> String {
    let word = |word: &str| match word.rfind(['/', ',']) {
        Some(at) if word[at + 1..].bytes().all(|byte| byte.is_ascii_digit()) => {
            word[..=at].to_owned()
        }
        _ => word.to_owned(),
    };
    text.split(' ').map(word).collect::<Vec<_>>().join(" ")
}

fn insert(view: &mut View, mut name: String, value: String) {
    while view.contains_key(&name) {
        name.push_str(" (again)");
    }
    view.insert(name, value);
}

/// A namespace of the container's own has another number in every runtime.
fn namespace(link: &str) -> String {
    if link.contains("of the host") || link.is_empty() {
        link.to_owned()
    } else {
        "another".to_owned()
    }
}

/// `Max open files   1024   4096   files`: the name, and both limits.
fn limit(line: &str) -> (String, String) {
    let (name, rest) = line.split_at_checked(26).unwrap_or((line, ""));
    let rest = rest.split_whitespace().collect::<Vec<_>>().join(" ");
    (format!("rlimit.{}", name.trim()), rest)
}

/// A line of mountinfo (proc(5)).
struct Mount {
    id: u32,
    parent: u32,
    point: String,
    /// Type, options, and what of the rest is not a number or a folder of the runtime's.
    text: String,
    sharing: String,
}

impl Mount {
    fn parse(line: &str) -> Option<Self> {
        let (front, back) = line.split_once(" - ")?;
        let front: Vec<&str> = front.split(' ').collect();
        let back: Vec<&str> = back.split(' ').collect();
        let [id, parent, _, root, point, options, ref sharing @ ..] = front[..] else {
            return None;
        };
        let kind = *back.first()?;
        let details = match kind {
            "tmpfs" | "devpts" => back.get(2).copied().unwrap_or_default(),
            "cgroup" => root,
            _ => "",
        };
        let text = format!("{kind} {options} {details}");
        let sharing: Vec<&str> = sharing
            .iter()
            .map(|field| field.split(':').next().unwrap_or(field))
            .collect();
        Some(Self {
            id: id.parse().ok()?,
            parent: parent.parse().ok()?,
            point: point.to_owned(),
            text: text.trim_end().to_owned(),
            sharing: sharing.join(","),
        })
    }

    /// Whether it is what is found at its place, under no other mount.
    fn is_seen(&self, all: &[Self]) -> bool {
        let top = |id: u32| all.iter().any(|mount| mount.id == id);
        let Some(root) = all.iter().find(|mount| !top(mount.parent)) else {
            return false;
        };
        let ends = self.point.match_indices('/').skip(1).map(|(at, _)| at);
        let ways = ends.chain([self.point.len()]).map(|end| &self.point[..end]);
        let mut here = root.id;
        for way in std::iter::once("/").chain(ways) {
            while let Some(next) = all
                .iter()
                .find(|mount| mount.parent == here && mount.point == way && mount.id != here)
            {
                here = next.id;
            }
        }
        here == self.id
    }
}

/// Puts the fields of a container's status that do not depend on time into the view.
///
/// # Errors
/// As the runtime answers.
pub async fn add_status(view: &mut View, names: &Names, container: &Ctr) -> anyhow::Result<()> {
    let status = container.status().await?;
    let mut add = |key: &str, value: String| {
        view.insert(format!("status/{key}"), names.plain(&value));
    };
    add("state", format!("{:?}", status.state()));
    add("exit_code", status.exit_code.to_string());
    add("reason", status.reason.clone());
    add(
        "image",
        format!("{:?}", status.image.map(|image| image.image)),
    );
    add("image_ref", status.image_ref.clone());
    add("labels", format!("{:?}", status.labels));
    add("annotations", format!("{:?}", status.annotations));
    add("log_path", status.log_path.clone());
    add("stop_signal", format!("{:?}", status.stop_signal));
    add("user", format!("{:?}", status.user));
    if let Some(linux) = status.resources.and_then(|resources| resources.linux) {
        let text = format!("{linux:#?}");
        for (name, value) in text.lines().filter_map(|line| line.trim().split_once(": ")) {
            add(&format!("resources.{name}"), value.to_owned());
        }
    }
    for mount in &status.mounts {
        add(
            &format!("mount.{}", mount.container_path),
            format!("{mount:?}"),
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_become_names_and_values() {
        let mut names = Names::default();
        names.add("/tmp/bt-x", "FOLDER");
        let mut view = View::new();
        let text = "pwd\t/tmp/bt-x/a\nenv\tA=1\nenv\tA=1\nnothing\n\
                    mountinfo\t35 1 98:0 / / rw - overlay none rw\n\
                    mountinfo\t36 37 98:0 /r /data rw,nosuid master:1 - tmpfs none rw,size=1k\n\
                    mountinfo\t37 35 98:0 /r /data rw - ext4 none rw\n\
                    mountinfo\t38 37 98:0 /r /data/hidden rw - ext4 none rw\n\
                    limits\tMax open files            1024                 4096                 files\n";
        add_probe(&mut view, &names, "", text);
        let expected = [
            ("env: A=1", "there"),
            ("env: A=1 (again)", "there"),
            ("mount./", "overlay rw"),
            ("mount./data", "tmpfs rw,nosuid rw,size=1k"),
            ("pwd", "FOLDER/a"),
            ("rlimit.Max open files", "1024 4096 files"),
            ("sharing./", ""),
            ("sharing./data", "master"),
        ];
        let expected = expected.map(|(key, value)| (key.to_owned(), value.to_owned()));
        assert_eq!(view, expected.into());
    }
}
