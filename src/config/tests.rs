//! The table, row by row: each setting is read, each bad value is refused by name, no secret is
//! ever shown. No test here touches the environment of the process.

use super::*;
use crate::config::settings::{ANY, Kind, Setting, TABLE, all};

/// A secret that must not be seen anywhere.
const HIDDEN: &str = "hidden";
const SECRETS: &[(&str, &str)] = &[
    ("OPEN_SPANNER_POSTGRES_DSN", "postgres://user:hidden@db/app"),
    ("OPEN_SPANNER_GITHUB_OAUTH_CLIENT_SECRET", "hidden1"),
    ("OPEN_SPANNER_GOOGLE_OAUTH_CLIENT_SECRET", "hidden2"),
    ("OPEN_SPANNER_EXPORT_S3_SECRET_ACCESS_KEY", "hidden3"),
    ("OPEN_SPANNER_EXPORT_S3_SESSION_TOKEN", "hidden4"),
    ("OPEN_SPANNER_RECONCILIATION_WEBHOOK_SECRET", "hidden5"),
    ("OPEN_SPANNER_API_KEY", "hidden6"),
    ("OPEN_SPANNER_ENCRYPTION_KEYS", "hidden7"),
    ("OPEN_SPANNER_OIDC_CLIENT_SECRET", "hidden8"),
    ("OPEN_SPANNER_SMTP_URL", "smtps://user:hidden9@mail.example"),
    ("OPEN_SPANNER_POSTGRES_READ_DSN", "postgres://user:hidden10@replica/app"),
];
/// What the secrets, and the settings beside them, need to have an effect.
const COMPANIONS: &[(&str, &str)] = &[
    ("OPEN_SPANNER_DB_DRIVER", "postgres"),
    ("OPEN_SPANNER_GITHUB_OAUTH_CLIENT_ID", "id"),
    ("OPEN_SPANNER_GOOGLE_OAUTH_CLIENT_ID", "id"),
    ("OPEN_SPANNER_OIDC_ISSUER", "https://a.example"),
    ("OPEN_SPANNER_OIDC_CLIENT_ID", "id"),
    ("OPEN_SPANNER_OIDC_WORKSPACE", "id"),
    ("OPEN_SPANNER_MAIL_FROM", "usage@a.example"),
    ("OPEN_SPANNER_PUBLIC_URL", "https://a.example"),
    ("OPEN_SPANNER_EXPORT_STORAGE_DRIVER", "s3"),
    ("OPEN_SPANNER_EXPORT_S3_BUCKET", "bucket"),
    ("OPEN_SPANNER_EXPORT_S3_ACCESS_KEY_ID", "id"),
    ("OPEN_SPANNER_RECONCILIATION_WEBHOOK_URL", "https://a.example/"),
];

type Map = BTreeMap<String, String>;

fn map(pairs: &[(&str, &str)]) -> Map {
    pairs.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect()
}

fn load_with(argv: &[&str], environment: &Map, dotenv: &Map) -> Result<Loaded, Exit> {
    let cli = cli::parse(["open-spanner"].iter().chain(argv).map(OsString::from))?;
    resolve(cli, environment.clone(), dotenv.clone())
}

fn with(pairs: &[(&str, &str)]) -> Loaded {
    load_from(&["open-spanner"], pairs).unwrap_or_else(|exit| panic!("{pairs:?}: {}", exit.text))
}

/// The error line for these variables.
fn refused(pairs: &[(&str, &str)]) -> String {
    line_of(load_from(&["open-spanner"], pairs))
}

fn line_of(result: Result<Loaded, Exit>) -> String {
    let exit = result.expect_err("not refused");
    assert_eq!(exit.code, 2, "{}", exit.text);
    let line = exit.text.strip_suffix('\n').expect("a complete line");
    assert!(line.starts_with("invalid config: ") && line.contains(", expected "), "{line}");
    assert!(!line.contains('\n') && !line.contains(HIDDEN), "{line}");
    line.to_owned()
}

fn everything() -> Map {
    let mut all = map(SECRETS);
    all.extend(map(COMPANIONS));
    all
}

