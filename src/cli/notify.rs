//! Reports the progress of a synchronisation to other programs, in DUCC's notification file.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};

use strata::notification::{Notifications, StartedAction};
use strata::stage::ImageOutcome;
use strata::wishlist::WantedImage;
use strata::work::Event;

/// Writes events to a notification file.
pub struct Notifier {
    notifications: Notifications,
    run: Option<StartedAction>,
    images: Mutex<HashMap<String, Image>>,
}

/// An image whose conversion has started.
struct Image {
    flat: StartedAction,
    chain: StartedAction,
    outcomes: Vec<ImageOutcome>,
}

impl Notifier {
    /// Writes that this process starts.
    pub fn start(notifications: Notifications) -> Self {
        let run = Some(notifications.start_run());
        Self { notifications, run, images: Mutex::default() }
    }

    fn images(&self) -> MutexGuard<'_, HashMap<String, Image>> {
        self.images.lock().expect("no thread panics while it writes notifications")
    }

    /// Writes the notifications for an event. Some events have none.
    pub fn note(&self, event: &Event<'_>) {
        match event {
            Event::Started(image, _) => self.start_image(image),
            Event::Unchanged(image) | Event::Artifact(image, _) => {
                drop(self.images().remove(&image.name().to_string()));
            }
            Event::Ready(image, outcomes) => {
                if let Some(started) = self.images().get_mut(&image.name().to_string()) {
                    started.outcomes = outcomes.to_vec();
                }
            }
            Event::Failed(image, error) => self.end_image(image, Err(error)),
            Event::Published(_, images) => images.iter().for_each(|image| self.end_image(image, Ok(()))),
            _ => {}
        }
    }

    fn start_image(&self, image: &WantedImage) {
        let (request, name) = (image.argument.to_string(), image.name());
        let flat = self.notifications.start_flat_conversion(&request);
        let chain = self.notifications.start_single_chain_conversion(&request, name);
        self.images().insert(name.to_string(), Image { flat, chain, outcomes: Vec::new() });
    }

    fn end_image(&self, image: &WantedImage, outcome: Result<(), &str>) {
        let (request, name) = (image.argument.to_string(), image.name());
        let Some(started) = self.images().remove(&name.to_string()) else { return };
        self.notifications.end_single_chain_conversion(started.chain, outcome);
        self.notifications.end_flat_conversion(started.flat);
        for outcome in started.outcomes.iter().filter(|_| outcome.is_ok()) {
            for &layer in &outcome.new_layers {
                self.notifications.publish_layer(name, layer);
            }
            let link = outcome.place.link().to_string();
            let flat = strata::layout::flat_root(outcome.config).to_string();
            self.notifications.publish_flat_image(&request, link.trim_start_matches('/'), flat.trim_start_matches('/'));
        }
    }
}

impl Drop for Notifier {
    fn drop(&mut self) {
        if let Some(run) = self.run.take() {
            self.notifications.end_run(run);
        }
    }
}
