"""Numbers keep their digits: quantities, totals, metadata and filters are decimals, not floats."""
from kit import all_of, case, cases_from, check, cond, eq, uid

FROM, TO, NOON = "2026-06-01T00:00:00Z", "2026-07-01T00:00:00Z", "2026-06-15T12:00:00Z"


def write(t, meter, quantity, metadata="{}", **more):
    """One event whose numbers are written as this text."""
    raw = f'{{"meter":"{meter}","subject":"s1","quantity":{quantity},"timestamp":"{NOON}","metadata":{metadata}}}'
    return t.ws.post("/v1/usages", raw=raw)


def total(t, meter):
    """The text of the one bucket's quantity."""
    answer = t.ws.get("/v1/usages", query={"meter": meter, "from": FROM, "to": TO, "bucket_size": "month"}).expect(200)
    eq(len(answer.json()), 1, "buckets")
    return answer.text.split('"quantity":')[1].split(",")[0].rstrip("}]\n")


@cases_from([("tenths", ["0.1"] * 10, "1"), ("digits", ["1234567890123456789012345678"], "1234567890123456789012345678"[:1] + ".234567890123456789012345678e+27"),
             ("small", ["0.000001", "0.000002"], "0.000003"), ("wide", ["1e20", "1e-6"], "100000000000000000000.000001"), ("spelling", ["1.50", "15e-1"], "3")])
def sums_are_exact(t, quantities, expected):
    """A total is the decimal sum of what was sent."""
    meter = t.ws.meter()["name"]
    for quantity in quantities:
        write(t, meter, quantity).expect(201)
    eq(total(t, meter), expected, "total")


@case
def too_many_digits(t):
    """60 significant digits are kept, 61 are 400; beyond the exponents of floats it is no JSON."""
    meter = t.ws.meter()["name"]
    write(t, meter, "0." + "3" * 60).expect(201)
    write(t, meter, "0." + "3" * 61).error(400, "invalid_input")
    write(t, meter, "1e400").error(400, "invalid_json")


@case
def metadata_keeps_its_numbers(t):
    """Integers beyond 2^53 come back as they were sent, in one spelling."""
    meter = t.ws.meter()["name"]
    answer = write(t, meter, "1", '{"big":9007199254740993,"one":1.0,"list":[12345678901234567890]}').expect(201)
    check('"metadata":{"big":9007199254740993,"list":[12345678901234567890],"one":1}' in answer.text, answer.text)


@case
def filters_compare_as_numbers(t):
    """100 is more than 50, and a difference in the last digit is one."""
    meter = t.ws.meter()["name"]
    for n in ("9", "50", "100", "9007199254740993"):
        write(t, meter, "1", f'{{"n":{n}}}').expect(201)
    find = lambda *rules: len(t.ws.post("/v1/usageevents/search", {"meter": meter, "filter": all_of(*rules)}).items())  # noqa: E731
    eq(find(cond("metadata.n", "gt", 50)), 2, "gt 50")
    eq(find(cond("metadata.n", "eq", 9007199254740993)), 1, "eq 2^53 + 1")
    eq(find(cond("metadata.n", "eq", 9007199254740992)), 0, "eq 2^53")
    eq(find(cond("metadata.n", "eq", "50")), 0, "a number is no text")


@case
def halves_of_a_second_are_instants(t):
    """An event half a second past midnight belongs to the day that begins at midnight."""
    meter = t.ws.meter()["name"]
    t.ws.use(meter, uid("s"), 1, timestamp="2026-06-02T00:00:00.5Z")
    count = lambda start, end: len(t.ws.get("/v1/usageevents", query={"meter": meter, "from": start, "to": end}).items())  # noqa: E731
    eq((count("2026-06-02T00:00:00Z", "2026-06-03T00:00:00Z"), count("2026-06-01T00:00:00Z", "2026-06-02T00:00:00Z")), (1, 0), "days")
    eq((count("2026-06-02T00:00:00.5Z", "2026-06-03T00:00:00Z"), count("2026-06-02T00:00:00.500001Z", "2026-06-03T00:00:00Z")), (1, 0), "microseconds")


@case
def replays_say_so(t):
    """A replayed write carries Idempotency-Replayed, a first one does not."""
    meter, key = t.ws.meter()["name"], uid("k")
    body = {"meter": meter, "subject": "s1", "quantity": 1, "idempotency_key": key}
    eq(t.ws.post("/v1/usages", body).expect(201).header("Idempotency-Replayed"), "", "first")
    eq(t.ws.post("/v1/usages", body).expect(201).header("Idempotency-Replayed"), "true", "again")
