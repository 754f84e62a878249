//! What a toolstack said, command by command, and what of it may differ from what another one said.

use anyhow::{Context, Result, bail, ensure};

/// How a command's output is taken apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Form {
    /// A field a line, its name before the first of [`SEPARATORS`] or without a value; or JSON.
    Pairs,
    /// A line of columns' names, and rows that begin with their own.
    Table,
    /// A field is a line.
    Text,
    /// Anything at all: the hypervisor's own words.
    Free,
}

/// Those that are not text, by how their names begin.
const FORMS: &[(&str, Form)] = &[
    ("info", Form::Pairs),
    ("list-long", Form::Pairs),
    ("xenstore", Form::Pairs),
    ("xen-cpuid", Form::Pairs),
    ("list", Form::Table),
    ("cpupool-list", Form::Table),
    ("claims", Form::Table),
    ("vm-list", Form::Table),
    ("block-list", Form::Table),
    ("network-list", Form::Table),
    ("vcpu-list", Form::Table),
    ("top", Form::Table),
    ("uptime", Form::Table),
    ("dmesg", Form::Free),
];
/// Tables whose names are like those of commands that say nothing.
const TABLE_SUFFIX: &str = "-is";
const SEPARATORS: [&str; 4] = [" = ", ": ", " -> ", "  "];
/// Lines that a free text keeps in a recording.
const KEPT: usize = 3;
/// xentop's only value of two words.
const TWO_WORDS: (&str, &str) = ("no limit", "no-limit");

/// One command.
#[derive(Debug)]
pub struct Said<'a> {
    pub name: &'a str,
    command: &'a str,
    lines: Vec<&'a str>,
    status: &'a str,
}

#[derive(Debug, PartialEq, Eq)]
pub struct Field {
    /// `name` or `row/column`.
    pub path: String,
    value: String,
}

/// Everything between `>>> NAME: COMMAND` and `<<< NAME STATUS`.
pub fn parse(console: &str) -> Result<Vec<Said<'_>>> {
    let mut all = Vec::new();
    let mut open: Option<Said<'_>> = None;
    for line in console.lines().map(str::trim_end) {
        if let Some((name, command)) = line.strip_prefix(">>> ").and_then(|rest| rest.split_once(": ")) {
            if let Some(said) = &open {
                bail!("{name} begins before {} has ended", said.name);
            }
            open = Some(Said { name, command, lines: Vec::new(), status: "" });
        } else if let Some((name, status)) = line.strip_prefix("<<< ").and_then(|rest| rest.split_once(' ')) {
            let mut said = open.take().with_context(|| format!("{name} ends and has not begun"))?;
            ensure!(said.name == name, "{name} ends within {}", said.name);
            said.status = status;
            all.push(said);
        } else if let Some(said) = &mut open
            && (said.form() == Form::Free || !is_from_elsewhere(line))
        {
            said.lines.push(line);
        }
    }
    match open {
        Some(said) => bail!("{} does not end", said.name),
        None => Ok(all),
    }
}

/// What the hypervisor or Dom0's kernel puts on the same console.
fn is_from_elsewhere(line: &str) -> bool {
    let stamp = line.strip_prefix('[').and_then(|rest| rest.split_once(']'));
    let stamped = stamp.is_some_and(|(stamp, _)| stamp.trim().parse::<f64>().is_ok());
    stamped || ["(XEN)", "(corten)"].iter().any(|tag| line.starts_with(tag))
}

/// A console as a recording: the commands alone, and the beginning of free texts.
pub fn trimmed(console: &str) -> String {
    let mut text = String::new();
    for said in parse(console).unwrap_or_default() {
        let lines = if said.form() == Form::Free { said.lines.get(..KEPT) } else { None }.unwrap_or(&said.lines);
        text.push_str(&format!(">>> {}: {}\n", said.name, said.command));
        lines.iter().for_each(|line| text.push_str(&format!("{line}\n")));
        text.push_str(&format!("<<< {} {}\n", said.name, said.status));
    }
    text
}

