//! DWARF for functions whose source is known: names, lines, and where they are.

use gimli::write::{
    Address, AttributeValue, DwarfUnit, EndianVec, Expression, FileId, LineProgram, LineString, Location, LocationList,
    Sections, UnitEntryId,
};
use gimli::{Encoding, Format, LineEncoding, LittleEndian, SectionId};

use rustc_hash::FxHashMap;

use super::super::code::{LinkedCode, LinkedFunction, Place, SourceText, VariableKind, VariableRole};

const ENCODING: Encoding = Encoding { address_size: 8, format: Format::Dwarf32, version: 4 };

/// The sections that describe some code; none if nothing is known of its source.
pub(super) fn sections(code: &LinkedCode) -> Vec<(&'static str, Vec<u8>)> {
    let Some(source) = &code.source else { return Vec::new() };
    let mut sections = Sections::new(EndianVec::new(LittleEndian));
    // What can't be written is left out: a debugger still has the symbols.
    if unit(code, source).write(&mut sections).is_err() {
        return Vec::new();
    }
    let mut written = Vec::new();
    let collected = sections.for_each_mut(|id: SectionId, contents| {
        if !contents.slice().is_empty() {
            written.push((id.name(), contents.take()));
        }
        Ok::<_, gimli::write::Error>(())
    });
    collected.map_or_else(|_| Vec::new(), |()| written)
}

fn unit(code: &LinkedCode, source: &SourceText) -> DwarfUnit {
    let mut unit = DwarfUnit::new(ENCODING);
    let path = source.path();
    let name = path.file_name().unwrap_or(path.as_os_str()).as_encoded_bytes();
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.map_or(&b"."[..], |folder| folder.as_os_str().as_encoded_bytes());
    let mut lines = LineProgram::new(
        ENCODING,
        LineEncoding::default(),
        LineString::String(folder.to_vec()),
        None,
        LineString::String(name.to_vec()),
        None,
    );
    let file = lines.add_file(LineString::String(name.to_vec()), lines.default_directory(), None);
    for function in &code.functions {
        add_lines(&mut lines, file, function, source);
    }
    unit.unit.line_program = lines;

    let root = unit.unit.root();
    let entry = unit.unit.get_mut(root);
    entry.set(gimli::DW_AT_producer, AttributeValue::String(b"Orcane".to_vec()));
    // The debugger needs to know one; C has the fewest opinions.
    entry.set(gimli::DW_AT_language, AttributeValue::Language(gimli::DW_LANG_C99));
    entry.set(gimli::DW_AT_name, AttributeValue::String(name.to_vec()));
    entry.set(gimli::DW_AT_comp_dir, AttributeValue::String(folder.to_vec()));
    entry.set(gimli::DW_AT_low_pc, AttributeValue::Address(Address::Constant(code.range.start)));
    entry.set(gimli::DW_AT_high_pc, AttributeValue::Udata(code.range.end - code.range.start));
    let (mut types, start) = (Types::default(), code.range.start);
    for function in &code.functions {
        add_function(&mut unit, &mut types, start, file, function, source);
    }
    unit
}

fn add_lines(lines: &mut LineProgram, file: FileId, function: &LinkedFunction, source: &SourceText) {
    if function.details.lines.is_empty() {
        return;
    }
    lines.begin_sequence(Some(Address::Constant(function.start)));
    let mut last = 0;
    // The prologue belongs to the first line that follows.
    for (index, (start, _, bits)) in function.details.lines.iter().enumerate() {
        let (line, column) = source.position(*bits);
        let row = lines.row();
        row.address_offset = if index == 0 { 0 } else { u64::from(*start) };
        (row.file, row.line, row.column) = (file, u64::from(line), u64::from(column));
        row.is_statement = line != last;
        lines.generate_row();
        if index == 0 && *start > 0 {
            // A breakpoint at the function stops here, where it has its frame.
            let row = lines.row();
            row.address_offset = u64::from(*start);
            row.is_statement = true;
            row.prologue_end = true;
            lines.generate_row();
        }
        last = line;
    }
    lines.end_sequence(u64::from(function.size));
}

