use super::*;

const DEBIAN_13: &str = "\
22 28 0:21 / /sys rw,nosuid,nodev,noexec,relatime shared:7 - sysfs sysfs rw
28 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw
30 22 0:26 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot
31 22 0:27 / /sys/fs/pstore rw - pstore none rw";

const HYBRID: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw";

const CO_MOUNTED: &str = "\
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct
33 31 0:30 / /sys/fs/cgroup/memory rw shared:10 - cgroup cgroup rw,memory,clone_children
34 31 0:31 / /sys/fs/cgroup/systemd rw shared:11 - cgroup cgroup rw,xattr,name=systemd
50 99 0:30 /kubepods/x /var/lib/c/sys/fs/cgroup/memory ro - cgroup cgroup rw,memory";

fn known() -> Vec<String> {
    v1_controllers(
        "#subsys_name\thierarchy\tnum_cgroups\tenabled\ncpu\t1\t1\t1\ncpuacct\t1\t1\t1\nmemory\t4\t14\t1\nrdma\t0\t1\t0\n",
    )
}

#[test]
fn a_systemd_machine_with_v2() {
    let layout = layout(&parse_mountinfo(DEBIAN_13), &known());
    assert_eq!(layout, Layout::V2("/sys/fs/cgroup".into()));
}

#[test]
fn hybrid_is_v1_with_a_v2_hierarchy_beside_it() {
    let Layout::V1 {
        hierarchies,
        unified,
    } = layout(&parse_mountinfo(HYBRID), &known())
    else {
        panic!("not v1");
    };
    assert_eq!(unified, Some("/sys/fs/cgroup/unified".into()));
    assert_eq!(
        hierarchies.keys().collect::<Vec<_>>(),
        ["cpu", "memory", "name=systemd"]
    );
}

#[test]
fn co_mounted_controllers_share_a_mount_and_binds_of_containers_do_not_count() {
    let Layout::V1 {
        hierarchies,
        unified,
    } = layout(&parse_mountinfo(CO_MOUNTED), &known())
    else {
        panic!("not v1");
    };
    assert_eq!(unified, None);
    assert_eq!(hierarchies["cpu"], hierarchies["cpuacct"]);
    assert_eq!(hierarchies["memory"], Path::new("/sys/fs/cgroup/memory"));
    assert!(!hierarchies.contains_key("xattr") && !hierarchies.contains_key("clone_children"));
    let facts = CgroupFacts::V1 {
        hierarchies,
        unified: None,
        swap: true,
    };
    assert_eq!(
        facts.controller_mounts(),
        [
            Path::new("/sys/fs/cgroup/cpu,cpuacct"),
            Path::new("/sys/fs/cgroup/memory")
        ]
    );
    assert_eq!(facts.all_mounts().len(), 3);
}

#[test]
fn nothing_mounted_is_said_so() {
    assert_eq!(layout(&[], &known()), Layout::None);
    assert_eq!(
        layout(&parse_mountinfo(DEBIAN_13)[..1], &known()),
        Layout::None
    );
}

#[test]
fn disabled_controllers_are_not_known() {
    assert_eq!(known(), ["cpu", "cpuacct", "memory"]);
}

#[test]
fn kernel_releases() {
    assert_eq!(parse_kernel("6.18.44-fc-v669\n"), Some((6, 18)));
    assert_eq!(parse_kernel("5.4-rc1"), Some((5, 4)));
    assert_eq!(parse_kernel("next"), None);
}

#[test]
fn huge_page_names_are_those_of_the_controller() {
    let names: Vec<_> = [64, 2048, 32 << 10, 1 << 20].map(hugepage_name).into();
    assert_eq!(names, ["64KB", "2MB", "32MB", "1GB"]);
    assert_eq!(hugepage_kib("hugepages-1048576kB"), Some(1 << 20));
}

#[test]
fn this_machine_can_be_probed() {
    let facts = HostFacts::probe().unwrap();
    assert!(facts.kernel >= (5, 0));
    assert!(!facts.boot_id.is_empty() && !facts.hostname.is_empty());
    assert!(!facts.cgroup.controller_mounts().is_empty());
    assert!(facts.min_oom_score_adj <= 1000);
}
