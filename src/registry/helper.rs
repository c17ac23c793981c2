//! Runs the credential helpers of Docker and Podman, `docker-credential-<name>`.

use std::ffi::OsString;
use std::io::{Read, Write as _};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use super::credentials::Credentials;
use super::error::RegistryError;

/// Time limit for a credential helper.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Maximum size of the output of a credential helper in bytes.
const MAX_OUTPUT: u64 = 64 << 10;
/// Interval at which the exit of the program is checked.
const POLL_INTERVAL: Duration = Duration::from_millis(5);
/// Output of a helper without credentials for a server. The exit code is the same as for any error.
const NOT_FOUND: &[u8] = b"credentials not found";

#[derive(serde::Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Printed {
    username: String,
    secret: String,
}

/// Returns the credentials for `server` from a helper. The program is searched for in `path`, or in the `PATH` of this process.
pub(super) fn get(name: &str, server: &str, path: Option<&OsString>) -> Result<Option<Credentials>, RegistryError> {
    let program = format!("docker-credential-{}", crate::message::quoted(name).trim_matches('"'));
    let failed = |fault: String| RegistryError::Helper { program: program.clone(), host: server.to_owned(), fault };
    // The name comes from a file. With a slash in it, the file could start any program.
    if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-')) {
        return Err(failed("its name may contain only letters, digits, '_' and '-'".to_owned()));
    }
    let (status, output) = run(&program, server, path, TIMEOUT).map_err(failed)?;
    if !status.success() {
        return match output.windows(NOT_FOUND.len()).any(|window| window == NOT_FOUND) {
            true => Ok(None),
            false => Err(failed(format!("it failed with {status}"))),
        };
    }
    let printed = serde_json::from_slice::<Printed>(&output);
    let Printed { username, secret } = printed.map_err(|_| failed("its output contains no credentials".to_owned()))?;
    Ok((!secret.is_empty()).then(|| Credentials::new(&username, &secret)))
}

/// Runs a program until it exits, and returns its status and output.
fn run(
    program: &str,
    server: &str,
    path: Option<&OsString>,
    timeout: Duration,
) -> Result<(ExitStatus, Vec<u8>), String> {
    let mut command = Command::new(program);
    command.arg("get").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    command.envs(path.map(|path| ("PATH", path)));
    let mut child = command.spawn().map_err(|error| format!("cannot start it: {error}"))?;
    let result = talk(&mut child, server, timeout);
    if result.is_err() {
        child.kill().ok();
        child.wait().ok();
    }
    result
}

fn talk(child: &mut Child, server: &str, timeout: Duration) -> Result<(ExitStatus, Vec<u8>), String> {
    let deadline = Instant::now() + timeout;
    let too_slow = || format!("it did not exit within {}", humantime::format_duration(timeout));
    let (mut input, output) = (child.stdin.take(), child.stdout.take());
    // A write error is ignored: a helper may exit without reading its input.
    input.iter_mut().for_each(|input| drop(input.write_all(server.as_bytes())));
    drop(input);
    // Reading from a pipe has no time limit. Therefore another thread reads, and this one waits with a limit.
    let (sender, receiver) = mpsc::channel();
    let read = move || {
        let mut text = Vec::new();
        let read = output.map_or(Ok(0), |output| output.take(MAX_OUTPUT + 1).read_to_end(&mut text));
        sender.send(read.map(|_| text)).ok();
    };
    thread::Builder::new()
        .spawn(read)
        .map_err(|error| format!("cannot start a thread that reads its output: {error}"))?;
    let left = || deadline.saturating_duration_since(Instant::now());
    let text = receiver.recv_timeout(left()).map_err(|_| too_slow())?.map_err(|error| error.to_string())?;
    if text.len() as u64 > MAX_OUTPUT {
        return Err("its output is larger than 64 KiB".to_owned());
    }
    loop {
        match child.try_wait().map_err(|error| error.to_string())? {
            Some(status) => return Ok((status, text)),
            None if left().is_zero() => return Err(too_slow()),
            None => thread::sleep(POLL_INTERVAL),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::super::settings::Secret;
    use super::*;

    /// Creates a helper from a shell script and returns the `PATH` that contains it.
    fn helper(script: &str) -> (tempfile::TempDir, OsString) {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("docker-credential-test");
        std::fs::write(&file, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
        let path = format!("{}:/usr/bin:/bin", directory.path().display()).into();
        (directory, path)
    }

    fn ask(script: &str) -> Result<Option<Credentials>, RegistryError> {
        let (_directory, path) = helper(script);
        get("test", "h.org", Some(&path))
    }

    #[test]
    fn helper_receives_the_host_and_returns_credentials() {
        let script = r#"read host; [ "$1" = get ] && printf '{"ServerURL":"x","Username":"u","Secret":"%s"}' "$host""#;
        assert_eq!(ask(script).unwrap(), Some(Credentials::new("u", "h.org")));
        let script = r#"echo '{"ServerURL":"x","Username":"<token>","Secret":"t"}'"#;
        assert_eq!(ask(script).unwrap(), Some(Credentials::IdentityToken(Secret::new("t"))));
    }

    #[test]
    fn missing_credentials_are_no_error_but_failure_of_the_helper_is() {
        assert_eq!(ask("echo 'credentials not found in native keychain'; exit 1").unwrap(), None);
        for broken in ["exit 3", "echo hunter2", "echo hunter2; exit 1", "head -c 70000 /dev/zero", "kill -9 $$"] {
            let error = ask(broken).unwrap_err().to_string();
            assert!(error.contains("docker-credential-test") && !error.contains("hunter2"), "{error}");
        }
        assert!(matches!(get("absent-program", "h.org", None), Err(RegistryError::Helper { .. })));
    }

    #[test]
    fn helper_that_does_not_exit_is_killed() {
        let (_directory, path) = helper("exec sleep 1000");
        let error = run("docker-credential-test", "h.org", Some(&path), Duration::from_millis(1)).unwrap_err();
        assert_eq!(error, "it did not exit within 1ms");
    }

    #[test]
    fn name_of_a_helper_cannot_contain_a_path() {
        for name in ["", "../x", "a b", "a;b", "ä"] {
            assert!(matches!(get(name, "h.org", None), Err(RegistryError::Helper { .. })), "{name}");
        }
    }
}
