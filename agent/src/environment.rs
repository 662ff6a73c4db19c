//! What of the agent's own environment counts.

use std::collections::BTreeMap;

/// The variables of the agent's environment that reach Nix, beside those of the proxy. docs/operators.md lists them.
pub const PASSED: [&str; 6] =
    ["TMPDIR", "NIX_SSL_CERT_FILE", "SSL_CERT_FILE", "NIX_CONFIG", "NIX_CONF_DIR", "NIX_USER_CONF_FILES"];
/// And those of the proxy, as curl knows them; each counts in capitals as well.
pub const OF_THE_PROXY: [&str; 4] = ["http_proxy", "https_proxy", "all_proxy", "no_proxy"];

/// What is taken over of an environment.
pub fn of_environment(variables: impl Iterator<Item = (String, String)>) -> BTreeMap<String, String> {
    let known =
        |name: &str| PASSED.contains(&name) || OF_THE_PROXY.contains(&name.to_ascii_lowercase().as_str());
    variables.filter(|(name, value)| known(name) && !value.is_empty()).collect()
}
