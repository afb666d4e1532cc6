// LLJIT and LLLazyJIT with the options that LLVM's C API does not have. What is made here is used and disposed of
// through the C API.

#include "llvm-c/LLJIT.h"
#include "llvm/ExecutionEngine/Orc/LLJIT.h"
#include "llvm/Passes/PassBuilder.h"
#include "llvm/Support/CBindingWrapping.h"
#include "llvm/Support/TargetSelect.h"
#include "llvm/Target/TargetMachine.h"

using namespace llvm;
using namespace llvm::orc;

namespace {

DEFINE_SIMPLE_CONVERSION_FUNCTIONS(LLJIT, LLVMOrcLLJITRef)
DEFINE_SIMPLE_CONVERSION_FUNCTIONS(ThreadSafeModule, LLVMOrcThreadSafeModuleRef)

// Optimises a module as `opt -O2` does.
Expected<ThreadSafeModule> optimise(ThreadSafeModule module, TargetMachine &machine, bool vectorise) {
    module.withModuleDo([&](Module &contents) {
        PipelineTuningOptions tuning;
        tuning.LoopVectorization = tuning.SLPVectorization = vectorise;
        PassBuilder builder(&machine, tuning);
        LoopAnalysisManager loops;
        FunctionAnalysisManager functions;
        CGSCCAnalysisManager components;
        ModuleAnalysisManager modules;
        builder.registerModuleAnalyses(modules);
        builder.registerCGSCCAnalyses(components);
        builder.registerFunctionAnalyses(functions);
        builder.registerLoopAnalyses(loops);
        builder.crossRegisterProxies(loops, functions, components, modules);
        builder.buildPerModuleDefaultPipeline(OptimizationLevel::O2).run(contents, modules);
    });
    return module;
}

// What a compile thread optimises for.
Error set_transform(LLJIT &jit, const JITTargetMachineBuilder &target, bool vectorise) {
    auto machine = JITTargetMachineBuilder(target).createTargetMachine();
    if (!machine)
        return machine.takeError();
    auto shared = std::shared_ptr<TargetMachine>(std::move(*machine));
    jit.getIRTransformLayer().setTransform(
        [shared, vectorise](ThreadSafeModule module, const MaterializationResponsibility &) {
            return optimise(std::move(module), *shared, vectorise);
        });
    return Error::success();
}

} // namespace

extern "C" {

// Registers the host's target. Once a process.
void orcane_llvm_initialise() {
    InitializeNativeTarget();
    InitializeNativeTargetAsmPrinter();
    InitializeNativeTargetAsmParser();
}

struct OrcaneLlvmOptions {
    // Whether functions are compiled at their first call; see `orcane_llvm_jit_add`.
    bool lazy;
    // LLVM's code generation level, 0 to 3.
    unsigned code_generation;
    // Whether the IR is optimised as by `-O2`, and whether that may vectorise.
    bool optimise, vectorise;
    unsigned threads;
};

LLVMErrorRef orcane_llvm_jit_create(const OrcaneLlvmOptions *options, LLVMOrcLLJITRef *result) {
    auto target = JITTargetMachineBuilder::detectHost();
    if (!target)
        return wrap(target.takeError());
    target->setCodeGenOptLevel(static_cast<CodeGenOptLevel>(options->code_generation));
    std::unique_ptr<LLJIT> jit;
    if (options->lazy) {
        auto created = LLLazyJITBuilder()
                           .setJITTargetMachineBuilder(*target)
                           .setNumCompileThreads(options->threads)
                           .create();
        if (!created)
            return wrap(created.takeError());
        jit = std::move(*created);
    } else {
        auto created =
            LLJITBuilder().setJITTargetMachineBuilder(*target).setNumCompileThreads(options->threads).create();
        if (!created)
            return wrap(created.takeError());
        jit = std::move(*created);
    }
    if (options->optimise) {
        if (auto error = set_transform(*jit, *target, options->vectorise))
            return wrap(std::move(error));
    }
    *result = wrap(jit.release());
    return nullptr;
}

// Adds a module to the main dylib of a JIT that was created with the same `lazy`. Takes the module.
LLVMErrorRef orcane_llvm_jit_add(LLVMOrcLLJITRef jit, bool lazy, LLVMOrcThreadSafeModuleRef module) {
    std::unique_ptr<ThreadSafeModule> taken(unwrap(module));
    if (lazy)
        return wrap(static_cast<LLLazyJIT *>(unwrap(jit))->addLazyIRModule(std::move(*taken)));
    return wrap(unwrap(jit)->addIRModule(std::move(*taken)));
}

// Looks all names up at once in the main dylib, and waits.
LLVMErrorRef orcane_llvm_jit_lookup_all(LLVMOrcLLJITRef jit, const char *const *names, size_t count) {
    auto &main = unwrap(jit)->getMainJITDylib();
    SymbolLookupSet symbols;
    for (size_t i = 0; i < count; ++i)
        symbols.add(unwrap(jit)->mangleAndIntern(names[i]));
    auto found = main.getExecutionSession().lookup(makeJITDylibSearchOrder(&main), std::move(symbols));
    return wrap(found.takeError());
}

} // extern "C"
