use std::path::Path;

use serde_json::Value;

fn made() -> Value {
    crate::http::described()
}

#[test]
fn the_document_is_what_the_table_of_routes_makes_of_it() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/openapi.json");
    let made = serde_json::to_string_pretty(&made()).unwrap() + "\n";
    if std::env::var_os("MUSTER_WRITE_OPENAPI").is_some() {
        std::fs::write(&file, &made).unwrap();
    }
    let kept = std::fs::read_to_string(file).unwrap();
    assert!(
        kept == made,
        "docs/openapi.json is not what the handlers say. Write it anew: MUSTER_WRITE_OPENAPI=1 cargo test \
         --workspace --features muster-agent/stand-in --lib -- openapi"
    );
}

/// Every reference of the document leads to a schema, and every schema is used.
#[test]
fn nothing_in_it_refers_to_what_it_does_not_hold() {
    fn references<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
        match value {
            Value::Object(fields) => {
                found.extend(fields.get("$ref").and_then(Value::as_str));
                fields.values().for_each(|field| references(field, found));
            }
            Value::Array(items) => items.iter().for_each(|item| references(item, found)),
            _ => {}
        }
    }
    let (made, mut found) = (made(), Vec::new());
    references(&made, &mut found);
    assert!(found.len() > 100, "{}", found.len());
    let schemas = made["components"]["schemas"].as_object().unwrap();
    for reference in &found {
        let name = reference.strip_prefix("#/components/schemas/").unwrap();
        assert!(schemas.contains_key(name), "{reference}");
    }
    for name in schemas.keys() {
        assert!(found.iter().any(|reference| reference.ends_with(&format!("/{name}"))), "{name}");
    }
}

#[test]
fn requests_say_who_must_sign_them() {
    let made = made();
    let security = |verb: &str, path: &str| made["paths"][path][verb]["security"].to_string();
    for (verb, path, scheme) in [
        ("post", "/v1/checkin", "machine"),
        ("post", "/v1/reports", "machine"),
        ("get", "/v1/operator/machines", "operator"),
        ("post", "/v1/operator/root", "operator"),
        ("get", "/v1/machines/{name}/poll", "bearer"),
        ("put", "/cache/nar/{file}", "bearer"),
    ] {
        assert!(security(verb, path).contains(scheme), "{path}: {}", security(verb, path));
    }
    for (verb, path) in [("get", "/v1/fleet"), ("post", "/v1/enrol"), ("get", "/healthz")] {
        assert_eq!(security(verb, path), "[]", "{path}");
    }
    let poll = &made["paths"]["/v1/machines/{name}/poll"]["get"];
    let names: Vec<_> = poll["parameters"].as_array().unwrap().iter().map(|p| p["name"].clone()).collect();
    assert_eq!(names, ["files", "have", "root", "wait", "name"]);
}
