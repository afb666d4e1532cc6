//! What the fields of an image lead to.

mod aarch64;
mod thread_local;

use std::collections::HashMap;
use std::fmt;

use object::elf::*;
use object::{
    Architecture, Object, ObjectSection, ObjectSymbol, RelocationFlags, RelocationTarget, SymbolIndex, SymbolSection,
};

use crate::image::{Image, Place, is_loaded, outside};
use thread_local::About;

/// What a relocation is about, wherever a linker puts it.
#[derive(Clone, Debug)]
enum Target {
    /// A place in a section of an object.
    At(Place, u64),
    /// An address that every image has.
    Address(u64),
    /// A common, which has no section.
    Common(String),
    /// A number that is no address.
    Number(u64),
    /// The table that offsets count from.
    Table,
    /// The start of the template of thread-local variables.
    Module,
    /// Nothing: the instruction is to stay as it is.
    Mark,
}

/// A relocation, and where it is.
struct Site {
    place: Place,
    offset: u64,
    kind: u32,
    addend: i64,
    target: Target,
    /// The two bytes before the field in the object: an instruction's, if a GOT entry is used.
    before: Option<[u8; 2]>,
    /// The bytes of the object's instruction, of which a mark says nothing more.
    after: Vec<u8>,
    /// Its symbol.
    symbol: SymbolIndex,
    /// Where the other of two instructions is that load an entry of the GOT, in the same section.
    partner: Option<u64>,
    what: String,
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "object {}, {}, type {}", self.place.0, self.what, self.kind)
    }
}

/// Decodes every fixup of the objects in all images; gives how many there are of each kind.
pub(crate) fn compare(objects: &[object::File<'_>], images: &[&Image]) -> Result<HashMap<u32, usize>, String> {
    let sites = sites(objects);
    let architecture = objects[0].architecture();
    let mut kinds = HashMap::new();
    for image in images {
        for site in &sites {
            let name = image.name;
            // Each object of ours has a table of its own.
            let table = image.tables[site.place.0];
            let expected = match &site.target {
                Target::At(place, offset) => {
                    let (start, _) = image.sections.get(place).ok_or_else(|| format!("{site}: {name} left it out"))?;
                    start + offset
                }
                Target::Address(value) | Target::Number(value) => *value,
                Target::Common(name) => image.symbols[name],
                Target::Table => table,
                Target::Module => image.storage.ok_or_else(|| format!("{site}: {name} has no template"))?.start,
                Target::Mark => {
                    let (_, bytes) =
                        image.sections.get(&site.place).ok_or_else(|| format!("{site}: {name} left it out"))?;
                    let at = site.offset as usize;
                    if bytes.get(at..at + site.after.len()) != Some(&site.after) {
                        return Err(format!("{site}: {name} has another instruction there"));
                    }
                    continue;
                }
            };
            let is_thread_local = thread_local::about(architecture, site.kind).is_some();
            let found = match architecture {
                Architecture::Aarch64 if is_thread_local => thread_local::aarch64(image, site, expected),
                Architecture::Aarch64 => aarch64::field(image, site, expected),
                _ if is_thread_local => thread_local::x86_64(image, site, expected),
                _ => value(image, site, table).map(|found| [found, expected]),
            };
            let no_field =
                || format!("{site}: {name} has no such field, or leads to no entry of the GOT that is the symbol's");
            let [found, expected] = found.ok_or_else(no_field)?;
            if found != expected {
                return Err(format!("{site}: {name} leads to {found:#x}, not to {expected:#x}, {:?}", site.target));
            }
        }
    }
    for site in &sites {
        *kinds.entry(site.kind).or_default() += 1;
    }
    Ok(kinds)
}

/// What the operand is now of an instruction that had it from an entry of the GOT.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Operand {
    /// Still the entry.
    Entry,
    /// The symbol, where the entry stood: a load has become a `lea`, or a call a direct one.
    Symbol,
    /// As that, of a jump, whose field begins a byte earlier: `jmp target; nop`.
    Jump,
    /// The address as a number; the other operand is a register.
    Immediate,
}

impl Operand {
    /// By the two bytes before the field in the object and in the image, and the last one of the field.
    fn of(before: Option<[u8; 2]>, now: Option<[u8; 2]>, last: Option<u8>) -> Self {
        match (before, now) {
            _ if before == now => Self::Entry,
            (Some([0x8b, operands]), Some([0x8d, others])) if operands == others => Self::Symbol,
            (Some([0xff, 0x15]), Some([0x67, 0xe8])) => Self::Symbol,
            (Some([0xff, 0x25]), Some([0xe9, _])) if last == Some(0x90) => Self::Jump,
            (Some(_), Some([0x81 | 0xc7 | 0xf7, 0xc0..=0xff])) => Self::Immediate,
            _ => Self::Entry,
        }
    }
}

