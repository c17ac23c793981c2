//! The image config: the layers of an image, and how to run it.
//!
//! Parsing is far more lenient than the specification, because Docker is, too: it writes `null` for empty values, and old
//! builders wrote a command as one string. Members that strata does not use are not parsed. The bytes that are published are
//! always the original ones, never these types serialised again.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, de};

use super::{DiffId, Platform, null_as_default, parse_object};

/// The members of an image config (image-spec, config.md) that strata uses.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ImageConfig {
    /// Processor architecture in Go's spelling; empty if the config states none.
    #[serde(deserialize_with = "null_as_default")]
    pub architecture: String,
    /// Operating system in Go's spelling; empty if the config states none.
    #[serde(deserialize_with = "null_as_default")]
    pub os: String,
    /// Variant of the architecture, such as `v8`.
    pub variant: Option<String>,
    /// Time when the image was created, as the builder wrote it (RFC 3339).
    pub created: Option<String>,
    /// How to run the image.
    #[serde(deserialize_with = "null_as_default")]
    pub config: ExecutionConfig,
    /// The layers, by their diff IDs.
    #[serde(deserialize_with = "null_as_default")]
    pub rootfs: RootFs,
    /// Steps of the build, from the lowest layer up, including steps that created no layer.
    #[serde(deserialize_with = "null_as_default")]
    pub history: Vec<HistoryEntry>,
}

/// How to run an image. Absent, `null` and empty mean the same.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct ExecutionConfig {
    /// User and group, by name or number.
    #[serde(deserialize_with = "null_as_default")]
    pub user: String,
    /// Environment variables, `NAME=value`.
    #[serde(deserialize_with = "null_as_default")]
    pub env: Vec<String>,
    /// The program and its first arguments.
    #[serde(deserialize_with = "words")]
    pub entrypoint: Vec<String>,
    /// Arguments that a user of the image may replace.
    #[serde(deserialize_with = "words")]
    pub cmd: Vec<String>,
    /// Working directory of the program.
    #[serde(deserialize_with = "null_as_default")]
    pub working_dir: String,
    /// Arbitrary metadata of the image.
    #[serde(deserialize_with = "labels")]
    pub labels: BTreeMap<String, String>,
}

/// The layers of an image.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct RootFs {
    /// The diff IDs, from the lowest layer up.
    #[serde(deserialize_with = "diff_ids")]
    pub diff_ids: Vec<DiffId>,
}

/// One step of an image's build.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct HistoryEntry {
    /// Time of the step, as the builder wrote it (RFC 3339).
    pub created: Option<String>,
    /// The command of this step.
    pub created_by: Option<String>,
    /// Whether the step created no layer.
    #[serde(deserialize_with = "null_as_default")]
    pub empty_layer: bool,
}

impl ImageConfig {
    /// Parses the JSON of a config.
    pub fn parse(json: &[u8]) -> Result<Self, serde_json::Error> {
        parse_object(json)
    }

    /// Returns the platform of the image, if the config states it.
    pub fn platform(&self) -> Option<Platform> {
        Platform::from_parts(&self.os, &self.architecture, self.variant.as_deref())
    }
}

/// Reads a list of words. Like Docker, accepts a string as a list with one word.
fn words<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Words {
        One(String),
        Many(Vec<String>),
    }
    Ok(match Option::deserialize(deserializer)? {
        None => Vec::new(),
        Some(Words::One(word)) => vec![word],
        Some(Words::Many(words)) => words,
    })
}

/// Reads a map of strings. A value that is `null` becomes an empty string.
fn labels<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, String>, D::Error> {
    let labels: BTreeMap<String, Option<String>> = null_as_default(deserializer)?;
    Ok(labels.into_iter().map(|(key, value)| (key, value.unwrap_or_default())).collect())
}

