"""The official Python client against a live server: meter, single write, bulk write, search, totals.

Usage: sdk_usage.py http://127.0.0.1:18081 PASSWORD     (needs `pip install open-spanner`)

Registration and the API key are plain HTTP: the client has no calls for them.
"""
import secrets
import sys

import httpx
from open_spanner_client import AuthenticatedClient
from open_spanner_client.api.health import readiness_check
from open_spanner_client.api.meters import create_meter, delete_meter, get_meter, list_meters, update_meter
from open_spanner_client.api.usages import create_usage, create_usage_bulk, search_usage_buckets
from open_spanner_client.models import (
    InternalMeteringAdaptersHttpUsageSearchRequest as Search,
    MeterCreateRequest,
    MeterDimensionRequest,
    MeterUpdateRequest,
    UsageCreateRequest,
    UsageCreateRequestMetadata,
)
from open_spanner_client.retry import retry_usage_write


def same(actual, expected, label):
    if actual != expected:
        sys.exit(f"{label}: expected {expected!r}, got {actual!r}")


def api_key(base, password):
    with httpx.Client(base_url=base) as http:
        user = {"email": f"sdk-{secrets.token_hex(6)}@example.com", "password": password}
        same(http.post("/v1/auth/users", json=user).status_code, 201, "registration")
        same(http.post("/v1/auth/sessions", json=user).status_code, 201, "login")
        made = http.post("/v1/auth/api-keys", json={"name": "sdk"})
        same(made.status_code, 201, "API key")
        return made.json()["key"]


def event(key, subject, quantity, region, time):
    metadata = UsageCreateRequestMetadata()
    metadata["region"] = region
    return UsageCreateRequest(
        idempotency_key=key, meter="tokens", subject=subject, quantity=quantity, timestamp=time, metadata=metadata)


def meters(client):
    dimension = MeterDimensionRequest(name="region", type_="string", required=True)
    made = create_meter.sync(
        client=client, body=MeterCreateRequest(name="tokens", unit="token", aggregation="sum", dimensions=[dimension]))
    same((made.name, made.unit, made.aggregation), ("tokens", "token", "sum"), "meter")
    same([d.name for d in made.dimensions], ["region"], "dimensions")
    same(get_meter.sync(made.id, client=client).name, "tokens", "meter by id")
    spare = create_meter.sync(client=client, body=MeterCreateRequest(name="spare", unit="u"))
    same(update_meter.sync(spare.id, client=client, body=MeterUpdateRequest(unit="v")).unit, "v", "updated unit")
    same([m.name for m in list_meters.sync(client=client).items], ["spare", "tokens"], "meters by name")
    same(delete_meter.sync_detailed(spare.id, client=client).status_code, 204, "deletion")


def single_write(client):
    body = event("single-1", "org_7", 12.5, "eu", "2026-06-01T10:00:00+02:00")
    first = retry_usage_write(lambda: create_usage.sync_detailed(client=client, body=body)).parsed
    same((first.subject, first.meter, first.quantity), ("org_7", "tokens", 12.5), "event")
    same(first.timestamp, "2026-06-01T08:00:00Z", "event time in UTC")
    same(first.metadata["region"], "eu", "metadata")
    same(create_usage.sync(client=client, body=body), first, "the same key again")


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


def totals(client):
    def search(**more):
        body = Search(meter="tokens", from_="2026-06-01T00:00:00Z", to="2026-07-01T00:00:00Z", **more)
        return search_usage_buckets.sync(client=client, body=body)

    days = [(row.bucket_start, row.quantity) for row in search(bucket_size="day")]
    same(days, [("2026-06-01T00:00:00Z", 12.5), ("2026-06-02T00:00:00Z", 1), ("2026-06-03T00:00:00Z", 5)], "days")
    same([row.quantity for row in search(bucket_size="month")], [18.5], "month")
    groups = {row.group["region"]: row.quantity for row in search(bucket_size="month", group_by=["region"])}
    same(groups, {"eu": 18, "us": 0.5}, "by region")
    same([row.quantity for row in search(bucket_size="month", subject="org_1")], [0.5], "one subject")


def main():
    base, password = sys.argv[1:3]
    client = AuthenticatedClient(base_url=base, token=api_key(base, password), raise_on_unexpected_status=True)
    same(readiness_check.sync_detailed(client=client).status_code, 204, "readiness")
    meters(client)
    single_write(client)
    bulk_write(client)
    totals(client)
    print("all as expected")


if __name__ == "__main__":
    main()
