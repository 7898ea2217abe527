"""Deciding and recording in one call: consumption, its refusals and replays, and the decisions that are kept."""
import urllib.parse

from kit import ago, case, cases_from, check, eq, has, like, pages, race, recent, uid

HARD = {"enforcement": "hard"}


def quota(t, value=10, aggregation="sum", ws=None, **more):
    """A fresh meter, plan and assigned subject: (meter, subject, plan)."""
    ws = ws or t.ws
    name = ws.meter(aggregation=aggregation, unit="call")["name"]
    plan = ws.plan(name, limits=[dict({"meter": name, "limit": value}, **more)])
    subject = uid("org")
    ws.assign(subject, plan["id"])
    return name, subject, plan


def consume(who, meter, subject, quantity=1, key=None, **more):
    body = {"idempotency_key": key or uid("c"), "meter": meter, "subject": subject, "quantity": quantity}
    return who.post("/v1/entitlements/consume", dict(body, **more))


def stored(t, meter):
    return t.ws.get("/v1/usageevents", query={"meter": meter, "limit": 1000}).items()


def decision_path(key):
    return "/v1/entitlements/decisions/" + urllib.parse.quote(key, safe="")


# ---------------------------------------------------------------- deciding

@case
def accepted_consumption(t):
    """201 with the stored event and the quota after it."""
    meter, subject, plan = quota(t, 10, **HARD)
    key = uid("c")
    body = consume(t.ws, meter, subject, 4, key, metadata={"note": "x"}).data(201)
    like(body, {"accepted": True, "replayed": False, "evaluation_failed": False}, "answer")
    like(body["event"], {"idempotency_key": key, "subject": subject, "meter": meter, "quantity": 4, "metadata": {"note": "x"}}, "event")
    like(body["quota"], {"allowed": True, "state": "ok", "subject": subject, "meter": meter, "quantity": 4, "current": 0, "projected": 4, "limit": 10,
                         "remaining": 6, "overage": 0, "plan_id": plan["id"], "plan_name": plan["name"], "period": "month", "enforcement": "hard",
                         "failure_policy": "fail_open"}, "quota")
    has(body["quota"], "from", "to", "period_reset_at", "message", label="quota")
    check("retry_after_seconds" not in body["quota"], "retry_after_seconds belongs to refusals")
    eq([e["id"] for e in stored(t, meter)], [body["event"]["id"]], "stored events")


@case
def refused_consumption(t):
    """A hard limit answers 429 with the model, not an error envelope, says when to come back, and stores nothing."""
    meter, subject, _ = quota(t, 10, **HARD)
    consume(t.ws, meter, subject, 9).expect(201)
    answer = consume(t.ws, meter, subject, 2)
    body = answer.data(429)
    check("error" not in body and "event" not in body, f"a refusal is no envelope and has no event: {body}")
    like(body, {"accepted": False, "replayed": False, "evaluation_failed": False}, "answer")
    like(body["quota"], {"allowed": False, "state": "exceeded", "current": 9, "projected": 11, "limit": 10, "remaining": 0, "overage": 1}, "quota")
    check(isinstance(body["quota"]["retry_after_seconds"], int) and body["quota"]["retry_after_seconds"] > 0, "whole seconds to the end of the period")
    eq(answer.header("Retry-After"), str(body["quota"]["retry_after_seconds"]), "Retry-After: gateways read only the header")
    eq(len(stored(t, meter)), 1, "stored events")


@case
def exactly_the_limit_fits(t):
    """The last unit is granted, as exceeded; the next is not."""
    meter, subject, _ = quota(t, 3, **HARD)
    consume(t.ws, meter, subject, 2).expect(201)
    like(consume(t.ws, meter, subject, 1).data(201)["quota"], {"allowed": True, "state": "exceeded", "remaining": 0, "overage": 0}, "quota")
    consume(t.ws, meter, subject, 0.001).expect(429)


