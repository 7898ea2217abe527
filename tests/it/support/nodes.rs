//! A Citus cluster: a coordinator and two nodes. Citus is an extension that is installed, never a part of this repository:
//! `OPEN_SPANNER_TEST_CITUS` names the directory with the programs of a PostgreSQL that has it.

use std::path::PathBuf;
use std::sync::OnceLock;

use super::postgres::Cluster;

pub const VARIABLE: &str = "OPEN_SPANNER_TEST_CITUS";

pub struct Nodes {
    pub coordinator: Cluster,
    pub nodes: [Cluster; 2],
}

impl Nodes {
    /// The cluster of this test run, if there is a Citus to make it of.
    pub fn shared() -> Option<&'static Nodes> {
        static SHARED: OnceLock<Option<Nodes>> = OnceLock::new();
        SHARED.get_or_init(|| programs().map(Nodes::create)).as_ref()
    }

    /// One of a test's own, whose nodes may be stopped.
    pub fn private() -> Option<Nodes> {
        programs().map(Nodes::create)
    }

    fn create(programs: PathBuf) -> Nodes {
        let server = || Cluster::of_citus(programs.clone());
        Nodes { coordinator: server(), nodes: [server(), server()] }
    }

    /// An empty database over all nodes; returns its name.
    pub fn create_database(&self) -> String {
        let name = self.coordinator.create_database();
        for node in &self.nodes {
            node.execute_in("postgres", &format!("CREATE DATABASE {name} TEMPLATE template0"));
        }
        for server in self.nodes.iter().chain([&self.coordinator]) {
            server.execute_in(&name, "CREATE EXTENSION citus");
        }
        let call = |function: &str, server: &Cluster| {
            let (host, port) =
                server.address().split_once(':').map(|(h, p)| (h.to_owned(), p.to_owned())).expect("both");
            self.coordinator.execute_in(&name, &format!("SELECT {function}('{host}', {port})"));
        };
        call("citus_set_coordinator_host", &self.coordinator);
        self.nodes.iter().for_each(|node| call("citus_add_node", node));
        name
    }
}

fn programs() -> Option<PathBuf> {
    super::env(VARIABLE).map(PathBuf::from)
}
