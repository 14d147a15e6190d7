use super::*;

const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/sh
app:x:1000:1001:App:/home/app:/bin/sh
99999999999:x:0:0::/root:/bin/sh
12:x:0:0::/root:/bin/sh
huge:x:4294967295:0::/:/bin/sh
big:x:2147483648:0::/:/bin/sh
bad:x:-1:0::/:/bin/sh
bell:x:7:7::/a\x07b:/bin/sh
noend:x:8:9::/srv/x";
const GROUP: &[u8] = b"root:x:0:
staff:x:50:root,app
wheel:x:10:app
app:x:1001:
far:x:3000000000:app
broken
last:x:60:other,app";
/// The kernel takes it, so being in it is no reason to lose it.
const FAR: u32 = 3_000_000_000;

fn resolve_with(request: &UserRequest, image: &str) -> Result<ContainerUser, UserError> {
    let resolved = resolve(Some(PASSWD), Some(GROUP), request, image)?;
    assert_eq!(resolved.warnings, [""; 0]);
    Ok(resolved.user)
}

fn image(user: &str) -> Result<ContainerUser, UserError> {
    resolve_with(&UserRequest::default(), user)
}

fn user(uid: u32, gid: u32, groups: &[u32], home: &str) -> ContainerUser {
    ContainerUser {
        uid,
        gid,
        groups: groups.to_vec(),
        home: home.to_owned(),
    }
}

#[test]
fn nothing_said_is_root() {
    assert_eq!(image("").unwrap(), user(0, 0, &[0, 50], "/root"));
    assert_eq!(
        resolve(None, None, &UserRequest::default(), "")
            .unwrap()
            .user,
        user(0, 0, &[0], "/")
    );
}

#[test]
fn the_images_user_in_all_its_forms() {
    let app = user(1000, 1001, &[10, 50, 60, 1001, FAR], "/home/app");
    assert_eq!(image("app").unwrap(), app);
    assert_eq!(image("1000").unwrap(), app);
    assert_eq!(image("app:").unwrap(), app);
    assert_eq!(image("app:staff").unwrap().gid, 50);
    assert_eq!(image("1000:77").unwrap().groups, [10, 50, 60, 77, FAR]);
    assert_eq!(image(":staff").unwrap().uid, 0);
    assert_eq!(image("4711").unwrap(), user(4711, 0, &[0], "/"));
    assert_eq!(image("noend").unwrap(), user(8, 9, &[9], "/srv/x"));
}

#[test]
fn digits_are_never_a_name_and_never_wrap() {
    for text in [
        "2147483648",
        "4294967295",
        "4294967296",
        "99999999999",
        "99999999999999999999999999",
        "00002147483648",
        "-1",
        "-99999999999999999999999999",
        "root:-1",
        "1000:4294967296",
    ] {
        assert!(
            matches!(image(text), Err(UserError::OutOfRange(_))),
            "{text}"
        );
    }
    for text in [
        "0x0",
        " 1000",
        "1000 ",
        "1_000",
        "+",
        "-",
        "--1",
        "nobody",
        "ap",
        "root:nope",
    ] {
        assert!(
            matches!(
                image(text),
                Err(UserError::NoUser(_) | UserError::NoGroup(_))
            ),
            "{text}"
        );
    }
    // The passwd line named "12" is not what the number 12 means.
    assert_eq!(image("12").unwrap().uid, 12);
    for text in ["huge", "big", "bad"] {
        let said = image(text).unwrap_err();
        assert!(matches!(said, UserError::Line { .. }), "{text}: {said}");
        assert!(said.to_string().contains("is not from 0 to 2147483647"));
    }
    assert!(matches!(image("app:staff:x"), Err(UserError::Form(_))));
}

#[test]
fn the_request_wins_over_the_image() {
    let request = UserRequest {
        uid: Some(1000),
        ..UserRequest::default()
    };
    assert_eq!(resolve_with(&request, "root:wheel").unwrap().gid, 1001);
    let request = UserRequest {
        username: "app".into(),
        gid: Some(7),
        ..UserRequest::default()
    };
    assert_eq!(
        resolve_with(&request, "").unwrap(),
        user(1000, 7, &[7, 10, 50, 60, FAR], "/home/app")
    );
    let request = UserRequest {
        username: "1000".into(),
        ..UserRequest::default()
    };
    assert_eq!(resolve_with(&request, "").unwrap().uid, 1000);
    let request = UserRequest {
        uid: Some(1 << 31),
        ..UserRequest::default()
    };
    assert!(matches!(
        resolve_with(&request, ""),
        Err(UserError::OutOfRange(_))
    ));
}

