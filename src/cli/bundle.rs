//! `strata bundle`.

use std::process::ExitCode;

use serde_json::json;
use strata::consumer::bundle::{Bundle as RuntimeBundle, BundleOptions};
use strata::message::on_one_line;

use super::arguments::{Arguments, Bundle};
use super::print_line;

/// Writes a bundle for an OCI runtime.
pub fn run(arguments: &Arguments, command: &Bundle) -> anyhow::Result<ExitCode> {
    let repository = arguments.target()?.head()?;
    let place = command.image.place(&repository, command.platform.as_ref())?;
    let ids = || (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let options = BundleOptions {
        mountpoint: command.mountpoint.clone(),
        rootless: command.rootless.then(ids),
        host_network: command.host_network,
        terminal: command.terminal,
        hostname: command.hostname.clone(),
        user: command.user.clone(),
        arguments: command.arguments.clone(),
    };
    let bundle = RuntimeBundle::of(&repository, &place, &options)?;
    bundle.write(&command.directory)?;
    bundle.warnings.iter().for_each(|warning| tracing::warn!("{place}: {warning}"));
    let RuntimeBundle { image, root, arguments: words, directory, user, warnings, .. } = &bundle;
    if arguments.json {
        let value = json!({
            "name": place.name.to_string(),
            "platform": place.platform.as_ref().map(ToString::to_string),
            "config": image,
            "bundle": command.directory,
            "root": root,
            "args": words,
            "cwd": directory,
            "user": {"uid": user.uid, "gid": user.gid, "groups": user.groups},
            "warnings": warnings,
        });
        print_line(format_args!("{value}"))?;
        return Ok(ExitCode::SUCCESS);
    }
    let bundle = command.directory.display();
    let words = on_one_line(&words.join(" "));
    print_line(format_args!(
        "{bundle} runs '{words}' as {}:{} in '{}' of {root}",
        user.uid,
        user.gid,
        on_one_line(directory)
    ))?;
    Ok(ExitCode::SUCCESS)
}
