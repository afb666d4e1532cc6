//! The bytes of counted entries.
//!
//! A *counted entry* is what a slot points to instead of a body whose calls are counted. It takes one from a counter and
//! goes on to the body; when that gives zero, it goes on to a routine instead, by the jump that all of a block share, and
//! says which entry it was. It changes no register that an argument or a result can be in.
//!
//! An entry's counter, its body's address, and what it says to the routine stand in [words](EntryWords) of its own.

use std::sync::atomic::{AtomicU32, AtomicU64};

use super::Architecture;
use super::stub::{
    BRANCH_REACH, BTI_C, ENDBR64, INT3, StubError, TRAMPOLINE_TAIL, UDF, W17, X16, aarch64_page, check_alignment,
    from_words, shared_jump, x86_64_jump, x86_64_reach,
};

/// What a counted entry reads and writes.
#[derive(Debug, Default)]
#[repr(C)]
pub struct EntryWords {
    /// Goes down by one with each call.
    pub left: AtomicU32,
    /// Where calls go on.
    pub target: AtomicU64,
    /// What the routine is told.
    pub told: AtomicU64,
    _aligned: AtomicU64,
}

/// Bytes after the last entry of a block: the jump that all of them share.
pub const ENTRY_TAIL: usize = TRAMPOLINE_TAIL;

/// Bytes of an entry. Blocks are aligned to 16.
#[must_use]
pub const fn entry_size(architecture: Architecture) -> usize {
    match architecture {
        Architecture::X86_64 => 32,
        Architecture::Aarch64 => 48,
    }
}

/// How far into an entry something has been pushed, on the architectures where it is.
#[must_use]
pub const fn entry_push(architecture: Architecture) -> Option<usize> {
    match architecture {
        Architecture::X86_64 => Some(24),
        Architecture::Aarch64 => None,
    }
}

/// A block of `count` entries at `place`, with their [`EntryWords`] at `words`. When a counter has run out, they jump to
/// what the word at `routine` holds.
///
/// On x86-64 what the routine is told is pushed: above it on the stack is the return address, and the stack is aligned to
/// 16 bytes. On AArch64 it is in `x17`; `x16` is changed.
///
/// # Errors
///
/// When the block and its words are further apart than 2 GiB (x86-64) or 4 GiB (AArch64), or not aligned; when the
/// block is larger than 128 MiB, the reach of a branch to the jump at its end.
pub fn encode_entries(
    architecture: Architecture,
    place: u64,
    count: u32,
    words: u64,
    routine: u64,
) -> Result<Vec<u8>, StubError> {
    let (size, count) = (entry_size(architecture) as u64, u64::from(count));
    let tail = place.wrapping_add(count * size);
    if count * size >= BRANCH_REACH as u64 {
        return Err(StubError::OutOfRange { place, slot: tail });
    }
    let mut bytes = Vec::with_capacity((count * size) as usize + ENTRY_TAIL);
    for number in 0..count {
        let place = place.wrapping_add(number * size);
        let words = words.wrapping_add(number * size_of::<EntryWords>() as u64);
        check_alignment(architecture, place, words)?;
        let to_tail = ((count - number) * size) as i32;
        match architecture {
            Architecture::X86_64 => bytes.extend_from_slice(&x86_64_entry(place, words, to_tail)?),
            Architecture::Aarch64 => bytes.extend_from_slice(&aarch64_entry(place, words, to_tail)?),
        }
    }
    check_alignment(architecture, tail, routine)?;
    bytes.extend_from_slice(&shared_jump(architecture, place, tail, routine)?);
    Ok(bytes)
}

const TARGET: u64 = std::mem::offset_of!(EntryWords, target) as u64;
const TOLD: u64 = std::mem::offset_of!(EntryWords, told) as u64;

fn x86_64_entry(place: u64, words: u64, to_tail: i32) -> Result<[u8; 32], StubError> {
    let mut bytes = [INT3; 32];
    bytes[..4].copy_from_slice(&ENDBR64);
    let reach = |end: u64, word| x86_64_reach(place, place.wrapping_add(end), word);
    // dec dword ptr [rip + left]
    bytes[4..6].copy_from_slice(&[0xff, 0x0d]);
    bytes[6..10].copy_from_slice(&reach(10, words)?);
    // jz, over the jump
    bytes[10..12].copy_from_slice(&[0x74, 0x06]);
    bytes[12..18].copy_from_slice(&x86_64_jump(place, place.wrapping_add(18), words.wrapping_add(TARGET))?);
    // push qword ptr [rip + told]
    bytes[18..20].copy_from_slice(&[0xff, 0x35]);
    bytes[20..24].copy_from_slice(&reach(24, words.wrapping_add(TOLD))?);
    // jmp tail
    bytes[24] = 0xe9;
    bytes[25..29].copy_from_slice(&(to_tail - 29).to_le_bytes());
    Ok(bytes)
}

