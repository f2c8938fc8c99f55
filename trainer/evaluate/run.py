"""Evaluate checkpoints as `python -m trainer.evaluate` asks for it: report.json, galleries and a table."""

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress

from trainer.cache import ShardCache
from trainer.config import Trial
from trainer.errors import FieldError, UsageError
from trainer.evaluate import plan as plans
from trainer.evaluate.autoattack import AutoAttack
from trainer.evaluate.gallery import captions, draw_gallery, explain
from trainer.evaluate.measure import evaluate
from trainer.evaluate.subject import Subject, load_subject
from trainer.evaluate.table import report_table
from trainer.locations import absolute, whole_file
from trainer.shards import Shards, evaluation_splits, skipped_samples

BETWEEN_LINES = 60.0  # seconds

console = Console()


def run(given: argparse.Namespace) -> int:
    """Evaluate every checkpoint; the exit status."""
    data = absolute(given.data)
    val, test = evaluation_splits(data)
    if skipped := skipped_samples(data, val, test):
        print(skipped, file=sys.stderr)
    shards = test if given.split == "test" else val
    names = {field.name for field in dataclasses.fields(Trial)} - {"data", "checkpoint", "evaluate"}
    changes = {name: value for name, value in vars(given).items() if name in names and value is not None}
    device = _device(given.device)
    out = Path(given.out or time.strftime("runs/evaluation-%Y%m%d-%H%M%S")).expanduser()
    _plan(given, Trial(data=data, model=""))  # refuses what it cannot be
    subjects = [
        load_subject(checkpoint, data, changes, given.ema, lambda note: print(note, file=sys.stderr))
        for checkpoint in given.checkpoint
    ]
    report: dict[str, Any] = {"data": data, "split": shards.split, "examples": shards.total, "models": []}
    for subject, checkpoint in zip(subjects, given.checkpoint, strict=True):
        plan, model = _plan(given, subject.trial), subject.model.to(device)
        with _progress(subject.label) as progress:
            metrics = evaluate(model, shards, subject.trial, plan, device, ShardCache(), progress)
        number = len(report["models"])
        gallery = f"gallery-{number:02d}.png" if given.gallery else None
        if gallery:
            _gallery(subject, shards, device, given.gallery, out / gallery)
        model.cpu()
        report["models"].append(
            {"label": subject.label, "checkpoint": checkpoint, "gallery": gallery, "trial": subject.trial.to_dict(),
             "attacks": [attack.key for attack in plan.attacks], "metrics": metrics}
        )  # fmt: skip
        with whole_file(str(out / "report.json")) as stream:  # after each, so that an interruption loses one at most
            stream.write(json.dumps(report, indent=1).encode())
    Console(width=1000).print(report_table(report))  # a cut name is no name: rather let the terminal break the line
    console.print("accuracies in %")
    console.print(f"{out / 'report.json'}, galleries of heatmaps beside it", soft_wrap=True, highlight=False)
    return 0


def _plan(given: argparse.Namespace, trial: Trial) -> plans.Plan:
    try:
        attacked = None if given.images == "all" else int(given.images)
        eps, l2_eps = (tuple(map(float, filter(None, text.split(",")))) for text in (given.eps, given.l2_eps))
    except ValueError:
        raise UsageError(
            "--images takes a number or all; --eps and --l2-eps take numbers with commas between"
        ) from None
    if given.queries < 0:
        raise FieldError("queries", given.queries, "give a whole number, 0 to leave Square out")
    if attacked is not None and attacked < 1:
        raise FieldError("images", attacked, "give a whole number of at least 1, or all")
    if given.evaluate == "light":
        plan = dataclasses.replace(plans.closing(trial), attacked=attacked)
    else:
        effort = {"steps": given.steps, "restarts": given.restarts, "queries": given.queries}
        plan = plans.full(trial, attacked=attacked, eps=eps, l2_eps=l2_eps, **effort)
        plan = dataclasses.replace(plan, full=given.evaluate == "full")
    if given.autoattack:
        plan = dataclasses.replace(plan, attacks=(*plan.attacks, *(AutoAttack(eps=radius) for radius in eps)))
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
