//! The grammar of the text that describes a group: sections of names and values, within one another.
//!
//! ```text
//! vg0 {
//!     seqno = 7
//!     status = ["RESIZEABLE", "READ"]    # a comment
//!     physical_volumes { pv0 { … } }
//! }
//! ```
//!
//! Nothing is copied, and nothing calls itself: a section is a piece of the text, which is gone through as often as somebody
//! asks for what is in it.

use crate::turns::Turns;
use alloc::string::String;
use core::fmt;

/// The depth to which sections may lie within one another. Those of LVM are five deep.
const DEEPEST: usize = 8;

/// A fault of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TextFault {
    /// The line, from 1 on.
    pub line: usize,
    /// The thing that was expected there.
    pub expected: &'static str,
}

impl fmt::Display for TextFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let TextFault { line, expected } = self;
        write!(
            f,
            "line {line} of its text has no {expected} where one is expected"
        )
    }
}

/// One word, number, string or sign of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token<'a> {
    /// Letters, digits and what else names may have; numbers too.
    Word(&'a str),
    /// The text between quotes, as it is.
    Quoted(&'a str),
    Sign(u8),
}

/// The rest of a text.
#[derive(Clone, Copy)]
struct Tokens<'a>(&'a str);

impl<'a> Tokens<'a> {
    /// Returns the next token, `None` at the end, an error where there is none.
    fn next(&mut self) -> Result<Option<Token<'a>>, &'static str> {
        loop {
            self.0 = self.0.trim_ascii_start();
            let Some(comment) = self.0.strip_prefix('#') else {
                break;
            };
            let end = comment.find('\n').unwrap_or(comment.len());
            self.0 = &comment[end..];
        }
        let Some(&first) = self.0.as_bytes().first() else {
            return Ok(None);
        };
        match first {
            b'{' | b'}' | b'[' | b']' | b'=' | b',' => {
                self.0 = &self.0[1..];
                Ok(Some(Token::Sign(first)))
            }
            b'"' => {
                let text = &self.0[1..];
                let mut escaped = false;
                let end = text.bytes().position(|byte| {
                    let ends = byte == b'"' && !escaped;
                    escaped = byte == b'\\' && !escaped;
                    ends
                });
                let end = end.ok_or("end of a string")?;
                self.0 = &text[end + 1..];
                Ok(Some(Token::Quoted(&text[..end])))
            }
            _ => {
                let word = |byte: u8| byte.is_ascii_alphanumeric() || b"+_.-/@".contains(&byte);
                let end = self.0.bytes().position(|byte| !word(byte));
                let (word, rest) = self.0.split_at(end.unwrap_or(self.0.len()));
                if word.is_empty() {
                    return Err("word");
                }
                self.0 = rest;
                Ok(Some(Token::Word(word)))
            }
        }
    }
}

/// The content of a section: names with values, and other sections.
#[derive(Clone, Copy)]
pub(super) struct Section<'a>(Tokens<'a>);

/// The value that a name stands for.
#[derive(Clone, Copy)]
pub(super) enum Value<'a> {
    Section(Section<'a>),
    /// A number, or whatever else has no quotes.
    Word(&'a str),
    /// A string between quotes, as it is.
    Quoted(&'a str),
    List(List<'a>),
}

/// Words and strings between brackets.
#[derive(Clone, Copy)]
pub(super) struct List<'a>(Tokens<'a>);

/// The names and values that are checked for each one that is counted as looked at.
const TOGETHER: usize = 64;

/// Checks a text, and returns what is in it.
pub(super) async fn parse<'t>(text: &'t str, turns: &mut Turns) -> Result<Section<'t>, TextFault> {
    let mut tokens = Tokens(text);
    check(&mut tokens, turns).await.map_err(|expected| {
        let read = text.len() - tokens.0.len();
        let line = 1 + text.as_bytes()[..read]
            .iter()
            .filter(|byte| **byte == b'\n')
            .count();
        TextFault { line, expected }
    })?;
    Ok(Section(Tokens(text)))
}

