"""The official Python client against a live server: every operation that it has, and what comes back.

Usage: sdk_usage.py http://127.0.0.1:18081 PASSWORD     (needs `pip install open-spanner`)

Registration, the API key and the plan are plain HTTP: the client has no calls for them. The server must run its
workers, for one of them writes the states. An operation of the client that was never answered here fails the run.
"""
import asyncio
import importlib
import pkgutil
import secrets
import sys
import time

import httpx
import open_spanner_client.api
from open_spanner_client import AuthenticatedClient
from open_spanner_client.api.entitlements import (
    consume_entitlement,
    get_consumption_decision,
    list_consumption_decisions,
    list_entitlement_states,
)
from open_spanner_client.api.health import health_check, readiness_check
from open_spanner_client.api.meters import create_meter, delete_meter, get_meter, list_meters, update_meter
from open_spanner_client.api.plans import check_entitlement, get_subject_plan_progress
from open_spanner_client.api.usages import (
    create_usage,
    create_usage_bulk,
    export_filtered_usage_buckets,
    export_usage_buckets,
    list_usage_dimension_values,
    search_usage_breakdown,
    search_usage_buckets,
)
from open_spanner_client.models import (
    EntitlementCheckRequest,
    EntitlementConsumeRequest,
    InternalMeteringAdaptersHttpUsageFilterRequest as Filter,
    InternalMeteringAdaptersHttpUsageSearchRequest as Search,
    MeterCreateRequest,
    MeterDimensionRequest,
    MeterUpdateRequest,
    UsageBreakdownRequest,
    UsageCreateRequest,
    UsageCreateRequestMetadata,
)
from open_spanner_client.retry import retry_usage_write
from open_spanner_client.types import UNSET

JUNE = {"from_": "2026-06-01T00:00:00Z", "to": "2026-07-01T00:00:00Z"}
# percent-encoded in a path by the client
HOLDER = "org:7"


def same(actual, expected, label):
    if actual != expected:
        sys.exit(f"{label}: expected {expected!r}, got {actual!r}")


def operations():
    """Every module of the client that makes one kind of request."""
    found = pkgutil.walk_packages(open_spanner_client.api.__path__, "open_spanner_client.api.")
    modules = [importlib.import_module(module.name) for module in found if not module.ispkg]
    return [module for module in modules if hasattr(module, "sync_detailed")]


def note_answers(modules):
    """Whichever way an operation is called, one function builds its answer: what it built is kept."""
    answered = set()

    def noting(name, build):
        def build_and_note(**arguments):
            answer = build(**arguments)
            answered.add(name)
            return answer

        return build_and_note

    for module in modules:
        module._build_response = noting(module.__name__, module._build_response)
    return answered


def sign_up(base, password):
    """A session in a workspace of its own, and an API key."""
    http = httpx.Client(base_url=base)
    user = {"email": f"sdk-{secrets.token_hex(6)}@example.com", "password": password}
    same(http.post("/v1/auth/users", json=user).status_code, 201, "registration")
    same(http.post("/v1/auth/sessions", json=user).status_code, 201, "login")
    made = http.post("/v1/auth/api-keys", json={"name": "sdk", "scopes": ["*"]})
    same(made.status_code, 201, "API key")
    return http, made.json()["key"]


def event(key, subject, quantity, region, time):
    metadata = UsageCreateRequestMetadata()
    metadata["region"] = region
    return UsageCreateRequest(
        idempotency_key=key, meter="tokens", subject=subject, quantity=quantity, timestamp=time, metadata=metadata)


def health(client):
    same(health_check.sync_detailed(client=client).status_code, 204, "health")
    same(readiness_check.sync_detailed(client=client).status_code, 204, "readiness")


def meters(client):
    dimension = MeterDimensionRequest(name="region", type_="string", required=True)
    made = create_meter.sync(
        client=client, body=MeterCreateRequest(name="tokens", unit="token", aggregation="sum", dimensions=[dimension]))
    same((made.name, made.unit, made.aggregation), ("tokens", "token", "sum"), "meter")
    same([d.name for d in made.dimensions], ["region"], "dimensions")
    same(get_meter.sync(made.id, client=client), made, "meter by id")
    same(asyncio.run(get_meter.asyncio(made.id, client=client)), made, "meter by id, awaited")
    taken = create_meter.sync(client=client, body=MeterCreateRequest(name="tokens", unit="token"))
    same(taken.error.code, "conflict", "a taken name")
    spare = create_meter.sync(client=client, body=MeterCreateRequest(name="spare", unit="u"))
    same(update_meter.sync(spare.id, client=client, body=MeterUpdateRequest(unit="v")).unit, "v", "updated unit")
    pages = [list_meters.sync(client=client, limit=1)]
    pages.append(list_meters.sync(client=client, limit=1, cursor=pages[0].next_cursor))
    same([[m.name for m in page.items] for page in pages], [["spare"], ["tokens"]], "meters by name, page by page")
    same(pages[1].next_cursor, UNSET, "no page after the last")
    same([m.id for m in list_meters.sync(client=client, name="tokens").items], [made.id], "meter by its name")
    same(delete_meter.sync_detailed(spare.id, client=client).status_code, 204, "deletion")
    same(get_meter.sync(spare.id, client=client).error.code, "not_found", "a deleted meter")