/// All that was read, secrets included.
fn fingerprint(loaded: &Loaded) -> String {
    let config = &loaded.config;
    let mut secrets = Vec::new();
    if let Driver::Postgres { dsn } = &config.db.driver {
        secrets.push(dsn);
    }
    let oauth = &config.auth.oauth;
    let clients = oauth.github.iter().chain(&oauth.google).chain(oauth.oidc.iter().map(|oidc| &oidc.client));
    secrets.extend(clients.filter_map(|client| client.client_secret.as_ref()));
    if let ExportStorage::S3(S3 { keys: Some(keys), .. }) = &config.exports.storage {
        secrets.push(&keys.secret_access_key);
        secrets.extend(&keys.session_token);
    }
    secrets.extend(&config.reconciliation.webhook_secret);
    secrets.extend(&config.client.api_key);
    secrets.extend(&config.encryption_keys);
    secrets.extend(&config.db.read_dsn);
    secrets.extend(config.mail.as_ref().map(|mail| &mail.smtp_url));
    let secrets: Vec<_> = secrets.into_iter().map(Secret::expose).collect();
    format!("{config:?} {} {secrets:?}", loaded.log_filter)
}

/// Good texts, of which at least one is not the default.
fn good(setting: &Setting) -> Vec<String> {
    let texts: &[&str] = match setting.kind {
        _ if setting.name == "OIDC_ROLES" => &["staff=viewer, admins=Admin"],
        _ if setting.name == "IDEMPOTENCY_KEY_RETENTION" => &["24h", "800h", "0", "0s"],
        Kind::Text(_) | Kind::Secret => &["sample"],
        Kind::Url => &["https://sample.example/path"],
        Kind::OneOf(words) => words,
        Kind::Bool => &["1", "t", "T", "TRUE", "true", "True", "0", "f", "F", "FALSE", "false", "False"],
        Kind::Integer(first, last) => return vec![first.to_string(), last.to_string()],
        Kind::Duration | Kind::DurationUpTo(_) => &["77ms", "1ns", "1.5s"],
        Kind::DurationOrZero => &["77ms", "0", "0s"],
        Kind::Address | Kind::AddressOrOff => &["127.0.0.1:7", ":0", "[::1]:65535", "localhost:1"],
        Kind::Networks => &["10.0.0.0/8", "10.0.0.1, fd00::/8"],
    };
    texts.iter().map(|text| (*text).to_owned()).collect()
}

fn bad(setting: &Setting) -> Vec<String> {
    let texts: &[&str] = match setting.kind {
        Kind::Text(_) | Kind::Secret => &[" ", "\t\n"],
        Kind::Url => &["/path", "ftp://a.example", "https://user:hidden@a.example"],
        Kind::OneOf(_) => &["other", " auto", "1"],
        Kind::Bool => &["yes", "on", "tRUE", " true"],
        Kind::Integer(first, last) => {
            let below = first.checked_sub(1).map(|number| number.to_string());
            let above = (last < u64::MAX).then(|| (last + 1).to_string());
            let words = ["abc", "-1", "1.5", " 1", "99999999999999999999"].map(str::to_owned);
            return words.into_iter().chain(below).chain(above).collect();
        }
        Kind::Duration => &["0", "0s", "5", "-5s", "5 s", "5d", "soon"],
        Kind::DurationOrZero => &["5", "-5s", "5 s", "5d", "never"],
        Kind::DurationUpTo(_) => &["0", "5001ms", "1h", "2"],
        Kind::Address | Kind::AddressOrOff => &[" ", "18081", ":65536", "a b:1", "http://a:1", "::1:80"],
        Kind::Networks => &["10.0.0.0/33", "example.org", "10.0.0.0/8,,"],
    };
    texts.iter().map(|text| (*text).to_owned()).collect()
}

