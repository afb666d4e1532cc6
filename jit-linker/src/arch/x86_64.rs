//! Edge kinds of x86-64, after the System V psABI's table of relocations (S, A, P, G as there).

use super::{FixupError, Operands, Origin, Referent, either, field, reduce, signed};

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
    /// S + A, 16 bits, extended either way.
    Pointer16,
    /// S + A, 8 bits, extended either way.
    Pointer8,
    /// S + A − P, 64 bits.
    Delta64,
    /// S + A − P, 32 bits.
    Delta32,
    /// S + A − P, 16 bits.
    Delta16,
    /// S + A − P, 8 bits.
    Delta8,
    /// P + A − S, 32 bits: how far back the target is.
    NegDelta32,
    /// As [`Delta32`](Self::Delta32), in a call or jump: may go through a stub.
    Branch32,
    /// L + A − P, 32 bits, in an instruction or in data: may go through a stub.
    Plt32,
    /// G + A − P, 32 bits, where G is the GOT entry of S. A `mov` from the entry becomes a `lea`
    /// of S where S is near, a `call` or `jmp` through it a direct one.
    GotLoad32,
    /// As [`GotLoad32`](Self::GotLoad32), in an instruction with a REX prefix. An S below 2 GiB can be its operand
    /// (psABI, "Optimize GOTPCRELX relocations").
    GotOperand32,
    /// G + A − P, 32 bits, whatever is done with it.
    GotDelta32,
    /// G + A − P, 64 bits.
    GotDelta64,
    /// G + A − GOT, 32 bits.
    GotEntryOffset32,
    /// G + A − GOT, 64 bits.
    GotEntryOffset64,
    /// GOT + A − P, 32 bits.
    GotBaseDelta32,
    /// GOT + A − P, 64 bits.
    GotBaseDelta64,
    /// S + A − GOT, 64 bits.
    GotOffset64,
    /// L + A − GOT, 64 bits.
    PltOffset64,
    /// Z + A, 32 bits, zero-extended.
    Size32,
    /// Z + A, 64 bits.
    Size64,
    /// The distance to the pair that `__tls_get_addr` takes for S, plus A, 32 bits.
    TlsPairDelta32,
    /// The distance to the pair for this module's storage, plus A, 32 bits.
    TlsModuleDelta32,
    /// The distance to the entry that holds S − TP, plus A, 32 bits.
    TlsEntryDelta32,
    /// The distance to the TLS descriptor of S, plus A, 32 bits.
    TlsDescriptorDelta32,
    /// S + A − TP, 32 bits.
    TlsOffset32,
    /// S + A − TP, 64 bits.
    TlsOffset64,
    /// The offset of S + A in its module's storage, 32 bits.
    TlsModuleOffset32,
    /// The offset of S + A in its module's storage, 64 bits.
    TlsModuleOffset64,
    /// P + A − S, 64 bits: how far back the target is.
    NegDelta64,
    /// The field less S + A − P, 32 bits: turns the distance to one symbol into that between two.
    Subtract32,
    /// The field less S + A − P, 64 bits.
    Subtract64,
    /// The number of the graph's own thread-local storage, plus A, 64 bits.
    TlsModuleNumber64,
}

/// How a value is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Field {
    Bits64,
    Unsigned32,
    Signed32,
    Signed16,
    Signed8,
    Either16,
    Either8,
    Less32,
    Less64,
}

