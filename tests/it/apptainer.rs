//! What Singularity and Apptainer run in a published root file system. The tests run its scripts with plain shells at the
//! root of the mounted image. The configuration of the images contains everything that a shell could interpret instead of passing on.
//!
//! The image's program must receive exactly the arguments and variables that Docker would pass.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

use crate::support::fuse::Mount;
use crate::support::{TestImage, TestLayer, TestRepository, find_in_path, flat_path, need, need_fuse, skip};

/// Texts that a shell, or a nested shell, could interpret, and texts that a command could take for options.
const HOSTILE: [&str; 25] = [
    "",
    " ",
    "two  words",
    "'",
    "it's",
    "'\"'\"'",
    "\"",
    "say \"hi\"",
    "$HOME",
    "${HOME}",
    "$(id)",
    "`id`",
    "\\",
    "\\\\\\",
    "\\$HOME\\\"\\'\\`",
    "* [a-z]? ~ {a,b} !! #",
    "line\nbreak\n",
    "\\\ntab\there\rreturn",
    "}; id >&2; {",
    "-n",
    "--",
    "-c",
    "$@ $1 $#",
    "ÁÈÃ \u{81}\u{88} – 日本 🦀",
    "-e exec",
];

/// Script that prints each of its arguments, followed by a NUL.
const REPORT: &str = "#!/bin/sh\nprintf '%s\\0' \"$@\"\n";

/// Command that prints each variable, followed by a NUL.
const SHOW: [&str; 3] = ["/bin/busybox", "env", "-0"];

/// Variables by which users select how Singularity's scripts evaluate the configuration. The result must not depend on them.
const WAYS: [&[(&str, &str)]; 3] = [&[], &[("SINGULARITY_NO_EVAL", "1")], &[("APPTAINER_NO_EVAL", "1")]];

/// Shells that test images have as `/bin/sh`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shell {
    Busybox,
    Dash,
}

const SHELLS: [Shell; 2] = [Shell::Busybox, Shell::Dash];

fn find(program: &str) -> PathBuf {
    find_in_path(program).unwrap_or_else(|| panic!("the test does not check whether {program} is installed"))
}

/// Adds a program to a layer, with the libraries that it is linked with.
fn with_program(layer: TestLayer, name: &str, program: &Path) -> TestLayer {
    let linked = Command::new("ldd").arg(program).output().map(|output| output.stdout).unwrap_or_default();
    let linked = String::from_utf8(linked).unwrap();
    let libraries = linked.split_whitespace().filter(|word| word.starts_with('/'));
    let layer = layer.file(name, fs::read(program).unwrap()).mode(0o755);
    libraries.fold(layer, |layer, library| layer.file(library, fs::read(library).unwrap()).mode(0o755))
}

/// Returns an image with a shell, busybox and [`REPORT`].
fn base(shell: Shell) -> TestImage {
    TestImage::new().layer(|layer| {
        let layer = with_program(layer, "bin/busybox", &find("busybox")).file("bin/report", REPORT).mode(0o755);
        match shell {
            Shell::Busybox => layer.symlink("bin/sh", "busybox"),
            Shell::Dash => with_program(layer, "bin/sh", &find("dash")),
        }
    })
}

/// Mounted images, by number.
struct Images {
    mount: Mount,
    images: Vec<TestImage>,
    _repository: TestRepository,
}

impl Images {
    /// Publishes and mounts images. Returns `None` where mounts, or programs in them, are not possible.
    #[track_caller]
    fn of(images: Vec<TestImage>) -> Option<Self> {
        let names: Vec<String> = (0..images.len()).map(|number| format!("h.example.org/image:{number}")).collect();
        let named: Vec<(&str, &TestImage)> = names.iter().map(String::as_str).zip(&images).collect();
        let repository = TestRepository::new();
        repository.convert_together(&named, &[]).expect_code(0);
        let mount = Mount::start(&repository, &[]);
        let images = Self { mount, images, _repository: repository };
        let works = images.run(0, &["/bin/sh", "-c", ":"], &[], "").status.success();
        if !works {
            skip("'unshare --map-root-user --root' does not work on this machine");
        }
        works.then_some(images)
    }

