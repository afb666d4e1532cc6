//! Edge kinds of AArch64, after the ELF psABI's table of relocations (S, A, P, G as there; Page(x)
//! is x with its low 12 bits cleared).
//!
//! A fixup replaces the instruction's immediate, whatever it was, so it can be applied again.

use super::{FixupError, Operands, Origin, Referent, either, field, reduce, signed};

/// What is stored at an edge's offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum EdgeKind {
    /// S + A, 64 bits.
    Pointer64,
    /// S + A, 32 bits: −2^31 to 2^32.
    Pointer32,
    /// S + A, 16 bits: −2^15 to 2^16.
    Pointer16,
    /// S + A − P, 64 bits.
    Delta64,
    /// S + A − P, 32 bits: −2^31 to 2^32.
    Delta32,
    /// S + A − P, 16 bits: −2^15 to 2^16.
    Delta16,
    /// P + A − S, 32 bits: how far back the target is.
    NegDelta32,
    /// L + A − P, 32 bits, in data: may go to a stub.
    Plt32,
    /// G + A − P, 32 bits, in data, where G is the GOT entry of S.
    GotDelta32,
    /// S + A − P in a `b` or `bl`, ±128 MiB: may go through a stub.
    Branch26,
    /// S + A − P in a `b.cond`, `cbz` or `cbnz`, ±1 MiB.
    CondBranch19,
    /// S + A − P in a `tbz` or `tbnz`, ±32 KiB.
    TestBranch14,
    /// S + A − P in a literal `ldr`, ±1 MiB.
    Load19,
    /// S + A − P in an `adr`, ±1 MiB.
    Adr21,
    /// Page(S + A) − Page(P) in an `adrp`, ±4 GiB.
    Page21,
    /// As [`Page21`](Self::Page21), without a check of its range.
    Page21Unchecked,
    /// The low 12 bits of S + A in an `add`.
    PageOffset12,
    /// The low 12 bits of S + A in a 64-bit `ldr`.
    LoadPageOffset12,
    /// The low 12 bits of S + A in a load or store of 2 to the given power of bytes.
    LoadStorePageOffset12(u8),
    /// 16 bits of S + A in a `movz`, `movn` or `movk`.
    Move(Move),
    /// 16 bits of S + A − P in a `movz`, `movn` or `movk`.
    MoveDelta(Move),
    /// G − P in a literal `ldr`, where G is the GOT entry of S + A, ±1 MiB.
    GotLoad19,
    /// Page(G) − Page(P) in an `adrp`, where G is the GOT entry of S + A.
    GotPage21,
    /// The low 12 bits of G in a 64-bit `ldr`. The pair becomes `adrp` and `add` of S + A where
    /// that is near.
    GotPageOffset12,
    /// G − Page(GOT) in a 64-bit `ldr`, 15 bits.
    GotPageOffset15,
    /// G − GOT in a 64-bit `ldr`, 15 bits.
    GotOffset15,
    /// S + A − TP, in the given field.
    TlsOffset(TlsField),
    /// The offset of S + A in its module's storage, in the given field.
    TlsModuleOffset(TlsField),
    /// The address of words in the GOT that are the variable's, in the given field.
    TlsEntry(TlsWords, EntryField),
    /// P + A − S, 64 bits: how far back the target is.
    NegDelta64,
    /// The field less S + A − P, 32 bits: turns the distance to one symbol into that between two.
    Subtract32,
    /// The field less S + A − P, 64 bits.
    Subtract64,
    /// G + A, 64 bits, in data, where G is the GOT entry of S.
    GotPointer64,
    /// The offset of S + A in its module's storage, 64 bits.
    TlsModuleOffset64,
    /// The number of the graph's own thread-local storage, plus A, 64 bits.
    TlsModuleNumber64,
}

/// Which 16 bits of a value a `movz`, `movn` or `movk` takes, and what is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Move {
    /// The bits from 16 times this.
    pub group: u8,
    /// What is checked of the bits above.
    pub check: MoveCheck,
}

