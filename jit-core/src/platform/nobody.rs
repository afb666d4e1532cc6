//! What is told of code without the compiler's features: the unwinder, and nobody else.

use jit_linker::LinkGraph;
use jit_linker::link::Allocated;
use jit_linker::memory::FinalizedAllocation;

use super::unwind::{self, EhFrameError, ObjectFrames};
use crate::session::ExecutionSession;

#[derive(Clone, Debug, Default)]
pub(crate) struct Services;

impl Services {
    pub(crate) fn want_notes(&self) -> bool {
        false
    }

    pub(crate) fn show(&self, _: &LinkGraph) {}
}

pub(crate) struct ObjectCode(ObjectFrames);

impl ObjectCode {
    pub(crate) fn of(_: &Services, _: &ExecutionSession, allocated: &Allocated) -> Self {
        Self(ObjectFrames::of(allocated))
    }

    pub(crate) fn register(self, _: &Services, code: &mut FinalizedAllocation) -> Result<(), EhFrameError> {
        let frames = self.0.read(code)?;
        if !frames.is_empty() {
            code.attach(Box::new(unwind::register(frames)));
        }
        Ok(())
    }
}