    /// Runs a command at the root of an image with exactly these variables.
    fn run(&self, image: usize, command: &[&str], variables: &[(&str, &str)], input: &str) -> Output {
        let root = self.mount.directory.join(flat_path(&self.images[image]));
        let mut unshare = Command::new(find("unshare"));
        unshare.args(["--user", "--map-root-user", "--root"]).arg(root).args(command);
        unshare.env_clear().envs(variables.iter().copied());
        let mut child = unshare.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // A program that does not read its input may have ended.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        child.wait_with_output().unwrap()
    }

    /// Runs a command and returns its output, split at NULs.
    #[track_caller]
    fn pieces(&self, image: usize, command: &[&str], variables: &[(&str, &str)]) -> Vec<String> {
        let output = self.run(image, command, variables, "");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && stderr.is_empty(), "{command:?} {variables:?}: {stderr}");
        let mut pieces: Vec<String> =
            String::from_utf8(output.stdout).unwrap().split('\0').map(str::to_owned).collect();
        assert_eq!(pieces.pop().as_deref(), Some(""), "the last NUL ends the output");
        pieces
    }

    /// Runs [`SHOW`] and returns the variables, without those that shells set themselves.
    #[track_caller]
    fn variables(&self, image: usize, command: &[&str], variables: &[(&str, &str)]) -> BTreeMap<String, String> {
        let pairs = self.pieces(image, command, variables).into_iter().map(|variable| {
            let (name, value) = variable.split_once('=').expect("env prints names and values");
            (name.to_owned(), value.to_owned())
        });
        pairs.filter(|(name, _)| !["PWD", "OLDPWD", "SHLVL", "_"].contains(&name.as_str())).collect()
    }
}

/// Returns whether the tests can run on this machine. If not, prints the reason.
#[track_caller]
fn can_run() -> bool {
    need_fuse() && need("busybox") && need("dash") && need("unshare")
}

fn with_lists(image: TestImage, entrypoint: &[&str], cmd: &[&str]) -> TestImage {
    image.setting("Entrypoint", json!(entrypoint)).setting("Cmd", json!(cmd))
}

#[test]
fn program_gets_entry_point_command_and_arguments_as_with_docker() {
    if !can_run() {
        return;
    }
    let reporter: Vec<&str> = ["/bin/report"].into_iter().chain(HOSTILE).collect();
    let lists: [(&[&str], &[&str]); 5] = [
        (&reporter, &HOSTILE),
        (&reporter, &[]),
        (&[], &reporter),
        (&[""], &reporter),
        (&["/bin/report"], &["", "-n"]),
    ];
    let each = SHELLS.iter().flat_map(|&shell| lists.map(|(entrypoint, cmd)| (shell, entrypoint, cmd)));
    let each: Vec<_> = each.collect();
    let images = each.iter().map(|(shell, entrypoint, cmd)| with_lists(base(*shell), entrypoint, cmd));
    let Some(images) = Images::of(images.collect()) else { return };
    let arguments: [&[&str]; 4] = [&[], &HOSTILE, &[""], &["-c", "id"]];
    for (number, (shell, entrypoint, cmd)) in each.into_iter().enumerate() {
        // Docker treats an entry point of one empty string as no entry point.
        let entrypoint = if entrypoint == [""] { &[] } else { entrypoint };
        for arguments in arguments {
            // Without an entry point, the first argument is the program.
            let program = if entrypoint.is_empty() && !arguments.is_empty() { &["/bin/report"][..] } else { &[] };
            let arguments = [program, arguments].concat();
            let rest = if arguments.is_empty() { cmd } else { &arguments };
            let expected = [entrypoint, rest].concat();
            for (action, way) in ["/.run", "/singularity", "/.singularity.d/actions/run"].iter().zip(WAYS) {
                let found = images.pieces(number, &[&[*action], &arguments[..]].concat(), way);
                assert_eq!(found, expected[1..], "{shell:?} {action} {way:?}: {entrypoint:?} {cmd:?} {arguments:?}");
            }
        }
    }
}

