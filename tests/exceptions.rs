//! C++ exceptions through frames of compiled CLIF: thrown and caught by C++ that the system has linked.
#![cfg(feature = "programs")]

#[allow(dead_code, reason = "each test uses a part")]
mod toolchain;

use toolchain::{GXX, directory, orcane, told, tool};

const HOST: &str = r#"
#include <cstdio>
#include <stdexcept>
#include <string>
#include <unwind.h>

struct Guard {
    const char *name;
    ~Guard() { std::printf("%s is destroyed\n", name); std::fflush(stdout); }
};

extern "C" long thrower(long number) {
    Guard guard{"thrower's"};
    if (number == 3) throw std::runtime_error("three");
    if (number == 4) throw number * 10;
    return number;
}

extern "C" long catcher(long (*function)(long), long number) {
    Guard guard{"catcher's"};
    try {
        Guard inner{"inner"};
        return function(number);
    } catch (const std::exception &error) {
        std::printf("caught %s\n", error.what());
        return -1;
    } catch (long thrown) {
        return -thrown;
    }
}

static _Unwind_Reason_Code count(_Unwind_Context *, void *frames) {
    ++*static_cast<long *>(frames);
    return _URC_NO_REASON;
}

// How many frames there are on the stack.
extern "C" long frames(long) {
    long frames = 0;
    if (_Unwind_Backtrace(count, &frames) != _URC_END_OF_STACK) return -1;
    return frames;
}
"#;

/// `start` calls `middle` through the catcher, and that the thrower through `inner`.
const MIDDLE: &str = "
function %inner(i64) -> i64 system_v {
    fn0 = %thrower(i64) -> i64 system_v
block0(v0: i64):
    v1 = call fn0(v0)
    v2 = iadd v1, v0
    return v2
}
function %middle(i64) -> i64 system_v {
    fn0 = %inner(i64) -> i64 system_v
block0(v0: i64):
    v1 = call fn0(v0)
    v2 = iadd v1, v0
    return v2
}
function %start(i64) -> i64 system_v {
    fn0 = %middle(i64) -> i64 system_v
    fn1 = %catcher(i64, i64) -> i64 system_v
block0(v0: i64):
    v1 = func_addr.i64 fn0
    v2 = call fn1(v1, v0)
    return v2
}
function %count_one(i64) -> i64 system_v {
    fn0 = %frames(i64) -> i64 system_v
block0(v0: i64):
    v1 = call fn0(v0)
    v2 = iadd v1, v0
    return v2
}
function %count_two(i64) -> i64 system_v {
    fn0 = %count_one(i64) -> i64 system_v
block0(v0: i64):
    v1 = call fn0(v0)
    v2 = iadd v1, v0
    return v2
}
";

const MODES: [&[&str]; 4] = [&[], &["-O", "none"], &["--lazy"], &["--threads", "2"]];

#[test]
fn a_cxx_exception_passes_compiled_frames_to_a_cxx_catch() {
    let directory = directory("cxx-exceptions");
    std::fs::write(directory.join("host.cc"), HOST).unwrap();
    std::fs::write(directory.join("middle.clif"), MIDDLE).unwrap();
    tool(&directory, &[GXX, "-shared", "-fPIC", "-O1", "-o", "libhost.so", "host.cc"]);
    for mode in MODES {
        let run = |entry: &str, number: &str| {
            let arguments =
                [&["run", "middle.clif", "-L.", "-lhost", "--entry", entry], mode, &["--", number]].concat();
            told(&orcane(&directory, &arguments))
        };
        let destroyed = "thrower's is destroyed\ninner is destroyed\n";
        let told = |text: &str| (text.to_owned(), String::new(), Some(0));
        let caught = format!("{destroyed}caught three\ncatcher's is destroyed\n-1\n");
        assert_eq!(run("start", "3"), told(&caught), "{mode:?}");
        assert_eq!(run("start", "4"), told(&format!("{destroyed}catcher's is destroyed\n-40\n")), "{mode:?}");
        assert_eq!(run("start", "5"), told(&format!("{destroyed}catcher's is destroyed\n15\n")), "{mode:?}");

        // A backtrace leads through, to the end of the stack: it is one frame longer with one function more.
        let (one, two) = (run("count_one", "0"), run("count_two", "0"));
        let frames = |told: &(String, String, Option<i32>)| told.0.trim().parse::<i64>().unwrap();
        assert!(frames(&one) > 3, "{one:?}");
        assert_eq!(frames(&two), frames(&one) + 1, "{mode:?}");
    }
}
