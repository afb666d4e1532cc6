//! Where the lines of a conversation come from: a terminal with editing and history, or any other input.

use std::io::{self, BufRead};
use std::path::PathBuf;

use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;

use crate::repl::{Line, Lines};

/// The lines of a file or pipe, without prompts.
#[derive(Debug)]
pub struct Plain<R>(pub R);

impl<R: BufRead> Lines for Plain<R> {
    fn next_line(&mut self, _is_continued: bool) -> io::Result<Line> {
        let mut bytes = Vec::new();
        if self.0.read_until(b'\n', &mut bytes)? == 0 {
            return Ok(Line::End);
        }
        if bytes.last() == Some(&b'\n') {
            bytes.pop();
        }
        Ok(Line::Text(bytes))
    }
}

/// A terminal.
#[derive(Debug)]
pub struct Terminal {
    editor: DefaultEditor,
    history: Option<PathBuf>,
}

impl Terminal {
    /// The terminal that the process has, with the history of earlier conversations.
    ///
    /// # Errors
    /// Those of the terminal.
    pub fn open() -> io::Result<Self> {
        let mut editor = DefaultEditor::new().map_err(into_io)?;
        let history = std::env::home_dir().map(|home| home.join(".kaleidoscope_history"));
        if let Some(path) = &history {
            // There is none the first time.
            _ = editor.load_history(path);
        }
        Ok(Self { editor, history })
    }
}

impl Lines for Terminal {
    fn next_line(&mut self, is_continued: bool) -> io::Result<Line> {
        match self.editor.readline(if is_continued { "... " } else { "ready> " }) {
            Ok(line) => {
                if !line.trim().is_empty() {
                    // A history that can't be kept is no reason to stop.
                    _ = self.editor.add_history_entry(&line);
                }
                Ok(Line::Text(line.into_bytes()))
            }
            Err(ReadlineError::Interrupted) => Ok(Line::Interrupted),
            Err(ReadlineError::Eof) => Ok(Line::End),
            Err(error) => Err(into_io(error)),
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if let Some(path) = &self.history {
            // As above.
            _ = self.editor.save_history(path);
        }
    }
}

fn into_io(error: ReadlineError) -> io::Error {
    match error {
        ReadlineError::Io(error) => error,
        other => io::Error::other(other),
    }
}
