//! Makers of small images.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use rustix::fs::{MemfdFlags, memfd_create};

/// A file with a path that is nowhere in a directory.
pub(super) struct TestFile(File);

impl TestFile {
    pub(super) fn new(contents: &[u8]) -> Self {
        let file = Self(memfd_create("image", MemfdFlags::CLOEXEC).unwrap().into());
        file.set(contents);
        file
    }

    /// Replaces the contents.
    pub(super) fn set(&self, contents: &[u8]) {
        self.0.set_len(contents.len() as u64).unwrap();
        self.0.write_all_at(contents, 0).unwrap();
    }

    pub(super) fn path(&self) -> String {
        format!("/proc/self/fd/{}", self.0.as_raw_fd())
    }
}

/// Overwrites the bytes at `offset`.
pub(super) fn put(image: &mut [u8], offset: usize, bytes: &[u8]) {
    image[offset..offset + bytes.len()].copy_from_slice(bytes);
}

/// Where [`bzimage`]'s kernel is loaded.
pub(super) const BZIMAGE_AT: u64 = 0x20_0000;
pub(super) const BZIMAGE_INIT_SIZE: u64 = 0x8000;
/// Bytes before the protected-mode code: boot sector and one sector of setup.
pub(super) const BZIMAGE_PAYLOAD: usize = 1024;

/// A bzImage with protocol 2.15, 640 bytes of protected-mode code and an initrd limit of 16 MiB.
pub(super) fn bzimage() -> Vec<u8> {
    let mut image = vec![0; BZIMAGE_PAYLOAD];
    image[0x1F1] = 1; // setup_sects
    put(&mut image, 0x1F4, &40_u32.to_le_bytes()); // syssize, paragraphs
    put(&mut image, 0x1FE, &[0x55, 0xAA, 0xEB, 0x6A]);
    put(&mut image, 0x202, b"HdrS");
    put(&mut image, 0x206, &0x020F_u16.to_le_bytes());
    image[0x211] = 0x01; // loadflags
    put(&mut image, 0x22C, &0xFF_FFFF_u32.to_le_bytes()); // initrd_addr_max
    put(&mut image, 0x230, &0x20_0000_u32.to_le_bytes()); // kernel_alignment
    put(&mut image, 0x236, &1_u16.to_le_bytes()); // xloadflags: XLF_KERNEL_64
    put(&mut image, 0x238, &255_u32.to_le_bytes()); // cmdline_size
    put(&mut image, 0x258, &BZIMAGE_AT.to_le_bytes()); // pref_address
    put(&mut image, 0x260, &BZIMAGE_INIT_SIZE.to_le_bytes()[..4]);
    image.extend((0..640).map(|i| (i % 251) as u8));
    image
}

/// A segment of [`Elf`].
#[derive(Clone)]
pub(super) struct Segment {
    pub(super) kind: u32,
    pub(super) physical: u64,
    pub(super) virtual_: u64,
    pub(super) contents: Vec<u8>,
    pub(super) memory_size: u64,
}

impl Segment {
    pub(super) fn load(physical: u64, contents: &[u8], memory_size: u64) -> Self {
        let contents = contents.to_vec();
        Self { kind: 1, physical, virtual_: physical, contents, memory_size }
    }

    /// A note of Xen's with the PVH entry point, after another note.
    pub(super) fn pvh_note(entry: u32) -> Self {
        let mut contents = Vec::new();
        let notes: [(&[u8], u32, &[u8]); 2] =
            [(b"GNU\0", 18, &[1, 2, 3, 4, 5]), (b"Xen\0", 18, &entry.to_le_bytes())];
        for (name, kind, descriptor) in notes {
            contents.extend((name.len() as u32).to_le_bytes());
            contents.extend((descriptor.len() as u32).to_le_bytes());
            contents.extend(kind.to_le_bytes());
            contents.extend(name);
            contents.extend(descriptor);
            contents.resize(contents.len().next_multiple_of(4), 0);
        }
        Self { kind: 4, physical: 0, virtual_: 0, memory_size: contents.len() as u64, contents }
    }
}

/// An ELF executable.
pub(super) fn elf(is_64_bit: bool, entry: u64, segments: &[Segment]) -> Vec<u8> {
    let (header, each) = if is_64_bit { (64, 56) } else { (52, 32) };
    let word = |value: u64| value.to_le_bytes()[..if is_64_bit { 8 } else { 4 }].to_vec();
    let half = |value: usize| (value as u16).to_le_bytes().to_vec();
    let mut image = b"\x7FELF".to_vec();
    image.extend([if is_64_bit { 2 } else { 1 }, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    image.extend([2, 0, if is_64_bit { 62 } else { 3 }, 0, 1, 0, 0, 0]);
    image.extend([word(entry), word(header), word(0), vec![0; 4]].concat());
    image.extend([half(header as usize), half(each), half(segments.len())].concat());
    image.extend([0; 6]);
    let mut offset = header + (segments.len() * each) as u64;
    for segment in segments {
        let size = segment.contents.len() as u64;
        let flags = 7_u32.to_le_bytes().to_vec();
        let mut fields = vec![word(offset), word(segment.virtual_), word(segment.physical)];
        fields.extend([word(size), word(segment.memory_size)]);
        fields.insert(if is_64_bit { 0 } else { 5 }, flags);
        fields.insert(0, segment.kind.to_le_bytes().to_vec());
        fields.push(word(0x1000));
        image.extend(fields.concat());
        offset += size;
    }
    for segment in segments {
        image.extend(&segment.contents);
    }
    image
}

/// A 64-bit kernel with a PVH note.
pub(super) fn pvh_kernel() -> Vec<u8> {
    let text = Segment::load(0x10_0000, b"pvh kernel text", 0x3000);
    elf(true, 0x10_0000, &[text, Segment::pvh_note(0x10_0010)])
}

/// A multiboot header with `flags` and, behind its checksum, `fields`.
pub(super) fn multiboot_header(flags: u32, fields: &[u32]) -> Vec<u8> {
    let checksum = 0_u32.wrapping_sub(0x1BAD_B002).wrapping_sub(flags);
    let mut header = [0x1BAD_B002, flags, checksum].map(u32::to_le_bytes).concat();
    header.extend(fields.iter().flat_map(|field| field.to_le_bytes()));
    header
}

/// A flat multiboot kernel, loaded at 1 MiB with 64 KiB of BSS, that has its header at byte 64.
pub(super) fn multiboot_kludge() -> Vec<u8> {
    let mut image = vec![0x90; 64];
    let bss_end = 0x11_0000;
    let fields = [0x10_0040, 0x10_0000, 0x10_0080, bss_end, 0x10_0060];
    image.extend(multiboot_header(0x1_0003, &fields));
    image.resize(192, 0x91);
    image
}
