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
    let mut records = Vec::with_capacity(count(bytes));
    for record in each(bytes) {
        records.push(record?);
    }
    Ok(records)
}

/// How many records there are, if nothing is wrong.
pub(crate) fn count(bytes: &[u8]) -> usize {
    let (mut count, mut start) = (0, 0);
    while let Some(length) = word(bytes, start) {
        count += usize::from(length > 0);
        start += 4 + length as usize;
    }
    count
}

/// The records one by one, up to the first that is wrong.
pub(crate) fn each(bytes: &[u8]) -> Records<'_> {
    Records { bytes, start: 0 }
}

/// See [`each`].
pub(crate) struct Records<'a> {
    bytes: &'a [u8],
    start: usize,
}

impl Iterator for Records<'_> {
    type Item = Result<Record, String>;

    // What it returns would go through memory, for each of the records.
    #[inline(always)]
    fn next(&mut self) -> Option<Self::Item> {
        while word(self.bytes, self.start) == Some(0) {
            self.start += 4;
        }
        if self.start >= self.bytes.len() {
            return None;
        }
        let record = record(self.bytes, self.start);
        self.start = match &record {
            Ok(record) => self.start + record.size as usize,
            Err(_) => self.bytes.len(),
        };
        Some(record)
    }
}

/// The record at an offset.
#[inline(always)]
fn record(bytes: &[u8], start: usize) -> Result<Record, String> {
    let beyond = || format!("the record at {start:#x} of .eh_frame ends beyond it");
    let length = word(bytes, start).ok_or_else(beyond)?;
    if length == u32::MAX {
        return Err(format!("the record at {start:#x} of .eh_frame is in the 64-bit format"));
    }
    let size = 4 + length as usize;
    if size < 8 || size > bytes.len() - start {
        return Err(beyond());
    }
    let pointer = start + CIE_POINTER as usize;
    let distance = word(bytes, pointer).ok_or_else(beyond)? as usize;
    let kind = match pointer.checked_sub(distance) {
        _ if distance == 0 => RecordKind::Cie,
        Some(cie) => RecordKind::Fde { cie: cie as u32 },
        None => return Err(format!("the record at {start:#x} of .eh_frame has its CIE before the section")),
    };
    Ok(Record { start: start as u32, size: size as u32, kind })
}

#[inline]
fn word(bytes: &[u8], start: usize) -> Option<u32> {
    bytes.get(start..)?.first_chunk().map(|bytes| u32::from_le_bytes(*bytes))
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
        assert_eq!(count(&bytes), 2);
        for end in [1, 3, 5, 15, 17, 27] {
            assert!(records(&bytes[..end]).is_err(), "cut at {end}");
            let wrong = each(&bytes[..end]).position(|record| record.is_err());
            assert_eq!(wrong, each(&bytes[..end]).count().checked_sub(1), "nothing comes after what is wrong");
        }
    }
}
