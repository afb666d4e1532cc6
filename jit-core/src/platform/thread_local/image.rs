//! The bytes of a shared object with a thread-local segment, or one that only asks where a
//! variable of another is (System V gABI; "ELF Handling For Thread-Local Storage").

use jit_linker::arch::Architecture;

/// What the dynamic loader has to answer.
#[derive(Clone, Copy, Debug)]
pub(super) enum Storage<'a> {
    /// Storage of the object's own: the initial values, zeros up to `size`, and the alignment.
    Own { image: &'a [u8], size: u64, align: u64 },
    /// A variable that another object has: one that everybody sees, or a library's that only those see that need it.
    Variable { name: &'a str, library: Option<&'a str> },
    /// No variable: the threads' stacks are to be executable.
    ExecutableStack,
}

/// Whether the offset from the thread pointer has to be the same in every thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Placement {
    /// Yes: the storage has to be in the static block.
    Static,
    /// The storage is anywhere.
    Dynamic,
}

/// A shared object, and where in it the loader writes its answers.
pub(super) struct SharedObject {
    pub(super) bytes: Vec<u8>,
    /// The offset of three words: the module, the offset in the module's storage, and the offset
    /// from the thread pointer (0 for [`Placement::Dynamic`]).
    pub(super) answers: usize,
}

const HEADER: u64 = 64;
const PROGRAM_HEADER: u64 = 56;
const SYMBOL: u64 = 24;
const RELA: u64 = 24;
const WORD: u64 = 8;

const PT_LOAD: u32 = 1;
const PT_DYNAMIC: u32 = 2;
const PT_TLS: u32 = 7;
const PT_GNU_STACK: u32 = 0x6474_e551;
const READ_WRITE: u32 = 6;

const DT_NEEDED: u64 = 1;
const DT_STRTAB: u64 = 5;
const DT_SYMTAB: u64 = 6;
const DT_RELA: u64 = 7;
const DT_RELASZ: u64 = 8;
const DT_RELAENT: u64 = 9;
const DT_STRSZ: u64 = 10;
const DT_SYMENT: u64 = 11;
const DT_FLAGS: u64 = 30;
const DF_STATIC_TLS: u64 = 0x10;

/// The relocations that ask for the three answers.
struct Relocations {
    machine: u16,
    /// The largest page: segments are aligned to it.
    page: u64,
    module: u64,
    module_offset: u64,
    thread_pointer_offset: u64,
}

fn relocations(architecture: Architecture) -> Relocations {
    match architecture {
        Architecture::Aarch64 => {
            Relocations { machine: 183, page: 0x10000, module: 1028, module_offset: 1029, thread_pointer_offset: 1030 }
        }
        _ => Relocations { machine: 62, page: 0x1000, module: 16, module_offset: 17, thread_pointer_offset: 18 },
    }
}

