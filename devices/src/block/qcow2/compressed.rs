//! Compressed clusters (docs/interop/qcow2.txt, "Compressed Clusters Descriptor").

use std::io;
use std::sync::Arc;

use flate2::{Decompress, FlushDecompress, Status};

use super::super::engine::lock;
use super::entry::Packed;
use super::header::Compression;
use super::{Qcow2, damaged};

/// Clusters that are kept unpacked, for a guest that reads them in pieces.
const KEPT: usize = 8;

/// The last clusters that were unpacked, oldest first.
#[derive(Default)]
pub(super) struct Unpacked(Vec<(Packed, Arc<[u8]>)>);

impl Qcow2 {
    /// A compressed cluster's contents.
    pub(super) fn unpack(&self, packed: Packed) -> io::Result<Arc<[u8]>> {
        let kept = lock(&self.unpacked).0.iter().find(|(at, _)| *at == packed).cloned();
        if let Some((_, data)) = kept {
            return Ok(data);
        }
        let mut input = vec![0; packed.len as usize];
        self.storage.read_bytes(packed.host, &mut input)?;
        let mut output = vec![0; self.cluster_size() as usize];
        match self.compression {
            Compression::Zlib => inflate(&input, &mut output)?,
            Compression::Zstd => unpack_zstd(&input, &mut output)?,
        }
        let data: Arc<[u8]> = output.into();
        let mut kept = lock(&self.unpacked);
        if kept.0.len() == KEPT {
            kept.0.remove(0);
        }
        kept.0.push((packed, data.clone()));
        Ok(data)
    }
}

/// Deflate without a header (RFC 1951); what follows the stream does not count.
fn inflate(input: &[u8], output: &mut [u8]) -> io::Result<()> {
    let mut stream = Decompress::new(false);
    match stream.decompress(input, output, FlushDecompress::Finish) {
        Ok(Status::StreamEnd | Status::Ok | Status::BufError)
            if stream.total_out() == output.len() as u64 =>
        {
            Ok(())
        }
        _ => Err(damaged()),
    }
}

/// Zstandard (RFC 8878); what follows the frame does not count.
fn unpack_zstd(input: &[u8], output: &mut [u8]) -> io::Result<()> {
    use zstd::stream::raw::{Decoder, InBuffer, Operation, OutBuffer};
    let mut decoder = Decoder::new()?;
    let mut from = InBuffer::around(input);
    let len = output.len();
    let mut to = OutBuffer::around(output);
    while to.pos() < len {
        let before = (from.pos(), to.pos());
        decoder.run(&mut from, &mut to).map_err(|_| damaged())?;
        if (from.pos(), to.pos()) == before {
            return Err(damaged());
        }
    }
    Ok(())
}
