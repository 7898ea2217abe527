//! Plans: limits on meters per period, in versions that never change. What a plan is and how it is read (rest.md
//! 12.10); [`period`] counts windows from an anchor, [`assignment`] says which plan a subject has when, [`quota`]
//! judges a value against a limit, [`consume`] decides about more. Pure: no SQL, no clock.

use std::collections::{HashMap, HashSet};

use serde::Deserialize;
use utoipa::ToSchema;

use crate::entitlements::period::{Period, WindowInput};
use crate::error::{Error, Result};
use crate::metering::event::InputQuantity;
use crate::metering::quantity::Quantity;
use crate::metering::time::Timestamp;
use crate::string_enum::string_enum;

pub const NAME_CHARS_MAX: usize = 120;
pub const LIMITS_MAX: usize = 1_000;
/// Each may be a counter that every event of the meter is added to.
pub const LIMITS_PER_METER_MAX: usize = 32;
const DESCRIPTION_BYTES_MAX: usize = 4_096;
const WARNING_PERCENT_DEFAULT: i64 = 80;

string_enum!(
    /// Whether consumption beyond the limit is refused or only reported.
    Enforcement { Advisory = "advisory", Hard = "hard" }
);
string_enum!(
    /// What to do when the quota cannot be computed.
    FailurePolicy { FailOpen = "fail_open", FailClosed = "fail_closed" }
);

/// One version of a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    pub id: i64,
    pub public_id: String,
    pub workspace_id: i64,
    pub name: String,
    pub description: String,
    pub version: i32,
    pub parent_id: Option<String>,
    pub is_current: bool,
    /// By meter, then period; in the order of the request right after a save.
    pub limits: Vec<Limit>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

