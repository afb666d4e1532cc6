//! Lines of the source as a compiler wrote them into an object (`.debug_line`; DWARF 5, 6.2), for profilers: debuggers
//! read them themselves.

use std::path::PathBuf;

use gimli::{Dwarf, EndianSlice, LineProgramHeader, LittleEndian, SectionId, Unit, UnitHeader};
use rustc_hash::{FxHashMap, FxHashSet};

use super::super::code::Note;
use crate::sync::Arc;

type Bytes<'a> = EndianSlice<'a, LittleEndian>;

/// From where on code is from a line of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Line {
    pub(crate) address: u64,
    pub(crate) line: u32,
    pub(crate) file: Arc<str>,
}

/// The lines that notes tell of, ordered by address. What is malformed is left out.
///
/// # Safety
///
/// As [`Note::contents`].
pub(crate) unsafe fn of_notes(notes: &[Note]) -> Vec<Line> {
    let contents = |id: SectionId| {
        let note = notes.iter().find(|note| note.name == id.name());
        // SAFETY: as the caller says.
        note.map(|note| unsafe { note.contents() }).unwrap_or_default()
    };
    let section = |id| Ok::<_, gimli::Error>(Bytes::new(contents(id), LittleEndian));
    let Ok(dwarf) = Dwarf::load(section) else { return Vec::new() };
    let mut lines = Vec::new();
    let mut seen = FxHashSet::default();
    let mut units = dwarf.units();
    while let Ok(Some(header)) = units.next() {
        _ = add_unit(&dwarf, header, &mut seen, &mut lines);
    }
    lines.sort_by_key(|line| line.address);
    lines
}

/// Adds a unit's lines, if no other unit has the same.
fn add_unit<'a>(
    dwarf: &Dwarf<Bytes<'a>>,
    header: UnitHeader<Bytes<'a>>,
    seen: &mut FxHashSet<usize>,
    lines: &mut Vec<Line>,
) -> gimli::Result<()> {
    let unit = dwarf.unit(header)?;
    let Some(program) = unit.line_program.clone().filter(|program| seen.insert(program.header().offset().0)) else {
        return Ok(());
    };
    let mut files = FxHashMap::default();
    let mut rows = program.rows();
    while let Some((header, row)) = rows.next_row()? {
        let Some(line) = row.line().and_then(|line| u32::try_from(line.get()).ok()).filter(|_| !row.end_sequence())
        else {
            continue;
        };
        let file = files.entry(row.file_index()).or_insert_with(|| path(dwarf, &unit, header, row.file_index()));
        if let Some(file) = file {
            lines.push(Line { address: row.address(), line, file: Arc::clone(file) });
        }
    }
    Ok(())
}

/// The path of a file of a line program.
fn path(
    dwarf: &Dwarf<Bytes<'_>>,
    unit: &Unit<Bytes<'_>>,
    header: &LineProgramHeader<Bytes<'_>>,
    index: u64,
) -> Option<Arc<str>> {
    let file = header.file(index)?;
    let text = |value| dwarf.attr_string(unit, value).ok().map(|text| text.to_string_lossy().into_owned());
    let mut path: PathBuf = unit.comp_dir.iter().map(|folder| folder.to_string_lossy().into_owned()).collect();
    path.extend(file.directory(header).and_then(text));
    path.push(text(file.path_name())?);
    Some(Arc::from(&*path.to_string_lossy()))
}
