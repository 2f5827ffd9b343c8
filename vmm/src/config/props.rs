//! The small language of QEMU's option arguments: `head,key=value,flag,key=with,,comma`.

use crate::suggest::nearest;

use super::ConfigError;

/// An option's argument, cut at its commas. Keys are taken out one by one; what is left at the end
/// is unknown.
#[derive(Clone, Debug)]
pub struct Props {
    /// What the messages call it: `--device isa-debug-exit`.
    what: String,
    /// The key that the first word may leave out.
    implied: Option<&'static str>,
    pairs: Vec<(String, Option<String>)>,
    /// All keys that were asked for, for "did you mean".
    known: Vec<&'static str>,
}

/// Cuts at single commas; two in a row stand for one in the text.
fn split(text: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if c == ',' && chars.peek() != Some(&',') {
            words.push(String::new());
            continue;
        }
        if c == ',' {
            chars.next();
        }
        if let Some(word) = words.last_mut() {
            word.push(c);
        }
    }
    words
}

impl Props {
    /// Reads `text`, which starts with a word of its own, such as a device's type.
    pub fn with_head(option: &str, text: &str) -> (String, Self) {
        let mut words = split(text).into_iter();
        let head = words.next().unwrap_or_default();
        let what = format!("{option} {head}");
        (head, Self::new(what, None, words))
    }

    /// Reads `text`, the first word of which may leave out `key=`.
    pub fn with_implied_key(option: &str, text: &str, key: &'static str) -> Self {
        let mut this = Self::new(option.to_owned(), Some(key), split(text).into_iter());
        if let Some((word, value @ None)) = this.pairs.first_mut() {
            *value = Some(std::mem::replace(word, key.to_owned()));
        }
        this
    }

    fn new(
        what: String,
        implied: Option<&'static str>,
        words: impl Iterator<Item = String>,
    ) -> Self {
        let pairs = words.filter(|word| !word.is_empty()).map(|word| match word.split_once('=') {
            Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
            None => (word, None),
        });
        Self { what, implied, pairs: pairs.collect(), known: Vec::new() }
    }

    /// Takes the value of `key` out; the last one if there are several.
    pub fn take(&mut self, key: &'static str) -> Option<String> {
        self.known.push(key);
        let mut found = None;
        self.pairs.retain_mut(|(k, value)| {
            let hit = k == key;
            if hit {
                found = Some(value.take().unwrap_or_else(|| "on".to_owned()));
            }
            !hit
        });
        found
    }

    /// Takes all values of `key` out, in their order.
    pub fn take_all(&mut self, key: &'static str) -> Vec<String> {
        self.known.push(key);
        let (found, rest) =
            std::mem::take(&mut self.pairs).into_iter().partition(|(k, _)| k == key);
        self.pairs = rest;
        let found: Vec<(String, Option<String>)> = found;
        found.into_iter().map(|(_, value)| value.unwrap_or_else(|| "on".to_owned())).collect()
    }

    /// Takes a number out.
    ///
    /// # Errors
    /// When it is none, or not in `range`.
    pub fn take_number(
        &mut self,
        key: &'static str,
        range: std::ops::RangeInclusive<u64>,
    ) -> Result<Option<u64>, ConfigError> {
        let Some(text) = self.take(key) else { return Ok(None) };
        match parse_number(&text) {
            Some(n) if range.contains(&n) => Ok(Some(n)),
            _ => {
                let (start, end) = range.into_inner();
                // Ports are thought of in hexadecimal, counts are not.
                let expected = match end {
                    ..=0xFF => format!("a number from {start} to {end}"),
                    _ => format!("a number from {start:#x} to {end:#x}"),
                };
                Err(self.bad(key, &text, &expected))
            }
        }
    }

    /// Takes a switch out.
    ///
    /// # Errors
    /// When it is neither on nor off.
    pub fn take_switch(&mut self, key: &'static str) -> Result<Option<bool>, ConfigError> {
        let Some(text) = self.take(key) else { return Ok(None) };
        match text.as_str() {
            "on" | "yes" | "true" => Ok(Some(true)),
            "off" | "no" | "false" => Ok(Some(false)),
            _ => Err(self.bad(key, &text, "on or off")),
        }
    }

    /// Takes one of several words out.
    ///
    /// # Errors
    /// When it is none of them.
    pub fn take_choice<T: Copy>(
        &mut self,
        key: &'static str,
        choices: &[(&str, T)],
    ) -> Result<Option<T>, ConfigError> {
        let Some(text) = self.take(key) else { return Ok(None) };
        match choices.iter().find(|(name, _)| *name == text) {
            Some((_, choice)) => Ok(Some(*choice)),
            None => {
                let names: Vec<_> = choices.iter().map(|(name, _)| *name).collect();
                Err(self.bad(key, &text, &names.join(" or ")))
            }
        }
    }

