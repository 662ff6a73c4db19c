//! Answers to what generators ask: typed by a person, or read from a file if nobody is there.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::Path;

use anyhow::{Context as _, Result, anyhow};
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use zeroize::Zeroizing;

use super::generators::{Generator, Prompt};
use super::names::{Place, VarName};
use super::secret::SecretBytes;
use crate::terminal::error::WithHint as _;
use crate::terminal::list::listed;

/// The longest answer, in bytes.
const MAX_ANSWER: usize = 1024 * 1024;
/// How often two entries that should match may differ.
const TRIES: u32 = 3;

/// Answers from a file: `{"GENERATOR": {"PROMPT": "text"}}`, or `"MACHINE/GENERATOR"` for one machine's.
#[derive(Default)]
pub struct Answers(BTreeMap<String, BTreeMap<String, Zeroizing<String>>>);

impl Answers {
    /// `-` is standard input.
    pub fn load(path: &Path) -> Result<Self> {
        let mut text = Zeroizing::new(Vec::with_capacity(64 * 1024));
        let file: Box<dyn Read> = match path.to_str() {
            Some("-") => Box::new(std::io::stdin().lock()),
            _ => Box::new(
                File::open(path).with_context(|| format!("cannot read the answers in {}", path.display()))?,
            ),
        };
        file.take(16 * MAX_ANSWER as u64).read_to_end(&mut text)?;
        // Errors give only the position: the parser's message could quote an answer.
        let all: BTreeMap<String, BTreeMap<String, String>> = serde_json::from_slice(&text)
            .map_err(|error| {
                let place = format!("line {}, column {}", error.line(), error.column());
                anyhow!("{} holds no answers ({place})", path.display())
            })
            .hint("write {\"GENERATOR\": {\"PROMPT\": \"text\"}}")?;
        let all = all.into_iter().map(|(generator, answers)| {
            (generator, answers.into_iter().map(|(prompt, text)| (prompt, Zeroizing::new(text))).collect())
        });
        Ok(Self(all.collect()))
    }

    fn get(&self, generator: &Generator, prompt: &VarName) -> Option<SecretBytes> {
        let name = generator.id.name.as_str();
        let own = match &generator.id.place {
            Place::Machine(machine) => self.0.get(&format!("{machine}/{name}")),
            Place::Shared => None,
        };
        let answer = own
            .and_then(|answers| answers.get(prompt.as_str()))
            .or_else(|| self.0.get(name)?.get(prompt.as_str()))?;
        Some(SecretBytes::new(answer.as_bytes().to_vec()))
    }
}

/// The answer to one prompt: from the file, otherwise from the person; `before` is the previous answer.
pub fn ask(
    answers: &Answers,
    generator: &Generator,
    name: &VarName,
    prompt: &Prompt,
    before: Option<&SecretBytes>,
) -> Result<SecretBytes> {
    if let Some(answer) = answers.get(generator, name) {
        return Ok(answer);
    }
    let mut terminal = Terminal::open(&format!("{} asks for {name}", generator.id))?;
    let who = match &generator.id.place {
        Place::Machine(machine) => machine.to_string(),
        Place::Shared => listed(&generator.machines),
    };
    let mut question = format!("{} for {who}: {}", generator.id.name, prompt.description);
    if before.is_some() {
        question.push_str(" (nothing keeps what it is)");
    }
    if prompt.kind.has_lines() {
        question.push_str(", ended with Ctrl-D on a line of its own");
    }
    let question = muster_protocol::shown::field(&question);
    let read = |terminal: &mut Terminal, question: &str| match prompt.kind.is_hidden() {
        true => terminal.hidden(question, prompt.kind.has_lines()),
        false => terminal.visible(question, prompt.kind.has_lines()),
    };
    for _ in 0..TRIES {
        let answer = read(&mut terminal, &question)?;
        if answer.is_empty()
            && let Some(before) = before
        {
            return Ok(before.clone());
        }
        if !prompt.kind.is_hidden() || read(&mut terminal, "  the same again")? == answer {
            return Ok(answer);
        }
        terminal.say("The two differ.\n")?;
    }
    Err(anyhow!("the two answers for {name} differed {TRIES} times; nothing was changed"))
}

/// A value for one variable, typed at the terminal.
pub fn value(what: &str, hidden: bool) -> Result<SecretBytes> {
    let mut terminal = Terminal::open(&format!("{what} wants a value"))?;
    for _ in 0..TRIES {
        if !hidden {
            return terminal.visible(what, false);
        }
        let first = terminal.hidden(what, false)?;
        if terminal.hidden("  the same again", false)? == first {
            return Ok(first);
        }
        terminal.say("The two differ.\n")?;
    }
    Err(anyhow!("the two values differed {TRIES} times; nothing was changed"))
}

struct Terminal(File);