def single_write(client):
    body = event("single-1", HOLDER, 12.5, "eu", "2026-06-01T10:00:00+02:00")
    first = retry_usage_write(lambda: create_usage.sync_detailed(client=client, body=body)).parsed
    same((first.subject, first.meter, first.quantity), (HOLDER, "tokens", 12.5), "event")
    same(first.timestamp, "2026-06-01T08:00:00Z", "event time in UTC")
    same(first.metadata["region"], "eu", "metadata")
    same(create_usage.sync(client=client, body=body), first, "the same key again")
    refused = create_usage.sync(client=client, body=event("single-2", HOLDER, 0, "eu", "2026-06-01T10:00:00Z"))
    same(refused.error.code, "invalid_input", "a quantity of nothing")


def bulk_write(client):
    events = [event(f"bulk-{n}", f"org_{n % 2}", 0.1, "us" if n % 2 else "eu", "2026-06-02T09:30:00Z") for n in range(10)]
    bad = event("bulk-bad", "org_1", -1, "eu", "2026-06-02T09:30:00Z")
    first = create_usage_bulk.sync(client=client, body=[*events, bad])
    same((first.accepted, first.duplicates, first.failed), (10, 0, 1), "bulk counts")
    same((first.failed_items[0].index, first.failed_items[0].code), (10, "invalid_input"), "bulk failure")
    again = create_usage_bulk.sync(client=client, body=events)
    same((again.accepted, again.duplicates), (0, 10), "bulk again")
    same(again.duplicate_items, first.accepted_items, "the stored events")
    header = [create_usage_bulk.sync(client=client, body=[event(f"h{n}", "org_9", 5, "eu", "2026-06-03T00:00:00Z")],
                                     idempotency_key="one-call") for n in range(2)]
    same(header[1].accepted_items, header[0].accepted_items, "a replayed call")


def buckets(client):
    def search(**more):
        return search_usage_buckets.sync(client=client, body=Search(meter="tokens", **JUNE, **more))

    days = [(row.bucket_start, row.quantity) for row in search(bucket_size="day")]
    same(days, [("2026-06-01T00:00:00Z", 12.5), ("2026-06-02T00:00:00Z", 1), ("2026-06-03T00:00:00Z", 5)], "days")
    same([row.quantity for row in search(bucket_size="month")], [18.5], "month")
    groups = {row.group["region"]: row.quantity for row in search(bucket_size="month", group_by=["region"])}
    same(groups, {"eu": 18, "us": 0.5}, "by region")
    same([row.quantity for row in search(bucket_size="month", subject="org_1")], [0.5], "one subject")
    only_us = Filter(type_="condition", field="metadata.region", op="eq", value="us")
    same([row.quantity for row in search(bucket_size="month", filter_=only_us)], [0.5], "filtered")
    unknown = search_usage_buckets.sync(client=client, body=Search(meter="nothing", **JUNE))
    same(unknown.error.code, "not_found", "an unknown meter")


def parts(client):
    body = UsageBreakdownRequest(meter="tokens", field="region", **JUNE)
    rows = [(row.field, row.value, row.quantity, row.events) for row in search_usage_breakdown.sync(client=client, body=body).items]
    same(rows, [("region", "eu", 18, 7), ("region", "us", 0.5, 5)], "breakdown")
    values = list_usage_dimension_values.sync(client=client, meter="tokens", field="region", **JUNE)
    same([(row.field, row.value, row.events) for row in values.items], [("region", "eu", 7), ("region", "us", 5)], "values")
    first = list_usage_dimension_values.sync(client=client, meter="tokens", field="region", subject="org_1", limit=1)
    same([row.value for row in first.items], ["us"], "values of one subject")


