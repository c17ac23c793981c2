//! Text for messages: error chains on one line, and untrusted text without characters that control the terminal.

use std::borrow::Cow;
use std::error::Error;

/// Maximum length in characters of text that is not shortened. An escaped path of 4,096 bytes is shorter.
const MAX_CHARACTERS: usize = 20_000;

/// Number of characters that are kept at the start and at the end of shortened text.
const KEPT_CHARACTERS: (usize, usize) = (2_000, 500);

/// Returns an error and its causes, the outermost first, separated by colons. A cause with the same text as the previous one is
/// omitted, and very long texts are shortened.
pub fn causes(error: &dyn Error) -> String {
    let first: Option<&dyn Error> = Some(error);
    let chain = std::iter::successors(first, |&error| error.source());
    let mut texts: Vec<String> = chain.map(|error| shortened(&error.to_string()).into_owned()).collect();
    texts.dedup();
    texts.join(": ")
}

/// Returns untrusted text on one line: control characters are escaped.
pub fn on_one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control() { line.extend(character.escape_default()) } else { line.push(character) }
    }
    line
}

/// Returns a path of the repository for messages: `/` for the root, other paths escaped.
pub fn show(path: &[u8]) -> String {
    if path.is_empty() { "/".to_owned() } else { escape(path) }
}

/// Returns bytes as text: escapes control characters, backslashes and bytes that are not UTF-8.
pub fn escape(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for part in bytes.utf8_chunks() {
        text.push_str(&on_one_line(&part.valid().replace('\\', "\\\\")));
        part.invalid().iter().for_each(|byte| text.push_str(&format!("\\x{byte:02x}")));
    }
    text
}

/// Quotes a word for a shell if it contains a special character, such as the brackets around an IPv6 address.
pub fn shell_word(word: &str) -> String {
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'/' | b':' | b'.' | b'_' | b'-' | b'@' | b'+');
    match word.bytes().all(is_plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', "'\\''")),
    }
}

/// Maximum number of characters that [`quoted`] keeps.
const MAX_QUOTED_CHARACTERS: usize = 200;

/// Quotes untrusted text: escapes control characters, and truncates long text.
pub(crate) fn quoted(text: &str) -> String {
    match text.char_indices().nth(MAX_QUOTED_CHARACTERS) {
        Some((end, _)) => format!("{:?}…", &text[..end]),
        None => format!("{text:?}"),
    }
}

/// Removes the middle of a text of more than 20,000 characters, as untrusted text may have any length.
pub fn shortened(text: &str) -> Cow<'_, str> {
    if text.len() <= MAX_CHARACTERS {
        return text.into();
    }
    let length = text.chars().count();
    let (first, last) = KEPT_CHARACTERS;
    if length <= MAX_CHARACTERS {
        return text.into();
    }
    let beginning: String = text.chars().take(first).collect();
    let end: String = text.chars().skip(length - last).collect();
    format!("{beginning} [{} characters are left out] {end}", length - first - last).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn middle_of_a_long_text_is_removed() {
        let long = "é".repeat(3_000_000) + "end";
        let text = shortened(&long);
        assert!(text.len() < 6_000 && text.contains("é [2997503 characters are left out] é") && text.ends_with("éend"));
        let path = r"\xff".repeat(4_096);
        assert_eq!(shortened(&path), path);
    }

    #[derive(Debug, thiserror::Error)]
    #[error("{0}")]
    struct TestError(&'static str, #[source] Option<Box<TestError>>);

    #[test]
    fn repeated_cause_is_omitted() {
        let because = |text, cause| TestError(text, Some(Box::new(cause)));
        let error =
            because("cannot read 'a'", because("it is damaged", because("it is damaged", TestError("bad", None))));
        assert_eq!(causes(&error), "cannot read 'a': it is damaged: bad");
    }

    #[test]
    fn only_control_characters_are_escaped_on_one_line() {
        assert_eq!(on_one_line("a\nb\x1b[31m\u{85} é 'c'\\"), "a\\nb\\u{1b}[31m\\u{85} é 'c'\\");
    }

    #[test]
    fn escaped_paths_are_on_one_line_and_unambiguous() {
        assert_eq!(show(b""), "/");
        assert_eq!(show("/é b".as_bytes()), "/é b");
        assert_eq!(show(b"/a\nb\\\xff\x1b"), "/a\\nb\\\\\\xff\\u{1b}");
    }

    #[test]
    fn word_is_quoted_only_if_it_has_special_characters() {
        for (word, expected) in [
            ("h.org:5000/a/b:1", "h.org:5000/a/b:1"),
            ("/cvmfs/a.b/h.org/a:sha256:00", "/cvmfs/a.b/h.org/a:sha256:00"),
            ("[::1]:5000/a:1", "'[::1]:5000/a:1'"),
            ("it's", r"'it'\''s'"),
        ] {
            assert_eq!(shell_word(word), expected);
        }
    }
}