impl EdgeKind {
    /// The kind's formula: what stands for the target, from where it is measured, and the field.
    #[inline]
    pub(crate) const fn formula(self) -> (Referent, Origin, Field) {
        use Field::{Bits64, Either8, Either16, Less32, Less64, Signed8, Signed16, Signed32, Unsigned32};
        use Origin::{FromTarget, GotBase, Place, Zero};
        match self {
            Self::Pointer64 => (Referent::Symbol, Zero, Bits64),
            Self::Pointer32 => (Referent::Symbol, Zero, Unsigned32),
            Self::Pointer32Signed => (Referent::Symbol, Zero, Signed32),
            Self::Pointer16 => (Referent::Symbol, Zero, Either16),
            Self::Pointer8 => (Referent::Symbol, Zero, Either8),
            Self::Delta64 => (Referent::Symbol, Place, Bits64),
            Self::Delta32 => (Referent::Symbol, Place, Signed32),
            Self::Delta16 => (Referent::Symbol, Place, Signed16),
            Self::Delta8 => (Referent::Symbol, Place, Signed8),
            Self::NegDelta32 => (Referent::Symbol, FromTarget, Signed32),
            Self::Branch32 | Self::Plt32 => (Referent::Branch, Place, Signed32),
            Self::GotLoad32 | Self::GotOperand32 | Self::GotDelta32 => (Referent::GotEntry, Place, Signed32),
            Self::GotDelta64 => (Referent::GotEntry, Place, Bits64),
            Self::GotEntryOffset32 => (Referent::GotEntry, GotBase, Signed32),
            Self::GotEntryOffset64 => (Referent::GotEntry, GotBase, Bits64),
            Self::GotBaseDelta32 => (Referent::GotBase, Place, Signed32),
            Self::GotBaseDelta64 => (Referent::GotBase, Place, Bits64),
            Self::GotOffset64 => (Referent::Symbol, GotBase, Bits64),
            Self::PltOffset64 => (Referent::Branch, GotBase, Bits64),
            Self::Size32 => (Referent::Size, Zero, Unsigned32),
            Self::Size64 => (Referent::Size, Zero, Bits64),
            Self::TlsPairDelta32 => (Referent::TlsPair, Place, Signed32),
            Self::TlsModuleDelta32 => (Referent::TlsModule, Place, Signed32),
            Self::TlsEntryDelta32 => (Referent::TlsEntry, Place, Signed32),
            Self::TlsDescriptorDelta32 => (Referent::TlsDescriptor, Place, Signed32),
            Self::TlsOffset32 => (Referent::TlsOffset, Zero, Signed32),
            Self::TlsOffset64 => (Referent::TlsOffset, Zero, Bits64),
            Self::TlsModuleOffset32 => (Referent::TlsModuleOffset, Zero, Signed32),
            Self::TlsModuleOffset64 => (Referent::TlsModuleOffset, Zero, Bits64),
            Self::NegDelta64 => (Referent::Symbol, FromTarget, Bits64),
            Self::Subtract32 => (Referent::Symbol, Place, Less32),
            Self::Subtract64 => (Referent::Symbol, Place, Less64),
            Self::TlsModuleNumber64 => (Referent::TlsModuleNumber, Zero, Bits64),
        }
    }
}

/// Applies an edge's formula. The operands are what the kind's formula names, so that for
/// [`EdgeKind::GotLoad32`] the target is the entry.
///
/// # Errors
///
/// When the field lies outside the block, or the value does not fit it.
#[inline(always)]
pub(crate) fn apply(kind: EdgeKind, block: &mut [u8], offset: u32, operands: Operands) -> Result<(), FixupError> {
    let (_, origin, width) = kind.formula();
    let value = operands.measure(origin);
    match width {
        Field::Bits64 => *field(block, offset)? = value.to_le_bytes(),
        Field::Unsigned32 => {
            let value = u32::try_from(value).map_err(|_| FixupError::OutOfRange { value, bits: 32 })?;
            *field(block, offset)? = value.to_le_bytes();
        }
        Field::Signed32 => *field(block, offset)? = (signed(value, 32)? as i32).to_le_bytes(),
        Field::Signed16 => *field(block, offset)? = (signed(value, 16)? as i16).to_le_bytes(),
        Field::Signed8 => *field(block, offset)? = (signed(value, 8)? as i8).to_le_bytes(),
        Field::Either16 => *field(block, offset)? = (either(value, 16)? as i16).to_le_bytes(),
        Field::Either8 => *field(block, offset)? = (either(value, 8)? as i8).to_le_bytes(),
        Field::Less32 => reduce::<4>(block, offset, value)?,
        Field::Less64 => reduce::<8>(block, offset, value)?,
    }
    Ok(())
}

/// Whether the field at `offset` is the operand of a `call`, `jmp` or conditional jump.
/// Cranelift 0.135 relocates a `lea` of a function's address like a call; only a branch may go
/// to a stub or a slot.
#[must_use]
pub(crate) fn is_branch(block: &[u8], offset: u32) -> bool {
    let opcode = |back: usize| (offset as usize).checked_sub(back).and_then(|at| block.get(at)).copied();
    match opcode(1) {
        Some(0xe8 | 0xe9) => true,
        Some(0x80..=0x8f) => opcode(2) == Some(0x0f),
        _ => false,
    }
}

/// Turns `lea r64, [rip + disp32]`, whose displacement is at `offset`, into `mov r64, 0`. False if
/// the instruction is another one.
pub(crate) fn zero_address(block: &mut [u8], offset: u32) -> bool {
    let Some(start) = (offset as usize).checked_sub(3) else { return false };
    let Some([rex, opcode, modrm, immediate @ ..]) = block.get_mut(start..start + 7) else { return false };
    if !matches!((*rex, *opcode, *modrm & 0xc7), (0x48 | 0x4c, 0x8d, 0x05)) {
        return false;
    }
    // The register goes from ModRM.reg and REX.R to ModRM.rm and REX.B.
    *rex = 0x48 | (*rex & 4) >> 2;
    *opcode = 0xc7;
    *modrm = 0xc0 | (*modrm >> 3 & 7);
    immediate.fill(0);
    true
}

