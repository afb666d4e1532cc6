//! What differs by architecture: edge kinds with their formula, range and encoding; the shapes of
//! stubs and trampolines; cache maintenance.

pub mod aarch64;
pub mod cache;
pub mod stub;
pub mod x86_64;

use std::fmt;

use crate::graph::EdgeKind;

/// An architecture that code can be linked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Architecture {
    /// x86-64, little-endian, 64-bit pointers.
    X86_64,
    /// AArch64, little-endian, 64-bit pointers.
    Aarch64,
}

impl Architecture {
    /// The architecture this process runs on, where it is one of ours.
    #[must_use]
    pub const fn host() -> Option<Self> {
        if cfg!(all(target_arch = "x86_64", target_pointer_width = "64")) {
            Some(Self::X86_64)
        } else if cfg!(all(target_arch = "aarch64", target_endian = "little")) {
            Some(Self::Aarch64)
        } else {
            None
        }
    }
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::X86_64 => "x86-64",
            Self::Aarch64 => "AArch64",
        })
    }
}

/// What a fixup computes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operands {
    /// P: the address of the field.
    pub place: u64,
    /// S: the address of the target.
    pub target: u64,
    /// A: the constant that is added to it.
    pub addend: i64,
}

impl Operands {
    /// S + A.
    #[must_use]
    pub const fn absolute(self) -> u64 {
        self.target.wrapping_add_signed(self.addend)
    }

    /// S + A − P.
    #[must_use]
    pub const fn relative(self) -> i64 {
        self.absolute().wrapping_sub(self.place).cast_signed()
    }
}

/// Why a fixup can't be applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FixupError {
    /// The value does not fit the field.
    #[error("{value:#x} does not fit the {bits}-bit field")]
    OutOfRange {
        /// What was to be stored, before scaling.
        value: i64,
        /// The width of the range, in bits.
        bits: u32,
    },
    /// The value has low bits that the field can't express.
    #[error("{value:#x} is not a multiple of {align}")]
    Misaligned {
        /// What was to be stored.
        value: i64,
        /// What it must be a multiple of.
        align: u32,
    },
    /// The field lies outside its block.
    #[error("the field reaches beyond its block of {size} bytes")]
    OutsideBlock {
        /// The block's size in bytes.
        size: usize,
    },
    /// The bytes at the field are not an instruction that the edge kind can change.
    #[error("the instruction {word:#010x} is not one that this relocation applies to")]
    Instruction {
        /// The instruction, or what stands in its place.
        word: u32,
    },
    /// The edge kind belongs to another architecture than the graph.
    #[error("the relocation is not one of {0}")]
    WrongArchitecture(Architecture),
}

/// Applies an edge's formula to the field at `offset` of `block`.
///
/// # Errors
///
/// When the field lies outside the block, or the value does not fit it.
pub fn apply(kind: EdgeKind, block: &mut [u8], offset: u32, operands: Operands) -> Result<(), FixupError> {
    match kind {
        EdgeKind::X86_64(kind) => x86_64::apply(kind, block, offset, operands),
        EdgeKind::Aarch64(kind) => aarch64::apply(kind, block, offset, operands),
    }
}

/// The `N` bytes of the field at `offset`.
fn field<const N: usize>(block: &mut [u8], offset: u32) -> Result<&mut [u8; N], FixupError> {
    let size = block.len();
    block.get_mut(offset as usize..).and_then(|rest| rest.first_chunk_mut()).ok_or(FixupError::OutsideBlock { size })
}

/// `value`, if it fits a signed field of `bits`.
fn signed(value: i64, bits: u32) -> Result<i64, FixupError> {
    let limit = 1i64 << (bits - 1);
    if (-limit..limit).contains(&value) { Ok(value) } else { Err(FixupError::OutOfRange { value, bits }) }
}
