use super::*;

const GIB: i64 = 1 << 30;

fn v2_facts() -> CgroupFacts {
    let controllers = ["cpuset", "cpu", "io", "memory", "hugetlb", "pids", "misc"];
    CgroupFacts::V2 {
        root: "/sys/fs/cgroup".into(),
        controllers: controllers.map(str::to_owned).into(),
        swap: true,
    }
}

fn v1_facts() -> CgroupFacts {
    let hierarchies =
        ["cpu", "memory", "cpuset"].map(|name| (name.to_owned(), format!("/cg/{name}").into()));
    CgroupFacts::V1 {
        hierarchies: hierarchies.into(),
        unified: None,
        swap: true,
    }
}

fn shown(writes: &[CgroupWrite]) -> Vec<String> {
    let mark = |write: &CgroupWrite| if write.optional { "?" } else { "" };
    writes
        .iter()
        .map(|write| format!("{}{}={}", write.file, mark(write), write.value))
        .collect()
}

fn created(facts: &CgroupFacts, resources: &Resources) -> Result<Vec<String>, Error> {
    let place = Place {
        facts,
        path: "/p/c",
    };
    create(place, resources, None).map(|writes| shown(&writes))
}

fn updated(facts: &CgroupFacts, old: &Resources, new: &Resources) -> (Resources, Vec<String>) {
    let update = update(
        Place {
            facts,
            path: "/p/c",
        },
        old,
        new,
        None,
    )
    .unwrap();
    (update.resources, shown(&update.writes))
}

fn memory(limit: i64, swap: i64) -> Resources {
    Resources {
        memory_limit: limit,
        memory_swap_limit: swap,
        ..Resources::default()
    }
}

#[test]
fn shares_become_weights_by_the_new_formula() {
    let pairs = [
        (1, 1),
        (2, 1),
        (10, 4),
        (512, 59),
        (1024, 100),
        (2048, 174),
        (262_144, 10_000),
        (1 << 40, 10_000),
    ];
    for (shares, expected) in pairs {
        assert_eq!(weight(shares), expected, "{shares}");
    }
    assert!((2..3000).all(|shares| weight(shares) <= weight(shares + 1)));
}

#[test]
fn nothing_given_writes_nothing() {
    for facts in [v1_facts(), v2_facts()] {
        assert_eq!(
            created(&facts, &Resources::default()).unwrap(),
            Vec::<String>::new()
        );
    }
}

#[test]
fn v2_create() {
    let resources = Resources {
        cpu_period: 50_000,
        cpu_quota: 20_000,
        cpu_shares: 1024,
        memory_limit: GIB,
        cpuset_cpus: "0-1".into(),
        hugepages: vec![HugepageLimit {
            page_size: "2MB".into(),
            limit: 0,
        }],
        unified: BTreeMap::from([
            ("memory.oom.group".into(), "1".into()),
            ("memory.max".into(), "77".into()),
        ]),
        ..Resources::default()
    };
    let dir = "/sys/fs/cgroup/p/c";
    assert_eq!(
        created(&v2_facts(), &resources).unwrap(),
        [
            "cpu.weight=100",
            "cpu.max=20000 50000",
            "cpuset.cpus=0-1",
            "memory.swap.max?=0",
            "memory.max=77",
            "hugetlb.2MB.max?=0",
            "hugetlb.2MB.rsvd.max?=0",
            "memory.oom.group=1",
        ]
        .map(|line| format!("{dir}/{line}"))
    );
}

#[test]
fn v2_quota_and_unlimited_values() {
    let max = |quota, period| {
        let resources = Resources {
            cpu_quota: quota,
            cpu_period: period,
            ..Resources::default()
        };
        created(&v2_facts(), &resources).unwrap()[0]
            .split_once('=')
            .unwrap()
            .1
            .to_owned()
    };
    assert_eq!(max(-1, 100_000), "max 100000");
    assert_eq!(max(0, 20_000), "max 20000");
    assert_eq!(max(500, 0), "1000 100000");
    let all = created(&v2_facts(), &memory(-1, 0)).unwrap().join(" ");
    assert!(
        all.contains("memory.max=max") && all.contains("memory.swap.max?=max"),
        "{all}"
    );
    let some = created(&v2_facts(), &memory(GIB, 3 * GIB))
        .unwrap()
        .join(" ");
    assert!(some.contains("memory.swap.max?=2147483648"), "{some}");
}

#[test]
fn limits_that_contradict_are_refused() {
    let bad = [
        memory(GIB, 1),
        memory(0, GIB),
        memory(-2, 0),
        Resources {
            cpuset_cpus: "0\n1".into(),
            ..Resources::default()
        },
        Resources {
            cpu_period: 1,
            ..Resources::default()
        },
        Resources {
            cpu_shares: -5,
            ..Resources::default()
        },
        Resources {
            hugepages: vec![HugepageLimit {
                page_size: "../x".into(),
                limit: 0,
            }],
            ..Resources::default()
        },
    ];
    for resources in bad {
        for facts in [v1_facts(), v2_facts()] {
            assert!(created(&facts, &resources).is_err(), "{resources:?}");
        }
    }
}

