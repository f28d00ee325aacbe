"""Run by cronjob.yaml: one RayJob for today, and its end as this pod's exit status. Standard library only, in the recsys image.

Three verbs of the Kubernetes API: list the RayJobs, to find one that is not finished; read the suspended one; create tonight's. What
it may do is the Role in cronjob.yaml.
"""

import json
import os
import ssl
import sys
import time
import urllib.error
import urllib.request
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
TEMPLATE = "recsys-nightly"
NIGHT = "recsys/night"  # the label of what this makes
FINISHED = ("Complete", "Failed")
POLL_SECONDS = 20.0
LOST_SECONDS = 600.0  # without an answer of the API


def api(url: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """The answer to one request; a body is created, without one it is read."""
    headers = {"Accept": "application/json", "Content-Type": "application/json"}
    headers["Authorization"] = f"Bearer {(ACCOUNT / 'token').read_text(encoding='utf-8').strip()}"  # read anew: Kubernetes renews it
    request = urllib.request.Request(url, json.dumps(body).encode() if body is not None else None, headers)
    context = ssl.create_default_context(cafile=str(ACCOUNT / "ca.crt")) if url.startswith("https:") else None
    with urllib.request.urlopen(request, timeout=30, context=context) as response:
        return json.load(response)


def night(template: dict[str, Any], day: str) -> dict[str, Any]:
    """Tonight's RayJob: the suspended one's spec, not suspended, with the date in its name and its entrypoint."""
    spec = {**template["spec"], "suspend": False, "entrypoint": template["spec"]["entrypoint"].replace("TODAY", day)}
    metadata = {"name": f"{TEMPLATE}-{day}", "labels": {NIGHT: day}}
    return {"apiVersion": template["apiVersion"], "kind": "RayJob", "metadata": metadata, "spec": spec}


def main(server: str, namespace: str) -> int:
    """0 when tonight's RayJob succeeded, 1 otherwise."""
    jobs = f"{server}/apis/ray.io/v1/namespaces/{namespace}/rayjobs"
    day = datetime.now(UTC).date().isoformat()
    made = night(api(f"{jobs}/{TEMPLATE}"), day)
    name = made["metadata"]["name"]
    running = [
        job["metadata"]["name"]
        for job in api(jobs)["items"]
        if NIGHT in job["metadata"].get("labels", {}) and job.get("status", {}).get("jobDeploymentStatus") not in FINISHED
    ]
    if running:
        print(f"{name}: not started, {running[0]} is not finished. Wait for it, or delete it.")
        return 1
    try:
        api(jobs, made)
    except urllib.error.HTTPError as error:
        if error.code != 409:
            raise
        print(f"{name}: ran already. Delete that RayJob to run the night again.")
        return 1
    print(f"{name}: created", flush=True)
    heard = time.monotonic()
    while True:
        try:
            status: dict[str, str] = api(f"{jobs}/{name}").get("status", {})
            heard = time.monotonic()
        except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
            if isinstance(error, urllib.error.HTTPError) and error.code == 404:
                print(f"{name}: deleted")
                return 1
            if time.monotonic() - heard > LOST_SECONDS:
                raise
            status = {}
        if status.get("jobDeploymentStatus") in FINISHED:
            print(f"{name}: {status['jobDeploymentStatus']} {status.get('jobStatus', '')} {status.get('message', '')}")
            return 0 if status.get("jobStatus") == "SUCCEEDED" else 1
        time.sleep(POLL_SECONDS)


if __name__ == "__main__":
    where = f"https://{os.environ['KUBERNETES_SERVICE_HOST']}:{os.environ['KUBERNETES_SERVICE_PORT_HTTPS']}"
    sys.exit(main(where, (ACCOUNT / "namespace").read_text(encoding="utf-8").strip()))
