use super::super::tests::parse;
use super::*;
use crate::registry::JsonPage;
use crate::wishlist::CachingLister;
use crate::wishlist::project_api::ProjectApi;

use std::sync::atomic::{AtomicUsize, Ordering};

use proptest::prelude::*;

/// Registries whose responses the test sets.
#[derive(Default)]
pub struct Registries {
    tags: HashMap<String, Vec<String>>,
    catalogs: HashMap<String, Vec<String>>,
    pages: HashMap<String, JsonPage>,
    asked: AtomicUsize,
}

impl Registries {
    pub fn tags(mut self, place: &str, tags: &[&str]) -> Self {
        self.tags.insert(place.to_owned(), tags.iter().map(|&tag| tag.to_owned()).collect());
        self
    }

    pub fn catalog(&mut self, host: &str, names: &[&str]) {
        self.catalogs.insert(host.to_owned(), names.iter().map(|&name| name.to_owned()).collect());
    }

    pub fn page(&mut self, url: &str, body: serde_json::Value) -> &mut JsonPage {
        self.pages.entry(url.to_owned()).or_insert_with(|| JsonPage::new(body))
    }
}

impl RegistryLister for Registries {
    fn tags(&self, repository: &ImageRepository) -> Result<Vec<String>, ListingError> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        self.tags.get(&repository.to_string()).cloned().ok_or_else(|| "connection refused".into())
    }

    fn repositories(&self, host: &str, _plain_http: bool) -> Result<Vec<String>, ListingError> {
        self.catalogs.get(host).cloned().ok_or_else(|| "connection refused".into())
    }

    fn json(&self, url: &str, _: &ProjectApi) -> Result<Option<JsonPage>, ListingError> {
        Ok(self.pages.get(url).cloned())
    }
}

fn expand_text(text: &str, registries: &Registries) -> Expansion {
    let (wishlist, listing) = (parse(text).unwrap(), CachingLister::new(registries));
    let mut growing = IncrementalExpansion::new(&wishlist.wishes);
    for (index, wish) in wishlist.wishes.iter().enumerate() {
        growing.add(index, expand_one(wish, &listing));
    }
    growing.finish()
}

fn names(expansion: &Expansion) -> Vec<String> {
    expansion.images.iter().map(|image| image.name().to_string()).collect()
}

#[test]
fn images_are_sorted_by_wish_and_version() {
    let text = "input:\n- 'h.org/b:1.*'\n- h.org/a:x\n- 'http://h.org/c:*'\n";
    let registries = Registries::default().tags("h.org/b", &["1.10", "1.9", "2.0", "10"]).tags("h.org/c", &["z", "y"]);
    let expansion = expand_text(text, &registries);
    assert_eq!(names(&expansion), ["h.org/b:1.9", "h.org/b:1.10", "h.org/a:x", "h.org/c:y", "h.org/c:z"]);
    let lines: Vec<usize> = expansion.images.iter().map(|image| image.line).collect();
    assert_eq!(lines, [2, 2, 3, 4, 4]);
    assert!(matches!(expansion.images[3].argument, ImageArgument::Registry { plain_http: true, .. }));
    assert!(expansion.failures.is_empty() && expansion.problems.is_empty());
}

#[test]
fn failing_registry_is_named_and_affects_no_other_wish() {
    let text = "input:\n- 'down.org/a:*'\n- 'h.org/b:*'\n- 'down.org/c:1'\n";
    let expansion = expand_text(text, &Registries::default().tags("h.org/b", &["1"]));
    assert_eq!(names(&expansion), ["h.org/b:1", "down.org/c:1"]);
    let failure = &expansion.failures[0];
    assert_eq!((failure.line, failure.to_string().as_str()), (2, "line 2: cannot list 'a' of 'down.org'"));
    assert!(expansion.failures.len() == 1 && expansion.problems.is_empty());
}

#[test]
fn failing_repository_of_a_project_affects_no_other_repository() {
    let text = "version: 2\nimages:\n- {project: r.org/p, api: catalog, repositories: {exclude: '*/cache'}}\n";
    let mut registries = Registries::default().tags("r.org/p/a", &["1"]).tags("r.org/p/c", &["2"]);
    registries.catalog("r.org", &["p/c", "p/cache", "p/b", "p/a", "q/x", "p/a"]);
    let expansion = expand_text(text, &registries);
    assert_eq!(names(&expansion), ["r.org/p/a:1", "r.org/p/c:2"]);
    assert_eq!(expansion.failures[0].what, "p/b");
    let expansion = expand_text("version: 2\nimages:\n- {project: down.org, api: catalog}\n", &registries);
    assert_eq!((expansion.failures[0].host.as_str(), expansion.images.len()), ("down.org", 0));
}