impl Plan {
    pub fn limits_of(&self, meter_id: i64) -> impl Iterator<Item = &Limit> {
        self.limits.iter().filter(move |limit| limit.meter_id == meter_id)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limit {
    pub public_id: String,
    pub meter_id: i64,
    pub meter: String,
    pub period: Period,
    pub quantity: Quantity,
    pub warning_percent: Quantity,
    pub enforcement: Enforcement,
    pub failure_policy: FailurePolicy,
    pub created_at: Timestamp,
}

/// A plan as a client describes it.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
pub struct PlanInput {
    #[schema(value_type = String, min_length = 1, max_length = 120)]
    pub name: Option<String>,
    pub description: Option<String>,
    /// Of one meter at most 32, each with another period or window.
    #[schema(value_type = Vec<LimitInput>, min_items = 1, max_items = 1000)]
    pub limits: Option<Vec<LimitInput>>,
}

impl PlanInput {
    /// The meters it names, trimmed, for the allow-list of a key.
    pub fn meters(&self) -> impl Iterator<Item = &str> {
        self.limits.iter().flatten().map(|limit| limit.meter.as_deref().unwrap_or_default().trim())
    }
}

#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
pub struct LimitInput {
    #[schema(value_type = String, min_length = 1)]
    pub meter: Option<String>,
    /// `day`, `week`, `month` or `year`; with a `window` any size of a bucket.
    pub period: Option<String>,
    pub window: Option<WindowInput>,
    #[schema(value_type = Quantity)]
    pub limit: Option<InputQuantity>,
    #[schema(value_type = Option<Quantity>)]
    pub warning_percent: Option<InputQuantity>,
    pub enforcement: Option<String>,
    pub failure_policy: Option<String>,
}

/// A plan that keeps the rules, but whose meters have not been looked up.
#[derive(Clone, Debug)]
pub struct Draft {
    pub name: String,
    pub description: String,
    pub limits: Vec<DraftLimit>,
}

#[derive(Clone, Debug)]
pub struct DraftLimit {
    pub meter: String,
    pub period: Period,
    pub quantity: Quantity,
    pub warning_percent: Quantity,
    pub enforcement: Enforcement,
    pub failure_policy: FailurePolicy,
}

impl Draft {
    pub fn parse(input: PlanInput) -> Result<Self> {
        let name = input.name.unwrap_or_default().trim().to_owned();
        if name.is_empty() || name.chars().count() > NAME_CHARS_MAX {
            return Err(Error::invalid(format!("name must have 1 to {NAME_CHARS_MAX} characters")));
        }
        let description = input.description.unwrap_or_default().trim().to_owned();
        if description.len() > DESCRIPTION_BYTES_MAX {
            let problem = format!("description must not be longer than {DESCRIPTION_BYTES_MAX} bytes");
            return Err(Error::invalid(problem));
        }
        let inputs = input.limits.unwrap_or_default();
        if inputs.is_empty() || inputs.len() > LIMITS_MAX {
            return Err(Error::invalid(format!("limits must have 1 to {LIMITS_MAX} entries")));
        }
        let limits = inputs.into_iter().map(DraftLimit::parse).collect::<Result<Vec<_>>>()?;
        let mut seen = HashSet::new();
        if let Some(twice) = limits.iter().find(|limit| !seen.insert((limit.meter.as_str(), &limit.period))) {
            let (meter, period) = (&twice.meter, twice.period.as_str());
            return Err(Error::invalid(format!("meter {meter:?} is limited twice per {period}")));
        }
        let mut counts: HashMap<&str, usize> = HashMap::new();
        for DraftLimit { meter, .. } in &limits {
            let count = counts.entry(meter).or_default();
            *count += 1;
            if *count > LIMITS_PER_METER_MAX {
                let problem =
                    format!("meter {meter:?} must not have more than {LIMITS_PER_METER_MAX} limits");
                return Err(Error::invalid(problem));
            }
        }
        Ok(Draft { name, description, limits })
    }
}

impl DraftLimit {
    fn parse(input: LimitInput) -> Result<Self> {
        let meter = input.meter.unwrap_or_default().trim().to_owned();
        if meter.is_empty() {
            return Err(Error::invalid("the meter of a limit is required"));
        }
        let quantity = number(input.limit, "limit")?.filter(Quantity::is_positive);
        let quantity = quantity
            .ok_or_else(|| Error::invalid(format!("the limit on {meter:?} must be greater than 0")))?;
        let hundred = Quantity::from(100);
        let warning_percent = number(input.warning_percent, "warning_percent")?
            .filter(|percent| !percent.is_zero())
            .unwrap_or_else(|| Quantity::from(WARNING_PERCENT_DEFAULT));
        if !warning_percent.is_positive() || warning_percent > hundred {
            return Err(Error::invalid("warning_percent must be greater than 0 and at most 100"));
        }
        let word = |text: Option<String>| text.unwrap_or_default().trim().to_lowercase();
        let enforcement = match word(input.enforcement).as_str() {
            "" => Enforcement::Advisory,
            word => Enforcement::parse(word)
                .ok_or_else(|| Error::invalid("enforcement must be advisory or hard"))?,
        };
        let failure_policy = match word(input.failure_policy).as_str() {
            "" => FailurePolicy::FailOpen,
            word => FailurePolicy::parse(word)
                .ok_or_else(|| Error::invalid("failure_policy must be fail_open or fail_closed"))?,
        };
        let period = Period::read(&input.period.unwrap_or_default(), input.window.as_ref())?;
        Ok(DraftLimit { meter, period, quantity, warning_percent, enforcement, failure_policy })
    }
}

fn number(input: Option<InputQuantity>, name: &str) -> Result<Option<Quantity>> {
    match input {
        None => Ok(None),
        Some(InputQuantity(Ok(quantity))) => Ok(Some(quantity)),
        Some(InputQuantity(Err(reject))) => Err(Error::invalid(format!("{name} {reject}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Result<Draft> {
        Draft::parse(serde_json::from_str(json).expect("json"))
    }

    #[test]
    fn defaults_and_spellings() {
        let draft = parse(
            r#"{"name":" Gold ","limits":[{"meter":" m ","limit":0.10,"period":" DAY "},
                {"meter":"m","limit":5,"warning_percent":99.9,"enforcement":" HARD","failure_policy":"Fail_Closed"}]}"#,
        )
        .expect("valid");
        assert_eq!((draft.name.as_str(), draft.limits.len()), ("Gold", 2));
        let [first, second] = &draft.limits[..] else { panic!("two limits") };
        assert_eq!((first.meter.as_str(), first.period.clone()), ("m", Period::DAY));
        assert_eq!((first.quantity.to_json(), first.warning_percent.to_json()), ("0.1".into(), "80".into()));
        assert_eq!(
            (first.enforcement, first.failure_policy),
            (Enforcement::Advisory, FailurePolicy::FailOpen)
        );
        assert_eq!((second.period.clone(), second.warning_percent.to_json()), (Period::MONTH, "99.9".into()));
        assert_eq!(
            (second.enforcement, second.failure_policy),
            (Enforcement::Hard, FailurePolicy::FailClosed)
        );
    }

    #[test]
    fn a_meter_has_few_limits_however_many_a_plan_has() {
        let limits = |meter: &str, count: usize| -> Vec<String> {
            let one = |n: usize| {
                format!(
                    r#"{{"meter":"{meter}","limit":1,"period":"day",
                        "window":{{"kind":"anchored","anchor":"2026-01-01T00:00:00.{n:06}Z"}}}}"#
                )
            };
            (0..count).map(one).collect()
        };
        let parse_all =
            |limits: &[String]| parse(&format!(r#"{{"name":"p","limits":[{}]}}"#, limits.join(",")));
        let most = [limits("a", LIMITS_PER_METER_MAX), limits("b", LIMITS_PER_METER_MAX)].concat();
        assert_eq!(parse_all(&most).expect("both meters have what they may").limits.len(), 64);
        let error = parse_all(&limits("a", LIMITS_PER_METER_MAX + 1)).expect_err("one too many");
        assert_eq!(error.message, r#"invalid input: meter "a" must not have more than 32 limits"#);
    }

    #[test]
    fn what_is_refused() {
        let good = r#"{"meter":"m","limit":5}"#;
        let cases = [
            format!(r#"{{"limits":[{good}]}}"#),
            format!(r#"{{"name":"{}","limits":[{good}]}}"#, "ü".repeat(121)),
            r#"{"name":"p","limits":[]}"#.into(),
            format!(r#"{{"name":"p","limits":[{good},{{"meter":" m","limit":6,"period":"MONTH"}}]}}"#),
            r#"{"name":"p","limits":[{"meter":"m"}]}"#.into(),
            r#"{"name":"p","limits":[{"meter":"m","limit":-1}]}"#.into(),
            r#"{"name":"p","limits":[{"meter":" ","limit":1}]}"#.into(),
            r#"{"name":"p","limits":[{"meter":"m","limit":1,"period":"hour"}]}"#.into(),
            r#"{"name":"p","limits":[{"meter":"m","limit":1,"warning_percent":100.5}]}"#.into(),
            r#"{"name":"p","limits":[{"meter":"m","limit":1,"warning_percent":-1}]}"#.into(),
            r#"{"name":"p","limits":[{"meter":"m","limit":1,"enforcement":"soft"}]}"#.into(),
            r#"{"name":"p","limits":[{"meter":"m","limit":1,"failure_policy":"open"}]}"#.into(),
        ];
        for case in cases {
            assert!(parse(&case).is_err(), "{case}");
        }
        assert!(parse(&format!(r#"{{"name":"{}","limits":[{good}]}}"#, "ü".repeat(120))).is_ok());
    }
}
