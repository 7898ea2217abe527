//! Whether spans are sent, by the variables that OpenTelemetry itself defines. Here is looked at no more than that takes, and
//! what would be wrong without a word; the SDK reads them all for itself.

use std::collections::BTreeMap;

use crate::config::Role;

const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
const TRACES_ENDPOINT: &str = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT";
const DISABLED: &str = "OTEL_SDK_DISABLED";
const EXPORTER: &str = "OTEL_TRACES_EXPORTER";
const PROTOCOL: &str = "OTEL_EXPORTER_OTLP_PROTOCOL";
const TRACES_PROTOCOL: &str = "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL";
const SAMPLER: &str = "OTEL_TRACES_SAMPLER";
const SAMPLER_ARGUMENT: &str = "OTEL_TRACES_SAMPLER_ARG";

const READ: [&str; 8] =
    [ENDPOINT, TRACES_ENDPOINT, DISABLED, EXPORTER, PROTOCOL, TRACES_PROTOCOL, SAMPLER, SAMPLER_ARGUMENT];

const SAMPLERS: [&str; 6] = [
    "always_on",
    "always_off",
    "traceidratio",
    "parentbased_always_on",
    "parentbased_always_off",
    "parentbased_traceidratio",
];

/// Whether a variable of this name is looked at here.
pub(super) fn is_read(name: &str) -> bool {
    READ.contains(&name)
}

/// Whether this process sends spans, and what is worth a line about it.
pub(super) fn read(
    role: Role,
    environment: &BTreeMap<String, String>,
    dotenv: &BTreeMap<String, String>,
) -> (bool, Vec<String>) {
    judge(cfg!(feature = "otlp"), role, environment, dotenv)
}

fn judge(
    is_built_in: bool,
    role: Role,
    environment: &BTreeMap<String, String>,
    dotenv: &BTreeMap<String, String>,
) -> (bool, Vec<String>) {
    if matches!(role, Role::Migrate(_) | Role::Command(_)) {
        return (false, Vec::new());
    }
    let find = |name: &str| environment.get(name).map(|text| text.trim()).filter(|text| !text.is_empty());
    let endpoint = [TRACES_ENDPOINT, ENDPOINT].into_iter().find(|name| find(name).is_some());
    let Some(endpoint) = endpoint else {
        let elsewhere = [TRACES_ENDPOINT, ENDPOINT].into_iter().find(|name| dotenv.contains_key(*name));
        let warning = |name| {
            format!("{name} in .env is not read: variables of OpenTelemetry are set in the environment")
        };
        return (false, elsewhere.map(warning).into_iter().collect());
    };
    let is_off = find(DISABLED).is_some_and(|text| text.eq_ignore_ascii_case("true"))
        || find(EXPORTER).is_some_and(|text| text.eq_ignore_ascii_case("none"));
    if is_off {
        return (false, Vec::new());
    }
    if !is_built_in {
        let warning = format!(
            "{endpoint} has no effect: this program sends no spans, it was built without the feature otlp"
        );
        return (false, vec![warning]);
    }
    let mut warnings = Vec::new();
    let protocol = [TRACES_PROTOCOL, PROTOCOL].into_iter().find(|name| find(name).is_some());
    if let Some(name) = protocol.filter(|name| find(name) != Some("http/protobuf")) {
        warnings.push(format!("{name}: spans are sent as http/protobuf, whatever it says"));
    }
    if let Some(sampler) = find(SAMPLER) {
        let ratio = find(SAMPLER_ARGUMENT).and_then(|text| text.parse::<f64>().ok());
        let is_ratio = ratio.is_some_and(|ratio| (0.0..=1.0).contains(&ratio));
        if !SAMPLERS.contains(&sampler) {
            warnings.push(format!("{SAMPLER}: every trace is taken, it is none of {}", SAMPLERS.join(", ")));
        } else if sampler.ends_with("traceidratio") && !is_ratio {
            warnings.push(format!("{SAMPLER_ARGUMENT}: every trace is taken, it is no number from 0 to 1"));
        }
    }
    (true, warnings)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect()
    }

    fn of(pairs: &[(&str, &str)]) -> (bool, Vec<String>) {
        judge(true, Role::Serve, &map(pairs), &BTreeMap::new())
    }

    #[test]
    fn spans_are_sent_where_an_endpoint_is_set_and_the_program_can() {
        let set = [(ENDPOINT, "http://127.0.0.1:4318")];
        assert_eq!(of(&set), (true, Vec::new()));
        assert_eq!(of(&[(TRACES_ENDPOINT, "http://127.0.0.1:4318/v1/traces")]), (true, Vec::new()));
        for nothing in [
            of(&[]),
            of(&[(ENDPOINT, " ")]),
            of(&[(ENDPOINT, "http://a.example"), (DISABLED, "true")]),
            of(&[(ENDPOINT, "http://a.example"), (EXPORTER, "none")]),
            judge(true, Role::Command("doctor"), &map(&set), &BTreeMap::new()),
            judge(false, Role::Command("doctor"), &map(&set), &BTreeMap::new()),
            judge(false, Role::Serve, &BTreeMap::new(), &BTreeMap::new()),
        ] {
            assert_eq!(nothing, (false, Vec::new()));
        }
    }

    #[test]
    fn what_would_have_no_effect_is_said_once() {
        let set = [(ENDPOINT, "http://127.0.0.1:4318"), (SAMPLER, "sometimes")];
        let (is_sent, warnings) = judge(false, Role::Serve, &map(&set), &BTreeMap::new());
        assert!(!is_sent && warnings.len() == 1 && warnings[0].starts_with(ENDPOINT), "{warnings:?}");
        let (is_sent, warnings) = judge(true, Role::AlertWorker, &BTreeMap::new(), &map(&set));
        assert!(!is_sent && warnings.len() == 1 && warnings[0].contains(".env"), "{warnings:?}");
        // that of the program that is being tested reaches the log
        let loaded = crate::config::load_from(&["open-spanner"], &set[..1]);
        let loaded = loaded.unwrap_or_else(|exit| panic!("{}", exit.text));
        assert_eq!(loaded.config.otlp, cfg!(feature = "otlp"));
        assert_eq!(loaded.warnings.len(), usize::from(!cfg!(feature = "otlp")), "{:?}", loaded.warnings);
    }

    #[test]
    fn what_the_sdk_would_pass_over_is_said() {
        let endpoint = (ENDPOINT, "http://a.example");
        for (pairs, count) in [
            (vec![endpoint, (SAMPLER, "parentbased_traceidratio"), (SAMPLER_ARGUMENT, "0.1")], 0),
            (vec![endpoint, (SAMPLER, "parentbased_traceidratio"), (SAMPLER_ARGUMENT, "10")], 1),
            (vec![endpoint, (SAMPLER, "traceidratio")], 1),
            (vec![endpoint, (SAMPLER, "sometimes")], 1),
            (vec![endpoint, (PROTOCOL, "grpc")], 1),
            (vec![endpoint, (PROTOCOL, "grpc"), (TRACES_PROTOCOL, "http/protobuf")], 0),
        ] {
            let (is_sent, warnings) = of(&pairs);
            assert!(is_sent && warnings.len() == count, "{pairs:?}: {warnings:?}");
        }
    }
}
