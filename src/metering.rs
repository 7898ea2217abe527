//! The rules of metering, as functions: what an event is, whether it fits its meter, how quantities add up, where a
//! window begins. No I/O, no SQL, no clock but the one a caller hands in; imports nothing of the house but `error`.

pub mod calendar;
pub mod cloudevent;
pub mod day_sums;
pub mod delta;
pub mod event;
pub mod expression;
pub mod facet;
pub mod filter;
pub mod json;
pub mod meter;
pub mod quantity;
pub mod rollup;
pub mod short;
pub mod sketch;
pub mod state;
pub mod stored;
pub mod time;
