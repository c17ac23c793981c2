//! An image can be converted with every kind of credentials, and no other host receives them.

use std::fs;
use std::process::Command;

use strata::registry::{Registries, RegistriesSettings, Transport};

use super::{PLACE, Pull, assert_published, image, noise_image, top};
use crate::support::{
    Delivery, FaultProxy, PASSWORD, Reply, Run, TestImage, TestRegistry, TestRepository, USER, challenge,
};

#[test]
fn token_is_fetched_on_demand_and_renewed_when_it_expires() {
    for uses in [1000, 2, 1] {
        // Several parallel layers would use up each other's tokens.
        let Some(pull) = Pull::of(TestImage::new().layer(|layer| layer.file("etc/one", "layer"))) else { return };
        pull.proxy.demand_tokens(uses);
        pull.convert().expect_code(0);
        assert_published(&pull.repository, &pull.image);
        let served = pull.proxy.served();
        let tokens: Vec<_> = served.iter().filter(|served| served.path.starts_with("/token")).collect();
        // One request each for the manifest, the config, and the layer.
        assert_eq!(tokens.len(), 3_usize.div_ceil(uses));
        let scope = format!("repository%3A{}%3Apull", PLACE.replace('/', "%2F"));
        assert!(tokens.iter().all(|token| token.path.contains(&scope)), "{tokens:?}");
        assert!(tokens.iter().all(|token| token.authorization.is_none()), "{tokens:?}");
    }
}

#[test]
fn token_that_expires_during_a_layer_is_renewed() {
    // Several parallel layers would use up each other's tokens.
    let Some(pull) = Pull::of(noise_image(500_000)) else { return };
    let behind = FaultProxy::start(pull.registry.port());
    behind.at("/blobs/", |request, _| request.forward().delivery(Delivery::Cut(100_000)));
    let front = FaultProxy::start(behind.port());
    front.demand_tokens(1);
    let argument = format!("http://{}/{PLACE}:1", front.host());
    pull.repository.run(["convert", &argument]).expect_code(0);
    assert_published(&pull.repository, &pull.image);
    assert!(behind.blobs().iter().filter(|&digest| *digest == top(&pull.image)).count() >= 5);
}

#[test]
fn registry_that_rejects_every_token_is_not_retried_endlessly() {
    let Some(pull) = Pull::of(image()) else { return };
    pull.proxy.demand_tokens(0);
    let run = pull.assert_refused(&["unauthorized", &format!("{PLACE}:1")]);
    assert!(!run.stderr().contains("token-"), "{}", run.stderr());
    assert!(pull.proxy.served().len() <= 4, "{:?}", pull.proxy.served());
}

#[test]
fn credentials_are_not_sent_to_the_target_of_a_redirect() {
    let Some(pull) = Pull::of(image()) else { return };
    let storage = FaultProxy::start(pull.registry.port());
    let host = storage.host();
    let behind = FaultProxy::start(pull.registry.port());
    behind.at("/blobs/", move |request, _| Reply::redirect(format!("http://{host}{}?signature=x", request.path)));
    let front = FaultProxy::start(behind.port());
    front.demand_tokens(1000);
    pull.repository.run(["convert", &format!("http://{}/{PLACE}:1", front.host())]).expect_code(0);
    assert_published(&pull.repository, &pull.image);
    assert_eq!(storage.served().len(), 4);
    assert!(storage.served().iter().all(|served| served.authorization.is_none()), "{:?}", storage.served());
}

#[test]
fn challenge_from_the_target_of_a_redirect_is_not_answered() {
    let Some(pull) = Pull::of(image()) else { return };
    let storage = FaultProxy::start(pull.registry.port());
    storage.at("/", |_, _| challenge("Basic realm=\"give me a password\""));
    let host = storage.host();
    pull.proxy.at("/blobs/", move |request, _| Reply::redirect(format!("http://{host}{}", request.path)));
    let settings = format!("[registries.\"{}\"]\nusername = \"{USER}\"\npassword = \"{PASSWORD}\"", pull.proxy.host());
    pull.repository.set(&settings);
    pull.assert_refused(&["unauthorized"]);
    assert!(storage.served().iter().all(|served| served.authorization.is_none()), "{:?}", storage.served());
}

/// A registry with a password and an image, and a repository.
fn locked() -> Option<(TestRegistry, TestRepository, String)> {
    let registry = TestRegistry::with_password()?;
    registry.push_tags(&image(), PLACE, ["1"]);
    let argument = format!("http://{}/{PLACE}:1", registry.host());
    Some((registry, TestRepository::new(), argument))
}

#[test]
fn password_is_taken_from_the_settings() {
    let Some((registry, repository, argument)) = locked() else { return };
    let section = format!("[registries.\"{}\"]\nusername = \"{USER}\"", registry.host());
    repository.set(&format!("{section}\npassword_file = \"secret\""));
    fs::write(repository.directory().join("secret"), format!("{PASSWORD}\n")).unwrap();
    repository.run(["convert", &argument]).expect_code(0);
    assert_published(&repository, &image());
    let other = TestRepository::with_settings(&format!("{section}\npassword = \"{PASSWORD}\""));
    other.run(["convert", &argument]).expect_code(0);
}

