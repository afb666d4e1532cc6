//! What differs by architecture: edge kinds with their formula, range and encoding; the shapes of
//! stubs, trampolines and counted entries; cache maintenance.

pub mod aarch64;
mod at_exit;
pub mod cache;
pub mod counted;
mod ifunc;
mod jump;
mod reach;
pub mod stub;
#[cfg(target_arch = "x86_64")]
mod vector_state;
pub mod x86_64;

use std::fmt;

pub use at_exit::add_at_exit;
pub use jump::add_jump;
pub use reach::Reach;
#[cfg(target_arch = "x86_64")]
pub use vector_state::VectorState;

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

/// What stands for an edge's target in its formula.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub(crate) enum Referent {
    /// S: the symbol's address.
    Symbol,
    /// L: the symbol's address, or that of a stub that jumps there.
    Branch,
    /// G: the address of the GOT entry that holds the symbol's address.
    GotEntry,
    /// GOT: the base of the graph's GOT, whatever the symbol.
    GotBase,
    /// Z: the symbol's size.
    Size,
    /// The address of the pair of GOT entries that `__tls_get_addr` takes: module and offset.
    TlsPair,
    /// The address of such a pair for the graph's own module and the offset 0.
    TlsModule,
    /// The address of the GOT entry that holds the variable's offset from the thread pointer.
    TlsEntry,
    /// The address of the variable's TLS descriptor: a resolver and its argument.
    TlsDescriptor,
    /// The variable's offset from the thread pointer (S − TP).
    TlsOffset,
    /// The variable's offset in its module's storage.
    TlsModuleOffset,
    /// The number of the graph's own module, whatever the symbol.
    TlsModuleNumber,
}

impl Referent {
    /// Whether it is the address of words in the graph's GOT that are the symbol's own.
    pub(crate) const fn is_got_entry(self) -> bool {
        matches!(self, Self::GotEntry | Self::TlsPair | Self::TlsModule | Self::TlsEntry | Self::TlsDescriptor)
    }
}

/// What a formula measures from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub(crate) enum Origin {
    /// Address 0.
    Zero,
    /// P: the field's address.
    Place,
    /// P, in the other direction: P − S rather than S − P.
    FromTarget,
    /// Page(P): both sides are rounded down to 4 KiB.
    Page,
    /// GOT: the base of the graph's GOT.
    GotBase,
    /// Page(GOT), on the far side only.
    GotPage,
}

/// What a fixup computes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Operands {
    /// P: the address of the field, or of the other [`Origin`] that the kind has.
    pub place: u64,
    /// S: the address of the target, or of the other [`Referent`] that the kind has.
    pub target: u64,
    /// A: the constant that is added to it.
    pub addend: i64,
}

impl Operands {
    /// S + A.
    #[must_use]
    pub(crate) const fn absolute(self) -> u64 {
        self.target.wrapping_add_signed(self.addend)
    }

    /// S + A − P.
    #[must_use]
    pub(crate) const fn relative(self) -> i64 {
        self.absolute().wrapping_sub(self.place).cast_signed()
    }

    /// Page(S + A) − Page(P).
    pub(crate) const fn pages(self) -> i64 {
        (self.absolute() & !0xfff).wrapping_sub(self.place & !0xfff).cast_signed()
    }

    #[inline]
    fn measure(self, origin: Origin) -> i64 {
        match origin {
            Origin::Zero => self.absolute().cast_signed(),
            Origin::Place | Origin::GotBase => self.relative(),
            Origin::FromTarget => self.place.wrapping_add_signed(self.addend).wrapping_sub(self.target).cast_signed(),
            Origin::Page => self.pages(),
            Origin::GotPage => self.absolute().wrapping_sub(self.place & !0xfff).cast_signed(),
        }
    }
}

impl EdgeKind {
    /// What stands for the target in the kind's formula.
    #[must_use]
    #[inline]
    pub(crate) const fn referent(self) -> Referent {
        match self {
            Self::X86_64(kind) => kind.formula().0,
            Self::Aarch64(kind) => kind.formula().0,
        }
    }

