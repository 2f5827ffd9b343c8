//! `/fmt` of `x`, `xp`, `print`, `i` and `o`: a count, a format letter and a size letter, each
//! optional. What is left out is as it was last time.

use serde::Serialize;

use crate::error::CommandError;

/// How a value is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Style {
    /// `x`
    Hex,
    /// `d`
    Signed,
    /// `u`
    Unsigned,
    /// `o`
    Octal,
    /// `c`
    Char,
    /// `i`
    Instruction,
}

/// A parsed `/fmt`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Format {
    /// How many.
    pub count: u64,
    /// How.
    pub style: Style,
    /// Bytes each: 1, 2, 4 or 8; `None` with [`Style::Instruction`] unless given.
    pub size: Option<u8>,
}

/// What a session remembers of the formats given in it.
#[derive(Clone, Copy, Debug)]
pub struct LastFormat {
    style: Style,
    size: u8,
}

impl Default for LastFormat {
    fn default() -> Self {
        Self { style: Style::Hex, size: 4 }
    }
}

impl Default for Format {
    fn default() -> Self {
        Self { count: 1, style: Style::Hex, size: Some(4) }
    }
}

impl Format {
    /// Takes a `/fmt` off `rest`, where there is one.
    ///
    /// # Errors
    /// [`CommandError::Syntax`] names the first character that has no place in one.
    pub fn parse(rest: &mut &str, last: &mut LastFormat) -> Result<Self, CommandError> {
        let Some(text) = rest.strip_prefix('/') else {
            let size = (last.style != Style::Instruction).then_some(last.size);
            return Ok(Self { count: 1, style: last.style, size });
        };
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        // More than fits into 64 bits is more than fits anywhere.
        let count = if digits == 0 { 1 } else { text[..digits].parse().unwrap_or(u64::MAX) };
        let mut style = last.style;
        let mut size = None;
        let mut chars = text[digits..].char_indices();
        let end = loop {
            match chars.next() {
                None => break text.len(),
                Some((at, c)) if c.is_whitespace() => break digits + at,
                Some((_, 'x')) => style = Style::Hex,
                Some((_, 'd')) => style = Style::Signed,
                Some((_, 'u')) => style = Style::Unsigned,
                Some((_, 'o')) => style = Style::Octal,
                Some((_, 'c')) => style = Style::Char,
                Some((_, 'i')) => style = Style::Instruction,
                Some((_, 'b')) => size = Some(1),
                Some((_, 'h')) => size = Some(2),
                Some((_, 'w')) => size = Some(4),
                Some((_, 'g' | 'L')) => size = Some(8),
                Some((_, c)) => {
                    return Err(CommandError::Syntax(format!("invalid char in format: '{c}'")));
                }
            }
        };
        *rest = &text[end..];
        last.style = style;
        if style != Style::Instruction {
            last.size = size.unwrap_or(last.size);
            size = Some(last.size);
        }
        Ok(Self { count, style, size })
    }
}
