//! Whether a subject will reach a limit before its period ends, at the pace of the period so far. Pure. Only for what
//! adds up, and only once enough of the period has passed to say anything.

use crate::metering::meter::Aggregation;
use crate::metering::quantity::Quantity;
use crate::metering::time::{DAY, Timestamp, Window};

/// Where a period is and where it goes.
#[derive(Clone, Debug, PartialEq)]
pub struct Pace {
    /// How much of the period is over, in percent.
    pub elapsed_percent: f64,
    /// The value at the end of the period, and when the limit is reached if it is before that.
    pub forecast: Option<(Quantity, Option<Timestamp>)>,
}

impl Pace {
    pub fn of(
        current: &Quantity,
        limit: &Quantity,
        aggregation: Aggregation,
        window: Window,
        now: Timestamp,
    ) -> Pace {
        let elapsed = now.0.clamp(window.from.0, window.to.0) - window.from.0;
        let length = window.length().max(1);
        let adds_up = matches!(aggregation, Aggregation::Sum | Aggregation::Count);
        let is_soon = elapsed < length / 10 || (elapsed < DAY && length > DAY);
        let forecast = (adds_up && !is_soon && elapsed > 0 && current.is_positive()).then(|| {
            let projected = (current * &Quantity::from(length)).divide(&Quantity::from(elapsed));
            let reached = (&projected > limit && current < limit).then(|| {
                let until = (limit * &Quantity::from(elapsed)).divide(current).to_f64();
                window.from.plus(until as i64)
            });
            (whole(&projected), reached)
        });
        Pace { elapsed_percent: elapsed as f64 / length as f64 * 100.0, forecast }
    }
}

/// A forecast has no fractions that mean anything.
fn whole(quantity: &Quantity) -> Quantity {
    Quantity::from(quantity.decimal().with_scale_round(0, bigdecimal::RoundingMode::HalfUp))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pace_so_far_goes_on() {
        let window = Window { from: Timestamp(0), to: Timestamp(30 * DAY) };
        let at = |day: i64, current: i64, aggregation| {
            Pace::of(
                &Quantity::from(current),
                &Quantity::from(100),
                aggregation,
                window,
                Timestamp(day * DAY),
            )
        };
        let pace = at(15, 60, Aggregation::Sum);
        assert_eq!(pace.elapsed_percent, 50.0);
        assert_eq!(pace.forecast, Some((Quantity::from(120), Some(Timestamp(25 * DAY)))));
        assert_eq!(at(15, 40, Aggregation::Sum).forecast, Some((Quantity::from(80), None)));
        assert_eq!(at(15, 130, Aggregation::Sum).forecast, Some((Quantity::from(260), None)));
        assert_eq!(at(2, 40, Aggregation::Sum).forecast, None, "too soon");
        assert_eq!(at(15, 60, Aggregation::Max).forecast, None, "a maximum does not go on");
        assert_eq!(at(40, 60, Aggregation::Sum).elapsed_percent, 100.0);
    }
}
