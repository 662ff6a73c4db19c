//! Rust as a row of tokens: names, `::`, and single signs. Comments, texts, characters and lifetimes are left
//! out.

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Token {
    Name(String),
    /// `::`
    Into,
    Sign(char),
}

impl Token {
    pub fn is(&self, text: &str) -> bool {
        match self {
            Self::Name(name) => name == text,
            Self::Into => text == "::",
            Self::Sign(sign) => text.chars().eq([*sign]),
        }
    }
}

pub fn of(source: &str) -> Vec<Token> {
    let text: Vec<char> = source.chars().collect();
    let (mut tokens, mut at) = (Vec::new(), 0);
    while let Some(&sign) = text.get(at) {
        let next = text.get(at + 1).copied();
        at = match sign {
            '/' if next == Some('/') => line_end(&text, at),
            '/' if next == Some('*') => comment_end(&text, at),
            '"' => text_end(&text, at + 1),
            '\'' => quote_end(&text, at),
            ':' if next == Some(':') => {
                tokens.push(Token::Into);
                at + 2
            }
            sign if is_name(sign) => {
                let end = at + text[at..].iter().take_while(|sign| is_name(**sign)).count();
                let name: String = text[at..end].iter().collect();
                match text.get(end) {
                    Some('"' | '#') if matches!(name.as_str(), "r" | "br" | "cr") => raw_end(&text, end),
                    // The text itself is next.
                    Some('"' | '\'') if matches!(name.as_str(), "b" | "c") => end,
                    _ => {
                        tokens.push(Token::Name(name));
                        end
                    }
                }
            }
            sign if sign.is_whitespace() => at + 1,
            sign => {
                tokens.push(Token::Sign(sign));
                at + 1
            }
        };
    }
    tokens
}

fn is_name(sign: char) -> bool {
    sign.is_alphanumeric() || sign == '_'
}

fn line_end(text: &[char], at: usize) -> usize {
    text[at..].iter().position(|sign| *sign == '\n').map_or(text.len(), |end| at + end)
}

/// Comments of this kind may stand in one another.
fn comment_end(text: &[char], at: usize) -> usize {
    let (mut depth, mut at) = (0, at);
    while at < text.len() {
        match (text[at], text.get(at + 1)) {
            ('/', Some('*')) => (depth, at) = (depth + 1, at + 2),
            ('*', Some('/')) if depth == 1 => return at + 2,
            ('*', Some('/')) => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
    }
    at
}

fn text_end(text: &[char], at: usize) -> usize {
    let mut at = at;
    while at < text.len() {
        match text[at] {
            '\\' => at += 2,
            '"' => return at + 1,
            _ => at += 1,
        }
    }
    at
}

/// Behind `r`, at the first `#` or `"`. A raw name (`r#type`) is passed as well.
fn raw_end(text: &[char], at: usize) -> usize {
    let marks = text[at..].iter().take_while(|sign| **sign == '#').count();
    if text.get(at + marks) != Some(&'"') {
        return at + marks;
    }
    let end: Vec<char> = std::iter::once('"').chain(std::iter::repeat_n('#', marks)).collect();
    let start = at + marks + 1;
    let found = text[start..].windows(end.len()).position(|window| window == end);
    found.map_or(text.len(), |found| start + found + end.len())
}

/// A character, or a lifetime, which has no second quote.
fn quote_end(text: &[char], at: usize) -> usize {
    match (text.get(at + 1), text.get(at + 2)) {
        (Some('\\'), _) => {
            let behind = at + 3;
            text[behind..].iter().position(|sign| *sign == '\'').map_or(text.len(), |end| behind + end + 1)
        }
        (Some(_), Some('\'')) => at + 3,
        _ => at + 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(source: &str) -> Vec<String> {
        let name = |token| match token {
            Token::Name(name) => Some(name),
            _ => None,
        };
        of(source).into_iter().filter_map(name).collect()
    }

    #[test]
    fn comments_texts_and_characters_hold_no_names() {
        let source = r##"a /* b /* c */ d */ e // f
            "g \" h" i r#"j " k"# l b"m" 'n' '\'' o 'static b'p' q"##;
        assert_eq!(names(source), ["a", "e", "i", "l", "o", "static", "q"]);
    }
}
