//! Operations as they are written, and the whole document.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema as _, ToSchema};

/// Who must have sent a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Auth {
    /// A machine, which signs the body.
    Machine,
    /// An operator, who signs the request.
    Operator,
    /// Whoever has a bearer.
    Bearer,
}

/// One operation while it is described.
#[derive(Debug, Default)]
pub struct Operation {
    auth: Option<Auth>,
    parameters: Vec<Value>,
    body: Option<Value>,
    answers: Map<String, Value>,
    schemas: BTreeMap<String, Value>,
}

impl Operation {
    pub fn auth(&mut self, auth: Auth) {
        self.auth = Some(auth);
    }

    /// A body of JSON.
    pub fn takes<T: ToSchema>(&mut self) {
        let schema = self.schema::<T>();
        self.body =
            Some(json!({ "required": true, "content": { "application/json": { "schema": schema } } }));
    }

    /// A body of any bytes.
    pub fn takes_bytes(&mut self) {
        let schema = json!({ "type": "string", "format": "binary" });
        let content = json!({ "application/octet-stream": { "schema": schema } });
        self.body = Some(json!({ "required": true, "content": content }));
    }

    /// Parameters of the query: the fields of a type.
    pub fn query<T: ToSchema>(&mut self) {
        let schema = plain(T::schema());
        let required = schema["required"].as_array().cloned().unwrap_or_default();
        for (name, schema) in schema["properties"].as_object().into_iter().flatten() {
            let needed = required.contains(&json!(name));
            self.parameters
                .push(json!({ "name": name, "in": "query", "required": needed, "schema": schema }));
        }
    }

    /// An answer of JSON.
    pub fn answers<T: ToSchema>(&mut self) {
        let schema = self.schema::<T>();
        self.answer("200", "It was done.", json!({ "application/json": { "schema": schema } }));
    }

    /// An answer of another kind.
    pub fn answers_with(&mut self, status: &str, kind: &str) {
        let content = match kind {
            "" => json!({}),
            _ => json!({ kind: { "schema": { "type": "string" } } }),
        };
        self.answer(status, "It was done.", content);
    }

    /// Every refusal has one form.
    pub fn may_be_refused(&mut self) {
        let schema = self.schema::<muster_protocol::api::Problem>();
        let content = json!({ "application/json": { "schema": schema } });
        self.answer("default", "It was refused, or failed. The message says what to do.", content);
    }

    fn answer(&mut self, status: &str, what: &str, content: Value) {
        let mut answer = json!({ "description": what });
        if content.as_object().is_some_and(|content| !content.is_empty()) {
            answer["content"] = content;
        }
        self.answers.insert(status.to_owned(), answer);
    }

    /// The schema of a type: a reference, if it has a name of its own.
    fn schema<T: ToSchema>(&mut self) -> Value {
        let mut named = Vec::new();
        T::schemas(&mut named);
        let name = T::name();
        let mut schema = plain(T::schema());
        if schema["type"] == "object" || schema.get("allOf").is_some() || schema.get("oneOf").is_some() {
            named.push((name.clone().into_owned(), T::schema()));
            schema = json!({ "$ref": format!("#/components/schemas/{name}") });
        }
        self.schemas.extend(named.into_iter().map(|(name, schema)| (name, plain(schema))));
        schema
    }

    /// The operation as it stands under its path, and the schemas that it refers to.
    pub fn finish(mut self, path: &str, what: &str) -> (Value, BTreeMap<String, Value>) {
        for name in path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}')) {
            let schema = match name {
                "name" | "of" => self.schema_of_names(),
                _ => json!({ "type": "string", "minLength": 1 }),
            };
            self.parameters.push(json!({ "name": name, "in": "path", "required": true, "schema": schema }));
        }
        let mut operation = json!({ "summary": what, "responses": self.answers });
        if !self.parameters.is_empty() {
            operation["parameters"] = self.parameters.into();
        }
        if let Some(body) = self.body {
            operation["requestBody"] = body;
        }
        operation["security"] = match self.auth {
            None => json!([]),
            Some(Auth::Machine) => json!([{ "machine": [] }]),
            Some(Auth::Operator) => json!([{ "operator": [] }]),
            Some(Auth::Bearer) => json!([{ "bearer": [] }, { "password": [] }]),
        };
        (operation, self.schemas)
    }

    fn schema_of_names(&mut self) -> Value {
        let schema = plain(muster_protocol::ids::MachineName::schema());
        self.schemas.insert("MachineName".to_owned(), schema);
        json!({ "$ref": "#/components/schemas/MachineName" })
    }
}

/// A schema as JSON, in which numbers and the like stand where they are used.
fn plain(schema: RefOr<Schema>) -> Value {
    // What utoipa makes is JSON.
    serde_json::to_value(schema).unwrap_or_default()
}

/// The whole document.
pub fn document(operations: Vec<(String, &'static str, &'static str, Operation)>) -> Value {
    let (mut paths, mut schemas) = (Map::new(), BTreeMap::new());
    for (path, verb, what, operation) in operations {
        let (operation, used) = operation.finish(&path, what);
        let at = paths.entry(path).or_insert_with(|| json!({}));
        at[verb] = operation;
        schemas.extend(used);
    }
    let mut document = json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Muster",
            "description": "What machines and operators send to a controller. docs/api.md says the rest: what \
                is signed, in which order things are checked, and which codes refusals have.",
            "version": env!("CARGO_PKG_VERSION"),
            "license": { "name": "MIT OR Apache-2.0" },
        },
        "paths": paths,
        "components": { "schemas": schemas, "securitySchemes": schemes() },
    });
    inline_primitives(&mut document);
    document
}

fn schemes() -> Value {
    use muster_protocol::api::{MACHINE_SIGNATURE, OPERATOR_SIGNATURE};
    json!({
        "machine": {
            "type": "apiKey", "in": "header", "name": MACHINE_SIGNATURE,
            "description": "The machine's Ed25519 signature over the body, in hexadecimal (docs/api.md).",
        },
        "operator": {
            "type": "apiKey", "in": "header", "name": OPERATOR_SIGNATURE,
            "description": "An operator's signature over fleet, method, path, time, nonce and the body's hash, \
                as JSON (docs/api.md).",
        },
        "bearer": { "type": "http", "scheme": "bearer" },
        "password": {
            "type": "http", "scheme": "basic",
            "description": "The bearer as the password, with any name: what Nix sends.",
        },
    })
}

/// Numbers and texts that utoipa gave names, such as i64, are written where they are used.
fn inline_primitives(document: &mut Value) {
    let is_primitive = |name: &str| name.starts_with(|first: char| first.is_ascii_lowercase());
    let Some(all) = document["components"]["schemas"].as_object_mut() else { return };
    let names: Vec<String> = all.keys().filter(|name| is_primitive(name)).cloned().collect();
    let primitives: BTreeMap<String, Value> =
        names.into_iter().filter_map(|name| all.remove_entry(&name)).collect();
    replace(document, &primitives);
}

fn replace(value: &mut Value, with: &BTreeMap<String, Value>) {
    let name = value["$ref"].as_str().and_then(|name| name.strip_prefix("#/components/schemas/"));
    if let Some(schema) = name.and_then(|name| with.get(name)) {
        *value = schema.clone();
        return;
    }
    match value {
        Value::Object(fields) => fields.values_mut().for_each(|field| replace(field, with)),
        Value::Array(items) => items.iter_mut().for_each(|item| replace(item, with)),
        _ => {}
    }
}
