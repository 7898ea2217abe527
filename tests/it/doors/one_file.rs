//! The same file through every door there is: the answers to questions are the same, and whichever door it comes through the
//! second time, nothing is added.

use futures_util::StreamExt;
use open_spanner::grpc::pb::v1::usage_service_client::UsageServiceClient;
use open_spanner::grpc::pb::v1::{StreamUsageRequest, UsageEventInput};
use open_spanner::grpc::pb::v2::IngestRequest;
use open_spanner::grpc::pb::v2::usage_stream_service_client::UsageStreamServiceClient;
use serde_json::{Value, json};

use super::post_as;
use crate::support::{Client, Database, Server, Workspace, on_both_databases, program};

on_both_databases!(one_file_through_each_door_answers_the_same);

const EVENTS: usize = 3_000;
/// Single calls that are on their way at once.
const AT_ONCE: usize = 64;

/// One event of the file.
struct Use {
    key: String,
    subject: String,
    quantity: String,
    time: String,
    region: &'static str,
}

impl Use {
    fn at(at: usize) -> Use {
        Use {
            key: format!("k-{at}"),
            subject: format!("s-{}", at % 37),
            quantity: format!("{}.{:03}", at % 11, 1 + at % 998),
            time: format!("2026-06-{:02}T{:02}:{:02}:00Z", 1 + at % 28, at % 24, at % 60),
            region: ["eu", "us", "ap"][at % 3],
        }
    }

    /// The key that a CloudEvent has: source and id.
    fn full_key(&self) -> String {
        format!("f {}", self.key)
    }

    fn plain(&self) -> Value {
        json!({"idempotency_key": self.full_key(), "meter": "calls", "subject": self.subject, "timestamp": self.time,
               "quantity": self.quantity.parse::<f64>().expect("a number"), "metadata": {"region": self.region}})
    }

    fn cloud(&self) -> Value {
        json!({"specversion": "1.0", "id": self.key, "source": "f", "type": "calls", "subject": self.subject, "time": self.time,
               "data": {"value": self.quantity, "region": self.region}})
    }

