//! A page of the documentation: its headings, links and commands.
//!
//! A block that begins with ```` ```console ```` contains commands, in lines that begin with `$ `, each followed by its output.
//! `> ` continues a command. Two comments describe what the commands need: `<!-- needs: … -->` lists programs, `fuse` and
//! `root`; `<!-- after: PAGE#HEADING … -->` lists sections of other pages whose commands run first.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Component, Path, PathBuf};

use regex::Regex;

/// A parsed page.
pub struct Page {
    pub path: PathBuf,
    /// Programs and privileges that its commands need, with those of the sections that run first.
    pub needs: BTreeSet<String>,
    /// Commands of other pages that run first. Their output is not compared.
    pub earlier: Vec<Command>,
    /// The commands, in their order.
    pub commands: Vec<Command>,
    /// Targets of relative links.
    pub links: Vec<String>,
    /// Anchors of the headings.
    pub anchors: Vec<String>,
}

/// A command and its output.
#[derive(Clone)]
pub struct Command {
    /// Number of its first line in the page, from 1.
    pub line: usize,
    /// The anchor of the section that contains it.
    section: String,
    /// Lines of the command, without `$ ` and `> `.
    pub script: Vec<String>,
    /// Lines of output that the page shows.
    pub output: Vec<String>,
}

impl Page {
    /// Reads a page.
    pub fn open(path: &Path) -> Self {
        let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let mut page = Self {
            path: path.to_owned(),
            needs: words(&text, "needs").map(str::to_owned).collect(),
            earlier: Vec::new(),
            commands: Vec::new(),
            links: Vec::new(),
            anchors: Vec::new(),
        };
        page.parse(&text);
        for section in words(&text, "after") {
            let (file, anchor) = section.split_once('#').expect("a section is written as PAGE#HEADING");
            let other = Self::open(&normalised(&path.parent().unwrap().join(file)));
            assert!(other.anchors.iter().any(|heading| heading == anchor), "{}: {section}", path.display());
            page.earlier.extend(other.commands.into_iter().filter(|command| command.section == anchor));
        }
        page
    }

    fn parse(&mut self, text: &str) {
        let mut block: Option<String> = None;
        for (number, line) in text.lines().enumerate() {
            if let Some(language) = line.trim_start().strip_prefix("```") {
                block = if block.is_some() { None } else { Some(language.to_owned()) };
                continue;
            }
            match block.as_deref() {
                Some("console") => self.parse_console_line(line, number + 1),
                Some(_) => {}
                None => self.parse_text_line(line),
            }
        }
    }

    fn parse_console_line(&mut self, line: &str, number: usize) {
        if let Some(command) = line.strip_prefix("$ ") {
            let section = self.anchors.last().cloned().unwrap_or_default();
            let script = vec![command.to_owned()];
            self.commands.push(Command { line: number, section, script, output: Vec::new() });
            return;
        }
        let command = self.commands.last_mut().unwrap_or_else(|| panic!("{}: no command", self.path.display()));
        match line.strip_prefix('>') {
            Some(more) if command.output.is_empty() => {
                command.script.push(more.strip_prefix(' ').unwrap_or(more).to_owned());
            }
            _ => command.output.push(line.to_owned()),
        }
    }

    fn parse_text_line(&mut self, line: &str) {
        if line.starts_with('#') {
            self.anchors.push(anchor(line.trim_start_matches('#').trim()));
        }
        let link = Regex::new(r"\]\(([^)\s]+)\)").unwrap();
        let targets = link.captures_iter(line).map(|capture| capture[1].to_owned());
        self.links.extend(targets.filter(|target| !target.contains("://")));
    }
}

/// Returns the words of a comment such as `<!-- needs: umoci root -->`, if the page has one.
fn words<'t>(text: &'t str, key: &str) -> impl Iterator<Item = &'t str> {
    let start = format!("<!-- {key}: ");
    let comment = text.lines().find_map(|line| line.strip_prefix(start.as_str())?.strip_suffix(" -->"));
    comment.unwrap_or_default().split(' ').filter(|word| !word.is_empty())
}

/// Returns the anchor that forges and mdBook give a heading.
fn anchor(heading: &str) -> String {
    let kept = heading.chars().filter(|&c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.flat_map(char::to_lowercase).map(|c| if c == ' ' { '-' } else { c }).collect()
}

/// Resolves `..` and `.` in a path.
pub fn normalised(path: &Path) -> PathBuf {
    let mut whole = PathBuf::new();
    for component in path.components() {
        match component {
            Component::ParentDir => drop(whole.pop()),
            Component::CurDir => {}
            other => whole.push(other),
        }
    }
    whole
}

#[test]
fn headings_have_the_anchors_of_forges() {
    assert_eq!(anchor("1. An image"), "1-an-image");
    assert_eq!(anchor("Removing images, `gc` and `/cvmfs`"), "removing-images-gc-and-cvmfs");
}

#[test]
fn page_is_parsed_into_commands_with_output() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("page.md");
    let text = "# A b\n<!-- needs: umoci root -->\n[x](y.md#z) [w](https://h.org)\n```console\n$ cat <<END\n> a\n> END\na\n```\n\
                ```sh\nnot run [x](in-a-block)\n```\n";
    fs::write(&file, text).unwrap();
    let page = Page::open(&file);
    let [command] = &page.commands[..] else { panic!("one command") };
    assert_eq!((command.line, command.section.as_str()), (5, "a-b"));
    assert_eq!((command.script.join("\n"), command.output.join("\n")), ("cat <<END\na\nEND".into(), "a".into()));
    assert_eq!((page.links, page.anchors), (vec!["y.md#z".to_owned()], vec!["a-b".to_owned()]));
    assert_eq!(page.needs.into_iter().collect::<Vec<_>>(), ["root", "umoci"]);
}
