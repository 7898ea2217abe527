"""API keys from creation to revocation: status, rotation with a grace period, and the history of both."""
from kit import Caller, ahead, case, cases_from, check, eq, has, is_text, like, race, recent, uid, when


def rotate(ws, key_id, *body):
    return ws.session.post(f"/v1/auth/api-keys/{key_id}/rotate", *(body or ({},)))


def listed(ws, key_id):
    found = [k for k in ws.session.get("/v1/auth/api-keys").items() if k["id"] == key_id]
    eq(len(found), 1, "the key in the list")
    return found[0]


def works(t, secret):
    return Caller(t.http, key=secret).get("/v1/meters").expect(200, 401).status == 200


@case
def status_of_a_key(t):
    """active, then revoked; a revoked key stays in the list and is 401 at once; revoking again is 204."""
    key = t.ws.new_key(expires_at=ahead(days=2))
    eq(key["status"], "active", "status")
    check(works(t, key["key"]), "a new key works")
    for _ in range(2):
        t.ws.session.delete(f"/v1/auth/api-keys/{key['id']}").empty()
    check(not works(t, key["key"]), "a revoked key is 401")
    shown = listed(t.ws, key["id"])
    eq(shown["status"], "revoked", "status")
    recent(shown["revoked_at"], "revoked_at")


@case
def rotation(t):
    """201 with a new key on the same terms; without grace the old one ends with the answer."""
    old = t.ws.new_key(["meters:read"], allowed_meters=[], expires_at=ahead(days=2))
    new = rotate(t.ws, old["id"], {}).data(201)
    for field in ("name", "scopes", "allowed_meters", "expires_at"):
        eq(new[field], old[field], field)
    check(new["id"] != old["id"] and new["key"] != old["key"] and new["prefix"] != old["prefix"], "a key of its own")
    is_text(new["key"], "key")
    check(works(t, new["key"]) and not works(t, old["key"]), "new works, old does not")
    eq((listed(t.ws, old["id"])["status"], listed(t.ws, new["id"])["status"]), ("revoked", "active"), "statuses")


@case
def rotation_with_grace(t):
    """Within the grace period both work, and the old one shows revoking."""
    old = t.ws.new_key()
    new = rotate(t.ws, old["id"], {"grace_period_seconds": 3600}).data(201)
    check(works(t, new["key"]) and works(t, old["key"]), "both work")
    shown = listed(t.ws, old["id"])
    eq(shown["status"], "revoking", "status")
    left = (when(shown["revoked_at"]) - when(shown["created_at"])).total_seconds()
    check(3590 <= left <= 3720, f"revoked_at lies an hour ahead: {left}")
    rotate(t.ws, old["id"]).error(409, "conflict")
    t.ws.session.delete(f"/v1/auth/api-keys/{old['id']}").empty()
    check(not works(t, old["key"]), "revoking cuts the grace short")


@case
def rotation_ends_after_its_grace(t):
    """The old key works for the grace period and no longer."""
    old = t.ws.new_key()
    rotate(t.ws, old["id"], {"grace_period_seconds": 1}).expect(201)
    t.wait(lambda: not works(t, old["key"]), "the old key to end")
    eq(listed(t.ws, old["id"])["status"], "revoked", "status")


@case
def one_of_many_rotations_wins(t):
    """Simultaneous rotations make one key."""
    old = t.ws.new_key()
    answers = race(lambda i: rotate(t.ws, old["id"], {"grace_period_seconds": 60}).expect(201, 409).status, 8)
    eq(sorted(map(str, answers)), ["201"] + ["409"] * 7, "statuses")


@cases_from([("negative", {"grace_period_seconds": -1}, "invalid_input"), ("too-long", {"grace_period_seconds": 86401}, "invalid_input"),
             ("text", {"grace_period_seconds": "1"}, "invalid_json"), ("fraction", {"grace_period_seconds": 1.5}, "invalid_json")])
def rotation_refused(t, body, code):
    """Bad grace periods are 400 and change nothing."""
    key = t.ws.new_key()
    rotate(t.ws, key["id"], body).error(400, code)
    eq(listed(t.ws, key["id"])["status"], "active", "status")


@case
def rotation_of_others(t):
    """Unknown and foreign keys are 404; a revoked one is 409; an API key may not rotate."""
    key = t.ws.new_key()
    rotate(t.ws, "00000000-0000-4000-8000-000000000000").error(404, "not_found")
    rotate(t.other, key["id"]).error(404, "not_found")
    t.ws.post(f"/v1/auth/api-keys/{key['id']}/rotate", {}).error(401, "unauthorized")
    t.ws.session.delete(f"/v1/auth/api-keys/{key['id']}").empty()
    rotate(t.ws, key["id"]).error(409, "conflict")


@case
def history_of_keys(t):
    """created, rotated and revoked, newest first, with the keys that belong together."""
    ws = t.new_workspace()
    old = ws.new_key()
    new = rotate(ws, old["id"]).data(201)
    ws.session.delete(f"/v1/auth/api-keys/{new['id']}").empty()
    events = ws.session.get("/v1/auth/api-key-events").items()
    for event in events:
        has(event, "id", "api_key_id", "key_name", "key_prefix", "event_type", "created_at", label="event")
    pick = [(e["event_type"], e["api_key_id"], e.get("related_api_key_id")) for e in events]
    eq(pick[0], ("revoked", new["id"], None), "newest")
    eq(sorted(pick[1:3]), sorted([("created", new["id"], old["id"]), ("rotated", old["id"], new["id"])]), "rotation")
    eq(pick[3], ("created", old["id"], None), "creation")
    check(all(e["key_name"] and e["key_prefix"].startswith("osp_sk_") for e in events), "names and prefixes")
    recent(events[0]["effective_at"], "effective_at")
    check(new["key"] not in str(events), "no secret")
    t.ws.get("/v1/auth/api-key-events").error(401, "unauthorized")


@case
def system_scope(t):
    """system:write is a scope of its own; system:* and * include it."""
    path = "/v1/system/workers/dead-letters/00000000-0000-4000-8000-000000000000/retry"
    for scopes, status in ((["system:write"], 404), (["system:*"], 404), (["*"], 404), (["system:read"], 403), (["usage:*"], 403)):
        t.ws.as_key(scopes).post(path).expect(status)
    t.ws.as_key(["system:read"]).get("/v1/system/workers/dead-letters").expect(200)
    t.ws.as_key(["system:write"]).get("/v1/system/workers/dead-letters").error(403, "forbidden")
    eq(t.ws.new_key([" SYSTEM:WRITE "])["scopes"], ["system:write"], "scopes")
