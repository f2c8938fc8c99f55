"""The shipped configuration on real hosts: `ray up`, `ray submit` as typed, a host lost in mid-trial, `ray down`."""

import json
import shlex
import sys
import time

import pytest
from hosts import HOME

from sweeps.tracking.runs import TRIAL_TAG

CONFIG = "cluster/onprem.yaml"
REQUEST = """
import sys, urllib.request
url, headers, body = sys.argv[1], dict(header.split("=") for header in sys.argv[3:]), sys.argv[2].encode() or None
try:
    with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=10) as answer:
        print(answer.status, answer.read().decode())
except urllib.error.HTTPError as error:
    print(error.code)
except OSError:
    print("none")
"""


def request(hosts, name, url, *headers, body=""):
    """Status and body of the answer that a host gets."""
    hosts.disk(name, f"{HOME}/request.py").write_text(REQUEST)
    line = shlex.join(["python", "request.py", url, body, *headers])
    return hosts.run(name, f"cd && {line}")[1].strip()


def ok(result):
    status, out = result
    assert status == 0, out[-4000:]
    return out


def until(condition, process, seconds=200):
    """Wait for it, as long as the process runs."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert process.poll() is None, "it has ended before"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


def trains_on(hosts):
    return {name for name in hosts.names if hosts.processes(name, "RayTrainWorker")}


def runs(hosts):
    """What the user sees of MLflow through the forwarded port, by name."""
    url = "http://127.0.0.1:5000/api/2.0/mlflow"
    answer = request(hosts, "laptop", f"{url}/experiments/get-by-name?experiment_name=heatmap-sweeps")
    experiment = json.loads(answer.removeprefix("200 "))["experiment"]["experiment_id"]
    body = json.dumps({"experiment_ids": [experiment]})
    answer = request(hosts, "laptop", f"{url}/runs/search", "Content-Type=application/json", body=body)
    return {run["info"]["run_name"]: run for run in json.loads(answer.removeprefix("200 "))["runs"]}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_sweep_is_submitted_loses_a_host_and_its_pick_is_resumed(hosts):
    storage, project = hosts.shared / "sweeps", hosts.disk("laptop", f"{HOME}/project")
    ok(hosts.run("laptop", "ray get-auth-token --generate"))
    token = hosts.disk("laptop", f"{HOME}/.ray/auth_token").read_text().strip()
    said = ok(hosts.run("laptop", f"ray up -y {CONFIG}"))
    forward = hosts.start("laptop", f"ray exec -p 8265 -p 5000 {CONFIG} 'sleep 600'")
    for port in (5000, 8265):
        until(lambda at=f"http://127.0.0.1:{port}/": request(hosts, "laptop", at)[:3] == "200", forward)

    # What is closed, and to whom.
    assert request(hosts, "laptop", "http://127.0.0.1:5000/api/2.0/mlflow/experiments/search", "Host=evil") == "403"
    assert request(hosts, "laptop", "http://127.0.0.1:8265/api/version") == "401"
    assert request(hosts, "laptop", "http://127.0.0.1:8265/api/version", f"Authorization=Bearer {token}")[:3] == "200"
    for port in (5000, 8265):
        assert request(hosts, "laptop", f"http://{hosts.address['head']}:{port}/") == "none"

    # Its own folder on each host is no storage; the code comes from the laptop as `ray job submit` has it.
    job = "ray job submit --working-dir . -- python sweeps/all_regularizers.py --storage /home/host/mine"
    status, out = hosts.run("laptop", f"RAY_AUTH_MODE=token RAY_API_SERVER_ADDRESS=http://127.0.0.1:8265 {job}")
    assert status != 0
    assert "error: --storage /home/host/mine: what one node writes there, another does not see" in out
    said += out

    sweep = hosts.start(
        "laptop",
        f"ray submit {CONFIG} sweeps/all_regularizers.py -- --regularizers l2 --strengths 3 --scheduler none "
        "--epochs 3 --images-per-epoch 512 --robust-images 8 --seeds 0 --workers-per-trial 2 --name shared "
        "> ~/sweep.log 2>&1",
    )
    until(lambda: list(storage.glob("shared/trials/*/epoch_0001/state.pt.sha256")), sweep)
    used = trains_on(hosts)
    assert len(used) == 2, "the workers of one trial are on two hosts"
    lost = (used - {"head"}).pop()
    hosts.cut_power(lost)
    status = sweep.wait(timeout=300)
    out = hosts.disk("laptop", f"{HOME}/sweep.log").read_text()
    said += out
    assert status == 0, out[-4000:]
    assert "joining the Ray cluster at" in out
    assert "3 nodes with 3 CPU and 0 GPU: 1 trial of 2 workers x 1 CPU at a time" in out
    offered = "ray submit CONFIG sweeps/resume_best.py -- --name shared" in out
    assert offered == ("Pick: none, trial" not in out), "which wins may differ between CPUs"
    result = json.loads((storage / "shared/result.json").read_text())
    assert [trial["status"] for trial in result["trials"]] == ["finished"] * 2

    # An edit reaches every worker, though the copy beside Ray on its host is the old one.
    script, old = project / "trainer/ray_trial.py", "    failure = failure_of(config.folder)\n"
    text = script.read_text()
    assert text.count(old) == 1
    edit = '    Path(config.folder).parent.joinpath(f"edited-{os.uname().nodename}").touch()\n'
    script.write_text(text.replace(old, old + edit))
    ok(hosts.run("laptop", f"ray rsync-up {CONFIG}"))
    said += ok(hosts.run("laptop", f"ray submit {CONFIG} sweeps/resume_best.py -- --name shared --epochs 1"))
    left = {"head", "one", "two"} - {lost}
    assert {path.name for path in storage.glob("shared/trials/edited-*")} == {f"edited-{name}" for name in left}
    for name in left - {"head"}:
        assert "edited-" not in hosts.disk(name, f"{HOME}/heatmap-sweeps/trainer/ray_trial.py").read_text()

    seen = runs(hosts)
    assert len(seen) == 4
    assert {run["info"]["status"] for run in seen.values()} == {"FINISHED"}
    (resumed,) = (run for name, run in seen.items() if name.endswith(" resumed"))
    (pick,) = (run for run in seen.values() if {"key": TRIAL_TAG, "value": result["pick"]} in run["data"]["tags"])
    assert {"key": "resumed_from", "value": pick["info"]["run_id"]} in resumed["data"]["tags"]

    assert token not in said
    assert token not in json.dumps(seen)
    assert not holders(hosts, token), "the token is in nothing but its own file"

    ok(hosts.run("laptop", f"ray down -y {CONFIG}"))
    assert not hosts.processes("head", "raylet/raylet")
    forward.kill()


def holders(hosts, token):
    """Files of all hosts and of the shared folder that have the token in them."""
    places = [hosts.shared]
    for name in ("laptop", "head"):
        packages = hosts.disk(name, sys.prefix)
        places.append(hosts.disk(name, HOME))
        places += [path for path in hosts.disk(name, "/tmp").iterdir() if path not in packages.parents]
    return [
        path
        for place in places
        for path in ([place] if place.is_file() else place.rglob("*"))
        if path.is_file() and path.name != "auth_token" and token in path.read_text(errors="replace")
    ]
