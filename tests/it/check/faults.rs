//! `check` is tested with the same planted faults as the strict reader.

use std::fs;

use strata::check::CheckReport;
use tempfile::TempDir;

use super::check_directory;
use crate::strict_selftest::faults::{FILES, HISTORY, MANIFEST, NESTED, REFLOG, ROOT_ROWS, ROOT_TABLES};
use crate::strict_selftest::forge::{FQRN, Forge, Forged, PUBLIC_KEY};

/// SQL for states that only other programs write: the format allows them, but the strict reader refuses them.
const LAWFUL: [&str; 16] = [
    // Row IDs with gaps.
    "UPDATE catalog SET rowid = 99 WHERE name = 'null'",
    // Extended attributes in any order.
    "UPDATE catalog SET xattr = x'0102010062010061' WHERE name = 'raw'",
    // Additional counters, tables and properties.
    "INSERT INTO statistics VALUES ('self_other', 0)",
    "CREATE TABLE more (a)",
    "INSERT INTO properties VALUES ('voms_authz', 'x')",
    "INSERT INTO properties VALUES ('TTL', '9')",
    // A gateway sets the time of tags.
    "UPDATE tags SET timestamp = 9 WHERE name = 'trunk'",
    // Objects that were collected but are still in the log of references; the time of a row.
    "INSERT INTO refs VALUES (lower(hex(randomblob(20))), 0, 1)",
    "UPDATE refs SET timestamp = 0",
    // Manifest fields that may be missing, unknown, or duplicate; any value other than "yes" means "no".
    "\nT1700000001",
    "\nGmaybe",
    "\nAno\nAno",
    "\nQx",
    // Other files beside the objects, leftovers of a killed run, and a log of references that is newer than the manifest.
    "lock",
    "data/txn/x",
    ".cvmfsreflog field Y of the manifest",
];

pub fn check_forged(repository: &Forged) -> CheckReport {
    let directory: TempDir = tempfile::tempdir().unwrap();
    fs::write(directory.path().join(format!("{FQRN}.pub")), PUBLIC_KEY).unwrap();
    let settings = format!("repository = \"{FQRN}\"\nstorage = {:?}\nkeys = \".\"\n", repository.path());
    fs::write(directory.path().join("strata.toml"), settings).unwrap();
    check_directory(directory.path(), 0)
}

/// Fails unless a check finds the fault at the path that `words` begin with, or finds nothing if the format allows the state.
#[track_caller]
fn assert_judged(repository: &Forged, fault: &str, words: &[&str]) {
    let report = check_forged(repository);
    let mut messages: Vec<String> = report.findings.iter().map(ToString::to_string).collect();
    if LAWFUL.contains(&fault) {
        // The counters do not include an added attribute.
        messages.retain(|message| !message.contains("counter self_xattr"));
        assert_eq!(messages, [""; 0], "{fault:?} is lawful");
        return;
    }
    // Where the strict reader does not know the path, it names the row ID or only the kind of file, which `check` does not.
    let place = words[0].split(' ').next().filter(|place| place.starts_with(['/', '.'])).unwrap_or_default();
    assert!(!messages.is_empty(), "{fault:?} is not found");
    assert!(messages.iter().any(|message| message.contains(place)), "{fault:?} is not found at {place}: {messages:?}");
}

#[test]
fn forged_repository_without_faults_has_no_findings() {
    let report = check_forged(&Forge::new().build());
    assert_eq!((report.findings, report.warnings), (vec![], vec![]));
    assert_eq!((report.catalogs, report.entries), (3, 17));
}

#[test]
fn faults_in_catalogs_are_found() {
    for (sql, words) in ROOT_ROWS.iter().chain(ROOT_TABLES) {
        assert_judged(&Forge::new().root(&format!("{sql};")).build(), sql, words);
    }
    for (sql, words) in NESTED {
        assert_judged(&Forge::new().nested(&format!("{sql};")).build(), sql, words);
    }
}

#[test]
fn faults_in_other_databases_are_found() {
    for (sql, words) in HISTORY {
        assert_judged(&Forge::new().history(&format!("{sql};")).build(), sql, words);
    }
    for (sql, words) in REFLOG {
        assert_judged(&Forge::new().reflog(&format!("{sql};")).build(), sql, words);
    }
}