/// How an instruction that goes through a GOT entry can do without it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GotUse {
    /// `mov reg, [rip + entry]`, which can be `lea reg, [rip + target]`.
    Load,
    /// `call [rip + entry]`, which can be `addr32 call target`.
    Call,
    /// `jmp [rip + entry]`, which can be `jmp target; nop`.
    Jump,
}

/// The prefix of 64-bit operands.
const REX_W: u8 = 0x48;

/// What the field at `offset` is the displacement of, if that is an instruction which
/// [`relax_got_use`] can rewrite. `addend` is -4 where the displacement ends the instruction and
/// the entry itself is meant.
pub(crate) fn got_use(block: &[u8], offset: u32, addend: i64) -> Option<GotUse> {
    let start = (offset as usize).checked_sub(2)?;
    // Opcode; ModRM with mod = 0 and rm = 5 (RIP-relative). A prefix before them stays as it is.
    match block.get(start..start + 2)? {
        _ if addend != -4 => None,
        &[0x8b, modrm] if modrm & 0xc7 == 0x05 => Some(GotUse::Load),
        // The padded call of `__tls_get_addr`: with another prefix between them, the operand-size one is not overruled by
        // REX.W any more, and AMD's processors take the displacement for one of 16 bits.
        [0xff, 0x15] if start > 0 && block[start - 1] == REX_W => None,
        [0xff, 0x15] => Some(GotUse::Call),
        [0xff, 0x25] => Some(GotUse::Jump),
        _ => None,
    }
}

/// Rewrites an instruction that goes through a GOT entry to one that takes the target itself,
/// and returns where its displacement is now: a [`EdgeKind::Delta32`] with the addend -4.
///
/// # Errors
///
/// When the field lies outside the block.
pub(crate) fn relax_got_use(block: &mut [u8], offset: u32, usage: GotUse) -> Result<u32, FixupError> {
    let size = block.len();
    let start = offset.checked_sub(2).ok_or(FixupError::OutsideBlock { size })?;
    let bytes: &mut [u8; 6] = field(block, start)?;
    match usage {
        GotUse::Load => bytes[0] = 0x8d,
        GotUse::Call => bytes[..2].copy_from_slice(&[0x67, 0xe8]),
        GotUse::Jump => {
            (bytes[0], bytes[5]) = (0xe9, 0x90);
            return Ok(offset - 1);
        }
    }
    Ok(offset)
}

/// Rewrites an instruction with 64-bit operands, one of which is the GOT entry that the field at `offset` leads to, so that
/// the address itself is that operand, as an immediate of 31 bits: a `mov`, `test`, or arithmetic. False if the instruction
/// is another one or the address too large.
pub(crate) fn take_operand(block: &mut [u8], offset: u32, addend: i64, address: u64) -> bool {
    let Some(start) = (offset as usize).checked_sub(3).filter(|_| addend == -4) else { return false };
    let Some([rex, opcode, modrm, immediate @ ..]) = block.get_mut(start..start + 7) else { return false };
    // REX.W; ModRM with mod = 0 and rm = 5 (RIP-relative).
    if *rex & 0xf8 != REX_W || *modrm & 0xc7 != 0x05 || address > i32::MAX as u64 {
        return false;
    }
    let (with_immediate, operation) = match *opcode {
        0x8b => (0xc7, 0),
        0x85 => (0xf7, 0),
        // add, or, adc, sbb, and, sub, xor, cmp: the number of the operation is in the opcode.
        arithmetic if arithmetic & 0xc7 == 0x03 => (0x81, arithmetic & 0x38),
        _ => return false,
    };
    // The register goes from ModRM.reg and REX.R to ModRM.rm and REX.B.
    *rex = REX_W | (*rex & 4) >> 2;
    *opcode = with_immediate;
    *modrm = 0xc0 | operation | (*modrm >> 3 & 7);
    immediate.copy_from_slice(&(address as u32).to_le_bytes());
    true
}

