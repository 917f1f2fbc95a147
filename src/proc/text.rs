//! What the parsers share: numbers, words and the kernel's octal escapes, all on bytes.

use crate::error::{Error, Exit};

/// The error of a `/proc` text that does not read as it should: `what` names the file or the field.
pub(super) fn malformed(what: &str, text: &[u8]) -> Error {
    const SHOWN: usize = 120;
    let shown = String::from_utf8_lossy(&text[..text.len().min(SHOWN)]);
    Error::coded(
        "E-PROC-FORMAT",
        Exit::Failure,
        format!("{what}: cannot make sense of {shown:?}"),
        "",
    )
}

/// An unsigned number in `radix` (at most 16) that is the whole of `digits`; no sign, no prefix.
pub(super) fn number(digits: &[u8], radix: u32) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0u64, |value, &digit| {
        let digit = (digit as char).to_digit(radix)?;
        value
            .checked_mul(u64::from(radix))?
            .checked_add(u64::from(digit))
    })
}

/// A hexadecimal number with or without `0x`.
pub(super) fn hex(digits: &[u8]) -> Option<u64> {
    number(digits.strip_prefix(b"0x").unwrap_or(digits), 16)
}

/// The words of a line, cut at blanks and tabs.
pub(super) fn words(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    line.split(|byte| byte.is_ascii_whitespace())
        .filter(|word| !word.is_empty())
}

/// Any number that `FromStr` knows, in decimal, with a sign where the type has one.
pub(super) fn decimal<T: std::str::FromStr>(word: &[u8]) -> Option<T> {
    std::str::from_utf8(word).ok()?.trim().parse().ok()
}

/// The lines of a file without their ends; an empty last line is none.
pub(super) fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.strip_suffix(b"\n")
        .map(Some)
        .unwrap_or(Some(text))
        .filter(|text| !text.is_empty())
        .into_iter()
        .flat_map(|text| text.split(|&byte| byte == b'\n'))
}

/// `key:` and what follows it, trimmed.
pub(super) fn key_value(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let colon = line.iter().position(|&byte| byte == b':')?;
    Some((&line[..colon], line[colon + 1..].trim_ascii()))
}

/// Undoes the kernel's escapes: a backslash and three octal digits stand for one byte (`\040` is a
/// blank in mountinfo, `\012` a line feed in maps). Anything else stays as it is.
pub fn unescape_octal(text: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&first, after)) = rest.split_first() {
        let escaped = (first == b'\\')
            .then(|| after.get(..3))
            .flatten()
            .and_then(|digits| number(digits, 8))
            .and_then(|value| u8::try_from(value).ok());
        match escaped {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[3..];
            }
            None => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn octal_escapes_are_undone_and_nothing_else_is() {
        assert_eq!(unescape_octal(br"/a\040b\134c\012"), b"/a b\\c\n");
        assert_eq!(unescape_octal(br"/a\04"), br"/a\04");
        assert_eq!(unescape_octal(br"\999\777"), br"\999\777");
        assert_eq!(unescape_octal("/ü\\".as_bytes()), "/ü\\".as_bytes());
    }

    #[test]
    fn numbers_do_not_overflow() {
        assert_eq!(number(b"ffffffffffffffff", 16), Some(u64::MAX));
        assert_eq!(number(b"10000000000000000", 16), None);
        assert_eq!(number(b"", 10), None);
        assert_eq!(number(b"-1", 10), None);
        assert_eq!(hex(b"0x20"), Some(32));
    }

    #[test]
    fn lines_have_no_empty_last_one() {
        assert_eq!(lines(b"a\nb\n").count(), 2);
        assert_eq!(lines(b"a\nb").count(), 2);
        assert_eq!(lines(b"").count(), 0);
    }
}
