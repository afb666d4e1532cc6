// A bare ExecutionSession that dispatches in place: what LLVM's C API has no functions for.

#include "llvm-c/Error.h"
#include "llvm/ExecutionEngine/Orc/AbsoluteSymbols.h"
#include "llvm/ExecutionEngine/Orc/Core.h"
#include "llvm/ExecutionEngine/Orc/SelfExecutorProcessControl.h"

using namespace llvm;
using namespace llvm::orc;

struct OrcaneLlvmSession {
    ExecutionSession session;
    JITDylib *main = nullptr;

    explicit OrcaneLlvmSession(std::unique_ptr<ExecutorProcessControl> process) : session(std::move(process)) {}
};

extern "C" {

LLVMErrorRef orcane_llvm_session_create(OrcaneLlvmSession **result) {
    auto process = SelfExecutorProcessControl::Create(nullptr, std::make_unique<InPlaceTaskDispatcher>());
    if (!process)
        return wrap(process.takeError());
    auto session = std::make_unique<OrcaneLlvmSession>(std::move(*process));
    session->main = &session->session.createBareJITDylib("main");
    *result = session.release();
    return nullptr;
}

LLVMErrorRef orcane_llvm_session_end(OrcaneLlvmSession *session) {
    auto error = session->session.endSession();
    delete session;
    return wrap(std::move(error));
}

// The names of a table, interned: a handle is its index in the order of interning.
struct OrcaneLlvmNames {
    std::vector<SymbolStringPtr> names;
};

OrcaneLlvmNames *orcane_llvm_names_create() { return new OrcaneLlvmNames; }
void orcane_llvm_names_reserve(OrcaneLlvmNames *names, size_t count) { names->names.reserve(count); }
void orcane_llvm_names_free(OrcaneLlvmNames *names) { delete names; }

void orcane_llvm_names_intern(OrcaneLlvmSession *session, OrcaneLlvmNames *names, const char *text, size_t length) {
    names->names.push_back(session->session.intern(StringRef(text, length)));
}

// Defines all names at an address and the next ones.
LLVMErrorRef orcane_llvm_session_define(OrcaneLlvmSession *session, OrcaneLlvmNames *names, uint64_t address) {
    SymbolMap symbols;
    symbols.reserve(names->names.size());
    for (auto &name : names->names)
        symbols[name] = ExecutorSymbolDef(ExecutorAddr(address++), JITSymbolFlags::Exported);
    return wrap(session->main->define(absoluteSymbols(std::move(symbols))));
}

// Looks the name of an index up; 0 if it is not found.
uint64_t orcane_llvm_session_lookup(OrcaneLlvmSession *session, OrcaneLlvmNames *names, size_t index) {
    auto found = session->session.lookup({session->main}, names->names[index]);
    if (found)
        return found->getAddress().getValue();
    consumeError(found.takeError());
    return 0;
}

// As above, by text.
uint64_t orcane_llvm_session_lookup_text(OrcaneLlvmSession *session, const char *text, size_t length) {
    auto found = session->session.lookup({session->main}, session->session.intern(StringRef(text, length)));
    if (found)
        return found->getAddress().getValue();
    consumeError(found.takeError());
    return 0;
}

// Defines one symbol with a tracker of its own, looks it up, and removes it.
LLVMErrorRef orcane_llvm_session_cycle(OrcaneLlvmSession *session, const char *text, size_t length, uint64_t address) {
    auto name = session->session.intern(StringRef(text, length));
    auto tracker = session->main->createResourceTracker();
    SymbolMap symbols;
    symbols[name] = ExecutorSymbolDef(ExecutorAddr(address), JITSymbolFlags::Exported);
    if (auto error = session->main->define(absoluteSymbols(std::move(symbols)), tracker))
        return wrap(std::move(error));
    auto found = session->session.lookup({session->main}, name);
    if (!found)
        return wrap(found.takeError());
    return wrap(tracker->remove());
}

} // extern "C"