    fn grpc(&self) -> UsageEventInput {
        let region = prost_types::value::Kind::StringValue(self.region.into());
        UsageEventInput {
            idempotency_key: self.full_key(),
            subject: self.subject.clone(),
            meter: "calls".into(),
            quantity: self.quantity.parse().expect("a number"),
            timestamp: Some(self.time.parse().expect("a time")),
            metadata: [("region".to_owned(), prost_types::Value { kind: Some(region) })].into(),
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Door {
    Single,
    Bulk,
    Lines,
    CloudEvents,
    OpenMeter,
    Stream,
    StreamOfV2,
    TableByMapping,
    LinesOfOpenMeter,
}

/// Those of a server, and then those of the command line, for which there may be none.
const SERVED: [Door; 7] = [
    Door::Single,
    Door::Bulk,
    Door::Lines,
    Door::CloudEvents,
    Door::OpenMeter,
    Door::Stream,
    Door::StreamOfV2,
];
const COMMANDS: [Door; 2] = [Door::TableByMapping, Door::LinesOfOpenMeter];

/// Each door has a workspace, into which the file comes again through the next door; single calls take too long for twice.
async fn one_file_through_each_door_answers_the_same(database: Database) {
    let mut server = Server::start(&database);
    let file: Vec<Use> = (0..EVENTS).map(Use::at).collect();
    let mut workspaces = Vec::new();
    for _ in SERVED.iter().chain(&COMMANDS) {
        workspaces.push(prepared(&server).await);
    }
    for (at, door) in SERVED.iter().enumerate() {
        send(&server, &workspaces[at], *door, &file).await;
        send(&server, &workspaces[at], SERVED[1 + at % (SERVED.len() - 1)], &file).await;
    }
    let mut ids = Vec::new();
    for workspace in &workspaces[SERVED.len()..] {
        let session = workspace.session.get("/v1/auth/session").await.json(200);
        ids.push(session["user"]["workspace_id"].as_str().expect("an id").to_owned());
    }
    server.terminate();
    import(&database, &file, &ids);
    let server = Server::start(&database);
    // a file that was brought in comes again through a door of the server
    send(&server, &workspaces[SERVED.len()].at(&server.url()), Door::Lines, &file).await;
    let mut answers = Vec::new();
    for workspace in &workspaces {
        answers.push(answers_of(&workspace.at(&server.url())).await);
    }
    assert!(answers[0].iter().all(|text| text.len() > 100), "{:?}", answers[0]);
    for (at, answer) in answers.iter().enumerate() {
        assert_eq!(answer, &answers[0], "{:?}", SERVED.iter().chain(&COMMANDS).nth(at));
    }
    assert_eq!(database.count("events"), (EVENTS * workspaces.len()) as u64);
}

async fn prepared(server: &Server) -> Workspace {
    let workspace = Workspace::create(&server.client()).await;
    let dimensions = json!([{"name": "region", "type": "string"}]);
    let meter = json!({"name": "calls", "unit": "u", "aggregation": "sum", "dimensions": dimensions});
    workspace.post("/v1/meters", &meter).await.expect(201);
    workspace
}

async fn send(server: &Server, workspace: &Client, door: Door, file: &[Use]) {
    match door {
        Door::Single => {
            let calls = file.iter().map(|one| async move {
                workspace.post("/v1/usages", &one.plain()).await.expect(201);
            });
            futures_util::stream::iter(calls).buffer_unordered(AT_ONCE).collect::<Vec<()>>().await;
        }
        Door::Bulk => {
            for part in file.chunks(1_000) {
                let bulk = Value::from(part.iter().map(Use::plain).collect::<Vec<_>>());
                workspace.post("/v1/usages/bulk", &bulk).await.expect(201);
            }
        }
        Door::Lines => {
            let lines: Vec<String> = file.iter().map(|one| one.plain().to_string()).collect();
            let lines = lines.join("\n");
            post_as(workspace, "application/x-ndjson", "/v1/usages/bulk", &lines).await.expect(200);
        }
        Door::CloudEvents => send_cloud(workspace, "/v1/cloudevents", 201, file).await,
        Door::OpenMeter => send_cloud(workspace, "/api/v1/events", 204, file).await,
        Door::Stream | Door::StreamOfV2 => send_by_grpc(server, workspace, door, file).await,
        Door::TableByMapping | Door::LinesOfOpenMeter => unreachable!("a command"),
    }
}

async fn send_cloud(client: &Client, path: &str, status: u16, file: &[Use]) {
    for part in file.chunks(1_000) {
        let batch = Value::from(part.iter().map(Use::cloud).collect::<Vec<_>>()).to_string();
        post_as(client, "application/cloudevents-batch+json", path, &batch).await.expect(status);
    }
}

/// As a stream of the first version, or as one of the second.
async fn send_by_grpc(server: &Server, workspace: &Client, door: Door, file: &[Use]) {
    let endpoint = tonic::transport::Channel::from_shared(format!("http://{}", server.grpc()));
    let channel = endpoint.expect("an address").connect().await.expect("the server listens");
    let key = workspace.header("authorization").parse().expect("a header value");
    if let Door::Stream = door {
        let events = file.iter().map(|one| StreamUsageRequest { event: Some(one.grpc()) });
        let mut request = tonic::Request::new(tokio_stream::iter(events.collect::<Vec<_>>()));
        request.metadata_mut().insert("authorization", key);
        UsageServiceClient::new(channel).stream_usage(request).await.expect("stored");
        return;
    }
    let numbered = (1..).zip(file);
    let events = numbered.map(|(sequence, one)| IngestRequest {
        sequence,
        event: Some(one.grpc()),
        ..Default::default()
    });
    let mut request = tonic::Request::new(tokio_stream::iter(events.collect::<Vec<_>>()));
    request.metadata_mut().insert("authorization", key);
    let acks = UsageStreamServiceClient::new(channel).ingest(request).await;
    let mut acks = acks.expect("it opens").into_inner();
    while acks.message().await.expect("it goes on").is_some() {}
}

/// As CSV with a mapping, and as OpenMeter's lines; twice.
fn import(database: &Database, file: &[Use], ids: &[String]) {
    let directory = tempfile::tempdir().expect("a directory");
    let write = |name: &str, text: String| std::fs::write(directory.path().join(name), text).expect("a file");
    let mut table = "key,who,amount,at,area\n".to_owned();
    for one in file {
        let row = [&one.full_key(), &one.subject, &one.quantity, &one.time, one.region].join(",");
        table.push_str(&format!("{row}\n"));
    }
    write("file.csv", table);
    write("file.jsonl", file.iter().map(|one| one.cloud().to_string()).collect::<Vec<_>>().join("\n"));
    let mapping = "key = \"{key}\"\n[columns]\nsubject = \"who\"\nquantity = \"amount\"\ntimestamp = \"at\"
        metadata.region = \"area\"\n[constants]\nmeter = \"calls\"";
    write("mapping.toml", mapping.into());
    let settings = database.settings();
    let settings: Vec<(&str, &str)> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
    for _ in 0..2 {
        for arguments in [
            ["csv", "file.csv", "--map", "mapping.toml", "--workspace", &ids[0]].as_slice(),
            ["openmeter", "file.jsonl", "--workspace", &ids[1]].as_slice(),
        ] {
            let command = program::command(&[&["import"], arguments].concat(), &settings, directory.path());
            program::finish(command, std::time::Duration::from_secs(300)).succeeded();
        }
    }
}

async fn answers_of(client: &Client) -> Vec<String> {
    let mut texts = Vec::new();
    for more in [
        "bucket_size=month",
        "bucket_size=day",
        "bucket_size=day&group_by=region",
        "bucket_size=month&group_by=subject",
        "bucket_size=day&subject=s-3",
        "bucket_size=day&metadata.region=eu",
    ] {
        let path = format!(
            "/v1/usages?meter=calls&from=2026-06-01T00:00:00Z&to=2026-07-01T00:00:00Z&limit=1000&{more}"
        );
        texts.push(client.get(&path).await.expect(200).text);
    }
    texts
}
