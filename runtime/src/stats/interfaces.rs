//! Traffic of a pod, as `/proc/<pid>/net/dev` of its pause process shows it: that takes neither a thread in
//! the pod's namespace nor a socket in it.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::model::{InterfaceUsage, NetworkUsage, PodSubject, now_nanos};

/// What CNI calls the first interface of a pod.
const DEFAULT: &str = "eth0";

/// `None`: the pod has no network of its own, it is over, or it has no interface but the loopback. The
/// kubelet wants a default interface wherever there is a network (row F154).
pub(super) fn of_pod(pod: &PodSubject) -> Option<NetworkUsage> {
    let (pid, netns) = (pod.pause?, pod.netns.as_deref()?);
    let proc = format!("/proc/{pid}");
    let text = std::fs::read_to_string(format!("{proc}/net/dev")).ok()?;
    // Looked at afterwards: if the namespace is the pod's now, the pid was still pause's when it was read.
    same(Path::new(&format!("{proc}/ns/net")), netns).then(|| sorted(parse(&text)))?
}

fn same(a: &Path, b: &Path) -> bool {
    let id = |path| {
        std::fs::metadata(path)
            .ok()
            .map(|found| (found.dev(), found.ino()))
    };
    id(a).is_some_and(|a| Some(a) == id(b))
}

fn sorted(mut all: Vec<InterfaceUsage>) -> Option<NetworkUsage> {
    all.retain(|one| one.name != "lo");
    let at = all.iter().position(|one| one.name == DEFAULT).unwrap_or(0);
    if all.is_empty() {
        return None;
    }
    Some(NetworkUsage {
        at: now_nanos(),
        default: all.remove(at),
        others: all,
    })
}

/// `net/dev` (proc_pid_net(5)): two lines of headings, then per interface eight numbers of what was received
/// and eight of what was sent, bytes first and errors third.
fn parse(text: &str) -> Vec<InterfaceUsage> {
    let lines = text.lines().skip(2);
    lines
        .filter_map(|line| {
            // A name may have a colon in it, as old aliases do.
            let (name, numbers) = line.rsplit_once(':')?;
            let numbers: Vec<u64> = numbers
                .split_whitespace()
                .map_while(|number| number.parse().ok())
                .collect();
            Some(InterfaceUsage {
                name: name.trim().to_owned(),
                rx_bytes: *numbers.first()?,
                rx_errors: *numbers.get(2)?,
                tx_bytes: *numbers.get(8)?,
                tx_errors: *numbers.get(10)?,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEV: &str = "\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo: 1675     777    0    0    0     0          0         0 1675  777    0    0    0     0       0          0
  net1:   1       2    3    4    5     6          7         8       9      10   11   12   13    14      15         16
  eth0:18446744073709551615 9 2 0 0 0 0 0 4096 11 1 0 0 0 0 0
 torn:  1 2
";

    #[test]
    fn eth0_is_the_default_and_the_loopback_is_left_out() {
        let found = sorted(parse(DEV)).unwrap();
        let eth0 = InterfaceUsage {
            name: "eth0".into(),
            rx_bytes: u64::MAX,
            rx_errors: 2,
            tx_bytes: 4096,
            tx_errors: 1,
        };
        assert_eq!(found.default, eth0);
        let others: Vec<_> = found.others.iter().map(|o| o.name.as_str()).collect();
        assert_eq!(others, ["net1"]);
        assert_eq!(
            (found.others[0].rx_errors, found.others[0].tx_bytes),
            (3, 9)
        );
    }

    #[test]
    fn without_an_interface_there_is_no_network() {
        let lines: Vec<&str> = DEV.lines().take(3).collect();
        assert_eq!(sorted(parse(&lines.join("\n"))), None);
        let lines: Vec<&str> = DEV.lines().take(4).collect();
        let found = sorted(parse(&lines.join("\n"))).unwrap();
        assert_eq!(found.default.name, "net1");
        assert_eq!(parse(""), []);
    }

    #[test]
    fn a_process_in_another_namespace_is_not_pause() {
        assert!(same(
            Path::new("/proc/self/ns/net"),
            Path::new("/proc/self/ns/net")
        ));
        assert!(!same(
            Path::new("/proc/self/ns/net"),
            Path::new("/proc/self/ns/pid")
        ));
        assert!(!same(Path::new("/no/such"), Path::new("/no/such")));
    }
}
