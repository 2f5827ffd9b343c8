//! The reference names every command, once.

use monitor::{commands, reference};

#[test]
fn every_command_has_its_row() {
    let page = reference();
    let (hmp, qmp) = page.split_once("## QMP commands").unwrap();
    for command in commands() {
        if let Some(name) = command.hmp {
            let name = format!("{name} {}", command.usage).replace('|', "\\|");
            let row = format!("\n| `{}` |", name.trim_end());
            assert_eq!(hmp.matches(&row).count(), 1, "{row}");
        }
        if let Some(form) = &command.qmp {
            assert_eq!(qmp.matches(&format!("\n| `{}` |", form.name)).count(), 1, "{}", form.name);
        }
    }
    let columns = |line: &str| line.replace("\\|", "").matches('|').count();
    let mut lines = page.lines().peekable();
    while let Some(line) = lines.next() {
        if let Some(next) =
            lines.peek().filter(|next| line.starts_with('|') && next.starts_with('|'))
        {
            assert_eq!(columns(line), columns(next), "{next}");
        }
    }
}
