//! What `docs/orc.md` says is ours, compiled: a name that is not there any more does not compile here.

#![allow(unused_imports, dead_code, reason = "nothing is called")]

use orcane::lazy::{LazyCallThrough, LazyJit, LazyJitBuilder};
use orcane::linker;
use orcane::linker::{LinkGraph, memory::MemoryManager, plugin::Passes};
use orcane::{
    ClifLayer, ClifModule, ClifTransformLayer, DefinitionGenerator, DumpDirectory, DylibLookup, DynamicLibrarySymbols,
    ExecutionSession, ExecutorProcessControl, FoundSymbol, InPlaceDispatcher, InProcess, Jit, JitBuilder, JitDylib,
    LinkPlugin, LookupHandle, LookupKind, LookupSet, LookupState, Mangling, MaterializationResponsibility,
    MaterializationUnit, ObjectCache, ObjectLinkingLayer, ObjectTransformLayer, Platform, ProcessSymbols, Program,
    ProgramOptions, ReExports, ResourceManager, ResourceTracker, SearchOrder, SymbolDef, SymbolDependenceGroup,
    SymbolFlags, SymbolLookup, SymbolName, SymbolStringPool, Task, TaskDispatcher, ThreadPoolDispatcher,
};

fn is_send<T: Send>() {}

fn session() {
    _ = ExecutionSession::end;
    _ = ExecutionSession::intern;
    _ = JitDylib::set_link_order;
    _ = JitDylib::add_to_link_order;
    _ = JitDylib::set_exact_link_order;
    _ = JitDylib::dfs_link_order;
    _ = JitDylib::define_absolute;
    _ = JitDylib::define_aliases;
    _ = JitDylib::re_export;
    _ = MaterializationResponsibility::resolve;
    _ = MaterializationResponsibility::emit;
    _ = MaterializationResponsibility::emit_groups;
    _ = MaterializationResponsibility::fail;
    _ = MaterializationResponsibility::requested_symbols;
    _ = MaterializationResponsibility::define_materializing;
    _ = MaterializationResponsibility::replace;
    _ = MaterializationResponsibility::delegate;
    _ = ResourceTracker::hold;
    _ = ResourceTracker::transfer_to;
    is_send::<ClifModule>();
}

fn lookups(session: &ExecutionSession, unit: MaterializationResponsibility, order: &SearchOrder, set: &LookupSet) {
    _ = session.lookup(order, set.clone());
    _ = session.lookup_until(order, set.clone(), std::time::Instant::now());
    _ = session.lookup_async(order, set.clone(), orcane::SymbolState::Ready, |_| {});
    _ = session.lookup_future(order, set.clone(), orcane::SymbolState::Ready);
    _ = session.lookup_flags(LookupKind::Static, order, set.clone());
    _ = session.lookup_in_state(order, set.clone(), orcane::SymbolState::Resolved);
    _ = unit.with_resource_key(drop);
    _ = unit.lookup_then(order, set.clone(), orcane::SymbolState::Ready, |_, _| {});
}

fn layers(builder: JitBuilder, lazy: LazyJitBuilder) {
    _ = JitBuilder::target;
    _ = JitBuilder::opt_level;
    _ = builder.setting("name", "value");
    _ = JitBuilder::dumps;
    _ = JitBuilder::unwinding;
    _ = JitBuilder::debugger;
    _ = JitBuilder::profiler;
    _ = Jit::redefine;
    _ = Jit::lazy_re_exports;
    _ = lazy.partition(orcane::lazy::whole_module);
    _ = LazyJitBuilder::ahead_threads;
    _ = LazyJitBuilder::tiers;
    _ = Program::add_archive;
    _ = Program::initialize;
    _ = Program::finalize;
    _ = ProgramOptions::debugger;
    _ = ProgramOptions::profiler;
}
