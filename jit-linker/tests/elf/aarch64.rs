//! Every relocation of AArch64, byte by byte.

use crate::relocation::{Case, Entry, Formula, check};

const TARGET: &str = "aarch64-linux-gnu";

/// An instruction whose immediate is at `shift`; `bits` of the value from bit `from` go there.
fn immediate(word: u32, from: u32, bits: u32, shift: u32) -> Box<dyn Fn(i64) -> Vec<u8>> {
    let mask = (1u32 << bits) - 1;
    Box::new(move |value| {
        let immediate = (value >> from) as u32 & mask;
        (word & !(mask << shift) | immediate << shift).to_le_bytes().to_vec()
    })
}

/// The low 12 bits of a value, in units of 2 to the power of `log2`, in a field of 12 bits.
fn low12_immediate(word: u32, log2: u32) -> Box<dyn Fn(i64) -> Vec<u8>> {
    Box::new(move |value| {
        let immediate = (value as u32 & 0xfff) >> log2;
        (word & !(0xfff << 10) | immediate << 10).to_le_bytes().to_vec()
    })
}

/// `adr` and `adrp` have their two low bits elsewhere.
fn address(word: u32, from: u32) -> Box<dyn Fn(i64) -> Vec<u8>> {
    Box::new(move |value| {
        let value = (value >> from) as u32;
        (word | (value & 3) << 29 | (value >> 2 & 0x7_ffff) << 5).to_le_bytes().to_vec()
    })
}

/// `movz` or, for negative values, `movn` of bits from `from`.
fn signed_move(from: u32) -> Box<dyn Fn(i64) -> Vec<u8>> {
    Box::new(move |value| {
        let (word, value) = if value < 0 { (0x9280_0003u32, !value) } else { (0xd280_0003, value) };
        (word | (from / 16) << 21 | ((value >> from) as u32 & 0xffff) << 5).to_le_bytes().to_vec()
    })
}

struct Row {
    relocation: &'static str,
    formula: Formula,
    word: u32,
    after: Box<dyn Fn(i64) -> Vec<u8>>,
    low: i64,
    high: i64,
    step: i64,
}

impl Row {
    /// Values outside the range are errors.
    fn checked(self) -> Case {
        let outside = vec![self.low - self.step, self.high + self.step];
        Case { outside, ..self.unchecked() }
    }

    fn unchecked(self) -> Case {
        let Self { relocation, formula, word, after, low, high, step } = self;
        let inside = vec![low, 0, 3 * step, high];
        // The immediate's bits are set before: a fixup replaces them.
        Case {
            relocation,
            addend: 16,
            before: word.to_le_bytes().to_vec(),
            formula,
            entry: Entry::None,
            inside,
            outside: vec![],
            after,
        }
    }
}

fn data(relocation: &'static str, formula: Formula, size: usize, low: i64, high: i64) -> Case {
    let outside = if size == 8 { vec![] } else { vec![low - 1, high + 1] };
    let after = Box::new(move |value: i64| value.to_le_bytes()[..size].to_vec());
    let (before, inside) = (vec![0xa5; size], vec![low, 0, 0x55, high]);
    Case { relocation, addend: 5, before, formula, entry: Entry::None, inside, outside, after }
}

#[test]
fn elf_20_aarch64_data_relocations() {
    use Formula::{Absolute, Relative};
    check(
        TARGET,
        &[
            data("R_AARCH64_ABS64", Absolute, 8, i64::MIN / 2, i64::MAX / 2),
            data("R_AARCH64_ABS32", Absolute, 4, -(1 << 31), (1 << 32) - 1),
            data("R_AARCH64_ABS16", Absolute, 2, -(1 << 15), (1 << 16) - 1),
            data("R_AARCH64_PREL64", Relative, 8, i64::MIN / 2, i64::MAX / 2),
            data("R_AARCH64_PREL32", Relative, 4, -(1 << 31), (1 << 32) - 1),
            data("R_AARCH64_PREL16", Relative, 2, -(1 << 15), (1 << 16) - 1),
        ],
    );
}