/// What is checked of the bits above those that a move takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MoveCheck {
    /// Nothing: other instructions take them.
    None,
    /// They are zero.
    Unsigned,
    /// They are the sign. The instruction becomes a `movn` for a negative value, else a `movz`.
    Signed,
}

/// A field that takes part of the offset of a thread-local variable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TlsField {
    /// Bits 12 to 23, in an `add` that shifts; the value is below 2^24.
    AddHigh12,
    /// The low 12 bits, in an `add`; the value is below 2^12.
    Add12,
    /// The low 12 bits, in an `add`.
    Add12Unchecked,
    /// The low 12 bits, in a load or store of 2 to the given power of bytes; below 2^12.
    LoadStore12(u8),
    /// The low 12 bits, in a load or store of 2 to the given power of bytes.
    LoadStore12Unchecked(u8),
    /// 16 bits, in a `movz`, `movn` or `movk`.
    Move(Move),
}

/// Which words in the GOT a thread-local variable is reached through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TlsWords {
    /// Module and offset, for `__tls_get_addr`.
    Pair,
    /// The graph's own module and offset 0, for `__tls_get_addr`.
    Module,
    /// The offset from the thread pointer.
    Offset,
    /// A resolver and its argument.
    Descriptor,
}

/// A field that takes part of the address of a GOT entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EntryField {
    /// Page(G) − Page(P), in an `adrp`.
    Page21,
    /// The low 12 bits of G, in an `add`.
    Add12,
    /// The low 12 bits of G, in a 64-bit `ldr`.
    Load12,
    /// G − P, in an `adr`.
    Adr21,
    /// G − P, in a literal `ldr`.
    Load19,
}

/// How a value is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Field {
    Bits64,
    Either32,
    Signed32,
    Either16,
    Branch26,
    Branch19,
    Branch14,
    Load19,
    Adr,
    Adrp,
    AdrpUnchecked,
    Add12,
    Load12,
    Load15,
    LoadStore12(u8),
    Move(Move),
    Tls(TlsField),
    Less32,
    Less64,
}

