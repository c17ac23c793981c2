//! A YAML document as a tree of nodes with their lines and columns.
//!
//! Scalars are kept as they are written: a YAML parser would convert the tag `22.10` to a number and lose the zero.

use std::collections::HashSet;
use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{Location, Span, Spanned};

/// Maximum length of a scalar in bytes.
const MAX_TEXT: usize = 4096;

/// Maximum number of scalars, lists and maps in a document, without those that aliases repeat.
const MAX_NODES: usize = 250_000;

/// Maximum number of parser events that aliases may repeat.
const MAX_ALIASED: usize = 50_000;

/// Maximum nesting depth of a document. Wishlists have six levels; each level needs some kilobytes of stack.
const MAX_DEPTH: usize = 16;

/// An error in a document, with its line and column.
#[derive(Debug)]
pub(super) struct Fault {
    pub line: usize,
    pub column: usize,
    pub text: String,
}

/// Collects the errors in a document, so that all of them are reported at once.
#[derive(Debug, Default)]
pub(super) struct Faults(Vec<Fault>);

impl Faults {
    /// Adds a fault.
    pub fn add(&mut self, fault: Fault) {
        self.0.push(fault);
    }

    /// Returns the value of a result, or adds its fault and returns `None`.
    pub fn take<T>(&mut self, result: Result<T, Fault>) -> Option<T> {
        result.map_err(|fault| self.add(fault)).ok()
    }

    /// Returns the number of faults.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// Returns the faults in the order of the document.
    pub fn sorted(mut self) -> Vec<Fault> {
        self.0.sort_by_key(|fault| (fault.line, fault.column));
        self.0
    }
}

/// A scalar, list or map of a document.
#[derive(Debug)]
pub(super) struct YamlNode {
    /// The line, from 1.
    pub line: usize,
    /// The column in characters, from 1.
    pub column: usize,
    pub value: YamlValue,
}

/// The value of a node.
#[derive(Debug)]
pub(super) enum YamlValue {
    /// No value, or `null`.
    Nothing,
    Text(String),
    /// A text over the limit, with its length in bytes.
    TooLong(usize),
    List(Vec<YamlNode>),
    /// Keys and values in the order of the document. Keys may be of any type, and occur several times.
    Map(Vec<(YamlNode, YamlNode)>),
}

