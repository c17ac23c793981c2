//! Databases of a repository are data: nothing in them is executed, they are read only up to the size that is stated elsewhere,
//! cycles of rows are found, and content that no writer produces is never signed again.

use std::fs;
use std::time::Duration;

use crate::support::fuse::Mount;
use crate::support::{NAME, Run, TestImage, TestRepository, need_fuse};
use crate::verify::plant::Planted;

/// Time limit for commands that normally take less than a second.
const PATIENCE: Duration = Duration::from_secs(60);

fn repository() -> TestRepository {
    TestRepository::publish(&TestImage::new().layer(|layer| layer.dir("etc").file("etc/passwd", "root").file("a", "x")))
}

/// Runs a command on a planted repository.
fn run(planted: &Planted, arguments: &[&str]) -> Run {
    Run::within(PATIENCE, &mut planted.command(arguments))
}

/// Fails unless a check has a finding, and converting another image fails without publishing anything.
#[track_caller]
fn assert_never_signed(planted: &Planted, image: &str, fault: &str) {
    let before = planted.front_page();
    let check = run(planted, &["check", "--quick"]);
    assert_eq!(check.exit_code(), Some(4), "{fault} is no finding: {check:?}");
    let convert = run(planted, &["convert", image, "--name", "registry.example.org/test/next:1"]);
    assert_eq!(convert.exit_code(), Some(1), "a revision was signed on top of this fault: {fault}: {convert:?}");
    assert_eq!(planted.front_page(), before, "{fault}");
}

/// SQL that replaces a table by an object that SQLite executes when the table is read or written.
const EXECUTED: [&str; 5] = [
    "ALTER TABLE statistics RENAME TO s; CREATE VIEW statistics AS SELECT * FROM s",
    "ALTER TABLE nested_catalogs RENAME TO n; CREATE VIEW nested_catalogs AS SELECT * FROM n",
    "CREATE TRIGGER t AFTER INSERT ON catalog BEGIN UPDATE catalog SET uid = 77; END",
    "CREATE TRIGGER t AFTER UPDATE ON properties BEGIN DELETE FROM nested_catalogs; END",
    "DROP TABLE bind_mountpoints; CREATE VIRTUAL TABLE bind_mountpoints USING fts5 (path, sha1, size)",
];

/// SQL that changes any row, because [`Planted`] demands that the number of changed rows is not zero.
const TOUCH: &str = "UPDATE properties SET value = value;";

#[test]
fn views_triggers_and_virtual_tables_are_findings_and_never_signed() {
    let repository = repository();
    let image = repository.source(&TestImage::new().layer(|layer| layer.file("next", "y")));
    for sql in EXECUTED {
        for path in ["", "/.layers"] {
            let planted = Planted::copy_of(&repository);
            planted.change(path, &format!("{TOUCH}{sql}"));
            assert_never_signed(&planted, &image, sql);
            let list = run(&planted, &["list"]);
            assert!(!list.stdout().contains("77"), "{sql}: {list:?}");
        }
    }
}

#[test]
fn views_and_triggers_in_tags_and_the_log_of_references_are_findings_and_never_signed() {
    let repository = repository();
    let image = repository.source(&TestImage::new().layer(|layer| layer.file("next", "y")));
    for sql in [
        "CREATE TRIGGER t AFTER INSERT ON tags BEGIN DELETE FROM tags; END",
        "ALTER TABLE tags RENAME TO t; CREATE VIEW tags AS SELECT * FROM t",
        "UPDATE tags SET revision = 'two'",
        "UPDATE tags SET timestamp = x'00'",
        "UPDATE branches SET initial_revision = 0.5",
    ] {
        let planted = Planted::copy_of(&repository);
        planted.change_history(sql);
        assert_never_signed(&planted, &image, sql);
    }
    for sql in [
        "CREATE TRIGGER t AFTER INSERT ON refs BEGIN DELETE FROM refs; END",
        "ALTER TABLE refs RENAME TO r; CREATE VIEW refs AS SELECT * FROM r",
        "UPDATE refs SET type = 'catalog' WHERE type = 1",
    ] {
        let planted = Planted::copy_of(&repository);
        planted.change_log(sql);
        assert_never_signed(&planted, &image, sql);
    }
}

