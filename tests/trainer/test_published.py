"""timm's models by name and tag, and from a Hugging Face Hub on loopback, which processes of their own ask."""

import json
import os
import subprocess
import sys
from http.server import SimpleHTTPRequestHandler
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from web import served

from trainer.config import UsageError
from trainer.models import build_model
from trainer.published import published, without_network
from trainer.shards import Sample, encode_jpeg, write_shards

ROOT = Path(__file__).parents[2]
REPOSITORY = "someone/tiny"


class Hub(SimpleHTTPRequestHandler):
    """As much of the Hub as its client asks for to download a file: where it is, which version, how large."""

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        owner, name, *rest = self.path.strip("/").split("/")
        path = Path(self.directory, owner, name, rest[-1] if rest[:2] == ["resolve", "main"] else "none")
        known = path.is_file()
        content = path.read_bytes() if known else b""
        self.send_response(200 if known else 404)
        if not known:
            missing = "EntryNotFound" if path.parent.is_dir() else "RepoNotFound"
            self.send_header("X-Error-Code", missing)
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("ETag", f'"{len(content)}-{path.name}"')
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """Address of a hub with one small model, and that model."""
    folder = tmp_path_factory.mktemp("hub")
    torch.manual_seed(0)
    model = build_model("timm:test_resnet", 6)
    repository = folder / REPOSITORY
    repository.mkdir(parents=True)
    save_file(model.state_dict(), repository / "model.safetensors")
    config = dict(model.pretrained_cfg) | {"num_classes": 6, "tag": "mine"}
    (repository / "config.json").write_text(
        json.dumps({"architecture": "test_resnet", "num_classes": 6, "pretrained_cfg": config})
    )
    with served(Hub, directory=str(folder)) as address:
        yield address, model


def ask(code, endpoint, home, **more):
    """Run code in a process of its own: the client reads its environment once, as it is imported."""
    start = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); sys.path.insert(0, {str(ROOT / 'tests')!r})\n"
        "import conftest, timm_on_cpu\n"
    )
    environment = os.environ | {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "NO_PROXY": "127.0.0.1"} | more
    done = subprocess.run(
        [sys.executable, "-c", start + code], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_model_of_the_hub_with_its_weights(hub, tmp_path):
    endpoint, model = hub
    samples = [Sample(str(label), encode_jpeg(Image.new("RGB", (32, 32))), label) for label in range(6)]
    write_shards(samples, tmp_path / "data", "val", list("abcdef"), "drawn")
    name = f"timm:hf-hub:{REPOSITORY}"
    code = f"""
import torch
from trainer.evaluate.subject import load_subject
from trainer.models import build_model
from trainer.published import published, without_network
from trainer.weights import load_weights
model = build_model({name!r}, 6)
assert load_weights(model, "pretrained", name={name!r}).head == "own"
torch.save(model.state_dict(), {str(tmp_path / "got.pt")!r})
subject = load_subject("pretrained", {str(tmp_path / "data")!r}, {{"model": {name!r}}})
assert (subject.label, torch.equal(subject.model.fc.weight, model.fc.weight)) == ({name!r}, True)
print(without_network({name!r}))
"""
    assert ask(code, endpoint, tmp_path / "home") == "timm:test_resnet\n"
    got = torch.load(tmp_path / "got.pt", weights_only=True)
    for key, value in model.state_dict().items():
        assert torch.equal(got[key], value), key
    offline = f"from trainer.published import published; print(len(published({name!r})['model']))"
    assert ask(offline, endpoint, tmp_path / "home", HF_HUB_OFFLINE="1") == f"{len(got)}\n", "no copy was kept"


@pytest.mark.parametrize("name", ["timm:hf-hub:someone/else", "timm:resnet18.a1_in1k"])
def test_what_the_hub_has_not_is_one_line(hub, tmp_path, name):
    code = f"""
from trainer.config import UsageError
from trainer.published import published
try:
    published({name!r})
except UsageError as error:
    print(error)
"""
    line = ask(code, hub[0], tmp_path)
    assert line.count("\n") == 1
    assert "has no such repository" in line
    assert f"the weights of {name!r} cannot be downloaded" in line


def test_no_network_is_one_line_and_nothing_of_the_client(tmp_path):
    code = """
from trainer.config import UsageError
from trainer.models import build_model
try:
    build_model("timm:hf-hub:someone/tiny", 3)
except UsageError as error:
    print(error)
"""
    line = ask(code, "http://127.0.0.1:9", tmp_path, HF_HUB_OFFLINE="1")
    assert "its configuration cannot be downloaded: the server does not answer" in line
    assert line.count("\n") == 1


def test_a_name_may_have_the_tag_of_its_weights():
    assert build_model("timm:resnet18.a1_in1k", 3).pretrained_cfg["tag"] == "a1_in1k"
    assert without_network("timm:resnet18.a1_in1k") == "timm:resnet18.a1_in1k"
    for name, words in (
        ("timm:resnet18.a9_in1k", "has no weights 'a9_in1k' of resnet18; it has .*a1_in1k"),
        ("timm:resnt18.a1_in1k", "has no 'resnt18'; did you mean resnet18"),
        ("timm:resnt18", "did you mean resnet18"),
    ):
        with pytest.raises(UsageError, match=words):
            build_model(name, 3)


def test_only_timm_publishes():
    with pytest.raises(UsageError, match="^checkpoint=pretrained: .*give a file, or model timm:resnet18"):
        published("resnet18")
    with pytest.raises(UsageError, match="knows no published weights of 'timm:darknet17'; give a file"):
        published("timm:darknet17")
