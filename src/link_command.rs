//! `orcane inspect` and `orcane link`: objects that are looked at, or linked without being run.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;
use orcane::linker::arch::Architecture;
use orcane::linker::format::archive::{Archive, is_archive};
use orcane::linker::format::macho::slice;
use orcane::linker::format::{self, open};
use orcane::linker::graph::{
    Definition, LinkGraph, Linkage, ObjectBytes, Scope, SectionBound, SectionRole, Symbol, SymbolId,
};
use orcane::linker::link::{self, Allocated, TlsLocation};
use orcane::linker::memory::{DetachedMemory, MemoryManager, SegmentKind};
use orcane::linker::{SymbolName, SymbolStringPool};

use crate::Result;

/// What `orcane link` is told.
#[derive(Args)]
pub(crate) struct LinkOptions {
    /// Only links; nothing is loaded into this process and nothing is run
    #[arg(long, required = true)]
    no_exec: bool,
    /// The target the objects have to be for, as in `aarch64-unknown-linux-gnu`; that of the first if not given
    #[arg(long)]
    triple: Option<String>,
    /// The address of the first segment
    #[arg(long, default_value = "0x400000", value_parser = number)]
    base: u64,
    /// The address of a symbol that no file defines
    #[arg(long, value_name = "SYMBOL=ADDRESS", value_parser = definition)]
    define: Vec<(String, u64)>,
    /// Where to write, as JSON, the addresses of sections, symbols, stubs and GOT entries
    #[arg(long)]
    map: Option<PathBuf>,
    /// A folder to write the linked bytes of each section and segment to: stubs and the GOT are in no section
    #[arg(long)]
    dump: Option<PathBuf>,
    /// The objects, and archives, of which what is needed is linked
    #[arg(required = true)]
    files: Vec<PathBuf>,
}

fn number(text: &str) -> std::result::Result<u64, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    parsed.map_err(|error| error.to_string())
}

fn definition(text: &str) -> std::result::Result<(String, u64), String> {
    let (name, address) = text.split_once('=').ok_or("there is no '='")?;
    Ok((name.to_owned(), number(address)?))
}

fn read(file: &Path, architecture: Option<Architecture>) -> Result<(String, ObjectBytes)> {
    let (name, bytes) = (file.display().to_string(), open(file)?);
    let bytes = match architecture.or_else(Architecture::host) {
        Some(architecture) => slice(&name, &bytes, architecture)?,
        None => bytes,
    };
    Ok((name, bytes))
}

/// Prints the link graph of each file.
pub(crate) fn inspect(files: &[PathBuf]) -> Result<ExitCode> {
    let names = SymbolStringPool::new();
    for file in files {
        let (name, bytes) = read(file, None)?;
        print!("{}", format::parse(&name, bytes, &names)?);
    }
    Ok(ExitCode::SUCCESS)
}

/// A visible symbol.
fn is_visible_definition(symbol: &Symbol) -> bool {
    symbol.is_named() && symbol.scope != Scope::Local && symbol.is_defined_here()
}

/// Which of two definitions is taken: that of higher rank.
fn rank(linkage: Linkage) -> u8 {
    match linkage {
        Linkage::Weak => 0,
        Linkage::Common => 1,
        Linkage::Strong => 2,
    }
}

