//! Images from registries are published like images from layouts, also if faults occur during the transfer.

mod access;
mod faults;
mod images;
mod transfer;

use crate::support::{FaultProxy, Run, TestImage, TestRegistry, TestRepository, random};

/// Image repository in tests that do not depend on it.
const PLACE: &str = "team/image";

/// A registry with an image, a proxy for it, and an empty repository.
struct Pull {
    image: TestImage,
    registry: TestRegistry,
    proxy: FaultProxy,
    repository: TestRepository,
}

impl Pull {
    /// Pushes an image. Returns `None` where no registry can be started.
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

    /// Panics unless the image can be converted, with the same result as from a layout.
    #[track_caller]
    fn assert_published(&self) {
        self.convert().expect_code(0);
        assert_published(&self.repository, &self.image);
    }

    /// Panics unless converting the image fails with a message that contains all of `words`, and leaves the repository unchanged.
    #[track_caller]
    fn assert_refused(&self, words: &[&str]) -> Run {
        let run = self.repository.refuse(["convert", &self.argument()], 1, words);
        self.repository.run(["check"]).expect_code(0);
        run
    }
}

/// Panics unless a repository has the image with the same trees as from a layout, and `check` has no findings.
#[track_caller]
fn assert_published(repository: &TestRepository, image: &TestImage) {
    let expected = TestRepository::publish(image);
    assert!(repository.flat(image) == expected.flat(image), "the flat tree differs");
    assert!(repository.chain(image) == expected.chain(image), "the chain differs");
    repository.run(["check"]).expect_code(0);
}

/// Returns an image of three layers, so that there are several blobs to fetch.
fn image() -> TestImage {
    TestImage::new()
        .layer(|layer| layer.file("etc/old", "lower").file("bin/tool", "#!/bin/sh\n").mode(0o4755))
        .layer(|layer| layer.file("etc/new", "upper").whiteout("etc/old"))
        .layer(|layer| layer.file("etc/newest", "top"))
}

/// Returns an image of one layer of about `size` bytes, which compression does not reduce.
fn noise_image(size: usize) -> TestImage {
    add_noise(TestImage::new(), size)
}

/// Returns an image with a layer of about `size` bytes, which compression does not reduce, above a small layer.
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