/// Whether some value given there makes a difference to what is read.
fn is_read_from(place: &str, setting: &Setting) -> bool {
    let variable = setting.variable();
    let flag = format!("--{}", setting.flag());
    [Map::new(), everything()].into_iter().any(|mut base| {
        base.remove(&variable);
        let load = |text: &str| {
            let (mut environment, mut dotenv, mut argv) = (base.clone(), Map::new(), vec![]);
            match place {
                "flag" => argv.extend([flag.as_str(), text]),
                ".env" => drop(dotenv.insert(variable.clone(), text.to_owned())),
                _ => drop(environment.insert(variable.clone(), text.to_owned())),
            }
            load_with(&argv, &environment, &dotenv).ok().map(|loaded| fingerprint(&loaded))
        };
        let unset = load_with(&[], &base, &Map::new()).ok().map(|loaded| fingerprint(&loaded));
        good(setting).iter().map(|text| load(text)).any(|loaded| loaded.is_some() && loaded != unset)
    })
}

#[test]
fn every_setting_is_read_from_every_place() {
    for setting in all() {
        assert!(is_read_from("environment", setting), "{}", setting.name);
        assert!(is_read_from(".env", setting), "{}", setting.name);
        // the flag of a secret takes a file, tested below
        assert!(setting.is_secret() || is_read_from("flag", setting), "{}", setting.name);
    }
}

#[test]
fn every_good_value_is_taken() {
    for setting in all() {
        for text in good(setting) {
            let taken = [Map::new(), everything()].into_iter().any(|mut base| {
                base.insert(setting.variable(), text.clone());
                load_with(&[], &base, &Map::new()).is_ok()
            });
            assert!(taken, "{} {text}", setting.name);
        }
    }
}

#[test]
fn every_bad_value_is_refused_by_name() {
    for setting in all() {
        let variable = setting.variable();
        for text in bad(setting) {
            let line = refused(&[(&variable, &text)]);
            assert!(line.starts_with(&format!("invalid config: {variable}: ")), "{line}");
            let is_shown = line.contains(&format!("{text:?}"));
            assert_eq!(is_shown, !setting.is_secret() && !text.contains(HIDDEN), "{line}");
            // in one process the wrong flag must be as clear as the wrong variable
            if !setting.is_secret() && !text.starts_with('-') {
                let flag = format!("--{}", setting.flag());
                assert_eq!(line_of(load_from(&["open-spanner", &flag, &text], &[])), line);
            }
        }
    }
}

#[test]
fn every_default_is_a_good_value() {
    for setting in all().filter(|setting| !setting.default.is_empty()) {
        assert!(setting.kind.parse(setting.default).is_ok(), "{}", setting.name);
    }
    let config = with(&[]).config;
    assert_eq!(config.role, Role::Serve);
    assert_eq!(config.http.addr.to_string(), ":18081");
    assert!(config.http.workers >= 1);
    assert_eq!(config.grpc_addr.map(|addr| addr.to_string()).as_deref(), Some(":18090"));
    assert_eq!(config.metrics_addr, None);
    assert_eq!(
        (config.db.driver.name(), config.db.driver.target()),
        ("sqlite", "open-spanner.db".to_owned())
    );
    assert_eq!((config.db.max_open_conns, config.db.max_idle_conns), (10, None));
    assert_eq!((config.db.server_open_conns, config.db.worker_open_conns), (10, 6));
    assert_eq!((config.db.conn_max_lifetime, config.db.conn_max_idle_time), (None, None));
    assert_eq!(config.ingest.max_body_bytes, 8 << 20);
    assert_eq!((config.ingest.max_stream_events, config.ingest.rate_limit_events), (0, 0));
    assert!(config.auth.registration_enabled && config.auth.oauth.github.is_none());
    assert!(config.workers.in_serve);
    assert_eq!(config.workers.entitlement.batch_size, 100);
    assert!(!config.retention.prune_enabled && !config.reconciliation.enabled);
}

