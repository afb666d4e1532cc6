//! The bytes of stubs and trampolines.
//!
//! A *stub* jumps to where a slot, an eight-byte word of data, says. It changes no register that
//! an argument or a result can be in. A *trampoline* is what a slot points to before a function's
//! first call: it says which function it stands for and jumps, through a word that all of them
//! share, to the routine that compiles functions. Both may be called indirectly where the system
//! enforces branch targets (`endbr64`, `bti c`).

use super::Architecture;

/// Bytes of a stub, on every architecture. Stubs are aligned to as much.
pub const STUB_SIZE: usize = 16;

/// Bytes of a trampoline, on every architecture. Trampolines are aligned to 8.
pub const TRAMPOLINE_SIZE: usize = 24;

/// How far into a trampoline the index has been pushed, on the architectures where it is.
#[must_use]
pub const fn trampoline_push(architecture: Architecture) -> Option<usize> {
    match architecture {
        Architecture::X86_64 => Some(9),
        Architecture::Aarch64 => None,
    }
}

/// Why a stub or trampoline can't be encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StubError {
    /// The word is too far away.
    #[error("a stub at {place:#x} does not reach its slot at {slot:#x}")]
    OutOfRange {
        /// Where the stub is to be.
        place: u64,
        /// The word it jumps through.
        slot: u64,
    },
    /// A word that is read at once must be aligned to its size, and an instruction to its.
    #[error("a stub at {place:#x} or its slot at {slot:#x} is not aligned")]
    Misaligned {
        /// Where the stub is to be.
        place: u64,
        /// The word it jumps through.
        slot: u64,
    },
}

/// A stub at `place` that jumps to what the word at `slot` holds.
///
/// # Errors
///
/// When the two are further apart than 2 GiB (x86-64) or 4 GiB (AArch64), or not aligned.
pub fn encode(architecture: Architecture, place: u64, slot: u64) -> Result<[u8; STUB_SIZE], StubError> {
    check_alignment(architecture, place, slot)?;
    match architecture {
        Architecture::X86_64 => x86_64_stub(place, slot),
        Architecture::Aarch64 => {
            let [adrp, ldr, br] = aarch64_jump(place, place + 4, slot)?;
            Ok(from_words([BTI_C, adrp, ldr, br]))
        }
    }
}

/// A trampoline at `place` for the function numbered `index`. It jumps to what the word at
/// `routine` holds.
///
/// On x86-64 the index is pushed, sign-extended to 64 bits: above it on the stack is the return
/// address, and the stack is aligned to 16 bytes. On AArch64 it is in `w17`; `x16` is changed.
///
/// # Errors
///
/// When the two are further apart than 2 GiB (x86-64) or 4 GiB (AArch64), or not aligned.
pub fn encode_trampoline(
    architecture: Architecture,
    place: u64,
    index: u32,
    routine: u64,
) -> Result<[u8; TRAMPOLINE_SIZE], StubError> {
    check_alignment(architecture, place, routine)?;
    match architecture {
        Architecture::X86_64 => x86_64_trampoline(place, index, routine),
        Architecture::Aarch64 => {
            let [adrp, ldr, br] = aarch64_jump(place, place + 12, routine)?;
            let movz = 0x5280_0000 | (index & 0xffff) << 5 | W17;
            let movk = 0x72a0_0000 | (index >> 16) << 5 | W17;
            Ok(from_words([BTI_C, movz, movk, adrp, ldr, br]))
        }
    }
}

/// What the TLS descriptor of a variable in the static block leads to: it returns its argument.
pub(crate) fn tls_resolver(architecture: Architecture) -> [u8; STUB_SIZE] {
    match architecture {
        Architecture::X86_64 => {
            // mov rax, [rax + 8]; ret
            let mut bytes = [INT3; STUB_SIZE];
            bytes[..4].copy_from_slice(&ENDBR64);
            bytes[4..9].copy_from_slice(&[0x48, 0x8b, 0x40, 0x08, 0xc3]);
            bytes
        }
        // ldr x0, [x0, #8]; ret
        Architecture::Aarch64 => from_words([BTI_C, 0xf940_0400, 0xd65f_03c0, 0]),
    }
}

const ENDBR64: [u8; 4] = [0xf3, 0x0f, 0x1e, 0xfa];
const INT3: u8 = 0xcc;

const BTI_C: u32 = 0xd503_245f;
const X16: u32 = 16;
const W17: u32 = 17;