impl EdgeKind {
    /// The kind's formula: what stands for the target, from where it is measured, and the field.
    pub(crate) const fn formula(self) -> (Referent, Origin, Field) {
        use Origin::{FromTarget, GotBase, GotPage, Page, Place, Zero};
        use Referent::{Branch, GotEntry, Symbol};
        match self {
            Self::Pointer64 => (Symbol, Zero, Field::Bits64),
            Self::Pointer32 => (Symbol, Zero, Field::Either32),
            Self::Pointer16 => (Symbol, Zero, Field::Either16),
            Self::Delta64 => (Symbol, Place, Field::Bits64),
            Self::Delta32 => (Symbol, Place, Field::Either32),
            Self::Delta16 => (Symbol, Place, Field::Either16),
            Self::NegDelta32 => (Symbol, FromTarget, Field::Signed32),
            Self::Plt32 => (Branch, Place, Field::Signed32),
            Self::GotDelta32 => (GotEntry, Place, Field::Signed32),
            Self::Branch26 => (Branch, Place, Field::Branch26),
            Self::CondBranch19 => (Symbol, Place, Field::Branch19),
            Self::TestBranch14 => (Symbol, Place, Field::Branch14),
            Self::Load19 => (Symbol, Place, Field::Load19),
            Self::Adr21 => (Symbol, Place, Field::Adr),
            Self::Page21 => (Symbol, Page, Field::Adrp),
            Self::Page21Unchecked => (Symbol, Page, Field::AdrpUnchecked),
            Self::PageOffset12 => (Symbol, Zero, Field::Add12),
            Self::LoadPageOffset12 => (Symbol, Zero, Field::Load12),
            Self::LoadStorePageOffset12(log2) => (Symbol, Zero, Field::LoadStore12(log2)),
            Self::Move(part) => (Symbol, Zero, Field::Move(part)),
            Self::MoveDelta(part) => (Symbol, Place, Field::Move(part)),
            Self::GotLoad19 => (GotEntry, Place, Field::Load19),
            Self::GotPage21 => (GotEntry, Page, Field::Adrp),
            Self::GotPageOffset12 => (GotEntry, Zero, Field::Load12),
            Self::GotPageOffset15 => (GotEntry, GotPage, Field::Load15),
            Self::GotOffset15 => (GotEntry, GotBase, Field::Load15),
            Self::TlsOffset(field) => (Referent::TlsOffset, Zero, Field::Tls(field)),
            Self::TlsModuleOffset(field) => (Referent::TlsModuleOffset, Zero, Field::Tls(field)),
            Self::NegDelta64 => (Symbol, FromTarget, Field::Bits64),
            Self::Subtract32 => (Symbol, Place, Field::Less32),
            Self::Subtract64 => (Symbol, Place, Field::Less64),
            Self::GotPointer64 => (GotEntry, Zero, Field::Bits64),
            Self::TlsModuleOffset64 => (Referent::TlsModuleOffset, Zero, Field::Bits64),
            Self::TlsModuleNumber64 => (Referent::TlsModuleNumber, Zero, Field::Bits64),
            Self::TlsEntry(words, field) => {
                let referent = match words {
                    TlsWords::Pair => Referent::TlsPair,
                    TlsWords::Module => Referent::TlsModule,
                    TlsWords::Offset => Referent::TlsEntry,
                    TlsWords::Descriptor => Referent::TlsDescriptor,
                };
                match field {
                    EntryField::Page21 => (referent, Page, Field::Adrp),
                    EntryField::Add12 => (referent, Zero, Field::Add12),
                    EntryField::Load12 => (referent, Zero, Field::Load12),
                    EntryField::Adr21 => (referent, Place, Field::Adr),
                    EntryField::Load19 => (referent, Place, Field::Load19),
                }
            }
        }
    }
}

/// An instruction's fixed bits: mask and value.
type Shape = (u32, u32);

const ADR: Shape = (0x9f00_0000, 0x1000_0000);
const ADRP: Shape = (0x9f00_0000, 0x9000_0000);
/// `add` of an immediate, 32 or 64 bits, shifted or not.
const ADD_IMMEDIATE: Shape = (0x7f80_0000, 0x1100_0000);
/// `add xd, xn, #imm`.
const ADD_64: u32 = 0x9100_0000;
const LDR_UNSIGNED_OFFSET: Shape = (0xffc0_0000, 0xf940_0000);
/// Any load or store of a register with an unsigned offset.
const LOAD_STORE_UNSIGNED_OFFSET: Shape = (0x3b00_0000, 0x3900_0000);
/// Any literal load, and a prefetch.
const LOAD_LITERAL: Shape = (0x3b00_0000, 0x1800_0000);
const BRANCH: Shape = (0x7c00_0000, 0x1400_0000);
const CONDITIONAL_BRANCH: Shape = (0xff00_0000, 0x5400_0000);
const COMPARE_BRANCH: Shape = (0x7e00_0000, 0x3400_0000);
const TEST_BRANCH: Shape = (0x7e00_0000, 0x3600_0000);
/// `movn`, `movz`, `movk`.
const MOVE_WIDE: Shape = (0x1f80_0000, 0x1280_0000);

const IMMEDIATE_12: u32 = 0x003f_fc00;
const IMMEDIATE_19: u32 = 0x00ff_ffe0;

/// Applies an edge's formula. The operands are what the kind's formula names, so that for the
/// GOT kinds the target is the entry.
///
/// # Errors
///
/// When the field lies outside the block, is not the instruction the kind is for, or the value
/// does not fit it.
pub(crate) fn apply(kind: EdgeKind, block: &mut [u8], offset: u32, operands: Operands) -> Result<(), FixupError> {
    let (_, origin, width) = kind.formula();
    store(width, block, offset, operands.measure(origin))
}

