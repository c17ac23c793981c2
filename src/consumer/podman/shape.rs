//! The Go types that podman requires for the members of a JSON document.
//!
//! A single member of another type, in one image, makes podman list no images at all. As in Go's `encoding/json`, names are compared
//! ignoring case, `null` counts as missing, and members that are not listed may have any type.

use serde_json::{Map, Value};

use super::time::is_time;

/// The required type of a member.
pub(super) enum Shape {
    /// A string.
    Text,
    /// `true` or `false`.
    Flag,
    /// A number without a fraction.
    Number,
    /// A string with a time in the format of RFC 3339.
    Time,
    /// A list whose elements may have any type.
    List,
    /// A list of strings.
    Texts,
    /// An object whose members may have any type.
    Map,
    /// An object whose members are strings.
    TextMap,
    /// An object whose members are numbers without a fraction.
    Numbers,
    /// An object whose members are objects.
    Set,
    /// An object with members of these shapes.
    Object(&'static [Member]),
    /// A list of objects with members of these shapes.
    Objects(&'static [Member]),
}

/// A member: its name and required type.
pub(super) type Member = (&'static str, Shape);

/// The members of an OCI or Docker image config.
pub(super) const CONFIG: &[Member] = &[
    ("id", Shape::Text),
    ("parent", Shape::Text),
    ("comment", Shape::Text),
    ("created", Shape::Time),
    ("container", Shape::Text),
    ("container_config", Shape::Object(EXECUTION)),
    ("docker_version", Shape::Text),
    ("author", Shape::Text),
    ("config", Shape::Object(EXECUTION)),
    ("architecture", Shape::Text),
    ("variant", Shape::Text),
    ("os", Shape::Text),
    ("os.version", Shape::Text),
    ("os.features", Shape::Texts),
    ("size", Shape::Number),
    ("rootfs", Shape::Object(&[("type", Shape::Text), ("diff_ids", Shape::Texts)])),
    (
        "history",
        Shape::Objects(&[
            ("created", Shape::Time),
            ("created_by", Shape::Text),
            ("author", Shape::Text),
            ("comment", Shape::Text),
            ("empty_layer", Shape::Flag),
        ]),
    ),
];

const EXECUTION: &[Member] = &[
    ("Hostname", Shape::Text),
    ("Domainname", Shape::Text),
    ("User", Shape::Text),
    ("AttachStdin", Shape::Flag),
    ("AttachStdout", Shape::Flag),
    ("AttachStderr", Shape::Flag),
    ("ExposedPorts", Shape::Set),
    ("Tty", Shape::Flag),
    ("OpenStdin", Shape::Flag),
    ("StdinOnce", Shape::Flag),
    ("Env", Shape::Texts),
    ("Cmd", Shape::Texts),
    ("Healthcheck", Shape::Object(HEALTH_CHECK)),
    ("ArgsEscaped", Shape::Flag),
    ("Image", Shape::Text),
    ("Volumes", Shape::Set),
    ("WorkingDir", Shape::Text),
    ("Entrypoint", Shape::Texts),
    ("NetworkDisabled", Shape::Flag),
    ("MacAddress", Shape::Text),
    ("OnBuild", Shape::Texts),
    ("Labels", Shape::TextMap),
    ("StopSignal", Shape::Text),
    ("StopTimeout", Shape::Number),
    ("Shell", Shape::Texts),
];

const HEALTH_CHECK: &[Member] = &[
    ("Test", Shape::Texts),
    ("Interval", Shape::Number),
    ("Timeout", Shape::Number),
    ("StartPeriod", Shape::Number),
    ("StartInterval", Shape::Number),
    ("Retries", Shape::Number),
];

/// The members of an OCI or Docker image manifest.
pub(super) const MANIFEST: &[Member] = &[
    ("schemaVersion", Shape::Number),
    ("mediaType", Shape::Text),
    ("config", Shape::Object(DESCRIPTOR)),
    ("layers", Shape::Objects(DESCRIPTOR)),
    ("annotations", Shape::TextMap),
];

const DESCRIPTOR: &[Member] = &[
    ("mediaType", Shape::Text),
    ("digest", Shape::Text),
    ("size", Shape::Number),
    ("urls", Shape::Texts),
    ("annotations", Shape::TextMap),
    ("platform", Shape::Object(PLATFORM)),
    ("artifactType", Shape::Text),
];

const PLATFORM: &[Member] = &[
    ("architecture", Shape::Text),
    ("os", Shape::Text),
    ("os.version", Shape::Text),
    ("os.features", Shape::Texts),
    ("variant", Shape::Text),
    ("features", Shape::Texts),
];

/// The members of an entry in the list of images.
pub(super) const IMAGE: &[Member] = &[
    ("id", Shape::Text),
    ("digest", Shape::Text),
    ("names", Shape::Texts),
    ("names-history", Shape::Texts),
    ("layer", Shape::Text),
    ("mapped-layers", Shape::Texts),
    ("metadata", Shape::Text),
    ("big-data-names", Shape::Texts),
    ("big-data-sizes", Shape::Numbers),
    ("big-data-digests", Shape::TextMap),
    ("created", Shape::Time),
    ("flags", Shape::Map),
];

/// The members of an entry in the list of layers.
pub(super) const LAYER: &[Member] = &[
    ("id", Shape::Text),
    ("names", Shape::Texts),
    ("parent", Shape::Text),
    ("metadata", Shape::Text),
    ("mountlabel", Shape::Text),
    ("created", Shape::Time),
    ("compressed-diff-digest", Shape::Text),
    ("compressed-size", Shape::Number),
    ("diff-digest", Shape::Text),
    ("diff-size", Shape::Number),
    ("compression", Shape::Number),
    ("uidset", Shape::List),
    ("gidset", Shape::List),
    ("flags", Shape::Map),
    ("uidmap", Shape::List),
    ("gidmap", Shape::List),
];

/// Returns whether Go's `encoding/json` matches a key with this name: it ignores case with Unicode folding, in which `ſ` equals `s` and
/// the Kelvin sign equals `k`.
pub(super) fn is_named(key: &str, name: &str) -> bool {
    let fold = |letter: char| match letter {
        'ſ' => 's',
        '\u{212a}' => 'k',
        _ => letter.to_ascii_lowercase(),
    };
    key.chars().map(fold).eq(name.chars().map(fold))
}

/// Returns the member that podman reads for a name: if several differ only in case, the last one.
pub(super) fn member<'v>(object: &'v Value, name: &str) -> Option<&'v Value> {
    let is_meant = |(key, value): &(&String, &Value)| is_named(key, name) && !value.is_null();
    object.as_object()?.iter().rfind(is_meant).map(|(_, value)| value)
}

/// Checks the types of the members of a document. The error names the first wrong member.
pub(super) fn compare(document: &Value, members: &'static [Member]) -> Result<(), String> {
    match document.as_object() {
        Some(object) => compare_members(object, members, ""),
        None => Err("it is not a JSON object".to_owned()),
    }
}

fn compare_members(object: &Map<String, Value>, members: &'static [Member], above: &str) -> Result<(), String> {
    for (key, value) in object {
        for (name, shape) in members.iter().filter(|(name, _)| is_named(key, name)) {
            shape.compare(value, &format!("{above}{name}"))?;
        }
    }
    Ok(())
}

impl Shape {
    fn compare(&self, value: &Value, path: &str) -> Result<(), String> {
        let is_text = |value: &Value| value.is_string() || value.is_null();
        let all = |value: &Value, is_right: fn(&Value) -> bool| {
            value.as_object().is_some_and(|members| members.values().all(|value| value.is_null() || is_right(value)))
        };
        let is_right = match self {
            _ if value.is_null() => true,
            Self::Text => value.is_string(),
            Self::Flag => value.is_boolean(),
            Self::Number => is_whole(value),
            Self::Time => value.as_str().is_some_and(is_time),
            Self::List => value.is_array(),
            Self::Texts => value.as_array().is_some_and(|items| items.iter().all(is_text)),
            Self::Map => value.is_object(),
            Self::TextMap => all(value, Value::is_string),
            Self::Numbers => all(value, is_whole),
            Self::Set => all(value, Value::is_object),
            Self::Object(members) => match value.as_object() {
                Some(object) => return compare_members(object, members, &format!("{path}.")),
                None => false,
            },
            Self::Objects(members) => match value.as_array() {
                Some(items) => {
                    return items.iter().try_for_each(|item| Self::Object(members).compare(item, path));
                }
                None => false,
            },
        };
        if is_right { Ok(()) } else { Err(format!("'{path}' is not {}", self.name())) }
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Text => "a string",
            Self::Flag => "true or false",
            Self::Number => "a whole number",
            Self::Time => "a time in RFC 3339 format",
            Self::List => "a list",
            Self::Texts => "a list of strings",
            Self::Map => "an object",
            Self::TextMap => "an object of strings",
            Self::Numbers => "an object of whole numbers",
            Self::Set => "an object of objects",
            Self::Object(_) => "an object",
            Self::Objects(_) => "a list of objects",
        }
    }
}

fn is_whole(value: &Value) -> bool {
    // Go reads these members as `int64`, and fails for larger numbers.
    value.is_i64()
}