#[test]
fn names_are_unique_and_in_the_help() {
    let exit = load_from(&["open-spanner", "--help"], &[]).unwrap_err();
    assert_eq!(exit.code, 0);
    let mut flags = std::collections::BTreeSet::new();
    for setting in all() {
        assert!(flags.insert(setting.flag()), "{}", setting.name);
        assert!(exit.text.contains(&format!("--{} <", setting.flag())), "{}", setting.name);
        assert!(exit.text.contains(&setting.variable()), "{}", setting.name);
        assert!(exit.text.contains(setting.help), "{}", setting.name);
    }
    assert!(flags.contains("http-addr") && flags.contains("postgres-dsn-file") && flags.contains("rust-log"));
    assert!(!flags.contains("postgres-dsn"), "process arguments are public");
    assert!(TABLE.iter().all(|group| exit.text.contains(&format!("\n{}:\n", group.title))));
}

#[test]
fn empty_means_default_and_for_grpc_off() {
    for setting in all().filter(|setting| setting.name != "GRPC_ADDR") {
        let loaded = with(&[(&setting.variable(), "")]);
        assert_eq!(fingerprint(&loaded), fingerprint(&with(&[])), "{}", setting.name);
    }
    assert_eq!(with(&[("OPEN_SPANNER_GRPC_ADDR", "")]).config.grpc_addr, None);
    let loaded = load_from(&["open-spanner", "--grpc-addr", ""], &[("OPEN_SPANNER_GRPC_ADDR", ":1")]);
    assert_eq!(loaded.unwrap().config.grpc_addr, None);
}

#[test]
fn a_flag_wins_over_the_environment_and_that_over_dotenv() {
    let http = |argv: &[&str], environment: &[(&str, &str)]| {
        let dotenv = map(&[("OPEN_SPANNER_HTTP_ADDR", ":3")]);
        load_with(argv, &map(environment), &dotenv).unwrap().config.http.addr.to_string()
    };
    let environment = [("OPEN_SPANNER_HTTP_ADDR", ":2")];
    assert_eq!(http(&["--http-addr", ":1"], &environment), ":1");
    assert_eq!(http(&["serve", "--http-addr=:1"], &environment), ":1");
    assert_eq!(http(&["--http-addr=:1", "usage-worker"], &environment), ":1");
    assert_eq!(http(&[], &environment), ":2");
    assert_eq!(http(&[], &[]), ":3");
    // set, though empty, so .env does not count
    assert_eq!(http(&[], &[("OPEN_SPANNER_HTTP_ADDR", "")]), ":18081");
}

#[test]
fn dotenv_files() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(".env");
    assert_eq!(source::read_dotenv(&path), Ok(Map::new()));
    std::fs::write(&path, "# note\nexport OPEN_SPANNER_HTTP_ADDR=:3\nRUST_LOG='debug' # why\n").unwrap();
    let found = source::read_dotenv(&path).unwrap();
    assert_eq!(found, map(&[("OPEN_SPANNER_HTTP_ADDR", ":3"), ("RUST_LOG", "debug")]));
    std::fs::write(&path, "OPEN_SPANNER_HTTP_ADDR=:3\nOPEN_SPANNER_X='hidden\n").unwrap();
    let line = line_of(source::read_dotenv(&path).map(|_| with(&[])).map_err(Exit::from));
    assert!(
        line.ends_with("cannot be read after OPEN_SPANNER_HTTP_ADDR, expected lines of the form NAME=value")
    );
    assert!(source::read_dotenv(dir.path()).is_err());
}

#[test]
fn secrets_are_never_shown() {
    let loaded = load_with(&[], &everything(), &Map::new()).unwrap();
    assert_eq!(fingerprint(&loaded).matches(HIDDEN).count(), SECRETS.len());
    assert!(!format!("{loaded:?} {loaded:#?}").contains(HIDDEN));
    assert_eq!(loaded.config.db.driver.target(), "user@db/app");
    assert_eq!(all().filter(|setting| setting.is_secret()).count(), SECRETS.len());

    let exit = load_with(&["--print-config"], &everything(), &Map::new()).unwrap_err();
    assert_eq!(exit.code, 0);
    assert!(!exit.text.contains(HIDDEN), "{}", exit.text);
    assert!(exit.text.contains("OPEN_SPANNER_POSTGRES_DSN=set (user@db/app)  # environment\n"));
    assert!(exit.text.contains("OPEN_SPANNER_EXPORT_S3_SESSION_TOKEN=set  # environment\n"));
}

