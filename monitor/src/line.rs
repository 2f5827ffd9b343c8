//! The line editor: a line, a cursor, a history, and one row of a terminal that shows them.
//!
//! What a batch of keys has changed is drawn once, by the difference to what the row shows, so
//! that lines out of a pipe come back plainly. A line longer than the row scrolls sideways; Enter
//! writes it out in full.

use std::collections::VecDeque;
use std::fmt::Write;

use crate::keys::Key;

/// Lines that the history keeps.
const HISTORY: usize = 64;
/// Longest line, in characters.
const MAX_LINE: usize = 4095;
/// Columns of a terminal that nobody has measured.
const WIDTH: usize = 80;

/// What a key asks of the editor's owner.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Nothing: the editor dealt with it.
    None,
    /// This line is complete.
    Submit(String),
    /// Complete the word before the cursor.
    Complete,
}

#[derive(Debug)]
pub(crate) struct Editor {
    prompt: String,
    width: usize,
    line: Vec<char>,
    cursor: usize,
    /// The first character that the row shows.
    scroll: usize,
    history: VecDeque<String>,
    /// The entry of the history that is being looked at, and the line left behind for it.
    browsing: Option<(usize, Vec<char>)>,
    /// What the row shows, and the column of the terminal's cursor.
    shown: Vec<char>,
    column: usize,
}

impl Editor {
    pub(crate) fn new(prompt: &str) -> Self {
        Self {
            prompt: prompt.to_owned(),
            width: WIDTH,
            line: Vec::new(),
            cursor: 0,
            scroll: 0,
            history: VecDeque::new(),
            browsing: None,
            shown: Vec::new(),
            column: 0,
        }
    }

    pub(crate) fn set_width(&mut self, width: usize) {
        self.width = width;
    }

    /// Forgets the line, and takes the terminal's row to be empty.
    pub(crate) fn restart(&mut self) {
        self.set_line(Vec::new());
        self.new_row();
    }

    /// The terminal's cursor is at the start of an empty row.
    pub(crate) fn new_row(&mut self) {
        self.shown.clear();
        self.column = 0;
    }

    /// The line up to the cursor.
    pub(crate) fn before_cursor(&self) -> String {
        self.line[..self.cursor].iter().collect()
    }

    /// The lines that have been submitted, the oldest first.
    pub(crate) fn history(&self) -> &VecDeque<String> {
        &self.history
    }

    /// Types `text` at the cursor.
    pub(crate) fn insert(&mut self, text: &str) {
        for c in text.chars().filter(|c| !c.is_control()) {
            if self.line.len() < MAX_LINE {
                self.line.insert(self.cursor, c);
                self.cursor += 1;
            }
        }
    }

    /// Takes one key. `out` gets what must be written before anything else is.
    pub(crate) fn key(&mut self, key: Key, out: &mut String) -> Action {
        match key {
            Key::Char(c) => self.insert(c.encode_utf8(&mut [0; 4])),
            Key::Tab => return Action::Complete,
            Key::Enter => return Action::Submit(self.submit(out)),
            Key::Left => self.cursor = self.cursor.saturating_sub(1),
            Key::Right => self.cursor = (self.cursor + 1).min(self.line.len()),
            Key::WordLeft => self.cursor = self.word_left(),
            Key::WordRight => self.cursor = self.word_right(),
            Key::Home => self.cursor = 0,
            Key::End => self.cursor = self.line.len(),
            Key::Up => self.browse_up(),
            Key::Down => self.browse_down(),
            Key::Backspace => self.cut(self.cursor.saturating_sub(1), self.cursor),
            Key::Delete => self.cut(self.cursor, self.cursor + 1),
            Key::KillToEnd => self.line.truncate(self.cursor),
            Key::KillToStart => self.cut(0, self.cursor),
            Key::KillWordLeft => self.cut(self.word_left(), self.cursor),
            Key::KillWordRight => self.cut(self.cursor, self.word_right()),
            Key::Abandon => {
                self.draw(out);
                out.push_str("^C\r\n");
                self.restart();
            }
            Key::ClearScreen => {
                out.push_str("\x1b[2J\x1b[H");
                self.new_row();
            }
        }
        Action::None
    }

