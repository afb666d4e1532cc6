//! The platform: what has to be done for every dylib and every definition.

use super::state::Effects;
use super::{ExecutionSession, JitDylib, ResourceTracker, UnitDefinition, UnitSource};
use crate::error::Error;
use crate::sync::{Arc, lock};

/// What a platform has to say against something.
pub type PlatformError = Box<dyn std::error::Error + Send + Sync>;

/// Adapts a session to a kind of process: it sees every dylib and every definition. No lock is
/// held while it is called.
///
/// ```
/// use std::sync::Arc;
///
/// use jit_core::{Jit, Platform, PlatformError, ResourceTracker, UnitDefinition};
///
/// /// Keeps names for the language's own runtime.
/// struct Reserved;
///
/// impl Platform for Reserved {
///     fn adding(&self, _: &ResourceTracker, units: &[UnitDefinition]) -> Result<(), PlatformError> {
///         let mut names = units.iter().flat_map(|unit| &unit.symbols).map(|symbol| &symbol.name);
///         match names.find(|name| name.starts_with("__")) {
///             Some(name) => Err(format!("{name} is reserved").into()),
///             None => Ok(()),
///         }
///     }
/// }
///
/// let jit = Jit::new()?;
/// jit.session().set_platform(Some(Arc::new(Reserved)));
/// assert!(jit.define_closure("one", || 1i64).is_ok());
/// assert!(jit.define_closure("__one", || 1i64).is_err());
/// # Ok::<(), jit_core::Error>(())
/// ```
pub trait Platform: Send + Sync {
    /// A dylib was created.
    ///
    /// # Errors
    ///
    /// An error takes it back.
    fn setup_dylib(&self, dylib: &JitDylib) -> Result<(), PlatformError> {
        _ = dylib;
        Ok(())
    }

    /// A dylib is about to be removed, by itself or because the session [ends](ExecutionSession::end).
    fn teardown_dylib(&self, dylib: &JitDylib) {
        _ = dylib;
    }

    /// Units are about to be defined. They can be defined as things are; if that changes
    /// meanwhile, they are not.
    ///
    /// # Errors
    ///
    /// After an error, nothing is defined.
    fn adding(&self, tracker: &ResourceTracker, units: &[UnitDefinition]) -> Result<(), PlatformError> {
        _ = (tracker, units);
        Ok(())
    }
}

impl ExecutionSession {
    /// Sets the platform, of all dylibs that are created and all definitions that are made from
    /// now on.
    pub fn set_platform(&self, platform: Option<Arc<dyn Platform>>) {
        let old = std::mem::replace(&mut *lock(&self.shared.platform), platform);
        drop(old);
    }
}

impl ResourceTracker {
    /// Defines units, all or none.
    ///
    /// # Errors
    ///
    /// When a strong definition meets another one in the dylib, the platform refuses them, or the
    /// tracker is defunct. The tables are exactly as before then.
    pub fn define(&self, units: Vec<UnitDefinition>) -> Result<(), Error> {
        if let Some(platform) = self.session().platform() {
            self.session().state().check(self.id(), &units)?;
            platform.adding(self, &units).map_err(|error| Error::Platform(Arc::from(error)))?;
        }
        self.enter(units)
    }

    /// As [`define`](Self::define), with units that are made one at a time.
    #[cfg(feature = "cranelift")]
    pub(crate) fn define_each(&self, units: impl UnitSource) -> Result<(), Error> {
        if self.session().platform().is_some() {
            return self.define(units.into_definitions().collect());
        }
        self.enter(units)
    }

    fn enter(&self, units: impl UnitSource) -> Result<(), Error> {
        let mut effects = Effects::default();
        let initializers = units.initializers();
        let mut state = self.session().state();
        if let Err(error) = state.check(self.id(), &units) {
            // Units that are refused are dropped without it.
            drop(state);
            return Err(error);
        }
        state.define(self.id(), units, initializers, &mut effects);
        drop(state);
        self.session().perform(effects);
        Ok(())
    }
}
