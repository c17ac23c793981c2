//! Repositories that are read by their URL.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use serde_json::Value;

use crate::support::fuse::{assert_same, motley_image, walk};
use crate::support::{
    Delivery, FQRN, NAME, Reply, Run, Served, TestImage, TestRepository, command_on, flat_path, need_fuse,
    strata_command,
};

fn published() -> (TestRepository, TestImage) {
    let image = motley_image();
    (TestRepository::publish(&image), image)
}

#[test]
fn commands_that_read_give_the_same_results_by_url() {
    let (repository, image) = published();
    repository.convert(&TestImage::new().layer(|layer| layer.file("b", "b")), "h.example.org/b:1", &[]).expect_code(0);
    let (served, source) = (Served::of(&repository), repository.source(&image));
    for command in [
        &["list", "--json"][..],
        &["list", "--unused", "--json"],
        &["info", NAME, "--json"],
        &["diff", "2", "3", "--json"],
        &["verify", &source, "--name", NAME, "--json"],
    ] {
        let (here, there) = (repository.run(command), served.run(command));
        assert_eq!((there.stdout(), there.exit_code()), (here.stdout(), here.exit_code()), "{}", there.stderr());
    }
    let (here, there) =
        (repository.run(["info", "--json"]).json(), served.run(["info", "--json"]).expect_code(0).json());
    for key in ["repository", "revision", "root-catalog", "entries", "whitelist-expires"] {
        assert_eq!(there[key], here[key], "{key}");
    }
    let bundles = ["here", "there"].map(|name| repository.beside(name));
    let bundle =
        |directory: &PathBuf| ["bundle", NAME, directory.to_str().unwrap(), "--", "/bin/tool"].map(str::to_owned);
    let directory = repository.directory();
    let here = ["--repo", directory.to_str().unwrap()].map(str::to_owned).into_iter().chain(bundle(&bundles[0]));
    Run::of(&mut strata_command(here)).expect_code(0);
    served.run(bundle(&bundles[1])).expect_code(0);
    let [here, there] = bundles.map(|bundle| fs::read_to_string(bundle.join("config.json")).unwrap());
    assert_eq!(here, there);
}

#[test]
fn check_by_url_finds_nothing_in_a_good_repository_and_says_what_it_skips() {
    let (repository, _) = published();
    let served = Served::of(&repository);
    let json = served.run(["check", "--json"]).expect_code(0).json();
    assert_eq!(json["findings"], Value::Array(Vec::new()));
    assert_eq!(json["unreferenced"], Value::Null);
    let warnings = json["warnings"].to_string();
    assert!(warnings.contains("cannot be listed") && warnings.contains("reflog is not checked"), "{warnings}");
    let here = repository.run(["check", "--json"]).json();
    for key in ["catalogs", "entries", "objects", "bytes"] {
        assert_eq!(json[key], here[key], "{key}");
    }
    let is_chunk_read =
        || served.take_requests().iter().any(|request| request.starts_with("GET data/") && request.ends_with('P'));
    assert!(is_chunk_read());
    served.run(["check", "--quick"]).expect_code(0);
    assert!(!is_chunk_read());
}

#[test]
fn repository_that_another_master_key_vouches_for_is_refused() {
    let (repository, image) = published();
    let (served, other) = (Served::of(&repository), repository.beside("other"));
    Run::of(&mut command_on(other.clone(), ["init", FQRN])).expect_code(0);
    let key = other.join("keys").join(format!("{FQRN}.pub"));
    let source = repository.source(&image);
    let [bundle, point] = ["bundle", "point"].map(|name| repository.beside(name).display().to_string());
    fs::create_dir_all(&point).unwrap();
    for command in [
        &["list"][..],
        &["info"],
        &["diff", "1", "2"],
        &["verify", &source, "--name", NAME],
        &["bundle", NAME, &bundle],
        &["mount", &point],
    ] {
        let mut command = strata_command(command);
        command.arg("--repo").arg(served.url()).arg("--public-key").arg(&key);
        let run = Run::of(&mut command).expect_code(1);
        assert!(run.stderr().contains("is not trusted"), "{}", run.stderr());
    }
    let mut check = strata_command(["check", "--json", "--repo", &served.url()]);
    let json = Run::of(check.arg("--public-key").arg(&key)).expect_code(4).json();
    assert!(json["findings"].to_string().contains("a signature by the master key"), "{json}");
}

