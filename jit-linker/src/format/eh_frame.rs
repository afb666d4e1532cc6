//! The records of DWARF call frame information as it is in memory (`.eh_frame`), after the LSB.
//! What a record says is the unwinder's business; here they are only told apart.

/// A record, with where it is in the section.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) start: u32,
    pub(crate) size: u32,
    pub(crate) kind: RecordKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RecordKind {
    /// What several functions have in common.
    Cie,
    /// How to unwind one function.
    Fde {
        /// Where the CIE is that it refers to.
        cie: u32,
    },
}

/// Where an FDE has the distance to its CIE, and a CIE 0.
pub(crate) const CIE_POINTER: u32 = 4;

/// Where an FDE has the address of its function.
pub(crate) const FUNCTION: u32 = 8;

/// The records of a section of less than 4 GiB, without the zeros that end it.
///
/// # Errors
///
/// What is wrong, and where.
pub(crate) fn records(bytes: &[u8]) -> Result<Vec<Record>, String> {
    // A record is seldom shorter than that.
    let mut records: Vec<Record> = Vec::with_capacity(bytes.len() / 24);
    let mut start = 0;
    while start < bytes.len() {
        let word = |at: usize| {
            let bytes = bytes.get(start + at..)?.first_chunk()?;
            Some(u32::from_le_bytes(*bytes))
        };
        let beyond = || format!("the record at {start:#x} of .eh_frame ends beyond it");
        let length = word(0).ok_or_else(beyond)?;
        if length == 0 {
            start += 4;
            continue;
        }
        if length == u32::MAX {
            return Err(format!("the record at {start:#x} of .eh_frame is in the 64-bit format"));
        }
        let size = 4 + length as usize;
        if size < 8 || size > bytes.len() - start {
            return Err(beyond());
        }
        let distance = word(CIE_POINTER as usize).ok_or_else(beyond)? as usize;
        let kind = match (start + CIE_POINTER as usize).checked_sub(distance) {
            _ if distance == 0 => RecordKind::Cie,
            Some(cie) => RecordKind::Fde { cie: cie as u32 },
            None => return Err(format!("the record at {start:#x} of .eh_frame has its CIE before the section")),
        };
        records.push(Record { start: start as u32, size: size as u32, kind });
        start += size;
    }
    records.shrink_to_fit();
    Ok(records)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_told_apart() {
        let words = [12u32, 0, 1, 2, 8, 20, 3, 0];
        let bytes: Vec<u8> = words.into_iter().flat_map(u32::to_le_bytes).collect();
        let cie = Record { start: 0, size: 16, kind: RecordKind::Cie };
        let fde = Record { start: 16, size: 12, kind: RecordKind::Fde { cie: 0 } };
        assert_eq!(records(&bytes), Ok(vec![cie, fde]));
        for end in [1, 3, 5, 15, 17, 27] {
            assert!(records(&bytes[..end]).is_err(), "cut at {end}");
        }
    }
}