fn check_alignment(architecture: Architecture, place: u64, slot: u64) -> Result<(), StubError> {
    let instruction = match architecture {
        Architecture::X86_64 => 1,
        Architecture::Aarch64 => 4,
    };
    if slot.is_multiple_of(8) && place.is_multiple_of(instruction) {
        Ok(())
    } else {
        Err(StubError::Misaligned { place, slot })
    }
}

fn x86_64_stub(place: u64, slot: u64) -> Result<[u8; STUB_SIZE], StubError> {
    let mut bytes = [INT3; STUB_SIZE];
    bytes[..4].copy_from_slice(&ENDBR64);
    bytes[4..10].copy_from_slice(&x86_64_jump(place, place.wrapping_add(10), slot)?);
    Ok(bytes)
}

fn x86_64_trampoline(place: u64, index: u32, routine: u64) -> Result<[u8; TRAMPOLINE_SIZE], StubError> {
    const PUSH_IMM32: u8 = 0x68;
    let mut bytes = [INT3; TRAMPOLINE_SIZE];
    bytes[..4].copy_from_slice(&ENDBR64);
    bytes[4] = PUSH_IMM32;
    bytes[5..9].copy_from_slice(&index.to_le_bytes());
    bytes[9..15].copy_from_slice(&x86_64_jump(place, place.wrapping_add(15), routine)?);
    Ok(bytes)
}

/// `jmp qword ptr [rip + ...]`, where `end` is the address after it.
fn x86_64_jump(place: u64, end: u64, slot: u64) -> Result<[u8; 6], StubError> {
    let distance = slot.wrapping_sub(end).cast_signed();
    let displacement = i32::try_from(distance).map_err(|_| StubError::OutOfRange { place, slot })?;
    let [a, b, c, d] = displacement.to_le_bytes();
    Ok([0xff, 0x25, a, b, c, d])
}

/// `adrp x16, slot`, which is at `adrp`; `ldr x16, [x16, :lo12:slot]`; `br x16`. The word is read
/// by one load, so that a jump never sees half of a new target.
fn aarch64_jump(place: u64, adrp: u64, slot: u64) -> Result<[u32; 3], StubError> {
    let pages = ((slot >> 12).wrapping_sub(adrp >> 12)).cast_signed();
    if !(-(1 << 20)..1 << 20).contains(&pages) {
        return Err(StubError::OutOfRange { place, slot });
    }
    let pages = pages as u32;
    let adrp = 0x9000_0000 | (pages & 3) << 29 | (pages >> 2 & 0x7_ffff) << 5 | X16;
    let ldr = 0xf940_0000 | ((slot as u32 & 0xfff) / 8) << 10 | X16 << 5 | X16;
    let br = 0xd61f_0000 | X16 << 5;
    Ok([adrp, ldr, br])
}

