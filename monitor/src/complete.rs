//! Completion: what may stand where the cursor is, by the command table.

use crate::control::Control;
use crate::registers;
use crate::table::{Arg, ArgKind, Command, Complete, hmp_level};

/// Columns that a list of candidates fills.
const WIDTH: usize = 80;

/// The words that the text may go on with.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Candidates {
    /// What of the word is already there, the candidates' common beginning.
    pub(crate) typed: String,
    /// The whole words, sorted.
    pub(crate) words: Vec<String>,
}

impl Candidates {
    fn new(typed: &str, words: impl IntoIterator<Item = impl Into<String>>) -> Self {
        let mut words: Vec<String> =
            words.into_iter().map(Into::into).filter(|word| word.starts_with(typed)).collect();
        words.sort();
        words.dedup();
        Self { typed: typed.to_owned(), words }
    }

    /// What to type on the user's behalf: the rest of the only candidate and a space, or as far as
    /// all agree.
    pub(crate) fn insertion(&self) -> String {
        let Some(first) = self.words.first() else {
            return String::new();
        };
        let mut common = first.as_str();
        for word in &self.words[1..] {
            let same = common.chars().zip(word.chars()).take_while(|(a, b)| a == b);
            common = &common[..same.map(|(c, _)| c.len_utf8()).sum()];
        }
        let mut rest = common[self.typed.len()..].to_owned();
        // Behind a directory comes what is in it.
        if self.words.len() == 1 && !first.ends_with('/') {
            rest.push(' ');
        }
        rest
    }

    /// Where there are several, all of them, in columns.
    pub(crate) fn list(&self) -> Option<String> {
        if self.words.len() < 2 {
            return None;
        }
        let longest = self.words.iter().map(|word| word.chars().count()).max().unwrap_or(0);
        let width = (longest + 2).clamp(10, WIDTH);
        let mut out = String::new();
        for row in self.words.chunks(WIDTH / width) {
            for word in row {
                out.push_str(&format!("{word:<width$}"));
            }
            out.push_str("\r\n");
        }
        Some(out)
    }
}

/// The candidates for the last word of `text`.
pub(crate) fn candidates(control: &mut dyn Control, text: &str) -> Candidates {
    let mut level = None;
    let mut rest = text.trim_start();
    loop {
        let commands = hmp_level(level);
        // A slash begins a format, as in `x/10i`.
        let Some(end) = rest.find(|c: char| c.is_whitespace() || c == '/') else {
            return Candidates::new(rest, commands.iter().flat_map(|row| row.names()));
        };
        let (word, after) = rest.split_at(end);
        let Some(command) = commands.into_iter().find(|row| row.is_called(word)) else {
            return Candidates::default();
        };
        rest = after.trim_start();
        level = command.hmp;
        if hmp_level(level).is_empty() {
            return argument(control, command, rest);
        }
    }
}

/// The candidates within the arguments of a command.
fn argument(control: &mut dyn Control, command: &Command, text: &str) -> Candidates {
    let (before, word) = match text.rfind(char::is_whitespace) {
        Some(at) => text.split_at(at + 1),
        None => ("", text),
    };
    if let Some(typed) = word.strip_prefix('-') {
        let flags = command.args.iter().filter_map(|arg| match arg.kind {
            ArgKind::Flag(letter) => Some(letter.to_string()),
            _ => None,
        });
        return Candidates::new(typed, flags);
    }
    let positional = |arg: &&Arg| !matches!(arg.kind, ArgKind::Flag(_) | ArgKind::Format);
    let place = before.split_whitespace().filter(|word| !word.starts_with(['-', '/'])).count();
    let Some(arg) = command.args.iter().filter(positional).nth(place) else {
        return match command.args.last() {
            Some(arg) if arg.kind == ArgKind::Rest => candidates(control, text),
            _ => Candidates::default(),
        };
    };
    match arg.complete {
        Complete::Nothing => Candidates::default(),
        Complete::Command => candidates(control, text),
        Complete::Cpu => {
            Candidates::new(word, (0..control.cpus().len()).map(|index| index.to_string()))
        }
        Complete::Register => match word.rsplit_once('$') {
            Some((_, typed)) => Candidates::new(typed, registers::names()),
            None => Candidates::default(),
        },
        Complete::File => {
            let path = word.strip_prefix('"').unwrap_or(word);
            let (dir, typed) = path.split_at(path.rfind('/').map_or(0, |at| at + 1));
            Candidates::new(typed, control.list_dir(dir))
        }
    }
}
