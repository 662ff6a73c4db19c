//! What the path of a request names.

use axum::extract::{FromRequestParts, Path};
use axum::http::request::Parts;
use muster_protocol::api::ProblemCode;
use muster_protocol::ids::{IdError, MachineName};
use serde::Deserialize;

use super::problem::{Refused, refuse};
use super::state::Shared;

/// What a path may name: nothing, or a machine. Its text is taken before the sender is authenticated, and
/// parsed afterwards.
pub trait FromPath: Sized + Send {
    type Text: Send;
    fn text(parts: &mut Parts, app: &Shared) -> impl Future<Output = Result<Self::Text, Refused>> + Send;
    fn read(text: Self::Text) -> Result<Self, Refused>;
}

impl FromPath for () {
    type Text = ();
    async fn text(_: &mut Parts, _: &Shared) -> Result<(), Refused> {
        Ok(())
    }
    fn read((): ()) -> Result<(), Refused> {
        Ok(())
    }
}

#[derive(Deserialize)]
struct Named {
    name: String,
}

impl FromPath for MachineName {
    type Text = String;
    async fn text(parts: &mut Parts, app: &Shared) -> Result<String, Refused> {
        let named = Path::<Named>::from_request_parts(parts, app).await;
        let refused = |error: axum::extract::rejection::PathRejection| {
            refuse(error.status(), ProblemCode::Malformed, error.body_text())
        };
        named.map(|Path(named)| named.name).map_err(refused)
    }
    fn read(text: String) -> Result<Self, Refused> {
        text.parse().map_err(|error: IdError| Refused::malformed(error.to_string()))
    }
}

/// The machine that the path names, known or not.
pub struct OfMachine(pub MachineName);

impl FromRequestParts<Shared> for OfMachine {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, app: &Shared) -> Result<Self, Refused> {
        MachineName::read(MachineName::text(parts, app).await?).map(Self)
    }
}