#[test]
fn print_config_names_every_value_and_its_place() {
    let dotenv = map(&[("OPEN_SPANNER_CACHE_TTL", "1s"), ("OPEN_SPANNER_CASH_TTL", "1s")]);
    let environment = map(&[("OPEN_SPANNER_DB_DRIVER", "SQLite")]);
    for argv in
        [["--print-config", "--http-addr=:1", "migrate"], ["migrate", "--http-addr=:1", "--print-config"]]
    {
        let exit = load_with(&argv, &environment, &dotenv).unwrap_err();
        assert_eq!(exit.code, 0);
        let lines: Vec<&str> = exit.text.lines().collect();
        assert_eq!(lines[0], "# role: migrate");
        for line in [
            "# warning: unknown variable OPEN_SPANNER_CASH_TTL, did you mean OPEN_SPANNER_CACHE_TTL?",
            "OPEN_SPANNER_HTTP_ADDR=:1  # flag",
            "OPEN_SPANNER_CACHE_TTL=1s  # .env",
            "OPEN_SPANNER_DB_DRIVER=SQLite  # environment",
            "OPEN_SPANNER_POSTGRES_DSN=unset  # default",
            "RUST_LOG=info  # default",
        ] {
            assert!(lines.contains(&line), "{line}");
        }
        let is_value = |line: &&&str| !line.is_empty() && !line.starts_with('#');
        assert_eq!(lines.iter().filter(is_value).count(), all().count());
    }
    let line = line_of(load_from(&["open-spanner", "--print-config", "--cache-ttl=6s"], &[]));
    assert!(line.contains("OPEN_SPANNER_CACHE_TTL"));
}

#[test]
fn secrets_come_from_files() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    for setting in all().filter(|setting| setting.is_secret()) {
        let (variable, file_variable) = (setting.variable(), setting.file_variable().unwrap());
        let flag = format!("--{}", setting.flag());
        for text in ["from file", "from file\n", "from file\r\n"] {
            let path = file("good", text);
            let mut environment = everything();
            environment.remove(&variable);
            let by_flag = load_with(&[&flag, &path], &environment, &Map::new()).unwrap();
            assert!(fingerprint(&by_flag).contains("\"from file\""), "{variable}");
            environment.insert(file_variable.clone(), path.clone());
            let by_variable = load_with(&[], &environment, &Map::new()).unwrap();
            assert_eq!(fingerprint(&by_variable), fingerprint(&by_flag));
            assert_eq!(by_variable.warnings, Vec::<String>::new());
            let page = load_with(&["--print-config"], &environment, &Map::new()).unwrap_err().text;
            assert!(page.contains(&format!("{variable}=set  # file {path}\n")), "{page}");
        }
        let path = file("good", "hidden");
        let line = refused(&[(&variable, "hidden"), (&file_variable, &path)]);
        assert!(
            line.contains(&variable) && line.contains(&format!("set together with {file_variable}")),
            "{line}"
        );
        let mut environment = everything();
        environment.insert(file_variable.clone(), String::new());
        assert!(load_with(&[], &environment, &Map::new()).is_ok(), "{variable}");
        for (path, problem) in [
            (dir.path().join("missing").to_str().unwrap().to_owned(), "cannot be read"),
            (dir.path().to_str().unwrap().to_owned(), "cannot be read"),
            (file("empty", "\n"), "is empty"),
            (file("blank", " \n"), "the value is blank"),
        ] {
            let line = refused(&[(&file_variable, &path)]);
            assert!(line.starts_with(&format!("invalid config: {file_variable}: ")), "{line}");
            assert!(line.contains(problem), "{line}");
        }
    }
}