#[test]
fn first_of_two_wishes_for_one_image_takes_precedence() {
    let text = "version: 2\nimages:\n- {image: 'h.org/a:2', layers: false}\n- 'h.org/a:*'\n- {image: h.org/b:1, name: 'h.org/a:3'}\n- http://h.org/a:1\n- h.org/a:1\n";
    let expansion = expand_text(text, &Registries::default().tags("h.org/a", &["1", "2", "3"]));
    assert_eq!(names(&expansion), ["h.org/a:2", "h.org/a:1", "h.org/a:3"]);
    assert!(!expansion.images[0].options.layers);
    let problems: Vec<String> = expansion.problems.iter().map(ToString::to_string).collect();
    assert_eq!(
        problems,
        [
            "line 4: 'h.org/a:2' is already listed with other options in line 3, which takes precedence",
            "line 5: 'h.org/a:3' is already listed from another location in line 4, which takes precedence",
            "line 6: 'h.org/a:1' is already listed from another location in line 4, which takes precedence",
        ]
    );
}

#[test]
fn invalid_names_are_reported_and_do_not_count_among_the_newest() {
    let text = "version: 2\nimages:\n- {image: h.org/a, tags: {newest: 2}}\n- {project: r.org/p, api: catalog}\n";
    let mut registries =
        Registries::default().tags("h.org/a", &["1", "2", "99/../../x", "99\n", ""]).tags("r.org/p/ok", &["1"]);
    registries.catalog("r.org", &["p/../../etc", "p/ok", "p/A", "p/ok:1"]);
    let expansion = expand_text(text, &registries);
    assert_eq!(names(&expansion), ["h.org/a:1", "h.org/a:2", "r.org/p/ok:1"]);
    assert!(expansion.failures.is_empty());
    let problems: Vec<String> = expansion.problems.iter().map(ToString::to_string).collect();
    let told = "line 3: the registry lists 3 names that are not a valid tag: \"99/../../x\", \"99\\n\", \"\"";
    assert_eq!(problems[0], told);
    assert!(
        problems[1].starts_with("line 4: the registry lists 3 names that are not a valid repository of this project")
    );
}

#[test]
fn tags_of_a_repository_are_requested_once_for_several_patterns() {
    let registries = Registries::default().tags("h.org/a", &["1.0", "2.0"]);
    let expansion = expand_text("input:\n- 'h.org/a:2.*'\n- 'h.org/a:1.*'\n", &registries);
    assert_eq!(names(&expansion), ["h.org/a:2.0", "h.org/a:1.0"]);
    assert_eq!(registries.asked.load(Ordering::Relaxed), 1);
}

#[test]
fn expansion_contains_older_images_to_replace_artifacts() {
    let text = "version: 2\nimages:\n- h.org/a:3\n- {image: h.org/a, tags: {newest: 2}}\n- {image: h.org/b, tags: {newest: 9}}\n- 'h.org/c:*'\n";
    let registries = Registries::default()
        .tags("h.org/a", &["1", "2", "3", "4"])
        .tags("h.org/b", &["1"])
        .tags("h.org/c", &["1", "2"]);
    let expansion = expand_text(text, &registries);
    assert_eq!(names(&expansion), ["h.org/a:3", "h.org/a:4", "h.org/b:1", "h.org/c:1", "h.org/c:2"]);
    let text_of = |names: &[ImageName]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
    let newest: Vec<(Vec<String>, Vec<String>)> = expansion
        .newest
        .iter()
        .map(|newest| {
            let older: Vec<ImageName> = newest.older.iter().map(|image| image.name().clone()).collect();
            (text_of(&newest.names), text_of(&older))
        })
        .collect();
    let texts = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect::<Vec<_>>();
    assert_eq!(
        newest,
        [(texts(&["h.org/a:3", "h.org/a:4"]), texts(&["h.org/a:2", "h.org/a:1"])), (texts(&["h.org/b:1"]), Vec::new())]
    );
    let is_found: Vec<bool> = expansion.images.iter().map(|image| image.is_found).collect();
    assert_eq!(is_found, [false, true, true, true, true]);
}