#[test]
fn elf_23_aarch64_moves() {
    use Formula::{Absolute, Relative, TlsModuleOffset, TlsOffset};
    let movz = |group: u32| 0xd280_0003 | group << 21 | 0x1555 << 5;
    let movk = |group: u32| 0xf280_0003 | group << 21 | 0x1555 << 5;
    let mut cases = vec![];
    for (group, relocation) in
        [(0, "R_AARCH64_MOVW_UABS_G0"), (1, "R_AARCH64_MOVW_UABS_G1"), (2, "R_AARCH64_MOVW_UABS_G2")]
    {
        let (word, from) = (movz(group), 16 * group);
        let row = Row {
            relocation,
            formula: Absolute,
            word,
            after: immediate(word, from, 16, 5),
            low: 0,
            high: (1 << (from + 16)) - 1,
            step: 1,
        };
        cases.push(row.checked());
    }
    for (group, relocation, formula) in [
        (0, "R_AARCH64_MOVW_UABS_G0_NC", Absolute),
        (1, "R_AARCH64_MOVW_UABS_G1_NC", Absolute),
        (2, "R_AARCH64_MOVW_UABS_G2_NC", Absolute),
        (3, "R_AARCH64_MOVW_UABS_G3", Absolute),
        (0, "R_AARCH64_MOVW_PREL_G0_NC", Relative),
        (1, "R_AARCH64_MOVW_PREL_G1_NC", Relative),
        (2, "R_AARCH64_MOVW_PREL_G2_NC", Relative),
        (3, "R_AARCH64_MOVW_PREL_G3", Relative),
        (0, "R_AARCH64_TLSLE_MOVW_TPREL_G0_NC", TlsOffset),
        (1, "R_AARCH64_TLSLE_MOVW_TPREL_G1_NC", TlsOffset),
        (0, "R_AARCH64_TLSLD_MOVW_DTPREL_G0_NC", TlsModuleOffset),
        (1, "R_AARCH64_TLSLD_MOVW_DTPREL_G1_NC", TlsModuleOffset),
    ] {
        let word = movk(group);
        let (low, high) = (-0x1234_5678_9abc_def0, 0x1234_5678_9abc_def0);
        let row =
            Row { relocation, formula, word, after: immediate(word, 16 * group, 16, 5), low, high, step: 0x5_5555 };
        cases.push(row.unchecked());
    }
    for (group, relocation, formula) in [
        (0, "R_AARCH64_MOVW_SABS_G0", Absolute),
        (1, "R_AARCH64_MOVW_SABS_G1", Absolute),
        (2, "R_AARCH64_MOVW_SABS_G2", Absolute),
        (0, "R_AARCH64_MOVW_PREL_G0", Relative),
        (1, "R_AARCH64_MOVW_PREL_G1", Relative),
        (2, "R_AARCH64_MOVW_PREL_G2", Relative),
        (0, "R_AARCH64_TLSLE_MOVW_TPREL_G0", TlsOffset),
        (1, "R_AARCH64_TLSLE_MOVW_TPREL_G1", TlsOffset),
        (2, "R_AARCH64_TLSLE_MOVW_TPREL_G2", TlsOffset),
        (0, "R_AARCH64_TLSLD_MOVW_DTPREL_G0", TlsModuleOffset),
        (1, "R_AARCH64_TLSLD_MOVW_DTPREL_G1", TlsModuleOffset),
        (2, "R_AARCH64_TLSLD_MOVW_DTPREL_G2", TlsModuleOffset),
    ] {
        let limit = 1i64 << (16 * group + 16);
        let row = Row {
            relocation,
            formula,
            word: movz(group),
            after: signed_move(16 * group),
            low: -limit,
            high: limit - 1,
            step: 1,
        };
        cases.push(row.checked());
    }
    check(TARGET, &cases);
}

