//! A Rust source file as the house rules see it: line by line, with comments and strings set apart and tests marked.

/// One line.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Line {
    /// What the compiler sees; the insides of strings and characters are blank.
    pub code: String,
    /// The text of comments on it.
    pub comment: String,
    /// Part of a `#[cfg(test)]` item.
    pub test: bool,
    /// Part of an item, or of a file, of which a comment with `BOOT:` says that it runs at boot alone.
    pub boot: bool,
}

#[derive(Clone, Copy, PartialEq)]
enum State {
    Code,
    LineComment,
    BlockComment(u32),
    Text,
    RawText(usize),
}

/// Splits a file into lines.
pub fn lines(text: &str) -> Vec<Line> {
    let mut lines = split(text);
    mark_items(&mut lines, is_test, |line| line.test = true);
    if lines.iter().any(|line| line.comment.starts_with('!') && is_boot(line)) {
        lines.iter_mut().for_each(|line| line.boot = true);
    }
    mark_items(&mut lines, is_boot, |line| line.boot = true);
    lines
}

fn split(text: &str) -> Vec<Line> {
    let chars: Vec<char> = text.chars().collect();
    let at = |index: usize| chars.get(index).copied().unwrap_or('\0');
    let (mut lines, mut line, mut state, mut index) = (Vec::new(), Line::default(), State::Code, 0);
    while index < chars.len() {
        let c = at(index);
        if c == '\n' {
            lines.push(std::mem::take(&mut line));
            if state == State::LineComment {
                state = State::Code;
            }
            index += 1;
            continue;
        }
        let mut step = 1;
        match state {
            State::Code => match c {
                '/' if at(index + 1) == '/' => (state, step) = (State::LineComment, 2),
                '/' if at(index + 1) == '*' => (state, step) = (State::BlockComment(1), 2),
                '"' => {
                    line.code.push('"');
                    state = State::Text;
                }
                'r' | 'b' | 'c' if starts_raw(&chars, index).is_some() && !is_word(at(index.wrapping_sub(1))) => {
                    let (hashes, length) = starts_raw(&chars, index).unwrap_or((0, 1));
                    line.code.push('"');
                    (state, step) = (State::RawText(hashes), length);
                }
                '\'' => {
                    // A character, or a lifetime, which is left as it is.
                    let length = if at(index + 1) == '\\' {
                        (index + 2..index + 12)
                            .find(|end| at(*end) == '\'' && *end > index + 2)
                            .map(|end| end + 1 - index)
                    } else {
                        (at(index + 2) == '\'').then_some(3)
                    };
                    line.code.push('\'');
                    step = length.unwrap_or(1);
                }
                _ => line.code.push(c),
            },
            State::LineComment => line.comment.push(c),
            State::BlockComment(depth) => match (c, at(index + 1)) {
                ('*', '/') => {
                    state = if depth == 1 { State::Code } else { State::BlockComment(depth - 1) };
                    step = 2;
                }
                ('/', '*') => (state, step) = (State::BlockComment(depth + 1), 2),
                _ => line.comment.push(c),
            },
            State::Text => match c {
                '\\' if at(index + 1) != '\n' => step = 2,
                '"' => {
                    line.code.push('"');
                    state = State::Code;
                }
                _ => {}
            },
            State::RawText(hashes) => {
                if c == '"' && (1..=hashes).all(|offset| at(index + offset) == '#') {
                    line.code.push('"');
                    (state, step) = (State::Code, hashes + 1);
                }
            }
        }
        index += step;
    }
    lines.push(line);
    lines
}