impl Terminal {
    fn open(why: &str) -> Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open("/dev/tty");
        file.map(Self)
            .map_err(|_| anyhow!("{why}, and there is no terminal to ask at; nothing was changed"))
            .hint("give the answers in a file with --answers, or the value on standard input")
    }

    fn say(&mut self, text: &str) -> Result<()> {
        self.0.write_all(text.as_bytes()).context("cannot write to the terminal")
    }

    fn visible(&mut self, question: &str, lines: bool) -> Result<SecretBytes> {
        self.say(&format!("{question}: "))?;
        let ended = if lines { None } else { Some(b'\n') };
        read_until(&mut self.0, ended)
    }

    /// Without echo; the terminal is restored whatever happens.
    fn hidden(&mut self, question: &str, lines: bool) -> Result<SecretBytes> {
        self.say(&format!("{question}: "))?;
        let before = tcgetattr(&self.0).context("the terminal cannot be asked for its settings")?;
        let mut quiet = before.clone();
        // Keys that would end this are read as bytes, so that echo is switched on again first.
        quiet
            .local_modes
            .remove(LocalModes::ECHO | LocalModes::ECHONL | LocalModes::ICANON | LocalModes::ISIG);
        let restore = Restore { terminal: self.0.try_clone()?, before };
        tcsetattr(&self.0, OptionalActions::Flush, &quiet).context("the terminal shows what is typed")?;
        let answer = typed(&mut self.0, lines);
        drop(restore);
        self.say("\n")?;
        answer
    }
}

struct Restore {
    terminal: File,
    before: Termios,
}
impl Drop for Restore {
    fn drop(&mut self) {
        let _ = tcsetattr(&self.terminal, OptionalActions::Flush, &self.before);
    }
}

/// Reads key by key: Enter or Ctrl-D ends it, Ctrl-C gives up.
fn typed(terminal: &mut impl Read, lines: bool) -> Result<SecretBytes> {
    const INTERRUPT: u8 = 3;
    const END: u8 = 4;
    const BACKSPACE: u8 = 8;
    const DELETE: u8 = 127;
    const ERASE_ALL: u8 = 21;
    let mut answer = SecretBytes::new(Vec::with_capacity(MAX_ANSWER + 1));
    let mut key = Zeroizing::new([0_u8]);
    loop {
        if terminal.read(&mut key[..])? == 0 {
            return Ok(answer);
        }
        match key[0] {
            INTERRUPT => return Err(anyhow!("interrupted; nothing was changed")),
            END => return Ok(answer),
            b'\r' | b'\n' if !lines => return Ok(answer),
            b'\r' => answer.push(b'\n'),
            // One character may be several bytes of UTF-8.
            BACKSPACE | DELETE => while answer.pop().is_some_and(|byte| byte & 0xc0 == 0x80) {},
            ERASE_ALL => answer.clear(),
            byte if answer.len() < MAX_ANSWER => answer.push(byte),
            _ => return Err(anyhow!("the answer has more than {MAX_ANSWER} bytes; nothing was changed")),
        }
    }
}

fn read_until(terminal: &mut impl Read, end: Option<u8>) -> Result<SecretBytes> {
    let mut answer = SecretBytes::new(Vec::with_capacity(MAX_ANSWER + 1));
    let mut byte = [0_u8];
    while terminal.read(&mut byte)? != 0 && Some(byte[0]) != end {
        if answer.len() == MAX_ANSWER {
            return Err(anyhow!("the answer has more than {MAX_ANSWER} bytes; nothing was changed"));
        }
        answer.push(byte[0]);
    }
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(text: &[u8], lines: bool) -> Result<String> {
        typed(&mut &text[..], lines).map(|answer| String::from_utf8(answer.to_vec()).unwrap())
    }

    #[test]
    fn keys_become_an_answer_as_at_a_terminal() {
        assert_eq!(keys(b"swordfish\rrest", false).unwrap(), "swordfish");
        assert_eq!(keys("swö\u{7f}ordfishh\u{8}\n".as_bytes(), false).unwrap(), "swordfish");
        assert_eq!(keys(b"wrong\x15right\n", false).unwrap(), "right");
        assert_eq!(keys(b"one\rtwo\n\x04", true).unwrap(), "one\ntwo\n");
        assert!(keys(b"swordf\x03", false).unwrap_err().to_string().contains("interrupted"));
    }

    #[test]
    fn answers_in_a_file_are_found_by_machine_and_by_generator() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("answers");
        std::fs::write(&path, r#"{"x": {"p": "all"}, "tin/x": {"p": "tin"}}"#).unwrap();
        let answers = Answers::load(&path).unwrap();
        let declared =
            r#"{"NAME":{"generators":{"x":{"share":false,"files":{"f":{"secret":true,"deploy":true}}}}}}"#;
        for (machine, expected) in [("tin", "tin"), ("lead", "all")] {
            let text = declared.replace("NAME", machine);
            let declared: BTreeMap<muster_protocol::ids::MachineName, crate::vars::generators::Declared> =
                serde_json::from_str(&text).unwrap();
            let class = muster_protocol::machine::Class::Nixos;
            let all = crate::vars::generators::Generators::join(
                declared.into_iter().map(|(name, it)| (name, (class, it))).collect(),
            )
            .unwrap();
            let generator = all.all.values().next().unwrap();
            assert_eq!(
                answers.get(generator, &"p".parse().unwrap()).unwrap().as_slice(),
                expected.as_bytes()
            );
            assert!(answers.get(generator, &"q".parse().unwrap()).is_none());
        }
    }

    #[test]
    fn answers_that_are_none_are_told_by_place_and_never_by_text() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("answers");
        std::fs::write(&path, r#"{"x": "hunter2"}"#).unwrap();
        let Err(error) = Answers::load(&path) else { panic!("it was read") };
        let told = crate::terminal::error::render(&error);
        assert!(told.contains("line 1") && !told.contains("hunter2"), "{told}");
    }
}