impl YamlNode {
    /// Parses a document.
    pub fn parse(text: &str) -> Result<Self, Fault> {
        let options = serde_saphyr::options! {
            budget: serde_saphyr::budget! {
                max_nodes: MAX_NODES,
                max_events: 4 * MAX_NODES,
                max_depth: MAX_DEPTH,
                flow_nesting_limit: MAX_DEPTH,
                max_documents: 1,
                enforce_alias_anchor_ratio: false,
            },
            alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: MAX_ALIASED },
            // Messages contain the line and column, and must fit in one line.
            with_snippet: false,
            // `repeated_keys` reports all duplicate keys. The parser would stop at the first one.
            duplicate_keys: serde_saphyr::options::DuplicateKeyPolicy::PassThrough,
        };
        let raw: RawNode = serde_saphyr::from_str_with_options(text, options).map_err(|error| syntax_fault(&error))?;
        Ok(raw.settle(text))
    }

    /// Returns a fault at the position of this node.
    pub fn fault(&self, text: impl Into<String>) -> Fault {
        Fault { line: self.line, column: self.column, text: text.into() }
    }

    /// Returns the text of this node. Fails if it is empty or not a text.
    pub fn text(&self) -> Result<&str, Fault> {
        match &self.value {
            YamlValue::Text(text) if text.is_empty() => Err(self.fault("an empty text is not allowed")),
            YamlValue::Text(text) => Ok(text),
            YamlValue::TooLong(length) => {
                Err(self.fault(format!("a text of {length} bytes exceeds the limit of {MAX_TEXT}")))
            }
            _ => Err(self.fault(format!("expected a text, not {}", self.kind()))),
        }
    }

    /// Returns the texts in this list, or the text itself if the node is one. Adds a fault if there is no text.
    pub fn texts(&self, faults: &mut Faults) -> Vec<(&YamlNode, &str)> {
        let mut text = |node: &'_ YamlNode| -> Option<()> { faults.take(node.text().map(drop)) };
        match &self.value {
            YamlValue::List(items) if items.is_empty() => {
                faults.add(self.fault("an empty list is not allowed"));
                Vec::new()
            }
            YamlValue::List(items) => {
                let right = items.iter().filter(|item| text(item).is_some());
                right.filter_map(|item| Some((item, item.text().ok()?))).collect()
            }
            _ => text(self).and_then(|()| Some(vec![(self, self.text().ok()?)])).unwrap_or_default(),
        }
    }

    /// Returns the boolean value of this node.
    pub fn flag(&self) -> Result<bool, Fault> {
        match &self.value {
            YamlValue::Text(text) if text == "true" => Ok(true),
            YamlValue::Text(text) if text == "false" => Ok(false),
            _ => Err(self.fault("expected true or false")),
        }
    }

    /// Parses the text as a `T`.
    pub fn parsed<T: std::str::FromStr<Err: fmt::Display>>(&self) -> Result<T, Fault> {
        self.text()?.parse().map_err(|error| self.fault(format!("{error}")))
    }

    /// Returns the keys and values of this map.
    pub fn map(&self) -> Result<&[(YamlNode, YamlNode)], Fault> {
        match &self.value {
            YamlValue::Map(entries) => Ok(entries),
            _ => Err(self.fault(format!("expected keys with values, not {}", self.kind()))),
        }
    }

    /// Adds faults for unknown and duplicate keys of this map. Values are not checked.
    pub fn check_keys(&self, known: &[&str], faults: &mut Faults) {
        let entries = match self.map() {
            Ok(entries) => entries,
            Err(fault) => return faults.add(fault),
        };
        for (key, _) in entries {
            match key.text() {
                Ok(text) if !known.contains(&text) => {
                    faults.add(key.fault(format!("unknown key {text:?}; known keys: {}", known.join(", "))));
                }
                Ok(_) => {}
                Err(fault) => faults.add(fault),
            }
        }
        self.repeated_keys().into_iter().for_each(|fault| faults.add(fault));
    }

    /// Returns a fault for each duplicate key. The value of the first one is used.
    pub fn repeated_keys(&self) -> Vec<Fault> {
        let YamlValue::Map(entries) = &self.value else { return Vec::new() };
        let mut seen = HashSet::new();
        let texts = entries.iter().filter_map(|(key, _)| Some((key, key.text().ok()?)));
        let repeated = texts.filter(|(_, text)| !seen.insert(*text));
        repeated.map(|(key, text)| key.fault(format!("duplicate key {text:?}"))).collect()
    }

    /// Returns the value of a key. `None` if this node is not a map or has no such key.
    pub fn get(&self, wanted: &str) -> Option<&YamlNode> {
        let YamlValue::Map(entries) = &self.value else { return None };
        entries
            .iter()
            .find(|(key, _)| matches!(&key.value, YamlValue::Text(text) if text == wanted))
            .map(|(_, value)| value)
    }

    fn kind(&self) -> &'static str {
        match &self.value {
            YamlValue::Nothing => "nothing",
            YamlValue::Text(_) => "a text",
            YamlValue::TooLong(_) => "a text that is too long",
            YamlValue::List(_) => "a list",
            YamlValue::Map(_) => "keys with values",
        }
    }
}

/// Converts an error of the parser. Its message ends with the position, which is removed.
fn syntax_fault(error: &serde_saphyr::Error) -> Fault {
    let location = error.location().unwrap_or(Location::UNKNOWN);
    let (line, column) = position(location);
    let text = error.without_snippet().to_string();
    let fact = text.split(" at line ").next().unwrap_or_default();
    Fault { line, column, text: super::one_line(fact) }
}

fn position(location: Location) -> (usize, usize) {
    let number = |number: u64| usize::try_from(number).unwrap_or(usize::MAX).max(1);
    (number(location.line()), number(location.column()))
}

/// A node as returned by the parser, in which numbers and booleans are not texts yet.
struct RawNode(Box<Spanned<RawValue>>);

enum RawValue {
    Nothing,
    Text(String),
    /// A number or boolean of YAML, formatted by the parser.
    Bare(String),
    /// A text over the limit, with its length in bytes.
    TooLong(usize),
    List(Vec<RawNode>),
    Map(Vec<(RawNode, RawNode)>),
}

impl RawNode {
    /// Converts the node. Numbers and booleans become the texts in `document`.
    fn settle(self, document: &str) -> YamlNode {
        let (line, column) = position(self.0.referenced);
        let span = self.0.defined.span();
        let value = match self.0.value {
            RawValue::Nothing => YamlValue::Nothing,
            RawValue::Text(text) => YamlValue::Text(text),
            RawValue::Bare(text) => YamlValue::Text(written(document, span).unwrap_or(text)),
            RawValue::TooLong(length) => YamlValue::TooLong(length),
            RawValue::List(items) => YamlValue::List(items.into_iter().map(|item| item.settle(document)).collect()),
            RawValue::Map(entries) => {
                let settled = |(key, value): (Self, Self)| (key.settle(document), value.settle(document));
                YamlValue::Map(entries.into_iter().map(settled).collect())
            }
        };
        YamlNode { line, column, value }
    }
}

/// Returns the text at a span of the document.
fn written(document: &str, span: Span) -> Option<String> {
    let start = usize::try_from(span.byte_offset()?).ok()?;
    let end = start.checked_add(usize::try_from(span.byte_len()?).ok()?)?;
    let text = document.get(start..end)?.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

impl<'de> Deserialize<'de> for RawNode {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Spanned::deserialize(deserializer).map(|node| Self(Box::new(node)))
    }
}

