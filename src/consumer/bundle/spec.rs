//! `config.json` in the format of the runtime specification 1.0.2.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::BundleOptions;
use super::mounts::{Mount, Mounts};
use super::process::Process;
use crate::image::{Digest, ImageConfig};

/// Version of the specification.
const VERSION: &str = "1.0.2";

/// Capabilities of root, the same as the defaults of Docker.
const CAPABILITIES: [&str; 14] = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

/// Paths that are hidden in a container, because they reveal information about the host or give access to it.
const MASKED_PATHS: [&str; 11] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];

/// Paths that are read-only in a container.
const READ_ONLY_PATHS: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Prefix of the labels that become annotations. Labels come from an untrusted image, and a runtime could interpret other labels.
const LABEL_PREFIX: &str = "org.opencontainers.image.";

/// Returns the content of `config.json`.
pub(super) fn config(
    root: &str,
    image: Digest,
    config: &ImageConfig,
    process: &Process,
    mounts: &Mounts,
    options: &BundleOptions,
) -> Value {
    let hostname = options.hostname.clone().unwrap_or_else(|| image.hex()[..12].to_owned());
    json!({
        "ociVersion": VERSION,
        "process": process_json(process, options.terminal),
        "root": {"path": root, "readonly": true},
        "hostname": hostname,
        "mounts": mounts.mounts.iter().map(Mount::to_json).collect::<Vec<_>>(),
        "annotations": annotations(config),
        // Only cgroup version 2 has this file.
        "linux": linux(options, Path::new("/sys/fs/cgroup/cgroup.controllers").exists()),
    })
}

fn process_json(process: &Process, terminal: bool) -> Value {
    let user = &process.user;
    let mut ids = json!({"uid": user.uid, "gid": user.gid});
    if !user.groups.is_empty() {
        ids["additionalGids"] = json!(user.groups);
    }
    // Other users get capabilities only from file capabilities or set-user-ID programs.
    let held: &[&str] = if user.uid == 0 { &CAPABILITIES } else { &[] };
    json!({
        "terminal": terminal,
        "user": ids,
        "args": process.arguments,
        "env": process.environment,
        "cwd": process.directory,
        "capabilities": {
            // Otherwise users could gain capabilities from programs with inheritable file capabilities (CVE-2022-24769).
            "bounding": CAPABILITIES, "effective": held, "permitted": held, "inheritable": [], "ambient": [],
        },
        // As in Docker. Otherwise set-user-ID programs of the image, such as `sudo`, would not work.
        "noNewPrivileges": false,
    })
}

/// Returns the annotations from the image config (image-spec, conversion.md, "Annotation Fields").
fn annotations(config: &ImageConfig) -> Value {
    let fields = [
        ("os", Some(&config.os)),
        ("architecture", Some(&config.architecture)),
        ("variant", config.variant.as_ref()),
        ("created", config.created.as_ref()),
    ];
    let fields = fields.into_iter().filter_map(|(name, value)| Some((format!("{LABEL_PREFIX}{name}"), value?)));
    let labels = config.config.labels.iter().map(|(name, value)| (name.clone(), value));
    let labels = labels.filter(|(name, _)| name.starts_with(LABEL_PREFIX));
    let all = fields.chain(labels).filter(|(_, value)| !value.is_empty());
    Value::Object(all.map(|(name, value)| (name, Value::from(value.as_str()))).collect::<Map<_, _>>())
}