#[test]
fn a_name_in_the_request_may_have_a_group_behind_it() {
    let named = |name: &str, gid| {
        let request = UserRequest {
            username: name.into(),
            gid,
            policy: GroupsPolicy::Strict,
            ..UserRequest::default()
        };
        resolve_with(&request, "root:wheel").map(|user| (user.uid, user.gid))
    };
    assert_eq!(named("app:8", None), Ok((1000, 8)));
    assert_eq!(named("1000:staff", None), named("app:staff", None));
    assert_eq!(
        named("app:staff", None),
        image("app:staff").map(|user| (user.uid, user.gid))
    );
    assert_eq!(named("app:", None), named("app", None));
    assert!(matches!(
        named("app:nobodys", None),
        Err(UserError::NoGroup(_))
    ));
    for (name, gid) in [("app:8", Some(9)), ("app:", Some(9)), ("app:8:9", None)] {
        assert!(
            matches!(named(name, gid), Err(UserError::Form(_))),
            "{name}"
        );
    }
}

#[test]
fn contradictions_are_refused() {
    let both = UserRequest {
        uid: Some(1),
        username: "app".into(),
        ..UserRequest::default()
    };
    assert_eq!(resolve_with(&both, ""), Err(UserError::Both));
    let group = UserRequest {
        gid: Some(1),
        ..UserRequest::default()
    };
    assert_eq!(
        resolve_with(&group, "app"),
        Err(UserError::GroupWithoutUser)
    );
}

#[test]
fn strict_takes_only_what_was_given() {
    let request = UserRequest {
        uid: Some(1000),
        supplemental_groups: vec![5, 5, 4],
        policy: GroupsPolicy::Strict,
        ..UserRequest::default()
    };
    assert_eq!(resolve_with(&request, "").unwrap().groups, [4, 5, 1001]);
    let merge = UserRequest {
        policy: GroupsPolicy::Merge,
        ..request
    };
    assert_eq!(
        resolve_with(&merge, "").unwrap().groups,
        [4, 5, 10, 50, 60, 1001, FAR]
    );
}

#[test]
fn a_home_that_could_break_lines_is_not_used() {
    assert_eq!(image("bell").unwrap().home, "/");
}

#[test]
fn a_million_members_on_one_line_are_read_quickly() {
    let mut group = b"g:x:5:".to_vec();
    for n in 0..1_000_000 {
        group.extend_from_slice(format!("u{n},").as_bytes());
    }
    let begin = std::time::Instant::now();
    let request = UserRequest {
        username: "app".into(),
        ..UserRequest::default()
    };
    let resolved = resolve(Some(PASSWD), Some(&group), &request, "").unwrap();
    assert_eq!(resolved.user.groups, [1001]);
    assert!(begin.elapsed().as_secs() < 5);
}

