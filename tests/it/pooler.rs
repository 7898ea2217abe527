//! PostgreSQL behind pgbouncer: one that pools sessions is as good as PostgreSQL itself, one that gives a session's
//! connection to others is refused before anything is stored through it.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::client::NOON;
use crate::support::{Database, Server, guard, is_root, program, run, skip, stable_port};

struct Pooler {
    child: Child,
    port: u16,
    _directory: tempfile::TempDir,
}

impl Pooler {
    /// None where it is not installed.
    fn start(database: &Database, mode: &str) -> Option<Pooler> {
        let path = ["/usr/sbin/pgbouncer", "/usr/bin/pgbouncer"]
            .into_iter()
            .find(|path| Path::new(path).exists())?;
        let Database::Postgres { dsn, name, .. } = database else { panic!("PostgreSQL only") };
        let (_, place) = dsn.split_once('@').expect("the DSN names its user");
        let server_port = place.split([':', '/']).nth(1).expect("the DSN names its port").to_string();
        let port = stable_port();
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("pgbouncer.ini");
        let settings = format!(
            "[databases]\n{name} = host=127.0.0.1 port={server_port} user=postgres\n[pgbouncer]\nlisten_addr = 127.0.0.1\n\
             listen_port = {port}\nauth_type = any\npool_mode = {mode}\nunix_socket_dir =\n\
             ignore_startup_parameters = extra_float_digits\n"
        );
        std::fs::write(&file, settings).expect("a file");
        let mut command = if is_root() {
            // it refuses to run as root
            use std::os::unix::fs::PermissionsExt;
            std::fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o755)).expect("ours");
            let mut command = Command::new("setpriv");
            command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--", path]);
            command
        } else {
            Command::new(path)
        };
        let child =
            command.arg(&file).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let child = child.expect("pgbouncer starts");
        guard::will_end(child.id(), "KILL");
        let end = Instant::now() + Duration::from_secs(30);
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < end, "pgbouncer does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        Some(Pooler { child, port, _directory: directory })
    }

    /// The database, as it is seen through the pooler.
    fn database(&self, database: &Database) -> Database {
        let Database::Postgres { cluster, name, .. } = database.clone() else { panic!("PostgreSQL only") };
        let dsn = format!("postgres://postgres@127.0.0.1:{}/{name}", self.port);
        Database::Postgres { dsn, cluster, name }
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        guard::has_ended(self.child.id(), "KILL");
    }
}

const MISSING: &str = "needs pgbouncer (scripts/test installs it)";

#[test]
fn pooler_of_transactions_is_refused() {
    for mode in ["transaction", "statement"] {
        let database = Database::postgres();
        let Some(pooler) = Pooler::start(&database, mode) else {
            return skip("pooler_of_transactions_is_refused", MISSING);
        };
        let own = pooler.database(&database).settings();
        let settings: Vec<(&str, &str)> = own.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let directory = tempfile::tempdir().expect("a directory");
        for role in ["serve", "migrate"] {
            let addresses =
                [("OPEN_SPANNER_HTTP_ADDR", "127.0.0.1:0"), ("OPEN_SPANNER_GRPC_ADDR", "127.0.0.1:0")];
            let run = program::run(&[role], &[&settings[..], &addresses].concat(), directory.path());
            assert_eq!(run.code, Some(2), "{mode}: {run:#?}");
            assert!(run.stderr.contains("pool sessions"), "{mode}: {run:#?}");
        }
        assert_eq!(
            database.lines("SELECT relname::text AS line FROM pg_class WHERE relname = 'events'").len(),
            0
        );
    }
}

#[test]
fn pooler_of_sessions_works() {
    run(async {
        let database = Database::postgres();
        let Some(pooler) = Pooler::start(&database, "session") else {
            return skip("pooler_of_sessions_works", MISSING);
        };
        let server = Server::start(&pooler.database(&database));
        let workspace = server.workspace().await;
        workspace.meter("calls", "count").await;
        let event = json!({"meter": "calls", "subject": "s", "quantity": 1, "timestamp": NOON});
        workspace.post("/v1/usages", &event).await.expect(201);
        server.client().get("/ready").await.expect(204);
        assert_eq!(workspace.total("calls").await, "1");
    });
}