fn add_function(
    unit: &mut DwarfUnit,
    types: &mut Types,
    start: u64,
    file: FileId,
    function: &LinkedFunction,
    source: &SourceText,
) {
    let root = unit.unit.root();
    let id = unit.unit.add(root, gimli::DW_TAG_subprogram);
    let entry = unit.unit.get_mut(id);
    entry.set(gimli::DW_AT_name, AttributeValue::String(function.name.as_bytes().to_vec()));
    entry.set(gimli::DW_AT_external, AttributeValue::Flag(true));
    entry.set(gimli::DW_AT_low_pc, AttributeValue::Address(Address::Constant(function.start)));
    entry.set(gimli::DW_AT_high_pc, AttributeValue::Udata(u64::from(function.size)));
    if let Some((_, _, bits)) = function.details.lines.iter().min_by_key(|line| line.2) {
        entry.set(gimli::DW_AT_decl_file, AttributeValue::FileIndex(Some(file)));
        entry.set(gimli::DW_AT_decl_line, AttributeValue::Udata(u64::from(source.position(*bits).0)));
    }
    let mut frame = Expression::new();
    frame.op(gimli::DW_OP_call_frame_cfa);
    entry.set(gimli::DW_AT_frame_base, AttributeValue::Exprloc(frame));
    for variable in &function.details.variables {
        let offset = function.start - start;
        let list = LocationList(variable.places.iter().map(|place| location(offset, place)).collect());
        let list = unit.unit.locations.add(list);
        let variable_type = types.of(unit, variable.kind);
        let tag = match variable.role {
            VariableRole::Parameter => gimli::DW_TAG_formal_parameter,
            VariableRole::Local => gimli::DW_TAG_variable,
        };
        let id = unit.unit.add(id, tag);
        let entry = unit.unit.get_mut(id);
        entry.set(gimli::DW_AT_name, AttributeValue::String(variable.name.as_bytes().to_vec()));
        entry.set(gimli::DW_AT_type, AttributeValue::UnitRef(variable_type));
        entry.set(gimli::DW_AT_location, AttributeValue::LocationListRef(list));
    }
}

/// `offset` is the function's from where the unit begins.
fn location(offset: u64, (start, end, place): &(u32, u32, Place)) -> Location {
    let mut data = Expression::new();
    match place {
        Place::Register(number) => data.op_reg(gimli::Register(*number)),
        Place::Frame(offset) => data.op_fbreg(*offset),
    }
    Location::OffsetPair { begin: offset + u64::from(*start), end: offset + u64::from(*end), data }
}

/// The types of a unit's variables, each written once.
#[derive(Default)]
struct Types(FxHashMap<VariableKind, UnitEntryId>);

impl Types {
    fn of(&mut self, unit: &mut DwarfUnit, kind: VariableKind) -> UnitEntryId {
        *self.0.entry(kind).or_insert_with(|| {
            let (name, encoding, bytes) = match kind {
                VariableKind::Float(bytes) => (if bytes == 4 { "float" } else { "double" }, gimli::DW_ATE_float, bytes),
                VariableKind::Integer(bytes) => {
                    let name = ["char", "short", "int", "long"].into_iter().zip([1, 2, 4, 8]).find(|of| of.1 == bytes);
                    (name.map_or("integer", |of| of.0), gimli::DW_ATE_signed, bytes)
                }
            };
            let root = unit.unit.root();
            let id = unit.unit.add(root, gimli::DW_TAG_base_type);
            let entry = unit.unit.get_mut(id);
            entry.set(gimli::DW_AT_name, AttributeValue::String(name.as_bytes().to_vec()));
            entry.set(gimli::DW_AT_encoding, AttributeValue::Encoding(encoding));
            entry.set(gimli::DW_AT_byte_size, AttributeValue::Udata(u64::from(bytes)));
            id
        })
    }
}
