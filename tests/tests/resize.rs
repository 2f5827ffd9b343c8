//! The monitor's line editor fits the terminal, also when the user changes its size.

use rustix::termios::{Winsize, tcsetwinsize};
use tests::{Terminal, Vmm, on_each_accel};

fn resize(terminal: &Terminal, columns: u16) {
    let size = Winsize { ws_row: 24, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(terminal.line(), size).unwrap();
}

#[test]
fn a_long_line_scrolls_in_a_narrow_terminal_only() {
    let line = format!("print {}7", "1+".repeat(25));
    on_each_accel(|accel| {
        let terminal = Terminal::new();
        resize(&terminal, 40);
        let vmm = Vmm::new(accel).guest("halt").serial(Some("null")).monitor(Some("stdio"));
        let machine = vmm.start_on(&terminal);
        let deadline = machine.deadline();
        terminal.wait_for("(vmm) ", deadline);
        terminal.send(&line);
        let row = terminal.wait_for("1+7", deadline);
        assert!(!row.contains(&line), "{row:?}");

        resize(&terminal, 100);
        // What is typed from now on comes after the signal; the answer says that both were seen.
        terminal.send("\n");
        terminal.wait_for("0x20", deadline);
        terminal.wait_for("(vmm) ", deadline);
        terminal.send(&line);
        terminal.wait_for(&line, deadline);
        terminal.send("\nquit\n");
        machine.finish().succeeded();
    });
}
