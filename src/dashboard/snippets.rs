//! Calls that are ready to be pasted: one event, in several languages, with nothing to install. Pure text.

use crate::chance;
use crate::metering::json::{Map, Value};
use crate::metering::meter::Meter;

/// One way to send the event.
pub struct Snippet {
    /// Part of the id of its element.
    pub id: &'static str,
    pub name: &'static str,
    pub text: String,
}

/// An event of a meter with a fresh idempotency key, as JSON.
pub fn event(meter: &Meter) -> String {
    let metadata: Map = meter
        .dimensions
        .iter()
        .filter(|dimension| !dimension.deprecated)
        .map(|dimension| (dimension.name.clone(), sample_value(dimension.kind.as_str())))
        .collect();
    format!(
        r#"{{"idempotency_key": "first-{}", "meter": {}, "subject": "customer-1", "quantity": 1, "metadata": {}}}"#,
        chance::name().simple(),
        Value::from(meter.name.as_str()),
        Value::Object(metadata),
    )
}

fn sample_value(kind: &str) -> Value {
    match kind {
        "number" => Value::parse("1").unwrap_or_default(),
        "boolean" => Value::Bool(true),
        _ => "example".into(),
    }
}

/// The key may be the name of a variable of the shell.
pub fn curl(origin: &str, key: &str, event: &str) -> String {
    let event = event.replace('\'', "'\\''");
    format!(
        "curl {origin}/v1/usages \\\n  -H \"Authorization: Bearer {key}\" \\\n  -H 'Content-Type: application/json' \\\n  -d '{event}'"
    )
}

/// The same event in the other languages: names of meters and dimensions hold no sign that would end a raw text.
pub fn others(origin: &str, key: &str, event: &str) -> Vec<Snippet> {
    let snippet = |id, name, text: &str| Snippet {
        id,
        name,
        text: text.replace("{origin}", origin).replace("{key}", key).replace("{event}", event),
    };
    vec![
        snippet("python", "Python", PYTHON),
        snippet("typescript", "TypeScript", TYPESCRIPT),
        snippet("go", "Go", GO),
    ]
}

const PYTHON: &str = r#"import urllib.request

event = r'''{event}'''
request = urllib.request.Request(
    "{origin}/v1/usages",
    data=event.encode(),
    headers={"Authorization": "Bearer {key}", "Content-Type": "application/json"},
)
print(urllib.request.urlopen(request).read().decode())"#;

const TYPESCRIPT: &str = r#"const event = {event};
const answer = await fetch("{origin}/v1/usages", {
  method: "POST",
  headers: { "Authorization": "Bearer {key}", "Content-Type": "application/json" },
  body: JSON.stringify(event),
});
console.log(answer.status, await answer.text());"#;

const GO: &str = r#"package main

import (
	"fmt"
	"io"
	"net/http"
	"strings"
)

func main() {
	event := `{event}`
	request, err := http.NewRequest("POST", "{origin}/v1/usages", strings.NewReader(event))
	if err != nil {
		panic(err)
	}
	request.Header.Set("Authorization", "Bearer {key}")
	request.Header.Set("Content-Type", "application/json")
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		panic(err)
	}
	defer answer.Body.Close()
	text, _ := io.ReadAll(answer.Body)
	fmt.Println(answer.Status, string(text))
}"#;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_language_holds_the_address_the_key_and_the_event() {
        let event = r#"{"meter": "a", "quantity": 1}"#;
        assert!(curl("http://x", "osp_k", event).ends_with("-d '{\"meter\": \"a\", \"quantity\": 1}'"));
        for Snippet { name, text, .. } in others("http://x", "osp_k", event) {
            for part in ["http://x/v1/usages", "Bearer osp_k", event] {
                assert!(text.contains(part), "{name} lacks {part}: {text}");
            }
        }
    }
}
