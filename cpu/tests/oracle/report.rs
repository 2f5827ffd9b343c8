//! What a run has shown.

use std::collections::BTreeMap;

use iced_x86::Code;

use crate::excuse::Excuse;

/// What a run has shown.
#[derive(Default)]
pub(crate) struct Report {
    /// Cases by form.
    pub(crate) covered: BTreeMap<Code, u64>,
    /// Cases that were blocks.
    pub(crate) blocks: u64,
    pub(crate) faults: u64,
    /// Forms that are claimed and not tried.
    pub(crate) excluded: BTreeMap<Code, &'static str>,
    /// Forms that are to be tried.
    pub(crate) usable: Vec<Code>,
    pub(crate) excused: BTreeMap<Excuse, u64>,
    /// By form: how many cases, and the first.
    pub(crate) failures: BTreeMap<String, (u64, String)>,
    /// How to come here again.
    pub(crate) place: String,
}

impl Report {
    /// Notes a case that differs.
    pub(crate) fn fail(&mut self, name: &str, example: impl FnOnce() -> String) {
        let place = &self.place;
        self.failures
            .entry(name.into())
            .or_insert_with(|| (0, format!("{place}: {}", example())))
            .0 += 1;
    }

    /// Adds what another lane has seen.
    pub(crate) fn merge(&mut self, other: Self) {
        for (code, n) in other.covered {
            *self.covered.entry(code).or_default() += n;
        }
        for (excuse, n) in other.excused {
            *self.excused.entry(excuse).or_default() += n;
        }
        for (name, (n, example)) in other.failures {
            self.failures.entry(name).or_insert((0, example)).0 += n;
        }
        self.blocks += other.blocks;
        self.faults += other.faults;
        self.excluded = other.excluded;
        self.usable = other.usable;
    }

    /// Forms that no case was made of.
    pub(crate) fn missed(&self) -> Vec<Code> {
        self.usable.iter().copied().filter(|code| !self.covered.contains_key(code)).collect()
    }

    /// Prints all.
    pub(crate) fn print(&self) {
        let cases: u64 = self.covered.values().sum();
        println!(
            "{cases} cases of single instructions, {} of blocks; {} ended in a fault",
            self.blocks, self.faults
        );
        let tried = self.covered.len();
        let usable = self.usable.len();
        println!("{tried} forms tried, of {usable} that are claimed and not excluded");
        let least = self.covered.iter().min_by_key(|(_, n)| **n);
        println!("least often: {least:?}");
        let mut reasons: BTreeMap<&str, Vec<Code>> = BTreeMap::new();
        for (code, why) in &self.excluded {
            reasons.entry(why).or_default().push(*code);
        }
        for (why, codes) in reasons {
            println!("excluded, {} forms: {why}", codes.len());
        }
        for (excuse, why) in Excuse::ALL {
            println!("excused, {} cases: {why}", self.excused.get(&excuse).unwrap_or(&0));
        }
        for (name, (n, example)) in &self.failures {
            println!("{name}: {n} cases; {example}");
        }
    }
}