    /// The error for a value that is not understood.
    pub fn bad(&self, key: &str, value: &str, expected: &str) -> ConfigError {
        let option = match self.implied == Some(key) {
            true => self.what.clone(),
            false => format!("{},{key}", self.what),
        };
        ConfigError::BadValue { option, value: value.to_owned(), expected: expected.to_owned() }
    }

    /// The error for a key that is needed and not there.
    pub fn missing(&self, key: &str) -> ConfigError {
        ConfigError::MissingKey { option: self.what.clone(), key: key.to_owned() }
    }

    /// Whether `key` was asked for.
    #[cfg(test)]
    pub(super) fn knows(&self, key: &str) -> bool {
        self.known.contains(&key)
    }

    /// Checks that nothing unknown is left.
    ///
    /// # Errors
    /// Names the first key that nobody asked for, and the nearest known one.
    pub fn finish(self) -> Result<(), ConfigError> {
        match self.pairs.first() {
            None => Ok(()),
            Some((key, _)) => Err(ConfigError::UnknownKey {
                near: nearest(key, self.known.iter().copied()).map(str::to_owned),
                known: self.known.join(", "),
                option: self.what,
                key: key.clone(),
            }),
        }
    }
}

/// A number in decimal, or hexadecimal after `0x`.
pub fn parse_number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(hex) => u64::from_str_radix(hex, 16).ok().filter(|_| !hex.starts_with('+')),
        None => text.parse().ok().filter(|_| !text.starts_with('+')),
    }
}

/// A size with the suffix B, K, M, G or T; without one it is in units of `unit` bytes.
pub fn parse_size(text: &str, unit: u64) -> Option<u64> {
    let (digits, unit) = match text.char_indices().next_back()? {
        (_, c) if c.is_ascii_digit() => (text, unit),
        (at, c) => {
            let shift = match c.to_ascii_uppercase() {
                'B' => 0,
                'K' => 10,
                'M' => 20,
                'G' => 30,
                'T' => 40,
                _ => return None,
            };
            (&text[..at], 1 << shift)
        }
    };
    if let Some(n) = parse_number(digits) {
        return n.checked_mul(unit);
    }
    // QEMU takes 1.5G too.
    let n: f64 = digits.parse().ok().filter(|n: &f64| n.is_finite() && *n >= 0.0)?;
    let bytes = n * unit as f64;
    (bytes < u64::MAX as f64 && digits.starts_with(|c: char| c.is_ascii_digit()))
        .then_some(bytes as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commas_are_doubled_and_the_last_value_counts() {
        let (head, mut props) =
            Props::with_head("--device", "isa-debugcon,chardev=a,,b,iobase=1,iobase=0x402");
        assert_eq!(head, "isa-debugcon");
        assert_eq!(props.take("chardev").as_deref(), Some("a,b"));
        assert_eq!(props.take_number("iobase", 0..=0xFFFF).unwrap(), Some(0x402));
        assert!(props.finish().is_ok());
    }

    #[test]
    fn unknown_keys_name_the_nearest() {
        let (_, mut props) = Props::with_head("--device", "isa-debug-exit,iobas=1");
        props.take("iobase");
        props.take("iosize");
        let error = props.finish().unwrap_err().to_string();
        assert!(error.contains("iobas") && error.contains("did you mean 'iobase'?"), "{error}");
    }

    #[test]
    fn the_first_key_can_be_implied() {
        let mut props = Props::with_implied_key("--smp", "4,threads=2", "cpus");
        assert_eq!(props.take_number("cpus", 1..=255).unwrap(), Some(4));
        assert_eq!(props.take_number("threads", 1..=255).unwrap(), Some(2));
        let mut props = Props::with_implied_key("--smp", "cores=2", "cpus");
        assert_eq!(props.take("cpus"), None);
    }

    #[test]
    fn sizes_have_suffixes() {
        const MIB: u64 = 1 << 20;
        for (text, size) in [
            ("256", Some(256 * MIB)),
            ("256M", Some(256 * MIB)),
            ("2g", Some(2048 * MIB)),
            ("1.5G", Some(1536 * MIB)),
            ("64K", Some(65536)),
            ("0x10", Some(16 * MIB)),
            ("1000T", Some(1000 << 40)),
            ("", None),
            ("M", None),
            ("12Q", None),
            ("-1", None),
            ("nan", None),
            ("99999999999999999999", None),
            ("20000000T", None),
        ] {
            assert_eq!(parse_size(text, MIB), size, "{text}");
        }
    }
}