impl Said<'_> {
    fn form(&self) -> Form {
        let by_name = FORMS.iter().find(|(start, _)| self.name.starts_with(start)).map(|(_, form)| *form);
        let is_table = self.name.ends_with(TABLE_SUFFIX) && self.lines.first().is_some_and(|l| l.starts_with("Name"));
        by_name.unwrap_or(if is_table { Form::Table } else { Form::Text })
    }

    pub fn fields(&self) -> Vec<Field> {
        let field = |path: &str, value: &str| Field { path: path.to_string(), value: value.to_string() };
        match self.form() {
            Form::Free => vec![field("says something", if self.lines.is_empty() { "no" } else { "yes" })],
            Form::Text => self.lines.iter().map(|line| field("line", line.trim())).collect(),
            Form::Pairs => self
                .lines
                .iter()
                .map(|line| {
                    let line = line.trim();
                    let parts = SEPARATORS.iter().find_map(|separator| line.split_once(separator));
                    parts.map_or_else(|| field(line, ""), |(name, value)| field(name.trim(), value.trim()))
                })
                .collect(),
            Form::Table => {
                let mut lines = self.lines.iter().map(|line| line.replace(TWO_WORDS.0, TWO_WORDS.1));
                let header = lines.next().unwrap_or_default();
                let columns: Vec<&str> = header.split_whitespace().collect();
                let mut fields = vec![field("columns", &columns.join(" "))];
                for line in lines {
                    let row = line.split_whitespace().next().unwrap_or_default();
                    // The last column's name may have more words than its values, or fewer.
                    fields.extend(line.split_whitespace().enumerate().map(|(index, value)| {
                        let column = columns.get(index).or(columns.last()).copied().unwrap_or_default();
                        field(&format!("{row}/{column}"), value)
                    }));
                }
                fields
            }
        }
    }
}

/// What stands before the only other value that is allowed.
const OR: &str = "or ";

/// How far a value may be from the recorded one.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Leeway<'a> {
    Any,
    /// This one.
    Or(&'a str),
    /// Any, but a number.
    Number,
    Percent(f64),
    /// It may be missing.
    Missing,
    /// It may be there though it is not in the recording.
    More,
}

/// A line `COMMAND | FIELD | LEEWAY | REASON` of the list of differences; `*` stands for anything.
#[derive(Clone, Copy, Debug)]
pub struct Rule<'a> {
    command: &'a str,
    field: &'a str,
    leeway: Leeway<'a>,
}

