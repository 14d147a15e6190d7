//! Devices and directories in the place of what the engine makes in every container.

use serde_json::json;

use crate::destinations::Case;

fn node(path: &str, minor: u32) -> serde_json::Value {
    json!({ "path": path, "type": "c", "major": 1, "minor": minor, "fileMode": 0o640, "uid": 7, "gid": 8 })
}

#[test]
fn devices_take_the_place_of_the_engines_nodes() {
    let names = "random tty full zero urandom null ptmx console";
    let mut case = Case::new();
    let devices = names.split(' ').map(|name| match name {
        // Another one than the engine's each time.
        "full" => node("/dev/full", 8),
        name => node(&format!("/dev/{name}"), 7),
    });
    case.fixture.config["linux"]["devices"] = devices.collect();
    case.fixture.config["linux"]["maskedPaths"] = json!(["/etc/one", "/etc/two"]);
    for name in ["one", "two"] {
        std::fs::create_dir_all(case.fixture.tree("etc")).unwrap();
        std::fs::write(case.fixture.tree(&format!("etc/{name}")), "secret").unwrap();
    }
    let script = format!(
        "cd /dev; stat -c '%n %t:%T %a %u %g' {names}; cat /etc/one /etc/two; stat -c %t:%T /etc/one /etc/two"
    );
    let (text, code) = case.fixture.sh(&script);
    let minor = |name| if name == "full" { 8 } else { 7 };
    let mut wanted: String = names
        .split(' ')
        .map(|name| format!("{name} 1:{} 640 7 8\n", minor(name)))
        .collect();
    // What masks is the real null device.
    wanted.push_str("1:3\n1:3\n");
    assert_eq!((text, code), (wanted, 0));
}

#[test]
fn directories_are_mounted_in_the_place_of_the_engines_nodes() {
    let mut case = Case::new();
    let volume = case.volume("v");
    for name in ["urandom", "tty", "full", "random", "zero/deep"] {
        case.bind(&volume, &format!("/dev/{name}"));
    }
    let text = case
        .fixture
        .sh("cd /dev; cat urandom/v tty/v full/v random/v zero/deep/v; test -c null");
    assert_eq!(text, ("vvvvv".into(), 0));
    for place in ["/dev/null", "/dev/null/below"] {
        let mut case = Case::new();
        case.bind(&volume, place);
        let error = case.refused();
        assert!(
            error.contains(place) && error.contains("directory"),
            "{error}"
        );
    }
}

#[test]
fn a_device_that_cannot_be_where_it_is_asked_for_is_refused() {
    for (asked, why) in [
        (
            vec![node("/dev/pts/z", 5)],
            "no device nodes can be made there",
        ),
        (vec![node("/dev/pts/ptmx", 5)], "something else"),
        (vec![node("/proc/uptime", 5)], "something else"),
        (
            vec![node("/dev/a/b", 5), node("/dev/a", 5)],
            "something else",
        ),
        (vec![node("/dev/zero/x", 5)], "no directory"),
    ] {
        let mut case = Case::new();
        let path = asked.last().unwrap()["path"].as_str().unwrap().to_owned();
        case.fixture.config["linux"]["devices"] = asked.into();
        let error = case.refused();
        assert!(error.contains(&path) && error.contains(why), "{error}");
    }
    // The same device twice is no contradiction, nor one that the container has of its own.
    let mut case = Case::new();
    let multiplexer = json!({ "path": "/dev/pts/ptmx", "type": "c", "major": 5, "minor": 2 });
    case.fixture.config["linux"]["devices"] =
        json!([node("/dev/x", 5), node("/dev/x", 5), multiplexer]);
    assert_eq!(case.fixture.sh("stat -c %t:%T /dev/x"), ("1:5\n".into(), 0));
}
