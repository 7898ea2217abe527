"""Rules that each rendered pod must keep, whatever the values: restricted, bounded, never cut off in a migration.

Usage: check.py RENDERED.yaml ...
"""
import sys

import yaml

wrong = []


def rule(holds, text):
    if not holds:
        wrong.append(text)


def check_pod(name, kind, pod):
    rule(pod["automountServiceAccountToken"] is False, f"{name}: a token of the cluster is mounted")
    rule(pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] == 65532, f"{name}: user")
    rule(pod["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault", f"{name}: seccomp")
    for container in pod["containers"]:
        security = container["securityContext"]
        rule(security["readOnlyRootFilesystem"] and not security["allowPrivilegeEscalation"], f"{name}: file system, privileges")
        rule(security["capabilities"]["drop"] == ["ALL"], f"{name}: capabilities")
        rule("memory" in container["resources"]["limits"] and "cpu" in container["resources"]["requests"], f"{name}: resources")
        for variable in container["env"]:
            secret = variable["name"].endswith(("SECRET", "DSN"))
            rule(not (secret and "value" in variable), f"{name}: {variable['name']} stands in the manifest")
        if kind == "Job":
            rule(not any(probe in container for probe in ("livenessProbe", "startupProbe")), f"{name}: a probe can end a migration")
            continue
        rule("--no-migrate" in container["args"], f"{name}: changes the schema")
        rule(container["livenessProbe"]["httpGet"]["path"] == "/health", f"{name}: liveness looks at the database")
        rule(container["readinessProbe"]["httpGet"]["path"] == "/ready", f"{name}: readiness")
        start = container["startupProbe"]
        rule(start["httpGet"]["path"] == "/health" and start["periodSeconds"] * start["failureThreshold"] >= 60, f"{name}: start")
        pause = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        rule(pod["terminationGracePeriodSeconds"] > 30 + pause, f"{name}: ended before it has drained")


for path in sys.argv[1:]:
    with open(path, encoding="utf-8") as file:
        documents = [document for document in yaml.safe_load_all(file) if document]
    kinds = [document["kind"] for document in documents]
    rule("Secret" not in kinds and "ConfigMap" not in kinds, f"{path}: the chart makes secrets")
    pods = {d["metadata"]["name"]: d for d in documents if d["kind"] in ("Deployment", "Job")}
    for name, document in pods.items():
        check_pod(f"{path}: {name}", document["kind"], document["spec"]["template"]["spec"])
        if document["kind"] == "Job":
            rule("activeDeadlineSeconds" not in document["spec"], f"{name}: a migration has a deadline")
            rule("pre-upgrade" in document["metadata"]["annotations"]["helm.sh/hook"], f"{name}: is no hook")
    # each pod has a policy, and each policy meets a pod
    parts = {d["spec"]["template"]["metadata"]["labels"]["app.kubernetes.io/component"] for d in pods.values()}
    met = {d["spec"]["podSelector"]["matchLabels"]["app.kubernetes.io/component"] for d in documents if d["kind"] == "NetworkPolicy"}
    rule(parts <= met, f"{path}: no network policy for {parts - met}")
    for budget in (d for d in documents if d["kind"] == "PodDisruptionBudget"):
        rule("minAvailable" not in budget["spec"], f"{path}: nodes cannot be drained")

print("\n".join(wrong))
sys.exit(1 if wrong else 0)
