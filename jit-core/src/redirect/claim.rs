//! Functions that are being defined: of two threads that define one, the second finds it defined.

use rustc_hash::FxHashSet;

use super::body::BodySource;
use crate::sync::thread::{self, ThreadId};
use crate::sync::{Arc, Condvar, Mutex, lock, wait};

/// Who defines functions now. What a definition tells others of may run meanwhile, so this is no lock.
#[derive(Default)]
pub(super) struct Claims {
    claimed: Mutex<Vec<Claimed>>,
    given_back: Condvar,
}

struct Claimed {
    by: ThreadId,
    source: Arc<BodySource>,
}

/// Functions that no other thread defines. Dropped, they may be.
pub(super) struct Claim<'a> {
    claims: &'a Claims,
    source: &'a Arc<BodySource>,
}

impl Claims {
    /// Waits until no other thread defines one of a source's functions.
    pub(super) fn claim<'a>(&'a self, source: &'a Arc<BodySource>, items: &[u32]) -> Claim<'a> {
        let by = thread::current().id();
        let mut claimed = lock(&self.claimed);
        while claimed.iter().any(|other| other.by != by && other.overlaps(source, items)) {
            claimed = wait(&self.given_back, claimed, None).0;
        }
        claimed.push(Claimed { by, source: Arc::clone(source) });
        Claim { claims: self, source }
    }
}

impl Claimed {
    fn overlaps(&self, source: &BodySource, items: &[u32]) -> bool {
        if self.source.dylib() != source.dylib() {
            return false;
        }
        let own: FxHashSet<_> =
            self.source.items().into_iter().map(|item| self.source.function(item).clone()).collect();
        items.iter().any(|item| own.contains(source.function(*item)))
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let mut claimed = lock(&self.claims.claimed);
        let own = claimed.iter().position(|claimed| Arc::ptr_eq(&claimed.source, self.source));
        let own = own.map(|own| claimed.swap_remove(own));
        drop(claimed);
        // Perhaps the last of the source, whose bodies go with it.
        drop(own);
        self.claims.given_back.notify_all();
    }
}
