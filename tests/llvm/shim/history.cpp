// Plays a session history, a command a line, against LLVM's ExecutionSession, and prints an answer a line. The grammar
// is in tests/sessions/history.rs.

#include "llvm/ExecutionEngine/Orc/AbsoluteSymbols.h"
#include "llvm/ExecutionEngine/Orc/Core.h"
#include "llvm/ExecutionEngine/Orc/SelfExecutorProcessControl.h"
#include <algorithm>
#include <cstdlib>
#include <iostream>
#include <memory>
#include <optional>
#include <sstream>

using namespace llvm;
using namespace llvm::orc;

namespace {

// A unit that defines symbols, needs others, and may fail.
class HistoryUnit : public MaterializationUnit {
public:
    HistoryUnit(SymbolFlagsMap flags, SymbolMap symbols, std::vector<SymbolStringPtr> needs, std::string mode)
        : MaterializationUnit(Interface(std::move(flags), nullptr)), symbols(std::move(symbols)),
          needs(std::move(needs)), mode(std::move(mode)) {}

    StringRef getName() const override { return "unit"; }

    void materialize(std::unique_ptr<MaterializationResponsibility> own) override {
        if (mode == "fails")
            return own->failMaterialization();
        SymbolMap resolved;
        for (auto &symbol : own->getSymbols())
            resolved[symbol.first] = ExecutorSymbolDef(symbols[symbol.first].getAddress(), symbol.second);
        if (auto error = own->notifyResolved(resolved)) {
            consumeError(std::move(error));
            return own->failMaterialization();
        }
        if (mode == "fails-late")
            return own->failMaterialization();
        if (needs.empty()) {
            return emit(*own, SymbolDependenceMap());
        }
        JITDylibSearchOrder order;
        own->getTargetJITDylib().withLinkOrderDo([&](const JITDylibSearchOrder &links) { order = links; });
        auto dependences = std::make_shared<SymbolDependenceMap>();
        auto &session = own->getExecutionSession();
        std::shared_ptr<MaterializationResponsibility> shared(std::move(own));
        session.lookup(
            LookupKind::Static, order, SymbolLookupSet(needs), SymbolState::Resolved,
            [shared, dependences](Expected<SymbolMap> found) mutable {
                if (!found) {
                    consumeError(found.takeError());
                    return shared->failMaterialization();
                }
                emit(*shared, *dependences);
            },
            [dependences](const SymbolDependenceMap &needed) { *dependences = needed; });
    }

private:
    static void emit(MaterializationResponsibility &own, const SymbolDependenceMap &needed) {
        SymbolDependenceGroup group;
        for (auto &symbol : own.getSymbols())
            group.Symbols.insert(symbol.first);
        group.Dependencies = needed;
        std::vector<SymbolDependenceGroup> groups;
        if (!needed.empty())
            groups.push_back(std::move(group));
        if (auto error = own.notifyEmitted(groups)) {
            consumeError(std::move(error));
            own.failMaterialization();
        }
    }

    void discard(const JITDylib &, const SymbolStringPtr &) override {}

    SymbolMap symbols;
    std::vector<SymbolStringPtr> needs;
    std::string mode;
};

std::string name_of(Error error) {
    if (!error)
        return "ok";
    std::string name;
    if (error.isA<ResourceTrackerDefunct>())
        name = "defunct";
    else if (error.isA<SymbolsCouldNotBeRemoved>())
        name = "busy";
    else if (error.isA<FailedToMaterialize>() || error.isA<UnsatisfiedSymbolDependencies>())
        name = "failed";
    else if (error.isA<SymbolsNotFound>()) {
        handleAllErrors(std::move(error), [&](const SymbolsNotFound &missing) {
            std::vector<std::string> names;
            for (auto &symbol : missing.getSymbols())
                names.push_back((*symbol).str());
            std::sort(names.begin(), names.end());
            name = "missing";
            for (auto &symbol : names)
                name += " " + symbol;
        });
        return name;
    } else {
        // The class of this error is not in LLVM's headers.
        auto message = toString(std::move(error));
        return message.find("uplicate definition") != std::string::npos ? "duplicate" : "error: " + message;
    }
    consumeError(std::move(error));
    return name;
}

class Player {
public:
    explicit Player(std::unique_ptr<ExecutorProcessControl> process) : session(std::move(process)) {
        session.setErrorReporter([](Error error) { consumeError(std::move(error)); });
    }

