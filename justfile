# The daily commands: `just` lists them. Each is one line that works without just as well.

# this list
default:
    @just --list --unsorted

# serve on a SQLite file in this directory, with a readable log
run *arguments:
    RUST_LOG=info,open_spanner=debug cargo run -- serve {{arguments}}

# types and borrows, tests included
check:
    cargo check --all-targets

# rules only: no database, no server, seconds
unit *filter:
    cargo test --lib {{filter}}

# every test, on both databases, with the conformance suite; or those whose name contains the filter
test *filter:
    scripts/test {{filter}}

# some tests against a real server, by name, for example `just it crash::`
it filter:
    cargo test --test it {{filter}}

# format, then lints
lint:
    cargo fmt
    cargo clippy --all-targets -- -D warnings

# what has to pass before a change is merged
ci:
    .ci/run

# write anew what is generated and checked in: OpenAPI document, gRPC code, query plans, list of settings
regenerate:
    OPEN_SPANNER_REGENERATE=1 cargo test --lib openapi
    OPEN_SPANNER_REGENERATE=1 cargo test --lib grpc::pb
    OPEN_SPANNER_REGENERATE=1 cargo test --test it statements::plans
    OPEN_SPANNER_REGENERATE=1 cargo test --test it repository::

# the load benchmark of docs/performance.md; minutes with `just bench --history 1000000`
bench *arguments:
    cargo bench --bench load -- {{arguments}}

# what pages of the dashboard cost, with Lighthouse, against their budgets; a build for release first
page-budgets *arguments:
    scripts/page-budgets {{arguments}}

# generated requests against the OpenAPI document, on SQLite or on an empty PostgreSQL database
fuzz *dsn:
    scripts/schemathesis {{dsn}}

# licences, sources and bans of every dependency
licenses:
    scripts/check-licenses
