//! The `.eh_frame` section of an object (Linux Standard Base, "Exception Frames"), once it is
//! linked.
//!
//! Instructions are taken over as they are; pointers, which are mostly relative to where they
//! stand, become absolute.

use std::ops::Range;

use rustc_hash::FxHashMap;

use super::{ABSOLUTE, Cie, Frames};

const OMIT: u8 = 0xff;
const FORMAT: u8 = 0x0f;
const PC_RELATIVE: u8 = 0x10;
const INDIRECT: u8 = 0x80;

/// Why a section can't be understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(".eh_frame, entry at {offset:#x}: {reason}")]
pub(crate) struct EhFrameError {
    /// The entry's offset in the section.
    pub offset: usize,
    /// What is wrong with it.
    pub reason: &'static str,
}

/// What frames need to know of their common entry.
struct Common {
    index: u32,
    /// How addresses of functions are written.
    address: u8,
    lsda: u8,
    has_data: bool,
}

impl Frames {
    /// The contents of a linked `.eh_frame` section that is at `address` for the unwinder and
    /// describes functions within `code`. Others are left out: of no bytes or nowhere, which a linker
    /// has discarded, and bytes that are not executable.
    ///
    /// # Errors
    ///
    /// When an entry is not whole, refers to something that is not an entry, or uses what no
    /// compiler does on these systems.
    pub(crate) fn of_section(section: &[u8], address: u64, code: &Range<u64>) -> Result<Self, EhFrameError> {
        let mut frames = Self::default();
        let mut commons = FxHashMap::default();
        let mut offset = 0;
        while offset < section.len() {
            let error = |reason| EhFrameError { offset, reason };
            let mut reader = Reader { bytes: &section[offset..], address: address + offset as u64 };
            let length = reader.u32().map_err(error)?;
            if length == 0 {
                break;
            }
            if length == u32::MAX {
                return Err(error("is in the 64-bit format"));
            }
            let mut entry = reader.split(length as usize).map_err(error)?;
            let id = entry.u32().map_err(error)?;
            if id == 0 {
                let common = frames.common(entry).map_err(error)?;
                commons.insert(offset, common);
            } else {
                // The distance is from the field after the length.
                let common = (offset + 4).checked_sub(id as usize).and_then(|at| commons.get(&at));
                let common = common.ok_or_else(|| error("refers to no common entry before it"))?;
                frames.function(entry, common, code).map_err(error)?;
            }
            offset += 4 + length as usize;
        }
        Ok(frames)
    }