fn store(width: Field, block: &mut [u8], offset: u32, value: i64) -> Result<(), FixupError> {
    match width {
        Field::Bits64 => *field(block, offset)? = value.to_le_bytes(),
        Field::Either32 => *field(block, offset)? = (either(value, 32)? as u32).to_le_bytes(),
        Field::Signed32 => *field(block, offset)? = (signed(value, 32)? as i32).to_le_bytes(),
        Field::Either16 => *field(block, offset)? = (either(value, 16)? as u16).to_le_bytes(),
        Field::Branch26 => {
            let value = signed(multiple_of(value, 4)?, 28)?;
            edit(block, offset, BRANCH, 0x03ff_ffff, (value >> 2) as u32)?;
        }
        Field::Branch19 => {
            let value = signed(multiple_of(value, 4)?, 21)?;
            let shape = if shape_is(block, offset, COMPARE_BRANCH)? { COMPARE_BRANCH } else { CONDITIONAL_BRANCH };
            edit(block, offset, shape, IMMEDIATE_19, (value >> 2 << 5) as u32)?;
        }
        Field::Branch14 => {
            let value = signed(multiple_of(value, 4)?, 16)?;
            edit(block, offset, TEST_BRANCH, 0x0007_ffe0, (value >> 2 << 5) as u32)?;
        }
        Field::Load19 => {
            let value = signed(multiple_of(value, 4)?, 21)?;
            edit(block, offset, LOAD_LITERAL, IMMEDIATE_19, (value >> 2 << 5) as u32)?;
        }
        Field::Adr => edit_adr(block, offset, ADR, signed(value, 21)?)?,
        Field::Adrp => edit_adr(block, offset, ADRP, signed(value, 33)? >> 12)?,
        Field::AdrpUnchecked => edit_adr(block, offset, ADRP, value >> 12)?,
        Field::Add12 => edit(block, offset, ADD_IMMEDIATE, IMMEDIATE_12, (value as u32 & 0xfff) << 10)?,
        Field::Load12 => {
            let low = multiple_of(value & 0xfff, 8)?;
            edit(block, offset, LDR_UNSIGNED_OFFSET, IMMEDIATE_12, (low as u32 >> 3) << 10)?;
        }
        Field::Load15 => {
            let value = multiple_of(unsigned(value, 15)?, 8)?;
            edit(block, offset, LDR_UNSIGNED_OFFSET, IMMEDIATE_12, (value as u32 >> 3) << 10)?;
        }
        Field::LoadStore12(log2) => edit_load_store(block, offset, log2, value)?,
        Field::Move(part) => edit_move(block, offset, part, value)?,
        Field::Tls(part) => store_tls(part, block, offset, value)?,
        Field::Less32 => reduce::<4>(block, offset, value)?,
        Field::Less64 => reduce::<8>(block, offset, value)?,
    }
    Ok(())
}

fn store_tls(part: TlsField, block: &mut [u8], offset: u32, value: i64) -> Result<(), FixupError> {
    match part {
        TlsField::AddHigh12 => {
            let value = unsigned(value, 24)? as u32;
            edit(block, offset, ADD_IMMEDIATE, IMMEDIATE_12, (value >> 12) << 10)
        }
        TlsField::Add12 => store(Field::Add12, block, offset, unsigned(value, 12)?),
        TlsField::Add12Unchecked => store(Field::Add12, block, offset, value),
        TlsField::LoadStore12(log2) => edit_load_store(block, offset, log2, unsigned(value, 12)?),
        TlsField::LoadStore12Unchecked(log2) => edit_load_store(block, offset, log2, value),
        TlsField::Move(part) => edit_move(block, offset, part, value),
    }
}

fn edit_adr(block: &mut [u8], offset: u32, shape: Shape, value: i64) -> Result<(), FixupError> {
    let value = value as u32;
    edit(block, offset, shape, 0x60ff_ffe0, (value & 3) << 29 | (value >> 2 & 0x7_ffff) << 5)
}