/// What containerd 2.4.2 makes of files and a `USER`: uid, gid, groups.
type Case<'a> = (&'a str, &'a str, &'a str, (u32, u32, &'a [u32]));

#[test]
fn odd_files_are_read_as_elsewhere() {
    let cases: &[Case<'_>] = &[
        // No group, or too few fields for one: 0.
        ("app:x:10001:", "", "app", (10001, 0, &[0])),
        ("app:x:10001:", "", "10001", (10001, 0, &[0])),
        ("app:x:10001", "", "app", (10001, 0, &[0])),
        ("app:x:10001:::/h:/s", "", "app", (10001, 0, &[0])),
        ("a:x:1:2", "g:x", "a:g", (1, 0, &[0])),
        ("a:x:1:2", "g", "a:g", (1, 0, &[0])),
        ("a:x:1:2", "g:x::a", "a", (1, 2, &[0, 2])),
        // Leading zeros and signs, in USER and in the files.
        ("", "", "0010", (10, 0, &[0])),
        ("", "", "0000", (0, 0, &[0])),
        ("", "", "+1000:+7", (1000, 7, &[7])),
        ("", "", "010:007", (10, 7, &[7])),
        ("a:x:0010:0020", "", "a", (10, 20, &[20])),
        ("a:x:0010:0020", "g:x:030:a", "10", (10, 20, &[20, 30])),
        // Space around a line and line ends of other systems do not count.
        ("  a:x:1:2  ", "", "a", (1, 2, &[2])),
        ("\ta:x:1:2\r\nb:x:3:4\r\n", "", "b", (3, 4, &[4])),
        (
            "a:x:1:2\r",
            "g:x:5:a\r\nh:x:6:b,a\r",
            "a",
            (1, 2, &[2, 5, 6]),
        ),
        ("\n\n  \na:x:1:2\n\n", "\n# g:x:5:a\n", "a", (1, 2, &[2])),
        // Lines of others do not matter, whatever they are.
        (
            "bad:x:zz:zz\n+::::::\n-x\na:x:1:2",
            "+:::\nbad:x:zz:b",
            "a",
            (1, 2, &[2]),
        ),
        (
            "bad:x:zz:zz\n+::::::\n:::\nroot:x:0:0",
            "",
            "0",
            (0, 0, &[0]),
        ),
        (
            "# one\nroot:x:0:0",
            "# two\nroot:x:0:root",
            "root",
            (0, 0, &[0]),
        ),
        // The first line wins.
        ("a:x:1:2\na:x:3:4", "", "a", (1, 2, &[2])),
        ("a:x:1:2\nb:x:1:4", "", "1", (1, 2, &[2])),
        // A group that is given makes the account's unimportant, and its id with it.
        ("a:x:1:zz", "", "a:7", (1, 7, &[7])),
        // Nothing asked for is root with group 0, whatever the files say.
        ("root:x:0:99", "", "", (0, 0, &[0])),
        ("root:x:0:99", "", "root", (0, 99, &[99])),
        ("root:x:0:zz", "g:x:5:root", "", (0, 0, &[0, 5])),
        ("", "", ":1000", (0, 1000, &[1000])),
        ("", "", "1000:", (1000, 0, &[0])),
        ("", "", ":", (0, 0, &[0])),
        // A line without a name is nobody's membership.
        (":x:5:6", "g:x:7:,x", "5", (5, 6, &[6])),
        // More fields than there are.
        ("a:x:1:2:::::::", "g:x:3:a:b:c", "a", (1, 2, &[2, 3])),
    ];
    for (passwd, group, asked, (uid, gid, groups)) in cases {
        let (passwd, group) = (passwd.as_bytes(), group.as_bytes());
        let read = resolve(Some(passwd), Some(group), &UserRequest::default(), asked);
        let read = read
            .unwrap_or_else(|e| panic!("{asked} of {passwd:?}: {e}"))
            .user;
        assert_eq!(
            (read.uid, read.gid, read.groups.as_slice()),
            (*uid, *gid, *groups),
            "{asked}"
        );
    }
}

#[test]
fn what_would_have_to_be_guessed_names_the_line() {
    // Elsewhere each of these is root, or its group.
    for (passwd, group, asked, said) in [
        (
            "\na:x::5",
            "",
            "a",
            "line 2 of the image's /etc/passwd, \"a\": it has no user id",
        ),
        (
            "a",
            "",
            "a",
            "line 1 of the image's /etc/passwd, \"a\": it has no user id",
        ),
        ("a:x", "", "a", "has no user id"),
        ("a:x:zz:5", "", "a", "its user id \"zz\" is not a number"),
        ("a:x: 1:5", "", "a", "its user id \" 1\" is not a number"),
        ("a:x:1:5x", "", "a", "its group id \"5x\" is not a number"),
        ("a:x:1:5x", "", "1", "its group id \"5x\" is not a number"),
        ("a:x:1:-5", "", "a", "its group id \"-5\" is not from 0"),
        (
            "a:x:1:2",
            "g:x:zz:",
            "a:g",
            "line 1 of the image's /etc/group, \"g\"",
        ),
        (
            "a:x:1:2",
            "g:x:zz:b,a",
            "a",
            "its group id \"zz\" is not a number",
        ),
        (
            "a:x:1:2",
            "g:x:4294967295:a",
            "a",
            "is not from 0 to 4294967294",
        ),
        (
            "a\u{1b}[2J:x:z\n:2",
            "",
            "a\u{1b}[2J",
            "\"a\\u{1b}[2J\": its user id \"z\"",
        ),
    ] {
        let (passwd, group) = (passwd.as_bytes(), group.as_bytes());
        let read = resolve(Some(passwd), Some(group), &UserRequest::default(), asked);
        let told = read.unwrap_err().to_string();
        assert!(told.contains(said), "{asked}: {told}");
        assert!(!told.contains(char::is_control) && told.contains("correct it in the image"));
    }
    let long = format!("a:x:{}:2", "9x".repeat(100_000));
    let read = resolve(Some(long.as_bytes()), None, &UserRequest::default(), "a");
    assert!(read.unwrap_err().to_string().len() < 400);
}

#[test]
fn a_missing_group_id_is_told() {
    let read = |passwd: &str, group: &str, request: &UserRequest, asked: &str| {
        let resolved = resolve(
            Some(passwd.as_bytes()),
            Some(group.as_bytes()),
            request,
            asked,
        );
        resolved.unwrap().warnings
    };
    let nothing = UserRequest::default();
    assert_eq!(
        read("\napp:x:10001:", "", &nothing, "app"),
        ["line 2 of the image's /etc/passwd, \"app\", has no group id: 0 is taken"]
    );
    assert_eq!(
        read("a:x:1:2", "g:x::a", &nothing, "a"),
        ["line 1 of the image's /etc/group, \"g\", has no group id: 0 is taken"]
    );
    // Nothing is said of what was not needed.
    let with_group = UserRequest {
        uid: Some(10001),
        gid: Some(7),
        policy: GroupsPolicy::Strict,
        ..UserRequest::default()
    };
    assert_eq!(read("app:x:10001:", "g:x::app", &with_group, ""), [""; 0]);
}

#[test]
fn root_under_merge_has_its_group_once() {
    let request = |policy| UserRequest {
        supplemental_groups: vec![0, 7, 7, 5],
        policy,
        ..UserRequest::default()
    };
    let resolve = |policy| resolve_with(&request(policy), "").unwrap().groups;
    assert_eq!(resolve(GroupsPolicy::Merge), [0, 5, 7, 50]);
    assert_eq!(resolve(GroupsPolicy::Strict), [0, 5, 7]);

    // Under Strict it is not listed for who asked for nobody: containerd lists there what was asked for.
    let only = |user: &str, supplemental: &[u32]| {
        let request = UserRequest {
            supplemental_groups: supplemental.to_vec(),
            policy: GroupsPolicy::Strict,
            ..UserRequest::default()
        };
        resolve_with(&request, user).unwrap().groups
    };
    assert_eq!(only("", &[7, 5]), [5, 7]);
    assert_eq!(only("", &[]), [0; 0]);
    assert_eq!(only("0", &[7, 5]), [0, 5, 7]);
    assert_eq!(only("root", &[]), [0]);
    assert_eq!(only(":staff", &[7]), [7, 50]);
}

#[test]
fn a_group_of_the_users_own_name_is_no_further_one() {
    let merged = |passwd: &str, group: &str, uid, gid| {
        let request = UserRequest {
            uid: Some(uid),
            gid,
            policy: GroupsPolicy::Merge,
            ..UserRequest::default()
        };
        let found = resolve(
            Some(passwd.as_bytes()),
            Some(group.as_bytes()),
            &request,
            "",
        );
        found.unwrap().user.groups
    };
    let root = "root:x:0:0:::\n";
    assert_eq!(
        merged(root, "root:x:0:root\nbin:x:1:root,bin\n", 0, Some(1000)),
        [1, 1000]
    );
    assert_eq!(merged("app:x:7:8:::\n", "app:x:7:app\n", 7, None), [8]);
    assert_eq!(
        merged("app:x:7:8:::\n", "app:x:7:app\napps:x:9:app\n", 7, None),
        [8, 9]
    );
}

#[test]
fn white_space_around_a_line_is_gos() {
    for space in [
        "\u{b}",
        "\u{c}",
        "\u{85}",
        "\u{a0}",
        "\u{2003}\t",
        "\u{3000}\r",
    ] {
        let passwd = format!("{space}app:x:7:8::/h{space}\n{space}\n");
        let group = format!("{space}wheel:x:10:app{space}\n");
        let request = UserRequest::default();
        let found = resolve(
            Some(passwd.as_bytes()),
            Some(group.as_bytes()),
            &request,
            "app",
        );
        assert_eq!(found.unwrap().user, user(7, 8, &[8, 10], "/h"), "{space:?}");
    }
    // Half a character is none.
    let request = UserRequest::default();
    assert!(resolve(Some(b"\x85app:x:7:8::/h"), None, &request, "app").is_err());
}

#[test]
fn who_has_no_account_has_the_root_for_a_home() {
    let home = |passwd: Option<&[u8]>, image: &str| {
        let request = UserRequest::default();
        resolve(passwd, None, &request, image).unwrap().user.home
    };
    let others = &b"app:x:7:8::/h\n"[..];
    for (passwd, image) in [
        (None, ""),
        (None, "0"),
        (None, "1000:1000"),
        (Some(others), ""),
        (Some(others), ":5"),
        (Some(others), "99"),
    ] {
        assert_eq!(home(passwd, image), "/", "{image}");
    }
    assert_eq!(home(Some(PASSWD), ":5"), "/root");
}
