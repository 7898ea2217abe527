//! The names of spans in a program that makes none.

use std::net::IpAddr;
use std::time::Duration;

use url::Url;

use crate::logging::Trace;

/// None.
pub struct Span;

/// There is no span to note anything on, so this cannot be.
pub enum Notes {}

impl Notes {
    pub fn text(&mut self, _: &'static str, _: &str) {
        match *self {}
    }

    pub fn number(&mut self, _: &'static str, _: i64) {
        match *self {}
    }

    pub fn server(&mut self, _: &str) {
        match *self {}
    }

    pub fn failed(&mut self, _: &str) {
        match *self {}
    }
}

impl Span {
    #[inline]
    pub fn of_request<'a>(_: &str, _: &str, _: impl FnOnce() -> Option<&'a str>) -> Span {
        Span
    }

    #[inline]
    pub fn of_call<'a>(_: &'static str, _: &'static str, _: impl FnOnce() -> Option<&'a str>) -> Span {
        Span
    }

    #[inline]
    pub fn of_job(_: &'static str) -> Span {
        Span
    }

    #[inline]
    pub fn of_webhook(_: &Url) -> Span {
        Span
    }

    #[inline]
    pub fn of_database(_: &'static str, _: bool) -> Span {
        Span
    }

    #[inline]
    pub fn part(_: &'static str) -> Span {
        Span
    }

    #[inline]
    pub fn next_part(&mut self, _: &'static str) {}

    #[inline]
    pub fn note(&mut self, _: impl FnOnce(&mut Notes)) {}

    #[inline]
    pub fn trace(&self) -> Option<Trace> {
        None
    }

    #[inline]
    pub fn traceparent(&self) -> Option<String> {
        None
    }
}

#[inline]
pub fn within<F: Future>(_: &Span, work: F) -> F {
    work
}

#[inline]
pub fn carried<F: Future>(work: F) -> F {
    work
}

#[inline]
pub fn called_by(_: &str, _: IpAddr) {}

pub fn start(_: bool, _: &'static str) {}

pub async fn flush(_: Duration) {}
