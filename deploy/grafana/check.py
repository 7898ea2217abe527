"""Asks a Prometheus, which watches a running server and a worker, every query of the dashboard and of the alerts.

Usage: check.py http://127.0.0.1:9090 dashboard.json alerts.yml

Each must be answered. Each metric in it must exist: measured now, or counted by the source (what only a fault counts is
not there before the first fault). A query over what is measured must have an answer.
"""
import json
import pathlib
import re
import sys
import urllib.parse
import urllib.request

base, dashboard, alerts = sys.argv[1:]


def ask(path, **parameters):
    url = f"{base}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return json.load(answer)["data"], None
    except urllib.error.HTTPError as error:
        return None, json.load(error).get("error", str(error))


measured = set(ask("label/__name__/values")[0])
source = "".join(path.read_text(encoding="utf-8") for path in pathlib.Path("src").rglob("*.rs"))
counted = set(re.findall(r'"(open_spanner_[a-z0-9_]+)"', source))
endings = re.compile(r"_(bucket|sum|count)$")

queries = []
for panel in json.load(open(dashboard, encoding="utf-8"))["panels"]:
    for target in panel.get("targets", []):
        expression = target["expr"].replace("$__rate_interval", "10s").replace("$instance", ".*")
        queries.append((f"panel {panel['title']}", expression))
text = open(alerts, encoding="utf-8").read()
for name, expression in re.findall(r"- alert: (\w+)\n\s+expr: (\|\n(?:\s{10,}.*\n)+|.*)", text):
    queries.append((f"alert {name}", expression.removeprefix("|")))

wrong, answered = [], 0
for name, expression in queries:
    data, problem = ask("query", query=expression)
    if problem:
        wrong.append(f"{name}: {problem}")
        continue
    metrics = set(re.findall(r"\b(open_spanner_[a-z0-9_]+|up)\b(?!\s*:)", re.sub(r'"[^"]*"', '""', expression)))
    for metric in metrics - measured:
        if endings.sub("", metric) not in counted and metric not in counted:
            wrong.append(f"{name}: nothing counts {metric}")
    for metric in metrics & measured:
        # each label that the query names is one that the metric has
        known = {label for series in ask("series", **{"match[]": metric})[0] for label in series}
        inside = re.findall(metric + r"\{([^}]*)\}", expression)
        used = {label for labels in inside for label in re.findall(r'(\w+)\s*(?:=~|!~|!=|=)', labels)}
        grouped = {label.strip() for labels in re.findall(r"by \(([^)]*)\)", expression) for label in labels.split(",")}
        if len(metrics) > 1:
            grouped = set()
        for label in (used | grouped) - known:
            wrong.append(f"{name}: {metric} has no label {label}")
    if name.startswith("panel") and metrics <= measured:
        answered += 1
        if not data["result"]:
            wrong.append(f"{name}: no answer to {expression}")
print(f"deploy/grafana/check.py: {len(queries)} queries asked, {answered} panels with numbers", file=sys.stderr)
print("\n".join(wrong), end="\n" if wrong else "")
sys.exit(1 if wrong else 0)