#[test]
fn unknown_variables_are_pointed_out() {
    let warnings = |name: &str| with(&[(name, "x")]).warnings;
    assert_eq!(
        warnings("OPEN_SPANNER_GRPC_ADRR"),
        ["unknown variable OPEN_SPANNER_GRPC_ADRR, did you mean OPEN_SPANNER_GRPC_ADDR?"]
    );
    assert_eq!(
        warnings("OPEN_SPANNER_POSTGRES_DSN_FIL"),
        ["unknown variable OPEN_SPANNER_POSTGRES_DSN_FIL, did you mean OPEN_SPANNER_POSTGRES_DSN_FILE?"]
    );
    assert_eq!(warnings("OPEN_SPANNER_WIBBLE_WOBBLE"), ["unknown variable OPEN_SPANNER_WIBBLE_WOBBLE"]);
    for name in [
        "OPEN_SPANNER_HTTP_PORT",
        "OPEN_SPANNER_GRPC_PORT",
        "OPEN_SPANNER_POSTGRES_PASSWORD",
        "OPEN_SPANNER_TEST_POSTGRES_DSN",
        "OPEN_SPANNER_SERVICE_HOST",
        "OPEN_SPANNER_SERVICE_PORT_HTTP",
        "OPEN_SPANNER_PORT_18081_TCP_ADDR",
        "PATH",
    ] {
        assert_eq!(warnings(name), Vec::<String>::new(), "{name}");
    }
    assert!(with(&[("OPEN_SPANNER_PORT", "tcp://10.0.0.1:18081")]).warnings.is_empty());
}

#[test]
fn half_of_a_pair_is_pointed_out() {
    let loaded = with(&[("OPEN_SPANNER_GITHUB_OAUTH_CLIENT_ID", "id")]);
    assert!(loaded.config.auth.oauth.github.is_none());
    assert_eq!(
        loaded.warnings,
        ["OPEN_SPANNER_GITHUB_OAUTH_CLIENT_ID has no effect without OPEN_SPANNER_GITHUB_OAUTH_CLIENT_SECRET"]
    );
    assert_eq!(with(&[("OPEN_SPANNER_RECONCILIATION_WEBHOOK_SECRET", "x")]).warnings.len(), 1);
    assert_eq!(with(&[("OPEN_SPANNER_RECONCILIATION_WEBHOOK_URL", "http://a.example")]).warnings.len(), 0);
    assert_eq!(with(&[("OPEN_SPANNER_RECONCILIATION_ENABLED", "false")]).warnings.len(), 0);
    assert_eq!(
        with(&[("OPEN_SPANNER_RECONCILIATION_ENABLED", "true")]).warnings,
        ["OPEN_SPANNER_RECONCILIATION_ENABLED has no effect: this version has no reconciliation"]
    );
}

#[test]
fn roles() {
    let role = |argv: &[&str]| load_from(argv, &[]).map(|loaded| loaded.config.role);
    let serve = Role::Serve;
    for (argv, expected) in [
        (vec!["open-spanner"], serve),
        (vec![], serve),
        (vec!["/usr/local/bin/open-spanner", "serve"], serve),
        (vec!["renamed", "export-worker"], Role::ExportWorker),
        (vec!["open-spanner", "migrate"], Role::Migrate(MigrateAction::Up { distribute: false })),
        (
            vec!["open-spanner", "migrate", "--distribute"],
            Role::Migrate(MigrateAction::Up { distribute: true }),
        ),
        (vec!["open-spanner", "migrate", "--status"], Role::Migrate(MigrateAction::Status { json: false })),
        (
            vec!["open-spanner", "migrate", "--revert", "2", "--yes-delete-data", "usage"],
            Role::Migrate(MigrateAction::Revert(2)),
        ),
        (vec!["open-spanner", "export-worker"], Role::ExportWorker),
        (vec!["open-spanner", "alert-worker"], Role::AlertWorker),
        (vec!["open-spanner", "entitlement-worker"], Role::EntitlementWorker),
        (vec!["open-spanner", "usage-worker"], Role::UsageWorker),
        (vec!["/usr/local/bin/open-spanner-export-worker"], Role::ExportWorker),
        (vec!["open-spanner-alert-worker", "--alert-worker-interval=1s"], Role::AlertWorker),
        (vec!["./open-spanner-entitlement-worker"], Role::EntitlementWorker),
        (vec!["open-spanner-usage-worker"], Role::UsageWorker),
        // a version of the program
        (vec!["open-spanner-0.2.0"], serve),
    ] {
        assert_eq!(role(&argv), Ok(expected), "{argv:?}");
    }
    for argv in [
        vec!["open-spanner", "migrate", "--status", "--revert", "2"],
        vec!["open-spanner", "migrate", "--revert", "0", "--yes-delete-data", "usage"],
        vec!["open-spanner", "migrate", "--revert", "2"],
        vec!["open-spanner", "migrate", "--revert", "2", "--yes-delete-data"],
        vec!["open-spanner", "migrate", "--yes-delete-data", "usage"],
        vec!["open-spanner", "migrate", "--no-migrate"],
        vec!["open-spanner", "--no-migrate", "migrate"],
        vec!["open-spanner", "nonsense"],
        vec!["open-spanner", "--postgres-dsn", "x"],
        vec!["open-spanner-alert-worker", "serve"],
        // not the name of a program we ship
        vec!["open-spanner-migrate"],
    ] {
        assert_eq!(role(&argv).map_err(|exit| exit.code), Err(2), "{argv:?}");
    }
    for name in ["serve", "migrate", "export-worker", "alert-worker", "entitlement-worker", "usage-worker"] {
        assert_eq!(role(&["open-spanner", name]).map(Role::name), Ok(name));
    }
}

