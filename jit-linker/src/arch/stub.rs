//! The bytes of stubs and trampolines.
//!
//! A *stub* jumps to where a slot, an eight-byte word of data, says. It changes no register that
//! an argument or a result can be in. A *trampoline* is what a slot points to before a function's
//! first call: it says which function it stands for and jumps to the routine that compiles
//! functions. Trampolines come in blocks, which share the jump and the word it goes through. Both may be called indirectly where the system
//! enforces branch targets (`endbr64`, `bti c`).

use super::Architecture;
use crate::graph::EdgeKind;

/// Bytes of a stub, on every architecture. Stubs are aligned to as much.
pub const STUB_SIZE: usize = 16;

/// Bytes of a trampoline, on every architecture. Trampolines are aligned to as much.
pub const TRAMPOLINE_SIZE: usize = 16;

/// Bytes after the last trampoline of a block: the jump that all of them share.
pub const TRAMPOLINE_TAIL: usize = 16;

/// How far a branch reaches on AArch64, and so how long a block may be.
pub(super) const BRANCH_REACH: usize = 128 << 20;

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

/// A block of `count` trampolines at `place`, for the functions numbered from `first`. They jump to
/// what the word at `routine` holds.
///
/// On x86-64 the index is pushed, sign-extended to 64 bits: above it on the stack is the return
/// address, and the stack is aligned to 16 bytes. On AArch64 it is in `w17`; `x16` is changed.
///
/// # Errors
///
/// When the block and the word are further apart than 2 GiB (x86-64) or 4 GiB (AArch64), or not
/// aligned.
///
/// # Panics
///
/// When the block is larger than 128 MiB, the reach of a branch.
pub fn encode_trampolines(
    architecture: Architecture,
    place: u64,
    first: u32,
    count: u32,
    routine: u64,
) -> Result<Vec<u8>, StubError> {
    check_alignment(architecture, place, routine)?;
    let size = count as usize * TRAMPOLINE_SIZE;
    assert!(size < BRANCH_REACH, "a branch reaches 128 MiB");
    let tail = place.wrapping_add(size as u64);
    let mut bytes = Vec::with_capacity(size + TRAMPOLINE_TAIL);
    for number in 0..count {
        let index = first.wrapping_add(number);
        let distance = ((count - number) as usize * TRAMPOLINE_SIZE) as i32;
        bytes.extend_from_slice(&match architecture {
            Architecture::X86_64 => x86_64_trampoline(index, distance),
            Architecture::Aarch64 => {
                let movz = 0x5280_0000 | (index & 0xffff) << 5 | W17;
                let movk = 0x72a0_0000 | (index >> 16) << 5 | W17;
                let b = 0x1400_0000 | ((distance - 12) as u32 / 4);
                from_words([BTI_C, movz, movk, b])
            }
        });
    }
    bytes.extend_from_slice(&shared_jump(architecture, place, tail, routine)?);
    Ok(bytes)
}

