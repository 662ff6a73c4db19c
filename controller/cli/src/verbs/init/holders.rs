//! Who holds the root of a new fleet: from options, or asked at the terminal.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use anyhow::{Result, anyhow};
use muster_protocol::keys::{PublicKey, SecretKey, Signer};

use crate::keys::signers::{KeySource, public_key};
use crate::terminal::count::count;
use crate::terminal::error::WithHint as _;
use crate::trust::holders::require_name;

/// What is proposed: of three holders two sign, so that one lost key, or one stolen, costs nothing.
const PROPOSED: (usize, u32) = (3, 2);
const MOST: usize = 16;

/// Where a holder's key is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// Made now, in a file below `keys/`.
    New,
    /// Somewhere from where it signs the first root now.
    Signs(KeySource),
    /// With its holder, who signs later.
    Public(PublicKey),
    /// Not known yet: its holder is added later.
    Later,
}

impl FromStr for Place {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        match text {
            "new" => return Ok(Self::New),
            "later" => return Ok(Self::Later),
            _ => {}
        }
        if let agent @ KeySource::Agent(_) =
            text.parse().unwrap_or_else(|never: std::convert::Infallible| match never {})
        {
            return Ok(Self::Signs(agent));
        }
        let path = PathBuf::from(text);
        if path.is_file() && path.extension().is_none_or(|extension| extension != "pub") {
            return Ok(Self::Signs(KeySource::File(std::path::absolute(&path).unwrap_or(path))));
        }
        public_key(text).map(Self::Public).map_err(|_| {
            format!(
                "'{text}' is none of these: new, ssh-agent, ssh-agent:KEY, a key file, a public key, later"
            )
        })
    }
}

/// A holder of the root: `NAME=KEY`, as the option has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    pub name: String,
    pub place: Place,
}

impl FromStr for Holder {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (name, place) = text.split_once('=').ok_or("write NAME=KEY")?;
        require_name(name).map_err(|error| error.to_string())?;
        Ok(Self { name: name.to_owned(), place: place.parse()? })
    }
}

/// Who is to hold the root, and how many of them must sign.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    pub holders: Vec<Holder>,
    pub threshold: u32,
}

/// Asks for holders and threshold; `ask` gets a question and what Enter stands for.
pub fn asked(ask: &mut dyn FnMut(&str, &str) -> Result<String>) -> Result<Wanted> {
    let people = until(ask, "How many people hold the root?", &PROPOSED.0.to_string(), |text| {
        let count = text.parse().ok().filter(|count| (1..=MOST).contains(count));
        count.ok_or_else(|| format!("write a number from 1 to {MOST}"))
    })?;
    let most = u32::try_from(people)?;
    let threshold = until(ask, "How many of them must sign?", &PROPOSED.1.min(most).to_string(), |text| {
        let threshold = text.parse().ok().filter(|threshold| (1..=most).contains(threshold));
        threshold.ok_or_else(|| format!("write a number from 1 to {most}"))
    })?;
    let mut holders: Vec<Holder> = Vec::new();
    for number in 1..=people {
        let name = until(ask, &format!("Name of holder {number}?"), &format!("root-{number}"), |text| {
            require_name(text).map_err(|error| error.to_string())?;
            match holders.iter().any(|holder| holder.name == text) {
                true => Err(format!("'{text}' is a holder already")),
                false => Ok(text.to_owned()),
            }
        })?;
        let question =
            format!("Where is {name}'s key: new, ssh-agent, ssh-agent:KEY, a file, a public key, or later?");
        let place = until(ask, &question, "new", str::parse)?;
        holders.push(Holder { name, place });
    }
    Ok(Wanted { holders, threshold })
}

/// Repeats a question until its answer is understood.
fn until<T>(
    ask: &mut dyn FnMut(&str, &str) -> Result<String>,
    question: &str,
    enter: &str,
    read: impl Fn(&str) -> Result<T, String>,
) -> Result<T> {
    loop {
        let answer = ask(question, enter)?;
        let answer = if answer.trim().is_empty() { enter } else { answer.trim() };
        match read(answer) {
            Ok(read) => return Ok(read),
            Err(why) => tell!("{why}"),
        }
    }
}

/// The holders' keys, made, opened or known.
#[derive(Default)]
pub struct Held {
    /// In the order of the holders; without those that are added later.
    pub keys: Vec<PublicKey>,
    pub names: BTreeMap<String, String>,
    pub signers: Vec<Arc<dyn Signer>>,
    /// The new keys, the files below the folder they go to, and whose they are.
    pub made: Vec<(SecretKey, String, Option<String>)>,
    /// How many sign from the first root on.
    pub threshold: u32,
    /// How many are to sign once the other holders can.
    pub wanted: u32,
    pub later: Vec<String>,
}

impl Held {
    /// One new key without a name.
    pub fn alone() -> Result<Self> {
        let key = SecretKey::generate()?;
        Ok(Self {
            keys: vec![key.public()],
            names: BTreeMap::new(),
            signers: vec![Arc::new(key.clone())],
            made: vec![(key, "keys/root.pem".to_owned(), None)],
            threshold: 1,
            wanted: 1,
            later: Vec::new(),
        })
    }