/// The symbol's address that an image's field was computed from; of some kinds of field, another number.
fn value(image: &Image, site: &Site, table: u64) -> Option<u64> {
    let (start, bytes) = image.sections.get(&site.place)?;
    let offset = site.offset as usize;
    let instruction = offset.checked_sub(2).and_then(|start| bytes.get(start..)?.first_chunk().copied());
    let operand = Operand::of(site.before, instruction, bytes.get(offset + 3).copied());
    let offset = offset - usize::from(operand == Operand::Jump);
    let field = bytes.get(offset..)?;
    let unsigned = |size: usize| {
        let mut word = [0; 8];
        word[..size].copy_from_slice(field.get(..size)?);
        Some(u64::from_le_bytes(word))
    };
    let signed = |size: usize| {
        let unused = 64 - 8 * size as u32;
        Some((unsigned(size)?.cast_signed() << unused >> unused).cast_unsigned())
    };
    let place = start + offset as u64;
    let absolute = |value: u64| Some(value.wrapping_add_signed(-site.addend));
    let relative = |value: u64| absolute(value.wrapping_add(place));
    // A branch goes through a stub or directly. What an entry of the GOT is meant for leads to one, unless another
    // instruction has taken the place of the one that needs it.
    let stub = |address: u64| image.stubs.get(&address).copied().unwrap_or(address);
    let held = |address: u64| image.got.get(&address).copied();
    let entry = |address: u64| if operand == Operand::Entry { held(address) } else { Some(address) };
    match site.kind {
        R_X86_64_REX_GOTPCRELX if operand == Operand::Immediate => unsigned(4),
        R_X86_64_64 => absolute(unsigned(8)?),
        R_X86_64_32 => absolute(unsigned(4)?),
        R_X86_64_32S => absolute(signed(4)?),
        R_X86_64_16 => absolute(unsigned(2)?),
        R_X86_64_8 => absolute(unsigned(1)?),
        R_X86_64_PC64 | R_X86_64_GOTPC64 => relative(signed(8)?),
        R_X86_64_PLT32 => Some(stub(relative(signed(4)?)?)),
        R_X86_64_PC32 | R_X86_64_GOTPC32 => relative(signed(4)?),
        R_X86_64_PC16 => relative(signed(2)?),
        R_X86_64_PC8 => relative(signed(1)?),
        R_X86_64_GOTPCREL | R_X86_64_GOTPCRELX | R_X86_64_REX_GOTPCRELX => entry(relative(signed(4)?)?),
        R_X86_64_GOTPCREL64 => held(relative(signed(8)?)?),
        R_X86_64_GOTOFF64 => absolute(unsigned(8)?.wrapping_add(table)),
        R_X86_64_PLTOFF64 => Some(stub(absolute(unsigned(8)?.wrapping_add(table))?)),
        R_X86_64_GOT64 => held(absolute(unsigned(8)?.wrapping_add(table))?),
        R_X86_64_SIZE32 => absolute(unsigned(4)?),
        R_X86_64_SIZE64 => absolute(unsigned(8)?),
        _ => None,
    }
}

/// Where the names are that can be seen from other objects: strong definitions before weak ones, earlier before later.
fn globals(objects: &[object::File<'_>]) -> HashMap<String, Target> {
    let mut found: HashMap<_, _> = outside(objects).into_iter().map(|(name, at)| (name, Target::Address(at))).collect();
    for is_weak in [false, true] {
        for (index, object) in objects.iter().enumerate() {
            let symbols = object.symbols().filter(|symbol| symbol.is_global() && symbol.is_weak() == is_weak);
            for symbol in symbols {
                let name = symbol.name().unwrap().to_owned();
                if let Some(target) = own(index, &symbol) {
                    found.entry(name).or_insert(target);
                }
            }
        }
    }
    found
}

/// Where a symbol is by its own object.
fn own(index: usize, symbol: &object::Symbol<'_, '_>) -> Option<Target> {
    match symbol.section() {
        SymbolSection::Section(section) => Some(Target::At((index, section), symbol.address())),
        SymbolSection::Absolute => Some(Target::Address(symbol.address())),
        SymbolSection::Common => Some(Target::Common(symbol.name().unwrap_or_default().to_owned())),
        _ => None,
    }
}

fn sites(objects: &[object::File<'_>]) -> Vec<Site> {
    let globals = globals(objects);
    let mut sites = Vec::new();
    for (index, object) in objects.iter().enumerate() {
        for section in object.sections().filter(is_loaded) {
            let bytes = section.data().unwrap();
            for (offset, relocation) in section.relocations() {
                let RelocationTarget::Symbol(index_of_symbol) = relocation.target() else { continue };
                let symbol = object.symbol_by_index(index_of_symbol).unwrap();
                let name = symbol.name().unwrap_or_default();
                let RelocationFlags::Elf { r_type: kind } = relocation.flags() else { continue };
                let local = own(index, &symbol).filter(|_| !symbol.is_global());
                let architecture = object.architecture();
                let about = thread_local::about(architecture, kind);
                let is_table = match architecture {
                    Architecture::X86_64 => matches!(kind, R_X86_64_GOTPC32 | R_X86_64_GOTPC64),
                    _ => name == "_GLOBAL_OFFSET_TABLE_",
                };
                let is_size = architecture == Architecture::X86_64 && matches!(kind, R_X86_64_SIZE32 | R_X86_64_SIZE64);
                let target = match about {
                    Some(About::Mark) => Target::Mark,
                    Some(About::Module) => Target::Module,
                    Some(About::Symbol) if name == "_TLS_MODULE_BASE_" => Target::Module,
                    _ if is_size => Target::Number(symbol.size()),
                    _ if is_table => Target::Table,
                    // A name that nobody defines is weak, or the link would have failed.
                    _ => local.or_else(|| globals.get(name).cloned()).unwrap_or(Target::Address(0)),
                };
                let before = offset.checked_sub(2).and_then(|at| bytes.get(at as usize..)?.first_chunk().copied());
                let what = format!("{}+{offset:#x} -> {name}{:+}", section.name().unwrap(), relocation.addend());
                let (place, addend) = ((index, section.index()), relocation.addend());
                let length = if architecture == Architecture::X86_64 { 2 } else { 4 };
                let after = bytes.iter().skip(offset as usize).take(length).copied().collect();
                let (symbol, partner) = (index_of_symbol, None);
                sites.push(Site { place, offset, kind, addend, target, before, after, symbol, partner, what });
            }
        }
    }
    if objects.iter().any(|object| object.architecture() == Architecture::Aarch64) {
        aarch64::pair(&mut sites);
    }
    sites
}