#[test]
fn image_without_a_program_runs_the_arguments_or_a_shell() {
    if !can_run() {
        return;
    }
    let images = SHELLS.iter().map(|&shell| base(shell)).collect();
    let Some(images) = Images::of(images) else { return };
    for (number, way) in SHELLS.iter().enumerate().flat_map(|(number, _)| WAYS.map(|way| (number, way))) {
        let command: Vec<&str> = ["/.run", "/bin/report"].into_iter().chain(HOSTILE).collect();
        assert_eq!(images.pieces(number, &command, way), HOSTILE);
        let output = images.run(number, &["/.run"], way, "/bin/report \"a  b\" '$x'");
        assert_eq!(String::from_utf8(output.stdout).unwrap(), "a  b\0$x\0");
    }
}

/// Returns an image with each hostile text in a variable, with variable names that no shell accepts, and with a search path.
fn with_environment(image: TestImage) -> TestImage {
    let image = image.env("PATH", "/image/$bin:/bin").env("EMPTY", "").env("TWICE", "1").env("TWICE", "2");
    let image = ["BAD-NAME", "1ST", "DOT.TED", "", "WITH SPACE", "Ü", "$(id)"]
        .iter()
        .fold(image, |image, name| image.env(name, "never"));
    let image =
        HOSTILE.iter().enumerate().fold(image, |image, (number, value)| image.env(&format!("HOSTILE_{number}"), value));
    with_lists(image, &SHOW, &[])
}

/// Returns the variables that a program in that image must receive if the user sets none.
fn expected_environment() -> BTreeMap<String, String> {
    let hostile = HOSTILE.iter().enumerate().map(|(number, value)| (format!("HOSTILE_{number}"), *value));
    let own = [
        ("PATH", "/image/$bin:/bin"),
        ("EMPTY", ""),
        ("TWICE", "2"),
        ("LD_LIBRARY_PATH", "/.singularity.d/libs"),
        ("PS1", "Singularity> "),
    ];
    let own = own.map(|(name, value)| (name.to_owned(), value));
    hostile.chain(own).map(|(name, value)| (name, value.to_owned())).collect()
}

#[test]
fn program_gets_the_variables_of_the_image_unless_the_user_sets_them() {
    if !can_run() {
        return;
    }
    let images = SHELLS.iter().map(|&shell| with_environment(base(shell))).collect();
    let Some(images) = Images::of(images) else { return };
    let show = SHOW.as_slice();
    let commands = [vec!["/.run"], [&["/.exec"], show].concat(), vec!["/.shell", "-c", "exec /bin/busybox env -0"]];
    for (number, command) in (0..SHELLS.len()).flat_map(|number| commands.iter().map(move |command| (number, command)))
    {
        let mut expected = expected_environment();
        if command[0] == "/.shell" {
            expected.insert("SHELL".to_owned(), "/bin/sh".to_owned());
        }
        assert_eq!(images.variables(number, command, &[]), expected, "{command:?}");
        for value in HOSTILE.iter().filter(|value| !value.is_empty()) {
            let user = [("HOSTILE_3", *value), ("EMPTY", value), ("OWN", value), ("PATH", "/host"), ("TWICE", "")];
            for name in ["HOSTILE_3", "EMPTY", "OWN"] {
                expected.insert(name.to_owned(), (*value).to_owned());
            }
            assert_eq!(images.variables(number, command, &user), expected, "{command:?}");
        }
    }
}