@case
def a_hard_limit_grants_what_it_says(t):
    """Simultaneous callers get exactly the limit between them."""
    meter, subject, _ = quota(t, 7, **HARD)
    answers = race(lambda i: consume(t.ws, meter, subject, 1).expect(201, 429).status, 16)
    eq(sorted(map(str, answers)), ["201"] * 7 + ["429"] * 9, "statuses")
    eq(len(stored(t, meter)), 7, "stored events")


@case
def an_advisory_limit_never_refuses(t):
    """The overrun is stored and reported with 201."""
    meter, subject, _ = quota(t, 5)
    body = consume(t.ws, meter, subject, 8).data(201)
    like(body["quota"], {"allowed": False, "state": "exceeded", "enforcement": "advisory", "overage": 3}, "quota")
    eq(len(stored(t, meter)), 1, "stored events")


@case
def without_a_plan(t):
    """no_plan and not_in_plan are allowed and recorded."""
    free = t.ws.meter()["name"]
    body = consume(t.ws, free, uid("org")).data(201)
    like(body["quota"], {"allowed": True, "state": "no_plan", "limit": 0, "enforcement": "advisory", "failure_policy": "fail_open"}, "quota")
    check("plan_id" not in body["quota"] and "period" not in body["quota"], f"no plan fields: {body['quota']}")
    _, subject, plan = quota(t, 1, **HARD)
    body = consume(t.ws, free, subject).data(201)
    like(body["quota"], {"allowed": True, "state": "not_in_plan", "plan_id": plan["id"]}, "quota")


@case
def every_period_is_judged(t):
    """A hard month limit behind a day limit refuses."""
    meter = t.ws.meter()["name"]
    plan = t.ws.plan(meter, limits=[{"meter": meter, "limit": 100, "period": "day"}, {"meter": meter, "limit": 2, "period": "month", "enforcement": "hard"}])
    subject = uid("org")
    t.ws.assign(subject, plan["id"])
    consume(t.ws, meter, subject, 2).expect(201)
    like(consume(t.ws, meter, subject, 1).data(429)["quota"], {"period": "month", "limit": 2}, "quota")


@cases_from([(a, a, *row) for a, row in {"sum": ([5, 9], 14), "count": ([5, 9], 2), "max": ([5, 9], 9), "last": ([9, 5], 5), "first": ([5, 9], 5),
                                         "min": ([5, 9], 5), "avg": ([5, 9], 7)}.items()])
def projections(t, aggregation, quantities, expected):
    """The projected value is what the counter will hold."""
    meter, subject, _ = quota(t, 1000, aggregation)
    for quantity in quantities:
        body = consume(t.ws, meter, subject, quantity).data(201)
    eq(body["quota"]["projected"], expected, "projected")
    eq(body["quota"]["quantity"], quantities[-1], "quantity")


@case
def plain_writes_are_not_refused(t):
    """Hard limits bind consumption only, and count what plain writes added."""
    meter, subject, _ = quota(t, 3, **HARD)
    t.ws.use(meter, subject, 5)
    like(consume(t.ws, meter, subject, 1).data(429)["quota"], {"current": 5, "projected": 6}, "quota")


@cases_from([("no-key", {"idempotency_key": " "}, "invalid_input"), ("subject", {"subject": "a b"}, "invalid_input"), ("no-meter", {"meter": ""}, "invalid_input"),
             ("zero", {"quantity": 0}, "invalid_input"), ("negative", {"quantity": -1}, "invalid_input"), ("absent", {"quantity": None}, "invalid_input"),
             ("text", {"quantity": "1"}, "invalid_json"), ("time", {"timestamp": "noon"}, "invalid_timestamp")])
