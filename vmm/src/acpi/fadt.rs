//! Fixed ACPI description table (ACPI 6.5, 5.2.9).

use acpi_tables::fadt::{FADT, FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};

use super::{OEM_ID, OEM_REVISION, OEM_TABLE_ID, Platform, SCI};

const PM1A_EVT: Block = Block { port: 0x600, length: 4, access: AccessSize::WordAccess };
const PM1A_CNT: Block = Block { port: 0x604, length: 2, access: AccessSize::WordAccess };
const PM_TMR: Block = Block { port: 0x608, length: 4, access: AccessSize::DwordAccess };
const GPE0: Block = Block { port: 0x620, length: 4, access: AccessSize::ByteAccess };
const RESET: Block = Block { port: 0xCF9, length: 1, access: AccessSize::ByteAccess };
/// Written to [`RESET`]: full reset, power cycle.
const RESET_VALUE: u8 = 0x0F;
/// CMOS register with the century.
const RTC_CENTURY: u8 = 0x32;

/// `IAPC_BOOT_ARCH` (table 5.10): there are devices on the ISA bus that ACPI does not enumerate.
const LEGACY_DEVICES: u16 = 1 << 0;
/// There is an 8042.
const I8042: u16 = 1 << 1;
/// There is no VGA to be probed.
const VGA_NOT_PRESENT: u16 = 1 << 2;

/// There is no MC146818 clock.
const CMOS_RTC_NOT_PRESENT: u16 = 1 << 5;

/// A block of I/O ports.
struct Block {
    port: u16,
    length: u8,
    access: AccessSize,
}

impl Block {
    fn gas(&self) -> GAS {
        let bits = self.length * 8;
        GAS::new(AddressSpace::SystemIo, bits, 0, self.access, self.port.into())
    }
}

/// The FADT, pointing to the FACS and the DSDT.
///
/// `SMI_CMD` is 0: the machine is always in ACPI mode. Flags that are not set say something too:
/// the power button is a fixed one (`PWR_BUTTON`), the PM timer has 24 bits (`TMR_VAL_EXT`). Those
/// that are set: no fixed sleep button (`SLP_BUTTON`), no RTC bit in PM1 (`FIX_RTC`).
pub(super) fn table(platform: &Platform<'_>, facs: u32, dsdt: u32) -> FADT {
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .preferred_pm_profile(PmProfile::Desktop)
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        .flag(Flags::SlpButton)
        .flag(Flags::FixRtc)
        .flag(Flags::ResetRegSup);
    fadt.firmware_ctrl = facs.into();
    fadt.dsdt = dsdt.into();
    fadt.x_dsdt = u64::from(dsdt).into();
    fadt.sci_int = u16::from(SCI).into();
    fadt.pm1a_evt_blk = u32::from(PM1A_EVT.port).into();
    fadt.pm1a_cnt_blk = u32::from(PM1A_CNT.port).into();
    fadt.pm_tmr_blk = u32::from(PM_TMR.port).into();
    fadt.gpe0_blk = u32::from(GPE0.port).into();
    fadt.pm1_evt_len = PM1A_EVT.length;
    fadt.pm1_cnt_len = PM1A_CNT.length;
    fadt.pm_tmr_len = PM_TMR.length;
    fadt.gpe0_blk_len = GPE0.length;
    fadt.x_pm1a_evt_blk = PM1A_EVT.gas();
    fadt.x_pm1a_cnt_blk = PM1A_CNT.gas();
    fadt.x_pm_tmr_blk = PM_TMR.gas();
    fadt.x_gpe0_blk = GPE0.gas();
    // Latencies above these say that there is no C2 and no C3.
    fadt.p_lvl2_lat = 101.into();
    fadt.p_lvl3_lat = 1001.into();
    let boot_arch = if platform.legacy {
        fadt.century = RTC_CENTURY;
        LEGACY_DEVICES | I8042
    } else {
        LEGACY_DEVICES | CMOS_RTC_NOT_PRESENT
    };
    fadt.iapc_boot_arch = (boot_arch | VGA_NOT_PRESENT).into();
    fadt.reset_reg = RESET.gas();
    fadt.reset_value = RESET_VALUE;
    fadt.finalize()
}