#[test]
fn exec_shell_and_test_pass_on_their_arguments_unchanged() {
    if !can_run() {
        return;
    }
    let with_test = |image: TestImage| image.layer(|layer| layer.file(".singularity.d/test", REPORT).mode(0o755));
    let images = SHELLS.iter().flat_map(|&shell| [base(shell), with_test(base(shell))]).collect();
    let Some(images) = Images::of(images) else { return };
    for number in (0..2 * SHELLS.len()).step_by(2) {
        let after = |command: &[&'static str]| [command, &HOSTILE].concat();
        assert_eq!(images.pieces(number, &after(&["/.exec", "/bin/report"]), &[]), HOSTILE);
        let report = "printf '%s\\0' \"$@\"";
        assert_eq!(images.pieces(number, &after(&["/.shell", "-c", report, "sh"]), &[]), HOSTILE);
        let chosen = [("SINGULARITY_SHELL", "/bin/report")];
        assert_eq!(images.pieces(number, &after(&["/.shell"]), &chosen), HOSTILE);
        assert!(images.run(number, &["/.test"], &[], "").status.success());
        assert_eq!(images.pieces(number + 1, &after(&["/.test"]), &[]), HOSTILE);
    }
}

#[test]
fn labels_are_those_of_the_image() {
    let labels = HOSTILE.iter().filter(|text| !text.is_empty());
    let image = labels.fold(TestImage::new(), |image, text| image.label(text, text));
    let image = image.layer(|layer| layer.file("a", ""));
    let repository = TestRepository::publish(&image);
    let json: Value = serde_json::from_str(&repository.flat(&image).text(".singularity.d/labels.json")).unwrap();
    let config: Value = serde_json::from_slice(&image.config()).unwrap();
    assert_eq!(json, config["config"]["Labels"]);
    let repository = TestRepository::publish(&TestImage::new().layer(|layer| layer.file("a", "")));
    let bare = TestImage::new().layer(|layer| layer.file("a", ""));
    assert_eq!(repository.flat(&bare).text(".singularity.d/labels.json"), "{}");
}

#[test]
fn files_of_the_image_stay_and_links_are_followed_only_inside_the_root() {
    let image = TestImage::new().layer(|layer| {
        let layer = layer.symlink("home", "/data/home").symlink("tmp", "nowhere").dir("root").mode(0o700);
        let layer = layer.symlink("var", "/data/var").dir("data/var").mode(0o711).file("dev", "no directory");
        let layer = layer.symlink("etc", "../../data/etc").dir("data/etc").symlink("data/etc/hosts", "/etc/hostname");
        layer
            .file("data/etc/hostname", "own")
            .file("data/etc/resolv.conf", "own")
            .mode(0o600)
            .symlink("environment", "x")
            .file("singularity", "own")
    });
    let flat = TestRepository::publish(&image).flat(&image);
    assert_eq!([flat.target("home"), flat.target("tmp")], ["/data/home", "nowhere"]);
    assert_eq!(
        flat.target("environment"),
        ".singularity.d/env/90-environment.sh",
        "links in the place of Singularity's own are replaced"
    );
    assert_eq!(flat.text("singularity"), "own");
    assert_eq!((flat.get("root").mode & 0o7777, flat.get("data/var").mode & 0o7777), (0o700, 0o711));
    assert_eq!((flat.text("dev").as_str(), flat.get("data/var/tmp").mode & 0o7777), ("no directory", 0o755));
    assert_eq!((flat.text("data/etc/hosts").as_str(), flat.get("data/etc/hosts").mode & 0o7777), ("", 0o644));
    assert_eq!((flat.text("data/etc/hostname").as_str(), flat.text("data/etc/resolv.conf").as_str()), ("own", "own"));
    assert_eq!(flat.get("data/etc/resolv.conf").mode & 0o7777, 0o600);
    for directory in ["proc", "sys", ".singularity.d/libs"] {
        assert_eq!(flat.get(directory).mode, 0o040_755, "{directory}");
    }
}
