"""What the user looks at, in a real browser, after a real sweep: MLflow, the report, optuna-dashboard, the model."""

import json
import os
import re
import subprocess
import sys
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import mlflow
import numpy as np
import pytest
import torch
from debian import lacking
from mlflow_server import Server, free_port, run_of, wait_for
from PIL import Image
from playwright.sync_api import sync_playwright
from sklearn.datasets import load_digits
from test_docs import PAGES, commands

from sweeps.results import SweepResult
from sweeps.tracking.runs import SWEEP_TAG
from trainer.evaluate.subject import load_subject
from trainer.models import build_model

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow
ALONE = "MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"  # nothing but this machine is there


def photographs(folder):
    """One folder per class, as a user has them."""
    digits = load_digits()
    for number, (image, label) in enumerate(zip(digits.images[:240], digits.target, strict=False)):
        split = "val" if number % 3 else "train"
        path = folder / "photos" / split / f"digit-{label}" / f"{number:03d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image * 15).astype(np.uint8)).resize((40, 40)).convert("RGB").save(path)


def shown(words):
    """The command of the documentation that holds these words."""
    found = [command for page in PAGES for command in commands(page) if words in " ".join(command)]
    return found[0]


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """A sweep by the README's own commands, made small, and the MLflow server that was told of it."""
    folder = tmp_path_factory.mktemp("newcomer")
    photographs(folder)
    torch.manual_seed(0)
    torch.save(build_model("resnet8", 1000).state_dict(), folder / "resnet50.pth")
    (folder / "sweeps").symlink_to(ROOT / "sweeps")
    server = Server(folder)
    server.start()

    def run(words, *more):
        words = ["resnet8" if word == "resnet50" else word for word in shown(words)]
        module = [] if words[0].endswith(".py") else ["-m"]
        done = subprocess.run(
            [sys.executable, *module, *words, *map(str, more)],
            cwd=folder,
            env=os.environ | {"MLFLOW_TRACKING_URI": server.uri},
            capture_output=True,
            text=True,
            timeout=400,
        )
        assert done.returncode == 0, (words, done.stdout, done.stderr)
        return done

    run("trainer.shards --images photos/train")
    run("trainer.shards --images photos/val")
    done = run(
        "sweeps/all_regularizers.py --data shards",
        "--regularizers", "l2", "--strengths", "3,10", "--scheduler", "none", "--images-per-epoch", 64,
        "--batch-size", 16, "--image-size", 32, "--robust-images", 16, "--seeds", 0, "--name",
        "SWEEP",
    )  # fmt: skip
    assert done.stderr == "", "nothing of Ray's internals"
    experiment = server.client.get_experiment_by_name("heatmap-sweeps").experiment_id
    (parent,) = server.client.search_runs([experiment], f"tags.`{SWEEP_TAG}` = 'SWEEP'")
    yield SimpleNamespace(
        folder=folder, server=server, parent=parent, result=SweepResult.load("SWEEP", f"{folder}/runs"),
        out=done.stdout, run=run, page=f"{server.uri}/#/experiments/{experiment}/runs",
    )  # fmt: skip
    server.kill()


@pytest.fixture(scope="module")
def browser():
    if packages := lacking({"chromium": "chromium"}):
        pytest.skip(f"needs {packages.pop()}, which could not be installed")
    arguments = ["--no-sandbox", "--disable-background-networking", f"--host-resolver-rules={ALONE}"]
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path="/usr/bin/chromium", args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def page(browser):
    """A page that notes what goes wrong in it, and what it asks of other machines."""
    page = browser.new_page(viewport={"width": 1500, "height": 1200})
    page.set_default_timeout(60_000)
    page.wrong, page.asked = [], []
    page.on("console", lambda said: page.wrong.append(said.text) if said.type == "error" else None)
    page.on("pageerror", lambda error: page.wrong.append(str(error)))
    page.on("request", lambda request: page.asked.append(request.url))
    yield page
    page.close()