#[test]
fn wrong_use_of_a_url_is_explained() {
    let (repository, _) = published();
    let served = Served::of(&repository);
    let run = |arguments: &[&str]| Run::of(&mut strata_command(arguments));
    Run::of(&mut served.command_at(&format!(" {} ; ", served.url()), ["list"])).expect_code(0);
    Run::of(&mut served.command_at(&format!("{}?x=1", served.url()), ["list"])).expect_one_line(2, &["a query"]);
    run(&["list", "--repo", &served.url()]).expect_one_line(2, &["--public-key"]);
    run(&["list", "--repo", "http://h.example.org/", "--public-key", "k"])
        .expect_one_line(2, &["not the URL of a repository"]);
    let missing = served.url().replace(FQRN, "missing.example.org");
    Run::of(&mut served.command_at(&missing, ["list"])).expect_one_line(1, &["missing.example.org", "no manifest"]);
    for command in [&["convert", "oci:x"][..], &["sync", "list.yaml"], &["init", "a.example.org"], &["diff", "oci:x"]] {
        served.run(command).expect_one_line(2, &["needs the directory of the repository"]);
    }
    repository.run(["list", "--public-key", "k"]).expect_one_line(2, &["--public-key requires"]);
}

#[test]
fn another_server_is_asked_for_what_the_first_one_lacks_or_has_damaged() {
    let (repository, _) = published();
    let (good, bad) = (Served::of(&repository), Served::of(&repository));
    let both = format!("{};{}", bad.url(), good.url());
    let list = || Run::of(&mut good.command_at(&both, ["check", "--json"]));
    for number in 0..5 {
        bad.change(move |_, name, reply| match (name.ends_with('C'), number) {
            (false, _) => reply,
            (_, 0) => Reply::status(404),
            (_, 1) => Reply::status(503),
            (_, 2) => reply.body(|body| body[20] ^= 1),
            (_, 3) => reply.delivery(Delivery::Cut(10)),
            _ => Reply::status(200).body(|body| *body = b"<html>".to_vec()).with("content-type", "text/html"),
        });
        let json = list().expect_code(0).json();
        assert_eq!(json["findings"], Value::Array(Vec::new()), "{number}");
        assert!(bad.take_requests().iter().any(|request| request.ends_with('C')));
    }
    bad.change(|_, _, _| Reply::status(500));
    list().expect_code(0);
    for name in [".cvmfspublished", ".cvmfswhitelist"] {
        for damage in [b"".as_slice(), b"x", b"C0123\n--\nx"] {
            bad.change(
                move |_, asked, reply| if asked == name { reply.body(|body| *body = damage.to_vec()) } else { reply },
            );
            list().expect_code(0);
            Run::of(&mut good.command_at(&both, ["list"])).expect_code(0);
        }
    }
}

#[test]
fn server_that_refuses_head_or_states_no_length_is_read() {
    let (repository, _) = published();
    let served = Served::of(&repository);
    let here = repository.run(["check", "--json"]).json();
    for number in 0..3 {
        served.change(move |asked, _, reply| match (number, asked.method.as_str()) {
            (0, "HEAD") => Reply::status(405),
            (1, "HEAD") => reply.without("content-length"),
            (2, _) => reply.without("content-length"),
            _ => reply,
        });
        let json = served.run(["check", "--json"]).expect_code(0).json();
        assert_eq!((&json["objects"], &json["bytes"]), (&here["objects"], &here["bytes"]), "{number}");
    }
}

#[test]
fn endless_response_is_refused_and_needs_little_memory() {
    let (repository, _) = published();
    let served = Served::of(&repository);
    served.change(|_, name, reply| match name.ends_with('H') {
        true => reply.body(|body| body.resize(100 << 20, 0)).without("content-length"),
        false => reply,
    });
    let run = served.run(["diff", "1", "2"]).expect_code(1);
    assert!(run.stderr().contains("does not state the size"), "{}", run.stderr());
}

#[test]
fn password_in_a_url_is_never_printed() {
    let (repository, _) = published();
    let served = Served::of(&repository);
    for url in [
        served.url(),
        served.url().replace(FQRN, "bad_name!"),
        served.url().replace(FQRN, ""),
        "http://h:99999/a.b".to_owned(),
    ] {
        let url = url.replace("http://", "http://user:secret@");
        for command in ["info", "convert", "check"] {
            let run = Run::of(&mut served.command_at(&url, [command, "x"]));
            assert!(
                !format!("{}{}", run.stdout(), run.stderr()).contains("secret"),
                "{url} {command}: {}",
                run.stderr()
            );
        }
    }
}