#[test]
fn rows_of_wrong_types_and_impossible_modes_are_findings_and_never_signed() {
    let repository = repository();
    let image = repository.source(&TestImage::new().layer(|layer| layer.file("next", "y")));
    for set in [
        "mode = 'x'",
        "mode = NULL",
        "mode = 0",
        "mode = 33188 | 65536",
        "mode = 61440",
        "mode = 1 << 40",
        "size = 'large'",
        "size = 0.5",
        "mtime = x'00'",
        "uid = -1",
        "flags = 'file'",
        "hardlinks = NULL",
        "symlink = x'41'",
        "hash = 'text'",
        "xattr = 7",
    ] {
        assert_row_is_never_signed(&repository, &image, ("", ".layers"), set);
        assert_row_is_never_signed(&repository, &image, ("/.flat", ".cvmfscatalog"), set);
    }
    for sql in [
        "INSERT INTO chunks VALUES ('a', 'b', 'c', 'd', 'e')",
        "UPDATE nested_catalogs SET size = 'large' WHERE path = '/.flat'",
        "UPDATE statistics SET value = 'many' WHERE counter = 'self_dir'",
        "UPDATE statistics SET value = value + 1 WHERE counter = 'self_dir'",
        "UPDATE nested_catalogs SET path = '/../x' WHERE path = '/.flat'",
        "INSERT INTO nested_catalogs SELECT '/.flat/x', sha1, size FROM nested_catalogs WHERE path = '/.flat'",
        "INSERT INTO bind_mountpoints SELECT '/etc', sha1, size FROM nested_catalogs WHERE path = '/.flat'",
    ] {
        let planted = Planted::copy_of(&repository);
        planted.change("", sql);
        assert_never_signed(&planted, &image, sql);
    }
}

/// Plants a row that no writer produces. Fails unless it is a finding and never signed.
#[track_caller]
fn assert_row_is_never_signed(repository: &TestRepository, image: &str, (path, name): (&str, &str), set: &str) {
    let planted = Planted::copy_of(repository);
    planted.change(path, &format!("UPDATE catalog SET {set} WHERE name = '{name}'"));
    assert_never_signed(&planted, image, &format!("{set} for {name} in '{path}'"));
}

#[test]
fn rows_that_contradict_themselves_are_findings_and_never_signed() {
    let repository = repository();
    let image = repository.source(&TestImage::new().layer(|layer| layer.file("next", "y")));
    let of_any = [
        "flags = 0",
        "flags = flags | 64",
        "uid = 4294967295",
        "gid = 4294967295",
        "hardlinks = -1",
        "mtimens = 2000000000",
        "mode = 41471",
        "xattr = x'01ffffff'",
        "xattr = zeroblob(70000)",
        "symlink = printf('%.100000c', 'n')",
        "size = 9223372036854775807",
    ];
    let of_files = ["mode = 16877", "flags = 1", "hash = NULL", "hash = zeroblob(20)"];
    let of_directories = ["mode = 33188", "flags = 4", "hardlinks = 1"];
    let host = "registry.example.org";
    for at in [("/.layers", ".cvmfscatalog"), ("/podmanStore/overlay-images", "images.json")] {
        of_any.iter().chain(&of_files).for_each(|set| assert_row_is_never_signed(&repository, &image, at, set));
    }
    for at in [("", ".flat"), ("", host), ("/podmanStore", "overlay")] {
        of_any.iter().chain(&of_directories).for_each(|set| assert_row_is_never_signed(&repository, &image, at, set));
    }
}

