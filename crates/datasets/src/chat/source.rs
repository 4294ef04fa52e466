//! Rewrites a template's source from Jinja, as Python reads it, to what minijinja reads.
//!
//! Tags are taken apart into tokens, so that nothing is changed in text, comments, `raw` blocks and string literals. Changed are:
//! line ends, which Jinja normalises; `{% generation %}`, which is a scope and no more; escapes in strings; strings side by side, which
//! are one; and the operators `%` and `~`, which become calls, because Python formats with the one, and both write values as Python does.

use super::python_text::{CONCAT, PERCENT};

/// A token, or what stands in brackets.
enum Node<'a> {
    Space(&'a str),
    Word(&'a str),
    Text(&'a str),
    Operator(&'a str),
    Group(char, Vec<Node<'a>>, &'a str),
}

/// Brackets within brackets up to which a tag is rewritten; minijinja refuses fewer.
const MOST_BRACKETS: usize = 200;

/// Words between operands, which bind less tightly than `%` and `~`.
const BOUNDARIES: [&str; 8] = ["and", "or", "not", "in", "is", "if", "else", "recursive"];

/// The source as minijinja wants it. What is no Jinja stays as it is, to be refused there.
pub(super) fn rewritten(source: &str) -> String {
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let mut out = String::with_capacity(source.len());
    let mut rest = source.as_str();
    while let Some(at) = rest.find("{{").into_iter().chain(rest.find("{%")).chain(rest.find("{#")).min() {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let length = if rest.starts_with("{#") {
            rest.find("#}").map_or(rest.len(), |end| end + 2)
        } else if let Some(length) = raw_block(rest) {
            length
        } else if let Some(length) = tag(rest, &mut out) {
            rest = &rest[length..];
            continue;
        } else {
            rest.len()
        };
        out.push_str(&rest[..length]);
        rest = &rest[length..];
    }
    out.push_str(rest);
    out
}

/// The length of a block whose content is text, if the source begins with one.
fn raw_block(source: &str) -> Option<usize> {
    let mut at = block_of(source, "raw")?;
    loop {
        at += source[at..].find("{%")?;
        if let Some(length) = block_of(&source[at..], "endraw") {
            return Some(at + length);
        }
        at += 2;
    }
}

/// The length of a block tag that holds this word and nothing else.
fn block_of(source: &str, word: &str) -> Option<usize> {
    let inside = source.strip_prefix("{%")?;
    let trimmed = inside.strip_prefix(['-', '+']).unwrap_or(inside).trim_start();
    let after = trimmed.strip_prefix(word)?.trim_start();
    let after = after.strip_prefix(['-', '+']).unwrap_or(after).strip_prefix("%}")?;
    Some(source.len() - after.len())
}

/// Writes the tag that the source begins with; its length.
fn tag(source: &str, out: &mut String) -> Option<usize> {
    let block = source.starts_with("{%");
    let close = if block { "%}" } else { "}}" };
    let mut scanner = Scanner { rest: &source[2..], close };
    let sign = scanner.rest.starts_with(['-', '+']);
    scanner.rest = &scanner.rest[usize::from(sign)..];
    let nodes = scanner.nodes(None, 0)?;
    let end = scanner.rest.starts_with(['-', '+']);
    let length = source.len() - scanner.rest.len() + usize::from(end) + 2;
    out.push_str(&source[..2 + usize::from(sign)]);
    let mut nodes = &nodes[..];
    if block {
        // The statement's own word is no operand.
        let first = nodes.iter().position(|node| !matches!(node, Node::Space(_))).unwrap_or(nodes.len());
        for node in &nodes[..first] {
            write(node, out);
        }
        nodes = &nodes[first..];
        if let Some((Node::Word(word), after)) = nodes.split_first() {
            out.push_str(match *word {
                "generation" => "with",
                "endgeneration" => "endwith",
                word => word,
            });
            nodes = after;
        }
    }
    expression(nodes, out);
    out.push_str(&source[length - 2 - usize::from(end)..length]);
    Some(length)
}

struct Scanner<'a> {
    rest: &'a str,
    close: &'static str,
}

impl<'a> Scanner<'a> {
    /// Reads the nodes up to the closing bracket, or up to the end of the tag. `None` where brackets are not closed or nested too deeply.
    fn nodes(&mut self, bracket: Option<char>, depth: usize) -> Option<Vec<Node<'a>>> {
        if depth > MOST_BRACKETS {
            return None;
        }
        let mut nodes = vec![];
        loop {
            let first = self.rest.chars().next()?;
            if bracket.is_none() && self.at_end() {
                return Some(nodes);
            }
            let node = match first {
                ')' | ']' | '}' if bracket == Some(first) => return Some(nodes),
                '(' | '[' | '{' => {
                    self.take(1);
                    let closing = match first {
                        '(' => ')',
                        '[' => ']',
                        _ => '}',
                    };
                    let inside = self.nodes(Some(closing), depth + 1)?;
                    Node::Group(first, inside, self.take(1))
                }
                '\'' | '"' => {
                    let mut escaped = false;
                    let end = self.rest[1..].find(|c| {
                        let ends = c == first && !escaped;
                        escaped = c == '\\' && !escaped;
                        ends
                    })?;
                    Node::Text(self.take(end + 2))
                }
                c if c.is_whitespace() => Node::Space(self.take_while(char::is_whitespace)),
                c if c.is_ascii_digit() => Node::Word(self.number()),
                c if c.is_alphanumeric() || c == '_' => {
                    Node::Word(self.take_while(|c| c.is_alphanumeric() || c == '_'))
                }
                c => {
                    let two =
                        ["**", "//", "==", "!=", "<=", ">="].iter().any(|two| self.rest.starts_with(two));
                    Node::Operator(self.take(if two { 2 } else { c.len_utf8() }))
                }
            };
            nodes.push(node);
        }
    }

    fn at_end(&self) -> bool {
        self.rest.strip_prefix(['-', '+']).unwrap_or(self.rest).starts_with(self.close)
            || self.rest.starts_with(self.close)
    }

    fn take(&mut self, length: usize) -> &'a str {
        let (taken, rest) = self.rest.split_at(length);
        self.rest = rest;
        taken
    }

    fn take_while(&mut self, wanted: impl Fn(char) -> bool) -> &'a str {
        let end = self.rest.find(|c| !wanted(c)).unwrap_or(self.rest.len());
        self.take(end)
    }

    /// `12`, `1_000`, `1.5`, `1e-5`.
    fn number(&mut self) -> &'a str {
        let digits =
            |text: &str| text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(text.len());
        let mut end = digits(self.rest);
        let after = &self.rest[end..];
        if after.starts_with('.') && after[1..].starts_with(|c: char| c.is_ascii_digit()) {
            end += 1 + digits(&after[1..]);
        }
        if self.rest[..end].ends_with(['e', 'E']) && self.rest[end..].starts_with(['-', '+']) {
            end += 1 + digits(&self.rest[end + 1..]);
        }
        self.take(end)
    }
}

