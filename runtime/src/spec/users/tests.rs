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

fn resolve_with(request: &UserRequest, image: &str) -> Result<ContainerUser, UserError> {
    resolve(Some(PASSWD), Some(GROUP), request, image)
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
        resolve(None, None, &UserRequest::default(), "").unwrap(),
        user(0, 0, &[0], "/root")
    );
}

#[test]
fn the_images_user_in_all_its_forms() {
    let app = user(1000, 1001, &[10, 50, 60, 1001], "/home/app");
    assert_eq!(image("app").unwrap(), app);
    assert_eq!(image("1000").unwrap(), app);
    assert_eq!(image("app:").unwrap(), app);
    assert_eq!(image("app:staff").unwrap().gid, 50);
    assert_eq!(image("1000:77").unwrap().groups, [10, 50, 60, 77]);
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
        "00",
        "010",
        "1000:4294967296",
    ] {
        assert!(
            matches!(image(text), Err(UserError::OutOfRange(_))),
            "{text}"
        );
    }
    for text in [
        "-1",
        "0x0",
        "+1000",
        " 1000",
        "1000 ",
        "nobody",
        "bad",
        "ap",
        "root:nope",
        "root:-1",
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
    for text in ["huge", "big"] {
        assert!(
            matches!(image(text), Err(UserError::OutOfRange(_))),
            "{text}"
        );
    }
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
        user(1000, 7, &[7, 10, 50, 60], "/home/app")
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
        [4, 5, 10, 50, 60, 1001]
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
    let user = resolve(Some(PASSWD), Some(&group), &request, "").unwrap();
    assert_eq!(user.groups, [1001]);
    assert!(begin.elapsed().as_secs() < 5);
}