#[test]
fn faults_in_files_are_found() {
    for &(old, new, words) in MANIFEST {
        let fault = if new.is_empty() { old } else { new };
        let repository = Forge::new().manifest(move |text| text.replacen(old, new, 1)).build();
        assert_judged(&repository, fault, words);
    }
    for (plant, words) in FILES {
        let repository = Forge::new().build();
        plant(&repository);
        let fault = LAWFUL.iter().find(|lawful| **lawful == words[0] || **lawful == words.join(" "));
        assert_judged(&repository, fault.unwrap_or(&"fault of a file"), words);
    }
}

#[test]
fn catalog_in_wal_mode_is_found() {
    let report = check_forged(&Forge::new().root_bytes(|bytes| bytes[18..20].fill(2)).build());
    assert_eq!(report.findings.len(), 1);
    assert!(report.findings[0].expected.contains("rollback journal"));
}

#[test]
fn damaged_page_of_a_catalog_is_found() {
    // Pages have different content. Damage to any of them must not make the program crash.
    let edits: [fn(&mut [u8]); 6] = [
        |bytes| bytes[100..4096].fill(0x5a),
        |bytes| bytes[4096..8192].fill(0x5a),
        |bytes| bytes[8192..12_288].fill(0xff),
        |bytes| bytes[12_288..16_384].fill(0),
        |bytes| bytes[20_480..24_576].fill(0x5a),
        |bytes| bytes[24_576..28_672].fill(0x7f),
    ];
    for (number, edit) in edits.into_iter().enumerate() {
        let report = check_forged(&Forge::new().root_bytes(edit).build());
        assert!(!report.findings.is_empty(), "edit {number}");
        assert!(report.unreferenced.is_none() || report.catalogs == 3, "edit {number}: {report:?}");
        assert!(report.findings.iter().all(|finding| finding.file.ends_with('C')), "edit {number}: {report:?}");
    }
}

#[test]
fn valid_states_that_only_other_programs_write_have_no_findings() {
    let lawful = [
        // An external file without an object; a file that is both chunked and whole.
        "UPDATE catalog SET flags = flags | 128, hash = randomblob(20) WHERE name = 'raw';
         UPDATE statistics SET value = 1 WHERE counter = 'self_external';
         UPDATE statistics SET value = 3 WHERE counter = 'self_external_file_size'",
        // Schema revisions older than nanoseconds, and older than bind mountpoints.
        "ALTER TABLE catalog DROP COLUMN mtimens; UPDATE properties SET value = '6' WHERE key = 'schema_revision'",
        "ALTER TABLE catalog DROP COLUMN mtimens; DROP TABLE bind_mountpoints;
         UPDATE properties SET value = '3' WHERE key = 'schema_revision'",
        "UPDATE catalog SET parent_1 = NULL, parent_2 = NULL WHERE name = ''",
        "UPDATE nested_catalogs SET size = 0",
        "UPDATE catalog SET size = 0 WHERE name = 'link'",
        "UPDATE catalog SET flags = flags | 65536 WHERE name = 'raw'",
        // Flags that strata does not know: the trigger of a file bundle, and the highest bit.
        "UPDATE catalog SET flags = flags | 0x20000",
        "UPDATE catalog SET flags = flags | 0x80000000",
        "UPDATE catalog SET mtimens = NULL",
        "INSERT INTO properties VALUES ('something', 'else')",
    ];
    for sql in lawful {
        let report = check_forged(&Forge::new().root(&format!("{sql};")).build());
        assert_eq!((report.findings, report.warnings), (vec![], vec![]), "{sql}");
    }
    let report = check_forged(&Forge::new().nested("UPDATE catalog SET flags = flags | 0x20000;").build());
    assert_eq!((report.findings, report.warnings), (vec![], vec![]));
}

#[test]
fn objects_of_other_hash_algorithms_are_verified() {
    let sql = "UPDATE catalog SET flags = flags | 512 WHERE name IN ('raw', 'big');";
    let repository = Forge::new().root(sql).build();
    for (content, letter) in [("012345", "P"), ("6789", "P")] {
        let object = repository.object(content, letter);
        let name = object.to_str().unwrap().trim_end_matches('P');
        fs::rename(&object, format!("{name}-shake128P")).unwrap();
    }
    let report = check_forged(&repository);
    assert_eq!(report.warnings, Vec::<String>::new());
    let mut faults: Vec<_> =
        report.findings.iter().map(|finding| (finding.path.as_deref(), &*finding.expected)).collect();
    faults.sort_unstable();
    let of_big = (Some("/big"), "bytes that hash to its name");
    assert_eq!(faults, [of_big, of_big, (Some("/raw"), "an object")]);
}
