"""Command lines: flags that are made of the fields of a dataclass, and how a command ends.

    flags = flags_of(Trial, skip=("regularizer",))    # a TypedDict: what is given, and nothing else
    given = parse(flags, ["--pgd-eps", "8/255"])      # {"pgd_eps": 8 / 255}

A flag is its field with dashes, its help the line of the field in the docstring, its default that of the field. Library
code names fields in its errors; `run` prints the flags instead.
"""

import dataclasses
import inspect
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, TypedDict, Union, get_args, get_origin, get_type_hints

from trainer.errors import FieldError, UsageError, shown

ROOT = Path(__file__).resolve().parents[1]  # of the project, or the folder of an environment that has its packages
# Fields whose flag says more than their name, which stands in a dataclass of its own.
FLAGS = {"workers": "workers-per-trial", "folder": "cache-dir", "size": "cache-size", "extensions": "extend"}
LISTS, DICTS = (tuple, Sequence), (dict, Mapping)
METAVARS = {int: "N", float: "X", str: "TEXT"}
LISTED = {int: "N,N", float: "X,X", str: "A,B"}


def flag(field: str) -> str:
    """The flag of a field, such as `--batch-size`."""
    return f"--{FLAGS.get(field, field.replace('_', '-'))}"


def in_flags(error: UsageError) -> str:
    """What an error says, in one line, in terms of the command line."""
    said = error.said(flag)
    if isinstance(error, FieldError):
        alone = error.value is True or error.value is None
        given = flag(error.field) + ("" if alone else f" {shown(error.value)}")
        said = given + said.removeprefix(f"{flag(error.field)}={shown(error.value)}")
    return " ".join(said.split())


def how_to_run(command: str, *arguments: str) -> str:
    """The command line that runs a command of the project, from any folder.

    Args:
        command: name of the command, such as `resume-best`.
        arguments: arguments of that command.
    """
    script = {"sweep": "all_regularizers.py", "resume-best": "resume_best.py"}.get(command)
    running, here = Path(sys.argv[0]).resolve(), ROOT / "sweeps"
    if script and running.name in ("all_regularizers.py", "resume_best.py") and running.parent != here:
        return shlex.join(["ray", "submit", "CONFIG", f"sweeps/{script}", "--", *arguments])  # as this one was
    installed = Path(sys.executable).with_name("heatmap-sweeps")
    if shutil.which("heatmap-sweeps") == str(installed):
        return shlex.join(["heatmap-sweeps", command, *arguments])
    words = [str(here / script)] if script else [str(here / "cli.py"), command]
    return shlex.join([python(), *words, *arguments])


def python() -> str:
    """This interpreter, from any folder."""
    return sys.executable if sys.prefix != sys.base_prefix else "python"