/// The jump at `tail` that all pieces of a block at `place` share, to what the word at `routine` holds.
pub(super) fn shared_jump(
    architecture: Architecture,
    place: u64,
    tail: u64,
    routine: u64,
) -> Result<[u8; TRAMPOLINE_TAIL], StubError> {
    match architecture {
        Architecture::X86_64 => {
            let mut bytes = [INT3; TRAMPOLINE_TAIL];
            bytes[..6].copy_from_slice(&x86_64_jump(place, tail.wrapping_add(6), routine)?);
            Ok(bytes)
        }
        Architecture::Aarch64 => {
            let [adrp, ldr, br] = aarch64_jump(place, tail, routine)?;
            Ok(from_words([adrp, ldr, br, UDF]))
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

/// The function that a Mach-O descriptor of a thread-local variable leads to.
pub(crate) struct TlvThunk {
    pub(crate) code: Vec<u8>,
    /// The field of its call to `__tls_get_addr`.
    pub(crate) call: u32,
    pub(crate) kind: EdgeKind,
    pub(crate) addend: i64,
}

/// It takes the address of a descriptor, which holds what `__tls_get_addr` takes from its second
/// word on, and returns that function's result. Its callers count on it to change nothing else:
/// on x86-64 among the general registers, on AArch64 among the vector registers too.
pub(crate) fn tlv_thunk(architecture: Architecture) -> TlvThunk {
    match architecture {
        Architecture::X86_64 => {
            let mut code = ENDBR64.to_vec();
            code.extend([0x55, 0x48, 0x89, 0xe5]); // push rbp; mov rbp, rsp
            code.extend([0x51, 0x52, 0x56, 0x57]); // push rcx, rdx, rsi, rdi
            code.extend([0x41, 0x50, 0x41, 0x51, 0x41, 0x52, 0x41, 0x53]); // push r8, r9, r10, r11
            code.extend([0x48, 0x83, 0xe4, 0xf0]); // and rsp, -16
            code.extend([0x48, 0x83, 0xc7, 0x08]); // add rdi, 8
            code.extend([0xe8, 0, 0, 0, 0]); // call __tls_get_addr
            let call = code.len() as u32 - 4;
            code.extend([0x48, 0x8d, 0x65, 0xc0]); // lea rsp, [rbp - 64]
            code.extend([0x41, 0x5b, 0x41, 0x5a, 0x41, 0x59, 0x41, 0x58]); // pop r11, r10, r9, r8
            code.extend([0x5f, 0x5e, 0x5a, 0x59, 0x5d, 0xc3]); // pop rdi, rsi, rdx, rcx, rbp; ret
            TlvThunk { code, call, kind: EdgeKind::X86_64(super::x86_64::EdgeKind::Plt32), addend: -4 }
        }
        Architecture::Aarch64 => {
            // x29 and x30, x1 to x16, q0 to q31, in pairs.
            const FRAME: u32 = 16 + 8 * 16 + 16 * 32;
            let pairs = || {
                let general = (0..8).map(|pair| (0xa900_0000, 1 + 2 * pair, 2 + 2 * pair, (16 + 16 * pair) / 8));
                let vector = (0..16).map(|pair| (0xad00_0000, 2 * pair, 2 * pair + 1, (144 + 32 * pair) / 16));
                std::iter::once((0xa900_0000, 29, 30, 0)).chain(general).chain(vector)
            };
            let access = |(stp, first, second, scaled): (u32, u32, u32, u32), load: u32| {
                stp | load | scaled << 15 | second << 10 | 31 << 5 | first
            };
            let mut words = vec![BTI_C, 0xd100_03ff | FRAME << 10]; // sub sp, sp, #FRAME
            words.extend(pairs().map(|pair| access(pair, 0)));
            words.extend([0x9100_03fd, 0x9100_2000, 0x9400_0000]); // mov x29, sp; add x0, x0, #8; bl __tls_get_addr
            let call = words.len() as u32 * 4 - 4;
            words.extend(pairs().map(|pair| access(pair, 1 << 22)));
            words.extend([0x9100_03ff | FRAME << 10, 0xd65f_03c0]); // add sp, sp, #FRAME; ret
            let code = words.into_iter().flat_map(u32::to_le_bytes).collect();
            TlvThunk { code, call, kind: EdgeKind::Aarch64(super::aarch64::EdgeKind::Branch26), addend: 0 }
        }
    }
}

pub(super) const ENDBR64: [u8; 4] = [0xf3, 0x0f, 0x1e, 0xfa];
pub(super) const INT3: u8 = 0xcc;

pub(super) const BTI_C: u32 = 0xd503_245f;
pub(super) const UDF: u32 = 0;
pub(super) const X16: u32 = 16;
pub(super) const W17: u32 = 17;

pub(super) fn check_alignment(architecture: Architecture, place: u64, slot: u64) -> Result<(), StubError> {
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

fn x86_64_trampoline(index: u32, distance: i32) -> [u8; TRAMPOLINE_SIZE] {
    const PUSH_IMM32: u8 = 0x68;
    const JMP_REL32: u8 = 0xe9;
    let mut bytes = [INT3; TRAMPOLINE_SIZE];
    bytes[..4].copy_from_slice(&ENDBR64);
    bytes[4] = PUSH_IMM32;
    bytes[5..9].copy_from_slice(&index.to_le_bytes());
    bytes[9] = JMP_REL32;
    bytes[10..14].copy_from_slice(&(distance - 14).to_le_bytes());
    bytes
}

/// `jmp qword ptr [rip + ...]`, where `end` is the address after it.
pub(super) fn x86_64_jump(place: u64, end: u64, slot: u64) -> Result<[u8; 6], StubError> {
    let [a, b, c, d] = x86_64_reach(place, end, slot)?;
    Ok([0xff, 0x25, a, b, c, d])
}

/// The displacement of `word` from `end`, the address after the instruction, in the code at `place`.
pub(super) fn x86_64_reach(place: u64, end: u64, word: u64) -> Result<[u8; 4], StubError> {
    let distance = word.wrapping_sub(end).cast_signed();
    let displacement = i32::try_from(distance).map_err(|_| StubError::OutOfRange { place, slot: word })?;
    Ok(displacement.to_le_bytes())
}

/// `adrp x16, slot`, which is at `adrp`; `ldr x16, [x16, :lo12:slot]`; `br x16`. The word is read
/// by one load, so that a jump never sees half of a new target.
pub(super) fn aarch64_jump(place: u64, adrp: u64, slot: u64) -> Result<[u32; 3], StubError> {
    let adrp = aarch64_page(place, adrp, slot)?;
    let ldr = 0xf940_0000 | ((slot as u32 & 0xfff) / 8) << 10 | X16 << 5 | X16;
    let br = 0xd61f_0000 | X16 << 5;
    Ok([adrp, ldr, br])
}

/// `adrp x16, word`, which is at `adrp`, in the code at `place`.
pub(super) fn aarch64_page(place: u64, adrp: u64, word: u64) -> Result<u32, StubError> {
    let pages = ((word >> 12).wrapping_sub(adrp >> 12)).cast_signed();
    if !(-(1 << 20)..1 << 20).contains(&pages) {
        return Err(StubError::OutOfRange { place, slot: word });
    }
    let pages = pages as u32;
    Ok(0x9000_0000 | (pages & 3) << 29 | (pages >> 2 & 0x7_ffff) << 5 | X16)
}

pub(super) fn from_words<const WORDS: usize, const BYTES: usize>(words: [u32; WORDS]) -> [u8; BYTES] {
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
        let routine = PLACE + 0x4000;
        for (first, pushed) in [(0, [0, 1, 2]), (u32::MAX - 1, [-2, -1, 0])] {
            let bytes = encode_trampolines(Architecture::X86_64, PLACE, first, 3, routine).expect("in reach");
            assert_eq!(bytes.len(), 3 * TRAMPOLINE_SIZE + TRAMPOLINE_TAIL);
            for (position, pushed) in pushed.into_iter().enumerate() {
                let start = position * TRAMPOLINE_SIZE;
                let place = PLACE + start as u64;
                let decoder = Decoder::with_ip(64, &bytes[start..start + 16], place, DecoderOptions::NONE);
                let instructions: Vec<_> = decoder.into_iter().collect();
                assert_eq!(codes(&instructions[..3]), [Code::Endbr64, Code::Pushq_imm32, Code::Jmp_rel32_64]);
                assert!(instructions[3..].iter().all(|padding| padding.code() == Code::Int3));
                assert_eq!(instructions[1].immediate32to64(), pushed);
                assert_eq!(instructions[2].near_branch_target(), PLACE + 48);
            }
            let tail = Decoder::with_ip(64, &bytes[48..], PLACE + 48, DecoderOptions::NONE).decode();
            assert_eq!((tail.code(), tail.ip_rel_memory_address()), (Code::Jmp_rm64, routine));
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
        let bytes = encode_trampolines(Architecture::Aarch64, PLACE, 0xabcd_1234, 2, routine).expect("in reach");
        let words = words(&bytes);
        assert_eq!(words[0], 0xd503_245f, "bti c");
        assert_eq!(words[1], 0x5280_0011 | 0x1234 << 5, "movz w17, #0x1234");
        assert_eq!(words[2], 0x72a0_0011 | 0xabcd << 5, "movk w17, #0xabcd, lsl #16");
        assert_eq!(words[3], 0x1400_0000 | 5, "b to the end of the block");
        assert_eq!((words[5], words[7]), (0x5280_0011 | 0x1235 << 5, 0x1400_0000 | 1));
        assert_eq!(aarch64_slot(PLACE + 32, words[8], words[9]), routine);
        assert_eq!(words[10], 0xd61f_0200, "br x16");
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
            assert_eq!(encode_trampolines(architecture, PLACE, 0, 0, slot), Err(error));
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