/// Makes a weak or common definition external where another object's is used: also its own object refers to that one.
fn leave_to_others(graphs: &mut [LinkGraph]) {
    let mut chosen: HashMap<SymbolName, (Linkage, usize)> = HashMap::new();
    let mut commons: HashMap<SymbolName, (u32, u8)> = HashMap::new();
    for (index, graph) in graphs.iter().enumerate() {
        for (id, symbol) in graph.symbols().filter(|(_, symbol)| is_visible_definition(symbol)) {
            let Some(name) = graph.symbol_name(id) else { continue };
            let known = chosen.entry(name.clone()).or_insert((symbol.linkage, index));
            if rank(symbol.linkage) > rank(known.0) {
                *known = (symbol.linkage, index);
            }
            if let (Linkage::Common, Definition::Block { block, .. }) = (symbol.linkage, symbol.definition) {
                let (block, (size, align)) = (graph.block(block), commons.entry(name.clone()).or_default());
                (*size, *align) = (block.size.max(*size), block.align_log2.max(*align));
            }
        }
    }
    for (index, graph) in graphs.iter_mut().enumerate() {
        let is_elsewhere = |id: SymbolId, symbol: &Symbol| {
            let chosen = graph.symbol_name(id).and_then(|name| chosen.get(name));
            chosen.is_some_and(|(_, other)| *other != index)
                && symbol.linkage != Linkage::Strong
                && is_visible_definition(symbol)
        };
        let left = graph.symbols().filter(|(id, symbol)| is_elsewhere(*id, symbol)).map(|(id, _)| id);
        let left: Vec<_> = left.collect();
        left.into_iter().for_each(|id| graph.make_external(id));
        // The one that stays is as large as any object needs it.
        let largest = |id: SymbolId| commons.get(graph.symbol_name(id)?).copied();
        let own: Vec<_> = graph.symbols().filter_map(|(id, _)| Some((id, largest(id)?))).collect();
        own.into_iter().for_each(|(id, (size, align))| graph.grow_common(id, size, align));
    }
}

/// The objects, and what they need of the archives.
fn gather(options: &LinkOptions, names: &SymbolStringPool) -> Result<Vec<LinkGraph>> {
    let wanted = wanted(options)?;
    let mut graphs = Vec::new();
    let mut archives = Vec::new();
    for file in &options.files {
        let (name, bytes) = read(file, wanted)?;
        if is_archive(&bytes) {
            archives.push(Archive::parse(file, bytes)?);
        } else {
            graphs.push(format::parse(&name, bytes, names)?);
        }
    }
    let given = options.define.iter().map(|(name, _)| names.intern(name)).collect();
    add_members(&mut graphs, &archives, given, names)?;
    Ok(graphs)
}

/// Adds what objects need of archives, and what that needs. Nobody has to define the names that are `known`.
pub(crate) fn add_members(
    graphs: &mut Vec<LinkGraph>,
    archives: &[Archive],
    mut known: HashSet<SymbolName>,
    names: &SymbolStringPool,
) -> Result<()> {
    // Objects on the command line define what they do before a member is asked for it.
    graphs.iter().for_each(|graph| known.extend(defined(graph)));
    let find = |name: &SymbolName| {
        archives.iter().enumerate().find_map(|(index, archive)| Some((index, archive.member_with(name)?)))
    };
    let mut added = HashSet::new();
    let mut next = 0;
    while let Some(graph) = graphs.get(next) {
        next += 1;
        let commons: Vec<_> = commons(graph).collect();
        let needed = needed(graph).filter(|name| !known.contains(name)).collect::<Vec<_>>();
        for (name, is_common) in
            needed.into_iter().map(|name| (name, false)).chain(commons.into_iter().map(|name| (name, true)))
        {
            let Some((index, id)) = find(&name).filter(|member| !added.contains(member)) else { continue };
            if !is_common && known.contains(&name) {
                continue;
            }
            let member = archives[index].member(id)?;
            let graph = format::parse(&member.name, member.object, names)?;
            // A common has a member only if that gives it a value.
            if !is_common || graph.has_value(&name) && !graphs.iter().any(|graph| graph.has_value(&name)) {
                added.insert((index, id));
                known.extend(defined(&graph));
                graphs.push(graph);
            }
        }
    }
    Ok(())
}

/// The names that an object needs: not what it can do without.
fn needed(graph: &LinkGraph) -> impl Iterator<Item = SymbolName> {
    let is_needed = |symbol: &Symbol| symbol.definition == Definition::External && symbol.linkage != Linkage::Weak;
    let externals = graph.symbols().filter(move |(_, symbol)| is_needed(symbol));
    externals
        .filter_map(|(id, _)| graph.symbol_name(id).cloned())
        .chain(graph.aliases().iter().map(|(_, name)| name.clone()))
}