/// `r"`, `r#"`, `br"` …: how many hashes, and how long the opening is.
fn starts_raw(chars: &[char], index: usize) -> Option<(usize, usize)> {
    let mut at = index;
    while matches!(chars.get(at), Some('b' | 'c')) && at == index {
        at += 1;
    }
    if chars.get(at) != Some(&'r') {
        return None;
    }
    at += 1;
    let hashes = chars.get(at..)?.iter().take_while(|c| **c == '#').count();
    (chars.get(at + hashes) == Some(&'"')).then_some((hashes, at + hashes + 1 - index))
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// `#[cfg(test)]`, alone or with more conditions.
fn is_test(line: &Line) -> bool {
    let code = line.code.replace(' ', "");
    code.contains("#[cfg(test)]") || code.contains("#[cfg(any(test")
}

fn is_boot(line: &Line) -> bool {
    line.comment.contains("BOOT:")
}

/// Marks what begins with such a line: an item or a statement up to its closing brace, or its semicolon.
fn mark_items(lines: &mut [Line], begins: fn(&Line) -> bool, mark: fn(&mut Line)) {
    let mut index = 0;
    while index < lines.len() {
        if !lines.get(index).is_some_and(begins) {
            index += 1;
            continue;
        }
        let (mut depth, mut opened) = (0i32, false);
        for line in lines.iter_mut().skip(index) {
            mark(line);
            index += 1;
            for c in line.code.chars() {
                match c {
                    '{' => (depth, opened) = (depth + 1, true),
                    '(' | '[' => depth += 1,
                    '}' | ')' | ']' => depth -= 1,
                    ';' if depth == 0 => opened = true,
                    _ => {}
                }
            }
            if opened && depth <= 0 {
                break;
            }
        }
    }
}

/// Whether `word` is in `code` as a word of its own.
pub fn has_word(code: &str, word: &str) -> bool {
    code.match_indices(word).any(|(start, _)| {
        let before = code.get(..start).and_then(|text| text.chars().next_back()).unwrap_or(' ');
        let after = code.get(start + word.len()..).and_then(|text| text.chars().next()).unwrap_or(' ');
        !is_word(before) && !is_word(after)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_strings_are_no_code() {
        let lines =
            lines("let a = \"unsafe {\"; // unsafe\nlet b = r#\"x\" panic!\"#; let c = '\"'; call();\n/* unsafe\n*/ d");
        assert_eq!(lines[0].code, "let a = \"\"; ");
        assert_eq!(lines[0].comment.trim(), "unsafe");
        assert_eq!(lines[1].code, "let b = \"\"; let c = '; call();");
        assert_eq!(lines[2].comment.trim(), "unsafe");
        assert_eq!(lines[3].code.trim(), "d");
    }

    #[test]
    fn a_test_module_ends_at_its_brace() {
        let lines = lines("fn a() {}\n#[cfg(test)]\nmod tests {\n  fn b() { x }\n}\nfn c() {}\n");
        let marks: Vec<bool> = lines.iter().map(|line| line.test).collect();
        assert_eq!(marks, [false, true, true, true, true, false, false]);
    }

    #[test]
    fn a_test_module_in_a_file_of_its_own_is_one_line() {
        let lines = lines("#[cfg(test)]\nmod tests;\nfn c() {}\n");
        assert_eq!(lines.iter().map(|line| line.test).collect::<Vec<_>>(), [true, true, false, false]);
    }

    #[test]
    fn what_runs_at_boot_is_an_item_a_statement_or_a_file() {
        let boots = |text| lines(text).iter().map(|line| line.boot).collect::<Vec<_>>();
        let text = "// BOOT: once.\nfn a(b: [u8; 4]) {\n  b;\n}\nfn c() {\n  // BOOT: once.\n  d(\n    e);\n  f;\n}";
        assert_eq!(boots(text), [true, true, true, true, false, true, true, true, false, false]);
        assert_eq!(boots("//! All of it.\n//! BOOT: once.\nfn a() {}\nfn b() {}"), [true; 4]);
    }

    #[test]
    fn words_are_whole() {
        assert!(has_word("unsafe { }", "unsafe"));
        assert!(!has_word("forbid(unsafe_code)", "unsafe"));
        assert!(!has_word("accept", "ept"));
    }
}
