// JITLink by itself: an object becomes a graph, is linked into this process's memory, and is given back.

#include "llvm/ExecutionEngine/JITLink/JITLink.h"
#include "llvm/ExecutionEngine/JITLink/JITLinkMemoryManager.h"
#include "llvm/ExecutionEngine/Orc/SymbolStringPool.h"
#include "llvm/Support/CBindingWrapping.h"
#include "llvm-c/Error.h"

using namespace llvm;
using namespace llvm::jitlink;

namespace {

// Every external symbol is at one address.
class Context final : public JITLinkContext {
  public:
    Context(JITLinkMemoryManager &memory, orc::ExecutorAddr external, Error &outcome)
        : JITLinkContext(nullptr), memory(memory), external(external), outcome(outcome) {}

    JITLinkMemoryManager &getMemoryManager() override { return memory; }

    void notifyFailed(Error error) override { outcome = joinErrors(std::move(outcome), std::move(error)); }

    void lookup(const LookupMap &symbols, std::unique_ptr<JITLinkAsyncLookupContinuation> next) override {
        AsyncLookupResult found;
        for (auto &symbol : symbols)
            found[symbol.first] = {external, JITSymbolFlags::Exported};
        next->run(std::move(found));
    }

    Error notifyResolved(LinkGraph &) override { return Error::success(); }

    void notifyFinalized(JITLinkMemoryManager::FinalizedAlloc linked) override {
        outcome = joinErrors(std::move(outcome), memory.deallocate(std::move(linked)));
    }

  private:
    JITLinkMemoryManager &memory;
    orc::ExecutorAddr external;
    Error &outcome;
};

} // namespace

extern "C" {

LLVMErrorRef orcane_llvm_link(const char *bytes, size_t size, uint64_t external) {
    auto memory = InProcessMemoryManager::Create();
    if (!memory)
        return wrap(memory.takeError());
    auto names = std::make_shared<orc::SymbolStringPool>();
    auto graph = createLinkGraphFromObject(MemoryBufferRef(StringRef(bytes, size), "object"), names);
    if (!graph)
        return wrap(graph.takeError());
    Error outcome = Error::success();
    link(std::move(*graph), std::make_unique<Context>(**memory, orc::ExecutorAddr(external), outcome));
    return wrap(std::move(outcome));
}
}