fn from_words<const WORDS: usize, const BYTES: usize>(words: [u32; WORDS]) -> [u8; BYTES] {
    const { assert!(WORDS * 4 == BYTES) };
    let mut bytes = [0; BYTES];
    for (chunk, word) in bytes.chunks_exact_mut(4).zip(words) {
        chunk.copy_from_slice(&word.to_le_bytes());
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::{Code, Decoder, DecoderOptions, Instruction, Register};

    const PLACE: u64 = 0x7f00_1234_5670;
    const GIB: u64 = 1 << 30;

    fn disassemble(bytes: &[u8]) -> Vec<Instruction> {
        Decoder::with_ip(64, bytes, PLACE, DecoderOptions::NONE).into_iter().collect()
    }

    fn codes(instructions: &[Instruction]) -> Vec<Code> {
        instructions.iter().map(Instruction::code).collect()
    }

    fn words(bytes: &[u8]) -> Vec<u32> {
        bytes.chunks_exact(4).map(|word| u32::from_le_bytes(word.try_into().expect("four bytes"))).collect()
    }

    #[test]
    fn an_x86_64_stub_jumps_through_its_slot() {
        for slot in [PLACE + 0x1000, PLACE - 0x2340, PLACE + 2 * GIB - 8, PLACE - 2 * GIB + 16] {
            let instructions = disassemble(&encode(Architecture::X86_64, PLACE, slot).expect("in reach"));
            assert_eq!(codes(&instructions[..2]), [Code::Endbr64, Code::Jmp_rm64]);
            assert!(instructions[2..].iter().all(|padding| padding.code() == Code::Int3));
            let jump = instructions[1];
            assert_eq!((jump.memory_base(), jump.ip_rel_memory_address()), (Register::RIP, slot));
        }
    }

    #[test]
    fn an_x86_64_trampoline_pushes_its_index_and_jumps_through_the_shared_word() {
        for (index, pushed) in [(0, 0), (0x1234_5678, 0x1234_5678), (u32::MAX, -1)] {
            let routine = PLACE + 0x4000;
            let bytes = encode_trampoline(Architecture::X86_64, PLACE, index, routine).expect("in reach");
            let instructions = disassemble(&bytes);
            assert_eq!(codes(&instructions[..3]), [Code::Endbr64, Code::Pushq_imm32, Code::Jmp_rm64]);
            assert!(instructions[3..].iter().all(|padding| padding.code() == Code::Int3));
            assert_eq!(instructions[1].immediate32to64(), pushed);
            assert_eq!(instructions[2].ip_rel_memory_address(), routine);
        }
    }

    /// What `adrp` at `place` and the `ldr` after it read.
    fn aarch64_slot(place: u64, adrp: u32, ldr: u32) -> u64 {
        assert_eq!(adrp & 0x9f00_001f, 0x9000_0010, "adrp x16");
        assert_eq!(ldr & 0xffc0_03ff, 0xf940_0210, "a 64-bit ldr x16, [x16, #imm]");
        let pages = (adrp >> 5 & 0x7_ffff) << 2 | adrp >> 29 & 3;
        let pages = i64::from((pages << 11).cast_signed() >> 11);
        (place & !0xfff).wrapping_add_signed(pages << 12) + u64::from(ldr >> 10 & 0xfff) * 8
    }

    #[test]
    fn an_aarch64_stub_jumps_through_its_slot() {
        for slot in [PLACE + 0x1008, PLACE - 0x2348, PLACE + 4 * GIB - 0x1000, PLACE - 4 * GIB + 0x1000] {
            let words = words(&encode(Architecture::Aarch64, PLACE, slot).expect("in reach"));
            assert_eq!(words[0], 0xd503_245f, "bti c");
            assert_eq!(aarch64_slot(PLACE + 4, words[1], words[2]), slot);
            assert_eq!(words[3], 0xd61f_0200, "br x16");
        }
    }

    #[test]
    fn an_aarch64_stub_at_the_end_of_a_page_counts_from_its_own_adrp() {
        let place = 0x7f00_1234_5ffc;
        let words = words(&encode(Architecture::Aarch64, place, 0x7f00_1235_0010).expect("in reach"));
        assert_eq!(aarch64_slot(place + 4, words[1], words[2]), 0x7f00_1235_0010);
    }

    #[test]
    fn an_aarch64_trampoline_loads_its_index_and_jumps_through_the_shared_word() {
        let routine = PLACE - 0x1_0000;
        let bytes = encode_trampoline(Architecture::Aarch64, PLACE, 0xabcd_1234, routine).expect("in reach");
        let words = words(&bytes);
        assert_eq!(words[0], 0xd503_245f, "bti c");
        assert_eq!(words[1], 0x5280_0011 | 0x1234 << 5, "movz w17, #0x1234");
        assert_eq!(words[2], 0x72a0_0011 | 0xabcd << 5, "movk w17, #0xabcd, lsl #16");
        assert_eq!(aarch64_slot(PLACE + 12, words[3], words[4]), routine);
        assert_eq!(words[5], 0xd61f_0200, "br x16");
    }

    #[test]
    fn a_slot_out_of_reach_is_an_error() {
        let too_far = [
            (Architecture::X86_64, PLACE + 2 * GIB + 16),
            (Architecture::X86_64, PLACE - 2 * GIB),
            (Architecture::Aarch64, PLACE + 4 * GIB + 0x1000),
            (Architecture::Aarch64, PLACE - 4 * GIB - 0x1000),
        ];
        for (architecture, slot) in too_far {
            let error = StubError::OutOfRange { place: PLACE, slot };
            assert_eq!(encode(architecture, PLACE, slot), Err(error));
            assert_eq!(encode_trampoline(architecture, PLACE, 0, slot), Err(error));
        }
    }

    #[test]
    fn a_misaligned_slot_is_an_error() {
        for architecture in [Architecture::X86_64, Architecture::Aarch64] {
            let error = StubError::Misaligned { place: PLACE, slot: PLACE + 0x1004 };
            assert_eq!(encode(architecture, PLACE, PLACE + 0x1004), Err(error));
        }
        let error = StubError::Misaligned { place: PLACE + 2, slot: PLACE };
        assert_eq!(encode(Architecture::Aarch64, PLACE + 2, PLACE), Err(error));
    }
}