def consume_refused(t, change, code):
    """What is invalid is 400, decides nothing and stores nothing."""
    meter, subject, _ = quota(t)
    key = uid("c")
    body = dict({"idempotency_key": key, "meter": meter, "subject": subject, "quantity": 1}, **change)
    t.ws.post("/v1/entitlements/consume", body).error(400, code)
    t.ws.get(decision_path(key)).error(404, "not_found")
    eq(stored(t, meter), [], "stored events")


@case
def consume_unknown_meter(t):
    """404, and nothing is decided."""
    key = uid("c")
    consume(t.ws, uid("nosuch"), "s", key=key).error(404, "not_found")
    t.ws.get(decision_path(key)).error(404, "not_found")


# ---------------------------------------------------------------- replays

@case
def replay_of_an_acceptance(t):
    """The same key answers the first decision, whatever the body says now."""
    meter, subject, _ = quota(t, 10, **HARD)
    key = uid("c")
    first = consume(t.ws, meter, subject, 4, key).data(201)
    again = consume(t.ws, meter, subject, 9, key, metadata={"other": True}).data(201)
    like(again, dict(first, replayed=True), "replay")
    eq(len(stored(t, meter)), 1, "stored events")


@case
def replay_of_a_refusal(t):
    """A refusal is remembered under its key, also when there is room again."""
    meter, subject, _ = quota(t, 1, **HARD)
    key = uid("c")
    consume(t.ws, meter, subject, 2, key).expect(429)
    consume(t.ws, meter, subject, 1).expect(201)
    like(consume(t.ws, meter, subject, 1, key).data(429), {"accepted": False, "replayed": True}, "replay")


@case
def an_event_with_the_key_is_accepted(t):
    """Usage writes and consumption share the keys."""
    meter, subject, _ = quota(t, 1, **HARD)
    key = uid("k")
    event = t.ws.use(meter, subject, 5, idempotency_key=key)
    body = consume(t.ws, meter, subject, 1, key).data(201)
    like(body, {"accepted": True, "event": {"id": event["id"], "quantity": 5}}, "answer")
    other = uid("c")
    consume(t.ws, meter, uid("org"), 1, other).expect(201)
    eq(t.ws.use(meter, "s9", 3, idempotency_key=other)["quantity"], 1, "a write with the key of a decision answers its event")


@case
def simultaneous_calls_with_one_key(t):
    """One decision, one event."""
    meter, subject, _ = quota(t, 10, **HARD)
    key = uid("c")

    answers = race(lambda _: consume(t.ws, meter, subject, 1, key).data(201), 12)
    failed = [a for a in answers if not isinstance(a, dict)]
    eq(failed, [], "failed calls")
    eq({a["event"]["id"] for a in answers}, {answers[0]["event"]["id"]}, "events")
    eq(sum(not a["replayed"] for a in answers), 1, "first decisions")
    eq(len(stored(t, meter)), 1, "stored events")


# ---------------------------------------------------------------- decisions

@case
def a_decision_is_kept(t):
    """Accepted and refused calls can be read back, keys percent-encoded."""
    meter, subject, _ = quota(t, 1, **HARD)
    yes, no = f"a/b {uid('c')}", uid("c")
    made = consume(t.ws, meter, subject, 1, yes).data(201)
    refused = consume(t.ws, meter, subject, 1, no).data(429)
    got = t.ws.get(decision_path(yes)).data()
    like(got, {"idempotency_key": yes, "accepted": True, "evaluation_failed": False, "event_id": made["event"]["id"], "quota": made["quota"]}, "decision")
    recent(got["created_at"], "created_at")
    got = t.ws.get(decision_path(no)).data()
    like(got, {"idempotency_key": no, "accepted": False, "quota": refused["quota"]}, "decision")
    check("event_id" not in got, "a refusal has no event")
    t.ws.get(decision_path(uid("nosuch"))).error(404, "not_found")
    t.other.get(decision_path(no)).error(404, "not_found")


