//! What the Debian package installs beside the programs agrees with them.
//!
//! The manual pages are kept in the repository, so that a package is made without building anything that the
//! daemon does not need. `BERTH_UPDATE=1 cargo test -p berth --test package` writes them again.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, italic, roman};

fn project() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// File name to content. No version: a release would change every page.
fn pages() -> BTreeMap<String, String> {
    let mut pages = BTreeMap::new();
    let mut command = berth::cli::command();
    command.build();
    command_page(&command, &mut pages);
    pages.insert("berth-config.toml.5".to_owned(), config_page());
    pages
}

fn command_page(command: &clap::Command, pages: &mut BTreeMap<String, String>) {
    let subcommands: Vec<_> = command
        .get_subcommands()
        .filter(|sub| sub.get_name() != "help")
        .collect();
    for sub in &subcommands {
        command_page(sub, pages);
    }
    let page = Man::new(command.clone());
    let name = command.get_display_name().unwrap_or("berth");
    let mut text = title(name, 1, "Berth's commands").into_bytes();
    page.render_name_section(&mut text).unwrap();
    page.render_synopsis_section(&mut text).unwrap();
    page.render_description_section(&mut text).unwrap();
    page.render_options_section(&mut text).unwrap();
    if !subcommands.is_empty() {
        page.render_subcommands_section(&mut text).unwrap();
    }
    let mut text = String::from_utf8(text).unwrap();
    if command.get_name() == "berth" {
        text.push_str(&files().to_roff());
    }
    pages.insert(page.get_filename(), text);
}

fn files() -> Roff {
    let mut roff = Roff::new();
    roff.control("SH", ["FILES"]);
    for (path, what) in [
        (
            "/etc/berth/config.toml, /etc/berth/conf.d/*.toml",
            "The configuration; see berth-config.toml(5). Neither needs to exist.",
        ),
        (
            "/etc/berth/certs.d/HOST/hosts.toml",
            "Mirrors and certificates of registries.",
        ),
        (
            "/etc/berth/auth.json",
            "Credentials of this node for registries, as docker's config.json. Need not exist.",
        ),
        (
            "/run/berth/berth.sock",
            "The socket of the CRI, for the kubelet and crictl.",
        ),
        (
            "/run/berth/admin.sock",
            "The socket of berth images and berth explain; metrics and health, over HTTP.",
        ),
        (
            "/run/berth, /var/lib/berth",
            "Volatile and persistent state.",
        ),
    ] {
        roff.control("TP", [])
            .text([italic(path)])
            .text([roman(what)]);
    }
    roff.control("SH", ["SEE ALSO"]);
    roff.text([
        bold("berth-config.toml"),
        roman("(5), "),
        bold("crictl"),
        roman("(1)"),
    ]);
    roff
}

fn config_page() -> String {
    let mut roff = Roff::new();
    roff.control("SH", ["NAME"]);
    roff.text([roman("berth-config.toml - configuration of berth(1)")]);
    roff.control("SH", ["SYNOPSIS"]);
    roff.text([
        italic("/etc/berth/config.toml"),
        roman(", "),
        italic("/etc/berth/conf.d/*.toml"),
    ]);
    roff.control("SH", ["DESCRIPTION"]);
    let reloaded = format!(
        "SIGHUP (systemctl reload berth) has the daemon read the files again and take up {}, hosts, certificates and \
         credentials of registries, and what the machine trusts. What is broken is logged, and the old stays in force; \
         keys that wait for a restart are named in the log.",
        berth::config::RELOADED.join(", ")
    );
    for paragraph in [
        "TOML. No file needs to exist, for every key has a default. Files in conf.d, in the order of their names, win \
         over config.toml, and flags of berth serve win over all files; a list is replaced as a whole. A key that \
         Berth does not know, or a value of the wrong type, is an error with file and line, and the daemon does not start.",
        "berth config show prints every key with its value and where the value came from; berth config default prints \
         this list as a file. A change is in force after a restart of the daemon, which leaves containers running.",
        &reloaded,
    ] {
        roff.control("PP", []).text([roman(paragraph)]);
    }
    let mut open = None;
    for key in berth::config::KEYS {
        let (table, name) = key.table_and_name();
        if open != Some(table) {
            let title = if table.is_empty() {
                "KEYS WITHOUT A TABLE".to_owned()
            } else {
                format!("[{table}]")
            };
            roff.control("SH", [title.as_str()]);
            open = Some(table);
        }
        roff.control("TP", []);
        roff.text([bold(name), roman(" = "), italic(key.default_toml())]);
        roff.text([roman(sentence(key.doc))]);
    }
    roff.control("SH", ["SEE ALSO"]);
    roff.text([
        bold("berth"),
        roman("(1), "),
        bold("berth-config"),
        roman("(1)"),
    ]);
    title("berth-config.toml", 5, "Berth's files") + &roff.to_roff()
}

/// Not roff's: it leaves an empty date away, and the words after it then are in wrong places.
fn title(name: &str, section: u8, manual: &str) -> String {
    format!(".TH {name} {section} \"\" Berth \"{manual}\"\n")
}

fn sentence(doc: &str) -> String {
    let mut letters = doc.chars();
    let first = letters.next().map(|c| c.to_ascii_uppercase());
    first.into_iter().chain(letters).chain(['.']).collect()
}

#[test]
fn manual_pages_say_what_the_program_knows() {
    let dir = project().join("docs/man");
    let pages = pages();
    if std::env::var_os("BERTH_UPDATE").is_some() {
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).unwrap();
        for (name, text) in &pages {
            fs::write(dir.join(name), text).unwrap();
        }
    }
    let mut there: Vec<_> = fs::read_dir(&dir)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    there.sort();
    assert_eq!(there, pages.keys().cloned().collect::<Vec<_>>());
    for (name, text) in pages {
        assert_eq!(
            fs::read_to_string(dir.join(&name)).unwrap(),
            text,
            "docs/man/{name} is out of date: BERTH_UPDATE=1 cargo test -p berth --test package"
        );
    }
}

/// Settings of a service that no monitor or container inherits, or that the daemon resets for each of them.
const HARMLESS: &[&str] = &[
    "Type",
    "ExecStartPre",
    "ExecStart",
    "ExecReload",
    "Slice",
    "KillMode",
    "Delegate",
    "Restart",
    "RestartSec",
    "OOMScoreAdjust",
    "TasksMax",
];

#[test]
fn the_unit_has_no_setting_that_containers_would_inherit() {
    let unit = fs::read_to_string(project().join("hack/systemd/berth.service")).unwrap();
    let (_, service) = unit.split_once("[Service]").unwrap();
    let (service, _) = service.split_once("[Install]").unwrap();
    let keys: Vec<_> = service
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_once('='))
        .map(|(key, _)| key)
        .collect();
    for key in &keys {
        assert!(
            HARMLESS.contains(key),
            "{key}= in berth.service: would a container inherit it?"
        );
    }
    for line in ["Slice=berth.slice", "Delegate=yes", "KillMode=process"] {
        assert!(service.lines().any(|l| l == line), "{line} is missing");
    }
}
