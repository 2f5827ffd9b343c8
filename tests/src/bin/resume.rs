//! `resume DIR ARGS`: goes on in a new process with a machine that `Rig::save` has written to DIR,
//! built from the same ARGS, and prints what the guest prints from there on.

use std::path::PathBuf;

use tests::Rig;

fn main() {
    let mut args = std::env::args().skip(1);
    let dir = PathBuf::from(args.next().expect("DIR"));
    let args: Vec<_> = args.collect();
    let mut rig = Rig::new(60, &args.iter().map(String::as_str).collect::<Vec<_>>());
    rig.resume(&dir);
    print!("{}", rig.finish());
}