    fn set_line(&mut self, line: Vec<char>) {
        self.cursor = line.len();
        self.line = line;
        self.scroll = 0;
        self.browsing = None;
    }

    fn cut(&mut self, from: usize, to: usize) {
        self.line.drain(from..to.min(self.line.len()));
        self.cursor = from;
    }

    fn word_left(&self) -> usize {
        let before = &self.line[..self.cursor];
        let end = before.iter().rposition(|c| !c.is_whitespace()).unwrap_or(0);
        before[..end].iter().rposition(|c| c.is_whitespace()).map_or(0, |at| at + 1)
    }

    fn word_right(&self) -> usize {
        let len = self.line.len();
        let from = |at: usize, stop: fn(&char) -> bool| {
            self.line[at..].iter().position(stop).map_or(len, |n| at + n)
        };
        from(from(self.cursor, |c| !c.is_whitespace()), |c| c.is_whitespace())
    }

    fn browse_up(&mut self) {
        match self.browsing.take() {
            Some((0, draft)) => self.browsing = Some((0, draft)),
            Some((at, draft)) => self.show_entry(at - 1, draft),
            None if self.history.is_empty() => {}
            None => {
                let draft = std::mem::take(&mut self.line);
                self.show_entry(self.history.len() - 1, draft);
            }
        }
    }

    fn browse_down(&mut self) {
        match self.browsing.take() {
            Some((at, draft)) if at + 1 < self.history.len() => self.show_entry(at + 1, draft),
            Some((_, draft)) => self.set_line(draft),
            None => {}
        }
    }

    fn show_entry(&mut self, at: usize, draft: Vec<char>) {
        self.set_line(self.history[at].chars().collect());
        self.browsing = Some((at, draft));
    }

    fn submit(&mut self, out: &mut String) -> String {
        self.cursor = self.line.len();
        self.draw(out);
        let line: String = self.line.iter().collect();
        if self.scroll > 0 {
            write!(out, "\r{}{line}", self.prompt).expect("a String takes all");
        }
        out.push_str("\r\n");
        if !line.trim().is_empty() {
            // What is typed again moves to the end.
            self.history.retain(|old| *old != line);
            self.history.push_back(line.clone());
            if self.history.len() > HISTORY {
                self.history.pop_front();
            }
        }
        self.restart();
        line
    }

    /// Brings the terminal's row up to date.
    pub(crate) fn draw(&mut self, out: &mut String) {
        // The last column stays free: a cursor there behaves differently from terminal to terminal.
        let room = self.width.saturating_sub(self.prompt.chars().count() + 1).max(1);
        self.scroll = self.scroll.clamp(self.cursor.saturating_sub(room), self.cursor);
        let end = self.line.len().min(self.scroll + room);
        let window = self.line[self.scroll..end].iter().copied();
        let row: Vec<char> = self.prompt.chars().chain(window).collect();
        let column = self.prompt.chars().count() + self.cursor - self.scroll;
        if row != self.shown {
            let same = row.iter().zip(&self.shown).take_while(|(new, old)| new == old).count();
            self.move_to(same, out);
            out.extend(&row[same..]);
            if row.len() < self.shown.len() {
                out.push_str("\x1b[K");
            }
            self.column = row.len();
            self.shown = row;
        }
        self.move_to(column, out);
    }

    fn move_to(&mut self, column: usize, out: &mut String) {
        let moved = match column.abs_diff(self.column) {
            0 => Ok(()),
            1 if column < self.column => write!(out, "\x1b[D"),
            1 => write!(out, "\x1b[C"),
            n if column < self.column => write!(out, "\x1b[{n}D"),
            n => write!(out, "\x1b[{n}C"),
        };
        moved.expect("a String takes all");
        self.column = column;
    }
}