/// The power of two of bytes that a load or store with an unsigned offset accesses.
pub(crate) fn load_store_log2(word: u32) -> Option<u8> {
    expect(word, LOAD_STORE_UNSIGNED_OFFSET).ok()?;
    let is_vector = word & 1 << 26 != 0;
    let size = (word >> 30) as u8;
    Some(if is_vector && size == 0 && word & 1 << 23 != 0 { 4 } else { size })
}

/// The offset is in units of what is loaded, which the instruction itself tells: a relocation
/// for another size would make it a wrong address.
fn edit_load_store(block: &mut [u8], offset: u32, log2: u8, value: i64) -> Result<(), FixupError> {
    let word = u32::from_le_bytes(*field(block, offset)?);
    if load_store_log2(word) != Some(log2) {
        return Err(FixupError::Instruction { word });
    }
    let low = multiple_of(value & 0xfff, 1 << log2)?;
    edit(block, offset, LOAD_STORE_UNSIGNED_OFFSET, IMMEDIATE_12, (low as u32 >> log2) << 10)
}

fn edit_move(block: &mut [u8], offset: u32, part: Move, value: i64) -> Result<(), FixupError> {
    let bits = 16 * (u32::from(part.group) + 1);
    let shift = bits - 16;
    let word = u32::from_le_bytes(*field(block, offset)?);
    expect(word, MOVE_WIDE)?;
    // Bits 30 and 29: 0 for `movn`, 2 for `movz`, 3 for `movk`. The highest group of all has
    // nothing above it to check.
    let (operation, value) = match part.check {
        MoveCheck::Signed => {
            let value = if bits < 64 { signed(value, bits + 1)? } else { value };
            if value < 0 { (0, !value) } else { (2, value) }
        }
        MoveCheck::Unsigned if bits < 64 => (word >> 29 & 3, unsigned(value, bits)?),
        MoveCheck::Unsigned | MoveCheck::None => (word >> 29 & 3, value),
    };
    let immediate = (value >> shift) as u32 & 0xffff;
    edit(block, offset, MOVE_WIDE, 0x601f_ffe0, operation << 29 | immediate << 5)
}

/// Whether an `adrp` at `place` reaches the page of `target + addend`.
#[must_use]
pub(crate) fn page_reaches(operands: Operands) -> bool {
    signed(operands.pages(), 33).is_ok()
}

/// Turns the `ldr xt, [xn, #lo12]` of a GOT load into `add xt, xn, #lo12`: the address itself
/// instead of the entry that holds it. Its `adrp` has to be pointed at the address as well.
///
/// # Errors
///
/// When the instruction is another one; nothing is changed then.
pub(crate) fn relax_got_load(block: &mut [u8], offset: u32) -> Result<(), FixupError> {
    let bytes = field(block, offset)?;
    let word = u32::from_le_bytes(*bytes);
    expect(word, LDR_UNSIGNED_OFFSET)?;
    *bytes = (ADD_64 | word & 0x003f_ffff).to_le_bytes();
    Ok(())
}

/// Turns an `adrp xd` or `adr xd` at `offset` into `movz xd, #0`. False if the instruction is
/// another one.
pub(crate) fn zero_address(block: &mut [u8], offset: u32) -> bool {
    let Ok(bytes) = field(block, offset) else { return false };
    let word = u32::from_le_bytes(*bytes);
    let is_address = [ADR, ADRP].into_iter().any(|shape| expect(word, shape).is_ok());
    if is_address {
        *bytes = (0xd280_0000 | word & 0x1f).to_le_bytes();
    }
    is_address
}

/// Replaces the immediate of an instruction of the given shape.
fn edit(block: &mut [u8], offset: u32, shape: Shape, mask: u32, bits: u32) -> Result<(), FixupError> {
    let bytes = field(block, offset)?;
    let word = u32::from_le_bytes(*bytes);
    expect(word, shape)?;
    *bytes = (word & !mask | bits & mask).to_le_bytes();
    Ok(())
}