#[test]
fn password_is_taken_from_the_variables_of_ducc() {
    let Some((registry, repository, argument)) = locked() else { return };
    let host = registry.host();
    let variables = [("AUTH_REGISTRIES", "T"), ("T_IDENT", &host), ("T_USER", USER), ("T_PASS", PASSWORD)];
    let mut command = repository.command(["convert", &argument]);
    Run::of(command.envs(variables.map(|(name, value)| (format!("DUCC_{name}"), value)))).expect_code(0);
    assert_published(&repository, &image());
}

#[test]
fn password_is_taken_from_dockers_configuration() {
    let Some((registry, repository, argument)) = locked() else { return };
    let directory = repository.beside("docker");
    fs::create_dir(&directory).unwrap();
    let auths = serde_json::json!({ "auths": { registry.host(): { "auth": "dXNlcjpzZWNyZXQgd29yZA==" } } });
    fs::write(directory.join("config.json"), auths.to_string()).unwrap();
    Run::of(repository.command(["convert", &argument]).env("DOCKER_CONFIG", &directory)).expect_code(0);
    assert_published(&repository, &image());
}

#[test]
fn wrong_password_is_an_error_that_does_not_contain_it() {
    let Some((registry, repository, argument)) = locked() else { return };
    repository.refuse(["convert", &argument], 1, &["unauthorized", "no credentials"]);
    let secret = "not the right one";
    repository.set(&format!("[registries.\"{}\"]\nusername = \"{USER}\"\npassword = \"{secret}\"", registry.host()));
    let run = repository.refuse(["convert", &argument], 1, &["unauthorized", "the settings"]);
    let run_loudly = repository.run(["convert", &argument, "--verbose"]).expect_code(1);
    for output in [run.stderr(), run_loudly.stderr()] {
        assert!(!output.contains(secret) && !output.to_lowercase().contains("basic "), "{output}");
    }
}

#[test]
fn registry_with_its_own_certificate_is_trusted_where_the_settings_say_so() {
    let Some(registry) = TestRegistry::with_certificate() else { return };
    registry.push(&image(), &format!("{PLACE}:1"));
    let (repository, host) = (TestRepository::new(), registry.host());
    let argument = format!("docker://{host}/{PLACE}:1");
    repository.refuse(["convert", &argument], 1, &["certificate", &host]);
    repository.set(&format!("[registries.\"{host}\"]\nca = \"{}\"", registry.certificate().display()));
    repository.run(["convert", &argument]).expect_code(0);
    assert_published(&repository, &image());
}

#[test]
fn plain_http_is_tried_only_for_registries_on_this_machine() {
    let Some(pull) = Pull::of(image()) else { return };
    pull.repository.run(["convert", &format!("docker://{}/{PLACE}:1", pull.registry.host())]).expect_code(0);
    assert_published(&pull.repository, &pull.image);
}

#[test]
fn all_pages_of_a_list_are_read() {
    let Some(registry) = TestRegistry::start() else { return };
    let tags: Vec<String> = (0..1000).map(|number| format!("v{number:04}")).collect();
    registry.push_tags(&image(), PLACE, &tags);
    let proxy = FaultProxy::start(registry.port());
    proxy.page_tags(99);
    let registries = Registries::new(RegistriesSettings::default(), &|_| None).unwrap();
    assert_eq!(registries.tags(&proxy.host(), PLACE, Transport::Plain).unwrap(), tags);
    assert_eq!(proxy.served().len(), 11);
    assert_eq!(registries.tags(&registry.host(), PLACE, Transport::Plain).unwrap(), tags);
}

#[test]
fn list_with_circular_or_foreign_links_ends() {
    let Some(registry) = TestRegistry::start() else { return };
    registry.push_tags(&image(), PLACE, ["1"]);
    let registries = Registries::new(RegistriesSettings::default(), &|_| None).unwrap();
    let other = FaultProxy::start(registry.port());
    let elsewhere = format!("<http://{}/v2/{PLACE}/tags/list>; rel=\"next\"", other.host());
    for link in [format!("</v2/{PLACE}/tags/list?n=1000>; rel=\"next\""), elsewhere] {
        let proxy = FaultProxy::start(registry.port());
        proxy.at("/tags/list", move |request, _| request.forward().with("link", &link));
        assert!(registries.tags(&proxy.host(), PLACE, Transport::Plain).is_err());
        assert!(proxy.served().len() < 5);
    }
    assert_eq!(other.served().len(), 0);
}

#[test]
fn credential_helper_is_used() {
    let Some((_registry, repository, argument)) = locked() else { return };
    let directory = repository.beside("docker");
    fs::create_dir(&directory).unwrap();
    fs::write(directory.join("config.json"), "{\"credsStore\":\"test\"}").unwrap();
    let helper = directory.join("docker-credential-test");
    fs::write(&helper, format!("#!/bin/sh\necho '{{\"Username\":\"{USER}\",\"Secret\":\"{PASSWORD}\"}}'\n")).unwrap();
    crate::support::run(Command::new("chmod").arg("755").arg(&helper));
    let path = format!("{}:{}", directory.display(), std::env::var("PATH").unwrap());
    let mut command = repository.command(["convert", &argument]);
    Run::of(command.env("DOCKER_CONFIG", &directory).env("PATH", path)).expect_code(0);
    assert_published(&repository, &image());
}
