//! What code that is not position-independent takes to be below 2 GiB, and is not: functions and type information of the
//! process's libraries. A static linker has an entry in the program stand for such a function, whose address it is for
//! the whole program, and copies type information.

use jit_linker::SymbolName;
use jit_linker::arch::{Reach, add_jump};
use jit_linker::graph::{Definition, LinkGraph};
use jit_linker::link;
use jit_linker::link::Fixed;
use jit_linker::memory::{FinalizedAllocation, SegmentKind};
use rustc_hash::{FxHashMap, FxHashSet};

use crate::error::Cause;
use crate::platform::{ObjectCode, Services};
use crate::session::ExecutionSession;

/// Where an address has to be that is stored in 32 bits.
const LOW: u64 = 1 << 31;

/// What stands in a program for what is far away.
#[derive(Debug, Default)]
pub(super) struct Low {
    /// What code refers to by 32 bits.
    names: FxHashSet<SymbolName>,
    /// By the far address.
    standing_in: FxHashMap<u64, (u64, FinalizedAllocation)>,
}

impl Low {
    /// Takes note of what an object refers to by 32 bits.
    pub(super) fn add(&mut self, session: &ExecutionSession, graph: &LinkGraph) {
        if !is_low(session) {
            return;
        }
        for edge in graph.edges().iter().filter(|edge| edge.kind.reach() == Reach::Low) {
            let symbol = graph.symbol(edge.target);
            if symbol.definition == Definition::External
                && let Some(name) = graph.symbol_name(edge.target)
            {
                self.names.insert(name.clone());
            }
        }
    }

    /// The address of a symbol for the whole program.
    ///
    /// # Errors
    ///
    /// When there is no memory for what is to stand in for it.
    pub(super) fn address(
        &mut self,
        session: &ExecutionSession,
        services: &Services,
        name: &SymbolName,
        address: u64,
    ) -> Result<u64, Cause> {
        let memory = session.executor().memory();
        if address < LOW || !is_low(session) || !self.names.contains(name) {
            return Ok(address);
        }
        if let Some((low, _)) = self.standing_in.get(&address) {
            return Ok(*low);
        }
        let mut graph = LinkGraph::new(format!("{name} of the process"), session.executor().architecture());
        let block = match symbol_of_process(address) {
            Some(symbol) if symbol.is_function => {
                let target = graph.absolute(address);
                add_jump(&mut graph, target)
            }
            Some(symbol) if is_constant(name) && symbol.size > 0 => {
                graph.add_block(SegmentKind::Data, &symbol.bytes(), 16)
            }
            _ => return Ok(address),
        };
        let block = block.map_err(link::LinkError::from)?;
        let symbol = graph.define(None, block, 0, 0);
        let allocated = link::prepare(graph)?.allocate(memory)?;
        let low = allocated.address(symbol);
        let told = ObjectCode::of(services, session, &allocated);
        let mut code = allocated.fix_up().and_then(Fixed::finalize)?;
        told.register(services, &mut code).map_err(|error| Cause::Other(error.to_string().into()))?;
        self.standing_in.insert(address, (low, code));
        Ok(low)
    }
}

/// Whether what is linked is where such code reaches it.
fn is_low(session: &ExecutionSession) -> bool {
    session.executor().memory().range().is_some_and(|range| range.end <= LOW)
}

/// Whether a symbol is type information or a table of virtual functions (Itanium C++ ABI, "Virtual Tables and RTTI"),
/// which never change, and of which nobody compares addresses alone.
fn is_constant(name: &str) -> bool {
    ["_ZTI", "_ZTV", "_ZTT"].iter().any(|prefix| name.starts_with(prefix))
}

/// What is at an address of a library of the process.
struct ProcessSymbol {
    address: u64,
    size: usize,
    is_function: bool,
}

impl ProcessSymbol {
    /// Its content.
    fn bytes(&self) -> Vec<u8> {
        let start = std::ptr::with_exposed_provenance::<u8>(self.address as usize);
        // SAFETY: the library says that it has a symbol of this size there, and is never unloaded.
        unsafe { std::slice::from_raw_parts(start, self.size) }.to_vec()
    }
}

/// `None` if no library of the process has something there.
fn symbol_of_process(address: u64) -> Option<ProcessSymbol> {
    let mut segments = Segments { address, is_function: None };
    // SAFETY: the callback gets what it expects, and the value lives until the call returns.
    unsafe { libc::dl_iterate_phdr(Some(note_segment), (&raw mut segments).cast()) };
    Some(ProcessSymbol { address, size: size_of_symbol(address), is_function: segments.is_function? })
}

/// The size that the library says a symbol at an address has; 0 if it does not say.
fn size_of_symbol(address: u64) -> usize {
    /// An entry of a table of symbols (`Elf64_Sym`).
    #[repr(C)]
    struct Entry {
        name: u32,
        info: [u8; 2],
        section: u16,
        value: u64,
        size: u64,
    }
    unsafe extern "C" {
        fn dladdr1(
            address: *const libc::c_void,
            info: *mut libc::Dl_info,
            extra: *mut *mut libc::c_void,
            flags: i32,
        ) -> i32;
    }
    const RTLD_DL_SYMENT: i32 = 1;
    // SAFETY: zeros are a value of it.
    let mut info: libc::Dl_info = unsafe { std::mem::zeroed() };
    let mut entry = std::ptr::null_mut();
    let there = std::ptr::with_exposed_provenance(address as usize);
    // SAFETY: it reads an address that may be anything, and writes to what it is given.
    let found = unsafe { dladdr1(there, &raw mut info, &raw mut entry, RTLD_DL_SYMENT) };
    // SAFETY: with that flag, it gives an entry of a library's table, or null.
    let entry = unsafe { entry.cast::<Entry>().as_ref() };
    entry.filter(|_| found != 0 && info.dli_saddr as u64 == address).map_or(0, |entry| entry.size as usize)
}

/// What segment of a library an address is in.
struct Segments {
    address: u64,
    is_function: Option<bool>,
}

unsafe extern "C" fn note_segment(library: *mut libc::dl_phdr_info, _: usize, found: *mut libc::c_void) -> i32 {
    // SAFETY: the loader gives its entry, with as many headers as it says; the value is ours.
    let (library, found) = unsafe { (&*library, &mut *found.cast::<Segments>()) };
    // SAFETY: as above.
    let headers = unsafe { std::slice::from_raw_parts(library.dlpi_phdr, library.dlpi_phnum.into()) };
    for header in headers.iter().filter(|header| header.p_type == libc::PT_LOAD) {
        let start = library.dlpi_addr.wrapping_add(header.p_vaddr);
        if (start..start + header.p_memsz).contains(&found.address) {
            found.is_function = Some(header.p_flags & libc::PF_X != 0);
            return 1;
        }
    }
    0
}