#[test]
fn failing_server_is_an_error_of_a_check_and_no_finding() {
    let (repository, _) = published();
    let served = Served::of(&repository);
    let large = repository.objects().into_keys().find(|path| path.ends_with('P')).unwrap();
    for status in [403, 503] {
        let large = large.clone();
        served.change(move |_, name, reply| if name == large { Reply::status(status) } else { reply });
        let run = served.run(["check"]).expect_code(1);
        assert!(run.stderr().contains(&format!("status {status}")), "{}", run.stderr());
    }
    let json = {
        let large = large.clone();
        served.change(move |_, name, reply| if name == large { Reply::status(404) } else { reply });
        served.run(["check", "--json"]).expect_code(4).json()
    };
    assert_eq!(json["findings"][0]["file"], large.as_str(), "{json}");
}

#[test]
fn mount_by_url_has_exactly_the_published_content_and_keeps_objects() {
    if !need_fuse() {
        return;
    }
    let (repository, image) = published();
    let served = Served::of(&repository);
    let whole = |mount: &crate::support::fuse::Mount| walk(&mount.directory.join(flat_path(&image)));
    let mount = served.mount(&[]);
    assert_same(&whole(&mount), repository.flat(&image).entries());
    drop(mount);
    assert!(served.take_requests().iter().any(|request| request.starts_with("GET data/")));
    let mount = served.mount(&[]);
    assert_same(&whole(&mount), repository.flat(&image).entries());
    let again: Vec<String> = served.take_requests().into_iter().filter(|request| request.contains("data/")).collect();
    assert!(again.is_empty(), "all objects are in the cache: {again:?}");
}

#[test]
fn mount_by_url_never_returns_wrong_bytes() {
    if !need_fuse() {
        return;
    }
    let (repository, image) = published();
    let served = Served::of(&repository);
    let content: Vec<String> =
        repository.objects().into_keys().filter(|path| !path.ends_with(['C', 'H', 'X', 'M'])).collect();
    let expected = repository.flat(&image);
    let mount = served.mount(&[]);
    let root: PathBuf = mount.directory.join(flat_path(&image));
    for number in 0..6 {
        let content = content.clone();
        served.change(move |_, name, reply| match (content.iter().any(|object| object == name), number) {
            (false, _) => reply,
            (_, 0) => Reply::status(404),
            (_, 1) => Reply::status(403),
            (_, 2) => reply.body(|body| body[0] ^= 1),
            (_, 3) => reply.body(|body| body.truncate(body.len() - 1)),
            (_, 4) => reply.body(|body| body.push(0)),
            _ => Reply::status(200).body(|body| *body = b"<html>".to_vec()).with("content-type", "text/html"),
        });
        for (path, entry) in expected.entries() {
            let at = root.join(OsStr::from_bytes(path));
            if entry.size > 0 && entry.content.is_some() {
                assert_eq!(fs::read(&at).unwrap_err().raw_os_error(), Some(5), "{} {number}", at.display());
            }
        }
    }
    served.change(|_, _, reply| reply);
    assert_same(&walk(&root), expected.entries());
}

#[test]
fn manifest_that_is_older_than_one_seen_before_is_refused() {
    if !need_fuse() {
        return;
    }
    let (repository, _) = published();
    let served = Served::of(&repository);
    let old = repository.manifest_bytes();
    repository.convert(&TestImage::new().layer(|layer| layer.file("b", "b")), "h.example.org/b:1", &[]).expect_code(0);
    drop(served.mount(&[]));
    assert!(served.cache().join("newest-revision").exists());
    served.change(move |_, name, reply| match name {
        ".cvmfspublished" => reply.body(|body| body.clone_from(&old)),
        _ => reply,
    });
    let run = Run::of(&mut served.mount_command(&[])).expect_code(1);
    assert!(run.stderr().contains("revision 2, but revision 3 was read before"), "{}", run.stderr());
}

#[test]
fn cache_of_limited_size_stays_within_its_limit() {
    if !need_fuse() {
        return;
    }
    let (repository, image) = published();
    let served = Served::of(&repository);
    let mount = served.mount(&["--cache-size", "1MB"]);
    assert_same(&walk(&mount.directory.join(flat_path(&image))), repository.flat(&image).entries());
    let directories =
        fs::read_dir(served.cache()).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir());
    let files = directories.flat_map(|directory| fs::read_dir(directory).unwrap());
    let size: u64 = files.map(|file| file.unwrap().metadata().unwrap().len()).sum();
    assert!(size <= 1_000_000, "{size}");
}
