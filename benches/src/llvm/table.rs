//! LLVM's session as a table of symbols.

use llvm_tests::session::Session;
use workloads::Result;
use workloads::table::SymbolTable;

pub(crate) struct Llvm(Session);

impl Llvm {
    pub(crate) fn new() -> Result<Self> {
        Ok(Self(Session::new()?))
    }
}

impl SymbolTable for Llvm {
    fn reserve(&mut self, count: usize) {
        self.0.reserve(count);
    }

    fn intern(&mut self, name: &str) {
        self.0.intern(name);
    }

    fn define_all(&mut self, address: u64) -> Result<()> {
        Ok(self.0.define_all(address)?)
    }

    fn lookup(&self, index: usize) -> u64 {
        self.0.lookup(index)
    }

    fn lookup_text(&self, name: &str) -> u64 {
        self.0.lookup_text(name)
    }

    fn cycle(&self, name: &str) -> Result<()> {
        Ok(self.0.cycle(name, 1)?)
    }
}
