//! The answers of the admin API are as its OpenAPI document has them.

use super::*;

/// What the API answers is what its OpenAPI document says.
#[tokio::test]
async fn answers_are_as_documented() -> Result<()> {
    let house = House::with_directory().await?;
    let operator = &house.operator;
    let openapi = operator.get("/v1/openapi.json")?;
    let schema = |name: &str| json!({"$ref": format!("#/components/schemas/{name}")});
    let wasm = json!({"wasm": BASE64_STANDARD.encode(probe(1)?), "config": STAMPING});
    let (_, loaded) = operator.ask("POST", "/v1/plugins/10-probe", Some(&wasm))?;
    check(&openapi, &schema("Swap"), &loaded).context("a swap")?;
    let (_, refused) =
        operator.ask("POST", "/v1/plugins/probe/swap", Some(&json!({"wasm": "AAAA"})))?;
    check(&openapi, &schema("Error"), &refused).context("an error")?;
    let mut client = listener(&house.server).await?;
    echo(&mut client, "x").await?;
    operator.ask("POST", "/v1/plugins/probe/reload", None)?;
    for (path, name) in [
        ("/v1/plugins", "Plugins"),
        ("/v1/plugins/probe", "Plugin"),
        ("/v1/engine", "Engine"),
        ("/v1/connections", "Connections"),
        ("/v1/connections/1", "Connection"),
        ("/v1/pubsub/top", "Top"),
        ("/v1/server", "Server"),
        ("/v1/stats", "Stats"),
        ("/v1/memory", "Memory"),
        ("/v1/log", "Log"),
        ("/healthz", "Health"),
        ("/readyz", "Health"),
    ] {
        check(&openapi, &schema(name), &operator.get(path)?).context(path)?;
    }
    let mut trace = operator.start(&["plugin", "trace", "--channel", "*", "--json"])?;
    check(&openapi, &schema("TraceLine"), &trace.next_line()?.context("it begins")?)?;
    echo(&mut client, "x").await?;
    check(&openapi, &schema("TraceLine"), &trace.next_line()?.context("it goes on")?)?;
    // Each operation is served: none is unknown or has another method.
    for (path, methods) in openapi["paths"].as_object().context("paths")? {
        let path = path.replace("{plugin}", "nothing").replace("{connection}", "0");
        for method in methods.as_object().context("methods")?.keys() {
            // The one has no end, and the other is no JSON.
            if method != "parameters" && !["/v1/trace", "/metrics"].contains(&path.as_str()) {
                let (_, answer) = operator.ask(&method.to_uppercase(), &path, None)?;
                let code = answer["code"].as_str().unwrap_or_default();
                ensure!(!["not-found", "wrong-method"].contains(&code), "{method} {path}: {code}");
            }
        }
    }
    drop(trace);
    house.server.stop().await
}

/// Holds a value to a schema, as far as the document uses JSON Schema.
fn check(openapi: &Value, schema: &Value, value: &Value) -> Result<()> {
    if let Some(reference) = schema["$ref"].as_str() {
        let pointer = reference.strip_prefix('#').context("a reference is local")?;
        let found = openapi.pointer(pointer).with_context(|| format!("no {reference}"))?;
        return check(openapi, found, value);
    }
    if let Some(any) = schema["anyOf"].as_array() {
        let fits = any.iter().any(|schema| check(openapi, schema, value).is_ok());
        ensure!(fits, "{value} fits nothing of {schema}");
        return Ok(());
    }
    if let Some(expected) = schema.get("const") {
        ensure!(expected == value, "{value} is not {expected}");
        return Ok(());
    }
    if let Some(allowed) = schema["enum"].as_array() {
        ensure!(allowed.contains(value), "{value} is none of {allowed:?}");
        return Ok(());
    }
    let kinds = match &schema["type"] {
        Value::Array(kinds) => kinds.clone(),
        kind => vec![kind.clone()],
    };
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_u64() || number.is_i64() => "integer",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    let fits = |allowed: &Value| allowed == kind || (allowed == "number" && kind == "integer");
    ensure!(kinds.iter().any(fits), "{value} is not {kinds:?}");
    for item in value.as_array().into_iter().flatten() {
        check(openapi, &schema["items"], item)?;
    }
    if let Value::Object(members) = value {
        let others = Some(&schema["additionalProperties"]).filter(|others| others.is_object());
        for (name, member) in members {
            let schema = schema["properties"].get(name).or(others);
            let schema = schema.with_context(|| format!("{name} is not documented"))?;
            check(openapi, schema, member).with_context(|| name.clone())?;
        }
        for required in schema["required"].as_array().into_iter().flatten() {
            let name = required.as_str().context("a name")?;
            ensure!(members.contains_key(name), "{name} is missing");
        }
    }
    Ok(())
}
