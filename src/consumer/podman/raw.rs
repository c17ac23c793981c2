//! JSON from other programs: members that are not changed keep their exact text, known or unknown.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;

use serde::de::{self, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::shape::is_named;

/// A JSON object whose members keep their order and their text.
pub(super) struct RawObject(Vec<(String, Box<RawValue>)>);

impl RawObject {
    /// Parses an object.
    pub(super) fn parse(text: &str) -> serde_json::Result<Self> {
        serde_json::from_str(text)
    }

    /// Sets or adds a member; `null` removes it.
    pub(super) fn set(&mut self, name: &str, value: &Value) {
        if value.is_null() {
            return self.0.retain(|(key, _)| !is_named(key, name));
        }
        let value = serde_json::value::to_raw_value(value).expect("a JSON value can be serialized");
        match self.0.iter_mut().rfind(|(key, _)| is_named(key, name)) {
            Some((_, before)) => *before = value,
            None => self.0.push((name.to_owned(), value)),
        }
    }

    /// Returns the object as text.
    pub(super) fn write(&self) -> Box<RawValue> {
        let members = self.0.iter().map(|(name, value)| format!("{}:{}", json!(name), value.get()));
        let text = format!("{{{}}}", members.collect::<Vec<_>>().join(","));
        RawValue::from_string(text).expect("an object of JSON values is JSON")
    }
}

impl<'de> Deserialize<'de> for RawObject {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;
        impl<'de> Visitor<'de> for Members {
            type Value = RawObject;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawObject, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(RawObject(members))
            }
        }
        deserializer.deserialize_map(Members)
    }
}

/// JSON in which no object has a repeated member. Go parses all values of a repeated member and fails if any is invalid. serde_json
/// would keep only the last value, so that the other values would not be checked.
pub(super) struct UniqueMembers;

impl<'de> Deserialize<'de> for UniqueMembers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Self)
    }
}

impl<'de> Visitor<'de> for UniqueMembers {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_str<E>(self, _: &str) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_unit<E>(self) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self, A::Error> {
        while list.next_element::<Self>()?.is_some() {}
        Ok(self)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self, A::Error> {
        let mut keys = HashSet::new();
        while let Some(key) = map.next_key::<String>()? {
            map.next_value::<Self>()?;
            if let Some(key) = keys.replace(key) {
                return Err(de::Error::custom(format!("member '{}' is repeated", key.escape_debug())));
            }
        }
        Ok(self)
    }
}

/// Returns the elements of a list as text. An empty file and `null` are empty lists. White space between tokens is removed, unless
/// strata wrote the list (`is_ours`), which then has none.
pub(super) fn elements(json: &[u8], is_ours: bool) -> Result<Vec<Box<RawValue>>, String> {
    let text = std::str::from_utf8(json).map_err(|error| error.to_string())?;
    if text.trim_ascii().is_empty() {
        return Ok(Vec::new());
    }
    let parse = |text: &str| serde_json::from_str(text).map_err(|error| error.to_string());
    let elements: Option<Vec<Box<RawValue>>> = parse(text)?;
    let elements = if is_ours { elements } else { parse(&compact(text))? };
    Ok(elements.unwrap_or_default())
}

/// Returns JSON without white space between its tokens.
fn compact(json: &str) -> String {
    let (mut is_text, mut is_escaped) = (false, false);
    let stays = |character: &char| {
        let stays = is_text || !character.is_ascii_whitespace();
        match character {
            '"' if !is_escaped => is_text = !is_text,
            _ => {}
        }
        is_escaped = is_text && *character == '\\' && !is_escaped;
        stays
    };
    json.chars().filter(stays).collect()
}

/// Returns a list of elements as text.
pub(super) fn write_list<'e>(elements: impl Iterator<Item = Cow<'e, RawValue>>) -> Vec<u8> {
    let mut text = vec![b'['];
    for (number, element) in elements.enumerate() {
        if number > 0 {
            text.push(b',');
        }
        text.extend_from_slice(element.get().as_bytes());
    }
    text.push(b']');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_that_are_not_set_keep_order_and_text() {
        let mut object = RawObject::parse(r#"{"b": 1.0e5, "names": [ "x" ], "a": {"z":null}}"#).unwrap();
        object.set("names", &json!(["y", "z"]));
        object.set("new", &json!(7));
        assert_eq!(object.write().get(), r#"{"b":1.0e5,"names":["y","z"],"a":{"z":null},"new":7}"#);
        object.set("b", &Value::Null);
        assert_eq!(object.write().get(), r#"{"names":["y","z"],"a":{"z":null},"new":7}"#);
    }

    #[test]
    fn white_space_is_kept_only_within_strings() {
        let text = "[ {\n \"a \\\" b\" : [ 1, \"\\\\\" ] } ,\tnull ]";
        assert_eq!(compact(text), r#"[{"a \" b":[1,"\\"]},null]"#);
        let elements: Vec<String> =
            elements(text.as_bytes(), false).unwrap().iter().map(|e| e.get().to_owned()).collect();
        assert_eq!(elements, [r#"{"a \" b":[1,"\\"]}"#, "null"]);
    }

    #[test]
    fn empty_files_are_empty_lists_and_other_values_are_errors() {
        for empty in ["", " \n", "null", "[]", " [ ] "] {
            assert!(elements(empty.as_bytes(), false).unwrap().is_empty());
        }
        for wrong in [&b"{}"[..], b"[", b"[] x", b"\xff", b"[1,]"] {
            assert!(elements(wrong, false).is_err(), "{wrong:?} was accepted");
        }
    }
}
