//! The bare loop on SQLite: its C interface, three prepared statements, one writer. The only unsafe code.

use serde_json::value::RawValue;
use std::ffi::{CStr, CString, c_int};
use std::ptr::{null, null_mut};

use libsqlite3_sys as ffi;

use super::{Rows, WORKSPACE};
use crate::Outcome;

const ADD_KEY: &CStr =
    c"INSERT INTO settled_keys (workspace_id, key, event_id, subject_id, event_time, fingerprint)
    VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING";
const ADD_EVENT: &CStr =
    c"INSERT INTO events (id, workspace_id, meter_id, subject_id, event_time, received_at,
    meter_version, quantity, idempotency_key, metadata) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)";
// as large a write as the server's, without its exact arithmetic
const ADD_ROLLUP: &CStr =
    c"INSERT INTO rollups AS r (meter_id, grain, start, lane, event_count, quantity_sum,
    quantity_min, quantity_max, first_at, first_id, first_quantity, last_at, last_id, last_quantity)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT (meter_id, grain, start, lane) DO UPDATE SET
    event_count = r.event_count + excluded.event_count, quantity_sum = excluded.quantity_sum,
    quantity_min = min(r.quantity_min, excluded.quantity_min),
    quantity_max = max(r.quantity_max, excluded.quantity_max),
    last_at = excluded.last_at, last_id = excluded.last_id, last_quantity = excluded.last_quantity";
const ADD_DELTA: &CStr =
    c"INSERT INTO rollup_deltas (meter_id, id, cells, subjects, counts) VALUES (?, ?, ?, ?, ?)";

pub struct Writer {
    db: *mut ffi::sqlite3,
    statements: [*mut ffi::sqlite3_stmt; 4],
}

/// A value to bind; borrowed until the statement has run.
enum Value<'a> {
    Number(i64),
    Bytes(&'a [u8]),
    Text(&'a str),
}

impl Writer {
    pub fn open(path: &str) -> Outcome<Writer> {
        let path = CString::new(path)?;
        let mut writer = Writer { db: null_mut(), statements: [null_mut(); 4] };
        // SAFETY: the path ends with a NUL, the handle is valid for as long as `writer` lives
        let opened = unsafe { ffi::sqlite3_open(path.as_ptr(), &mut writer.db) };
        writer.check(opened)?;
        writer
            .execute(c"PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA cache_size = -32768")?;
        for (at, text) in [ADD_KEY, ADD_EVENT, ADD_ROLLUP, ADD_DELTA].into_iter().enumerate() {
            // SAFETY: the text ends with a NUL, which -1 says
            let prepared = unsafe {
                ffi::sqlite3_prepare_v2(writer.db, text.as_ptr(), -1, &mut writer.statements[at], null_mut())
            };
            writer.check(prepared)?;
        }
        Ok(writer)
    }

    fn check(&self, code: c_int) -> Outcome<()> {
        if matches!(code, ffi::SQLITE_OK | ffi::SQLITE_DONE) {
            return Ok(());
        }
        // SAFETY: the message belongs to the open handle and is copied at once
        let message = unsafe { CStr::from_ptr(ffi::sqlite3_errmsg(self.db)) };
        Err(message.to_string_lossy().into_owned().into())
    }

    fn execute(&mut self, text: &CStr) -> Outcome<()> {
        // SAFETY: the text ends with a NUL; no callback, no message wanted
        let done = unsafe { ffi::sqlite3_exec(self.db, text.as_ptr(), None, null_mut(), null_mut()) };
        self.check(done)
    }

    fn run(&mut self, statement: usize, values: &[Value]) -> Outcome<()> {
        let statement = self.statements[statement];
        for (at, value) in values.iter().enumerate() {
            let at = at as c_int + 1;
            // SAFETY: what is bound outlives the step below; a null destructor says it is not ours to free
            let bound = unsafe {
                match value {
                    Value::Number(number) => ffi::sqlite3_bind_int64(statement, at, *number),
                    Value::Bytes(bytes) => {
                        let start = if bytes.is_empty() { null() } else { bytes.as_ptr().cast() };
                        ffi::sqlite3_bind_blob(statement, at, start, bytes.len() as c_int, None)
                    }
                    Value::Text(text) => {
                        let length = text.len() as c_int;
                        ffi::sqlite3_bind_text(statement, at, text.as_ptr().cast(), length, None)
                    }
                }
            };
            self.check(bound)?;
        }
        // SAFETY: the statement was prepared on this handle
        let (stepped, reset) = unsafe { (ffi::sqlite3_step(statement), ffi::sqlite3_reset(statement)) };
        self.check(stepped)?;
        self.check(reset)
    }

    pub fn write(&mut self, rows: &Rows) -> Outcome<()> {
        use Value::{Bytes, Number, Text};
        self.execute(c"BEGIN IMMEDIATE")?;
        for (key, at) in &rows.ledger {
            let (event, subject) = &rows.events[*at];
            let (time, fingerprint) = (Number(event.time.0), Number(event.fingerprint));
            let id = Bytes(event.id.as_bytes());
            self.run(0, &[Number(WORKSPACE), Bytes(key), id, Number(*subject), time, fingerprint])?;
        }
        for (event, subject) in &rows.events {
            let values = [
                Bytes(event.id.as_bytes()),
                Number(WORKSPACE),
                Number(event.meter.id),
                Number(*subject),
                Number(event.time.0),
                Number(event.received_at.0),
                Number(event.meter.version.into()),
                Bytes(&event.quantity.to_sortable()),
                Text(event.key.as_deref().unwrap_or_default()),
                Text(event.metadata.as_deref().map_or("", RawValue::get)),
            ];
            self.run(1, &values)?;
        }
        for (key, part) in &rows.rollups {
            let Some((first, last)) = &part.edges else { continue };
            let values = [
                Number(key.meter_id),
                Number(key.grain as i64),
                Number(key.start.0),
                Number(0),
                Number(part.count),
                Bytes(&part.sum.to_sortable()),
                Bytes(&part.min.to_sortable()),
                Bytes(&part.max.to_sortable()),
                Number(first.at.0),
                Bytes(first.id.as_bytes()),
                Bytes(&first.quantity.to_sortable()),
                Number(last.at.0),
                Bytes(last.id.as_bytes()),
                Bytes(&last.quantity.to_sortable()),
            ];
            self.run(2, &values)?;
        }
        for (meter_id, id, delta) in &rows.deltas {
            let (cells, subjects, counts) =
                (Bytes(&delta.cells), Bytes(&delta.subjects), Bytes(&delta.counts));
            self.run(3, &[Number(*meter_id), Number(*id), cells, subjects, counts])?;
        }
        self.execute(c"COMMIT")
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // SAFETY: each was made by this handle or is null, which both functions accept
        unsafe {
            for statement in self.statements {
                ffi::sqlite3_finalize(statement);
            }
            ffi::sqlite3_close(self.db);
        }
    }
}
