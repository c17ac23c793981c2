//! The meta info object of a repository: a JSON document that describes it.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

/// Describes a repository to its users, with the keys of the template of the stock tools.
///
/// All fields are optional; empty ones are not written.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct MetaInfo {
    /// Who runs the repository.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub administrator: String,
    /// Contact address.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub email: String,
    /// The institute that runs it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub organisation: String,
    /// Content of the repository.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// The project's web site.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub url: String,
    /// The URL of the server that publishes.
    #[serde(rename = "recommended-stratum0", skip_serializing_if = "String::is_empty")]
    pub recommended_stratum0: String,
    /// The URLs of the servers that clients should use.
    #[serde(rename = "recommended-stratum1s", skip_serializing_if = "Vec::is_empty")]
    pub recommended_stratum1s: Vec<String>,
    /// Additional keys.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub custom: BTreeMap<String, Value>,
}

impl MetaInfo {
    /// Returns the document in canonical form: stock keys in their usual order, all others sorted, no white space.
    pub fn write(&self) -> Vec<u8> {
        let mut document = self.clone();
        document.custom.values_mut().for_each(Value::sort_all_objects);
        serde_json::to_vec(&document).expect("text, lists and maps with text keys are JSON")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn document_has_stock_keys_and_a_canonical_form() {
        let with = |custom: Value| MetaInfo {
            administrator: "A \"quoted\" name".to_owned(),
            recommended_stratum0: "http://s0/cvmfs/x".to_owned(),
            recommended_stratum1s: vec!["http://s1/cvmfs/x".to_owned()],
            custom: BTreeMap::from([("made".to_owned(), custom), ("by".to_owned(), json!(null))]),
            ..MetaInfo::default()
        };
        let written = with(json!({"b": [{"d": 1, "c": 2}], "a": 3})).write();
        let expected = concat!(
            r#"{"administrator":"A \"quoted\" name","recommended-stratum0":"http://s0/cvmfs/x","#,
            r#""recommended-stratum1s":["http://s1/cvmfs/x"],"#,
            r#""custom":{"by":null,"made":{"a":3,"b":[{"c":2,"d":1}]}}}"#
        );
        assert_eq!(String::from_utf8_lossy(&written), expected);
        assert_eq!(with(json!({"a": 3, "b": [{"c": 2, "d": 1}]})).write(), written);
    }

    #[test]
    fn empty_document_is_an_empty_object() {
        assert_eq!(MetaInfo::default().write(), b"{}");
    }
}
