//! Public files: the fleet's ID and its roots.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use muster_protocol::ids::Sha256;
use muster_protocol::operator::FleetView;

use super::problem::Refused;
use super::state::Shared;

pub async fn fleet(State(app): State<Shared>) -> Json<FleetView> {
    let chain = app.services.roots.current();
    Json(FleetView {
        fleet: chain.fleet(),
        root_version: chain.newest().version(),
        root: Sha256::of(chain.newest_file()),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    })
}

pub async fn root(State(app): State<Shared>, Path(file): Path<String>) -> Result<Response, Refused> {
    root_file(&app, &file)
}

/// `N.root.json`; TUF clients request the next one until there is none.
pub fn root_file(app: &Shared, file: &str) -> Result<Response, Refused> {
    let version = numbered(file, "root").ok_or_else(|| Refused::not_found("roots are named N.root.json"))?;
    let chain = app.services.roots.current();
    let bytes = chain
        .file(version)
        .cloned()
        .ok_or_else(|| Refused::not_found(format!("there is no root of version {version}")))?;
    Ok(json_file(bytes))
}

/// The `N` of `N.ROLE.json`.
pub fn numbered(file: &str, role: &str) -> Option<u64> {
    let digits = file.strip_suffix(".json")?.strip_suffix(role)?.strip_suffix('.')?;
    let plain = !digits.starts_with('0') && digits.bytes().all(|byte| byte.is_ascii_digit());
    if plain { digits.parse().ok() } else { None }
}

/// Signed JSON, byte for byte.
pub fn json_file(bytes: impl Into<axum::body::Body>) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], bytes.into()).into_response()
}

#[cfg(test)]
mod tests {
    use super::numbered;

    #[test]
    fn only_plain_numbers_name_a_version() {
        assert_eq!(numbered("12.root.json", "root"), Some(12));
        for bad in [
            "root.json",
            "0.root.json",
            "01.root.json",
            "+1.root.json",
            "1.targets.json",
            "1.root.jso",
            "..root.json",
        ] {
            assert_eq!(numbered(bad, "root"), None, "{bad}");
        }
    }
}