def test_mlflow_shows_the_sweep_its_trials_their_charts_and_heatmaps(ended, page):
    assert f"{ended.page}?workflowType=machine_learning" in ended.out
    page.goto(f"{ended.page}?workflowType=machine_learning")
    page.get_by_role("link", name="SWEEP", exact=True).wait_for()
    page.get_by_text("shards (").wait_for()  # the data
    parent = page.get_by_role("gridcell").filter(has=page.get_by_role("link", name="SWEEP", exact=True))
    parent.get_by_role("button").first.click()  # unfold
    client = ended.server.client
    names = [client.get_run(run_of(client, row.trial_id)).info.run_name for row in ended.result.trials]  # l2 w=0.13 #01
    assert sorted(name.rpartition("#")[2] for name in names) == ["00", "01", "02", "03"]
    for name in names:
        page.get_by_role("link", name=name, exact=True).wait_for()

    page.goto(f"{ended.page}/{ended.parent.info.run_id}")
    page.get_by_text(re.compile(f"^Pick: .*{ended.result.pick.tag}")).first.wait_for()
    page.get_by_text("Child runs", exact=True).wait_for()
    for artifact in ("figures/accuracies.png", "figures/responses.png", "figures/heatmaps-0.png"):
        _see_picture(page, f"{ended.page}/{ended.parent.info.run_id}/artifacts/{artifact}")

    run = run_of(ended.server.client, ended.result.pick.trial_id)
    page.goto(f"{ended.page}/{run}/model-metrics")
    for chart in ("step/loss", "val/robust_accuracy"):
        page.get_by_placeholder("Search metric charts").fill(chart)
        page.get_by_text(chart.partition("/")[2], exact=True).first.wait_for()
        page.locator(".js-plotly-plot .scatterlayer .trace").first.wait_for()
    page.goto(f"{ended.page}/{run}/system-metrics")
    page.get_by_text("cpu_utilization_percentage").first.wait_for()
    _see_picture(page, f"{ended.page}/{run}/artifacts/gallery.png")
    assert all(url.startswith((ended.server.uri, "data:", "blob:")) for url in page.asked)


def _see_picture(page, address):
    page.goto(address)
    page.wait_for_function("[...document.images].some(image => image.naturalWidth > 300 && image.width > 100)")


def test_runs_are_found_by_the_same_names_everywhere(ended):
    picked = ended.result.pick
    query = f"params.regularizer = '{picked.regularizer}' and metrics.`val/accuracy` >= {picked.accuracy - 1e-9}"
    found = ended.server.client.search_runs([ended.parent.info.experiment_id], f"{query} and tags.state = 'finished'")
    assert run_of(ended.server.client, picked.trial_id) in {run.info.run_id for run in found}
    (queries,) = re.findall(r"```sql\n(.*?)```", (ROOT / "docs/mlflow.md").read_text(), re.DOTALL)
    for query in queries.splitlines():  # with this sweep's names
        filled = re.sub(r">=? [\d.]+", "> -2", query.replace("'ssim'", "'none'"))
        found = ended.server.client.search_runs([ended.parent.info.experiment_id], filled)
        assert bool(found) == ("diverged" not in query), query
    parent = ended.server.client.get_run(ended.parent.info.run_id)
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?", parent.data.tags["mlflow.source.git.commit"])
    assert parent.data.params["selection_rule"].startswith("best robust accuracy")
    assert parent.data.metrics["best/val/robust_accuracy"] == picked.robust_accuracy


@pytest.mark.parametrize("width", [390, 1300], ids=["telephone", "desk"])
def test_the_report_needs_nothing_and_fits(ended, page, width):
    page.set_viewport_size({"width": width, "height": 800})
    address = (ended.folder / "runs/SWEEP/report.html").as_uri()
    page.goto(address)
    assert page.title() == "SWEEP: which regularizer wins, and why"
    broken = page.evaluate("[...document.images].filter(image => !(image.complete && image.naturalWidth)).length")
    shown = page.evaluate("document.images.length")
    assert (shown, broken) == (3, 0)  # accuracies, the effect of the weight, heatmaps
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "nothing is cut off at the side"
    assert page.evaluate("Math.max(...[...document.querySelectorAll('th')].map(th => th.offsetHeight))") < 90, "words"
    assert page.evaluate("Math.min(...[...document.images].map(image => image.width))") > 0.8 * min(width, 500)
    assert {url for url in page.asked if not url.startswith("data:")} == {address}
    assert page.wrong == []


def test_the_report_prints_on_pages_that_cut_nothing_off(ended, page):
    page.goto((ended.folder / "runs/SWEEP/report.html").as_uri())
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 680, "height": 1000})  # A4 between its margins
    assert page.evaluate("[...document.querySelectorAll('table')].every(t => t.scrollWidth <= 680)")
    pdf = page.pdf(format="A4")
    assert 2 <= pdf.count(b"/Type /Page\n") <= 8