#[test]
fn schema_may_be_left_alone() {
    let migrate = |argv: &[&str]| load_from(argv, &[]).map(|loaded| loaded.config.migrate);
    for argv in [
        vec!["open-spanner", "serve", "--no-migrate"],
        vec!["open-spanner", "--no-migrate", "serve"],
        vec!["open-spanner", "--no-migrate"],
        vec!["open-spanner", "export-worker", "--no-migrate"],
        vec!["open-spanner-alert-worker", "--no-migrate"],
    ] {
        assert_eq!(migrate(&argv), Ok(false), "{argv:?}");
    }
    for argv in
        [vec!["open-spanner"], vec!["open-spanner", "export-worker"], vec!["open-spanner-alert-worker"]]
    {
        assert_eq!(migrate(&argv), Ok(true), "{argv:?}");
    }
}

#[test]
fn help_and_version_everywhere() {
    for argv in [
        vec!["open-spanner", "--help"],
        vec!["open-spanner", "-h"],
        vec!["open-spanner", "help"],
        vec!["open-spanner", "migrate", "--help"],
        vec!["open-spanner-usage-worker", "--help"],
    ] {
        let exit = load_from(&argv, &[("OPEN_SPANNER_HTTP_ADDR", "wrong")]).unwrap_err();
        assert_eq!(exit.code, 0);
        assert!(exit.text.contains("Usage: "), "{argv:?}");
    }
    for argv in [vec!["open-spanner", "-V"], vec!["open-spanner", "export-worker", "--version"]] {
        let exit = load_from(&argv, &[]).unwrap_err();
        assert_eq!(exit.code, 0);
        assert!(exit.text.contains(env!("CARGO_PKG_VERSION")), "{argv:?}");
    }
}

