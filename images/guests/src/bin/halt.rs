//! `halt`: an idle processor, interrupts open and none coming.

#![no_std]
#![no_main]

use runtime::{Verdict, guest, port, say};

guest!("halt", main);

fn main() -> Verdict {
    say!("halted");
    loop {
        port::wait();
    }
}
