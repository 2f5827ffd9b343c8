//! `--icount [shift=N|auto][,sleep=on|off]`: the VM clock follows the instructions executed.

use super::ConfigError;
use super::props::Props;

/// How the VM clock follows the vCPU's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Icount {
    /// An instruction takes 2^shift nanoseconds.
    pub shift: u32,
    /// A halted vCPU sleeps as long as it would take, else the clock jumps.
    pub sleep: bool,
}

/// 4 ns an instruction: 250 million a second, about what the software CPU executes.
const DEFAULT_SHIFT: u32 = 2;
const MAX_SHIFT: u64 = 10;

impl Icount {
    /// Reads the option's argument.
    ///
    /// # Errors
    /// When a value is not understood, or would make runs differ.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let mut props = Props::with_implied_key("--icount", text, "shift");
        let shift = match props.take("shift").as_deref() {
            // QEMU's auto follows the host's speed, so that no two runs are alike.
            None | Some("" | "auto") => DEFAULT_SHIFT,
            Some(number) => number
                .parse()
                .ok()
                .filter(|shift| u64::from(*shift) <= MAX_SHIFT)
                .ok_or_else(|| props.bad("shift", number, "auto or a number from 0 to 10"))?,
        };
        let sleep = props.take_switch("sleep")?.unwrap_or(true);
        if props.take_switch("align")? == Some(true) {
            return Err(ConfigError::Conflict(
                "--icount: the clock is not held back to the host's: leave out align=on".into(),
            ));
        }
        if props.take("rr").or_else(|| props.take("rrfile")).is_some() {
            return Err(ConfigError::Conflict(
                "--icount: input from the host is not recorded: leave out rr and rrfile".into(),
            ));
        }
        props.finish()?;
        Ok(Self { shift, sleep })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn qemus_spellings_are_understood() {
        let icount = |text: &str| Icount::parse(text);
        let default = Icount { shift: DEFAULT_SHIFT, sleep: true };
        for text in ["", "auto", "shift=auto", "auto,align=off"] {
            assert_eq!(icount(text).unwrap(), default, "{text}");
        }
        assert_eq!(icount("7").unwrap().shift, 7);
        assert_eq!(icount("shift=0,sleep=off").unwrap(), Icount { shift: 0, sleep: false });
        for (text, expected) in [
            ("11", "0 to 10"),
            ("shift=x", "0 to 10"),
            ("align=on", "align=on"),
            ("shift=3,rr=record,rrfile=x", "not recorded"),
            ("shfit=3", "shift"),
        ] {
            let error = icount(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
