//! The tokens of containerd's filter language.
//!
//! Source: the grammar in the documentation of containerd's package `filters`, and Go's syntax of
//! quoted strings.

/// A token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Token {
    /// `,` or `.`
    Separator(char),
    /// A run of `=`, `!` and `~`.
    Operator(String),
    /// Letters, digits and `_`; after an operator, anything up to a comma or blank.
    Word(String),
    /// Text between quotes: `"`, and for a regular expression also `/` or `|`.
    Quoted { quote: char, text: String },
    /// The end of the text.
    End,
}

/// The fault of a filter's text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ScanFault {
    #[error("a quoted text does not end")]
    Unterminated,
    #[error("an escape in a quoted text is not one of Go's")]
    Escape,
    #[error("a quoted text is not UTF-8")]
    NotText,
    #[error("this character has no meaning here")]
    Character,
}

/// Splits a filter's text into tokens.
pub(super) struct Scanner<'t> {
    text: &'t str,
    at: usize,
}

impl<'t> Scanner<'t> {
    pub(super) const fn new(text: &'t str) -> Self {
        Self { text, at: 0 }
    }

    /// Returns the number of bytes read so far.
    pub(super) const fn at(&self) -> usize {
        self.at
    }

    fn peek(&self) -> Option<char> {
        self.text[self.at..].chars().next()
    }

    fn take_while(&mut self, is_part: impl Fn(char) -> bool) -> &'t str {
        let rest = &self.text[self.at..];
        let len = rest.find(|c| !is_part(c)).unwrap_or(rest.len());
        self.at += len;
        &rest[..len]
    }

    /// Returns the next token; with `after_operator`, reads a value instead of a field.
    pub(super) fn next(&mut self, after_operator: bool) -> Result<Token, ScanFault> {
        self.take_while(char::is_whitespace);
        let Some(first) = self.peek() else {
            return Ok(Token::End);
        };
        match first {
            '"' | '/' | '|' => self.quoted(first),
            ',' => {
                self.at += 1;
                Ok(Token::Separator(first))
            }
            '.' => {
                self.at += 1;
                Ok(Token::Separator(first))
            }
            '=' | '!' | '~' => Ok(Token::Operator(self.take_while(is_operator).to_owned())),
            _ if after_operator && is_value(first) => {
                Ok(Token::Word(self.take_while(is_value).to_owned()))
            }
            _ if is_field(first) => Ok(Token::Word(self.take_while(is_field).to_owned())),
            _ => Err(ScanFault::Character),
        }
    }

    fn quoted(&mut self, quote: char) -> Result<Token, ScanFault> {
        self.at += quote.len_utf8();
        let mut bytes = Vec::new();
        loop {
            let next = self.peek().ok_or(ScanFault::Unterminated)?;
            self.at += next.len_utf8();
            match next {
                '\n' => return Err(ScanFault::Unterminated),
                '\\' => self.escape(quote, &mut bytes)?,
                _ if next == quote => break,
                _ => bytes.extend_from_slice(next.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
        let text = String::from_utf8(bytes).map_err(|_| ScanFault::NotText)?;
        Ok(Token::Quoted { quote, text })
    }

    fn escape(&mut self, quote: char, bytes: &mut Vec<u8>) -> Result<(), ScanFault> {
        let kind = self.peek().ok_or(ScanFault::Unterminated)?;
        self.at += kind.len_utf8();
        let simple = match kind {
            'a' => 0x07,
            'b' => 0x08,
            'f' => 0x0C,
            'n' => b'\n',
            'r' => b'\r',
            't' => b'\t',
            'v' => 0x0B,
            '\\' => b'\\',
            'x' => u8::try_from(self.digits(2, 16)?).map_err(|_| ScanFault::Escape)?,
            '0'..='7' => {
                self.at -= 1;
                u8::try_from(self.digits(3, 8)?).map_err(|_| ScanFault::Escape)?
            }
            'u' | 'U' => {
                let count = if kind == 'u' { 4 } else { 8 };
                let character = char::from_u32(self.digits(count, 16)?).ok_or(ScanFault::Escape)?;
                bytes.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
                return Ok(());
            }
            _ if kind == quote => {
                bytes.extend_from_slice(quote.encode_utf8(&mut [0; 4]).as_bytes());
                return Ok(());
            }
            _ => return Err(ScanFault::Escape),
        };
        bytes.push(simple);
        Ok(())
    }

    fn digits(&mut self, count: usize, radix: u32) -> Result<u32, ScanFault> {
        let mut value = 0_u32;
        for _ in 0..count {
            let digit = self.peek().and_then(|c| c.to_digit(radix));
            let digit = digit.ok_or(ScanFault::Escape)?;
            self.at += 1;
            value = value
                .checked_mul(radix)
                .and_then(|value| value.checked_add(digit))
                .ok_or(ScanFault::Escape)?;
        }
        Ok(value)
    }
}

const fn is_operator(c: char) -> bool {
    matches!(c, '=' | '!' | '~')
}

const fn is_field(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

fn is_value(c: char) -> bool {
    c != ',' && !c.is_whitespace() && !c.is_control()
}
