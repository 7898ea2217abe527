//! Writes a workspace to a file, as it is at one instant.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::json;

use super::archive::{Contents, Header, Kind, Month, Row, Writer};
use super::sql::{rows, usage};
use super::tables::{self, AFTER_EVENTS, BEFORE_EVENTS, Table};
use super::{secrets, sums, unusable};
use crate::config::Driver;
use crate::config::tenant::Export as Asked;
use crate::db::session::Session;
use crate::db::{self, Conn, DbError, audit};
use crate::error::{Error, Result};
use crate::metering::meter::Meter;
use crate::meters::sql as meters;
use crate::output::{print, print_line};
use crate::vault::{self, KeyRing};

struct Export {
    ours: Session,
    workspace_id: i64,
    key: Option<KeyRing>,
    writer: Writer,
}

pub fn run(driver: &Driver, asked: &Asked) -> Result<()> {
    let key = secrets::read_key(asked.secrets.secrets_key.as_deref())?;
    let found = Session::look(driver)?.read(|conn| rows::workspace(conn, &asked.workspace))?;
    let (workspace_id, name) =
        found.ok_or_else(|| unusable(format!("there is no workspace {}", asked.workspace)))?;
    let header = Header::new(&asked.workspace, &name, key.is_some());
    let writer = Writer::create(&asked.file, &header)?;
    // what leaves the house is written down before it does, and so in the file, too
    db::once(driver, |conn| {
        let shown = json!({"has_secrets": header.has_secrets});
        audit::put_down(conn, "tenant::export", workspace_id, [&asked.workspace, &name], Some(shown))
    })?;
    let ours = Session::look(driver)?;
    let mut export = Export { ours, workspace_id, key, writer };
    BEFORE_EVENTS.iter().try_for_each(|table| export.rows(table))?;
    let months = export.usage()?;
    AFTER_EVENTS.iter().try_for_each(|table| export.rows(table))?;
    let contents = export.writer.finish(months)?;
    print(&told(&contents));
    print_line!("written to {}", asked.file.display());
    if !header.has_secrets && contents.rows.get(secrets::TABLE).is_some_and(|rows| *rows > 0) {
        print_line!(
            "secrets of webhooks are not in it: new ones are made where it is brought in (--secrets-key)"
        );
    }
    Ok(())
}

/// For people: rows by table, and what was used.
pub fn told(contents: &Contents) -> String {
    let mut text = format!("{:<32}{:>12}\n", "table", "rows");
    for (table, rows) in contents.rows.iter().filter(|(_, rows)| **rows > 0) {
        text.push_str(&format!("{table:<32}{rows:>12}\n"));
    }
    let mut meters: BTreeMap<&str, (i64, u64)> = BTreeMap::new();
    for Month { meter, events, stored_events, .. } in &contents.months {
        let all = meters.entry(meter).or_default();
        all.0 += events;
        all.1 += stored_events;
    }
    for (meter, (events, stored)) in meters {
        text.push_str(&format!("{meter}: {events} events, {stored} of them stored\n"));
    }
    text
}

impl Export {
    fn rows(&mut self, table: &'static Table) -> Result<()> {
        let Export { ours, workspace_id, key, writer } = self;
        ours.read(|conn| {
            let columns = rows::columns(conn, table)?;
            writer.table(table.name, &columns)?;
            rows::each(conn, table, &columns, *workspace_id, |line| {
                let line = packed(table, &columns, line, *workspace_id, key.as_ref())?;
                Ok(writer.row(&line)?)
            })
        })
    }

    /// Events, keys and sums of events that are gone; answers what queries say.
    fn usage(&mut self) -> Result<Vec<Month>> {
        let Export { ours, workspace_id, writer, .. } = self;
        ours.read(|conn| {
            let meters = found_meters(conn, *workspace_id)?;
            writer.table(tables::FINGERPRINTS, &usage::owned(usage::FINGERPRINT_COLUMNS))?;
            let changed = meters.iter().filter(|meter| may_have_had_an_expression(meter));
            let changed: Vec<i64> = changed.map(|meter| meter.id).collect();
            usage::fingerprints(conn, *workspace_id, &changed, |line| Ok(writer.row(&on_one_line(line))?))?;
            writer.table(tables::EVENTS, &usage::owned(usage::EVENT_COLUMNS))?;
            for meter in &meters {
                usage::events(conn, meter.id, |line| Ok(writer.row(&on_one_line(line))?))?;
            }
            writer.table(tables::KEYS, &usage::owned(usage::KEY_COLUMNS))?;
            usage::keys(conn, *workspace_id, |line| Ok(writer.row(&on_one_line(line))?))?;
            writer.table(tables::SUMS, &usage::owned(sums::COLUMNS))?;
            let mut months = Vec::new();
            for meter in &meters {
                sums::pruned(conn, meter, |row| {
                    let line = serde_json::to_string(&row).map_err(Error::internal)?;
                    Ok(writer.row(&line)?)
                })?;
                months.extend(sums::months(conn, meter)?);
            }
            months.sort();
            Ok(months)
        })
    }
}

pub fn found_meters(conn: &mut Conn, workspace_id: i64) -> Result<Vec<Arc<Meter>>, DbError> {
    let mut found = Vec::new();
    for id in usage::meters(conn, workspace_id)? {
        found.extend(meters::find_by_id(conn, id)?.map(Arc::new));
    }
    Ok(found)
}

/// Events of such a meter may be made of what nothing tells any more.
fn may_have_had_an_expression(meter: &Meter) -> bool {
    meter.options.value_expression.is_none() && meter.version > 1
}

/// A database may break the line of a list where JSON does not mind; inside of texts breaks are escaped.
fn on_one_line(line: String) -> String {
    if line.contains('\n') { line.replace('\n', "") } else { line }
}

/// The line as it is written. What is sealed with a key of this installation is worth nothing elsewhere.
fn packed(
    table: &Table,
    columns: &[(String, Kind)],
    line: String,
    workspace_id: i64,
    key: Option<&KeyRing>,
) -> Result<String> {
    if table.name != secrets::TABLE {
        let is_sealed = |row: &Row| row.iter().flatten().any(|text| vault::key_id(text).is_some());
        if line.contains("\"sealed:") && serde_json::from_str(&line).is_ok_and(|row| is_sealed(&row)) {
            return Err(Error::internal(format!("{} has a sealed text that cannot be moved", table.name)));
        }
        return Ok(on_one_line(line));
    }
    let mut row: Row = serde_json::from_str(&line).map_err(Error::internal)?;
    secrets::pack(columns, &mut row, workspace_id, key)?;
    serde_json::to_string(&row).map_err(Error::internal)
}