#[test]
fn open_wishes_for_other_repositories_do_not_delay_an_image() {
    let text = "version: 2\nimages:\n- 'slow.org/a:*'\n- slow.org/a:1\n- slow.org/b:1\n- 'h.org/a:*'\n\
                - {image: h.org/x:1, name: 'slow.org/a:7'}\n- {project: slow.org/p, api: catalog}\n- slow.org/p/q:1\n\
                - slow.org/pq:1\n";
    let mut registries = Registries::default().tags("slow.org/a", &["1", "2"]).tags("h.org/a", &["1"]);
    registries.catalog("slow.org", &[]);
    let wishlist = parse(text).unwrap();
    let mut growing = IncrementalExpansion::new(&wishlist.wishes);
    let mut add = |wish: usize| -> Vec<String> {
        let part = expand_one(&wishlist.wishes[wish], &registries);
        growing.add(wish, part).into_iter().map(|(_, image)| image.name().to_string()).collect()
    };
    let certain: Vec<String> = [1, 2, 4, 6, 7, 3].into_iter().flat_map(&mut add).collect();
    assert_eq!(certain, ["slow.org/b:1", "slow.org/pq:1", "h.org/a:1"]);
    assert_eq!(add(0), ["slow.org/a:1", "slow.org/a:2", "slow.org/a:7"]);
    assert_eq!(add(5), ["slow.org/p/q:1"]);
    let expansion = growing.finish();
    assert_eq!(names(&expansion)[..3], ["slow.org/a:1", "slow.org/a:2", "slow.org/b:1"]);
    assert_eq!(expansion.images.len(), 7);
}

#[test]
fn older_image_comes_after_all_wishes_that_could_match_its_name() {
    let text = "version: 2\nimages:\n- {image: h.org/a, tags: {newest: 1}}\n- {image: 'h.org/a:2.*', flat: false}\n\
                - h.org/a:3\n- h.org/b:1\n";
    let registries = Registries::default().tags("h.org/a", &["1.0", "2.0", "3", "4"]);
    let wishlist = parse(text).unwrap();
    let mut growing = IncrementalExpansion::new(&wishlist.wishes);
    let part = expand_one(&wishlist.wishes[0], &registries);
    let older = part.newest[0].older.clone();
    assert_eq!(growing.add(0, part).len(), 1);
    growing.add(2, expand_one(&wishlist.wishes[2], &registries));
    let mut add = |index: usize| growing.add_older(ImagePosition::before((0, 0), index + 1), older[index].clone());
    assert_eq!(older[1].name().to_string(), "h.org/a:2.0");
    assert!((0..3).all(|index| add(index).is_empty()), "the second wish could match all of them");
    let certain = growing.add(1, expand_one(&wishlist.wishes[1], &registries));
    let told: Vec<_> = certain.iter().map(|(_, image)| (image.name().to_string(), image.line)).collect();
    let expected = [("h.org/a:2.0", 4), ("h.org/a:3", 5), ("h.org/a:1.0", 3)];
    assert_eq!(told, expected.map(|(name, line)| (name.to_owned(), line)));
    assert_eq!(certain.iter().map(|(_, image)| image.is_found).collect::<Vec<_>>(), [true, false, true]);
    let order = [
        ImagePosition::before((0, 0), 2),
        ImagePosition::before((0, 0), 1),
        ImagePosition::new(0, 0),
        ImagePosition::new(0, 1),
    ];
    assert!(order.is_sorted());
}

#[test]
fn rule_that_matches_nothing_is_reported() {
    let expansion = expand_text("input:\n- 'h.org/a:v*'\n", &Registries::default().tags("h.org/a", &["1"]));
    assert_eq!(expansion.problems[0].to_string(), "line 2: no image matches");
}

proptest! {
    #[test]
    fn no_listed_tag_leads_out_of_its_repository(tags in proptest::collection::vec(".{0,12}", 0..6)) {
        let tags: Vec<&str> = tags.iter().map(String::as_str).collect();
        let expansion = expand_text("input:\n- 'h.org/a:*'\n", &Registries::default().tags("h.org/a", &tags));
        for image in &expansion.images {
            let path = image.name().public_path();
            prop_assert!(path.starts_with("h.org/a:") && path.matches('/').count() == 1);
        }
    }
}
