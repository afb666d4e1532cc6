//! The names of LLVM's subjects, for the program that starts them and for the one that runs them.

use std::str::FromStr;

/// LLVM's code generation and optimisation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LlvmLevel {
    /// The fast instruction selector.
    O0,
    /// LLJIT's own: code generation as of `-O2`, the IR as it is.
    Default,
    /// IR and code generation as of `-O2`.
    O2,
}

/// Which JIT compiles, and what is a module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LlvmSubject {
    /// How well it compiles.
    pub level: LlvmLevel,
    /// Whether each function is a module, as ORC needs for laziness and concurrency.
    pub module_a_function: bool,
    /// Compile threads; none compiles on the thread that looks up.
    pub threads: u32,
}

const fn subject(level: LlvmLevel, module_a_function: bool, threads: u32) -> LlvmSubject {
    LlvmSubject { level, module_a_function, threads }
}

const NAMES: [(&str, LlvmSubject); 8] = [
    ("llvm-o0", subject(LlvmLevel::O0, false, 0)),
    ("llvm-default", subject(LlvmLevel::Default, false, 0)),
    ("llvm-o2", subject(LlvmLevel::O2, false, 0)),
    ("llvm-o0-module-a-function", subject(LlvmLevel::O0, true, 0)),
    ("llvm-default-module-a-function", subject(LlvmLevel::Default, true, 0)),
    ("llvm-o2-module-a-function", subject(LlvmLevel::O2, true, 0)),
    ("llvm-o0-2-threads", subject(LlvmLevel::O0, true, 2)),
    ("llvm-default-2-threads", subject(LlvmLevel::Default, true, 2)),
];

impl LlvmSubject {
    /// All of them.
    pub fn all() -> impl Iterator<Item = Self> {
        NAMES.into_iter().map(|(_, subject)| subject)
    }

    /// The name by which a process is told to run it.
    #[must_use]
    pub fn name(self) -> &'static str {
        NAMES.iter().find(|(_, subject)| *subject == self).map_or("", |(name, _)| name)
    }
}

impl FromStr for LlvmSubject {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = NAMES.iter().find(|(name, _)| *name == text);
        known.map(|(_, subject)| *subject).ok_or_else(|| format!("no subject {text}"))
    }
}