fn shape_is(block: &mut [u8], offset: u32, (mask, value): Shape) -> Result<bool, FixupError> {
    Ok(u32::from_le_bytes(*field(block, offset)?) & mask == value)
}

fn unsigned(value: i64, bits: u32) -> Result<i64, FixupError> {
    if (0..1i64 << bits).contains(&value) { Ok(value) } else { Err(FixupError::OutOfRange { value, bits }) }
}

fn expect(word: u32, (mask, value): Shape) -> Result<(), FixupError> {
    if word & mask == value { Ok(()) } else { Err(FixupError::Instruction { word }) }
}

fn multiple_of(value: i64, align: u32) -> Result<i64, FixupError> {
    if value % i64::from(align) == 0 { Ok(value) } else { Err(FixupError::Misaligned { value, align }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patched(kind: EdgeKind, word: u32, place: u64, target: u64) -> Result<u32, FixupError> {
        let mut block = word.to_le_bytes();
        apply(kind, &mut block, 0, Operands { place, target, addend: 0 })?;
        Ok(u32::from_le_bytes(block))
    }

    #[test]
    fn a_branch_reaches_128_mib_either_way_and_replaces_its_old_target() {
        let place = 0x1000_0000_0000;
        let bl = 0x9400_0123;
        assert_eq!(patched(EdgeKind::Branch26, bl, place, place + 8), Ok(0x9400_0002));
        assert_eq!(patched(EdgeKind::Branch26, bl, place, place - (1 << 27)), Ok(0x9600_0000));
        assert_eq!(patched(EdgeKind::Branch26, bl, place, place + (1 << 27) - 4), Ok(0x95ff_ffff));
        assert!(matches!(
            patched(EdgeKind::Branch26, bl, place, place + (1 << 27)),
            Err(FixupError::OutOfRange { bits: 28, .. })
        ));
        assert!(matches!(
            patched(EdgeKind::Branch26, bl, place, place + 2),
            Err(FixupError::Misaligned { align: 4, .. })
        ));
    }

    #[test]
    fn an_adrp_counts_pages_and_its_add_the_rest() {
        let adrp_x3 = 0x9000_0003;
        let place = 0x5000_0000_0ffc;
        let target = 0x5000_1234_5678;
        let word = patched(EdgeKind::Page21, adrp_x3, place, target).unwrap();
        let pages = i64::from((word >> 29 & 3) | (word >> 5 & 0x7_ffff) << 2);
        assert_eq!(pages, 0x12345);
        assert_eq!(word & 0x9f00_001f, adrp_x3);
        assert_eq!(patched(EdgeKind::PageOffset12, 0x9100_0063, place, target), Ok(0x9100_0063 | 0x678 << 10));
        assert!(patched(EdgeKind::Page21, adrp_x3, place, place + (1 << 32)).is_err());
        let down = patched(EdgeKind::Page21, adrp_x3, place, place - (1 << 32)).unwrap();
        assert_eq!(down, 0x9080_0003);
    }

    #[test]
    fn a_load_scales_its_offset_and_can_become_an_add() {
        let ldr_x3 = 0xf940_0063;
        assert_eq!(patched(EdgeKind::GotPageOffset12, ldr_x3, 0, 0x678), Ok(ldr_x3 | 0x678 >> 3 << 10));
        assert!(matches!(
            patched(EdgeKind::GotPageOffset12, ldr_x3, 0, 0x67c),
            Err(FixupError::Misaligned { align: 8, .. })
        ));
        let mut block = ldr_x3.to_le_bytes();
        relax_got_load(&mut block, 0).unwrap();
        assert_eq!(u32::from_le_bytes(block), 0x9100_0063);
        assert!(relax_got_load(&mut block, 0).is_err());
    }

    #[test]
    fn a_relocation_on_another_instruction_is_refused() {
        assert_eq!(patched(EdgeKind::Branch26, 0xd503_201f, 0, 0), Err(FixupError::Instruction { word: 0xd503_201f }));
    }
}
