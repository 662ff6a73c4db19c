//! The table of routes has two readers: axum's router, and the document that describes the API. So what is
//! served is described, and nothing else is.

use axum::Router;
use axum::handler::Handler;
use axum::routing::{get, post, put};
use serde_json::Value;

use super::openapi::{Described, Operation, document};
use super::state::Shared;

/// A method of HTTP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    Get,
    Post,
    Put,
}

/// What takes down routes.
pub trait Routes: Sized {
    /// `what` says in a few words what the route is for.
    fn route<H, T>(self, verb: Verb, path: &str, what: &'static str, handler: H) -> Self
    where
        H: Handler<T, Shared> + Described<T>,
        T: 'static;

    fn get<H, T>(self, path: &str, what: &'static str, handler: H) -> Self
    where
        H: Handler<T, Shared> + Described<T>,
        T: 'static,
    {
        self.route(Verb::Get, path, what, handler)
    }
    fn post<H, T>(self, path: &str, what: &'static str, handler: H) -> Self
    where
        H: Handler<T, Shared> + Described<T>,
        T: 'static,
    {
        self.route(Verb::Post, path, what, handler)
    }
    fn put<H, T>(self, path: &str, what: &'static str, handler: H) -> Self
    where
        H: Handler<T, Shared> + Described<T>,
        T: 'static,
    {
        self.route(Verb::Put, path, what, handler)
    }
}

impl Routes for Router<Shared> {
    fn route<H, T>(self, verb: Verb, path: &str, _: &'static str, handler: H) -> Self
    where
        H: Handler<T, Shared> + Described<T>,
        T: 'static,
    {
        let handler = match verb {
            Verb::Get => get(handler),
            Verb::Post => post(handler),
            Verb::Put => put(handler),
        };
        Router::route(self, path, handler)
    }
}

/// The operations of a table of routes.
#[derive(Default)]
pub struct Operations(Vec<(String, &'static str, &'static str, Operation)>);

impl Routes for Operations {
    fn route<H, T>(mut self, verb: Verb, path: &str, what: &'static str, _: H) -> Self
    where
        H: Handler<T, Shared> + Described<T>,
        T: 'static,
    {
        let verb = match verb {
            Verb::Get => "get",
            Verb::Post => "post",
            Verb::Put => "put",
        };
        let mut operation = Operation::default();
        H::describe(&mut operation);
        self.0.push((path.to_owned(), verb, what, operation));
        self
    }
}

impl Operations {
    /// The whole document.
    pub fn document(self) -> Value {
        document(self.0)
    }
}