fn write(node: &Node<'_>, out: &mut String) {
    match node {
        Node::Space(text) | Node::Word(text) | Node::Operator(text) => out.push_str(text),
        Node::Text(text) => out.push_str(&literal(text)),
        Node::Group(open, inside, close) => {
            out.push(*open);
            expression(inside, out);
            out.push_str(close);
        }
    }
}

/// Writes an expression: cut where operators bind less tightly than `~`, each piece on its own.
fn expression(nodes: &[Node<'_>], out: &mut String) {
    let mut start = 0;
    let mut before: Option<&Node<'_>> = None;
    for (i, node) in nodes.iter().enumerate() {
        let attribute = matches!(before, Some(Node::Operator("." | "|")));
        let cuts = match node {
            Node::Word(word) => BOUNDARIES.contains(word) && !attribute,
            // A sign binds tightly where no operand stands before it.
            Node::Operator("+" | "-") => {
                matches!(before, Some(Node::Word(_) | Node::Text(_) | Node::Group(..))) && i > start
            }
            Node::Operator(operator) => !matches!(*operator, "." | "|" | "%" | "~" | "*" | "/" | "//" | "**"),
            _ => false,
        };
        if cuts {
            concatenation(&nodes[start..i], out);
            write(node, out);
            start = i + 1;
            before = None;
        } else if !matches!(node, Node::Space(_)) {
            before = Some(node);
        }
    }
    concatenation(&nodes[start..], out);
}

/// Writes operands with `~` between them as one call.
fn concatenation(nodes: &[Node<'_>], out: &mut String) {
    let pieces: Vec<&[Node<'_>]> = nodes.split(|node| matches!(node, Node::Operator("~"))).collect();
    let (spaces, _) = around(nodes);
    spaces.iter().for_each(|node| write(node, out));
    if let [_] = pieces[..] {
        remainder(inner(nodes), out);
    } else {
        out.push_str(CONCAT);
        out.push('(');
        for (i, piece) in pieces.iter().enumerate() {
            if i > 0 {
                out.push_str(", ");
            }
            remainder(inner(piece), out);
        }
        out.push(')');
    }
    let (_, spaces) = around(nodes);
    spaces.iter().for_each(|node| write(node, out));
}

/// Writes operands with `%`, `*` and `/` between them: each `%` becomes a call with all that stands before it, and one operand.
fn remainder(nodes: &[Node<'_>], out: &mut String) {
    let mut pieces = nodes.split(|node| matches!(node, Node::Operator("%")));
    let mut written = operands(pieces.next().unwrap_or_default());
    for piece in pieces {
        let product = |node: &Node<'_>| matches!(node, Node::Operator("*" | "/" | "//"));
        let end = piece.iter().position(product).unwrap_or(piece.len());
        let (operand, after) = (operands(inner(&piece[..end])), operands(&piece[end..]));
        written = format!("{PERCENT}({}, {operand}){after}", written.trim_end());
    }
    out.push_str(&written);
}

/// Operands as they are, strings side by side as one.
fn operands(nodes: &[Node<'_>]) -> String {
    let mut out = String::new();
    let mut i = 0;
    while i < nodes.len() {
        let mut end = i + 1;
        let mut texts = vec![];
        if let Node::Text(text) = &nodes[i] {
            texts.push(literal(text));
            for (j, node) in nodes.iter().enumerate().skip(i + 1) {
                match node {
                    Node::Space(_) => {}
                    Node::Text(text) => {
                        texts.push(literal(text));
                        end = j + 1;
                    }
                    _ => break,
                }
            }
        }
        if texts.len() > 1 {
            out.push_str(&format!("({})", texts.join(" ~ ")));
        } else {
            write(&nodes[i], &mut out);
        }
        i = end;
    }
    out
}

/// White space at both ends.
fn around<'n, 'a>(nodes: &'n [Node<'a>]) -> (&'n [Node<'a>], &'n [Node<'a>]) {
    let space = |node: &Node<'_>| matches!(node, Node::Space(_));
    let start = nodes.iter().position(|node| !space(node)).unwrap_or(nodes.len());
    let end = nodes.iter().rposition(|node| !space(node)).map_or(nodes.len(), |last| last + 1);
    (&nodes[..start], &nodes[end..])
}

fn inner<'n, 'a>(nodes: &'n [Node<'a>]) -> &'n [Node<'a>] {
    let (before, after) = around(nodes);
    if before.len() == nodes.len() { &[] } else { &nodes[before.len()..nodes.len() - after.len()] }
}

