//! A strict JSON scanner, run before any parser sees the bytes (R15, A32).
//!
//! `serde_json` ignores a duplicate member that no field asks for and keeps the last of two in a
//! map; two readers of the same bytes could then disagree. This pass refuses what two readers may
//! read differently: duplicate members, lone surrogates, numbers beyond a double, a byte order
//! mark, trailing bytes, and nesting beyond the limit. It builds nothing but the member names of
//! the objects that are open.

use std::collections::HashSet;

/// What a document may be at most (security.md section 7).
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Longest document, in bytes.
    pub document: usize,
    /// Deepest nesting of arrays and objects.
    pub depth: usize,
}

impl Limits {
    /// The common depth with a document limit of its own.
    #[must_use]
    pub const fn document(bytes: usize) -> Self {
        Self {
            document: bytes,
            depth: 32,
        }
    }
}

/// Why a document is refused; `at` is the byte offset.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JsonError {
    /// Longer than the limit.
    #[error("document of {length} bytes is longer than {limit}")]
    TooLong {
        /// Its length.
        length: usize,
        /// The limit.
        limit: usize,
    },
    /// Nested deeper than the limit.
    #[error("nested deeper than {limit} at byte {at}")]
    TooDeep {
        /// Where.
        at: usize,
        /// The limit.
        limit: usize,
    },
    /// One object names a member twice.
    #[error("duplicate member at byte {at}")]
    Duplicate {
        /// Where the second one starts.
        at: usize,
    },
    /// Not JSON, or JSON that two readers may read differently.
    #[error("{what} at byte {at}")]
    Syntax {
        /// Where.
        at: usize,
        /// What was wrong.
        what: &'static str,
    },
}

/// Check a whole document.
///
/// # Errors
/// The first thing that is wrong with it, with its place.
pub fn check(text: &[u8], limits: Limits) -> Result<(), JsonError> {
    if text.len() > limits.document {
        return Err(JsonError::TooLong {
            length: text.len(),
            limit: limits.document,
        });
    }
    let text = std::str::from_utf8(text).map_err(|e| JsonError::Syntax {
        at: e.valid_up_to(),
        what: "invalid UTF-8",
    })?;
    let mut scan = Scan {
        bytes: text.as_bytes(),
        at: 0,
        limit: limits.depth,
    };
    scan.space();
    scan.value(0)?;
    scan.space();
    if scan.at < scan.bytes.len() {
        return scan.fail("trailing bytes");
    }
    Ok(())
}

struct Scan<'a> {
    bytes: &'a [u8],
    at: usize,
    limit: usize,
}

