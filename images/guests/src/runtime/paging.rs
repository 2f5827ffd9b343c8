//! The page tables beyond what the start code sets up: what ring 3 may touch, and addresses above 4 GiB.

use crate::interrupts::Shared;
use core::arch::asm;
use core::cell::UnsafeCell;

const USER: u64 = 4;
const TABLE: u64 = 0x07;
const LARGE: u64 = 0x83;

/// Windows of 1 GiB above 4 GiB that can be open at once.
const WINDOWS: usize = 4;

#[repr(align(4096))]
struct Directory([u64; 512]);

static DIRECTORIES: Shared<[Directory; WINDOWS]> =
    Shared(UnsafeCell::new([const { Directory([0; 512]) }; WINDOWS]));

unsafe extern "C" {
    static mut page_directory_pointers: [u64; 512];
    static mut page_directories: [u64; 2048];
}

/// Sets the entry for the 2 MiB page around an address below 4 GiB.
pub fn set_page(address: u64, entry: u64) {
    let directories = &raw mut page_directories;
    // SAFETY: the tables have 2048 entries for 4 GiB; the caller names a page that holds nothing of the program's.
    unsafe { (*directories)[(address >> 21) as usize & 2047] = entry }
    flush();
}

/// Lets ring 3 use the 2 MiB page around an address below 4 GiB.
pub fn allow_page(address: u64) {
    let directories = &raw mut page_directories;
    // SAFETY: as for `set_page`; giving a page to ring 3 takes nothing from ring 0.
    unsafe { (*directories)[(address >> 21) as usize & 2047] |= USER }
    flush();
}

/// Makes an address below 512 GiB usable and returns it.
pub fn reach(address: u64) -> u64 {
    let gigabyte = (address >> 30) as usize & 511;
    let pointers = &raw mut page_directory_pointers;
    // SAFETY: the table has 512 entries; only one processor uses it when this is called.
    unsafe {
        if (*pointers)[gigabyte] & 1 == 0 {
            let window = gigabyte % WINDOWS;
            let directory = DIRECTORIES.0.get().cast::<Directory>().add(window);
            // Whatever had this window before loses it.
            for other in (4 + window..512).step_by(WINDOWS) {
                (*pointers)[other] = 0;
            }
            for page in 0..512 {
                (*directory).0[page] = (gigabyte as u64) << 30 | (page as u64) << 21 | LARGE;
            }
            (*pointers)[gigabyte] = directory as u64 | TABLE;
            flush();
        }
    }
    address
}

/// Forgets the translations that the processor has cached.
pub fn flush() {
    // SAFETY: writes back what CR3 holds.
    unsafe { asm!("mov {0}, cr3", "mov cr3, {0}", out(reg) _, options(nostack, preserves_flags)) }
}
