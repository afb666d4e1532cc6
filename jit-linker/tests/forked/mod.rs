//! A child that a test has forked, and what it says to its parent.

use std::io::{PipeReader, PipeWriter, Read, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// A child that hangs fails its test.
const SECONDS: u32 = 60;

/// One end of a conversation between parent and child, in which each waits for the other.
pub(crate) struct Peer {
    pub(crate) reader: PipeReader,
    pub(crate) writer: PipeWriter,
}

impl Peer {
    pub(crate) fn pair() -> (Self, Self) {
        let (there, back) = (std::io::pipe().expect("descriptors"), std::io::pipe().expect("descriptors"));
        (Self { reader: there.0, writer: back.1 }, Self { reader: back.0, writer: there.1 })
    }

    pub(crate) fn go_on(&mut self) {
        self.writer.write_all(&[1]).expect("the peer waits");
    }

    pub(crate) fn wait(&mut self) {
        self.reader.read_exact(&mut [0]).expect("the peer goes on");
    }
}

pub(crate) struct Child {
    pub(crate) id: libc::pid_t,
    pub(crate) peer: Peer,
}

impl Child {
    pub(crate) fn new(body: impl FnOnce(&mut Peer)) -> Self {
        let (peer, mut own) = Peer::pair();
        // SAFETY: the child runs Rust code that takes no lock another thread may hold: the C
        // library's allocator can be used after a fork, and so, it is tested, can ours.
        let id = unsafe { libc::fork() };
        assert!(id >= 0, "fork");
        if id > 0 {
            return Self { id, peer };
        }
        drop(peer);
        // SAFETY: these two end the process, now or if it hangs.
        unsafe {
            libc::alarm(SECONDS);
            libc::_exit(catch_unwind(AssertUnwindSafe(|| body(&mut own))).map_or(1, |()| 0))
        }
    }

    pub(crate) fn succeeds(self) {
        wait_for(self.id);
    }
}

pub(crate) fn wait_for(id: libc::pid_t) {
    let mut status = 0;
    // SAFETY: `status` is ours.
    assert_eq!(unsafe { libc::waitpid(id, &mut status, 0) }, id);
    assert_eq!(status, 0, "the child fails");
}