def run(main: Callable[[], int], interrupted: str = "") -> int:
    """Run a command to its end.

    Args:
        main: the command; returns the exit status.
        interrupted: what to say after Ctrl-C.

    Returns:
        The exit status: 2 after a mistake of the user, which is printed in one line; 130 after Ctrl-C.
    """
    try:
        return main()
    except UsageError as error:
        print(f"error: {in_flags(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stopped:
        print(str(stopped) or interrupted or "interrupted", file=sys.stderr)
        return 130


def parse(flags: Any, argv: Sequence[str] | None = None, *, prog: str | None = None, description: str = "") -> Any:
    """What a command line gives; leaves the process after --help, or with status 2 where it is wrong.

    Args:
        flags: a dataclass or TypedDict, such as that of `flags_of`; its parts may be others.
        argv: the arguments; None are those of the process.
        prog: name of the command.
        description: what the command does.
    """
    import tyro

    registry = tyro.constructors.ConstructorRegistry()
    registry.primitive_rule(_value)
    return tyro.cli(
        flags, args=argv, prog=prog, description=description, registry=registry, config=(tyro.conf.OmitArgPrefixes,)
    )


def flags_of(kind: type, skip: Sequence[str] = (), also: Mapping[str, Mapping[str, Any]] | None = None) -> Any:
    """A TypedDict with the fields of a dataclass, and of the dataclasses in it; only flags that are given are in it.

    Args:
        kind: the dataclass; its docstring says what each field is.
        skip: fields that are to have no flag.
        also: other defaults of some fields under a name, such as those of a preset, for the help.
    """
    from tyro.conf import arg

    types, helps, flags = get_type_hints(kind), field_docs(kind), {}
    for field in dataclasses.fields(kind):
        if field.name in skip:
            continue
        if dataclasses.is_dataclass(types[field.name]):
            part = flags_of(types[field.name], skip, also)  # type: ignore[arg-type]  # a class of dataclasses
            flags[field.name] = Annotated[part, arg(help=helps[field.name])]
            continue
        defaults = {"default": shown(_default(field))} if _default(field) is not dataclasses.MISSING else {}
        for name, values in (also or {}).items():
            if field.name in values and shown(values[field.name]) != defaults.get("default"):
                defaults[name] = shown(values[field.name])
        hint = f"({'; '.join(f'{name}: {value}' for name, value in defaults.items())})" if defaults else ""
        help_ = arg(
            name=flag(field.name).removeprefix("--"), help=helps[field.name], help_behavior_hint=hint
        )  # fmt: skip
        flags[field.name] = Annotated[types[field.name], help_]
    return TypedDict(kind.__name__, flags, total=False)  # type: ignore[operator]  # made of what is there


def field_docs(kind: type) -> dict[str, str]:
    """What the docstring of a dataclass says of each field."""
    from docstring_parser.google import parse as parse_docstring

    entries = parse_docstring(inspect.cleandoc(kind.__doc__ or "")).params
    docs = {entry.arg_name: " ".join((entry.description or "").split()) for entry in entries}
    return {name: text.replace("`", "") for name, text in docs.items()}


def _default(field: dataclasses.Field) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _value(info: Any) -> Any:
    """How tyro reads a number, a fraction, a list with commas, NAME=X pairs, or `none` where there may be no value."""
    from tyro.constructors import PrimitiveConstructorSpec

    kind, optional = info.type, False
    if get_origin(kind) in (Union, UnionType):
        kinds = [one for one in get_args(kind) if one is not NoneType]
        if len(kinds) != 1:
            return None
        kind, optional = kinds[0], NoneType in get_args(kind)
    if kind in METAVARS:
        metavar = METAVARS[kind]
    elif get_origin(kind) in LISTS:
        metavar = LISTED[get_args(kind)[0]]
    elif get_origin(kind) in DICTS:
        metavar = "NAME=X,NAME=X"
    else:
        return None  # bool, Literal: as tyro has them

    def read(words: list[str]) -> Any:
        return None if optional and words[0].lower() == "none" else convert(kind, words[0])

    return PrimitiveConstructorSpec(
        nargs=1, metavar=metavar, instance_from_str=read, is_instance=lambda _: True,
        str_from_instance=lambda value: [shown(value)],
    )  # fmt: skip


def convert(kind: Any, text: str) -> Any:
    """The value that a word of the command line stands for.

    Args:
        kind: int, float (fractions such as 8/255 too), str, a tuple of these or a dict of names and numbers.
        text: the word.

    Raises:
        ValueError: if it is none.
    """
    try:
        if get_origin(kind) in LISTS:
            kinds, words = get_args(kind), [word.strip() for word in text.split(",")]
            kinds = kinds[:1] * len(words) if len(kinds) == 1 or ... in kinds else kinds
            return tuple(convert(one, word) for one, word in zip(kinds, words, strict=True))
        if get_origin(kind) in DICTS:
            pairs = (word.partition("=") for word in text.split(","))
            return {name.strip(): convert(get_args(kind)[1], value) for name, _, value in pairs}
        if kind is float:
            above, _, below = text.partition("/")
            return float(above) / float(below or 1)
        return kind(text)
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"give {_described(kind)}, not {text!r}") from None


def _described(kind: Any) -> str:
    if get_origin(kind) in LISTS:
        return f"{'names' if get_args(kind)[0] is str else 'numbers'} with commas between"
    if get_origin(kind) in DICTS:
        return "names and numbers, such as a=1,b=2"
    return {int: "a whole number", float: "a number, or a fraction such as 8/255"}[kind]
