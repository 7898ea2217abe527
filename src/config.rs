//! stub
use std::time::Duration;
#[derive(Clone, Debug)]
pub struct Secret(pub String);
impl Secret { pub fn expose(&self) -> &str { &self.0 } }
#[derive(Clone, Copy, Debug)]
pub enum Synchronous { Full, Normal }
#[derive(Clone, Debug)]
pub enum Driver { Sqlite { path: String, synchronous: Synchronous }, Postgres { dsn: Secret } }
#[derive(Clone, Debug)]
pub struct Db { pub driver: Driver, pub max_open_conns: u32, pub acquire_timeout: Duration, pub conn_max_lifetime: Option<Duration>, pub conn_max_idle_time: Option<Duration> }
