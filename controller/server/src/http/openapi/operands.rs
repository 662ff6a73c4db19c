//! What the types of handlers say about their operation.

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, Method, StatusCode};
use axum::response::Response;
use muster_protocol::operator::MachineSummary;
use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

use super::document::{Auth, Operation};
use crate::http::auth::bearer::{Bearer, CacheReader, MachineReader, Reader, Uploader};
use crate::http::auth::machine::{FromMachine, FromStranger};
use crate::http::auth::operator::{Signed, SignedByAnyone, SignedByKeyholder};
use crate::http::body::Document;
use crate::http::cache::many::Uploaded;
use crate::http::heavy::Long;
use crate::http::machine::poll;
use crate::http::machine::reports::RawBatch;
use crate::http::operator::machines::Listing;
use crate::http::path::OfMachine;
use crate::http::problem::Refused;
use crate::http::state::Shared;

/// Something that a handler takes.
pub trait Operand {
    fn describe(operation: &mut Operation);
}

/// Something that a handler returns.
pub trait Reply {
    fn describe(operation: &mut Operation);
}

macro_rules! says_nothing {
    ($($type:ty),*) => {$(
        impl Operand for $type {
            fn describe(_: &mut Operation) {}
        }
    )*};
}
says_nothing!(State<Shared>, HeaderMap, Method, OfMachine);

/// What the path says of it is enough.
impl<T> Operand for Path<T> {
    fn describe(_: &mut Operation) {}
}

impl<T: ToSchema> Operand for Query<T> {
    fn describe(operation: &mut Operation) {
        operation.query::<T>();
    }
}

impl Operand for Body {
    fn describe(operation: &mut Operation) {
        operation.takes_bytes();
    }
}

macro_rules! has_a_bearer {
    ($($type:ty),*) => {$(
        impl Operand for $type {
            fn describe(operation: &mut Operation) {
                operation.auth(Auth::Bearer);
            }
        }
    )*};
}
has_a_bearer!(Bearer, MachineReader, Reader, CacheReader, Uploader);

impl<T: ToSchema> Operand for Uploaded<T> {
    fn describe(operation: &mut Operation) {
        operation.auth(Auth::Bearer);
        operation.takes::<T>();
    }
}

impl Operand for poll::Asked {
    fn describe(operation: &mut Operation) {
        operation.auth(Auth::Bearer);
        operation.query::<poll::Poll>();
    }
}

impl<T: ToSchema> Operand for FromMachine<T> {
    fn describe(operation: &mut Operation) {
        operation.auth(Auth::Machine);
        operation.takes::<T>();
    }
}

impl<T: ToSchema> Operand for FromStranger<T> {
    fn describe(operation: &mut Operation) {
        operation.takes::<T>();
    }
}

/// An operator's request, with a body if one is wanted.
fn signed<T: Document + ToSchema>(operation: &mut Operation) {
    operation.auth(Auth::Operator);
    if T::WHAT != <() as Document>::WHAT {
        operation.takes::<T>();
    }
}

impl<T: Document + ToSchema, On> Operand for Signed<T, On> {
    fn describe(operation: &mut Operation) {
        signed::<T>(operation);
    }
}
impl<T: Document + ToSchema, On> Operand for SignedByKeyholder<T, On> {
    fn describe(operation: &mut Operation) {
        signed::<T>(operation);
    }
}
impl<T: Document + ToSchema> Operand for SignedByAnyone<T> {
    fn describe(operation: &mut Operation) {
        signed::<T>(operation);
    }
}

/// The parts of it that are stored as received are what the machine sent.
impl PartialSchema for RawBatch {
    fn schema() -> RefOr<Schema> {
        muster_protocol::report::Batch::schema()
    }
}
impl ToSchema for RawBatch {
    fn name() -> std::borrow::Cow<'static, str> {
        muster_protocol::report::Batch::name()
    }
    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        muster_protocol::report::Batch::schemas(schemas);
    }
}

impl<T: ToSchema> Reply for Json<T> {
    fn describe(operation: &mut Operation) {
        operation.answers::<T>();
    }
}
impl<T: ToSchema> Reply for Long<T> {
    fn describe(operation: &mut Operation) {
        operation.answers::<T>();
    }
}

/// Without `fields=summary` each has all fields of a `MachineView`.
impl Reply for Listing {
    fn describe(operation: &mut Operation) {
        operation.answers::<Vec<MachineSummary>>();
    }
}

/// A file as it is stored.
impl Reply for Response {
    fn describe(operation: &mut Operation) {
        operation.answers_with("200", "*/*");
    }
}
impl Reply for &'static str {
    fn describe(operation: &mut Operation) {
        operation.answers_with("200", "text/plain");
    }
}
impl Reply for String {
    fn describe(operation: &mut Operation) {
        operation.answers_with("200", "text/plain");
    }
}
/// Handlers that return a status say that something was stored.
impl Reply for StatusCode {
    fn describe(operation: &mut Operation) {
        operation.answers_with("201", "");
    }
}
impl<T: Reply> Reply for Result<T, Refused> {
    fn describe(operation: &mut Operation) {
        T::describe(operation);
        operation.may_be_refused();
    }
}