fn aarch64_entry(place: u64, words: u64, to_tail: i32) -> Result<[u8; 48], StubError> {
    const LDR: u32 = 0xf940_0000;
    let at = |offset: u64| (offset as u32 / 8) << 10 | X16 << 5;
    let adrp = aarch64_page(place, place.wrapping_add(4), words)?;
    let add = 0x9100_0000 | (words as u32 & 0xfff) << 10 | X16 << 5 | X16;
    Ok(from_words([
        BTI_C,
        adrp,
        add,
        0xb940_0000 | X16 << 5 | W17,              // ldr w17, [x16]
        0x7100_0400 | W17 << 5 | W17,              // subs w17, w17, #1
        0xb900_0000 | X16 << 5 | W17,              // str w17, [x16]
        0x5400_0060,                               // b.eq, over the jump
        LDR | at(TARGET) | X16,                    // ldr x16, [x16, #target]
        0xd61f_0000 | X16 << 5,                    // br x16
        LDR | at(TOLD) | W17,                      // ldr x17, [x16, #told]
        0x1400_0000 | ((to_tail - 40) as u32 / 4), // b tail
        UDF,
    ]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::{Code, Decoder, DecoderOptions, Instruction, Register};

    const PLACE: u64 = 0x7f00_1234_5670;
    const WORDS: u64 = PLACE + 0x2990;
    const ROUTINE: u64 = PLACE - 0x1000;

    #[test]
    fn an_x86_64_entry_counts_and_jumps_through_its_words() {
        let bytes = encode_entries(Architecture::X86_64, PLACE, 3, WORDS, ROUTINE).expect("in reach");
        assert_eq!(bytes.len(), 3 * 32 + ENTRY_TAIL);
        for number in 0..3 {
            let place = PLACE + number * 32;
            let words = WORDS + number * 32;
            let decoder = Decoder::with_ip(64, &bytes[number as usize * 32..][..32], place, DecoderOptions::NONE);
            let entry: Vec<Instruction> = decoder.into_iter().collect();
            let codes: Vec<_> = entry.iter().map(Instruction::code).collect();
            let expected =
                [Code::Endbr64, Code::Dec_rm32, Code::Je_rel8_64, Code::Jmp_rm64, Code::Push_rm64, Code::Jmp_rel32_64];
            assert_eq!(codes[..6], expected);
            assert!(codes[6..].iter().all(|code| *code == Code::Int3));
            assert!([1, 3, 4].iter().all(|index| entry[*index].memory_base() == Register::RIP));
            let read = [1, 3, 4].map(|index: usize| entry[index].ip_rel_memory_address());
            assert_eq!(read, [words, words + 8, words + 16]);
            assert_eq!(entry[2].near_branch_target(), entry[4].ip());
            assert_eq!(entry[5].near_branch_target(), PLACE + 96);
            assert_eq!(entry[5].ip() - place, entry_push(Architecture::X86_64).expect("it pushes") as u64);
        }
        let tail = Decoder::with_ip(64, &bytes[96..], PLACE + 96, DecoderOptions::NONE).decode();
        assert_eq!((tail.code(), tail.ip_rel_memory_address()), (Code::Jmp_rm64, ROUTINE));
    }

    #[test]
    fn an_aarch64_entry_counts_and_jumps_through_its_words() {
        let bytes = encode_entries(Architecture::Aarch64, PLACE, 2, WORDS, ROUTINE).expect("in reach");
        let words: Vec<_> = bytes.as_chunks().0.iter().map(|word| u32::from_le_bytes(*word)).collect();
        for number in 0..2 {
            let entry = &words[number * 12..][..12];
            let (place, of_entry) = (PLACE + number as u64 * 48, WORDS + number as u64 * 32);
            assert_eq!(entry[0], 0xd503_245f, "bti c");
            assert_eq!(entry[1] & 0x9f00_001f, 0x9000_0010, "adrp x16");
            let pages = u64::from((entry[1] >> 5 & 0x7_ffff) << 2 | entry[1] >> 29 & 3);
            assert_eq!(((place + 4) & !0xfff) + (pages << 12), of_entry & !0xfff);
            assert_eq!(entry[2], 0x9100_0210 | (of_entry as u32 & 0xfff) << 10, "add x16, x16, #");
            assert_eq!(entry[3..6], [0xb940_0211, 0x7100_0631, 0xb900_0211], "ldr, subs, str of w17");
            assert_eq!(entry[6], 0x5400_0000 | 3 << 5, "b.eq, three on");
            assert_eq!(entry[7..9], [0xf940_0610, 0xd61f_0200], "ldr x16, [x16, #8]; br x16");
            assert_eq!(entry[9], 0xf940_0a11, "ldr x17, [x16, #16]");
            assert_eq!(entry[10], 0x1400_0000 | (24 - 10 - 12 * number as u32), "b to the end of the block");
        }
        assert_eq!(words[26], 0xd61f_0200, "br x16");
    }

    #[test]
    fn what_is_out_of_reach_is_an_error() {
        for (architecture, far) in [(Architecture::X86_64, 1 << 31), (Architecture::Aarch64, 1 << 32)] {
            let too_far = PLACE + far + 0x1000;
            for (words, routine) in [(too_far, ROUTINE), (WORDS, too_far)] {
                let error = encode_entries(architecture, PLACE, 1, words, routine).expect_err("too far");
                assert!(matches!(error, StubError::OutOfRange { place: PLACE, .. }), "{error}");
            }
            let error = encode_entries(architecture, PLACE, u32::MAX, WORDS, ROUTINE).expect_err("too many");
            assert!(matches!(error, StubError::OutOfRange { place: PLACE, .. }), "{error}");
        }
    }
}
