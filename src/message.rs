//! Texts for people: what went wrong and why, in one line that a terminal does not obey.

use std::borrow::Cow;
use std::error::Error;

/// Characters of the longest text that is shown whole. A path of 4,096 bytes that are all escaped is shorter.
const MAX_CHARACTERS: usize = 20_000;

/// Characters of a longer text that are shown, from its beginning and from its end.
const KEPT_CHARACTERS: (usize, usize) = (2_000, 500);

/// Returns an error and its causes, the outermost first. What repeats the one before it is left out, and so is the middle of a text
/// that somebody made too long to be read.
pub fn causes(error: &dyn Error) -> String {
    let first: Option<&dyn Error> = Some(error);
    let chain = std::iter::successors(first, |&error| error.source());
    let mut texts: Vec<String> = chain.map(|error| shortened(&error.to_string()).into_owned()).collect();
    texts.dedup();
    texts.join(": ")
}

/// Returns text that may quote what anybody wrote without control characters.
pub fn on_one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control() { line.extend(character.escape_default()) } else { line.push(character) }
    }
    line
}

/// Returns a path of the repository for messages: `/` for the root, what is not printable escaped.
pub fn show(path: &[u8]) -> String {
    if path.is_empty() { "/".to_owned() } else { escape(path) }
}

/// Returns bytes as text: control characters, backslashes and what is not UTF-8 escaped.
pub fn escape(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for part in bytes.utf8_chunks() {
        text.push_str(&on_one_line(&part.valid().replace('\\', "\\\\")));
        part.invalid().iter().for_each(|byte| text.push_str(&format!("\\x{byte:02x}")));
    }
    text
}

/// Returns a word as shells take it: in quotes if it has a character that means something to them, such as the brackets
/// around an IPv6 address.
pub fn shell_word(word: &str) -> String {
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'/' | b':' | b'.' | b'_' | b'-' | b'@' | b'+');
    match word.bytes().all(is_plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', "'\\''")),
    }
}

/// How many characters of a foreign name a message shows.
const MAX_QUOTED_CHARACTERS: usize = 200;

/// Quotes what an image says, without control characters and not at any length.
pub(crate) fn quoted(text: &str) -> String {
    match text.char_indices().nth(MAX_QUOTED_CHARACTERS) {
        Some((end, _)) => format!("{:?}…", &text[..end]),
        None => format!("{text:?}"),
    }
}

/// Leaves out the middle of a text of more than 20,000 characters: it may quote what anybody wrote.
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
    fn middle_of_a_long_text_is_left_out() {
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
    fn causes_are_told_once_each() {
        let because = |text, cause| TestError(text, Some(Box::new(cause)));
        let error =
            because("cannot read 'a'", because("it is damaged", because("it is damaged", TestError("bad", None))));
        assert_eq!(causes(&error), "cannot read 'a': it is damaged: bad");
    }

    #[test]
    fn control_characters_are_escaped_and_all_else_stays() {
        assert_eq!(on_one_line("a\nb\x1b[31m\u{85} é 'c'\\"), "a\\nb\\u{1b}[31m\\u{85} é 'c'\\");
    }

    #[test]
    fn paths_are_shown_in_one_line_that_can_be_read_back() {
        assert_eq!(show(b""), "/");
        assert_eq!(show("/é b".as_bytes()), "/é b");
        assert_eq!(show(b"/a\nb\\\xff\x1b"), "/a\\nb\\\\\\xff\\u{1b}");
    }

    #[test]
    fn word_is_quoted_only_where_a_shell_would_read_more_into_it() {
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