    fn common(&mut self, mut entry: Reader<'_>) -> Result<Common, &'static str> {
        let whole = entry.bytes;
        let version = entry.u8()?;
        if version != 1 && version != 3 {
            return Err("has a version other than 1 and 3");
        }
        let end = entry.bytes.iter().position(|byte| *byte == 0).ok_or("has an augmentation without end")?;
        let augmentation = &entry.bytes[..end];
        entry.skip(end + 1)?;
        let layout = whole.len() - entry.bytes.len();
        entry.leb128()?;
        entry.leb128()?;
        // The return address's column.
        if version == 1 {
            entry.u8()?;
        } else {
            entry.leb128()?;
        }
        let mut bytes = whole[..whole.len() - entry.bytes.len()].to_vec();
        let layout = layout..bytes.len();

        let mut common = Common { index: 0, address: ABSOLUTE, lsda: OMIT, has_data: false };
        if let [b'z', letters @ ..] = augmentation {
            common.has_data = true;
            let length = entry.uleb128()?;
            let mut data = entry.split(length)?;
            let mut absolute = Vec::new();
            for letter in letters {
                match letter {
                    b'R' => {
                        common.address = data.u8()?;
                        absolute.push(ABSOLUTE);
                    }
                    b'L' => {
                        common.lsda = data.u8()?;
                        absolute.push(if common.lsda == OMIT { OMIT } else { ABSOLUTE });
                    }
                    b'P' => {
                        let encoding = data.u8()?;
                        let personality = data.pointer(encoding & !INDIRECT)?.unwrap_or(0);
                        absolute.push(ABSOLUTE | encoding & INDIRECT);
                        absolute.extend_from_slice(&personality.to_le_bytes());
                    }
                    // A signal's frame; return addresses signed with key B; tagged memory.
                    b'S' | b'B' | b'G' => {}
                    _ => return Err("has an unknown augmentation"),
                }
            }
            // A length of one byte; no letter comes twice.
            let length = u8::try_from(absolute.len()).ok().filter(|length| *length < 0x80);
            bytes.push(length.ok_or("has an augmentation that is too long")?);
            bytes.extend_from_slice(&absolute);
        } else if !augmentation.is_empty() {
            return Err("has an unknown augmentation");
        }
        let instructions = bytes.len();
        bytes.extend_from_slice(entry.bytes);
        let cie = Cie::of_object(&bytes, common.has_data, common.lsda != OMIT, layout, instructions);
        common.index = self.add_cie(cie);
        Ok(common)
    }

    fn function(&mut self, mut entry: Reader<'_>, common: &Common, code: &Range<u64>) -> Result<(), &'static str> {
        let start = entry.pointer(common.address)?;
        let size = entry.pointer(common.address & FORMAT)?.unwrap_or(0);
        let mut lsda = 0;
        if common.has_data {
            let length = entry.uleb128()?;
            let mut data = entry.split(length)?;
            if common.lsda != OMIT {
                lsda = data.pointer(common.lsda)?.unwrap_or(0);
            }
        }
        let Some(start) = start.filter(|_| size != 0) else { return Ok(()) };
        let end = start.checked_add(size).ok_or("describes more than the address space")?;
        if start >= code.start && end <= code.end {
            self.add(common.index, start, size, lsda, entry.bytes);
        }
        Ok(())
    }
}

/// Reads an entry from its beginning to its end.
struct Reader<'a> {
    bytes: &'a [u8],
    /// Where the next byte is for the unwinder.
    address: u64,
}

impl<'a> Reader<'a> {
    fn split(&mut self, length: usize) -> Result<Self, &'static str> {
        let (head, rest) = self.bytes.split_at_checked(length).ok_or("is cut short")?;
        let head = Self { bytes: head, address: self.address };
        self.bytes = rest;
        self.address += length as u64;
        Ok(head)
    }

    fn skip(&mut self, length: usize) -> Result<(), &'static str> {
        self.split(length).map(drop)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], &'static str> {
        let bytes = *self.bytes.first_chunk().ok_or("is cut short")?;
        self.skip(N)?;
        Ok(bytes)
    }

    fn u8(&mut self) -> Result<u8, &'static str> {
        Ok(self.array::<1>()?[0])
    }

    fn u32(&mut self) -> Result<u32, &'static str> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    /// The bits of a LEB128 number, how many there are, and the last byte.
    fn leb128(&mut self) -> Result<(u64, u32, u8), &'static str> {
        let (mut value, mut bits) = (0, 0);
        loop {
            let byte = self.u8()?;
            if bits >= u64::BITS {
                return Err("has a number of more than 64 bits");
            }
            value |= u64::from(byte & 0x7f) << bits;
            bits += 7;
            if byte & 0x80 == 0 {
                return Ok((value, bits, byte));
            }
        }
    }

    fn uleb128(&mut self) -> Result<usize, &'static str> {
        usize::try_from(self.leb128()?.0).map_err(|_| "has a number that is too large")
    }

    /// An encoded pointer; `None` for a null one, which is relative to nothing.
    fn pointer(&mut self, encoding: u8) -> Result<Option<u64>, &'static str> {
        let place = self.address;
        let value = match encoding & FORMAT {
            0x00 | 0x04 | 0x0c => u64::from_le_bytes(self.array()?),
            0x01 => self.leb128()?.0,
            0x09 => {
                let (value, bits, last) = self.leb128()?;
                let negative = last & 0x40 != 0 && bits < u64::BITS;
                if negative { value | u64::MAX << bits } else { value }
            }
            0x02 => u64::from(u16::from_le_bytes(self.array()?)),
            0x0a => i64::from(i16::from_le_bytes(self.array()?)).cast_unsigned(),
            0x03 => u64::from(self.u32()?),
            0x0b => i64::from(self.u32()?.cast_signed()).cast_unsigned(),
            _ => return Err("has a pointer of unknown format"),
        };
        match encoding & !FORMAT {
            _ if value == 0 => Ok(None),
            0 => Ok(Some(value)),
            PC_RELATIVE => Ok(Some(place.wrapping_add(value))),
            _ => Err("has a pointer that is relative to neither nothing nor its place"),
        }
    }
}

#[cfg(test)]
mod tests {
    use gimli::{BaseAddresses, CieOrFde, EhFrame, EndianSlice, LittleEndian, Pointer, UnwindSection};
    use object::{Object, ObjectSection, ObjectSegment};

