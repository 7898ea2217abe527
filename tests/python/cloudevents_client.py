"""CloudEvents made by their own library, sent in each of the three ways. Arguments: address, API key."""

import http.client
import json
import sys
from urllib.parse import urlsplit

from cloudevents.conversion import to_binary, to_json, to_structured
from cloudevents.http import CloudEvent

address, key = urlsplit(sys.argv[1]).netloc, sys.argv[2]
PATH = "/v1/cloudevents"


def send(headers, body):
    connection = http.client.HTTPConnection(address, timeout=30)
    connection.request("POST", PATH, body, {**headers, "authorization": f"Bearer {key}"})
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, dict((name.lower(), value) for name, value in answer.getheaders()), text


def event(number, **more):
    attributes = {
        "type": "calls",
        "source": "https://example.com/app?a=1&b=2",
        "id": f"id {number}",
        "subject": "acme",
        "time": "2026-06-15T12:00:00.5+02:00",
        "extension": "read over",
        **more,
    }
    return CloudEvent(attributes, {"quantity": 0.1, "region": "é\"☃", "nested": {"a": [1, None, True]}})


def expect(status, answer, *words):
    if answer[0] != status or not all(word in answer[2] for word in words):
        sys.exit(f"wanted {status} with {words}, got {answer}")
    return answer


structured = json.loads(expect(201, send(*to_structured(event(1))))[2])
assert structured["metadata"] == {"nested": {"a": [1, None, True]}, "region": "é\"☃"}, structured
assert structured["timestamp"] == "2026-06-15T10:00:00Z", structured

# the same event in another mode is the same event
status, headers, text = expect(201, send(*to_binary(event(1))))
assert headers.get("idempotency-replayed") == "true" and json.loads(text)["id"] == structured["id"], text
binary = json.loads(expect(201, send(*to_binary(event(2))))[2])
assert binary["metadata"] == structured["metadata"] and binary["id"] != structured["id"], binary

batch = b"[" + b",".join(to_json(event(number)) for number in (1, 2, 3, 3)) + b"]"
answer = json.loads(expect(201, send({"content-type": "application/cloudevents-batch+json"}, batch))[2])
assert (answer["accepted"], answer["duplicates"]) == (1, 3), answer

expect(404, send(*to_structured(event(4, type="unknown"))))
expect(400, send(*to_structured(event(5, subject="not a subject"))), "subject")
print("all as expected")