#[test]
fn faulty_catalog_is_refused_with_its_name_the_path_and_the_fault() {
    let repository = repository();
    let image = repository.source(&TestImage::new().layer(|layer| layer.file("next", "y")));
    let planted = Planted::copy_of(&repository);
    planted.change("/.flat", "UPDATE catalog SET flags = 1 WHERE name = '.cvmfscatalog'");
    let convert = run(&planted, &["convert", &image, "--name", "registry.example.org/test/next:1"]).expect_code(1);
    for word in ["catalog of /.flat", "/.flat/.cvmfscatalog: expected flags 0x4, found 0x1", "strata check"] {
        assert!(convert.stderr().contains(word), "{convert:?}");
    }
}

/// SQL that makes rows their own ancestors.
fn circles() -> Vec<String> {
    let into = |name: &str, other: &str| {
        format!(
            "UPDATE catalog SET parent_1 = o.md5path_1, parent_2 = o.md5path_2 FROM catalog o
             WHERE catalog.name = '{name}' AND o.name = '{other}';"
        )
    };
    vec![
        into("", ""),
        into("", "")
            + "UPDATE catalog SET flags = flags | 2 WHERE name = '';
            INSERT INTO nested_catalogs SELECT '', sha1, size FROM nested_catalogs LIMIT 1",
        into("", ".layers"),
        into(".layers", ".layers"),
        into(".layers", ".flat") + &into(".flat", ".layers"),
        into(".layers", "") + "UPDATE catalog SET name = '' WHERE name = '.layers'",
        "UPDATE catalog SET name = '.' WHERE name = '.layers'".to_owned(),
        "UPDATE catalog SET name = '..' WHERE name = '.layers'".to_owned(),
    ]
}

#[test]
fn row_that_is_its_own_ancestor_causes_no_endless_loop_and_is_never_signed() {
    let repository = repository();
    let image = repository.source(&TestImage::new().layer(|layer| layer.file("next", "y")));
    let can_mount = need_fuse();
    for sql in circles() {
        let planted = Planted::copy_of(&repository);
        planted.change("", &sql);
        assert_never_signed(&planted, &image, &sql);
        for arguments in [
            &["diff", "1", "head"][..],
            &["diff", "head", "1"],
            &["list"],
            &["info"],
            &["check", "/.layers"],
            &["diff", &image, "--name", NAME],
        ] {
            let run = run(&planted, arguments);
            assert!(run.exit_code().is_some(), "{sql}: {arguments:?} {run:?}");
        }
        if can_mount {
            let directory = planted.beside("mount");
            fs::create_dir(&directory).unwrap();
            let command = planted.command(["mount".as_ref(), directory.as_os_str()]);
            let mount = Mount::of(command, directory, planted.beside("mount.log"));
            assert!(count_entries(&mount.directory, 0) < 10_000, "{sql}");
        }
    }
}

/// Returns the number of entries below a directory, as far as they can be listed.
fn count_entries(directory: &std::path::Path, depth: usize) -> usize {
    assert!(depth < 100, "{} goes round in circles", directory.display());
    let entries = fs::read_dir(directory).into_iter().flatten().take(10_000).map_while(Result::ok);
    let count = |entry: fs::DirEntry| match entry.file_type() {
        Ok(kind) if kind.is_dir() => 1 + count_entries(&entry.path(), depth + 1),
        _ => 1,
    };
    entries.map(count).sum()
}

#[test]
fn branch_that_is_its_own_ancestor_is_a_finding() {
    let repository = repository();
    for branches in ["('x', 'x', 0)", "('x', 'y', 0), ('y', 'x', 0)", "('x', 'gone', 0)"] {
        let planted = Planted::copy_of(&repository);
        planted.change_history(&format!("INSERT INTO branches VALUES {branches}"));
        let check = run(&planted, &["check", "--quick"]).expect_code(4);
        assert!(check.stdout().contains("branch 'x' to descend from the default branch"), "{branches}: {check:?}");
    }
}

