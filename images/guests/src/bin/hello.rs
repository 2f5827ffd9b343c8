//! `hello`: the machine boots, prints and powers off.

#![no_std]
#![no_main]

use runtime::{Verdict, guest, say};

guest!("hello", main);

fn main() -> Verdict {
    say!("Hello from vmm guest");
    Ok(())
}
