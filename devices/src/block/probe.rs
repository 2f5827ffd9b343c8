//! Which format an image has, by its first sector.
//!
//! Formats that are known by name only are told apart from raw, so that they are refused rather
//! than handed to a guest as they are.

/// What the first bytes of a file look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probed {
    /// QEMU's second format, version 2 or 3.
    Qcow2,
    /// Anything else.
    Raw,
    /// A format that this program does not read.
    Other(&'static str),
}

/// What begins with which bytes, at which offset.
const MAGICS: &[(usize, &[u8], Probed)] = &[
    (0, b"QFI\xFB\0\0\0\x02", Probed::Qcow2),
    (0, b"QFI\xFB\0\0\0\x03", Probed::Qcow2),
    (0, b"QFI\xFB\0\0\0\x01", Probed::Other("qcow")),
    (0, b"QED\0", Probed::Other("qed")),
    (0, b"KDMV", Probed::Other("vmdk")),
    (0, b"COWD", Probed::Other("vmdk")),
    (0, b"# Disk DescriptorFile", Probed::Other("vmdk")),
    (0x40, b"\x7F\x10\xDA\xBE", Probed::Other("vdi")),
    (0, b"conectix", Probed::Other("vpc")),
    (0, b"vhdxfile", Probed::Other("vhdx")),
    (0, b"LUKS\xBA\xBE", Probed::Other("luks")),
    (0, b"WithoutFreeSpace", Probed::Other("parallels")),
    (0, b"WithouFreSpacExt", Probed::Other("parallels")),
    (0, b"Bochs Virtual HD Image", Probed::Other("bochs")),
];

/// Looks at the first sector.
pub fn probe(head: &[u8]) -> Probed {
    let is = |(at, magic, _): &&(usize, &[u8], Probed)| {
        head.get(*at..at + magic.len()).is_some_and(|bytes| bytes == *magic)
    };
    MAGICS.iter().find(is).map_or(Probed::Raw, |(.., format)| *format)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_told_by_their_magic() {
        assert_eq!(probe(b"QFI\xFB\0\0\0\x03rest"), Probed::Qcow2);
        assert_eq!(probe(b"QFI\xFB\0\0\0\x04rest"), Probed::Raw);
        assert_eq!(probe(b"KDMV"), Probed::Other("vmdk"));
        assert_eq!(probe(b""), Probed::Raw);
        assert_eq!(probe(&[0; 512]), Probed::Raw);
        let mut vdi = [0; 512];
        vdi[0x40..0x44].copy_from_slice(&0xBEDA_107F_u32.to_le_bytes());
        assert_eq!(probe(&vdi), Probed::Other("vdi"));
    }
}
