"""Evaluate checkpoints as the command line asks for it: report.json, galleries and a table."""

import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.progress import Progress

from trainer.cache import ShardCache
from trainer.config import Trial
from trainer.errors import FieldError
from trainer.evaluate import plan as plans
from trainer.evaluate.autoattack import AutoAttack
from trainer.evaluate.gallery import captions, draw_gallery, explain
from trainer.evaluate.measure import evaluate
from trainer.evaluate.subject import Subject, load_subject
from trainer.evaluate.table import report_table
from trainer.locations import absolute, whole_file
from trainer.shards import Shards, evaluation_splits, skipped_samples

if TYPE_CHECKING:
    from trainer.evaluate.__main__ import Asked

BETWEEN_LINES = 60.0  # seconds

console = Console()


def run(asked: "Asked") -> int:
    """Evaluate every checkpoint; the exit status."""
    data = absolute(asked.data)
    val, test = evaluation_splits(data)
    if skipped := skipped_samples(data, val, test):
        print(skipped, file=sys.stderr)
    shards = test if asked.split == "test" else val
    names = {field.name for field in dataclasses.fields(Trial)} - {"data", "checkpoint", "evaluate"}
    changes = {name: value for name, value in vars(asked).items() if name in names and value is not None}
    device = _device(asked.device)
    out = Path(asked.out or time.strftime("runs/evaluation-%Y%m%d-%H%M%S")).expanduser()
    subjects = [
        load_subject(checkpoint, data, changes, asked.ema, lambda note: print(note, file=sys.stderr))
        for checkpoint in asked.checkpoint
    ]
    report: dict[str, Any] = {"data": data, "split": shards.split, "examples": shards.total, "models": []}
    for subject, checkpoint in zip(subjects, asked.checkpoint, strict=True):
        plan, model = _plan(asked, subject.trial), subject.model.to(device)
        with _progress(subject.label) as progress:
            metrics = evaluate(model, shards, subject.trial, plan, device, ShardCache(), progress)
        number = len(report["models"])
        gallery = f"gallery-{number:02d}.png" if asked.gallery else None
        if gallery:
            _gallery(subject, shards, device, asked.gallery, out / gallery)
        model.cpu()
        report["models"].append(
            {"label": subject.label, "checkpoint": checkpoint, "gallery": gallery, "trial": subject.trial.to_dict(),
             "attacks": [attack.key for attack in plan.attacks], "metrics": metrics}
        )  # fmt: skip
        with whole_file(str(out / "report.json")) as stream:  # after each, so that an interruption loses one at most
            stream.write(json.dumps(report, indent=1).encode())
    Console(width=1000).print(report_table(report))  # a cut name is no name: rather let the terminal break the line
    console.print("accuracies in %")
    console.print(
        f"{out / 'report.json'}, galleries of heatmaps beside it", soft_wrap=True, highlight=False, markup=False
    )
    return 0


def _plan(asked: "Asked", trial: Trial) -> plans.Plan:
    if asked.evaluate == "light":
        plan = dataclasses.replace(plans.closing(trial), attacked=asked.attacked)
    else:
        effort = {"steps": asked.steps, "restarts": asked.restarts, "queries": asked.queries}
        plan = plans.full(trial, attacked=asked.attacked, eps=asked.eps, l2_eps=asked.l2_eps, **effort)
        plan = dataclasses.replace(plan, full=asked.evaluate == "full")
    if asked.autoattack:
        plan = dataclasses.replace(plan, attacks=(*plan.attacks, *(AutoAttack(eps=radius) for radius in asked.eps)))
    return plan


def _device(name: str | None) -> torch.device:
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise FieldError("device", name, f"{str(error).splitlines()[0][:120]}; give cpu or cuda:N") from None
    return device


def _gallery(subject: Subject, shards: Shards, device: torch.device, count: int, path: Path) -> None:
    one = explain(subject, shards, count, device)
    with whole_file(str(path)) as stream:
        stream.write(draw_gallery(one.pixels, one.heatmaps, captions(one, shards.classes), subject.label))


@contextmanager
def _progress(label: str) -> Iterator[Callable[[str, float], None]]:
    if not console.is_terminal:
        yield _lines(label)
        return
    with Progress(console=console, transient=True) as bars:
        tasks: dict[str, Any] = {}

        def progress(stage: str, done: float) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(f"{label}: {stage}", total=1.0)
            bars.update(tasks[stage], completed=done)

        yield progress


def _lines(label: str) -> Callable[[str, float], None]:
    """For a log file; the table alone goes to stdout."""
    told = time.monotonic()

    def progress(stage: str, done: float) -> None:
        nonlocal told
        if time.monotonic() - told >= BETWEEN_LINES:
            told = time.monotonic()
            print(f"{label}: {stage}, {100 * done:.0f} %", file=sys.stderr, flush=True)

    return progress
