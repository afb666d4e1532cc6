//! Plays a session history from standard input against LLVM's session: a process of its own, because LLVM does not
//! survive every history.

// The library brings LLVM with it.
use llvm_tests as _;

unsafe extern "C" {
    fn orcane_llvm_play() -> i32;
}

fn main() {
    // SAFETY: reads standard input and writes standard output.
    std::process::exit(unsafe { orcane_llvm_play() });
}
