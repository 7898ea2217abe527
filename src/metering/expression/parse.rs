//! Text into nodes: recursive descent, one character of look-ahead, errors with the position.

use super::{DEPTH_MAX, Function, NODES_MAX, Node, Operator, What, wrong};
use crate::error::Result;
use crate::metering::quantity::Quantity;

pub(super) fn parse(text: &str) -> Result<Node> {
    let mut parser = Parser { letters: text.chars().collect(), next: 0, nodes: 0, depth: 0 };
    let root = parser.any()?;
    parser.skip_blanks();
    match parser.peek() {
        None => Ok(root),
        Some(letter) => Err(wrong(parser.at(), format_args!("{letter:?} is not expected here"))),
    }
}

struct Parser {
    letters: Vec<char>,
    next: usize,
    nodes: usize,
    depth: usize,
}

const COMPARISONS: [(&str, Operator); 7] = [
    ("==", Operator::Equal),
    ("!=", Operator::NotEqual),
    ("<=", Operator::LessOrEqual),
    (">=", Operator::GreaterOrEqual),
    ("=", Operator::Equal),
    ("<", Operator::Less),
    (">", Operator::Greater),
];

impl Parser {
    /// Position of the next character, from 1.
    fn at(&self) -> usize {
        self.next + 1
    }

    fn peek(&self) -> Option<char> {
        self.letters.get(self.next).copied()
    }

    fn skip_blanks(&mut self) {
        while self.peek().is_some_and(char::is_whitespace) {
            self.next += 1;
        }
    }

    /// Takes a sign if it comes next.
    fn take(&mut self, sign: &str) -> bool {
        self.skip_blanks();
        let length = sign.chars().count();
        let is_next = self.letters[self.next..].iter().take(length).copied().eq(sign.chars());
        self.next += if is_next { length } else { 0 };
        is_next
    }

    /// Takes a word if it comes next, whole.
    fn take_word(&mut self, word: &str) -> bool {
        self.skip_blanks();
        let start = self.next;
        if self.word() == word {
            return true;
        }
        self.next = start;
        false
    }

    fn word(&mut self) -> String {
        let is_part = |letter: &char| letter.is_ascii_alphanumeric() || "_.-".contains(*letter);
        // a word begins with a letter; a minus inside it belongs to it, as in metadata.region-name
        let first = self.peek().is_some_and(|letter| letter.is_ascii_alphabetic() || letter == '_');
        let rest = &self.letters[self.next..];
        let word: String =
            if first { rest.iter().copied().take_while(is_part).collect() } else { String::new() };
        self.next += word.len();
        word
    }

    fn node(&mut self, at: usize, what: What) -> Result<Node> {
        self.nodes += 1;
        match self.nodes > NODES_MAX {
            true => Err(wrong(at, format_args!("more than {NODES_MAX} parts"))),
            false => Ok(Node { at, what }),
        }
    }