    use super::*;

    /// This program's section, where it is in memory, and where its code may be.
    fn own_section() -> (Vec<u8>, u64, Range<u64>) {
        let program = std::fs::read("/proc/self/exe").unwrap();
        let file = object::File::parse(&*program).unwrap();
        let section = file.section_by_name(".eh_frame").unwrap();
        let end = file.segments().map(|segment| segment.address() + segment.size()).max().unwrap();
        // As if it were loaded far from zero.
        let bias = 0x5000_0000_0000;
        (section.data().unwrap().to_vec(), section.address() + bias, bias..bias + end)
    }

    #[test]
    fn a_compilers_section_means_what_gimli_reads() {
        let (section, address, code) = own_section();
        let frames = Frames::of_section(&section, address, &code).unwrap();
        let direct = |pointer| match pointer {
            Pointer::Direct(address) | Pointer::Indirect(address) => address,
        };

        // What we make of it, read again: the pointers are absolute now.
        let ours = frames.encode(&frames.frames);
        let read = |bytes: &[u8], address| {
            let eh_frame = EhFrame::from(EndianSlice::new(bytes, LittleEndian));
            let bases = BaseAddresses::default().set_eh_frame(address);
            let mut all = Vec::new();
            let mut entries = eh_frame.entries(&bases);
            while let Some(entry) = entries.next().unwrap() {
                let CieOrFde::Fde(fde) = entry else { continue };
                let fde = fde.parse(EhFrame::cie_from_offset).unwrap();
                let mut rows = Vec::new();
                let mut context = gimli::UnwindContext::new();
                let mut table = fde.rows(&eh_frame, &bases, &mut context).unwrap();
                while let Some(row) = table.next_row().unwrap() {
                    let registers: Vec<_> = row.registers().map(|rule| format!("{rule:?}")).collect();
                    // Expressions are told by where they stand in the section.
                    let plain = |text: String| if text.contains("xpression") { "expression".to_owned() } else { text };
                    let registers: Vec<_> = registers.into_iter().map(plain).collect();
                    let cfa = plain(format!("{:?}", row.cfa()));
                    rows.push((row.start_address(), row.end_address(), cfa, registers));
                }
                all.push((
                    fde.initial_address(),
                    fde.len(),
                    fde.lsda().map(direct),
                    fde.personality()
                        .map(|personality| (direct(personality), matches!(personality, Pointer::Indirect(_)))),
                    fde.is_signal_trampoline(),
                    rows,
                ));
            }
            all
        };
        let theirs = read(&section, address);
        assert!(theirs.len() > 1000);
        assert!(theirs.iter().any(|function| function.2.is_some() && function.3.is_some()));
        assert_eq!(read(&ours, 0), theirs);
    }

    #[test]
    fn a_section_that_is_cut_anywhere_is_an_error_or_less() {
        let (section, address, code) = own_section();
        let whole = Frames::of_section(&section[..4000], address, &code);
        assert!(matches!(whole, Err(EhFrameError { reason: "is cut short", .. })) || whole.is_ok());
        for length in 0..2000 {
            if let Ok(frames) = Frames::of_section(&section[..length], address, &code) {
                assert!(frames.frames.len() < 100);
            }
        }
    }

    #[test]
    fn bytes_that_are_wrong_do_no_harm() {
        let (section, address, code) = own_section();
        let mut section = section[..2000].to_vec();
        for at in 0..section.len() {
            for value in [0x00, 0x7f, 0x80, 0xff] {
                let old = std::mem::replace(&mut section[at], value);
                if let Ok(frames) = Frames::of_section(&section, address, &code) {
                    assert!(frames.frames.iter().all(|frame| code.contains(&frame.start)));
                    frames.encode(&frames.frames);
                }
                section[at] = old;
            }
        }
    }

    #[test]
    fn code_of_others_is_left_out() {
        let (section, address, code) = own_section();
        let frames = Frames::of_section(&section, address, &(code.start..code.start + 16)).unwrap();
        assert!(frames.frames.is_empty());
    }

    #[test]
    fn an_error_says_where() {
        let (section, address, code) = own_section();
        let error = Frames::of_section(&section[..7], address, &code).err().unwrap();
        assert_eq!(error.to_string(), ".eh_frame, entry at 0x0: is cut short");
    }
}