    /// What the kind's formula measures from.
    #[must_use]
    #[inline]
    pub(crate) const fn origin(self) -> Origin {
        match self {
            Self::X86_64(kind) => kind.formula().1,
            Self::Aarch64(kind) => kind.formula().1,
        }
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
    /// The target lies in a section that was left out of the program.
    #[error("what it refers to was left out of the program")]
    LeftOut,
    /// Only a thread-local variable has a place in a thread's storage.
    #[error("the symbol is not a thread-local variable")]
    NotThreadLocal,
    /// Nobody said where the thread-local variable is.
    #[error("the thread-local variable has no storage")]
    NoThreadLocalStorage,
    /// The code was compiled for an executable, whose variables are at the same place in every thread.
    #[error("the thread-local variable is not in the static block; compile with -fPIC")]
    NotInStaticBlock,
    /// The code takes variables of several objects for one module's, and their storages are apart.
    #[error(
        "local-dynamic code reaches the thread-local variables of another object only if both objects' are in the \
         static block; compile with -ftls-model=global-dynamic"
    )]
    NotInOneModule,
    /// The edge kind belongs to another architecture than the graph.
    #[error("the relocation is not one of {0}")]
    WrongArchitecture(Architecture),
}

/// Applies an edge's formula to the field at `offset` of `block`.
///
/// # Errors
///
/// When the field lies outside the block, or the value does not fit it.
#[inline]
pub(crate) fn apply(kind: EdgeKind, block: &mut [u8], offset: u32, operands: Operands) -> Result<(), FixupError> {
    match kind {
        EdgeKind::X86_64(kind) => x86_64::apply(kind, block, offset, operands),
        EdgeKind::Aarch64(kind) => aarch64::apply(kind, block, offset, operands),
    }
}

/// As [`apply`], where the formula has nothing but addresses of the symbol and of the field, and the value fits. Says
/// whether it is applied.
#[inline]
pub(crate) fn apply_direct(kind: EdgeKind, block: &mut [u8], offset: u32, operands: Operands) -> bool {
    // Most are the distance from an instruction to what it refers to.
    if let EdgeKind::X86_64(x86_64::EdgeKind::Delta32 | x86_64::EdgeKind::Branch32 | x86_64::EdgeKind::Plt32) = kind {
        return x86_64::apply(x86_64::EdgeKind::Delta32, block, offset, operands).is_ok();
    }
    let (referent, origin) = (kind.referent(), kind.origin());
    matches!(referent, Referent::Symbol | Referent::Branch)
        && !matches!(origin, Origin::GotBase | Origin::GotPage)
        && apply(kind, block, offset, operands).is_ok()
}

/// The `N` bytes of the field at `offset`.
#[inline]
fn field<const N: usize>(block: &mut [u8], offset: u32) -> Result<&mut [u8; N], FixupError> {
    let size = block.len();
    block.get_mut(offset as usize..).and_then(|rest| rest.first_chunk_mut()).ok_or(FixupError::OutsideBlock { size })
}

/// Takes `value` from the signed number in a field of `N` bytes.
fn reduce<const N: usize>(block: &mut [u8], offset: u32, value: i64) -> Result<(), FixupError> {
    let bytes = field::<N>(block, offset)?;
    let mut wide = [if bytes[N - 1] < 0x80 { 0 } else { 0xff }; 8];
    wide[..N].copy_from_slice(bytes);
    let difference = i64::from_le_bytes(wide).wrapping_sub(value);
    let difference = if N < 8 { signed(difference, 8 * N as u32)? } else { difference };
    bytes.copy_from_slice(&difference.to_le_bytes()[..N]);
    Ok(())
}

/// `value`, if it fits `bits` as a signed or as an unsigned number.
fn either(value: i64, bits: u32) -> Result<i64, FixupError> {
    if (-(1i64 << (bits - 1))..1i64 << bits).contains(&value) {
        Ok(value)
    } else {
        Err(FixupError::OutOfRange { value, bits })
    }
}

/// `value`, if it fits a signed field of `bits`.
#[inline]
fn signed(value: i64, bits: u32) -> Result<i64, FixupError> {
    let limit = 1i64 << (bits - 1);
    if (-limit..limit).contains(&value) { Ok(value) } else { Err(FixupError::OutOfRange { value, bits }) }
}
