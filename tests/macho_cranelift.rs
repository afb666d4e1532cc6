//! Mach-O objects that `cranelift-object` writes, linked and run.
#![cfg(target_os = "linux")]

use std::sync::Arc;

use cranelift_codegen::ir::{AbiParam, Function, InstBuilder, MemFlagsData, types};
use cranelift_codegen::settings::{self, Configurable};
use cranelift_frontend::{FunctionBuilder, FunctionBuilderContext};
use cranelift_module::{DataDescription, Linkage, Module, default_libcall_names};
use cranelift_object::{ObjectBuilder, ObjectModule};
use orcane::linker::arch::Architecture;
use orcane::linker::graph::ObjectBytes;
use orcane::linker::link::{self, TlsLocation};
use orcane::linker::memory::{MemoryManager, SlabManager};
use orcane::linker::{SymbolStringPool, format};

/// `int entry(int n)` is `outside(n) + shared + own + variable`, where `own` is reached through a
/// pointer in data and `variable` is thread-local.
fn object(triple: &str) -> Vec<u8> {
    let mut flags = settings::builder();
    for (name, value) in [("is_pic", "true"), ("tls_model", "macho"), ("opt_level", "speed")] {
        flags.set(name, value).unwrap();
    }
    let isa = cranelift_codegen::isa::lookup_by_name(triple).unwrap().finish(settings::Flags::new(flags)).unwrap();
    let mut module = ObjectModule::new(ObjectBuilder::new(isa, "object", default_libcall_names()).unwrap());
    let mut signature = module.make_signature();
    signature.params.push(AbiParam::new(types::I32));
    signature.returns.push(AbiParam::new(types::I32));
    let outside = module.declare_function("outside", Linkage::Import, &signature).unwrap();
    let entry = module.declare_function("entry", Linkage::Export, &signature).unwrap();
    let shared = module.declare_data("shared", Linkage::Import, true, false).unwrap();
    let own = module.declare_data("own", Linkage::Local, true, false).unwrap();
    let pointer = module.declare_data("pointer", Linkage::Export, true, false).unwrap();
    let variable = module.declare_data("variable", Linkage::Export, true, true).unwrap();
    for (id, value) in [(own, 1000i32), (variable, 50_000)] {
        let mut data = DataDescription::new();
        data.define(value.to_le_bytes().into());
        data.set_align(4);
        module.define_data(id, &data).unwrap();
    }
    let mut data = DataDescription::new();
    // As bytes: what is only zeros goes to a section that stores none, and can have no pointer.
    data.define(vec![0; 8].into());
    data.set_align(8);
    let to_own = module.declare_data_in_data(own, &mut data);
    data.write_data_addr(0, to_own, 0);
    module.define_data(pointer, &data).unwrap();

    let mut context = module.make_context();
    context.func = Function::with_name_signature(Default::default(), signature);
    let mut scratch = FunctionBuilderContext::new();
    let mut builder = FunctionBuilder::new(&mut context.func, &mut scratch);
    let block = builder.create_block();
    builder.append_block_params_for_function_params(block);
    builder.switch_to_block(block);
    builder.seal_block(block);
    let argument = builder.block_params(block)[0];
    let callee = module.declare_func_in_func(outside, builder.func);
    let call = builder.ins().call(callee, &[argument]);
    let mut sum = builder.inst_results(call)[0];
    let flags = MemFlagsData::trusted();
    let [shared, pointer, variable] =
        [shared, pointer, variable].map(|id| module.declare_data_in_func(id, builder.func));
    let shared = builder.ins().symbol_value(types::I64, shared);
    let pointer = builder.ins().symbol_value(types::I64, pointer);
    let own = builder.ins().load(types::I64, flags, pointer, 0);
    let variable = builder.ins().tls_value(types::I64, variable);
    for address in [shared, own, variable] {
        let value = builder.ins().load(types::I32, flags, address, 0);
        sum = builder.ins().iadd(sum, value);
    }
    builder.ins().return_(&[sum]);
    builder.finalize(module.target_config());
    module.define_function(entry, &mut context).unwrap();
    module.finish().emit().unwrap()
}

extern "C" fn outside(n: i32) -> i32 {
    2 * n
}

/// What `__tls_get_addr` takes.
#[repr(C)]
struct Index {
    module: u64,
    offset: u64,
}

static SHARED: i32 = 300;
static VARIABLE: i32 = 50_000;

extern "C" fn find(index: &Index) -> *const i32 {
    assert_eq!((index.module, index.offset), (3, 16));
    &raw const VARIABLE
}

#[test]
fn a_mach_o_object_of_cranelift_runs() {
    for (triple, architecture) in
        [("x86_64-apple-darwin", Architecture::X86_64), ("aarch64-apple-darwin", Architecture::Aarch64)]
    {
        let graph = format::parse("object.o", ObjectBytes::from(object(triple)), &SymbolStringPool::new()).unwrap();
        assert_eq!(graph.architecture(), architecture);
        let memory: Arc<dyn MemoryManager> = Arc::new(SlabManager::new().unwrap());
        let mut allocated = link::prepare(graph).unwrap().allocate(&memory).unwrap();
        for symbol in allocated.externals() {
            let address = match &**allocated.graph().symbol_name(symbol).unwrap() {
                "outside" => outside as *const () as u64,
                "shared" => &raw const SHARED as u64,
                "__tls_get_addr" => find as *const () as u64,
                name => panic!("{name} is undefined"),
            };
            allocated.resolve(symbol, address, None);
        }
        allocated.set_thread_local_storage(TlsLocation {
            module: 3,
            offset: 16,
            thread_pointer_offset: None,
            descriptor: None,
        });
        let entry = allocated.graph().find_symbol("entry").unwrap();
        let entry = std::ptr::with_exposed_provenance::<()>(allocated.address(entry) as usize);
        let _code = allocated.fix_up().unwrap().finalize().unwrap();
        if Architecture::host() == Some(architecture) {
            // SAFETY: the function has this type, and its code is there.
            let entry = unsafe { std::mem::transmute::<*const (), extern "C" fn(i32) -> i32>(entry) };
            assert_eq!(entry(7), 14 + 300 + 1000 + 50_000);
        }
    }
}