    std::string play(const std::string &line) {
        std::istringstream words(line);
        std::string command;
        words >> command;
        if (command == "dylib") {
            dylibs.push_back(&session.createBareJITDylib("d" + std::to_string(dylibs.size())));
            return "ok";
        }
        if (command == "link") {
            auto &dylib = dylib_of(words);
            auto &other = dylib_of(words);
            dylib.addToLinkOrder(other, visibility_of(words));
            return "ok";
        }
        if (command == "tracker") {
            trackers.push_back(dylib_of(words).createResourceTracker());
            return "ok";
        }
        if (command == "remove")
            return name_of(trackers[number_of(words)]->remove());
        if (command == "clear")
            return name_of(dylib_of(words).clear());
        if (command == "erase") {
            auto &dylib = dylib_of(words);
            return name_of(dylib.remove({name_from(words)}));
        }
        if (command == "define")
            return define(words);
        if (command == "alias")
            return alias(words);
        return lookup(words);
    }

private:
    std::string define(std::istringstream &words) {
        auto &dylib = dylib_of(words);
        auto tracker = tracker_of(words, dylib);
        std::string mode, flags;
        words >> mode;
        uint64_t address = 256 * ++units;
        SymbolFlagsMap symbols;
        SymbolMap addresses;
        for (auto count = number_of(words); count-- > 0;) {
            auto name = name_from(words);
            symbols[name] = flags_of(words);
            addresses[name] = ExecutorSymbolDef(ExecutorAddr(address++), symbols[name]);
        }
        std::vector<SymbolStringPtr> needs;
        for (auto count = number_of(words); count-- > 0;)
            needs.push_back(name_from(words));
        return name_of(dylib.define(
            std::make_unique<HistoryUnit>(std::move(symbols), std::move(addresses), std::move(needs), mode), tracker));
    }

    std::string alias(std::istringstream &words) {
        auto &dylib = dylib_of(words);
        auto tracker = tracker_of(words, dylib);
        auto name = name_from(words);
        auto flags = flags_of(words);
        auto &source = dylib_of(words);
        auto aliasee = name_from(words);
        SymbolAliasMap aliases;
        aliases[name] = SymbolAliasMapEntry(aliasee, flags);
        auto visibility = visibility_of(words);
        return name_of(dylib.define(reexports(source, std::move(aliases), visibility), tracker));
    }

    std::string lookup(std::istringstream &words) {
        JITDylibSearchOrder order;
        for (auto count = number_of(words); count-- > 0;) {
            auto &dylib = dylib_of(words);
            order.push_back({&dylib, visibility_of(words)});
        }
        SymbolLookupSet names;
        for (auto count = number_of(words); count-- > 0;) {
            auto name = name_from(words);
            std::string kind;
            words >> kind;
            names.add(name, kind == "W" ? SymbolLookupFlags::WeaklyReferencedSymbol : SymbolLookupFlags::RequiredSymbol);
        }
        // Everything runs in place: what has no answer now never has one.
        auto answered = std::make_shared<std::optional<Expected<SymbolMap>>>();
        session.lookup(
            LookupKind::Static, order, names, SymbolState::Ready,
            [answered](Expected<SymbolMap> found) { answered->emplace(std::move(found)); }, NoDependenciesToRegister);
        if (!*answered)
            return "waits";
        auto &found = **answered;
        if (!found)
            return name_of(found.takeError());
        std::vector<std::string> answers;
        for (auto &symbol : *found)
            answers.push_back((*symbol.first).str() + "=" + std::to_string(symbol.second.getAddress().getValue()));
        std::sort(answers.begin(), answers.end());
        std::string answer = "found";
        for (auto &text : answers)
            answer += " " + text;
        return answer;
    }

    static size_t number_of(std::istringstream &words) {
        size_t number = 0;
        words >> number;
        return number;
    }

    JITDylib &dylib_of(std::istringstream &words) { return *dylibs[number_of(words)]; }

    ResourceTrackerSP tracker_of(std::istringstream &words, JITDylib &dylib) {
        int number = -1;
        words >> number;
        return number < 0 ? dylib.getDefaultResourceTracker() : trackers[number];
    }

    SymbolStringPtr name_from(std::istringstream &words) {
        std::string name;
        words >> name;
        return session.intern(name);
    }

    static JITDylibLookupFlags visibility_of(std::istringstream &words) {
        std::string text;
        words >> text;
        return text == "A" ? JITDylibLookupFlags::MatchAllSymbols : JITDylibLookupFlags::MatchExportedSymbolsOnly;
    }

    static JITSymbolFlags flags_of(std::istringstream &words) {
        std::string text;
        words >> text;
        JITSymbolFlags flags;
        for (char letter : text) {
            if (letter == 'e')
                flags |= JITSymbolFlags::Exported;
            if (letter == 'w')
                flags |= JITSymbolFlags::Weak;
            if (letter == 'c')
                flags |= JITSymbolFlags::Common;
        }
        return flags;
    }

    ExecutionSession session;
    std::vector<JITDylib *> dylibs;
    std::vector<ResourceTrackerSP> trackers;
    uint64_t units = 0;
};

} // namespace

// Plays what is on standard input. Each answer is written at once: LLVM may not live to write the next.
extern "C" int orcane_llvm_play() {
    auto process = SelfExecutorProcessControl::Create(nullptr, std::make_unique<InPlaceTaskDispatcher>());
    if (!process) {
        consumeError(process.takeError());
        return 1;
    }
    Player player(std::move(*process));
    for (std::string line; std::getline(std::cin, line);)
        std::cout << player.play(line) << std::endl;
    // What waits for ever does not survive the end of the session either.
    std::_Exit(0);
}