def files(client):
    header = "bucket_start,subject,meter,bucket_size,aggregation,unit,quantity,region\n"
    month = "2026-06-01T00:00:00Z,{0},tokens,month,sum,token,{1},{2}\n"
    body = Search(meter="tokens", bucket_size="month", group_by=["region", "subject"], subject="org_0", **JUNE)
    same(export_filtered_usage_buckets.sync(client=client, body=body), header + month.format("org_0", "0.5", "eu"), "posted CSV")
    got = export_usage_buckets.sync(client=client, meter="tokens", bucket_size="month", group_by=["region", "subject"], limit=3, **JUNE)
    rows = month.format("org:7", "12.5", "eu") + month.format("org_0", "0.5", "eu") + month.format("org_9", "5", "eu")
    same(got, header + rows, "CSV")
    # the client cannot read errors of its CSV calls, so they are looked at below it
    refused = client.get_httpx_client().get("/v1/usages/export", params={"meter": "tokens", "limit": 1001})
    same((refused.status_code, refused.json()["error"]["code"]), (400, "invalid_limit"), "too many rows")


def quotas(http, client):
    same(create_meter.sync(client=client, body=MeterCreateRequest(name="calls", unit="call")).name, "calls", "meter")
    plan = {"name": "small", "limits": [{"meter": "calls", "limit": 10, "enforcement": "hard"}]}
    plan = http.post("/v1/plans", json=plan)
    same(plan.status_code, 201, "plan")
    assigned = http.put("/v1/plans/subjects/org:7", json={"plan_id": plan.json()["id"]})
    same(assigned.status_code, 200, "assignment")

    def consume(key, quantity):
        body = EntitlementConsumeRequest(idempotency_key=key, meter="calls", subject=HOLDER, quantity=quantity)
        return consume_entitlement.sync_detailed(client=client, body=body)

    yes, again, no = consume("c-1", 9), consume("c-1", 9), consume("c-2", 2)
    same((yes.status_code, yes.parsed.accepted, yes.parsed.replayed), (201, True, False), "consumed")
    same((yes.parsed.quota.current, yes.parsed.quota.projected, yes.parsed.quota.limit), (0, 9, 10), "quota")
    same((again.status_code, again.parsed.replayed, again.parsed.event), (201, True, yes.parsed.event), "replayed")
    same((no.status_code, no.parsed.accepted, no.parsed.quota.allowed), (429, False, False), "refused")

    same(get_consumption_decision.sync("c-1", client=client).event_id, yes.parsed.event.id, "decision by key")
    same(get_consumption_decision.sync("c/none", client=client).error.code, "not_found", "no such decision")
    pages = [list_consumption_decisions.sync(client=client, limit=1)]
    pages.append(list_consumption_decisions.sync(client=client, limit=1, cursor=pages[0].next_cursor))
    same([[d.idempotency_key for d in page.items] for page in pages], [["c-2"], ["c-1"]], "decisions, newest first")
    rejected = list_consumption_decisions.sync(client=client, outcome="rejected", subject=HOLDER, meter="calls")
    same([(d.idempotency_key, d.accepted) for d in rejected.items], [("c-2", False)], "rejected decisions")

    def check(**quantity):
        return check_entitlement.sync(client=client, body=EntitlementCheckRequest(meter="calls", subject=HOLDER, **quantity))

    same([check().allowed, check(quantity=1).allowed, check(quantity=2).allowed], [True, True, False], "checks")
    same((check().current, check().limit, check().plan_name), (9, 10, "small"), "check")
    progress = get_subject_plan_progress.sync(HOLDER, client=client)
    same((progress.subject, progress.plan.name, progress.plan.limits[0].enforcement), (HOLDER, "small", "hard"), "plan")
    same([(i.meter, i.current, i.limit, i.percent, i.state) for i in progress.items], [("calls", 9, 10, 90, "warning")], "progress")
    same(get_subject_plan_progress.sync("nobody", client=client).error.code, "not_found", "progress without a plan")


def states(client):
    """A worker writes them after the fact; how soon depends on the machine."""
    end = time.monotonic() + 90
    while True:
        items = list_entitlement_states.sync(client=client, subject=HOLDER, meter="calls", state="warning").items
        if items:
            break
        if time.monotonic() > end:
            sys.exit("no state was written")
        time.sleep(0.1)
    same([(i.subject, i.meter, i.current, i.limit, i.remaining) for i in items], [(HOLDER, "calls", 9, 10, 1)], "states")
    same(list_entitlement_states.sync(client=client, state="exceeded").items, [], "no other state")


def main():
    base, password = sys.argv[1:3]
    modules = operations()
    answered = note_answers(modules)
    http, key = sign_up(base, password)
    client = AuthenticatedClient(base_url=base, token=key, raise_on_unexpected_status=True, timeout=httpx.Timeout(60))
    health(client)
    meters(client)
    single_write(client)
    bulk_write(client)
    buckets(client)
    parts(client)
    files(client)
    quotas(http, client)
    states(client)
    same(sorted(module.__name__ for module in modules if module.__name__ not in answered), [], "operations never answered")
    same(len(modules) >= 20, True, f"operations are found ({len(modules)})")
    print(f"{len(modules)} operations, all as expected")


if __name__ == "__main__":
    main()
