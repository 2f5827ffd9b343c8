//! Integer expressions of the monitor.
//!
//! 64 bits, wrapping, signed division. `* / %` bind most tightly, then `& | ^`, then `+ -`: not C's
//! order, but the one that HMP has always had. Numbers are decimal, 0x hexadecimal or 0 octal;
//! `'c'` is a character's code, `$reg` a register of the session's vCPU.

use crate::control::Control;
use crate::error::CommandError;
use crate::registers;
use crate::state::Registers;

/// Deeper than any human writes, and far from the end of the stack.
const MAX_DEPTH: u32 = 64;

/// Parses one expression at the start of a text.
pub(crate) struct Parser<'t, 'c> {
    text: &'t str,
    at: usize,
    depth: u32,
    before_text: bool,
    cpu: usize,
    control: &'c mut dyn Control,
    registers: Option<Registers>,
}

impl<'t, 'c> Parser<'t, 'c> {
    /// For the expression that `text` begins with, on vCPU `cpu`.
    pub(crate) fn new(text: &'t str, cpu: usize, control: &'c mut dyn Control) -> Self {
        Self { text, at: 0, depth: 0, before_text: false, cpu, control, registers: None }
    }

    /// A string follows, so that ` /x` begins a path rather than divides.
    pub(crate) fn before_text(self) -> Self {
        Self { before_text: true, ..self }
    }

    /// The value, and what of the text follows the expression.
    ///
    /// # Errors
    /// [`CommandError::Syntax`].
    pub(crate) fn parse(mut self) -> Result<(i64, &'t str), CommandError> {
        self.skip_spaces();
        let value = self.sum()?;
        Ok((value, &self.text[self.at..]))
    }

    fn peek(&self) -> Option<char> {
        self.text[self.at..].chars().next()
    }

    fn skip_spaces(&mut self) {
        let rest = &self.text[self.at..];
        self.at += rest.len() - rest.trim_start().len();
    }

    /// Takes an operator out of `ops`, if one is next.
    fn operator(&mut self, ops: &str) -> Option<char> {
        let op = self.peek().filter(|c| ops.contains(*c))?;
        if op == '/' && self.before_text && self.begins_path() {
            return None;
        }
        self.at += 1;
        self.skip_spaces();
        Some(op)
    }

    fn begins_path(&self) -> bool {
        let spaced = self.text[..self.at].ends_with(char::is_whitespace);
        spaced && !self.text[self.at + 1..].starts_with(char::is_whitespace)
    }

    fn sum(&mut self) -> Result<i64, CommandError> {
        let mut value = self.logic()?;
        while let Some(op) = self.operator("+-") {
            let right = self.logic()?;
            value = if op == '+' { value.wrapping_add(right) } else { value.wrapping_sub(right) };
        }
        Ok(value)
    }

    fn logic(&mut self) -> Result<i64, CommandError> {
        let mut value = self.product()?;
        while let Some(op) = self.operator("&|^") {
            let right = self.product()?;
            value = match op {
                '&' => value & right,
                '|' => value | right,
                _ => value ^ right,
            };
        }
        Ok(value)
    }

    fn product(&mut self) -> Result<i64, CommandError> {
        let mut value = self.unary()?;
        while let Some(op) = self.operator("*/%") {
            let right = self.unary()?;
            value = match (op, right) {
                ('*', _) => value.wrapping_mul(right),
                (_, 0) => return Err(syntax("division by zero")),
                ('/', _) => value.wrapping_div(right),
                _ => value.wrapping_rem(right),
            };
        }
        Ok(value)
    }

    fn unary(&mut self) -> Result<i64, CommandError> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(syntax("expression is nested too deeply"));
        }
        let value = match self.operator("+-~(") {
            Some('+') => self.unary()?,
            Some('-') => self.unary()?.wrapping_neg(),
            Some('~') => !self.unary()?,
            Some(_) => {
                let value = self.sum()?;
                if self.operator(")").is_none() {
                    return Err(syntax("')' expected"));
                }
                value
            }
            None => {
                let value = self.primary()?;
                self.skip_spaces();
                value
            }
        };
        self.depth -= 1;
        Ok(value)
    }

    fn primary(&mut self) -> Result<i64, CommandError> {
        match self.peek() {
            None => Err(syntax("unexpected end of expression")),
            Some('\'') => self.character(),
            Some('$') => self.register(),
            Some('0'..='9') => self.number(),
            Some(c) => Err(syntax(format!("invalid char '{c}' in expression"))),
        }
    }

    fn character(&mut self) -> Result<i64, CommandError> {
        self.at += 1;
        let c = self.peek().ok_or_else(|| syntax("character constant expected"))?;
        self.at += c.len_utf8();
        if self.peek() != Some('\'') {
            return Err(syntax("missing terminating ' character"));
        }
        self.at += 1;
        Ok(i64::from(u32::from(c)))
    }

    fn register(&mut self) -> Result<i64, CommandError> {
        self.at += 1;
        let rest = &self.text[self.at..];
        let end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || "_.:".contains(c)));
        let name = &rest[..end.unwrap_or(rest.len())];
        self.at += name.len();
        if self.registers.is_none() {
            self.registers = Some(self.control.registers(self.cpu)?);
        }
        self.registers
            .as_ref()
            .and_then(|registers| registers::by_name(registers, name))
            .map(|value| value as i64)
            .ok_or_else(|| syntax("unknown register"))
    }

    fn number(&mut self) -> Result<i64, CommandError> {
        let rest = &self.text[self.at..];
        let hex = rest.strip_prefix("0x").or_else(|| rest.strip_prefix("0X"));
        let (digits, radix, skipped) = match hex {
            Some(hex) if hex.starts_with(|c: char| c.is_ascii_hexdigit()) => (hex, 16, 2),
            _ if rest.starts_with('0') => (rest, 8, 0),
            _ => (rest, 10, 0),
        };
        let end = digits.find(|c: char| !c.is_digit(radix)).unwrap_or(digits.len());
        self.at += skipped + end;
        u64::from_str_radix(&digits[..end], radix)
            .map(|value| value as i64)
            .map_err(|_| syntax("number too large"))
    }
}

fn syntax(text: impl Into<String>) -> CommandError {
    CommandError::Syntax(text.into())
}
