//! The API as an OpenAPI document (3.1), made from the table of routes and the handlers' types: what a
//! handler takes says who must have signed the request and what it holds, and what it returns says the rest.
//!
//! The program serves the file `docs/openapi.json`; a test makes it anew and compares.

mod document;
mod operands;
#[cfg(test)]
mod tests;

use std::future::Future;

use axum::http::header;
use axum::response::{IntoResponse as _, Response};

pub use document::{Operation, document};
pub use operands::{Operand, Reply};

/// The document as it is served.
const FILE: &str = include_str!("../../../../docs/openapi.json");

pub async fn openapi() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], FILE).into_response()
}

/// A handler whose types say what it takes and returns. `Args` is as in [`axum::handler::Handler`].
pub trait Described<Args> {
    fn describe(operation: &mut Operation);
}

macro_rules! described {
    ($($operand:ident),*) => {
        impl<F, Answer, M, $($operand),*> Described<(M, $($operand),*)> for F
        where
            F: Fn($($operand),*) -> Answer,
            Answer: Future,
            Answer::Output: Reply,
            $($operand: Operand),*
        {
            fn describe(operation: &mut Operation) {
                $($operand::describe(operation);)*
                Answer::Output::describe(operation);
            }
        }
    };
}

described!(A);
described!(A, B);
described!(A, B, C);
described!(A, B, C, D);
described!(A, B, C, D, E);

impl<F, Answer> Described<((),)> for F
where
    F: Fn() -> Answer,
    Answer: Future,
    Answer::Output: Reply,
{
    fn describe(operation: &mut Operation) {
        Answer::Output::describe(operation);
    }
}
