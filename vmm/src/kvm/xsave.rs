//! The XSAVE area between the host's layout and components by number (SDM vol. 1, 13.4).

use board::vcpu::{Cpuid, Fpu};
use board::{AccelError, VcpuState};

/// Where the host's XSAVE area has each component (CPUID leaf 0xD; SDM vol. 1, 13.4).
pub(super) struct XsaveLayout {
    /// KVM_CAP_XSAVE2 is there.
    pub(super) xsave2: bool,
    /// Bytes of the area, at least 4096.
    size: usize,
    /// Number, offset and size of the components from 2 on, in the standard format.
    components: Vec<(u8, usize, usize)>,
}

const XSTATE_BV: usize = 512;
const LEGACY_SIZE: usize = 512;
/// Components from 2 on begin here at the earliest.
const EXTENDED: usize = 576;

impl XsaveLayout {
    /// The host's layout; `xsave2` is what KVM_CAP_XSAVE2 says, and `cpuid` what KVM supports. The
    /// CPU is not asked itself: where this is a virtual machine too, each CPUID is an exit.
    pub(super) fn of_host(xsave2: i32, cpuid: &Cpuid) -> Self {
        let size = usize::try_from(xsave2).unwrap_or(0).max(4096);
        let components = cpuid
            .leaves
            .iter()
            .filter(|leaf| leaf.function == 0xD)
            .filter_map(|leaf| {
                let number = leaf.index.filter(|i| (2..63).contains(i))?;
                Some((number as u8, leaf.ebx as usize, leaf.eax as usize))
            })
            // Supervisor components have no offset, and are not part of this format.
            .filter(|(_, offset, len)| *len > 0 && *offset >= EXTENDED && offset + len <= size)
            .collect();
        Self { xsave2: xsave2 > 0, size, components }
    }

    /// A buffer for KVM_GET_XSAVE.
    pub(super) fn buffer(&self) -> Vec<u64> {
        vec![0; self.size.div_ceil(8)]
    }
}

pub(super) fn bytes_of(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

pub(super) fn words_of(bytes: &[u8]) -> Vec<u64> {
    bytes.chunks_exact(8).map(|c| u64::from_le_bytes(c.try_into().unwrap_or_default())).collect()
}

fn field<const N: usize>(area: &[u8], offset: usize) -> [u8; N] {
    let mut value = [0; N];
    value.copy_from_slice(&area[offset..offset + N]);
    value
}

/// Reads the XSAVE area in the standard format.
pub(super) fn unpack_xsave(layout: &XsaveLayout, area: &[u8], state: &mut VcpuState) {
    let present = u64::from_le_bytes(field(area, XSTATE_BV));
    let mut fpu = Fpu { mxcsr: u32::from_le_bytes(field(area, 24)), ..Fpu::default() };
    if present & 1 != 0 {
        fpu.fcw = u16::from_le_bytes(field(area, 0));
        fpu.fsw = u16::from_le_bytes(field(area, 2));
        fpu.ftw = area[4];
        fpu.fop = u16::from_le_bytes(field(area, 6));
        fpu.fip = u64::from_le_bytes(field(area, 8));
        fpu.fdp = u64::from_le_bytes(field(area, 16));
        for (i, st) in fpu.st.iter_mut().enumerate() {
            *st = field(area, 32 + 16 * i);
        }
    }
    if present & 2 != 0 {
        for (i, xmm) in fpu.xmm.iter_mut().enumerate() {
            *xmm = field(area, 160 + 16 * i);
        }
    }
    state.fpu = fpu;
    state.xsave = layout
        .components
        .iter()
        .filter(|(i, ..)| present & 1 << i != 0)
        .map(|&(i, offset, len)| (i, area[offset..offset + len].to_vec()))
        .collect();
}

/// Writes the XSAVE area in the standard format.
pub(super) fn pack_xsave(layout: &XsaveLayout, state: &VcpuState) -> Result<Vec<u8>, AccelError> {
    let mut area = vec![0; layout.size.next_multiple_of(8)];
    let Fpu { fcw, fsw, ftw, fop, fip, fdp, mxcsr, st, xmm } = &state.fpu;
    let mut put = |offset: usize, bytes: &[u8]| {
        area[offset..offset + bytes.len()].copy_from_slice(bytes);
    };
    put(0, &fcw.to_le_bytes());
    put(2, &fsw.to_le_bytes());
    put(4, &[*ftw]);
    put(6, &fop.to_le_bytes());
    put(8, &fip.to_le_bytes());
    put(16, &fdp.to_le_bytes());
    put(24, &mxcsr.to_le_bytes());
    for (i, st) in st.iter().enumerate() {
        put(32 + 16 * i, st);
    }
    for (i, xmm) in xmm.iter().enumerate() {
        put(160 + 16 * i, xmm);
    }
    debug_assert!(160 + 16 * xmm.len() <= LEGACY_SIZE);
    let mut present = 0b11_u64;
    for (number, data) in &state.xsave {
        let place = layout.components.iter().find(|(i, _, len)| i == number && *len == data.len());
        let Some(&(_, offset, _)) = place else {
            return Err(AccelError::Unsupported(format!(
                "the state has XSAVE component {number} of {} bytes, which this host lacks: restore it \
                 on a host with the same CPU features",
                data.len()
            )));
        };
        put(offset, data);
        present |= 1 << number;
    }
    put(XSTATE_BV, &present.to_le_bytes());
    Ok(area)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn xsave_survives_the_round_trip_and_names_what_is_missing() {
        let layout = XsaveLayout { xsave2: true, size: 4096, components: vec![(2, 576, 256)] };
        let mut state = VcpuState::default();
        state.fpu.st[7] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10];
        state.fpu.xmm[15] = [0xAB; 16];
        state.fpu.mxcsr = 0x1FA0;
        state.xsave.insert(2, (0..=255).collect());
        let area = pack_xsave(&layout, &state).unwrap();
        let mut back = VcpuState::default();
        unpack_xsave(&layout, &area, &mut back);
        assert_eq!(back, state);
        state.xsave.insert(9, vec![0; 8]);
        let error = pack_xsave(&layout, &state).unwrap_err().to_string();
        assert!(error.contains("component 9 of 8 bytes"), "{error}");
    }
}
