use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::host::HostFacts;
use crate::model::Stall;

/// Files of a container as a 6.12 kernel shows them, shortened in the middle.
const MEMORY_STAT: &str = "anon 4001792\nfile 13246464\nkernel 1236992\nkernel_stack 49152\n\
    pagetables 229376\nsock 0\nshmem 0\nfile_mapped 9318400\nswapcached 0\nanon_thp 0\n\
    inactive_anon 3973120\nactive_anon 28672\ninactive_file 2097152\nactive_file 11149312\n\
    unevictable 0\nslab 640456\nworkingset_refault_file 0\npgscan 0\npgfault 9342\npgmajfault 57\n";
const CPU_STAT: &str = "usage_usec 2563711\nuser_usec 1200300\nsystem_usec 1363411\n\
    nice_usec 0\ncore_sched.force_idle_usec 0\nnr_periods 12\nnr_throttled 3\nthrottled_usec 88\n";
const PRESSURE: &str = "some avg10=1.53 avg60=0.87 avg300=0.24 total=1398222\n\
    full avg10=0.10 avg60=0.05 avg300=0.01 total=73345\n";

/// A hierarchy of ordinary files.
struct Tree(tempfile::TempDir);

impl Tree {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn with(&self, files: &[(&str, &str)]) -> &Self {
        for (name, text) in files {
            let file = self.0.path().join(name);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        }
        self
    }

    fn without(&self, name: &str) -> &Self {
        fs::remove_file(self.0.path().join(name)).unwrap();
        self
    }

    fn v2(&self) -> UsageReader {
        UsageReader::new(&CgroupFacts::V2 {
            root: self.0.path().to_owned(),
            controllers: Vec::new(),
            swap: true,
        })
    }

    fn v1(&self, swap: bool) -> UsageReader {
        let names = ["cpuacct", "memory", "pids"];
        let hierarchies: BTreeMap<_, _> = names
            .map(|name| (name.to_owned(), self.0.path().join(name)))
            .into();
        UsageReader::new(&CgroupFacts::V1 {
            hierarchies,
            unified: None,
            swap,
        })
    }
}

fn v2_container() -> Tree {
    let tree = Tree::new();
    tree.with(&[
        ("pod/c/cpu.stat", CPU_STAT),
        ("pod/c/cpu.pressure", PRESSURE),
        ("pod/c/memory.current", "18485248\n"),
        ("pod/c/memory.max", "67108864\n"),
        ("pod/c/memory.stat", MEMORY_STAT),
        ("pod/c/memory.pressure", PRESSURE),
        ("pod/c/memory.swap.current", "8192\n"),
        ("pod/c/memory.swap.max", "max\n"),
        ("pod/c/io.pressure", PRESSURE),
        ("pod/c/pids.current", "4\n"),
    ]);
    tree
}

#[test]
fn a_v2_container() {
    let tree = v2_container();
    let before = now_nanos();
    let usage = tree.v2().read("/pod/c").unwrap().unwrap();
    let pressure = Pressure {
        some: Stall {
            total: 1_398_222,
            avg10: 1.53,
            avg60: 0.87,
            avg300: 0.24,
        },
        full: Stall {
            total: 73_345,
            avg10: 0.10,
            avg60: 0.05,
            avg300: 0.01,
        },
    };
    assert!(usage.at >= before);
    let expected = CgroupUsage {
        at: usage.at,
        cpu: Some(CpuUsage {
            nanoseconds: 2_563_711_000,
            nano_cores: None,
            pressure: Some(pressure),
        }),
        memory: Some(MemoryUsage {
            usage: 18_485_248,
            working_set: 16_388_096,
            available: Some(50_720_768),
            rss: 4_001_792,
            page_faults: 9342,
            major_page_faults: 57,
            pressure: Some(pressure),
        }),
        swap: Some(SwapUsage {
            usage: 8192,
            available: None,
        }),
        io: Some(pressure),
    };
    assert_eq!(usage, expected);
    assert_eq!(tree.v2().processes("/pod/c").unwrap(), Some(4));
}

#[test]
fn a_v2_kernel_that_has_less() {
    let tree = v2_container();
    // psi=0, swapaccount=0, no limit; an old kernel has no `full` for the CPU.
    tree.without("pod/c/io.pressure")
        .without("pod/c/memory.pressure")
        .without("pod/c/memory.swap.current")
        .with(&[
            (
                "pod/c/cpu.pressure",
                "some avg10=0.00 avg60=0.00 avg300=0.00 total=5\n",
            ),
            ("pod/c/memory.max", "max\n"),
            ("pod/c/memory.current", "4096\n"),
        ]);
    let usage = tree.v2().read("/pod/c").unwrap().unwrap();
    let memory = usage.memory.unwrap();
    assert_eq!((memory.working_set, memory.available), (0, None));
    assert_eq!((usage.io, usage.swap, memory.pressure), (None, None, None));
    let cpu = usage.cpu.unwrap().pressure.unwrap();
    assert_eq!((cpu.some.total, cpu.full), (5, Stall::default()));
    // Without the memory controller there is still the CPU.
    tree.without("pod/c/memory.current");
    let usage = tree.v2().read("/pod/c").unwrap().unwrap();
    assert!(usage.memory.is_none() && usage.cpu.is_some());
    // No swap at all is a limit like any other.
    tree.with(&[
        ("pod/c/memory.current", "4096\n"),
        ("pod/c/memory.swap.current", "0\n"),
        ("pod/c/memory.swap.max", "0\n"),
    ]);
    let swap = tree.v2().read("/pod/c").unwrap().unwrap().swap.unwrap();
    assert_eq!((swap.usage, swap.available), (0, Some(0)));
}