impl<'a> Rule<'a> {
    pub fn all(text: &'a str) -> Result<Vec<Rule<'a>>> {
        let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        lines.map(|line| Rule::read(line).with_context(|| format!("differences.txt: {line}"))).collect()
    }

    fn read(line: &'a str) -> Result<Rule<'a>> {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let [command, field, leeway, reason] = cells.as_slice() else { bail!("it needs four cells") };
        ensure!(!reason.is_empty(), "it needs a reason");
        let leeway = match *leeway {
            "any" => Leeway::Any,
            "number" => Leeway::Number,
            "missing" => Leeway::Missing,
            "more" => Leeway::More,
            other if other.starts_with(OR) => Leeway::Or(other.trim_start_matches(OR)),
            percent => {
                Leeway::Percent(percent.strip_suffix('%').context("any, or VALUE, number, N%, missing, more")?.parse()?)
            }
        };
        Ok(Rule { command, field, leeway })
    }

    pub fn is_about(&self, command: &str, field: &str) -> bool {
        matches(self.command, command) && matches(self.field, field)
    }

    /// It is about what Xen does not say.
    #[cfg(test)]
    pub fn is_about_more(&self) -> bool {
        self.leeway == Leeway::More
    }

    fn allows(&self, recorded: &str, now: &str) -> bool {
        let number = |text: &str| text.trim_matches(['"', ',']).parse::<f64>().ok();
        match (&self.leeway, number(recorded), number(now)) {
            (Leeway::Or(other), ..) => now == *other,
            (Leeway::Any, ..) | (Leeway::Number, _, Some(_)) => true,
            (Leeway::Percent(percent), Some(recorded), Some(now)) => {
                (now - recorded).abs() <= recorded.abs() * percent / 100.0
            }
            _ => false,
        }
    }
}

/// Whether a pattern with `*` fits the whole text.
fn matches(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((start, rest)) => text.strip_prefix(start).is_some_and(|tail| {
            tail.char_indices()
                .map(|(at, _)| at)
                .chain([tail.len()])
                .any(|at| tail.get(at..).is_some_and(|tail| matches(rest, tail)))
        }),
    }
}

/// Every difference that no rule allows: the same commands with the same end, and the same fields in the same order.
pub fn compare(recorded: &[Said<'_>], now: &[Said<'_>], rules: &[Rule<'_>]) -> Vec<String> {
    let mut wrong = Vec::new();
    for said in now.iter().filter(|said| !recorded.iter().any(|other| other.name == said.name)) {
        wrong.push(format!("{}: is not in the recording", said.name));
    }
    for theirs in recorded {
        let name = theirs.name;
        let Some(ours) = now.iter().find(|said| said.name == name) else {
            wrong.push(format!("{name}: is missing"));
            continue;
        };
        if theirs.status != ours.status {
            wrong.push(format!("{name}: ends with {}, not {}: {}", ours.status, theirs.status, ours.lines.join(" / ")));
        }
        compare_fields(name, &theirs.fields(), &ours.fields(), rules, &mut wrong);
    }
    wrong
}

fn compare_fields(name: &str, theirs: &[Field], ours: &[Field], rules: &[Rule<'_>], wrong: &mut Vec<String>) {
    let about = |path: &str| rules.iter().filter(|rule| rule.is_about(name, path)).collect::<Vec<_>>();
    let may = |path: &str, leeway: Leeway<'_>| about(path).iter().any(|rule| rule.leeway == leeway);
    for (theirs, ours) in aligned(theirs, ours) {
        match (theirs, ours) {
            (Some(theirs), Some(ours)) => {
                let allowed = || about(&theirs.path).iter().any(|rule| rule.allows(&theirs.value, &ours.value));
                if theirs.value != ours.value && !allowed() {
                    wrong.push(format!("{name}: {}: {}, not {}", theirs.path, ours.value, theirs.value));
                }
            }
            (Some(field), None) if !may(&field.path, Leeway::Missing) => {
                wrong.push(format!("{name}: {} ({}) is not there, or not in its place", field.path, field.value));
            }
            (None, Some(field)) if !may(&field.path, Leeway::More) => {
                wrong.push(format!("{name}: {} ({}) is not to be there", field.path, field.value));
            }
            _ => {}
        }
    }
}

type Pair<'a> = (Option<&'a Field>, Option<&'a Field>);

/// Puts the fields of the same names side by side, as many as can be in the order that both have.
fn aligned<'a>(theirs: &'a [Field], ours: &'a [Field]) -> Vec<Pair<'a>> {
    // How many fields the rests of the two have in common.
    let mut common = vec![vec![0usize; ours.len() + 1]; theirs.len() + 1];
    for (i, left) in theirs.iter().enumerate().rev() {
        for (j, right) in ours.iter().enumerate().rev() {
            common[i][j] = match left.path == right.path {
                true => common[i + 1][j + 1] + 1,
                false => common[i + 1][j].max(common[i][j + 1]),
            };
        }
    }
    let (mut i, mut j, mut pairs) = (0, 0, Vec::new());
    while i < theirs.len() || j < ours.len() {
        let (left, right) = (theirs.get(i), ours.get(j));
        let pair = match (left, right) {
            (Some(l), Some(r)) if l.path == r.path => (left, right),
            (Some(_), Some(_)) if common[i][j + 1] >= common[i + 1][j] => (None, right),
            (Some(_), _) => (left, None),
            _ => (None, right),
        };
        i += usize::from(pair.0.is_some());
        j += usize::from(pair.1.is_some());
        pairs.push(pair);
    }
    pairs
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = "noise\r\n>>> list: xl list\r\nName  ID   Mem VCPUs\tState\tTime(s)\r\n\
        [   12.5] a kernel's line\r\n(XEN) a line of the hypervisor's\r\n\
        Domain-0  0  511  1  r-----  13.1\r\n<<< list 0\r\nmore noise\r\n";

    fn differences(from: &str, to: &str, rules: &str) -> Vec<String> {
        let rules = Rule::all(rules).expect("rules");
        let now = LIST.replace(from, to);
        compare(&parse(LIST).expect("a recording"), &parse(&now).expect("a recording"), &rules)
    }

    #[test]
    fn a_table_is_compared_by_row_and_column() {
        assert_eq!(differences("13.1", "13.1", ""), Vec::<String>::new());
        assert_eq!(differences("13.1", "14.0", ""), ["list: Domain-0/Time(s): 14.0, not 13.1"]);
        assert_eq!(differences("r-----", "-b----", "").len(), 1);
        assert_eq!(differences("<<< list 0", "<<< list 1", "").len(), 1);
        assert!(!differences("ID   Mem", "Mem   ID", "").is_empty());
        assert!(!differences("  13.1", "", "").is_empty());
    }

    #[test]
    fn a_rule_allows_what_it_says_and_no_more() {
        let rule = "li* | */Time(s) | number | time goes by\n";
        assert!(differences("13.1", "99.0", rule).is_empty());
        assert_eq!(differences("13.1", "never", rule).len(), 1);
        assert_eq!(differences("511", "512", rule).len(), 1);
        assert!(differences("511", "512", "list | Domain-0/Mem | 1% | rounding").is_empty());
        assert!(differences("r-----", "-b----", "list | */State | or -b---- | at rest").is_empty());
        assert_eq!(differences("r-----", "--p---", "list | */State | or -b---- | at rest").len(), 1);
        assert!(differences("  13.1", "", "list | */Time(s) | missing | no time").is_empty());
        assert!(differences("<<< list", "other  7\n<<< list", "list | other/* | more | one more").is_empty());
        assert_eq!(differences("<<< list", "other  7\n<<< list", "").len(), 2);
        assert_eq!(differences("511", "600", "list | Domain-0/Mem | 1% | rounding").len(), 1);
        assert!(Rule::all("list | Mem | any |").is_err() && Rule::all("list | Mem | some | why").is_err());
    }

    #[test]
    fn pairs_are_told_apart_by_name() {
        let text = ">>> info: xl info\nhost    : dom0\nxen_caps : a b\n<<< info 0\n";
        let said = parse(text).expect("a recording");
        let paths: Vec<String> = said[0].fields().into_iter().map(|field| field.path).collect();
        assert_eq!(paths, ["host", "xen_caps"]);
        assert!(parse(">>> info: xl info\n").is_err() && parse("<<< info 0\n").is_err());
    }

    #[test]
    fn a_star_stands_for_anything() {
        assert!(matches("/local/*/ring-ref", "/local/domain/1/ring-ref") && matches("*", "") && matches("a*", "a"));
        assert!(!matches("/local/*/ring-ref", "/local/domain/1/ring") && !matches("a", "ab"));
    }

    #[test]
    fn a_recording_keeps_the_beginning_of_free_texts() {
        let text = ">>> dmesg: xl dmesg\n(XEN) 1\n2\n3\n4\n<<< dmesg 0\n";
        assert_eq!(trimmed(text), ">>> dmesg: xl dmesg\n(XEN) 1\n2\n3\n<<< dmesg 0\n");
        assert_eq!(trimmed(LIST).lines().count(), 4);
    }
}