fn linux(options: &BundleOptions, has_one_hierarchy: bool) -> Value {
    let mut namespaces = vec!["pid", "ipc", "uts", "mount"];
    let network = (!options.shares_network()).then_some("network");
    let user = options.is_rootless().then_some("user");
    // As in `runc spec`: a cgroup namespace is used only with cgroup version 2.
    let cgroup = has_one_hierarchy.then_some("cgroup");
    namespaces.extend(network.into_iter().chain(user).chain(cgroup));
    let namespaces: Vec<Value> = namespaces.into_iter().map(|kind| json!({"type": kind})).collect();
    let mut linux = json!({"namespaces": namespaces, "maskedPaths": MASKED_PATHS, "readonlyPaths": READ_ONLY_PATHS});
    match options.rootless {
        Some((uid, gid)) => {
            let mapping = |id| json!([{"containerID": 0, "hostID": id, "size": 1}]);
            linux["uidMappings"] = mapping(uid);
            linux["gidMappings"] = mapping(gid);
        }
        // Deny all devices; runtimes add the default devices of every container.
        None => linux["resources"] = json!({"devices": [{"allow": false, "access": "rwm"}]}),
    }
    linux
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::consumer::bundle::User;

    fn process(uid: u32, groups: &[u32]) -> Process {
        let user = User { uid, gid: 7, groups: groups.to_vec(), home: None };
        Process { arguments: vec!["a".to_owned()], environment: Vec::new(), directory: "/".to_owned(), user }
    }

    fn kinds(options: &BundleOptions, has_one_hierarchy: bool) -> Vec<String> {
        let linux = linux(options, has_one_hierarchy);
        linux["namespaces"].as_array().unwrap().iter().map(|kind| kind["type"].as_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn only_root_has_capabilities_and_none_are_inheritable() {
        for (uid, held) in [(0, 14), (5, 0)] {
            let json = process_json(&process(uid, &[7, 8]), false);
            let count = |set: &str| json["capabilities"][set].as_array().unwrap().len();
            assert_eq!(["bounding", "permitted", "effective"].map(count), [14, held, held]);
            assert_eq!(["inheritable", "ambient"].map(count), [0, 0]);
            assert_eq!(json["user"], json!({"uid": uid, "gid": 7, "additionalGids": [7, 8]}));
        }
        assert_eq!(process_json(&process(0, &[]), true)["user"], json!({"uid": 0, "gid": 7}));
    }

    #[test]
    fn namespaces_depend_on_the_options() {
        let base = ["pid", "ipc", "uts", "mount"];
        let default = BundleOptions::default();
        assert_eq!(kinds(&default, false), [&base[..], &["network"]].concat());
        assert_eq!(kinds(&BundleOptions { host_network: true, ..default.clone() }, false), base);
        let rootless = BundleOptions { rootless: Some((5, 6)), ..default.clone() };
        assert_eq!(kinds(&rootless, true), [&base[..], &["user", "cgroup"]].concat());
        let json = linux(&rootless, false);
        assert_eq!(json["uidMappings"], json!([{"containerID": 0, "hostID": 5, "size": 1}]));
        assert_eq!(json["gidMappings"], json!([{"containerID": 0, "hostID": 6, "size": 1}]));
        assert!(json.get("resources").is_none() && linux(&default, false).get("uidMappings").is_none());
    }

    #[test]
    fn labels_that_a_runtime_could_interpret_are_omitted() {
        let config = r#"{"os":"linux","architecture":"arm64","variant":"","created":"2020-01-01T00:00:00Z",
            "config":{"Labels":{"org.opencontainers.image.title":"a\n\"b","org.opencontainers.image.os":"other",
              "org.systemd.property.ExecStop":"x","run.oci.handler":"krun","":"y"}}}"#;
        let annotations = annotations(&ImageConfig::parse(config.as_bytes()).unwrap());
        assert_eq!(
            annotations,
            json!({
                "org.opencontainers.image.os": "other",
                "org.opencontainers.image.architecture": "arm64",
                "org.opencontainers.image.created": "2020-01-01T00:00:00Z",
                "org.opencontainers.image.title": "a\n\"b",
            })
        );
    }

    #[test]
    fn default_host_name_comes_from_the_config_digest() {
        let of = |hostname: Option<&str>| {
            let options = BundleOptions { hostname: hostname.map(str::to_owned), ..BundleOptions::default() };
            let config =
                config("/r", Digest::of(b""), &ImageConfig::default(), &process(0, &[]), &Mounts::default(), &options);
            (config["hostname"].as_str().unwrap().to_owned(), config["root"].clone())
        };
        assert_eq!(of(None).0, "e3b0c44298fc");
        assert_eq!(of(Some("node")), ("node".to_owned(), json!({"path": "/r", "readonly": true})));
    }
}
