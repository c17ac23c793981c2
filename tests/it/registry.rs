//! Images come from registries as they come from layouts, whatever happens on the way.

mod access;
mod faults;
mod images;
mod transfer;

use crate::support::{FaultProxy, Run, TestImage, TestRegistry, TestRepository, random};

/// Where images lie at the registry where the test does not care.
const PLACE: &str = "team/image";

/// A registry that holds an image, a proxy before it, and a repository that holds nothing.
struct Pull {
    image: TestImage,
    registry: TestRegistry,
    proxy: FaultProxy,
    repository: TestRepository,
}

impl Pull {
    /// Pushes an image; none where there is no registry.
    #[track_caller]
    fn of(image: TestImage) -> Option<Self> {
        let registry = TestRegistry::start()?;
        registry.push_tags(&image, PLACE, ["1"]);
        let proxy = FaultProxy::start(registry.port());
        Some(Self { image, registry, proxy, repository: TestRepository::new() })
    }

    /// Returns the argument that names the image at the proxy.
    fn argument(&self) -> String {
        format!("http://{}/{PLACE}:1", self.proxy.host())
    }

    /// Converts the image from the proxy.
    fn convert(&self) -> Run {
        self.repository.run(["convert", &self.argument()])
    }

    /// Panics unless the image can be converted, and is then what it is from a layout.
    #[track_caller]
    fn assert_published(&self) {
        self.convert().expect_code(0);
        assert_published(&self.repository, &self.image);
    }

    /// Panics unless the image cannot be converted for a reason that says `words`, and nothing has come of trying.
    #[track_caller]
    fn assert_refused(&self, words: &[&str]) -> Run {
        let run = self.repository.refuse(["convert", &self.argument()], 1, words);
        self.repository.run(["check"]).expect_code(0);
        run
    }
}

/// Panics unless a repository holds an image as it is from a layout, and nothing is wrong with it.
#[track_caller]
fn assert_published(repository: &TestRepository, image: &TestImage) {
    let expected = TestRepository::publish(image);
    assert!(repository.flat(image) == expected.flat(image), "the flat tree is another");
    assert!(repository.chain(image) == expected.chain(image), "the chain is another");
    repository.run(["check"]).expect_code(0);
}

/// An image of three layers, so that there are several blobs to ask for.
fn image() -> TestImage {
    TestImage::new()
        .layer(|layer| layer.file("etc/old", "lower").file("bin/tool", "#!/bin/sh\n").mode(0o4755))
        .layer(|layer| layer.file("etc/new", "upper").whiteout("etc/old"))
        .layer(|layer| layer.file("etc/newest", "top"))
}

/// An image of one layer of about `size` bytes, however it is packed.
fn noise(size: usize) -> TestImage {
    add_noise(TestImage::new(), size)
}

/// An image with a layer of about `size` bytes, however it is packed, above a small one.
fn large_image(size: usize) -> TestImage {
    add_noise(TestImage::new().layer(|layer| layer.file("small", "x")), size)
}

fn add_noise(image: TestImage, size: usize) -> TestImage {
    image.layer(|layer| layer.file("noise", random::noise(1, size)))
}

/// Returns the digest of the topmost layer of an image.
fn top(image: &TestImage) -> String {
    image.layer_digests().pop().expect("the image has layers")
}
