"""What `python -m regularizers` does, with PyTorch: list the regularizers, or check one."""

import inspect
import re
import textwrap
from collections.abc import Iterable
from pathlib import Path

import torch

from regularizers import REGULARIZERS, Regularizer
from regularizers._check import has_formula, run
from regularizers._contract import RegularizerError
from regularizers._cost import cost
from regularizers._picture import draw
from regularizers._registry import load


def show_list(as_markdown: bool) -> None:
    """Print name, search space and documentation of every regularizer, or the table of docs/method.md."""
    if as_markdown:
        print(markdown(REGULARIZERS.values()))
        return
    print("One unit of weight is ‖∇θ CE‖ / ‖∇θ penalty‖ at the start checkpoint.\n")
    for regularizer in REGULARIZERS.values():
        print(_headline(regularizer))
        print(textwrap.indent(inspect.getdoc(regularizer) or "", "    ") + "\n")


def _headline(regularizer: type[Regularizer]) -> str:
    low, high = regularizer.strengths()
    others = "".join(f", {name} {found}" for name, found in regularizer.settings().items())
    return f"{regularizer.name}  (weight {low:g} to {high:g} units{others})"


def markdown(regularizers: Iterable[type[Regularizer]]) -> str:
    """A table of what the docstrings say: formula, pull and first source of each regularizer."""
    lines = ["| name | distance | pulls | source |", "|---|---|---|---|"]
    for regularizer in regularizers:
        text = " ".join((inspect.getdoc(regularizer) or "").split())
        distance, pull, source = (
            found[1] if (found := re.search(rf"{before}(.*?)\.(?: |$)", text)) else ""
            for before in ("distance = ", "Pulls ", "References: ")
        )
        if published := re.search(r"References: ([^:]+): .*?\b((?:19|20)\d\d)\b", text):
            source = f"{published[1]} {published[2]}"
        cells = (f"`{regularizer.name}`", distance, pull, source)
        lines.append("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |")
    return "\n".join(lines)


def find(file_or_name: str) -> type[Regularizer]:
    """The regularizer of a file, or of the registry.

    Raises:
        RegularizerImportError: if the file cannot be used.
    """
    return REGULARIZERS.get(file_or_name) or load(Path(file_or_name), REGULARIZERS)


def check(regularizer: Regularizer, out: Path) -> int:
    """Print how every check ended, and write the picture.

    Args:
        regularizer: regularizer to check.
        out: file of the picture.

    Returns:
        1 if one failed, else 0.
    """
    torch.set_num_threads(1)  # for little tensors the second only gets in the way
    print(_headline(type(regularizer)) + "\n")
    failed = 0
    for name, ended, found in run(regularizer):
        failed += ended == "FAILED"
        _line(ended, name, found.removeprefix(f"regularizer {regularizer.name!r}: "))
    if failed:
        print(f"\n{failed} of the checks failed; cost and picture come once they pass.")
        return 1
    _line("", "cost", f"{cost(regularizer):.1f} plain steps, on a small network and one core")
    _line("", "picture", _drawn(regularizer, out))
    print(f"\n{regularizer.name} holds.")
    return 0


def _drawn(regularizer: Regularizer, out: Path) -> str:
    """Where the picture is, or why there is none."""
    if not (regularizer.needs_heatmap and has_formula(regularizer)):
        return "none: the penalty is no distance of heatmap and image"
    try:
        draw(regularizer, out)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        return f"none: {package} is not installed; pip install {package}"
    except (OSError, RegularizerError) as error:
        return f"none: {error}"
    return str(out)


def _line(ended: str, name: str, found: str) -> None:
    text = textwrap.fill(found, 118, initial_indent=f"{ended:6}  {name:36}  ", subsequent_indent=46 * " ")
    print(text, flush=True)
