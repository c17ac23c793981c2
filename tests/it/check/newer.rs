//! Objects that newer releases of CVMFS may compress with zstd are no damage: their hash is checked, and they are counted.

use std::fs;

use sha1::{Digest as _, Sha1};
use strata::check::CheckReport;

use super::faults::check_forged;
use crate::strict::hex;
use crate::strict_selftest::forge::{Forge, Forged, put, zstd};

/// The warning for a number of objects.
fn counted(objects: &str, compression: &str) -> String {
    format!(
        "{objects} compressed with {compression}, which strata does not support: only the hash is checked, not the content"
    )
}

/// Returns a repository in which a whole file and one with chunks have this compression number and these objects.
fn repository(compression: u32, stored: impl Fn(&[u8]) -> Vec<u8>) -> Forged {
    let flags = compression << 11;
    let (passwd, chunk) = (stored(b"root\n"), stored(b"012345"));
    let [of_passwd, of_chunk] = [&passwd, &chunk].map(|object| hex(&Sha1::digest(object)));
    let forged = Forge::new()
        .root(&format!(
            "UPDATE catalog SET flags = flags | {flags} WHERE name IN ('passwd', 'big');
             UPDATE catalog SET hash = x'{of_passwd}' WHERE name = 'passwd';
             UPDATE chunks SET hash = x'{of_chunk}';"
        ))
        .build();
    put(forged.path(), &passwd, "");
    put(forged.path(), &chunk, "P");
    // Both chunks have the same object, which counts once. Their sizes differ, but no size can be compared.
    forged
}

fn findings(report: &CheckReport) -> Vec<(Option<&str>, &str, &str)> {
    let findings = report.findings.iter();
    findings.map(|finding| (finding.path.as_deref(), &*finding.expected, &*finding.found)).collect()
}

#[test]
fn file_objects_with_an_unsupported_compression_are_counted_and_are_no_findings() {
    for (number, name) in [(2, "zstd"), (3, "compression algorithm 3"), (7, "compression algorithm 7")] {
        let report = check_forged(&repository(number, zstd));
        assert_eq!((findings(&report), &report.warnings), (vec![], &vec![counted("2 objects", name)]));
        assert_eq!((report.catalogs, report.unreferenced.unwrap().objects), (3, 3));
    }
}

#[test]
fn wrong_hash_of_an_object_with_an_unsupported_compression_is_found() {
    let forged = repository(2, zstd);
    let hash = hex(&Sha1::digest(zstd(b"root\n")));
    let file = forged.path().join(format!("data/{}/{}", &hash[..2], &hash[2..]));
    fs::write(&file, zstd(b"toor\n")).unwrap();
    let report = check_forged(&forged);
    let found = hex(&Sha1::digest(zstd(b"toor\n")));
    assert_eq!(findings(&report), [(Some("/etc/passwd"), "bytes that hash to its name", &*found)]);
    assert_eq!(report.warnings, [counted("1 object", "zstd")]);
    fs::remove_file(file).unwrap();
    assert_eq!(findings(&check_forged(&forged)), [(Some("/etc/passwd"), "an object", "nothing")]);
}

#[test]
fn object_that_is_no_zlib_stream_as_its_row_states_is_damage() {
    let report = check_forged(&repository(0, zstd));
    let (expected, found) = ("one whole zlib stream and nothing else", "an object compressed with zstd");
    let mut found_at = findings(&report);
    found_at.sort_unstable();
    assert_eq!(found_at, ["/big", "/etc/passwd"].map(|path| (Some(path), expected, found)));
    assert_eq!(report.warnings, [""; 0]);
}

#[test]
fn databases_and_documents_compressed_with_zstd_are_counted_and_are_no_findings() {
    for (kind, objects, catalogs) in
        [("C", "2 objects", 0), ("H", "1 object", 2), ("X", "1 object", 3), ("M", "1 object", 3)]
    {
        let report = check_forged(&Forge::new().compress_with_zstd(kind).build());
        assert_eq!((findings(&report), &report.warnings), (vec![], &vec![counted(objects, "zstd")]), "{kind}");
        assert_eq!(report.catalogs, catalogs, "{kind}");
    }
}
