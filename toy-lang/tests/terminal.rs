//! Conversations at a terminal: what is typed, when, and what the screen shows for it.

#![cfg(unix)]

mod support;

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::process::Child;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use nix::pty::openpty;
use support::target_program;

const PROMPT: &str = "ready> ";

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// `kaleidoscope` at a terminal of its own.
struct Screen {
    child: Child,
    keyboard: File,
    shown: Receiver<Vec<u8>>,
    /// What was shown and not yet looked for.
    rest: String,
}

impl Screen {
    /// A conversation that has come to its first prompt. Its history is in `home`.
    fn open(home: &Path) -> Self {
        let pty = openpty(None, None).unwrap();
        let mut command = target_program(env!("CARGO_BIN_EXE_kaleidoscope"));
        command.env("HOME", home).env("TERM", "xterm");
        command.stdin(pty.slave.try_clone().unwrap()).stdout(pty.slave.try_clone().unwrap()).stderr(pty.slave);
        let child = command.spawn().unwrap();
        let keyboard = File::from(pty.master);
        let mut screen = keyboard.try_clone().unwrap();
        let (sender, shown) = channel();
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            // The end of the other side is an error on Linux, and nothing more to read elsewhere.
            while let Ok(count @ 1..) = screen.read(&mut bytes)
                && sender.send(bytes[..count].to_vec()).is_ok()
            {}
        });
        let mut screen = Self { child, keyboard, shown, rest: String::new() };
        screen.expect(PROMPT);
        screen
    }

    fn type_in(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).unwrap();
    }

    /// Waits until `text` is shown, behind what was expected before.
    #[track_caller]
    fn expect(&mut self, text: &str) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(at) = self.rest.find(text) {
                self.rest.drain(..at + text.len());
                return;
            }
            match self.shown.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(bytes) => self.rest.push_str(&String::from_utf8_lossy(&bytes)),
                Err(error) => panic!("no {text:?} ({error}) in {:?}", self.rest),
            }
        }
    }

    /// Waits until the command has ended, and gives what was shown until then.
    #[track_caller]
    fn expect_end(mut self) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.shown.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(bytes) => self.rest.push_str(&String::from_utf8_lossy(&bytes)),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => panic!("it goes on: {:?}", self.rest),
            }
        }
        assert!(self.child.wait().unwrap().success(), "{:?}", self.rest);
        std::mem::take(&mut self.rest)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // It has ended already if the test has succeeded.
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

#[test]
fn lines_typed_ahead_are_all_evaluated() {
    let home = tempfile::tempdir().unwrap();
    let mut screen = Screen::open(home.path());
    screen.type_in("20+1\r20+2\rdef f(x)\rx+3\rf(20)\r");
    for value in ["21\r\n", "22\r\n", "23\r\n"] {
        screen.expect(value);
    }
}

#[test]
fn the_arrow_brings_back_earlier_lines() {
    let home = tempfile::tempdir().unwrap();
    let mut screen = Screen::open(home.path());
    for keys in ["6*7\r", "\x1b[A\r"] {
        screen.type_in(keys);
        screen.expect("42\r\n");
        screen.expect(PROMPT);
    }
    screen.type_in("\x04");
    screen.expect_end();
    let mut next = Screen::open(home.path());
    next.type_in("\x1b[A\r");
    next.expect("42\r\n");
}

#[test]
fn an_interrupt_drops_what_was_begun_and_goes_on() {
    let home = tempfile::tempdir().unwrap();
    let mut screen = Screen::open(home.path());
    // A line, and an item of several lines.
    for (begun, shown) in [("7+", "7+"), ("def f(x)\r", "... ")] {
        screen.type_in(begun);
        screen.expect(shown);
        screen.type_in("\x03");
        screen.expect(PROMPT);
        screen.type_in("40+2\r");
        screen.expect("42\r\n");
        screen.expect(PROMPT);
    }
}

#[test]
fn the_end_of_input_ends_the_conversation() {
    let home = tempfile::tempdir().unwrap();
    let mut screen = Screen::open(home.path());
    screen.type_in("\x04");
    let shown = screen.expect_end();
    assert!(!shown.contains("Error"), "{shown}");
}