#[test]
fn elf_23_aarch64_branches_and_addresses() {
    use Formula::{Absolute, Page, Relative};
    let low12 = |relocation, word: u32, log2: u32| {
        let after = low12_immediate(word, log2);
        Row { relocation, formula: Absolute, word, after, low: 0, high: 0x1000 - (1 << log2), step: 1 << log2 }
            .unchecked()
    };
    let page = |relocation| {
        let after = address(0x9000_0003, 12);
        Row {
            relocation,
            formula: Page,
            word: 0x9000_0003,
            after,
            low: -(1 << 32),
            high: (1 << 32) - 0x1000,
            step: 0x1000,
        }
    };
    let near = |relocation, word: u32, bits: u32, shift: u32| {
        let limit = 1i64 << (bits + 1);
        let after = immediate(word, 2, bits, shift);
        Row { relocation, formula: Relative, word, after, low: -limit, high: limit - 4, step: 4 }.checked()
    };
    check(
        TARGET,
        &[
            near("R_AARCH64_LD_PREL_LO19", 0x58aa_aaa3, 19, 5),
            near("R_AARCH64_CONDBR19", 0x54aa_aaa1, 19, 5),
            near("R_AARCH64_CONDBR19", 0xb5aa_aaa1, 19, 5),
            near("R_AARCH64_TSTBR14", 0x3702_aaa1, 14, 5),
            Row {
                relocation: "R_AARCH64_ADR_PREL_LO21",
                formula: Relative,
                word: 0x1000_0003,
                after: address(0x1000_0003, 0),
                low: -(1 << 20),
                high: (1 << 20) - 1,
                step: 1,
            }
            .checked(),
            page("R_AARCH64_ADR_PREL_PG_HI21").checked(),
            page("R_AARCH64_ADR_PREL_PG_HI21_NC").unchecked(),
            low12("R_AARCH64_ADD_ABS_LO12_NC", 0x9115_5463, 0),
            low12("R_AARCH64_LDST8_ABS_LO12_NC", 0x3955_5463, 0),
            low12("R_AARCH64_LDST16_ABS_LO12_NC", 0x7955_5463, 1),
            low12("R_AARCH64_LDST32_ABS_LO12_NC", 0xb955_5463, 2),
            low12("R_AARCH64_LDST64_ABS_LO12_NC", 0xf955_5463, 3),
            low12("R_AARCH64_LDST128_ABS_LO12_NC", 0x3dd5_5463, 4),
        ],
    );
}

#[test]
fn elf_36_aarch64_offsets_of_thread_local_variables() {
    let mut cases = vec![];
    let add = 0x9115_5463;
    for (relocations, formula) in [
        (
            ["R_AARCH64_TLSLE_ADD_TPREL_HI12", "R_AARCH64_TLSLE_ADD_TPREL_LO12", "R_AARCH64_TLSLE_ADD_TPREL_LO12_NC"],
            Formula::TlsOffset,
        ),
        (
            [
                "R_AARCH64_TLSLD_ADD_DTPREL_HI12",
                "R_AARCH64_TLSLD_ADD_DTPREL_LO12",
                "R_AARCH64_TLSLD_ADD_DTPREL_LO12_NC",
            ],
            Formula::TlsModuleOffset,
        ),
    ] {
        let [high, low, unchecked] = relocations;
        let shifted = add | 1 << 22;
        cases.push(
            Row {
                relocation: high,
                formula,
                word: shifted,
                after: immediate(shifted, 12, 12, 10),
                low: 0,
                high: 0xff_ffff,
                step: 1,
            }
            .checked(),
        );
        cases.push(
            Row { relocation: low, formula, word: add, after: immediate(add, 0, 12, 10), low: 0, high: 0xfff, step: 1 }
                .checked(),
        );
        cases.push(
            Row {
                relocation: unchecked,
                formula,
                word: add,
                after: immediate(add, 0, 12, 10),
                low: 0,
                high: 0x1234_5678,
                step: 0x101,
            }
            .unchecked(),
        );
    }
    let sizes =
        [("8", 0x3955_5463u32), ("16", 0x7955_5463), ("32", 0xb955_5463), ("64", 0xf955_5463), ("128", 0x3dd5_5463)];
    for (log2, (size, word)) in sizes.into_iter().enumerate() {
        let log2 = log2 as u32;
        for (model, formula) in [("LE_LDST{}_T", Formula::TlsOffset), ("LD_LDST{}_DT", Formula::TlsModuleOffset)] {
            let name = |end: &str| &*format!("R_AARCH64_TLS{}PREL_LO12{end}", model.replace("{}", size)).leak();
            let after = || low12_immediate(word, log2);
            let row =
                |relocation, high| Row { relocation, formula, word, after: after(), low: 0, high, step: 1 << log2 };
            cases.push(row(name(""), 0x1000 - (1 << log2)).checked());
            cases.push(row(name("_NC"), 0x1234_5670).unchecked());
        }
    }
    check(TARGET, &cases);
}

