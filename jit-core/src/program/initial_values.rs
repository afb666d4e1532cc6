//! Thread-local variables whose initial values are addresses: nobody knows where a variable is until the addresses that
//! its object's values depend on are known. Objects that wait so for each other's variables would wait for ever.

use jit_linker::SymbolName;
use rustc_hash::{FxHashMap, FxHashSet};

/// The objects whose variables wait for addresses, by their numbers.
#[derive(Debug, Default)]
pub(super) struct Awaited {
    objects: FxHashMap<u64, Values>,
}

/// What an object defines, and what that waits for.
#[derive(Debug)]
pub(super) struct Values {
    pub(super) variables: Vec<SymbolName>,
    pub(super) addresses: Vec<SymbolName>,
}

impl Awaited {
    /// Notes that an object waits.
    ///
    /// # Errors
    ///
    /// With a variable of its own that another object's values, which it would wait for, depend on.
    pub(super) fn wait(&mut self, number: u64, values: Values) -> Result<(), SymbolName> {
        let mut known = FxHashSet::default();
        let mut next = values.addresses.clone();
        while let Some(name) = next.pop() {
            if values.variables.contains(&name) {
                return Err(name);
            }
            for (number, other) in &self.objects {
                if other.variables.contains(&name) && known.insert(*number) {
                    next.extend(other.addresses.iter().cloned());
                }
            }
        }
        self.objects.insert(number, values);
        Ok(())
    }

    pub(super) fn end(&mut self, number: u64) {
        self.objects.remove(&number);
    }
}
