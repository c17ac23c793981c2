//! Messages and progress of the library reach the observer that a repository directory was opened with.

use std::fmt;
use std::fs;
use std::sync::{Arc, Mutex};

use strata::directory::RepositoryDirectory;
use strata::engine::{Engine, Resources};
use strata::layer::Limits;
use strata::object::{Compression, Encoder, ObjectHash, ObjectKind};
use strata::observer::{Level, Observer, Reporter};
use strata::progress::Progress;
use strata::publish::PublishOptions;
use strata::stage::{ImageOptions, Request};
use strata::work::{ConvertOptions, convert};

use crate::support::{NAME, TestImage, TestRepository};

/// Collects messages, and the starts and ends of operations. Clones share them.
#[derive(Clone, Default)]
struct Collector {
    messages: Arc<Mutex<Vec<(Level, String)>>>,
    operations: Arc<Mutex<Vec<String>>>,
}

impl Observer for Collector {
    fn message(&self, level: Level, text: fmt::Arguments<'_>) {
        self.messages.lock().unwrap().push((level, text.to_string()));
    }

    fn start(&self, operation: &str, progress: &Arc<Progress>) {
        assert_eq!(progress.bytes(), (0, 0));
        self.operations.lock().unwrap().push(format!("start {operation}"));
    }

    fn end(&self, operation: &str, progress: &Arc<Progress>) {
        assert!(progress.bytes().0 > 0);
        self.operations.lock().unwrap().push(format!("end {operation}"));
    }
}

#[test]
fn observer_of_the_directory_receives_warnings_of_the_store_and_the_progress_of_images() {
    let image = TestImage::new().layer(|layer| layer.file("file", "content"));
    let repository = TestRepository::publish(&image);
    let object = ObjectHash::of(Encoder::new(Compression::Balanced).encode(b"content")).path(ObjectKind::File);
    fs::write(repository.storage().join(&object), "damaged").unwrap();
    let collector = Collector::default();
    let directory = RepositoryDirectory::open(&repository.directory()).unwrap();
    let directory = directory.with_reporter(&Reporter::new(collector.clone()));
    let resources = Resources { threads: 1, memory: 16 << 20 };
    let engine = Engine::open(&directory, resources).unwrap();
    let source = repository.source(&image);
    let request = Request {
        argument: source.parse().unwrap(),
        name: Some(NAME.parse().unwrap()),
        image: ImageOptions { force: true, ..ImageOptions::default() },
    };
    let (limits, publish) = (Limits::default(), PublishOptions::default());
    let options = ConvertOptions { dry_run: false, only_store: true, limits, publish };
    let report = convert(&engine, &[request], &options, &Arc::default()).unwrap();
    report.images[0].outcomes.as_ref().unwrap();
    let messages = collector.messages.lock().unwrap();
    let has = |level, words: &[&str]| {
        messages.iter().any(|(is, text)| *is == level && words.iter().all(|word| text.contains(word)))
    };
    assert!(has(Level::Warning, &[&object, "is damaged; it is replaced"]), "{messages:?}");
    assert!(has(Level::Info, &["reading 1 of 1 layers"]), "{messages:?}");
    assert_eq!(*collector.operations.lock().unwrap(), [format!("start {source}"), format!("end {source}")]);
}