#[test]
fn unified_keys_are_file_names_of_limits() {
    let with = |key: &str| {
        let resources = Resources {
            unified: BTreeMap::from([(key.into(), "1".into())]),
            ..Resources::default()
        };
        created(&v2_facts(), &resources)
    };
    for good in [
        "memory.high",
        "memory.oom.group",
        "hugetlb.2MB.max",
        "misc.max",
        "cgroup.max.depth",
    ] {
        assert!(with(good).is_ok(), "{good}");
    }
    for bad in [
        "../../cgroup.freeze",
        "cgroup.freeze",
        "cgroup.procs",
        "memory",
        "",
        ".",
        "..",
        "memory..max",
        "Memory.max",
        "memory.max/x",
        "rdma.max",
        "memory.max\n",
    ] {
        assert!(with(bad).is_err(), "{bad}");
    }
    let v1 = Resources {
        unified: BTreeMap::from([("memory.high".into(), "1".into())]),
        ..Resources::default()
    };
    assert!(created(&v1_facts(), &v1).unwrap().is_empty());
}

#[test]
fn huge_pages_without_the_controller() {
    let pages = |limit| Resources {
        hugepages: vec![HugepageLimit {
            page_size: "1GB".into(),
            limit,
        }],
        ..Resources::default()
    };
    assert!(created(&v1_facts(), &pages(0)).unwrap().is_empty());
    assert!(created(&v1_facts(), &pages(1 << 30)).is_err());
}

#[test]
fn v1_create() {
    let resources = Resources {
        cpu_shares: 1,
        cpu_quota: 10,
        cpu_period: 100_000,
        ..memory(GIB, 0)
    };
    assert_eq!(
        created(&v1_facts(), &resources).unwrap(),
        [
            "/cg/cpu/p/c/cpu.shares=2",
            "/cg/cpu/p/c/cpu.cfs_period_us=100000",
            "/cg/cpu/p/c/cpu.cfs_quota_us=1000",
            "/cg/memory/p/c/memory.limit_in_bytes=1073741824",
            "/cg/memory/p/c/memory.memsw.limit_in_bytes?=1073741824",
        ]
    );
}

#[test]
fn v1_cpuset_begins_with_the_parents() {
    let facts = v1_facts();
    let parent = Cpuset {
        cpus: "0-3".into(),
        mems: "0".into(),
    };
    let resources = Resources {
        cpuset_cpus: "1".into(),
        ..Resources::default()
    };
    let writes = create(
        Place {
            facts: &facts,
            path: "/p",
        },
        &resources,
        Some(&parent),
    )
    .unwrap();
    assert_eq!(
        shown(&writes),
        ["/cg/cpuset/p/cpuset.cpus=1", "/cg/cpuset/p/cpuset.mems=0"]
    );
    let v2 = v2_facts();
    assert!(
        create(
            Place {
                facts: &v2,
                path: "/p"
            },
            &Resources::default(),
            Some(&parent)
        )
        .unwrap()
        .is_empty()
    );
}

#[test]
fn v1_update_keeps_the_limit_below_memory_plus_swap_at_every_step() {
    let order = |old: i64, new: i64| {
        let (_, writes) = updated(&v1_facts(), &memory(old, 0), &memory(new, 0));
        writes[0].contains("memsw")
    };
    assert!(order(GIB, 2 * GIB), "growing: swap first");
    assert!(!order(2 * GIB, GIB), "shrinking: limit first");
    assert!(order(GIB, -1), "unlimited: swap first");
    assert!(!order(-1, GIB), "from unlimited: limit first");
}

#[test]
fn update_merges_and_writes_only_what_is_given() {
    let old = Resources {
        cpu_shares: 512,
        cpu_quota: 50_000,
        cpu_period: 100_000,
        oom_score_adj: 5,
        ..memory(GIB, GIB)
    };
    let (merged, writes) = updated(
        &v2_facts(),
        &old,
        &Resources {
            cpu_quota: 70_000,
            oom_score_adj: 9,
            ..Resources::default()
        },
    );
    assert_eq!(writes, ["/sys/fs/cgroup/p/c/cpu.max=70000 100000"]);
    assert_eq!(
        merged,
        Resources {
            cpu_quota: 70_000,
            ..old.clone()
        }
    );
    let (merged, writes) = updated(&v2_facts(), &old, &memory(2 * GIB, 0));
    assert_eq!(
        (merged.memory_limit, merged.memory_swap_limit),
        (2 * GIB, 2 * GIB)
    );
    assert!(
        writes.contains(&"/sys/fs/cgroup/p/c/memory.swap.max?=0".to_owned()),
        "{writes:?}"
    );
    let (_, writes) = updated(
        &v1_facts(),
        &old,
        &Resources {
            cpu_quota: 5_000,
            cpu_period: 10_000,
            ..Resources::default()
        },
    );
    assert!(
        writes[0].contains("quota"),
        "a shrinking period comes second: {writes:?}"
    );
}

#[test]
fn a_limit_below_what_is_in_use_is_refused() {
    let facts = v2_facts();
    let place = Place {
        facts: &facts,
        path: "/p",
    };
    let try_it =
        |limit, usage| update(place, &Resources::default(), &memory(limit, 0), Some(usage));
    assert!(matches!(
        try_it(GIB, (GIB + 1).unsigned_abs()),
        Err(Error::MemoryInUse { .. })
    ));
    assert!(try_it(GIB, 5).is_ok() && try_it(-1, u64::MAX).is_ok() && try_it(0, u64::MAX).is_ok());
}