#[test]
fn catalog_of_another_size_than_is_stated_is_never_signed() {
    let repository = repository();
    let image = repository.source(&TestImage::new().layer(|layer| layer.file("next", "y")));
    for path in ["", "/.flat"] {
        let planted = Planted::copy_of(&repository);
        planted.change_and_hide_size(path, "CREATE TABLE more (x); INSERT INTO more VALUES (zeroblob(5000))");
        assert_never_signed(&planted, &image, path);
    }
    for size in ["size + 1", "size - 4096", "1", "9223372036854775807", "5000000000", "-5"] {
        let planted = Planted::copy_of(&repository);
        planted.change("", &format!("UPDATE nested_catalogs SET size = {size} WHERE path = '/.flat'"));
        assert_never_signed(&planted, &image, size);
    }
    // Old catalogs do not state the size of nested catalogs.
    for size in ["0", "NULL"] {
        let planted = Planted::copy_of(&repository);
        planted.change("", &format!("UPDATE nested_catalogs SET size = {size} WHERE path = '/.flat'"));
        run(&planted, &["convert", &image, "--name", "registry.example.org/test/next:1"]).expect_code(0);
        run(&planted, &["check", "--quick"]).expect_code(0);
    }
}

#[test]
fn large_catalog_is_in_memory_once() {
    const BYTES: u64 = 300_000_000;
    let repository = repository();
    let image = repository.source(&TestImage::new().layer(|layer| layer.file("next", "y")));
    let planted = Planted::copy_of(&repository);
    planted.change("/.flat", &format!("CREATE TABLE large (x); INSERT INTO large VALUES (zeroblob({BYTES})), (1)"));
    let arguments = ["convert", &image, "--name", "registry.example.org/test/next:1", "--json", "--timings"];
    let timings = run(&planted, &arguments).expect_code(0).json()["timings"].clone();
    let peak = timings["peak-memory"].as_u64().unwrap();
    assert!(peak < BYTES * 3 / 2, "{timings}");
}

#[test]
fn catalog_whose_stated_size_cannot_be_true_is_unpacked_no_further_than_one_without_a_size() {
    let repository = repository();
    let image = repository.source(&TestImage::new().layer(|layer| layer.file("next", "y")));
    let planted = Planted::copy_of(&repository);
    // 120 MB of zeros are compressed to 120 KB.
    planted.change("/.flat", "CREATE TABLE large (x); INSERT INTO large VALUES (zeroblob(120000000)), (1)");
    planted.change("", "UPDATE nested_catalogs SET size = 9223372036854775807 WHERE path = '/.flat'");
    assert_never_signed(&planted, &image, "a lie");
    let info = run(&planted, &["info", NAME]).expect_code(1);
    assert!(info.stderr().contains("unpacks to more than"), "{info:?}");
    let check = run(&planted, &["check", "--quick"]).expect_code(4);
    assert!(check.stdout().contains("bytes of content, found more"), "{check:?}");
}

#[test]
fn catalog_that_unpacks_to_more_than_the_manifest_or_the_catalog_above_states_is_not_read() {
    let repository = repository();
    let image = repository.source(&TestImage::new().layer(|layer| layer.file("next", "y")));
    // 20 MB of zeros are compressed to 20 KB.
    let large = "CREATE TABLE large (x); INSERT INTO large VALUES (zeroblob(20000000)), (1)";
    for path in ["", "/.layers"] {
        let planted = Planted::copy_of(&repository);
        planted.change_and_hide_size(path, large);
        assert_never_signed(&planted, &image, path);
        let check = run(&planted, &["check", "--quick"]);
        assert!(check.stdout().contains("bytes of content"), "{check:?}");
        let stated = run(&planted, &["diff", "head", "1"]).expect_code(1);
        assert!(stated.stderr().contains("unpacks to more than"), "{stated:?}");
    }
    let planted = Planted::copy_of(&repository);
    planted.change("", large);
    run(&planted, &["list"]).expect_code(0);
}
