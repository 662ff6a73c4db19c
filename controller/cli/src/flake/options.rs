//! What the operator tells Nix besides the flake.

use clap::{ArgAction, Args};

/// Command line options passed on to Nix unchanged.
#[derive(Debug, Clone, Default, Args)]
pub struct Options {
    /// Let the flake see this computer: its environment and files outside the flake. It is named in what is
    /// signed
    #[arg(long, help_heading = "Options for Nix")]
    pub impure: bool,
    /// Take this input of the flake from elsewhere, as Nix does; may be repeated. It is named in what is
    /// signed
    #[arg(long = "override-input", value_names = ["INPUT", "REF"], num_args = 2, action = ArgAction::Append,
        help_heading = "Options for Nix")]
    overrides: Vec<String>,
    /// Set an option of Nix; may be repeated. It is named in what is signed
    #[arg(long = "option", value_names = ["NAME", "VALUE"], num_args = 2, action = ArgAction::Append,
        allow_hyphen_values = true, help_heading = "Options for Nix")]
    options: Vec<String>,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum OptionError {
    #[error(
        "{0} holds a password, and what is given to Nix here is signed and published: leave it to nix.conf \
         or to git"
    )]
    Secret(String),
}

impl Options {
    pub fn overrides(&self) -> impl Iterator<Item = (&str, &str)> {
        pairs(&self.overrides)
    }

    pub fn options(&self) -> impl Iterator<Item = (&str, &str)> {
        pairs(&self.options)
    }

    /// Refuses what must not be published.
    pub fn check(&self) -> Result<(), OptionError> {
        let is_token = |(name, _): &(&str, &str)| name.trim_start_matches("extra-") == "access-tokens";
        if let Some((name, _)) = self.options().find(is_token) {
            return Err(OptionError::Secret(format!("--option {name}")));
        }
        match self.overrides().find(|(_, reference)| has_password(reference)) {
            Some((input, _)) => Err(OptionError::Secret(format!("the reference for {input}"))),
            None => Ok(()),
        }
    }

    /// As arguments for Nix, without the overrides, which are locked first.
    pub fn arguments(&self) -> Vec<String> {
        let impure = self.impure.then(|| "--impure".to_owned());
        let options = self.options().flat_map(|(name, value)| ["--option".into(), name.into(), value.into()]);
        impure.into_iter().chain(options).collect()
    }
}

fn pairs(words: &[String]) -> impl Iterator<Item = (&str, &str)> {
    words.chunks_exact(2).map(|pair| (pair[0].as_str(), pair[1].as_str()))
}

/// Whether an HTTP reference contains a user name or a password.
fn has_password(reference: &str) -> bool {
    let Some((scheme, rest)) = reference.split_once("://") else { return false };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    scheme.rsplit('+').next().is_some_and(|last| last.starts_with("http")) && authority.contains('@')
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
        machines: Vec<String>,
    }

    fn parsed(words: &[&str]) -> Line {
        Line::try_parse_from([&["x"], words].concat()).unwrap()
    }

    #[test]
    fn options_are_handed_on_in_pairs() {
        let line = parsed(&[
            "--override-input",
            "a",
            "../a",
            "--impure",
            "--option",
            "cores",
            "-1",
            "--override-input",
            "b/c",
            "github:x/y",
            "tin",
            "--option",
            "substituters",
            "",
        ]);
        assert_eq!(line.machines, ["tin"]);
        assert_eq!(line.options.overrides().collect::<Vec<_>>(), [("a", "../a"), ("b/c", "github:x/y")]);
        assert_eq!(
            line.options.arguments(),
            ["--impure", "--option", "cores", "-1", "--option", "substituters", ""]
        );
        assert_eq!(line.options.check(), Ok(()));
    }

    #[test]
    fn a_password_is_not_signed_and_published() {
        let line = parsed(&["--option", "extra-access-tokens", "github.com=secret"]);
        let refused = line.options.check().unwrap_err().to_string();
        assert!(refused.contains("extra-access-tokens") && !refused.contains("secret"), "{refused}");
        for bad in
            ["git+https://user:secret@host/x", "https://secret@host/x.tar.gz", "tarball+http://u:secret@h/x"]
        {
            let refused = parsed(&["--override-input", "a", bad]).options.check().unwrap_err().to_string();
            assert!(refused.contains("for a") && !refused.contains("secret"), "{refused}");
        }
        for good in ["git+ssh://git@host/x", "github:o/r", "git+https://host/x@y", "path:/a@b"] {
            assert_eq!(parsed(&["--override-input", "a", good]).options.check(), Ok(()), "{good}");
        }
    }
}
