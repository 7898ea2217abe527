"""The official Python stream client against a live server: single, bulk, stream, their keys, and the retry policy.

Usage: sdk_stream.py http://127.0.0.1:18081 127.0.0.1:18090 PASSWORD     (needs `pip install open-spanner`)

The server must allow 60 events in 3 seconds: what is left of that after the flows is used up, and the client's
retries must then wait as long as the server says and succeed.
"""
import datetime as dt
import secrets
import sys
import time

import grpc
import httpx
from open_spanner_client.stream import Event, RetryPolicy, StreamClient

WHEN = dt.datetime(2026, 6, 1, 8, 0, 0, 123456, tzinfo=dt.UTC)


def same(actual, expected, label):
    if actual != expected:
        sys.exit(f"{label}: expected {expected!r}, got {actual!r}")


def counts(result):
    return result.accepted_count, result.duplicate_count, result.failed_count


def set_up(base, password):
    with httpx.Client(base_url=base) as http:
        user = {"email": f"sdk-{secrets.token_hex(6)}@example.com", "password": password}
        same(http.post("/v1/auth/users", json=user).status_code, 201, "registration")
        same(http.post("/v1/auth/sessions", json=user).status_code, 201, "login")
        meter = {"name": "requests", "unit": "request", "aggregation": "sum", "dimensions": [{"name": "region", "type": "string", "required": False}]}
        same(http.post("/v1/meters", json=meter).status_code, 201, "meter")
        made = http.post("/v1/auth/api-keys", json={"name": "stream"})
        same(made.status_code, 201, "API key")
        return made.json()["key"]


def event(number=1.0, key="", subject="org_1"):
    return Event(subject, "requests", number, key, WHEN, {"region": "eu", "attempt": 2, "tags": ["a", None, {"b": True}]})


def single(client):
    first = client.track(event(2.5, "single-1"))
    same((first.subject, first.meter, first.quantity, first.timestamp), ("org_1", "requests", 2.5, WHEN), "event")
    same(first.metadata, {"region": "eu", "attempt": 2.0, "tags": ["a", None, {"b": True}]}, "metadata")
    same(client.track(event(2.5, "single-1")), first, "the same event again")
    timeless = client.track(Event("org_1", "requests", 1))
    age = dt.datetime.now(dt.UTC) - timeless.timestamp
    same(abs(age.total_seconds()) < 60, True, "an event without a time is of now")


def bulk(client):
    result = client.track_bulk("bulk-1", [event(1), event(2, "single-1"), event(-1)])
    same(counts(result), (1, 1, 1), "bulk counts")
    same([(item.index, item.code) for item in result.failed], [(2, "invalid_input")], "bulk failures")
    again = client.track_bulk("bulk-1", [event(1), event(2, "single-1"), event(-1)])
    same(again, result, "the bulk call again")


def stream(client):
    def run(key, numbers):
        opened = client.stream(key)
        for number in numbers:
            opened.track(event(number, f"{key}-{number}" if key else ""))
        return opened.close()

    plain = run("", [1, 2, 3])
    same(counts(plain), (3, 0, 0), "stream counts")
    same([item.quantity for item in plain.accepted], [1, 2, 3], "stream order")
    same(counts(run("", [1])), (1, 0, 0), "an empty key is none")
    keyed = run("stream-1", [1, 2, 3, 4])
    same(counts(keyed), (4, 0, 0), "keyed stream counts")
    same(run("stream-1", [1, 2, 3, 4]), keyed, "the keyed stream again")
    mixed = run("", [5, -1])
    same(counts(mixed), (1, 0, 1), "a bad event")
    same([(item.index, item.code) for item in mixed.failed], [(1, "invalid_input")], "stream failures")
    try:
        run("", [])
        sys.exit("an empty stream must be refused")
    except grpc.RpcError as error:
        same(error.code(), grpc.StatusCode.INVALID_ARGUMENT, "an empty stream")


def refusals(address):
    client = StreamClient(address, "osp_sk_unknown")
    for call in (lambda: client.track(event()), lambda: client.track_bulk("", [event()]), client.stream("").close):
        try:
            call()
            sys.exit("an unknown key must be refused")
        except grpc.RpcError as error:
            same(error.code(), grpc.StatusCode.UNAUTHENTICATED, "an unknown key")
    client.close()


def retries(address, key):
    told = []
    client = StreamClient(address, key, retry_policy=RetryPolicy(max_attempts=6, on_retry=told.append))
    started = time.monotonic()
    for _ in range(2):
        result = client.track_bulk("", [event(1) for _ in range(50)])
        same(counts(result), (50, 0, 0), "bulk under a rate limit")
    same(len(told) > 0, True, "the client was pushed back")
    for retry in told:
        same(retry.error.code(), grpc.StatusCode.RESOURCE_EXHAUSTED, "the status of a push-back")
        # the client's own back-off would be 0.1 seconds and never a whole number
        same(retry.delay_seconds, float(int(retry.delay_seconds)), "the delay comes from the server")
    same(time.monotonic() - started >= sum(retry.delay_seconds for retry in told), True, "the client waited")
    client.close()


def main(base, address, password):
    key = set_up(base, password)
    client = StreamClient(address, key)
    single(client)
    bulk(client)
    stream(client)
    client.close()
    refusals(address)
    retries(address, key)
    print("all as expected")


main(*sys.argv[1:])