impl Scan<'_> {
    fn fail<T>(&self, what: &'static str) -> Result<T, JsonError> {
        Err(JsonError::Syntax { at: self.at, what })
    }

    fn peek(&self) -> u8 {
        self.bytes.get(self.at).copied().unwrap_or(0)
    }

    fn space(&mut self) {
        while matches!(self.peek(), b' ' | b'\t' | b'\n' | b'\r') {
            self.at += 1;
        }
    }

    fn expect(&mut self, byte: u8, what: &'static str) -> Result<(), JsonError> {
        if self.peek() != byte {
            return self.fail(what);
        }
        self.at += 1;
        Ok(())
    }

    fn word(&mut self, word: &[u8]) -> Result<(), JsonError> {
        if !self.bytes[self.at..].starts_with(word) {
            return self.fail("unknown word");
        }
        self.at += word.len();
        Ok(())
    }

    fn value(&mut self, depth: usize) -> Result<(), JsonError> {
        if depth > self.limit {
            return Err(JsonError::TooDeep {
                at: self.at,
                limit: self.limit,
            });
        }
        match self.peek() {
            b'{' => self.object(depth),
            b'[' => self.array(depth),
            b'"' => self.string(None),
            b't' => self.word(b"true"),
            b'f' => self.word(b"false"),
            b'n' => self.word(b"null"),
            b'-' | b'0'..=b'9' => self.number(),
            _ => self.fail("value expected"),
        }
    }

    fn object(&mut self, depth: usize) -> Result<(), JsonError> {
        self.at += 1;
        self.space();
        if self.peek() == b'}' {
            self.at += 1;
            return Ok(());
        }
        let mut names = HashSet::new();
        loop {
            let start = self.at;
            let mut name = String::new();
            self.string(Some(&mut name))?;
            if !names.insert(name) {
                return Err(JsonError::Duplicate { at: start });
            }
            self.space();
            self.expect(b':', "colon expected")?;
            self.space();
            self.value(depth + 1)?;
            self.space();
            if self.peek() == b'}' {
                self.at += 1;
                return Ok(());
            }
            self.expect(b',', "comma or brace expected")?;
            self.space();
        }
    }

    fn array(&mut self, depth: usize) -> Result<(), JsonError> {
        self.at += 1;
        self.space();
        if self.peek() == b']' {
            self.at += 1;
            return Ok(());
        }
        loop {
            self.value(depth + 1)?;
            self.space();
            if self.peek() == b']' {
                self.at += 1;
                return Ok(());
            }
            self.expect(b',', "comma or bracket expected")?;
            self.space();
        }
    }

    /// One string; its decoded text goes to `out`, so that `"a"` and `"\u0061"` are one name.
    fn string(&mut self, mut out: Option<&mut String>) -> Result<(), JsonError> {
        self.expect(b'"', "string expected")?;
        loop {
            let start = self.at;
            while !matches!(self.peek(), b'"' | b'\\' | 0..=0x1f) {
                self.at += 1;
            }
            if let Some(out) = out.as_deref_mut() {
                // Cut only at ASCII bytes, so the slice of checked UTF-8 is UTF-8.
                out.push_str(&String::from_utf8_lossy(&self.bytes[start..self.at]));
            }
            match self.peek() {
                b'"' => {
                    self.at += 1;
                    return Ok(());
                }
                b'\\' => {
                    let letter = self.escape()?;
                    if let Some(out) = out.as_deref_mut() {
                        out.push(letter);
                    }
                }
                _ => return self.fail("control byte or end inside a string"),
            }
        }
    }

    fn escape(&mut self) -> Result<char, JsonError> {
        self.at += 2;
        Ok(match self.bytes.get(self.at - 1) {
            Some(b'"') => '"',
            Some(b'\\') => '\\',
            Some(b'/') => '/',
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(b'n') => '\n',
            Some(b'r') => '\r',
            Some(b't') => '\t',
            Some(b'u') => {
                let first = self.hex()?;
                let code = if (0xd800..0xdc00).contains(&first) {
                    self.expect(b'\\', "lone surrogate")?;
                    self.expect(b'u', "lone surrogate")?;
                    let second = self.hex()?;
                    if !(0xdc00..0xe000).contains(&second) {
                        return self.fail("lone surrogate");
                    }
                    0x10000 + ((first - 0xd800) << 10) + (second - 0xdc00)
                } else {
                    first
                };
                match char::from_u32(code) {
                    Some(letter) => letter,
                    None => return self.fail("lone surrogate"),
                }
            }
            _ => return self.fail("unknown escape"),
        })
    }

    fn hex(&mut self) -> Result<u32, JsonError> {
        let mut code = 0;
        for _ in 0..4 {
            let Some(digit) = char::from(self.peek()).to_digit(16) else {
                return self.fail("four hex digits expected");
            };
            code = code * 16 + digit;
            self.at += 1;
        }
        Ok(code)
    }

    fn digits(&mut self) -> Result<(), JsonError> {
        if !self.peek().is_ascii_digit() {
            return self.fail("digit expected");
        }
        while self.peek().is_ascii_digit() {
            self.at += 1;
        }
        Ok(())
    }

    fn number(&mut self) -> Result<(), JsonError> {
        let start = self.at;
        if self.peek() == b'-' {
            self.at += 1;
        }
        if self.peek() == b'0' {
            self.at += 1;
        } else {
            self.digits()?;
        }
        if self.peek() == b'.' {
            self.at += 1;
            self.digits()?;
        }
        if matches!(self.peek(), b'e' | b'E') {
            self.at += 1;
            if matches!(self.peek(), b'+' | b'-') {
                self.at += 1;
            }
            self.digits()?;
        }
        let text = std::str::from_utf8(&self.bytes[start..self.at]).unwrap_or_default();
        if text.len() > 64 || !text.parse::<f64>().is_ok_and(f64::is_finite) {
            return self.fail("number out of range");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(text: &[u8]) -> Result<(), JsonError> {
        check(
            text,
            Limits {
                document: 4096,
                depth: 4,
            },
        )
    }

    #[test]
    fn plain_documents_pass() {
        for text in [
            r#"{"a":[1,-0.5e+3,true,false,null,"x\u00e9\ud83d\ude00\/"],"b":{}}"#,
            " [ ] ",
            r#""""#,
            "0",
        ] {
            assert_eq!(verdict(text.as_bytes()), Ok(()), "{text}");
            serde_json::from_str::<serde_json::Value>(text).unwrap();
        }
    }

    #[test]
    fn a32_what_two_readers_may_read_differently_is_refused() {
        for text in [
            r#"{"a":1,"a":2}"#,
            r#"{"a":1,"\u0061":2}"#,
            r#"{"a":1} x"#,
            "\u{feff}{}",
            r#""\ud800""#,
            r#""\ud800\u0041""#,
            r#""\udc00""#,
            "NaN",
            "Infinity",
            "1e999",
            "01",
            "1.",
            ".5",
            "+1",
            "[1,]",
            r#"{"a":1,}"#,
            "{'a':1}",
            "[[[[[[1]]]]]]",
            "\"a\nb\"",
            "[1 2]",
            "",
            "{",
            r#""\x""#,
        ] {
            assert!(verdict(text.as_bytes()).is_err(), "{text}");
        }
        assert!(verdict(b"\"\xff\"").is_err());
        assert!(verdict(format!("[{}]", "1".repeat(65)).as_bytes()).is_err());
    }

    #[test]
    fn limits_hold_at_the_edge() {
        assert!(verdict(b"[[[[1]]]]").is_ok());
        assert!(matches!(
            verdict(b"[[[[[1]]]]]"),
            Err(JsonError::TooDeep { .. })
        ));
        let long = format!("\"{}\"", "a".repeat(4094));
        assert!(verdict(long.as_bytes()).is_ok());
        let longer = format!("\"{}\"", "a".repeat(4095));
        assert!(matches!(
            verdict(longer.as_bytes()),
            Err(JsonError::TooLong { .. })
        ));
    }
}