/// A string literal with Python's escapes undone, as far as it has any.
fn literal(text: &str) -> String {
    if !text.contains('\\') {
        return text.to_owned();
    }
    let mut out = String::from('"');
    let mut rest = &text[1..text.len() - 1];
    while let Some(c) = rest.chars().next() {
        let (decoded, length) = if c == '\\' { escape(rest) } else { (Some(c), c.len_utf8()) };
        match decoded {
            Some('"') => out.push_str("\\\""),
            Some('\\') => out.push_str("\\\\"),
            Some(c) => out.push(c),
            None => {}
        }
        rest = &rest[length..];
    }
    out.push('"');
    out
}

/// The character that an escape stands for, and the escape's length; one that nobody knows is a backslash.
fn escape(text: &str) -> (Option<char>, usize) {
    let mut chars = text[1..].chars();
    let Some(kind) = chars.next() else { return (Some('\\'), 1) };
    let simple = match kind {
        '\n' => return (None, 2),
        '\\' | '\'' | '"' => Some(kind),
        'a' => Some('\x07'),
        'b' => Some('\x08'),
        'f' => Some('\x0c'),
        'n' => Some('\n'),
        'r' => Some('\r'),
        't' => Some('\t'),
        'v' => Some('\x0b'),
        _ => None,
    };
    if simple.is_some() {
        return (simple, 2);
    }
    let (skipped, most, radix) = match kind {
        'x' => (2, 2, 16),
        'u' => (2, 4, 16),
        'U' => (2, 8, 16),
        '0'..='7' => (1, 3, 8),
        _ => return (Some('\\'), 1),
    };
    let digits: String = text[skipped..].chars().take(most).take_while(|c| c.is_digit(radix)).collect();
    if radix == 16 && digits.len() < most {
        return (Some('\\'), 1);
    }
    let code = u32::from_str_radix(&digits, radix).ok().and_then(char::from_u32);
    code.map_or((Some('\\'), 1), |c| (Some(c), skipped + digits.len()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_tags_are_changed() {
        for same in [
            "a {% raw %}{% generation %}{{ '%' % x }}{% endraw %} b",
            "{# {% generation %} #}{{ '{% generation %}' }}",
            "{{ \"{% endgeneration %} }} %}\" }} % ~ generation",
            "{% if generation %}{{ endgeneration.generation }}{% endif %}",
            "{{ {'a': {'b': 1}}['a'] }}",
            "{%- for a in b if a -%}{{- a+b -}}{%+ endfor %}",
            "{{ a.is|in }} {{ x[1:-1] }} {{ -1 }} {{ f(a=-1) }} {{ 1e-5 }}",
            "{{ 'never closed }}",
            "{% raw %} never closed",
            "{{ (a }}",
        ] {
            assert_eq!(rewritten(same), same);
        }
        let percent = |text: &str| text.replace("PERCENT", PERCENT).replace("CONCAT", CONCAT);
        for (source, want) in [
            ("a\r\nb\rc", "a\nb\nc"),
            ("{%- generation +%}x{% endgeneration %}", "{%- with +%}x{% endwith %}"),
            ("{{ '%s' % x }}", "{{ PERCENT('%s', x) }}"),
            ("{{ '%s' % (a, b)|upper ~ c }}", "{{ CONCAT(PERCENT('%s', (a, b)|upper), c) }}"),
            ("{% if a * 2 % 3 == 0 %}", "{% if PERCENT(a * 2, 3) == 0 %}"),
            ("{{ a % b * c % d + 1 }}", "{{ PERCENT(PERCENT(a, b)* c, d) + 1 }}"),
            ("{{ -a % -b }}", "{{ PERCENT(-a, -b) }}"),
            ("{{ f(x ~ 1, k='a' % b) }}", "{{ f(CONCAT(x, 1), k=PERCENT('a', b)) }}"),
            ("{{ a if b ~ c else d }}", "{{ a if CONCAT(b, c) else d }}"),
            ("{{ 'a'\n 'b' }}", "{{ ('a' ~ 'b') }}"),
            (r"{{ '\x41\u00e9\\\'\q\n' }}", "{{ \"Aé\\\\'\\\\q\n\" }}"),
        ] {
            assert_eq!(rewritten(source), percent(want), "{source}");
        }
    }

    proptest! {
        #[test]
        fn no_source_makes_it_panic(source in r"(\{\{|\}\}|\{%|%\}|\{#|#\}|raw|endraw|generation|['\\() %~+*/.|a1\n-]|é){0,20}") {
            let _ = rewritten(&source);
        }
    }
}
