//! The documentation is true: its commands print what it shows, and its links lead to existing files and headings.

mod page;
mod shell;

use std::fs;
use std::path::{Path, PathBuf};

use regex::Regex;
use rustix::process::geteuid;
use strata::settings::Settings;

use crate::support::{need, need_fuse, skip};
use page::Page;

/// Maximum number of lines of the README.
const README_LINES: usize = 150;

/// Maximum length of a line in characters. Rows of tables in the manual may be longer, because they cannot be wrapped.
const LINE_LENGTH: usize = 140;

/// Returns the README and the pages of the manual.
fn pages() -> Vec<Page> {
    let manual = markdown_files("docs");
    [PathBuf::from("README.md")].into_iter().chain(manual).map(|path| Page::open(&path)).collect()
}

/// Returns the Markdown files in a directory, sorted.
fn markdown_files(directory: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).unwrap();
    let files = entries.map(|entry| Path::new(directory).join(entry.unwrap().file_name()));
    let mut files: Vec<PathBuf> = files.filter(|path| path.extension().is_some_and(|is| is == "md")).collect();
    files.sort();
    files
}

/// Returns whether this machine has what the commands of a page need. If not, prints that the page is skipped.
#[track_caller]
fn can_run(page: &Page) -> bool {
    page.needs.iter().all(|need_of_page| match need_of_page.as_str() {
        "fuse" => need_fuse(),
        "root" => {
            if !geteuid().is_root() {
                skip(&format!("{} is tried as root", page.path.display()));
            }
            geteuid().is_root()
        }
        program => need(program),
    })
}

#[test]
fn commands_print_what_the_documentation_shows() {
    let mut differences = Vec::new();
    for page in pages().iter().filter(|page| !page.commands.is_empty()) {
        if can_run(page) {
            differences.extend(shell::differences(page));
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

#[test]
fn links_of_the_documentation_lead_to_files_and_headings() {
    let documents = [".", "docs", "benches", "catalog-schema"].map(markdown_files).concat();
    let mut dead = Vec::new();
    let mut count = 0;
    for document in documents.iter().map(|path| Page::open(path)) {
        for link in &document.links {
            count += 1;
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = match file {
                "" => document.path.clone(),
                _ => page::normalised(&document.path.parent().unwrap().join(file)),
            };
            let has_anchor = || Page::open(&target).anchors.iter().any(|heading| heading == anchor);
            if !target.exists() || !(anchor.is_empty() || has_anchor()) {
                dead.push(format!("{}: {link}", document.path.display()));
            }
        }
    }
    assert!(count > 100, "only {count} links were found");
    assert!(dead.is_empty(), "dead links:\n{}", dead.join("\n"));
}

#[test]
fn summary_lists_every_page_of_the_manual() {
    let summary = Page::open(Path::new("docs/SUMMARY.md"));
    for page in markdown_files("docs") {
        let name = page.file_name().unwrap().to_str().unwrap();
        assert!(name == "SUMMARY.md" || summary.links.iter().any(|link| link == name), "{name}");
    }
}

#[test]
fn page_of_the_settings_names_every_setting() {
    let page = fs::read_to_string("docs/settings.md").unwrap();
    let file = Settings::new("a.example.org".parse().unwrap()).write();
    let setting = Regex::new(r"(?m)^#?([a-z_]+) = ").unwrap();
    let names: Vec<&str> = setting.captures_iter(&file).map(|capture| capture.get(1).unwrap().as_str()).collect();
    assert!(names.len() > 20, "{names:?}");
    for name in names {
        assert!(page.contains(&format!("\n| `{name}` |")), "{name}");
    }
}

#[test]
fn readme_and_lines_are_short() {
    let readme = fs::read_to_string("README.md").unwrap();
    assert!(readme.lines().count() <= README_LINES, "{} lines", readme.lines().count());
    for page in pages() {
        let is_readme = page.path == Path::new("README.md");
        for (number, line) in fs::read_to_string(&page.path).unwrap().lines().enumerate() {
            let may_be_long = line.starts_with('|') && !is_readme;
            let length = line.chars().count();
            assert!(may_be_long || length <= LINE_LENGTH, "{}:{}: {length}", page.path.display(), number + 1);
        }
    }
}