#[test]
fn settings_that_contradict_each_other() {
    for (pairs, variable) in [
        (&[("OPEN_SPANNER_DB_DRIVER", "Postgres")] as &[(&str, &str)], "OPEN_SPANNER_POSTGRES_DSN"),
        (
            &[("OPEN_SPANNER_DB_MAX_OPEN_CONNS", "5"), ("OPEN_SPANNER_DB_MAX_IDLE_CONNS", "6")],
            "OPEN_SPANNER_DB_MAX_IDLE_CONNS",
        ),
        (&[("OPEN_SPANNER_EXPORT_STORAGE_DRIVER", "s3")], "OPEN_SPANNER_EXPORT_S3_BUCKET"),
        (&[("OPEN_SPANNER_EXPORT_S3_ACCESS_KEY_ID", "x")], "OPEN_SPANNER_EXPORT_S3_SECRET_ACCESS_KEY"),
        (&[("OPEN_SPANNER_EXPORT_S3_SECRET_ACCESS_KEY", "x")], "OPEN_SPANNER_EXPORT_S3_ACCESS_KEY_ID"),
        (&[("OPEN_SPANNER_EXPORT_S3_SESSION_TOKEN", "x")], "OPEN_SPANNER_EXPORT_S3_SESSION_TOKEN"),
    ] {
        let line = refused(pairs);
        assert!(line.starts_with(&format!("invalid config: {variable}: ")), "{line}");
    }
    let loaded = with(&[("OPEN_SPANNER_DB_MAX_OPEN_CONNS", "5"), ("OPEN_SPANNER_DB_MAX_IDLE_CONNS", "5")]);
    assert_eq!((loaded.config.db.max_open_conns, loaded.config.db.max_idle_conns), (5, Some(5)));
    assert!(load_from(&["open-spanner"], &[("OPEN_SPANNER_DB_MAX_IDLE_CONNS", "25")]).is_ok());
    // a worker needs fewer, and has its own number where one environment serves all roles
    let of = |role: &str, pairs: &[(&str, &str)]| {
        load_from(&["open-spanner", role], pairs).expect("settings").config.db.max_open_conns
    };
    let (all, workers) =
        (("OPEN_SPANNER_DB_MAX_OPEN_CONNS", "7"), ("OPEN_SPANNER_DB_WORKER_MAX_OPEN_CONNS", "3"));
    for (pairs, server, worker) in
        [(&[][..], 10, 6), (&[all][..], 7, 7), (&[workers][..], 10, 3), (&[all, workers][..], 7, 3)]
    {
        assert_eq!((of("serve", pairs), of("alert-worker", pairs)), (server, worker), "{pairs:?}");
    }
}

#[test]
fn s3_takes_its_defaults_from_its_neighbours() {
    let s3 = |extra: &[(&str, &str)]| {
        let mut pairs = COMPANIONS.to_vec();
        pairs.extend(SECRETS);
        pairs.extend(extra);
        match with(&pairs).config.exports.storage {
            ExportStorage::S3(s3) => s3,
            other => panic!("{other:?}"),
        }
    };
    let endpoint = ("OPEN_SPANNER_EXPORT_S3_ENDPOINT", "http://127.0.0.1:9000");
    assert!(!s3(&[]).force_path_style);
    assert!(s3(&[endpoint]).force_path_style);
    assert!(!s3(&[endpoint, ("OPEN_SPANNER_EXPORT_S3_FORCE_PATH_STYLE", "false")]).force_path_style);
    assert_eq!(s3(&[("OPEN_SPANNER_EXPORT_S3_PREFIX", "/a/b//")]).prefix, "a/b");
}

#[test]
fn workers_run_inside_serve_with_sqlite() {
    let in_serve = |extra: &[(&str, &str)]| with(extra).config.workers.in_serve;
    let postgres = [("OPEN_SPANNER_DB_DRIVER", "postgres"), SECRETS[0]];
    assert!(in_serve(&[]));
    assert!(!in_serve(&postgres));
    assert!(in_serve(&[postgres[0], postgres[1], ("OPEN_SPANNER_SERVE_WORKERS", "ON")]));
    assert!(!in_serve(&[("OPEN_SPANNER_SERVE_WORKERS", "off")]));
}

#[cfg(unix)]
#[test]
fn variables_that_are_not_text() {
    use std::os::unix::ffi::OsStringExt;
    let broken = || OsString::from_vec(b"hidden\xff".to_vec());
    let ours = utf8([("OPEN_SPANNER_HTTP_ADDR".into(), broken())].into_iter());
    let line = line_of(ours.map(|_| with(&[])).map_err(Exit::from));
    assert!(line.starts_with("invalid config: OPEN_SPANNER_HTTP_ADDR: "));
    let others = [("OTHER".into(), broken()), (broken(), "x".into())];
    assert_eq!(utf8(others.into_iter()), Ok(Map::new()));
}

#[test]
fn limits_fit_the_database() {
    assert_eq!(ANY, i64::MAX as u64);
    let stream = with(&[("OPEN_SPANNER_INGESTION_MAX_STREAM_EVENTS", &ANY.to_string())]);
    assert_eq!(stream.config.ingest.max_stream_events, ANY);
}
