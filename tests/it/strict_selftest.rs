//! The strict reader finds every planted fault of a repository, and nothing in a repository without faults.

pub mod faults;
pub mod forge;
mod reader;

use forge::{FQRN, Forge, Forged};

use crate::strict;

/// Fails unless one finding of a check contains all of `words`.
#[track_caller]
fn assert_found(repository: &Forged, fault: &str, words: &[&str]) {
    let report = strict::check(repository.path(), FQRN);
    let messages: Vec<String> = report.findings.iter().map(ToString::to_string).collect();
    let is_found = messages.iter().any(|message| words.iter().all(|word| message.contains(word)));
    assert!(is_found, "{fault}\nshould be found with {words:?}, but all that was found is:\n{}", messages.join("\n"));
}

#[test]
fn good_repository_has_no_findings() {
    let repository = Forge::new().build();
    strict::check(repository.path(), FQRN).assert_good();
}

#[test]
fn path_hashes_are_those_of_real_catalogs() {
    let known = "
        UPDATE catalog SET md5path_1 = 338333539836370388, md5path_2 = 9098107892288553193 WHERE name = '';
        UPDATE catalog SET name = 'a', md5path_1 = -2906336618250618618, md5path_2 = -744252105585281751
            WHERE name = 'raw';";
    strict::check(Forge::new().root(known).build().path(), FQRN).assert_good();
    let repository = Forge::new().root("UPDATE catalog SET md5path_1 = 1 WHERE name = '';").build();
    assert_found(&repository, "root hash", &["a root entry"]);
    let repository = Forge::new().root("UPDATE catalog SET md5path_1 = 1 WHERE name = 'raw';").build();
    assert_found(&repository, "path hash", &["/raw (catalog data/", "halves of the path's MD5"]);
}

#[test]
fn faults_of_rows_in_the_root_catalog_are_found() {
    for (sql, words) in faults::ROOT_ROWS {
        assert_found(&Forge::new().root(&format!("{sql};")).build(), sql, words);
    }
}

#[test]
fn faults_of_catalog_tables_are_found() {
    for (sql, words) in faults::ROOT_TABLES {
        assert_found(&Forge::new().root(&format!("{sql};")).build(), sql, words);
    }
}

#[test]
fn faults_of_nested_catalogs_are_found() {
    for (sql, words) in faults::NESTED {
        assert_found(&Forge::new().nested(&format!("{sql};")).build(), sql, words);
    }
}

#[test]
fn marker_is_tolerated_in_the_repository_root_only() {
    let sql = |parent: &str| {
        format!(
            "UPDATE catalog SET name = '.cvmfscatalog', parent_1 = d.md5path_1, parent_2 = d.md5path_2
             FROM catalog d WHERE d.name = '{parent}' AND catalog.name = 'raw';"
        )
    };
    let report = strict::check(Forge::new().root(&sql("")).build().path(), FQRN);
    assert!(!report.says(".cvmfscatalog at the top"), "{:?}", report.findings);
    assert_found(&Forge::new().root(&sql("etc")).build(), "marker in /etc", &["/etc (", "at the top", "one elsewhere"]);
}

#[test]
fn catalog_in_wal_mode_is_found_and_read_all_the_same() {
    let repository = Forge::new().root_bytes(|bytes| bytes[18..20].fill(2)).build();
    let report = strict::check(repository.path(), FQRN);
    assert!(report.says("rollback journal") && report.findings.len() == 1, "{:?}", report.findings);
}

#[test]
fn faults_of_tags_and_the_log_of_references_are_found() {
    for (sql, words) in faults::HISTORY {
        assert_found(&Forge::new().history(&format!("{sql};")).build(), sql, words);
    }
    for (sql, words) in faults::REFLOG {
        assert_found(&Forge::new().reflog(&format!("{sql};")).build(), sql, words);
    }
}

#[test]
fn faults_of_the_manifest_are_found() {
    for &(old, new, words) in faults::MANIFEST {
        let repository = Forge::new().manifest(move |text| text.replacen(old, new, 1)).build();
        assert_found(&repository, new, words);
    }
}

#[test]
fn faults_of_files_are_found() {
    for (plant, words) in faults::FILES {
        let repository = Forge::new().build();
        plant(&repository);
        assert_found(&repository, "fault of a file", words);
    }
}

#[test]
fn unreferenced_object_is_reported_but_not_a_fault() {
    let repository = Forge::new().build();
    let path = repository.put("nobody's");
    let report = strict::check(repository.path(), FQRN);
    report.assert_good();
    assert_eq!(report.unreachable.into_iter().collect::<Vec<_>>(), [path]);
}