/// Whether a 32-bit displacement at `place` reaches `target + addend`.
#[must_use]
pub(crate) fn reaches(operands: Operands) -> bool {
    signed(operands.relative(), 32).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operands(place: u64, target: u64, addend: i64) -> Operands {
        Operands { place, target, addend }
    }

    #[test]
    fn a_call_with_a_prefix_stays_as_it_is() {
        let padded = [0x66, REX_W, 0xff, 0x15, 0, 0, 0, 0];
        assert_eq!(got_use(&padded, 4, -4), None);
        assert_eq!(got_use(&padded[2..], 2, -4), Some(GotUse::Call));
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

    fn relaxed<const N: usize>(mut code: [u8; N], offset: u32) -> Option<([u8; N], u32)> {
        let usage = got_use(&code, offset, -4)?;
        let field = relax_got_use(&mut code, offset, usage).unwrap();
        Some((code, field))
    }

    #[test]
    fn what_goes_through_a_got_entry_is_told_and_rewritten() {
        // mov r10, [rip + 0]; mov eax, [rip + 0]; call [rip + 0]; jmp [rip + 0]
        assert_eq!(relaxed([0x4c, 0x8b, 0x15, 0, 0, 0, 0], 3), Some(([0x4c, 0x8d, 0x15, 0, 0, 0, 0], 3)));
        assert_eq!(relaxed([0x8b, 0x05, 0, 0, 0, 0], 2), Some(([0x8d, 0x05, 0, 0, 0, 0], 2)));
        assert_eq!(relaxed([0xff, 0x15, 0, 0, 0, 0], 2), Some(([0x67, 0xe8, 0, 0, 0, 0], 2)));
        assert_eq!(relaxed([0xff, 0x25, 0, 0, 0, 0], 2), Some(([0xe9, 0x25, 0, 0, 0, 0x90], 1)));
        // add rax, [rip + 0]; mov rax, [rax + 0]; a field at the block's start; an addend.
        assert_eq!(relaxed([0x48, 0x03, 0x05, 0, 0, 0, 0], 3), None);
        assert_eq!(relaxed([0x48, 0x8b, 0x80, 0, 0, 0, 0], 3), None);
        assert_eq!(relaxed([0, 0, 0, 0], 0), None);
        assert_eq!(got_use(&[0x48, 0x8b, 0x05, 0, 0, 0, 0], 3, 4), None);
    }

    #[test]
    fn elf_13_a_small_address_becomes_the_operand() {
        let taken = |code: [u8; 7], address| {
            let mut block = code;
            take_operand(&mut block, 3, -4, address).then_some(block)
        };
        let address = 0x1234_5678;
        // mov r10, [rip + 0]; test [rip + 0], rdx; cmp rcx, [rip + 0]; xor r15, [rip + 0]
        let [a, b, c, d] = [0x78, 0x56, 0x34, 0x12];
        assert_eq!(taken([0x4c, 0x8b, 0x15, 0, 0, 0, 0], address), Some([0x49, 0xc7, 0xc2, a, b, c, d]));
        assert_eq!(taken([0x48, 0x85, 0x15, 0, 0, 0, 0], address), Some([0x48, 0xf7, 0xc2, a, b, c, d]));
        assert_eq!(taken([0x48, 0x3b, 0x0d, 0, 0, 0, 0], address), Some([0x48, 0x81, 0xf9, a, b, c, d]));
        assert_eq!(taken([0x4c, 0x33, 0x3d, 0, 0, 0, 0], address), Some([0x49, 0x81, 0xf7, a, b, c, d]));
        for (number, opcode) in [0x03, 0x0b, 0x13, 0x1b, 0x23, 0x2b, 0x33, 0x3b].into_iter().enumerate() {
            let taken = taken([0x48, opcode, 0x05, 0, 0, 0, 0], address).unwrap();
            assert_eq!(taken[1..3], [0x81, 0xc0 | (number as u8) << 3]);
        }
        // Up to the last address of 31 bits: the operand is sign-extended.
        let load = [0x48, 0x8b, 0x05, 0, 0, 0, 0];
        assert_eq!(taken(load, 0x7fff_ffff), Some([0x48, 0xc7, 0xc0, 0xff, 0xff, 0xff, 0x7f]));
        assert_eq!(taken(load, 0x8000_0000), None);
        // 32-bit operands; lea; a register's operand; an addend; a field at the block's start.
        assert_eq!(taken([0x40, 0x8b, 0x05, 0, 0, 0, 0], address), None);
        assert_eq!(taken([0x48, 0x8d, 0x05, 0, 0, 0, 0], address), None);
        assert_eq!(taken([0x48, 0x8b, 0x80, 0, 0, 0, 0], address), None);
        assert!(!take_operand(&mut load.clone(), 3, 0, address));
        assert!(!take_operand(&mut [0x8b, 0x05, 0, 0, 0, 0], 2, -4, address));
    }

    #[test]
    fn a_branch_is_told_from_an_address() {
        assert!(is_branch(&[0xe8, 0, 0, 0, 0], 1));
        assert!(is_branch(&[0xe9, 0, 0, 0, 0], 1));
        assert!(!is_branch(&[0x48, 0x8d, 0x05, 0, 0, 0, 0], 3));
        assert!(!is_branch(&[0, 0, 0, 0], 0));
    }
}
