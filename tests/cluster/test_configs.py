"""The shipped configurations: complete, closed, of the versions that are tested, and clear about what is missing."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "cluster"
LAUNCHED = ["gpu.yaml", "gcp.yaml", "onprem.yaml"]
PINNED = dict(re.findall(r"^([\w.-]+)==([\w.]+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
VALUE = re.compile(r"^( +)# ((\w+): &\3 )", re.MULTILINE)


def shipped(name):
    return (FOLDER / name).read_text()


def completed(name):
    """As a user completes it, with the values of its examples."""
    return VALUE.sub(r"\1\2", shipped(name))


def launched(name):
    """What Ray makes of it."""
    config = prepare_config(yaml.safe_load(completed(name)))
    validate_config(config)
    return config


@pytest.mark.parametrize("name", LAUNCHED)
def test_ray_accepts_it_and_nothing_is_open(name):
    config = launched(name)
    (head,) = (command for command in config["head_start_ray_commands"] if "ray start" in command)
    (worker,) = (command for command in config["worker_start_ray_commands"] if "ray start" in command)
    assert "--dashboard-host=127.0.0.1" in head
    assert "--autoscaling-config=~/ray_bootstrap_config.yaml" in head
    assert ("RAY_enable_autoscaler_v2=0 ray start" in head) == (name == "onprem.yaml")
    assert "--address=$RAY_HEAD_IP:6379" in worker
    assert config["file_mounts"]["~/.ray/auth_token"]
    for mounted, local in config["file_mounts"].items():
        assert mounted.startswith("~/.ray/") or (ROOT / local).exists()
    assert config["setup_commands"][0].startswith("bash ~/heatmap-sweeps/cluster/bootstrap.sh ")


@pytest.mark.parametrize("name", ["gpu.yaml", "gcp.yaml"])
def test_machines_are_spot_first_then_on_demand_and_never_more_than_said(name):
    config = launched(name)
    kinds = {kind: entry for kind, entry in config["available_node_types"].items() if kind != config["head_node_type"]}
    assert kinds["spot"]["priority"] > kinds["on_demand"]["priority"]
    assert "spot" in str(kinds["spot"]["node_config"]).lower()
    assert "spot" not in str(kinds["on_demand"]["node_config"]).lower()
    assert kinds["spot"]["resources"] == kinds["on_demand"]["resources"]
    assert config["max_workers"] == config["metadata"]["most"]
    assert all(kind["min_workers"] == 0 and kind["resources"]["GPU"] for kind in kinds.values())
    assert config["available_node_types"]["head"]["resources"] == {"CPU": 0}
    assert config["idle_timeout_minutes"] <= 15


def test_every_image_has_the_versions_that_are_tested():
    image = f"rayproject/ray:{PINNED['ray']}-py311-gpu"
    assert 'requires-python = ">=3.11,<3.15"' in (ROOT / "pyproject.toml").read_text()
    for name in ("gpu.yaml", "gcp.yaml"):
        assert launched(name)["docker"]["image"] == image
    assert f"FROM {image}\n" in shipped("Dockerfile")
    job, _ = yaml.safe_load_all(completed("kuberay.yaml"))
    assert job["spec"]["rayClusterSpec"]["rayVersion"] == PINNED["ray"]


def test_kubernetes_pods_share_what_they_are_told():
    job, claim = yaml.safe_load_all(completed("kuberay.yaml"))
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    head, (workers,) = cluster["headGroupSpec"], cluster["workerGroupSpecs"]
    assert head["rayStartParams"]["num-cpus"] == "0"
    assert workers["replicas"] == workers["maxReplicas"]
    for group in (head, workers):
        pod = group["template"]["spec"]
        volumes = {volume["name"] for volume in pod["volumes"]}
        for container in pod["containers"]:
            assert container["env"][0] == {"name": "SWEEPS_STORAGE", "value": "s3://my-bucket/sweeps"}
            assert {mount["name"] for mount in container.get("volumeMounts", ())} <= volumes
    assert head["template"]["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]


@pytest.mark.parametrize("name", [*LAUNCHED, "kuberay.yaml"])
def test_a_value_that_is_missing_is_named(name):
    values = [found[2] for found in VALUE.findall(shipped(name))]
    assert len(values) >= 3
    assert {value: f"*{value}" in shipped(name) for value in values} == dict.fromkeys(values, True)
    for value in values:
        text = re.sub(rf"^( +)({value}: &)", r"\1# \2", completed(name), flags=re.MULTILINE)
        with pytest.raises(yaml.YAMLError, match=f"found undefined alias '{value}'"):
            list(yaml.safe_load_all(text))


def test_ray_up_ends_at_once_with_the_missing_value():
    ray = Path(sys.executable).with_name("ray")
    command = [ray, "up", "-y", FOLDER / "gpu.yaml"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ended.returncode != 0
    assert ended.stderr.splitlines()[-4].endswith("found undefined alias 'region'")


@pytest.mark.slow
def test_amazon_is_asked_for_what_it_says(tmp_path):
    (tmp_path / "gpu.yaml").write_text(completed("gpu.yaml"))
    keys = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_EC2_METADATA_DISABLED": "true"}
    ended = subprocess.run(
        [sys.executable, Path(__file__).with_name("aws.py"), tmp_path / "gpu.yaml"],
        env=os.environ | keys | {"HOME": str(tmp_path), "AWS_DEFAULT_REGION": "us-west-2"},
        cwd=ROOT, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    machines = json.loads(ended.stdout.splitlines()[-1])
    assert {name: machine["spot"] for name, machine in machines.items()} == {
        "head": False, "on_demand": False, "spot": True
    }  # fmt: skip
    for name, machine in machines.items():
        assert machine["profile"] == f"heatmap-sweeps-{'head' if name == 'head' else 'worker'}"
        assert machine["tokens"] == "required", "keys of the machine are not for whoever reaches it by a redirect"
        assert machine["groups"], "in the user's own security group alone"


def test_scripts_are_sound_and_no_secret_is_written_down():
    for script in FOLDER.glob("*.sh"):
        subprocess.run(["bash", "-n", script], check=True)
    for path in FOLDER.iterdir():
        assert not re.search(r"AKIA|PRIVATE KEY|[0-9a-f]{40}|(?i:password|secret_)", path.read_text()), path