#[test]
fn elf_23_aarch64_got_entries() {
    use Formula::{GotEntry, GotEntryLow, GotEntryOfSum, GotEntryPage};
    let mut cases = vec![];
    let (adrp, adr, add, ldr, literal) = (0x9000_0003, 0x1000_0003, 0x9115_5463, 0xf955_5463, 0x58aa_aaa3);
    let mut entry = |row: Row, entry: Entry, addend: i64, checked: bool| {
        let case = if checked { row.checked() } else { row.unchecked() };
        cases.push(Case { entry, addend, ..case });
    };
    for (kind, page, low) in [
        (Entry::Address, "R_AARCH64_ADR_GOT_PAGE", "R_AARCH64_LD64_GOT_LO12_NC"),
        (Entry::TlsPair, "R_AARCH64_TLSGD_ADR_PAGE21", ""),
        (Entry::TlsModule, "R_AARCH64_TLSLD_ADR_PAGE21", ""),
        (Entry::TlsOffset, "R_AARCH64_TLSIE_ADR_GOTTPREL_PAGE21", "R_AARCH64_TLSIE_LD64_GOTTPREL_LO12_NC"),
        (Entry::TlsDescriptor, "R_AARCH64_TLSDESC_ADR_PAGE21", "R_AARCH64_TLSDESC_LD64_LO12"),
    ] {
        let (min, max) = (-(1 << 32), (1 << 32) - 0x1000);
        let row = Row {
            relocation: page,
            formula: GotEntryPage,
            word: adrp,
            after: address(adrp, 12),
            low: min,
            high: max,
            step: 0x1000,
        };
        entry(row, kind, 24, true);
        if !low.is_empty() {
            let after = low12_immediate(ldr, 3);
            let row = Row { relocation: low, formula: GotEntryLow, word: ldr, after, low: 0, high: 0xff8, step: 8 };
            entry(row, kind, 24, false);
        }
    }
    for (kind, relocation) in [
        (Entry::TlsPair, "R_AARCH64_TLSGD_ADD_LO12_NC"),
        (Entry::TlsModule, "R_AARCH64_TLSLD_ADD_LO12_NC"),
        (Entry::TlsDescriptor, "R_AARCH64_TLSDESC_ADD_LO12"),
    ] {
        let row = Row {
            relocation,
            formula: GotEntryLow,
            word: add,
            after: immediate(add, 0, 12, 10),
            low: 0,
            high: 0xff8,
            step: 8,
        };
        entry(row, kind, 0, false);
    }
    for (kind, relocation) in [
        (Entry::TlsPair, "R_AARCH64_TLSGD_ADR_PREL21"),
        (Entry::TlsModule, "R_AARCH64_TLSLD_ADR_PREL21"),
        (Entry::TlsDescriptor, "R_AARCH64_TLSDESC_ADR_PREL21"),
    ] {
        let row = Row {
            relocation,
            formula: GotEntryOfSum,
            word: adr,
            after: address(adr, 0),
            low: -(1 << 20),
            high: (1 << 20) - 8,
            step: 8,
        };
        entry(row, kind, 8, true);
    }
    for (kind, relocation) in [
        (Entry::Address, "R_AARCH64_GOT_LD_PREL19"),
        (Entry::TlsOffset, "R_AARCH64_TLSIE_LD_GOTTPREL_PREL19"),
        (Entry::TlsDescriptor, "R_AARCH64_TLSDESC_LD_PREL19"),
    ] {
        let row = Row {
            relocation,
            formula: GotEntryOfSum,
            word: literal,
            after: immediate(literal, 2, 19, 5),
            low: -(1 << 20),
            high: (1 << 20) - 8,
            step: 8,
        };
        entry(row, kind, 8, true);
    }
    let limit = 1i64 << 31;
    let word = Box::new(|value: i64| value.to_le_bytes()[..4].to_vec());
    let row = Row {
        relocation: "R_AARCH64_GOTPCREL32",
        formula: GotEntry,
        word: 0,
        after: word,
        low: -limit,
        high: limit - 8,
        step: 8,
    };
    entry(row, Entry::Address, 8, true);
    check(TARGET, &cases);
}