#[test]
fn a_v1_container() {
    let stat = "cache 1\nrss 2\ninactive_file 3\npgfault 4\n\
        hierarchical_memory_limit 67108864\ntotal_rss 4001792\ntotal_swap 1048576\n\
        total_pgfault 9342\ntotal_pgmajfault 57\ntotal_inactive_file 2097152\n";
    let tree = Tree::new();
    tree.with(&[
        ("cpuacct/pod/c/cpuacct.usage", "2563711000\n"),
        ("memory/pod/c/memory.usage_in_bytes", "18485248\n"),
        ("memory/pod/c/memory.limit_in_bytes", "67108864\n"),
        ("memory/pod/c/memory.memsw.limit_in_bytes", "71303168\n"),
        ("memory/pod/c/memory.stat", stat),
        ("pids/pod/c/pids.current", "3\n"),
    ]);
    let usage = tree.v1(true).read("/pod/c").unwrap().unwrap();
    assert_eq!(usage.cpu.unwrap().nanoseconds, 2_563_711_000);
    let expected = MemoryUsage {
        usage: 18_485_248,
        working_set: 16_388_096,
        available: Some(50_720_768),
        rss: 4_001_792,
        page_faults: 9342,
        major_page_faults: 57,
        pressure: None,
    };
    assert_eq!(usage.memory, Some(expected));
    let swap = SwapUsage {
        usage: 1 << 20,
        available: Some(3 << 20),
    };
    assert_eq!((usage.swap, usage.io), (Some(swap), None));
    assert_eq!(tree.v1(true).processes("/pod/c").unwrap(), Some(3));
    // What the kernel shows for no limit, and no accounting of swap.
    tree.with(&[(
        "memory/pod/c/memory.limit_in_bytes",
        "9223372036854771712\n",
    )]);
    let usage = tree.v1(false).read("/pod/c").unwrap().unwrap();
    assert_eq!((usage.memory.unwrap().available, usage.swap), (None, None));
    assert_eq!(
        tree.v1(true)
            .read("/pod/c")
            .unwrap()
            .unwrap()
            .swap
            .unwrap()
            .available,
        None
    );
}

#[test]
fn a_cgroup_that_is_gone_is_none_and_nonsense_is_an_error() {
    let tree = v2_container();
    assert_eq!(tree.v2().read("/pod/other").unwrap(), None);
    assert_eq!(tree.v1(true).read("/pod/c").unwrap(), None);
    assert_eq!(tree.v2().processes("/pod/other").unwrap(), None);
    // A directory that is being removed has no files any more.
    fs::create_dir(tree.0.path().join("empty")).unwrap();
    assert_eq!(tree.v2().read("/empty").unwrap(), None);
    tree.with(&[("pod/c/memory.current", "many\n")]);
    let error = tree.v2().read("/pod/c").unwrap_err().to_string();
    assert!(
        error.contains("memory.current") && error.contains("many"),
        "{error}"
    );
    tree.with(&[("pod/c/memory.current", &"9".repeat(1 << 20))]);
    assert!(tree.v2().read("/pod/c").is_err());
}

#[test]
fn a_large_file_is_read_to_its_end() {
    let tree = v2_container();
    let padding: String = (0..3000).map(|n| format!("something_{n} 1\n")).collect();
    tree.with(&[("pod/c/memory.stat", &format!("{padding}{MEMORY_STAT}"))]);
    let usage = tree.v2().read("/pod/c").unwrap().unwrap();
    assert_eq!(usage.memory.unwrap().page_faults, 9342);
}

/// The root has no `memory.current` on v2, but CPU time everywhere.
#[test]
fn this_machine() {
    let facts = HostFacts::probe().unwrap().cgroup;
    let mut reader = UsageReader::new(&facts);
    let usage = reader.read("/").unwrap().unwrap();
    assert!(usage.cpu.unwrap().nanoseconds > 0);
    if Path::new("/sys/fs/cgroup/memory").exists() {
        assert!(usage.memory.unwrap().usage > 0);
    }
    assert_eq!(reader.read("/no/such/cgroup").unwrap(), None);
}

proptest! {
    #[test]
    fn no_text_is_too_strange(text in ".{0,200}") {
        let [value] = parse::keyed(&text, ["anon"]);
        prop_assert!(value == 0 || text.contains("anon"));
        prop_assert!(parse::pressure(&text).is_none() || text.contains("some"));
    }
}