impl<'de> Deserialize<'de> for RawValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AnyValue)
    }
}

struct AnyValue;

impl<'de> Visitor<'de> for AnyValue {
    type Value = RawValue;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text, a list or keys with values")
    }

    fn visit_unit<E>(self) -> Result<RawValue, E> {
        Ok(RawValue::Nothing)
    }

    fn visit_bool<E>(self, value: bool) -> Result<RawValue, E> {
        Ok(RawValue::Bare(value.to_string()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<RawValue, E> {
        Ok(RawValue::Bare(value.to_string()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<RawValue, E> {
        Ok(RawValue::Bare(value.to_string()))
    }

    fn visit_i128<E>(self, value: i128) -> Result<RawValue, E> {
        Ok(RawValue::Bare(value.to_string()))
    }

    fn visit_u128<E>(self, value: u128) -> Result<RawValue, E> {
        Ok(RawValue::Bare(value.to_string()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<RawValue, E> {
        Ok(RawValue::Bare(value.to_string()))
    }

    fn visit_str<E>(self, text: &str) -> Result<RawValue, E> {
        Ok(if text.len() > MAX_TEXT { RawValue::TooLong(text.len()) } else { RawValue::Text(text.to_owned()) })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<RawValue, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = sequence.next_element()? {
            items.push(item);
        }
        Ok(RawValue::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawValue, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(RawValue::Map(entries))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scalars_are_kept_as_written() {
        let node = YamlNode::parse("[22.10, 007, yes, 1e3, \"q\", 0x10, 3_000, -1]").unwrap();
        let texts: Vec<&str> = node.texts(&mut Faults::default()).into_iter().map(|(_, text)| text).collect();
        assert_eq!(texts, ["22.10", "007", "yes", "1e3", "q", "0x10", "3_000", "-1"]);
    }

    #[test]
    fn nodes_have_lines_and_columns() {
        let node = YamlNode::parse("# comment\na: 1\nb:\n  - x\n  - {c: y}\n").unwrap();
        let YamlValue::List(items) = &node.get("b").unwrap().value else { panic!("is no list") };
        assert_eq!((items[0].line, items[0].column), (4, 5));
        let inner = items[1].get("c").unwrap();
        assert_eq!((inner.line, inner.column, inner.text().unwrap()), (5, 9, "y"));
    }

    #[test]
    fn aliases_are_expanded_up_to_a_limit() {
        let node = YamlNode::parse("a: &x 1.10\nb: *x\n").unwrap();
        assert_eq!(node.get("b").unwrap().text().unwrap(), "1.10");
        let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..9 {
            let inner = vec![format!("*a{}", level - 1); 10].join(", ");
            bomb += &format!("a{level}: &a{level} [{inner}]\n");
        }
        assert!(YamlNode::parse(&bomb).is_err());
    }

    #[test]
    fn depth_and_length_are_limited() {
        assert!(YamlNode::parse(&"[".repeat(100_000)).is_err());
        assert!(YamlNode::parse(&"- ".repeat(100_000)).is_err());
        assert!(YamlNode::parse(&"a".repeat(MAX_TEXT)).unwrap().text().is_ok());
        let fault = YamlNode::parse(&"a".repeat(MAX_TEXT + 1)).unwrap().text().unwrap_err();
        assert!(fault.text.contains("4097 bytes"), "{fault:?}");
        assert!(YamlNode::parse(&"- \n".repeat(MAX_NODES + 1)).is_err());
    }

    #[test]
    fn all_invalid_keys_are_reported_with_their_lines() {
        let node = YamlNode::parse("a: 1\n? [x]\n: 2\nb: 3\na: 4\nc: 5\n").unwrap();
        let mut faults = Faults::default();
        node.check_keys(&["a", "c"], &mut faults);
        let faults: Vec<(usize, String)> = faults.sorted().into_iter().map(|fault| (fault.line, fault.text)).collect();
        assert_eq!(faults.iter().map(|(line, _)| *line).collect::<Vec<_>>(), [2, 4, 5]);
        assert!(faults[1].1.contains("unknown key \"b\"") && faults[2].1.contains("duplicate"), "{faults:?}");
        assert_eq!(node.get("a").unwrap().text().unwrap(), "1");
    }

    #[test]
    fn syntax_error_has_a_line() {
        for (text, line, part) in
            [("a: 1\nb: [\n", 2, "bracket"), ("a: 1\n\tb: 2\n", 1, "tab"), ("a: 1\n---\nb: 2\n", 2, "")]
        {
            let fault = YamlNode::parse(text).unwrap_err();
            assert!(
                fault.line == line && fault.text.contains(part) && !fault.text.contains('\n'),
                "{text:?} {fault:?}"
            );
        }
    }
}
