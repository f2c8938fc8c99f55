"""Find the one regularizer that each file defines; errors are one line that names the file."""

import dataclasses
import importlib
import importlib.util
import keyword
import math
import numbers
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

from regularizers._names import FOLDER, RegularizerImportError, file_names
from regularizers.base import UNNEEDED, Regularizer, Tunable


def discover() -> dict[str, type[Regularizer]]:
    """The regularizers of this folder by name: every file except the shared ones and `_*.py`.

    Raises:
        RegularizerImportError: if one cannot be used.
    """
    found = {}
    for name in file_names():
        file = f"{FOLDER.name}/{name}.py"
        found[name] = _defined(_imported(file, name), file, name)
    return found


def load(path: Path, known: Mapping[str, type[Regularizer]]) -> type[Regularizer]:
    """The regularizer of a file in any folder, by the same rules as here.

    Args:
        path: path of the file; for one of this folder the registry's is returned.
        known: the registry, whose names no file elsewhere may have.

    Raises:
        RegularizerImportError: if it cannot be used.
    """
    name = path.stem
    if path.resolve().parent == FOLDER.resolve() and name in known:
        return known[name]
    if not path.is_file():
        raise RegularizerImportError(f"{path}: no such file")
    taken = {file.stem.lower(): file.stem for file in FOLDER.glob("*.py")}
    if name.lower() in taken:
        other = f", or check {name!r} for that one" if name in known else ""
        raise RegularizerImportError(
            f"{path}: the file name is the regularizer's name, and regularizers/{taken[name.lower()]}.py has it "
            f"already; rename the file{other}"
        )
    if not name.isidentifier() or name.startswith("_"):
        raise RegularizerImportError(
            f"{path}: the file name is the regularizer's name; take lower-case letters, digits and underscores, a "
            "letter first"
        )
    return _defined(_imported(str(path), name, path), str(path), name)


def _imported(file: str, name: str, path: Path | None = None) -> ModuleType:
    """The module of a file in this folder, or at the path."""
    full = f"{__package__}.{name}"
    try:
        if path is None:
            return importlib.import_module(full)
        spec = importlib.util.spec_from_file_location(full, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[full] = module  # dataclasses look for it there
        spec.loader.exec_module(module)
        return module
    except (Exception, SystemExit) as error:
        sys.modules.pop(full, None)
        lines = [
            f.lineno for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).name == Path(file).name
        ]
        line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
        reason = error.msg if isinstance(error, SyntaxError) else str(error).strip().partition("\n")[0]
        raise RegularizerImportError(
            f"{file} cannot be imported: {type(error).__name__}: {reason}{f' (line {line})' if line else ''}; fix it, "
            "or move it out of the folder"
        ) from error


def _defined(module: ModuleType, file: str, name: str) -> type[Regularizer]:
    """The one regularizer of a module, named after its file."""
    own = {
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Regularizer) and value.__module__ == module.__name__
    }
    if len(own) != 1:
        names = ", ".join(sorted(found.__name__ for found in own))
        raise RegularizerImportError(
            f"{file} defines {len(own)} Regularizer classes{f' ({names})' if names else ''}; a file defines exactly "
            "one (helpers belong in a file whose name starts with an underscore)"
        )
    (regularizer,) = own
    problem = _problem(regularizer, name)
    if problem is not None:
        raise RegularizerImportError(f"{file}: class {regularizer.__name__} {problem}")
    regularizer.name = name
    return regularizer


def _problem(regularizer: type[Regularizer], name: str) -> str | None:
    """What is wrong with a class and the remedy; None where nothing is."""
    own = vars(regularizer)
    if any(isinstance(value, dataclasses.Field) for value in own.values()):
        return "is no dataclass; write @dataclass(frozen=True, kw_only=True) above it"
    if regularizer.__name__ != class_name(name):
        return f"is not named after its file; call it {class_name(name)}"
    if own.get("name", name) != name or any(field.name == "name" for field in dataclasses.fields(regularizer)):
        return "defines `name`, but the file name is its name; leave it out"
    if all(getattr(regularizer, part) is getattr(Regularizer, part) for part in ("formula", "distance", "penalty")):
        return "has no formula; define formula(self, heatmap, images) -> (b,)"
    fields = {field.name: field for field in dataclasses.fields(regularizer) if "low" in field.metadata}
    if "weight" not in fields:
        return "gives `weight` no range; write weight: float = tunable(0.5, 0.1, 1000.0)"
    for field in fields.values():
        for given in (field.metadata["low"], field.metadata["high"], field.default):
            if isinstance(given, bool) or not isinstance(given, numbers.Real):
                where = "a default" if given is field.default else "a range that ends in"
                return f"gives `{field.name}` {where} {given!r}; give tunable(default, low, high) numbers"
        wanted = "int" if field.type in (int, "int") else "float"
        if type(field.default).__name__ != wanted:
            return f"gives `{field.name}` the default {field.default!r}, which is no {wanted}"
    if not regularizer.needs_heatmap and regularizer.penalty is Regularizer.penalty:
        return UNNEEDED
    low, high = regularizer.strengths()
    if not 0 < low < high < math.inf and name != "none":
        return f"gives `weight` the range {low:g} to {high:g}; give tunable(default, low, high) with 0 < low < high"
    for setting, own_range in regularizer.settings().items():
        if problem := _problem_of_range(own_range):
            return f"gives `{setting}` {problem}"
    try:
        regularizer()
    except (Exception, SystemExit) as error:
        return f"cannot be made from its defaults: {error}; give every field a default"
    return None


def _problem_of_range(given: Tunable) -> str | None:
    if not -math.inf < given.low < given.high < math.inf:
        return f"the range {given.low:g} to {given.high:g}; give tunable(default, low, high) with low < high"
    if not given.holds(given.default):
        return f"the default {given.default:g} outside its range, {given}"
    if given.log and given.low <= 0:
        return f"a logarithmic range from {given.low:g}; begin it above 0"
    return None


def class_name(name: str) -> str:
    """The CamelCase of a file name; followed by an underscore if that is a keyword of Python."""
    camel = "".join(part[:1].upper() + part[1:] for part in name.split("_"))
    return f"{camel}_" if keyword.iskeyword(camel) else camel


REGULARIZERS: dict[str, type[Regularizer]] = discover()