/// Reads diff IDs. Returns an error for another algorithm than SHA-256.
fn diff_ids<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<DiffId>, D::Error> {
    let texts: Vec<String> = null_as_default(deserializer)?;
    texts.iter().map(|text| text.parse().map_err(de::Error::custom)).collect()
}

#[cfg(test)]
mod tests {
    use super::super::Digest;
    use super::*;

    fn parse(json: &str) -> ImageConfig {
        ImageConfig::parse(json.as_bytes()).unwrap()
    }

    #[test]
    fn config_written_by_docker_with_null_values_is_parsed() {
        let id = Digest::of(b"layer");
        let config = parse(&format!(
            r#"{{"architecture":"arm64","variant":"v8","os":"linux","os.version":"","docker_version":"20.10.7",
            "container":"ab","created":"2021-04-23T22:21:37.492838922Z","author":null,
            "config":{{"Hostname":"","Domainname":"","User":"","AttachStdin":false,"Tty":false,"ExposedPorts":{{"80/tcp":{{}}}},
              "Env":["PATH=/bin","A="],"Cmd":["sh"],"Healthcheck":{{"Test":["CMD","true"],"Interval":30000000000}},
              "ArgsEscaped":true,"Image":"sha256:00","Volumes":null,"WorkingDir":"/w","Entrypoint":null,
              "OnBuild":["RUN x"],"Labels":{{"a":"b","c":null}},"StopSignal":"SIGTERM","Shell":["/bin/sh","-c"]}},
            "container_config":{{"Cmd":["/bin/sh","-c"]}},
            "history":[{{"created":"2021-04-23T22:21:37Z","created_by":"ADD"}},{{"created_by":"CMD","empty_layer":true}}],
            "rootfs":{{"type":"layers","diff_ids":["{id}"]}},"moby.buildkit.cache.v0":null}}"#
        ));
        assert_eq!(config.platform(), Some("linux/arm64/v8".parse().unwrap()));
        assert_eq!(config.rootfs.diff_ids, [DiffId(id)]);
        assert_eq!(config.config.env, ["PATH=/bin", "A="]);
        assert_eq!((config.config.cmd.as_slice(), config.config.entrypoint.len()), (["sh".to_owned()].as_slice(), 0));
        assert_eq!(config.config.labels["a"], "b");
        assert_eq!(config.config.labels["c"], "");
        assert_eq!(config.history.iter().map(|step| step.empty_layer).collect::<Vec<_>>(), [false, true]);
    }

    #[test]
    fn null_and_absent_are_empty() {
        let nulls = r#"{"architecture":null,"os":null,"variant":null,"created":null,"history":null,
            "config":{"User":null,"Env":null,"Cmd":null,"Entrypoint":null,"WorkingDir":null,"Labels":null},
            "rootfs":{"type":"layers","diff_ids":null}}"#;
        assert_eq!(parse(nulls), ImageConfig::default());
        assert_eq!(parse(r#"{"config":null,"rootfs":null}"#), ImageConfig::default());
        assert_eq!(parse("{}").platform(), None);
        assert_eq!(parse(r#"{"os":"","architecture":"amd64"}"#).platform(), None);
    }

    #[test]
    fn command_as_a_string_becomes_one_word() {
        let config = parse(r#"{"config":{"Cmd":"echo hi","Entrypoint":"/run"}}"#);
        assert_eq!(config.config.cmd, ["echo hi"]);
        assert_eq!(config.config.entrypoint, ["/run"]);
    }

    #[test]
    fn config_with_another_digest_algorithm_or_a_repeated_member_is_refused() {
        for wrong in [
            r#"{"rootfs":{"diff_ids":["sha512:00"]}}"#,
            r#"{"rootfs":{"diff_ids":[]},"rootfs":{"diff_ids":[]}}"#,
            r#"{"config":{"Env":"A=b"}}"#,
            "[]",
            "",
        ] {
            assert!(ImageConfig::parse(wrong.as_bytes()).is_err(), "{wrong:?} was accepted");
        }
    }
}
