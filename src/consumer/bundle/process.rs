//! The process of a container: arguments, user, working directory and environment.

use super::mounts::Mounts;
use super::root::Root;
use super::{BundleError, BundleOptions, User};
use crate::image::ExecutionConfig;
use crate::layout::ImagePlace;
use crate::message::on_one_line;

/// `PATH` for an image that does not set it, as in Docker.
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The process of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Process {
    pub(super) arguments: Vec<String>,
    /// Variables as `NAME=value`; each name is unique.
    pub(super) environment: Vec<String>,
    /// The working directory.
    pub(super) directory: String,
    /// User and groups.
    pub(super) user: User,
}

impl Process {
    /// Determines the process. May add a mount for the working directory.
    pub(super) fn plan(
        root: &dyn Root,
        place: &ImagePlace,
        config: &ExecutionConfig,
        mounts: &mut Mounts,
        options: &BundleOptions,
    ) -> Result<Self, BundleError> {
        let arguments = arguments(config, &options.arguments);
        if arguments.is_empty() {
            return Err(BundleError::NoProgram(place.clone()));
        }
        if arguments.iter().any(|argument| argument.contains('\0')) {
            return Err(BundleError::Nul(place.clone()));
        }
        let user = options.user.as_deref().unwrap_or(&config.user);
        let user = User::find(user, &root.read(b"etc/passwd")?, &root.read(b"etc/group")?)
            .map_err(|source| BundleError::User { place: place.clone(), source })?;
        let user = if options.is_rootless() { rootless_user(user, &mut mounts.warnings) } else { user };
        let environment = environment(config, user.home.as_deref(), options.terminal, &mut mounts.warnings);
        let directory = mounts.start_in(root, &config.working_dir)?;
        Ok(Self { arguments, environment, directory, user })
    }
}

/// Returns the entry point and its arguments: `given`, or else the command of the image.
fn arguments(config: &ExecutionConfig, given: &[String]) -> Vec<String> {
    let arguments = if given.is_empty() { &config.cmd } else { given };
    config.entrypoint.iter().chain(arguments).cloned().collect()
}

/// Changes `user` to user and group 0, the only ones in the user namespace of a rootless container. Adds a warning if `user` was
/// another user.
fn rootless_user(user: User, warnings: &mut Vec<String>) -> User {
    if user.uid != 0 {
        warnings.push(format!("the program runs as the user who starts it, not as user {} of the image", user.uid));
    }
    User { uid: 0, gid: 0, groups: Vec::new(), ..user }
}

/// Returns the variables. If the image sets a variable twice, the later value is used. Variables without a name or without `=` are
/// omitted, because runtimes refuse them.
fn environment(
    config: &ExecutionConfig,
    home: Option<&str>,
    terminal: bool,
    warnings: &mut Vec<String>,
) -> Vec<String> {
    let home = format!("HOME={}", home.unwrap_or("/"));
    let terminal = terminal.then_some("TERM=xterm");
    let defaults = [DEFAULT_PATH, &home].into_iter().chain(terminal);
    let mut environment: Vec<&str> = defaults.collect();
    for variable in &config.env {
        match variable.split_once('=') {
            Some((name, value)) if !name.is_empty() && !name.contains('\0') && !value.contains('\0') => {
                environment.retain(|known| known.split_once('=').is_none_or(|(known, _)| known != name));
                environment.push(variable);
            }
            _ => warnings.push(format!("the image's variable '{}' is omitted: it is not valid", on_one_line(variable))),
        }
    }
    environment.into_iter().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn given_arguments_replace_the_command() {
        let run = |entrypoint: &[&str], cmd: &[&str], given: &[&str]| {
            let config = ExecutionConfig { entrypoint: words(entrypoint), cmd: words(cmd), ..Default::default() };
            arguments(&config, &words(given)).join(" ")
        };
        assert_eq!(run(&["e", "1"], &["c"], &[]), "e 1 c");
        assert_eq!(run(&["e", "1"], &["c"], &["g", "2"]), "e 1 g 2");
        assert_eq!(run(&[], &["c", "3"], &[]), "c 3");
        assert_eq!(run(&[], &["c", "3"], &["g"]), "g");
        assert_eq!(run(&[], &[], &[]), "");
    }

    #[test]
    fn environment_has_the_variables_of_the_image_and_defaults() {
        let mut warnings = Vec::new();
        let mut of = |env: &[&str], home, terminal| {
            environment(&ExecutionConfig { env: words(env), ..Default::default() }, home, terminal, &mut warnings)
        };
        assert_eq!(of(&[], None, false), [DEFAULT_PATH, "HOME=/"]);
        assert_eq!(of(&["A=1"], Some("/root"), true), [DEFAULT_PATH, "HOME=/root", "TERM=xterm", "A=1"]);
        let own = ["PATH=/bin", "HOME=/h", "TERM=dumb", "A=1", "B=", "A=2=\n\"é'$"];
        assert_eq!(of(&own, Some("/root"), true), ["PATH=/bin", "HOME=/h", "TERM=dumb", "B=", "A=2=\n\"é'$"]);
        assert_eq!(of(&["PATHS=x", "=x", "A\0=x", "A=\0", "none\n"], None, false), [DEFAULT_PATH, "HOME=/", "PATHS=x"]);
        assert_eq!(warnings.len(), 4);
        assert!(warnings[3].contains("'none\\n'"), "{}", warnings[3]);
    }

    #[test]
    fn rootless_container_has_only_user_0() {
        let mut warnings = Vec::new();
        let find = |text| User::find(text, b"bob:x:5:6::/home/bob:", b"more:x:7:bob").unwrap();
        let User { uid, gid, groups, home } = rootless_user(find("bob"), &mut warnings);
        assert_eq!((uid, gid, groups, home.as_deref()), (0, 0, Vec::new(), Some("/home/bob")));
        rootless_user(find(""), &mut warnings);
        assert_eq!(warnings.len(), 1);
    }
}
