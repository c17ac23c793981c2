//! Registries whose host is an IPv6 address.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, TcpStream};
use std::thread;

use crate::support::fuse::Mount;
use crate::support::server::Server;
use crate::support::{FQRN, PASSWORD, TestImage, TestRegistry, TestRepository, USER, flat_path, need_fuse, skip};

/// Starts a relay at a free port of `::1` to a port of 127.0.0.1, or skips the test on a machine without IPv6.
///
/// The relay copies bytes instead of HTTP requests, as one of the registries behind it is encrypted.
#[track_caller]
fn ipv6_relay(port: u16) -> Option<Server> {
    let relay = Server::bind(Ipv6Addr::LOCALHOST.into(), move |client| {
        let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)) else { return };
        for (mut from, mut to) in [(&client, &server), (&server, &client)]
            .map(|(from, to)| (from.try_clone().unwrap(), to.try_clone().unwrap()))
        {
            thread::spawn(move || {
                io::copy(&mut from, &mut to).ok();
                to.shutdown(Shutdown::Write).ok();
            });
        }
    });
    if relay.is_err() {
        skip("this machine has no IPv6");
    }
    relay.ok()
}

fn image() -> TestImage {
    TestImage::new().cmd(["/bin/sh"]).layer(|layer| layer.file("etc/content", "of an IPv6 registry"))
}

#[test]
fn image_of_an_ipv6_registry_is_published_under_its_name() {
    let Some(registry) = TestRegistry::start() else { return };
    let Some(relay) = ipv6_relay(registry.port()) else { return };
    let host = relay.host();
    let image = image();
    registry.push_tags(&image, "a/b", ["1"]);
    let repository = TestRepository::new();
    let name = format!("{host}/a/b:1");
    let run = repository.run(["convert", &name]).expect_code(0);
    assert!(run.stdout().contains(&format!("{name}  {}", image.manifest_digest())), "{}", run.stdout());
    let flat = flat_path(&image);
    assert_eq!(repository.tree(&format!("/{host}/a")).target("b:1"), format!("../../{flat}"));
    for name in [name.clone(), format!("docker://{name}"), format!("http://{name}"), format!("https://{name}")] {
        repository.run(["verify", &name]).expect_code(0);
        repository.run(["info", &name]).expect_code(0);
        repository.run(["diff", &name]).expect_code(0);
    }
    let by_digest = format!("{host}/a/b@{}", image.manifest_digest());
    repository.run(["convert", &by_digest]).expect_code(0);
    assert!(repository.has(&format!("/{host}/a/b:{}", image.manifest_digest())));
    let list = repository.run(["list"]).expect_code(0).stdout();
    assert!(list.contains(&format!("{name}  ")) && list.contains(&format!("{by_digest}  ")), "{list}");
    repository.run(["check"]).expect_code(0);
    repository.run(["check", &name]).expect_code(0);
    let bundle = repository.beside("bundle").display().to_string();
    repository.run(["bundle", &name, &bundle]).expect_code(0);
}

#[test]
fn podman_is_not_shown_what_it_refuses_and_commands_are_quoted() {
    let repository = TestRepository::new();
    let name = "[2001:db8::1]:5000/a/b:1";
    let run = repository.convert(&image(), name, &[]).expect_code(0);
    assert!(run.stderr().contains("not listed for podman"), "{}", run.stderr());
    assert!(!repository.has("/podmanStore"));
    let json = repository.run(["info", "--json", name]).expect_code(0).json();
    assert!(json["podman-refusal"].as_str().unwrap().contains(name), "{json}");
    let commands = json["commands"].as_object().unwrap();
    let names: Vec<&String> = commands.keys().collect();
    assert_eq!(names, ["apptainer", "containerd", "runc"]);
    assert_eq!(commands["apptainer"], format!("apptainer run '/cvmfs/{FQRN}/{name}'"));
    assert!(commands["runc"].as_str().unwrap().starts_with(&format!("strata bundle '{name}' bundle")), "{json}");
    repository.convert(&image(), "h.org/a/b:1", &[]).expect_code(0);
    let names = &repository.json("/podmanStore/overlay-images/images.json")[0]["names"];
    assert_eq!(*names, serde_json::json!(["h.org/a/b:1"]));
}

#[test]
fn link_of_an_ipv6_registry_leads_to_the_image_in_a_mount() {
    if !need_fuse() {
        return;
    }
    let repository = TestRepository::new();
    let name = "[::1]:5000/a/b:1";
    repository.convert(&image(), name, &[]).expect_code(0);
    let mount = Mount::start(&repository, &[]);
    let text = fs::read_to_string(mount.directory.join(name).join("etc/content")).unwrap();
    assert_eq!(text, "of an IPv6 registry");
}

#[test]
fn wishlists_name_ipv6_registries() {
    let Some(registry) = TestRegistry::start() else { return };
    let Some(relay) = ipv6_relay(registry.port()) else { return };
    let host = relay.host();
    registry.push_tags(&image(), "team/tool", ["1.0", "1.1", "x"]);
    let repository = TestRepository::new();
    let wishlist = repository.beside("list.yaml");
    for (text, count) in [
        (format!("version: 1\ninput:\n  - 'http://{host}/team/tool:1.*'\n  - '{host}/team/tool:x'\n"), 3),
        (format!("version: 2\nimages:\n  - '{host}/team/tool:x'\n  - docker://{host}/team/tool:1.*\n"), 3),
        (format!("version: 2\nimages:\n  - {{project: '{host}/team', api: catalog, tags: {{newest: 2}}}}\n"), 2),
    ] {
        fs::write(&wishlist, text).unwrap();
        let run = repository.run(["sync", wishlist.to_str().unwrap()]).expect_code(0);
        assert!(run.stdout().contains(&format!("{count} images:")), "{}", run.stdout());
    }
    assert!(["1.0", "1.1", "x"].iter().all(|tag| repository.has(&format!("/{host}/team/tool:{tag}"))));
}

#[test]
fn ipv6_registry_may_be_encrypted_and_want_a_password() {
    let Some(registry) = TestRegistry::with_certificate() else { return };
    let Some(relay) = ipv6_relay(registry.port()) else { return };
    let host = relay.host();
    registry.push(&image(), "a/b:1");
    let repository = TestRepository::new();
    let name = format!("{host}/a/b:1");
    repository.refuse(["convert", &name], 1, &["certificate"]);
    repository.set(&format!("[registries.\"{host}\"]\nca = \"{}\"", registry.certificate().display()));
    repository.run(["convert", &name]).expect_code(0);
    let Some(registry) = TestRegistry::with_password() else { return };
    let Some(relay) = ipv6_relay(registry.port()) else { return };
    let host = relay.host();
    registry.push(&image(), "a/b:1");
    let name = format!("http://{host}/a/b:1");
    repository.refuse(["convert", &name], 1, &["UNAUTHORIZED"]);
    let login = format!("username = \"{USER}\"\npassword = \"{PASSWORD}\"");
    repository.set(&format!("[registries.\"{host}\"]\n{login}"));
    repository.run(["convert", &name]).expect_code(0);
    assert!(repository.has(&format!("/{host}/a/b:1")));
}