impl SharedObject {
    /// Lays the object out in one segment that is loaded as it is in the file.
    pub(super) fn new(architecture: Architecture, storage: Storage<'_>, placement: Placement) -> Self {
        let target = relocations(architecture);
        let (names, symbol, (image, size, align)) = match storage {
            Storage::Own { image, size, align } => ("\0".to_owned(), 0, (image, size, align)),
            Storage::Variable { name, library } => {
                (format!("\0{name}\0{}\0", library.unwrap_or_default()), 1, (&[][..], 0, 1))
            }
            Storage::ExecutableStack => ("\0".to_owned(), 0, (&[][..], 0, 1)),
        };
        let needed = match storage {
            Storage::Variable { name, library: Some(_) } => Some((DT_NEEDED, name.len() as u64 + 2)),
            _ => None,
        };
        let asked = match (storage, placement) {
            (Storage::ExecutableStack, _) => 0,
            (_, Placement::Static) => 3,
            (_, Placement::Dynamic) => 2,
        };
        let program_headers = if size > 0 { 4 } else { 3 };
        let dynamic = HEADER + program_headers * PROGRAM_HEADER;
        let dynamic_size = 16 * if needed.is_some() { 10 } else { 9 };
        let symbols = dynamic + dynamic_size;
        let relas = symbols + 2 * SYMBOL;
        let answers = relas + 3 * RELA;
        let strings = answers + 3 * WORD;
        let image_start = (strings + names.len() as u64).next_multiple_of(align);
        let end = image_start + image.len() as u64;

        let mut out = Writer::default();
        out.bytes(&[0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        // A shared object of the machine; no entry, program headers here, no sections.
        out.u16(3).u16(target.machine).u32(1).u64(0).u64(HEADER).u64(0).u32(0);
        out.u16(HEADER as u16).u16(PROGRAM_HEADER as u16).u16(program_headers as u16).u16(64).u16(0).u16(0);
        out.segment(PT_LOAD, READ_WRITE, 0, end, end, target.page);
        out.segment(PT_DYNAMIC, READ_WRITE, dynamic, dynamic_size, dynamic_size, WORD);
        // Without it, the loader would make the threads' stacks executable.
        let is_executable = matches!(storage, Storage::ExecutableStack);
        out.segment(PT_GNU_STACK, READ_WRITE | u32::from(is_executable), 0, 0, 0, 16);
        if size > 0 {
            out.segment(PT_TLS, READ_WRITE, image_start, image.len() as u64, size, align);
        }
        let flags = if placement == Placement::Static { DF_STATIC_TLS } else { 0 };
        let entries = [
            (DT_STRTAB, strings),
            (DT_STRSZ, names.len() as u64),
            (DT_SYMTAB, symbols),
            (DT_SYMENT, SYMBOL),
            (DT_RELA, relas),
            (DT_RELASZ, asked * RELA),
            (DT_RELAENT, RELA),
            (DT_FLAGS, flags),
            (0, 0),
        ];
        for (tag, value) in needed.into_iter().chain(entries) {
            out.u64(tag).u64(value);
        }
        // Symbol 0 stands for the object itself; symbol 1 is global, thread-local and undefined.
        out.bytes(&[0; SYMBOL as usize]);
        out.u32(1).bytes(&[0x16, 0]).u16(0).u64(0).u64(0);
        let asks = [target.module, target.module_offset, target.thread_pointer_offset];
        for (index, kind) in (0..).zip(asks) {
            out.u64(answers + index * WORD).u64(symbol << 32 | kind).u64(0);
        }
        out.bytes(&[0; 3 * WORD as usize]).bytes(names.as_bytes());
        out.0.resize(image_start as usize, 0);
        out.bytes(image);
        Self { bytes: out.0, answers: answers as usize }
    }
}

#[derive(Default)]
struct Writer(Vec<u8>);

impl Writer {
    fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self
    }

    fn u16(&mut self, value: u16) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    fn u32(&mut self, value: u32) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    fn u64(&mut self, value: u64) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    /// A segment whose addresses are its offsets in the file.
    fn segment(&mut self, kind: u32, flags: u32, start: u64, file_size: u64, memory_size: u64, align: u64) {
        self.u32(kind).u32(flags).u64(start).u64(start).u64(start).u64(file_size).u64(memory_size).u64(align);
    }
}

#[cfg(test)]
mod tests {
    use object::read::elf::{ElfFile64, FileHeader, ProgramHeader};
    use object::{Endianness, Object, ObjectSegment};

    use super::*;

    #[test]
    fn what_is_written_is_what_object_reads() {
        for architecture in [Architecture::X86_64, Architecture::Aarch64] {
            let storage = Storage::Own { image: &[1, 2, 3], size: 100, align: 64 };
            let object = SharedObject::new(architecture, storage, Placement::Static);
            let file = ElfFile64::<Endianness>::parse(&*object.bytes).unwrap();
            let header = file.elf_header();
            let segments = header.program_headers(Endianness::Little, &*object.bytes).unwrap();
            let tls = segments.iter().find(|segment| segment.p_type(Endianness::Little) == PT_TLS).unwrap();
            assert_eq!(tls.data(Endianness::Little, &*object.bytes).unwrap(), [1, 2, 3]);
            assert_eq!(tls.p_memsz(Endianness::Little), 100);
            assert_eq!(tls.p_vaddr(Endianness::Little) % 64, 0);
            let load = file.segments().next().unwrap();
            assert_eq!(load.size(), object.bytes.len() as u64);
            assert!(object.answers.is_multiple_of(8) && object.answers + 24 <= object.bytes.len());
        }
    }
}
