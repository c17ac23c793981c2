//! Wishlists with faulty lines.

use super::{Scene, asked, image};
use crate::support::Run;

/// Returns wishlists of both versions with one valid line among faulty ones, and the positions of the faulty lines.
fn lists(scene: &Scene) -> [(String, Vec<&'static str>); 2] {
    let version_1 = "version: 1\ncvmfs_repo: unpacked.example.org\ninput:\n  - 'http://HOST/app/b'\n  - http://HOST/app/a:1\n\
                     \x20 - {a: b}\n  - 'http://HOST/app/c:*@x'\n";
    let version_2 = "version: 2\nwhatever: x\nimages:\n  - HOST/app/b\n  - HOST/app/a:1\n  - image: HOST/app/c:1\n    flat: no\n\
                     \x20   platform: all\n  - {image: HOST/app/d, tags: {semver: '>>1'}}\n  - HOST/app/e:1: x\n";
    [
        (version_1, vec!["line 4, column 5", "line 6, column 5", "line 7, column 5"]),
        (
            version_2,
            vec![
                "line 2, column 1",
                "line 4, column 5",
                "line 7, column 11",
                "line 8, column 5",
                "line 9, column 43",
                "line 10, column 5",
            ],
        ),
    ]
    .map(|(text, places)| (text.replace("HOST", &scene.proxy.host()), places))
}

#[track_caller]
fn assert_placed(run: &Run, places: &[&str]) {
    let stderr = run.stderr();
    let told: Vec<&str> = stderr.lines().filter(|line| line.contains("list.yaml', line ")).collect();
    assert_eq!(told.len(), places.len(), "{stderr}");
    for place in places {
        // The column of an image depends on the length of the host.
        let line = place.split(',').next().unwrap();
        let place = if *place == "line 9, column 43" { format!("{line}, column") } else { (*place).to_owned() };
        assert!(told.iter().any(|told| told.contains(&place)), "'{place}' is not in: {stderr}");
    }
}

#[test]
fn all_faulty_lines_are_reported_with_positions_and_the_rest_is_done() {
    let Some(scene) = Scene::new() else { return };
    scene.registry.push_tags(&image("a"), "app/a", ["1"]);
    for (text, places) in lists(&scene) {
        let wishlist = scene.write("list.yaml", &text);
        let run = scene.sync(&wishlist, &["--json"]).expect_code(3);
        assert_placed(&run, &places);
        let json = run.json();
        assert_eq!(json["images"].as_array().unwrap().len(), 1, "{json}");
        let lines: Vec<String> =
            json["bad-lines"].as_array().unwrap().iter().map(|bad| bad["line"].to_string()).collect();
        let expected: Vec<&str> =
            places.iter().map(|place| place.trim_start_matches("line ").split(',').next().unwrap()).collect();
        assert_eq!(lines, expected);
        assert!(scene.has("app/a:1"));
        let run = scene.sync(&wishlist, &[]).expect_code(3);
        let summary = format!("1 images: 1 unchanged, 0 published, 0 failed; {} errors", places.len());
        assert!(run.stdout().contains(&summary), "{}", run.stdout());
    }
}

#[test]
fn strict_does_nothing_while_a_line_is_faulty() {
    let Some(scene) = Scene::new() else { return };
    scene.registry.push_tags(&image("a"), "app/a", ["1"]);
    for (text, places) in lists(&scene) {
        let wishlist = scene.write("list.yaml", &text);
        let before = scene.repository.storage_files();
        let run = scene.sync(&wishlist, &["--strict"]).expect_code(1);
        assert_placed(&run, &places);
        assert!(run.stderr().contains("nothing is done, because of --strict"), "{}", run.stderr());
        assert_eq!(scene.asked_since(0), asked([]));
        scene.repository.assert_unchanged(&before);
    }
    let wishlist = scene.wish("list.yaml", "  - HOST/app/a:1\n  - HOST/app/b\n");
    scene.repository.refuse(["sync", &wishlist, "--strict"], 1, &["line 4, column 5", "--strict"]);
    let wishlist = scene.wish("list.yaml", "  - HOST/app/a:1\n");
    scene.sync(&wishlist, &["--strict"]).expect_code(0);
}

#[test]
fn wish_that_contradicts_an_earlier_one_is_a_bad_line() {
    let Some(scene) = Scene::new() else { return };
    scene.registry.push_tags(&image("a"), "app/a", ["1"]);
    let same = scene.wish("list.yaml", "  - HOST/app/a:1\n  - {image: HOST/app/a:1, flat: true}\n");
    scene.sync(&same, &["--strict"]).expect_code(0);
    let wishlist = scene.wish("list.yaml", "  - HOST/app/a:1\n  - {image: HOST/app/a:1, flat: false}\n");
    let run = scene.sync(&wishlist, &[]).expect_code(3);
    assert!(run.stderr().contains("list.yaml', line 4: "), "{}", run.stderr());
    assert!(run.stderr().contains("already listed with other options in line 3"), "{}", run.stderr());
    scene.repository.refuse(["sync", &wishlist, "--strict"], 1, &["line 4", "--strict"]);
}

#[test]
fn nothing_is_removed_while_a_line_is_faulty() {
    let Some(scene) = Scene::new() else { return };
    scene.registry.push_tags(&image("a"), "app/a", ["1", "2"]);
    let wishlist = scene.wish("list.yaml", "  - HOST/app/a:1\n  - HOST/app/a:2\n");
    scene.sync(&wishlist, &[]).expect_code(0);
    scene.wish("list.yaml", "  - HOST/app/a:1\n  - {image: HOST/app/a:2, platfrom: all}\n");
    let run = scene.sync(&wishlist, &["--prune"]).expect_code(3);
    assert!(scene.has("app/a:2") && run.stderr().contains("nothing is removed"), "{}", run.stderr());
}
