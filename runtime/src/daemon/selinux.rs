//! What becomes of SELinux options, as long as Berth labels nothing.

use crate::config::SelinuxSetting;
use crate::cri::{Condition, SelinuxOptions};
use crate::host::{Selinux, SelinuxMode};

/// The key that decides, and its value that runs containers without labels.
const KEY: &str = "containers.selinux = \"off\"";

/// SELinux on this machine, and what the operator wants of it.
#[derive(Clone, Debug)]
pub(super) struct Labels {
    pub(super) host: Selinux,
    pub(super) setting: SelinuxSetting,
}

impl Labels {
    /// Options that ask for labels are left aside where nothing would come of labels, or where the operator
    /// says so (ADR 17).
    pub(super) fn options(&self) -> SelinuxOptions {
        match (self.host.mode(), self.setting) {
            (SelinuxMode::Enforcing, SelinuxSetting::Auto) => SelinuxOptions::Refused,
            _ => SelinuxOptions::Ignored,
        }
    }

    /// Whether containers can be run as the machine's SELinux wants it.
    pub(super) fn condition(&self) -> Condition {
        match self.options() {
            SelinuxOptions::Ignored => Condition::ready(),
            SelinuxOptions::Refused => Condition {
                ready: false,
                reason: "SELinuxEnforcing".to_owned(),
                message: format!(
                    "SELinux enforces on this machine, and this version of Berth does not label containers: \
                     set {KEY} in the configuration to run them without labels, and start berth again"
                ),
            },
        }
    }

    /// What somebody who looks for the cause of a surprise should know.
    pub(super) fn notice(&self) -> Option<String> {
        let mode = match (self.host.mode(), self.setting) {
            (SelinuxMode::Off, _) => return None,
            (SelinuxMode::Permissive, _) => "SELinux is permissive",
            (SelinuxMode::Enforcing, SelinuxSetting::Off) => {
                "SELinux enforces, but the configuration says containers.selinux = \"off\""
            }
            (SelinuxMode::Enforcing, SelinuxSetting::Auto) => {
                return Some(self.condition().message);
            }
        };
        Some(format!(
            "{mode}: containers run without labels, and the SELinux options of pods are ignored"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(setting: SelinuxSetting, enforce: Option<&str>) -> (tempfile::TempDir, Labels) {
        let dir = tempfile::tempdir().unwrap();
        let host = enforce.map_or_else(Selinux::default, |text| {
            let file = dir.path().join("enforce");
            std::fs::write(&file, text).unwrap();
            Selinux::at(file)
        });
        (dir, Labels { host, setting })
    }

    #[test]
    fn off_says_nothing_and_ignores_options() {
        for setting in [SelinuxSetting::Auto, SelinuxSetting::Off] {
            let (_dir, labels) = labels(setting, None);
            assert_eq!(labels.options(), SelinuxOptions::Ignored);
            assert_eq!(labels.condition(), Condition::ready());
            assert_eq!(labels.notice(), None);
        }
    }

    #[test]
    fn permissive_is_a_notice() {
        for setting in [SelinuxSetting::Auto, SelinuxSetting::Off] {
            let (_dir, labels) = labels(setting, Some("0"));
            assert_eq!(labels.options(), SelinuxOptions::Ignored);
            assert_eq!(labels.condition(), Condition::ready());
            let notice = labels.notice().unwrap();
            assert!(notice.starts_with("SELinux is permissive: containers run without labels"));
        }
    }

    #[test]
    fn enforcing_is_not_ready_unless_the_operator_says_so() {
        let (dir, refusing) = labels(SelinuxSetting::Auto, Some("1"));
        assert_eq!(refusing.options(), SelinuxOptions::Refused);
        let told = refusing.condition();
        assert_eq!(
            (told.ready, told.reason.as_str()),
            (false, "SELinuxEnforcing")
        );
        assert!(told.message.contains("containers.selinux = \"off\""));
        assert_eq!(refusing.notice(), Some(told.message));
        // setenforce 0
        std::fs::write(dir.path().join("enforce"), "0").unwrap();
        assert_eq!(refusing.condition(), Condition::ready());

        let (_dir, without) = labels(SelinuxSetting::Off, Some("1"));
        assert_eq!(without.options(), SelinuxOptions::Ignored);
        assert_eq!(without.condition(), Condition::ready());
        let notice = without.notice().unwrap();
        assert!(notice.contains("run without labels") && notice.contains("containers.selinux"));
    }
}
