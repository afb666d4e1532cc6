//! How long a process may take: what hangs is a failure like others, that is told and made smaller.

use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus};

/// Has the process that a command starts end after so many seconds.
pub(crate) fn set(command: &mut Command, seconds: u32) {
    let arm = move || {
        end_after(seconds);
        Ok(())
    };
    // SAFETY: between fork and exec, it only sets the alarm, which exec keeps.
    unsafe { command.pre_exec(arm) };
}

/// Has this process end after so many seconds, unless it is given others before.
pub(crate) fn end_after(seconds: u32) {
    // SAFETY: nothing else uses the process's alarm, nor handles its signal.
    unsafe { libc::alarm(seconds) };
}

/// What `timeout`, which may run the process for us, makes of the alarm.
const TIMED_OUT: i32 = 124;

/// Whether a process has taken longer than it may.
pub(crate) fn is_over(status: ExitStatus) -> bool {
    status.signal() == Some(libc::SIGALRM) || status.code() == Some(TIMED_OUT)
}

/// How a process has ended.
pub(crate) fn told(status: ExitStatus) -> String {
    if is_over(status) { "it takes too long".to_owned() } else { status.to_string() }
}
