//! Schemas of the documents' words, for the controller's OpenAPI document. Agents are built without them.

use std::borrow::Cow;

use utoipa::openapi::schema::{KnownFormat, ObjectBuilder, OneOfBuilder, SchemaFormat, SchemaType, Type};
use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

use crate::ids::{Epoch, Generation, MachineName, Sha256, StorePath, Tag};
use crate::keys::{PublicKey, Signature};
use crate::machine::System;
use crate::plan::RolloutName;
use crate::policy::TimeOfDay;
use crate::report::Stream;
use crate::session::ExchangeKey;

fn text(pattern: &str, what: &str) -> ObjectBuilder {
    ObjectBuilder::new()
        .schema_type(SchemaType::Type(Type::String))
        .pattern(Some(pattern))
        .description(Some(what))
}

fn number(most: u64) -> ObjectBuilder {
    // Numbers of documents are far below 2^53.
    #[allow(clippy::cast_precision_loss)]
    let most = most as f64;
    ObjectBuilder::new()
        .schema_type(SchemaType::Type(Type::Integer))
        .format(Some(SchemaFormat::KnownFormat(KnownFormat::Int64)))
        .minimum(Some(0.0))
        .maximum(Some(most))
}

macro_rules! texts {
    ($($name:ident: $pattern:literal, $what:literal;)*) => {$(
        impl PartialSchema for $name {
            fn schema() -> RefOr<Schema> {
                text($pattern, $what).into()
            }
        }
        impl ToSchema for $name {
            fn name() -> Cow<'static, str> {
                Cow::Borrowed(stringify!($name))
            }
        }
    )*};
}

texts! {
    Sha256: "^[0-9a-f]{64}$", "SHA-256 in hexadecimal.";
    MachineName: "^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$", "A machine's name in the flake.";
    Tag: "^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$", "A tag in the inventory.";
    RolloutName: "^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$", "The name of a rollout.";
    StorePath: "^/nix/store/[0-9a-df-np-sv-z]{32}-[A-Za-z0-9+_?=-][A-Za-z0-9+._?=-]{0,210}$",
        "An absolute path of the Nix store.";
    PublicKey: "^(sk-ed25519:)?[0-9a-f]{64}$",
        "An Ed25519 public key in hexadecimal; an operator's may be a security key's, with `sk-ed25519:` in front.";
    ExchangeKey: "^[0-9a-f]{64}$", "An X25519 public key in hexadecimal.";
    Signature: "^[0-9a-f]{128}([0-9a-f]{10})?$",
        "An Ed25519 signature in hexadecimal; a security key's has its flags and counter after it.";
    System: "^[A-Za-z0-9_]{1,25}-(linux|darwin)$", "A Nix system.";
    TimeOfDay: "^([01][0-9]|2[0-3]):[0-5][0-9]$|^24:00$", "A time of day.";
    Stream: "^[0-9a-f]{16}$", "The name of one stream of events.";
}

impl PartialSchema for Generation {
    fn schema() -> RefOr<Schema> {
        let later = text("^[1-9][0-9]*\\.[1-9][0-9]*$", "EPOCH.NUMBER, in later epochs.");
        OneOfBuilder::new()
            .description(Some("The number of a generation."))
            .item(number(crate::ids::limits::MAX_NUMBER).minimum(Some(1.0)))
            .item(later)
            .into()
    }
}
impl ToSchema for Generation {
    fn name() -> Cow<'static, str> {
        Cow::Borrowed("Generation")
    }
}

impl PartialSchema for Epoch {
    fn schema() -> RefOr<Schema> {
        number(u64::from(crate::ids::limits::MAX_EPOCH))
            .description(Some("How often the numbers of all machines were restarted."))
            .into()
    }
}
impl ToSchema for Epoch {
    fn name() -> Cow<'static, str> {
        Cow::Borrowed("Epoch")
    }
}
