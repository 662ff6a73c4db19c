//! Which part of the agent's own environment is used.

use std::collections::BTreeMap;

/// The variables of the agent's environment that reach Nix, besides those of the proxy. Listed in
/// docs/operators.md.
pub const PASSED: [&str; 6] =
    ["TMPDIR", "NIX_SSL_CERT_FILE", "SSL_CERT_FILE", "NIX_CONFIG", "NIX_CONF_DIR", "NIX_USER_CONF_FILES"];
/// The proxy variables, as curl knows them; each may also be in capitals.
pub const OF_THE_PROXY: [&str; 4] = ["http_proxy", "https_proxy", "all_proxy", "no_proxy"];

/// Keeps the known variables of an environment.
pub fn of_environment(variables: impl Iterator<Item = (String, String)>) -> BTreeMap<String, String> {
    let known =
        |name: &str| PASSED.contains(&name) || OF_THE_PROXY.contains(&name.to_ascii_lowercase().as_str());
    variables.filter(|(name, value)| known(name) && !value.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_list_of_variables_reaches_nix_and_nothing_else() {
        let given = [("TMPDIR", "/big"), ("NIX_SSL_CERT_FILE", "/c"), ("LD_PRELOAD", "/x"), ("TMPDIR2", "x")];
        let given = given.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned()));
        let kept: Vec<String> = of_environment(given).into_keys().collect();
        assert_eq!(kept, ["NIX_SSL_CERT_FILE", "TMPDIR"]);
    }

    #[test]
    fn docs_list_exactly_the_variables_that_reach_nix() {
        let page = include_str!("../../docs/operators.md");
        let line = page.lines().find(|line| line.starts_with("Of the agent's environment")).unwrap();
        let named: Vec<&str> = line.split('`').skip(1).step_by(2).collect();
        assert_eq!(named, [PASSED.as_slice(), OF_THE_PROXY.as_slice()].concat());
    }
}