def test_optuna_dashboard_opens_on_the_study(ended, page):
    port = free_port()
    command = [
        Path(sys.executable).with_name("optuna-dashboard"),
        ended.folder / "runs/SWEEP/study.journal",
        "--port",
        port,
    ]
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        wait_for(lambda: _answers(f"http://127.0.0.1:{port}/dashboard/"))
        page.goto(f"http://127.0.0.1:{port}/dashboard/")
        page.get_by_text("0. SWEEP").click()
        page.get_by_text("Hyperparameter Importance").first.wait_for()
        for name in ("regularizer", "weight_l2", "val/robust_accuracy"):
            page.locator(".js-plotly-plot").get_by_text(name, exact=True).first.wait_for()
        assert all(url.startswith((f"http://127.0.0.1:{port}/", "data:", "blob:")) for url in page.asked)
    finally:
        process.kill()
        process.wait()


def _answers(address, content=None):
    request = urllib.request.Request(address, content, {"Content-Type": "application/json"} if content else {})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.read()
    except OSError:
        return None


def test_the_winner_is_a_model_that_loads_and_serves(ended):
    mlflow.set_tracking_uri(ended.server.uri)
    try:
        version = ended.server.client.get_model_version_by_alias("SWEEP", "pick")
        assert version.run_id == run_of(ended.server.client, ended.result.pick.trial_id)
        subject = load_subject(ended.result.pick.checkpoint, ended.result.sweep.trial.data, {})
        images = torch.randn(3, 3, 32, 32)
        with torch.no_grad():
            wanted = subject.model.eval()(images)
        loaded = mlflow.pytorch.load_model(f"models:/SWEEP/{version.version}")
        assert torch.equal(loaded(images).detach(), wanted)
        described = mlflow.models.get_model_info("models:/SWEEP@pick")
        assert described.signature.inputs.inputs[0].shape == (-1, 3, 32, 32)
        assert described.signature.outputs.inputs[0].shape == (-1, 10)
        example = mlflow.pyfunc.load_model("models:/SWEEP@pick").input_example
        assert example.shape == (2, 3, 32, 32)
        assert 0.1 < example.std() < 10  # images, not noise or nothing
    finally:
        mlflow.set_tracking_uri(None)

    port = free_port()
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--env-manager", "local", "--port", str(port),
               "--host", "127.0.0.1", "-m", "models:/SWEEP@pick"]  # fmt: skip
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # as in an activated environment: it calls uvicorn
    process = subprocess.Popen(
        command,
        cwd=ended.folder,  # without this project beside it
        env=os.environ | {"PATH": path, "MLFLOW_TRACKING_URI": ended.server.uri},
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        wait_for(lambda: process.poll() is not None or _answers(f"http://127.0.0.1:{port}/ping") is not None)
        answer = _answers(f"http://127.0.0.1:{port}/invocations", json.dumps({"inputs": images.tolist()}).encode())
        np.testing.assert_allclose(json.loads(answer)["predictions"], wanted.numpy(), rtol=1e-4, atol=1e-4)
    finally:
        subprocess.run(["pkill", "-KILL", "-s", str(process.pid)], check=False)
        process.wait()


def test_what_the_documentation_says_next_works_too(ended):
    assert "ended, 4 trials" in ended.run("sweeps.status --name SWEEP").stdout
    assert ended.run("sweeps.report --name SWEEP").stdout == f"{ended.folder}/runs/SWEEP/report.html\n"
    assert "SWEEP: MLflow has everything" in ended.run("sweeps.tracking flush --name SWEEP").stdout
    small = ("--images", 8, "--queries", 0, "--steps", 2, "--evaluate", "robustness", "--image-size", 32)
    torch.save(build_model("resnet8", 10).state_dict(), ended.folder / "resnet50.pth")  # of the data's classes
    assert "accuracy" in ended.run("trainer.evaluate --checkpoint resnet50.pth", *small).stdout
    assert "accuracy" in ended.run("trainer.evaluate --checkpoint models:/SWEEP@pick", *small[:-2]).stdout
    picks = ("--name", "SWEEP", "--resume", "--max-accuracy-drop", 0.99)
    script = [sys.executable, ROOT / "sweeps/all_regularizers.py", *picks]
    done = subprocess.run(list(map(str, script)), cwd=ended.folder, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    robust = min(ended.result.trials, key=lambda row: (-row.robust_accuracy, -row.accuracy, row.trial_id))
    again = SweepResult.load("SWEEP", f"{ended.folder}/runs")
    assert again.pick.trial_id == robust.trial_id, "by the looser rule"
    version = ended.server.client.get_model_version_by_alias("SWEEP", "pick")
    assert version.run_id == run_of(ended.server.client, robust.trial_id)
