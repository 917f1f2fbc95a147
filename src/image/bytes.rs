//! Bytes that are data, and bytes that are names.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Data of any kind; base64 in JSON.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bytes(pub Vec<u8>);

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        STANDARD
            .decode(text)
            .map(Self)
            .map_err(serde::de::Error::custom)
    }
}

/// A name: text where it is text, `\xNN` for every byte that is not printable UTF-8 and for the
/// backslash itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct NameBytes(pub Vec<u8>);

impl NameBytes {
    fn escaped(&self) -> String {
        let mut text = String::new();
        for chunk in self.0.utf8_chunks() {
            for c in chunk.valid().chars() {
                if c.is_control() || c == '\\' {
                    let mut buffer = [0; 4];
                    for byte in c.encode_utf8(&mut buffer).bytes() {
                        text.push_str(&format!("\\x{byte:02x}"));
                    }
                } else {
                    text.push(c);
                }
            }
            for byte in chunk.invalid() {
                text.push_str(&format!("\\x{byte:02x}"));
            }
        }
        text
    }

    fn parse(text: &str) -> Option<Self> {
        let mut bytes = Vec::new();
        let mut rest = text;
        while let Some(at) = rest.find('\\') {
            bytes.extend(&rest.as_bytes()[..at]);
            let hex = rest.get(at + 1..at + 4)?.strip_prefix('x')?;
            bytes.push(u8::from_str_radix(hex, 16).ok()?);
            rest = &rest[at + 4..];
        }
        bytes.extend(rest.as_bytes());
        Some(Self(bytes))
    }
}

impl Serialize for NameBytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.escaped())
    }
}

impl<'de> Deserialize<'de> for NameBytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| serde::de::Error::custom("a broken escape in a name"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_any_bytes_come_back_and_text_stays_readable() {
        for name in [
            &b"/run/x.sock"[..],
            b"\0abs\xff\\tract",
            b"",
            "ä\n".as_bytes(),
        ] {
            let name = NameBytes(name.to_vec());
            let json = serde_json::to_string(&name).unwrap();
            assert_eq!(serde_json::from_str::<NameBytes>(&json).unwrap(), name);
        }
        let json = serde_json::to_string(&NameBytes(b"/run/x.sock".to_vec())).unwrap();
        assert_eq!(json, "\"/run/x.sock\"");
        assert!(serde_json::from_str::<NameBytes>("\"\\\\xé\"").is_err());
    }
}