@case
def decisions_are_listed(t):
    """Newest first, in pages, by outcome, subject, meter, enforcement and state."""
    ws = t.new_workspace()
    meter, subject, _ = quota(t, 2, ws=ws, **HARD)
    keys = [uid("c") for _ in range(4)]
    for key in keys:
        consume(ws, meter, subject, 1, key).expect(201, 429)
    fetch = lambda c=None, **q: ws.get("/v1/entitlements/decisions", query=dict({"limit": 3}, **({"cursor": c} if c else {}), **q))  # noqa: E731
    eq([d["idempotency_key"] for page in pages(lambda c: fetch(c)) for d in page], keys[::-1], "order")
    count = lambda **q: len(fetch(**q).items())  # noqa: E731
    eq((count(outcome="accepted"), count(outcome="REJECTED"), count(outcome="all", limit=200)), (2, 2, 4), "by outcome")
    eq((count(subject="nobody"), count(meter=meter), count(enforcement="hard"), count(state="exceeded")), (0, 3, 3, 3), "by word")
    eq((count(evaluation_failed="true"), count(evaluation_failed="false")), (0, 3), "by failure")
    fetch(outcome="maybe").error(400, "invalid_input")
    fetch(evaluation_failed="maybe").error(400, "invalid_evaluation_failed")
    ws.get("/v1/entitlements/decisions?limit=0").error(400, "invalid_limit")


@case
def consumption_is_ingestion(t):
    """An accepted call is a run of kind single, a refused one is none."""
    ws = t.new_workspace()
    meter, subject, _ = quota(t, 1, ws=ws, **HARD)
    consume(ws, meter, subject, 1).expect(201)
    consume(ws, meter, subject, 1).expect(429)
    runs = ws.get("/v1/usageingestions").items()
    like(runs, [{"kind": "single", "accepted": 1, "duplicates": 0, "failed": 0}], "runs")


@case
def the_plan_of_now_decides(t):
    """A timestamp before the assignment leads to no other plan, and to no other period."""
    meter, subject, _ = quota(t, 5, **HARD)
    body = consume(t.ws, meter, subject, 1, timestamp=ago(hours=3)).data(201)
    like(body["quota"], {"state": "ok", "enforcement": "hard", "projected": 1, "limit": 5}, "quota")


# ---------------------------------------------------------------- who may

@case
def scopes_of_consumption(t):
    """usage:write and plans:read for consuming, usage:read and plans:read for reading."""
    meter, subject, _ = quota(t)
    key = uid("c")
    consume(t.ws.as_key(["usage:write", "plans:read"]), meter, subject, key=key).expect(201)
    for scopes in (["usage:write"], ["plans:read"], ["usage:read", "plans:read"]):
        consume(t.ws.as_key(scopes), meter, subject).error(403, "forbidden")
    t.ws.as_key(["usage:read", "plans:read"]).get(decision_path(key)).expect(200)
    for scopes in (["usage:read"], ["plans:read"], ["usage:write", "plans:read"]):
        t.ws.as_key(scopes).get(decision_path(key)).error(403, "forbidden")
        t.ws.as_key(scopes).get("/v1/entitlements/decisions").error(403, "forbidden")


@case
def meters_of_a_key(t):
    """A key for one meter neither consumes nor reads decisions of another, not even by its idempotency key."""
    mine, subject, _ = quota(t)
    theirs, _, _ = quota(t)
    key = uid("c")
    consume(t.ws, theirs, subject, key=key).expect(201)
    who = t.ws.as_key(["*"], allowed_meters=[mine])
    consume(who, mine, subject).expect(201)
    consume(who, theirs, subject).error(403, "forbidden")
    consume(who, mine, subject, key=key).error(403, "forbidden")
    who.get(decision_path(key)).error(403, "forbidden")
    who.get("/v1/entitlements/decisions").error(403, "forbidden")
    eq([d["quota"]["meter"] for d in who.get("/v1/entitlements/decisions", query={"meter": mine}).items()], [mine], "own decisions")