/// The names of its commons.
fn commons(graph: &LinkGraph) -> impl Iterator<Item = SymbolName> {
    let is_common = |symbol: &Symbol| symbol.linkage == Linkage::Common && is_visible_definition(symbol);
    let commons = graph.symbols().filter(move |(_, symbol)| is_common(symbol));
    commons.filter_map(|(id, _)| graph.symbol_name(id).cloned())
}

/// The names that it defines.
fn defined(graph: &LinkGraph) -> impl Iterator<Item = SymbolName> {
    let own = graph.symbols().filter(|(_, symbol)| symbol.definition != Definition::External);
    own.filter_map(|(id, _)| graph.symbol_name(id).cloned()).chain(graph.aliases().iter().map(|(name, _)| name.clone()))
}

/// Links the files one behind the other, each to what any of them defines.
pub(crate) fn link(options: &LinkOptions) -> Result<ExitCode> {
    let names = SymbolStringPool::new();
    let memory: Arc<dyn MemoryManager> = Arc::new(DetachedMemory::at(options.base));
    let mut comdats = HashSet::new();
    let mut graphs = gather(options, &names)?;
    for graph in &mut graphs {
        check_target(options, graph)?;
        graph.retain_comdats(|comdat| comdats.insert(comdat.signature.clone()));
    }
    leave_to_others(&mut graphs);
    check_bounds(&graphs)?;
    let mut allocated = Vec::new();
    for graph in graphs {
        allocated.push(link::prepare(graph)?.allocate(&memory)?);
    }
    let defined = definitions(options, &allocated)?;
    let mut maps = Vec::new();
    for (index, mut allocated) in allocated.into_iter().enumerate() {
        resolve(&mut allocated, &defined)?;
        maps.push(allocated.map().to_json());
        let sections: Vec<_> = allocated
            .graph()
            .sections()
            .map(|(id, section)| {
                let name = allocated.graph().section_name(id).into_owned();
                (name, section.kind, allocated.section_range(id))
            })
            .collect();
        let base = SegmentKind::ALL.map(|kind| allocated.segment(kind).start);
        let mut fixed = allocated.fix_up()?;
        let Some(folder) = &options.dump else { continue };
        std::fs::create_dir_all(folder)?;
        for (number, (name, kind, range)) in sections.into_iter().enumerate() {
            let start = (range.start - base[kind as usize]) as usize;
            let bytes = &fixed.content(kind)[start..start + (range.end - range.start) as usize];
            std::fs::write(folder.join(format!("{index}.{number}{}", file_name(&name))), bytes)?;
        }
        for kind in SegmentKind::ALL {
            std::fs::write(folder.join(format!("{index}.{kind:?}")), fixed.content(kind))?;
        }
    }
    if let Some(path) = &options.map {
        std::fs::write(path, format!("[{}]\n", maps.join(",\n")))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// A section's name as a part of a file's: those of C++'s templates are longer than a system takes.
fn file_name(section: &str) -> String {
    const LONGEST: usize = 200;
    let mut name = section.replace('/', "_");
    if name.len() > LONGEST {
        name.truncate(name.floor_char_boundary(LONGEST));
    }
    name
}

fn wanted(options: &LinkOptions) -> Result<Option<Architecture>> {
    match options.triple.as_deref().map(|triple| triple.split('-').next().unwrap_or_default()) {
        None => Ok(None),
        Some("x86_64") => Ok(Some(Architecture::X86_64)),
        Some("aarch64" | "arm64") => Ok(Some(Architecture::Aarch64)),
        Some(other) => Err(format!("there is no linker for {other}").into()),
    }
}

fn check_target(options: &LinkOptions, graph: &LinkGraph) -> Result<()> {
    if let Some(wanted) = wanted(options)?
        && graph.architecture() != wanted
    {
        return Err(format!("{} is for {}, not {wanted}", graph.name(), graph.architecture()).into());
    }
    Ok(())
}

/// Refuses bounds of sections that several files have: each has its own where it is itself.
fn check_bounds(graphs: &[LinkGraph]) -> Result<()> {
    let mut owners: HashMap<String, HashSet<usize>> = HashMap::new();
    for (owner, graph) in graphs.iter().enumerate() {
        for section in graph.named_sections() {
            section.bounded().for_each(|name| _ = owners.entry(name.to_owned()).or_default().insert(owner));
        }
    }
    for graph in graphs {
        for SectionBound { name, .. } in graph.section_bounds() {
            if owners.get(&name).is_some_and(|owners| owners.len() > 1) {
                let what = "it asks for the bounds of what several files have, which stays apart, in";
                return Err(format!("{}: {what} '{name}'", graph.name()).into());
            }
        }
    }
    Ok(())
}

/// Where each visible symbol is: strong definitions before commons and weak ones, earlier before later.
fn definitions(options: &LinkOptions, graphs: &[Allocated]) -> Result<HashMap<String, u64>> {
    let mut defined: HashMap<String, (Linkage, u64)> = HashMap::new();
    for allocated in graphs {
        for (id, symbol) in allocated.graph().symbols() {
            let is_here = symbol.is_defined_here() || symbol.definition == Definition::Absolute;
            let name = allocated.graph().symbol_name(id).filter(|_| is_here && symbol.scope != Scope::Local);
            let Some(name) = name else { continue };
            match defined.get(name.as_str()) {
                Some((Linkage::Strong, _)) if symbol.linkage == Linkage::Strong => {
                    return Err(
                        format!("{name} is defined twice, the second time in {}", allocated.graph().name()).into()
                    );
                }
                Some(_) if symbol.linkage != Linkage::Strong => {}
                _ => _ = defined.insert(name.to_string(), (symbol.linkage, allocated.address(id))),
            }
        }
    }
    // A chain of aliases is no longer than all of them.
    let aliases: Vec<_> = graphs.iter().flat_map(|allocated| allocated.graph().aliases()).collect();
    for _ in 0..aliases.len() {
        for (name, target) in &aliases {
            if let Some(found) = defined.get(target.as_str()).copied() {
                defined.entry(name.to_string()).or_insert(found);
            }
        }
    }
    let given = options.define.iter().map(|(name, address)| (name.clone(), *address));
    Ok(defined.into_iter().map(|(name, (_, address))| (name, address)).chain(given).collect())
}

fn resolve(allocated: &mut Allocated, defined: &HashMap<String, u64>) -> Result<()> {
    for id in allocated.externals() {
        let symbol = allocated.graph().symbol(id);
        let name = allocated.graph().symbol_name(id).map_or_else(String::new, ToString::to_string);
        let address = match defined.get(&name) {
            Some(address) => *address,
            None if symbol.linkage == Linkage::Weak => 0,
            None => return Err(format!("in {}: {name} is undefined", allocated.graph().name()).into()),
        };
        allocated.resolve(id, address, None);
    }
    // As in a program of this one object: behind the thread pointer and its two words, or before it.
    if let Some(template) = allocated.graph().section_with(SectionRole::ThreadLocal) {
        let range = allocated.section_range(template);
        let align = 1 << allocated.graph().section(template).align_log2;
        let offset = match allocated.graph().architecture() {
            Architecture::Aarch64 => 16u64.next_multiple_of(align).cast_signed(),
            _ => -(range.end - range.start).next_multiple_of(align).cast_signed(),
        };
        allocated.set_thread_local_storage(TlsLocation {
            module: 1,
            offset: 0,
            thread_pointer_offset: Some(offset),
            descriptor: None,
        });
    }
    Ok(())
}
