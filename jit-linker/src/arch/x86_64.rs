//! Edge kinds of x86-64, after the System V psABI's table of relocations (S, A, P, G as there).

use super::{FixupError, Operands, field, signed};

/// What is stored at an edge's offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum EdgeKind {
    /// S + A, 64 bits.
    Pointer64,
    /// S + A, 32 bits, zero-extended.
    Pointer32,
    /// S + A, 32 bits, sign-extended.
    Pointer32Signed,
    /// S + A − P, 64 bits.
    Delta64,
    /// S + A − P, 32 bits.
    Delta32,
    /// As [`Delta32`](Self::Delta32), in a call or jump: may go through a stub.
    Branch32,
    /// G + A − P, 32 bits, where G is the GOT entry of S. A `mov` from the entry becomes a `lea`
    /// of S where S is near.
    GotLoad32,
}

/// Applies an edge's formula. For [`EdgeKind::GotLoad32`] the target is the entry.
///
/// # Errors
///
/// When the field lies outside the block, or the value does not fit it.
pub fn apply(kind: EdgeKind, block: &mut [u8], offset: u32, operands: Operands) -> Result<(), FixupError> {
    match kind {
        EdgeKind::Pointer64 => *field(block, offset)? = operands.absolute().to_le_bytes(),
        EdgeKind::Delta64 => *field(block, offset)? = operands.relative().to_le_bytes(),
        EdgeKind::Pointer32 => {
            let value = operands.absolute();
            let Ok(value) = u32::try_from(value) else {
                return Err(FixupError::OutOfRange { value: value.cast_signed(), bits: 32 });
            };
            *field(block, offset)? = value.to_le_bytes();
        }
        EdgeKind::Pointer32Signed => store32(block, offset, operands.absolute().cast_signed())?,
        EdgeKind::Delta32 | EdgeKind::Branch32 | EdgeKind::GotLoad32 => {
            store32(block, offset, operands.relative())?;
        }
    }
    Ok(())
}

fn store32(block: &mut [u8], offset: u32, value: i64) -> Result<(), FixupError> {
    let value = signed(value, 32)? as i32;
    *field(block, offset)? = value.to_le_bytes();
    Ok(())
}

/// Whether the field at `offset` is the operand of a `call` or `jmp` with a 32-bit displacement.
/// Cranelift 0.135 relocates a `lea` of a function's address like a call; only a branch may go
/// to a stub or a slot.
#[must_use]
pub fn is_branch(block: &[u8], offset: u32) -> bool {
    (offset as usize).checked_sub(1).and_then(|at| block.get(at)).is_some_and(|&opcode| matches!(opcode, 0xe8 | 0xe9))
}

/// Whether the field at `offset` is the operand of `mov r64, [rip + disp32]`, which
/// [`relax_got_load`] can turn into a `lea`.
#[must_use]
pub fn is_got_load(block: &[u8], offset: u32) -> bool {
    let Some(start) = (offset as usize).checked_sub(3) else { return false };
    // REX.W, with REX.R free; opcode; ModRM with mod = 0 and rm = 5 (RIP-relative).
    matches!(block.get(start..start + 3), Some(&[0x48 | 0x4c, 0x8b, modrm]) if modrm & 0xc7 == 0x05)
}

/// Turns `mov r64, [rip + disp32]` into `lea r64, [rip + disp32]`: the address itself instead of
/// the entry that holds it.
///
/// # Errors
///
/// When the instruction is another one; nothing is changed then.
pub fn relax_got_load(block: &mut [u8], offset: u32) -> Result<(), FixupError> {
    if !is_got_load(block, offset) {
        return Err(FixupError::Instruction { word: 0 });
    }
    block[offset as usize - 2] = 0x8d;
    Ok(())
}

/// Whether a 32-bit displacement at `place` reaches `target + addend`.
#[must_use]
pub fn reaches(operands: Operands) -> bool {
    signed(operands.relative(), 32).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operands(place: u64, target: u64, addend: i64) -> Operands {
        Operands { place, target, addend }
    }

    #[test]
    fn each_kind_stores_its_formula_up_to_the_edge_of_its_range() {
        let place = 0x1_0000_0000;
        let max = i64::from(i32::MAX);
        let near = operands(place, place.wrapping_add_signed(max), 0);
        let far = operands(place, place.wrapping_add_signed(max), 1);
        for kind in [EdgeKind::Delta32, EdgeKind::Branch32, EdgeKind::GotLoad32] {
            let mut block = [0xaa; 6];
            apply(kind, &mut block, 1, near).unwrap();
            assert_eq!(block, [0xaa, 0xff, 0xff, 0xff, 0x7f, 0xaa], "{kind:?}");
            let error = apply(kind, &mut block, 1, far).unwrap_err();
            assert_eq!(error, FixupError::OutOfRange { value: max + 1, bits: 32 }, "{kind:?}");
        }
        let mut block = [0; 8];
        apply(EdgeKind::Pointer64, &mut block, 0, operands(0, u64::MAX, -1)).unwrap();
        assert_eq!(u64::from_le_bytes(block), u64::MAX - 1);
        apply(EdgeKind::Delta64, &mut block, 0, operands(0x20, 0x10, 0)).unwrap();
        assert_eq!(i64::from_le_bytes(block), -0x10);
        apply(EdgeKind::Pointer32, &mut block, 0, operands(0, 0xffff_fffe, 1)).unwrap();
        assert_eq!(block[..4], [0xff; 4]);
        assert!(apply(EdgeKind::Pointer32, &mut block, 0, operands(0, 0xffff_ffff, 1)).is_err());
        apply(EdgeKind::Pointer32Signed, &mut block, 0, operands(0, 0xffff_ffff_8000_0000, 0)).unwrap();
        assert_eq!(block[..4], [0, 0, 0, 0x80]);
        assert!(apply(EdgeKind::Pointer32Signed, &mut block, 0, operands(0, 0x8000_0000, 0)).is_err());
    }

    #[test]
    fn a_field_that_leaves_its_block_is_an_error() {
        let mut block = [0; 4];
        for offset in [1, 4, u32::MAX] {
            let error = apply(EdgeKind::Delta32, &mut block, offset, operands(0, 0, 0)).unwrap_err();
            assert_eq!(error, FixupError::OutsideBlock { size: 4 });
        }
    }

    #[test]
    fn only_a_rip_relative_load_is_relaxed() {
        // mov r10, [rip + 0]
        let mut load = [0x4c, 0x8b, 0x15, 0, 0, 0, 0];
        relax_got_load(&mut load, 3).unwrap();
        assert_eq!(load, [0x4c, 0x8d, 0x15, 0, 0, 0, 0]);
        // add rax, [rip + 0]
        let mut add = [0x48, 0x03, 0x05, 0, 0, 0, 0];
        assert!(relax_got_load(&mut add, 3).is_err());
        assert_eq!(add[1], 0x03);
        assert!(!is_got_load(&[0x8b, 0x05, 0, 0, 0, 0], 2));
    }

    #[test]
    fn a_branch_is_told_from_an_address() {
        assert!(is_branch(&[0xe8, 0, 0, 0, 0], 1));
        assert!(is_branch(&[0xe9, 0, 0, 0, 0], 1));
        assert!(!is_branch(&[0x48, 0x8d, 0x05, 0, 0, 0, 0], 3));
        assert!(!is_branch(&[0, 0, 0, 0], 0));
    }
}