    /// Makes and opens the keys. The first root is signed here and now, so no more signatures are required
    /// of it than there are keys to sign with.
    pub fn of(wanted: &Wanted) -> Result<Self> {
        let mut held = Self { wanted: wanted.threshold, ..Self::default() };
        for (number, Holder { name, place }) in (1..).zip(&wanted.holders) {
            let key = match place {
                Place::Later => {
                    held.later.push(name.clone());
                    continue;
                }
                Place::New => {
                    let key = SecretKey::generate()?;
                    let file = match number {
                        1 => "keys/root.pem".to_owned(),
                        _ => format!("keys/root-{number}.pem"),
                    };
                    held.signers.push(Arc::new(key.clone()));
                    held.made.push((key.clone(), file, Some(name.clone())));
                    key.public()
                }
                Place::Signs(source) => {
                    let signer = source.open()?;
                    let key = signer.public();
                    held.signers.push(signer);
                    key
                }
                Place::Public(key) => *key,
            };
            if held.keys.iter().any(|other| other.is_same_signer(&key)) {
                return Err(anyhow!("{name}'s key is another root holder's already"))
                    .hint("give each holder a key of their own, or name fewer holders");
            }
            held.keys.push(key);
            held.names.insert(key.hex(), name.clone());
        }
        if held.signers.is_empty() {
            return Err(anyhow!("nobody can sign the first root here: it takes one key at least"))
                .hint("let one holder's key be new, in ssh-agent, or in a file");
        }
        held.threshold = held.wanted.min(u32::try_from(held.signers.len())?);
        Ok(held)
    }

    /// What is left to do until as many sign as was wanted.
    pub fn tell_rest(&self, config: &str) {
        let adds =
            self.later.iter().map(|name| format!("muster --config {config} keys add root KEY --name {name}"));
        let raises = (self.threshold < self.wanted)
            .then(|| format!("muster --config {config} keys threshold root {}", self.wanted));
        let lines: Vec<String> = adds.chain(raises).collect();
        if lines.is_empty() {
            return;
        }
        say!();
        match self.threshold < self.wanted {
            true => say!(
                "The root takes {} until the other holders can sign; then:",
                count(self.threshold, "signature", "signatures")
            ),
            false => say!("Once the other holders have keys:"),
        }
        for line in lines {
            say!("  {line}");
        }
    }
}

#[cfg(test)]
mod tests {
    use muster_protocol::keys::Kind;

    use super::*;
    use crate::terminal::error::render;

    /// Answers in order, and records the questions.
    fn answered(answers: &[&str]) -> (Result<Wanted>, Vec<String>) {
        let (mut left, mut questions) = (answers.iter(), Vec::new());
        let wanted = asked(&mut |question, enter| {
            questions.push(format!("{question} [{enter}]"));
            left.next().map(|answer| (*answer).to_owned()).ok_or_else(|| anyhow!("nobody answers"))
        });
        (wanted, questions)
    }
    fn new(name: &str) -> Holder {
        Holder { name: name.to_owned(), place: Place::New }
    }

    #[test]
    fn enter_alone_makes_three_holders_of_whom_two_sign() {
        let (wanted, questions) = answered(&[""; 8]);
        let wanted = wanted.unwrap();
        assert_eq!(wanted, Wanted { holders: ["root-1", "root-2", "root-3"].map(new).into(), threshold: 2 });
        assert_eq!(questions[..2], ["How many people hold the root? [3]", "How many of them must sign? [2]"]);
        let held = Held::of(&wanted).unwrap();
        assert_eq!((held.keys.len(), held.threshold, held.wanted), (3, 2, 2));
        let files: Vec<&str> = held.made.iter().map(|(_, file, _)| file.as_str()).collect();
        assert_eq!(files, ["keys/root.pem", "keys/root-2.pem", "keys/root-3.pem"]);
        assert_eq!(held.names[&held.keys[1].hex()], "root-2");
    }

    #[test]
    fn what_is_not_understood_is_asked_again() {
        let key = SecretKey::generate().unwrap().public();
        let security = PublicKey::of(Kind::Security, key.as_bytes()).unwrap();
        let text = security.to_string();
        let answers =
            ["0", "x", "3", "4", "2", " alice ", "", "alice", "bob", "nowhere", &text, "carol", "later"];
        let wanted = answered(&answers).0.unwrap();
        let holder = |name: &str, place| Holder { name: name.to_owned(), place };
        let holders =
            vec![new("alice"), holder("bob", Place::Public(security)), holder("carol", Place::Later)];
        assert_eq!(wanted, Wanted { holders, threshold: 2 });
        let held = Held::of(&wanted).unwrap();
        assert_eq!((held.threshold, held.wanted), (1, 2), "only alice signs here");
        assert_eq!((held.keys.len(), &held.later[..]), (2, &["carol".to_owned()][..]));
        assert!(answered(&["3", "2", "alice"]).0.is_err(), "nobody is there any more");
    }

    #[test]
    fn a_holder_is_written_as_name_and_key() {
        let holder = |text: &str| text.parse::<Holder>();
        assert_eq!(holder("alice=new").unwrap(), new("alice"));
        let agent = holder("bob=ssh-agent:SHA256:abc=").unwrap().place;
        assert_eq!(agent, Place::Signs(KeySource::Agent(Some("SHA256:abc=".into()))));
        for bad in ["alice", "=new", "alice=", "alice=nowhere.pem", "a\u{1b}=new"] {
            assert!(holder(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn one_key_makes_one_holder_whatever_its_kind_and_one_at_least_signs() {
        let key = SecretKey::generate().unwrap().public();
        let twin = PublicKey::of(Kind::Security, key.as_bytes()).unwrap();
        let public = |name: &str, key| Holder { name: name.into(), place: Place::Public(key) };
        let holders = vec![new("alice"), public("bob", key), public("carol", twin)];
        let error = render(&Held::of(&Wanted { holders, threshold: 2 }).err().unwrap());
        assert!(error.contains("carol's key is another root holder's"), "{error}");
        let nobody = Wanted { holders: vec![public("bob", key)], threshold: 1 };
        assert!(render(&Held::of(&nobody).err().unwrap()).contains("nobody can sign"));
    }
}
