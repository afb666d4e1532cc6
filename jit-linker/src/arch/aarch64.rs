//! Edge kinds of AArch64, after the ELF psABI's table of relocations (S, A, P, G as there; Page(x)
//! is x with its low 12 bits cleared).
//!
//! A fixup replaces the instruction's immediate, whatever it was, so it can be applied again.

use super::{FixupError, Operands, field, signed};

/// What is stored at an edge's offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum EdgeKind {
    /// S + A, 64 bits.
    Pointer64,
    /// S + A, 32 bits: −2^31 to 2^32.
    Pointer32,
    /// S + A − P, 64 bits.
    Delta64,
    /// S + A − P, 32 bits.
    Delta32,
    /// S + A − P in a `b` or `bl`, ±128 MiB: may go through a stub.
    Branch26,
    /// Page(S + A) − Page(P) in an `adrp`, ±4 GiB.
    Page21,
    /// The low 12 bits of S + A in an `add`.
    PageOffset12,
    /// Page(G) − Page(P) in an `adrp`, where G is the GOT entry of S + A.
    GotPage21,
    /// The low 12 bits of G in a 64-bit `ldr`. The pair becomes `adrp` and `add` of S + A where
    /// that is near.
    GotPageOffset12,
    /// The low 12 bits of S + A in a 64-bit `ldr`.
    LoadPageOffset12,
}

const ADRP: (u32, u32) = (0x9f00_0000, 0x9000_0000);
const ADD_IMMEDIATE: (u32, u32) = (0xff80_0000, 0x9100_0000);
const LDR_UNSIGNED_OFFSET: (u32, u32) = (0xffc0_0000, 0xf940_0000);
const BRANCH: (u32, u32) = (0x7c00_0000, 0x1400_0000);

/// Applies an edge's formula. For the GOT kinds the target is the entry.
///
/// # Errors
///
/// When the field lies outside the block, is not the instruction the kind is for, or the value
/// does not fit it.
pub fn apply(kind: EdgeKind, block: &mut [u8], offset: u32, operands: Operands) -> Result<(), FixupError> {
    match kind {
        EdgeKind::Pointer64 => *field(block, offset)? = operands.absolute().to_le_bytes(),
        EdgeKind::Delta64 => *field(block, offset)? = operands.relative().to_le_bytes(),
        EdgeKind::Pointer32 => {
            let value = operands.absolute().cast_signed();
            if !(-(1i64 << 31)..1i64 << 32).contains(&value) {
                return Err(FixupError::OutOfRange { value, bits: 32 });
            }
            *field(block, offset)? = (value as u32).to_le_bytes();
        }
        EdgeKind::Delta32 => {
            let value = signed(operands.relative(), 32)? as i32;
            *field(block, offset)? = value.to_le_bytes();
        }
        EdgeKind::Branch26 => {
            let value = signed(multiple_of(operands.relative(), 4)?, 28)?;
            edit(block, offset, BRANCH, 0x03ff_ffff, (value >> 2) as u32)?;
        }
        EdgeKind::Page21 | EdgeKind::GotPage21 => {
            let pages = signed(page_delta(operands), 33)? >> 12;
            let immediate = ((pages as u32 & 3) << 29) | ((pages as u32 >> 2 & 0x7_ffff) << 5);
            edit(block, offset, ADRP, 0x60ff_ffe0, immediate)?;
        }
        EdgeKind::PageOffset12 => {
            let low = operands.absolute() as u32 & 0xfff;
            edit(block, offset, ADD_IMMEDIATE, 0x003f_fc00, low << 10)?;
        }
        EdgeKind::GotPageOffset12 | EdgeKind::LoadPageOffset12 => {
            let low = multiple_of((operands.absolute() & 0xfff).cast_signed(), 8)?;
            edit(block, offset, LDR_UNSIGNED_OFFSET, 0x003f_fc00, (low as u32 >> 3) << 10)?;
        }
    }
    Ok(())
}

/// Page(S + A) − Page(P).
fn page_delta(operands: Operands) -> i64 {
    (operands.absolute() & !0xfff).wrapping_sub(operands.place & !0xfff).cast_signed()
}

/// Whether an `adrp` at `place` reaches the page of `target + addend`.
#[must_use]
pub fn page_reaches(operands: Operands) -> bool {
    signed(page_delta(operands), 33).is_ok()
}

/// Whether a branch at `place` reaches `target + addend`.
#[must_use]
pub fn branch_reaches(operands: Operands) -> bool {
    signed(operands.relative(), 28).is_ok()
}

/// Turns the `ldr xt, [xn, #lo12]` of a GOT load into `add xt, xn, #lo12`: the address itself
/// instead of the entry that holds it. Its `adrp` has to be pointed at the address as well.
///
/// # Errors
///
/// When the instruction is another one; nothing is changed then.
pub fn relax_got_load(block: &mut [u8], offset: u32) -> Result<(), FixupError> {
    let bytes = field(block, offset)?;
    let word = u32::from_le_bytes(*bytes);
    expect(word, LDR_UNSIGNED_OFFSET)?;
    *bytes = (ADD_IMMEDIATE.1 | word & 0x003f_ffff).to_le_bytes();
    Ok(())
}

/// Replaces the immediate of an instruction of the given shape.
fn edit(block: &mut [u8], offset: u32, shape: (u32, u32), mask: u32, bits: u32) -> Result<(), FixupError> {
    let bytes = field(block, offset)?;
    let word = u32::from_le_bytes(*bytes);
    expect(word, shape)?;
    *bytes = (word & !mask | bits & mask).to_le_bytes();
    Ok(())
}

fn expect(word: u32, (mask, value): (u32, u32)) -> Result<(), FixupError> {
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