    fn deeper<T>(&mut self, go_on: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err(wrong(self.at(), format_args!("nested deeper than {DEPTH_MAX} levels")));
        }
        let done = go_on(self);
        self.depth -= 1;
        done
    }

    fn any(&mut self) -> Result<Node> {
        self.deeper(Parser::either)
    }

    fn either(&mut self) -> Result<Node> {
        let mut left = self.both()?;
        while let Some(at) = self.operator(|parser| parser.take_word("or") || parser.take("||")) {
            let right = self.both()?;
            left = self.node(at, What::Binary(Operator::Or, left.into(), right.into()))?;
        }
        Ok(left)
    }

    fn both(&mut self) -> Result<Node> {
        let mut left = self.not()?;
        while let Some(at) = self.operator(|parser| parser.take_word("and") || parser.take("&&")) {
            let right = self.not()?;
            left = self.node(at, What::Binary(Operator::And, left.into(), right.into()))?;
        }
        Ok(left)
    }

    /// The position of what `take` takes.
    fn operator(&mut self, take: impl FnOnce(&mut Self) -> bool) -> Option<usize> {
        self.skip_blanks();
        let at = self.at();
        take(self).then_some(at)
    }

    fn not(&mut self) -> Result<Node> {
        match self.operator(|parser| parser.take_word("not")) {
            Some(at) => {
                let inner = self.deeper(Parser::not)?;
                self.node(at, What::Not(inner.into()))
            }
            None => self.comparison(),
        }
    }

    fn comparison(&mut self) -> Result<Node> {
        let left = self.sum()?;
        self.skip_blanks();
        let at = self.at();
        let Some((_, operator)) = COMPARISONS.into_iter().find(|(sign, _)| self.take(sign)) else {
            return Ok(left);
        };
        let right = self.sum()?;
        self.node(at, What::Binary(operator, left.into(), right.into()))
    }

    fn sum(&mut self) -> Result<Node> {
        let mut left = self.product()?;
        loop {
            self.skip_blanks();
            let at = self.at();
            let operator = match self.peek() {
                Some('+') => Operator::Add,
                Some('-') => Operator::Subtract,
                _ => return Ok(left),
            };
            self.next += 1;
            let right = self.product()?;
            left = self.node(at, What::Binary(operator, left.into(), right.into()))?;
        }
    }

    fn product(&mut self) -> Result<Node> {
        let mut left = self.signed()?;
        loop {
            self.skip_blanks();
            let at = self.at();
            let operator = match self.peek() {
                Some('*') => Operator::Multiply,
                Some('/') => Operator::Divide,
                _ => return Ok(left),
            };
            self.next += 1;
            let right = self.signed()?;
            left = self.node(at, What::Binary(operator, left.into(), right.into()))?;
        }
    }

    fn signed(&mut self) -> Result<Node> {
        match self.operator(|parser| parser.take("-")) {
            Some(at) => {
                let inner = self.deeper(Parser::signed)?;
                self.node(at, What::Negate(inner.into()))
            }
            None => self.plain(),
        }
    }

    fn plain(&mut self) -> Result<Node> {
        self.skip_blanks();
        let at = self.at();
        match self.peek() {
            None => Err(wrong(at, "something is missing at the end")),
            Some('(') => {
                self.next += 1;
                let inner = self.any()?;
                self.close(at)?;
                Ok(inner)
            }
            Some(quote @ ('\'' | '"')) => self.text(at, quote),
            Some(letter) if letter.is_ascii_digit() || letter == '.' => self.number(at),
            Some(letter) if letter.is_ascii_alphabetic() || letter == '_' => self.named(at),
            Some(letter) => Err(wrong(at, format_args!("{letter:?} is not expected here"))),
        }
    }

    fn close(&mut self, opened: usize) -> Result<()> {
        match self.take(")") {
            true => Ok(()),
            false => Err(wrong(self.at(), format_args!("the ) of the ( at position {opened} is missing"))),
        }
    }

    fn text(&mut self, at: usize, quote: char) -> Result<Node> {
        self.next += 1;
        let rest = &self.letters[self.next..];
        let Some(length) = rest.iter().position(|letter| *letter == quote) else {
            return Err(wrong(at, "the text does not end"));
        };
        let text = rest[..length].iter().collect();
        self.next += length + 1;
        self.node(at, What::Text(text))
    }

    fn number(&mut self, at: usize) -> Result<Node> {
        let is_part = |letter: &char| letter.is_ascii_digit() || *letter == '.';
        let rest = &self.letters[self.next..];
        let digits: String = rest.iter().copied().take_while(is_part).collect();
        self.next += digits.len();
        let number =
            Quantity::parse(&digits).map_err(|reject| wrong(at, format_args!("{digits} {reject}")))?;
        self.node(at, What::Number(number))
    }

    fn named(&mut self, at: usize) -> Result<Node> {
        let word = self.word();
        if let Some(path) = word.strip_prefix("metadata.") {
            let is_path = !path.is_empty() && path.split('.').all(|segment| !segment.is_empty());
            return match is_path {
                true => self.node(at, What::Metadata(path.to_owned())),
                false => Err(wrong(at, "metadata. is followed by the name of a field")),
            };
        }
        let what = match word.as_str() {
            "quantity" => What::Quantity,
            "true" => What::Bool(true),
            "false" => What::Bool(false),
            "null" => What::Null,
            name => return self.call(at, name),
        };
        self.node(at, what)
    }

    fn call(&mut self, at: usize, name: &str) -> Result<Node> {
        let (function, counts) = match name {
            "if" => (Function::If, 3..=3),
            "coalesce" => (Function::Coalesce, 1..=20),
            "min" => (Function::Min, 1..=20),
            "max" => (Function::Max, 1..=20),
            "abs" => (Function::Abs, 1..=1),
            "floor" => (Function::Floor, 1..=1),
            "ceil" => (Function::Ceil, 1..=1),
            "round" => (Function::Round, 1..=2),
            name => {
                let known = "quantity, metadata.NAME, if, coalesce, min, max, abs, floor, ceil or round";
                return Err(wrong(at, format_args!("{name:?} is not known: {known}")));
            }
        };
        let opened = self.at();
        if !self.take("(") {
            return Err(wrong(self.at(), format_args!("{name} is followed by its arguments in ( )")));
        }
        let mut arguments = vec![self.any()?];
        while self.take(",") {
            arguments.push(self.any()?);
        }
        self.close(opened)?;
        if !counts.contains(&arguments.len()) {
            let (least, most) = (counts.start(), counts.end());
            return Err(wrong(at, format_args!("{name} takes {least} to {most} arguments")));
        }
        self.node(at, What::Call(function, arguments))
    }
}
