//! Text to tokens, one at a time. It knows no grammar.

use crate::diagnostic::{Diagnostic, Problem, Span};

/// A token of the language; text is borrowed from the source.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Token<'s> {
    /// `def`
    Def,
    /// `extern`
    Extern,
    /// `if`
    If,
    /// `then`
    Then,
    /// `else`
    Else,
    /// `for`
    For,
    /// `in`
    In,
    /// `var`
    Var,
    /// `throw`
    Throw,
    /// `try`
    Try,
    /// `catch`
    Catch,
    /// `unary`
    Unary,
    /// `binary`
    Binary,
    /// A name.
    Identifier(&'s str),
    /// A literal.
    Number(f64),
    /// Any other ASCII character: punctuation or an operator.
    Character(u8),
    /// The end of the source.
    End,
}

impl<'s> Token<'s> {
    /// The name that it is where the grammar asks for one: the words of exceptions are names as well.
    pub fn name(self) -> Option<&'s str> {
        match self {
            Self::Identifier(name) => Some(name),
            Self::Throw => Some("throw"),
            Self::Try => Some("try"),
            Self::Catch => Some("catch"),
            _ => None,
        }
    }
}

/// Reads tokens from the source, left to right.
#[derive(Clone, Debug)]
pub struct Lexer<'s> {
    text: &'s str,
    position: usize,
}

impl<'s> Lexer<'s> {
    /// Starts at byte `position` of `text`, which must be a character's first.
    pub fn new(text: &'s str, position: usize) -> Self {
        Self { text, position }
    }

    /// The next token and its place; [`Token::End`] for ever after the last.
    ///
    /// # Errors
    /// A malformed number, or a character that no program may contain outside comments. The lexer is then past it.
    pub fn next_token(&mut self) -> Result<(Token<'s>, Span), Diagnostic> {
        self.skip_blanks_and_comments();
        let start = self.position;
        let Some(&first) = self.text.as_bytes().get(start) else {
            return Ok((Token::End, Span::new(start, start)));
        };
        if first.is_ascii_alphabetic() || first == b'_' {
            let word = self.take_while(|b| b.is_ascii_alphanumeric() || b == b'_');
            return Ok((keyword_or_name(word), self.span_from(start)));
        }
        if first.is_ascii_digit() || first == b'.' {
            return self.number(start);
        }
        if first.is_ascii_graphic() {
            self.position += 1;
            return Ok((Token::Character(first), self.span_from(start)));
        }
        let character = self.text[start..].chars().next().unwrap_or(char::REPLACEMENT_CHARACTER);
        self.position += character.len_utf8();
        Err(Diagnostic::new(Problem::UnexpectedCharacter(character), self.span_from(start)))
    }

    fn skip_blanks_and_comments(&mut self) {
        loop {
            self.take_while(|b| b.is_ascii_whitespace() || b == b'\x0b');
            if self.text.as_bytes().get(self.position) != Some(&b'#') {
                return;
            }
            self.take_while(|b| b != b'\n' && b != b'\r');
        }
    }

    fn number(&mut self, start: usize) -> Result<(Token<'s>, Span), Diagnostic> {
        let digits = self.take_while(|b| b.is_ascii_digit() || b == b'.');
        let value = digits.parse();
        let tail = self.take_while(|b| b.is_ascii_alphanumeric() || b == b'_');
        let span = self.span_from(start);
        if !tail.is_empty() {
            return Err(Diagnostic::new(Problem::NumberSuffix, span));
        }
        match value {
            Ok(value) => Ok((Token::Number(value), span)),
            Err(_) => Err(Diagnostic::new(Problem::MalformedNumber, span)),
        }
    }

    fn take_while(&mut self, accept: impl Fn(u8) -> bool) -> &'s str {
        let rest = &self.text[self.position..];
        // Every predicate stops before, or swallows, whole UTF-8 sequences: the end is a character boundary.
        let length = rest.bytes().position(|b| !accept(b)).unwrap_or(rest.len());
        self.position += length;
        &rest[..length]
    }

    fn span_from(&self, start: usize) -> Span {
        Span::new(start, self.position)
    }
}

fn keyword_or_name(word: &str) -> Token<'_> {
    match word {
        "def" => Token::Def,
        "extern" => Token::Extern,
        "if" => Token::If,
        "then" => Token::Then,
        "else" => Token::Else,
        "for" => Token::For,
        "in" => Token::In,
        "var" => Token::Var,
        "throw" => Token::Throw,
        "try" => Token::Try,
        "catch" => Token::Catch,
        "unary" => Token::Unary,
        "binary" => Token::Binary,
        name => Token::Identifier(name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(text: &str) -> Vec<Token<'_>> {
        let mut lexer = Lexer::new(text, 0);
        let mut tokens = Vec::new();
        loop {
            match lexer.next_token().unwrap().0 {
                Token::End => return tokens,
                token => tokens.push(token),
            }
        }
    }

    #[test]
    fn comments_and_blanks_separate_tokens() {
        assert_eq!(tokens("a # é is fine here\n\t1.5#x"), [Token::Identifier("a"), Token::Number(1.5)]);
    }

    #[test]
    fn every_operator_is_one_character() {
        assert_eq!(tokens("<="), [Token::Character(b'<'), Token::Character(b'=')]);
    }

    #[test]
    fn numbers_may_lack_digits_on_one_side_of_the_point() {
        assert_eq!(tokens("1. .5"), [Token::Number(1.0), Token::Number(0.5)]);
    }

    #[test]
    fn malformed_numbers_are_errors() {
        for text in [".", "1.2.3", "1e5", "0x10", "1_000"] {
            let error = Lexer::new(text, 0).next_token().unwrap_err();
            assert_eq!((error.span.start, error.span.end), (0, text.len()), "{text}");
        }
    }
}