async fn check(tokens: &mut Tokens<'_>, turns: &mut Turns) -> Result<(), &'static str> {
    let mut depth = 0;
    for number in 0_usize.. {
        if number.is_multiple_of(TOGETHER) {
            turns.count().await;
        }
        match tokens.next()? {
            None if depth == 0 => break,
            None => return Err("end of a section"),
            Some(Token::Sign(b'}')) if depth > 0 => depth -= 1,
            Some(Token::Word(_)) => match tokens.next()? {
                Some(Token::Sign(b'{')) if depth == DEEPEST => {
                    return Err("section that is less deep");
                }
                Some(Token::Sign(b'{')) => depth += 1,
                Some(Token::Sign(b'=')) => check_value(tokens)?,
                _ => return Err("value or section"),
            },
            _ => return Err("name"),
        }
    }
    Ok(())
}

fn check_value(tokens: &mut Tokens<'_>) -> Result<(), &'static str> {
    match tokens.next()? {
        Some(Token::Word(_) | Token::Quoted(_)) => return Ok(()),
        Some(Token::Sign(b'[')) => {}
        _ => return Err("value"),
    }
    loop {
        match tokens.next()? {
            Some(Token::Sign(b']')) => return Ok(()),
            Some(Token::Word(_) | Token::Quoted(_)) => match tokens.next()? {
                Some(Token::Sign(b']')) => return Ok(()),
                Some(Token::Sign(b',')) => {}
                _ => return Err("end of a list"),
            },
            _ => return Err("value in a list"),
        }
    }
}

impl<'a> Section<'a> {
    /// Returns the names in the section and what they stand for, in their order.
    pub fn entries(self) -> impl Iterator<Item = (&'a str, Value<'a>)> {
        let mut tokens = self.0;
        // The text was checked: what does not fit ends it.
        core::iter::from_fn(move || {
            let Ok(Some(Token::Word(name))) = tokens.next() else {
                return None;
            };
            let is_section = tokens.next().ok()?? == Token::Sign(b'{');
            if is_section {
                let inside = Section(tokens);
                skip_section(&mut tokens)?;
                return Some((name, Value::Section(inside)));
            }
            let value = match tokens.next().ok()?? {
                Token::Word(word) => Value::Word(word),
                Token::Quoted(text) => Value::Quoted(text),
                Token::Sign(_) => {
                    let inside = List(tokens);
                    while tokens.next().ok()?? != Token::Sign(b']') {}
                    Value::List(inside)
                }
            };
            Some((name, value))
        })
    }
}

/// Goes on behind the end of the section that was begun.
fn skip_section(tokens: &mut Tokens<'_>) -> Option<()> {
    let mut depth = 1;
    while depth > 0 {
        match tokens.next().ok()?? {
            Token::Sign(b'{') => depth += 1,
            Token::Sign(b'}') => depth -= 1,
            _ => {}
        }
    }
    Some(())
}

impl<'a> List<'a> {
    /// Returns what is in the list.
    pub fn values(self) -> impl Iterator<Item = Value<'a>> {
        let mut tokens = self.0;
        core::iter::from_fn(move || {
            loop {
                return match tokens.next().ok()?? {
                    Token::Word(word) => Some(Value::Word(word)),
                    Token::Quoted(text) => Some(Value::Quoted(text)),
                    Token::Sign(b',') => continue,
                    Token::Sign(_) => None,
                };
            }
        })
    }
}

impl<'a> Value<'a> {
    /// Returns the section, if it is one.
    pub fn section(self) -> Option<Section<'a>> {
        match self {
            Value::Section(section) => Some(section),
            _ => None,
        }
    }

    /// Returns the number, if it is one.
    pub fn number(self) -> Option<u64> {
        match self {
            Value::Word(word) if !word.starts_with('+') => word.parse().ok(),
            _ => None,
        }
    }

    /// Returns the string between quotes, as it is.
    pub fn quoted(self) -> Option<&'a str> {
        match self {
            Value::Quoted(text) => Some(text),
            _ => None,
        }
    }

    /// Returns the list, if it is one.
    pub fn list(self) -> Option<List<'a>> {
        match self {
            Value::List(list) => Some(list),
            _ => None,
        }
    }

    /// Returns whether a list has that string.
    pub fn has(self, wanted: &str) -> bool {
        let values = self.list().into_iter().flat_map(List::values);
        values.filter_map(Value::quoted).any(|text| text == wanted)
    }
}

/// Returns a string between quotes without its escapes, for messages.
pub(super) fn plain(quoted: &str) -> String {
    super::shown(quoted)
}
