"""Command lines: flags that are made of the fields of a dataclass, and how a command ends.

    given(Trial, ["--pgd-eps", "8/255"], prog="heatmap-sweeps sweep")    # {"pgd_eps": 8 / 255}, and nothing else

A flag is its field with dashes, its help the line of the field in the docstring, its default that of the field. Library
code names fields in its errors; `command` prints the flags instead.
"""

import dataclasses
import difflib
import functools
import inspect
import shlex
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict, TypeVar, get_args, get_origin, get_type_hints

from regularizers._names import RegularizerImportError
from trainer.errors import FieldError, UsageError, shown
from trainer.plain import DICTS, LISTS, convert, described, without_none

T = TypeVar("T")
Main = Callable[..., int]  # of the arguments, or of none: those of the process

ROOT = Path(__file__).resolve().parents[1]  # of the project, or the folder of an environment that has its packages
# Fields whose flag says more than their name, which stands in a dataclass of its own.
FLAGS = {"workers": "workers-per-trial", "folder": "cache-dir", "size": "cache-size", "extensions": "extend"}
FLAGS |= {"processes": "workers", "shard_megabytes": "shard-size"}  # of `shards`
METAVARS = {int: "N", float: "X", str: "TEXT", Path: "PATH"}
LISTED = {int: "N,N", float: "X,X", str: "A,B", Path: "PATH"}


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


def command(interrupted: str = "interrupted") -> Callable[[Main], Main]:
    """Wrap the function that is a command: mistakes of the user become one line and the exit status 2.

    Args:
        interrupted: what to say after Ctrl-C, which ends with the status 130.
    """

    def wrap(main: Main) -> Main:
        @functools.wraps(main)
        def wrapped(argv: Sequence[str] | None = None) -> int:
            try:
                return main(argv)
            except UsageError as error:
                print(f"error: {in_flags(error)}", file=sys.stderr)
                return 2
            except RegularizerImportError as error:
                print(f"error: {error}", file=sys.stderr)
                return 2
            except KeyboardInterrupt as stopped:
                print(str(stopped) or interrupted, file=sys.stderr)
                return 130

        return wrapped

    return wrap


def parse(kind: type[T], argv: Sequence[str] | None = None, *, prog: str, description: str = "") -> T:
    """A dataclass as a command line gives it; leaves the process after --help.

    Args:
        kind: the dataclass; its docstring says what each flag is.
        argv: the arguments; None are those of the process.
        prog: name of the command.
        description: what the command does.

    Raises:
        UsageError: if a flag is unknown or missing, or a value cannot be.
    """
    values = given(kind, argv, prog=prog, description=description)
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]  # a dataclass
        if field.name not in values and _default(field) is dataclasses.MISSING:
            raise UsageError(f"`{field.name}` is missing ({field_docs(kind)[field.name].rstrip('.')})")
    return kind(**values)


def given(
    kind: type,
    argv: Sequence[str] | None = None,
    *,
    prog: str,
    description: str = "",
    skip: Sequence[str] = (),
    also: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """What a command line gives of the fields of a dataclass, and nothing else; leaves the process after --help.

    Args:
        kind: the dataclass; the values of another one in it are a dict of their own.
        argv: the arguments; None are those of the process.
        prog: name of the command.
        description: what the command does.
        skip: fields that have no flag.
        also: other defaults of some fields under a name, such as those of a preset, for the help.

    Raises:
        UsageError: if a flag is unknown, or a value cannot be.
    """
    import tyro

    words = sys.argv[1:] if argv is None else list(argv)
    if "--" in words:
        raise UsageError("--: leave it out; there are flags alone")
    registry = tyro.constructors.ConstructorRegistry()
    registry.primitive_rule(_words)
    found, unknown = tyro.cli(
        _flags_of(kind, skip, also), args=words, prog=prog, description=description, registry=registry,
        config=(tyro.conf.OmitArgPrefixes,), return_unknown_args=True,
    )  # fmt: skip
    kinds = _kinds(kind, skip)
    for word in sorted(unknown, key=lambda word: not word.startswith("-")):  # words after an unknown flag are its own
        if not word.startswith("-"):
            raise UsageError(f"{word!r} belongs to no flag; --help lists the flags")
        meant = nearest(word, kinds)
        advice = f"did you mean {' or '.join(meant)}?" if meant else "--help lists the flags"
        raise UsageError(f"{word.partition('=')[0]}: there is no such flag; {advice}")
    flags = [word.partition("=")[0].replace("_", "-") for word in words]
    for name, one in kinds.items():  # of a number or a word the last counts, as everywhere
        if flags.count(flag(name)) > 1 and get_origin(one) in (*LISTS, *DICTS, list):
            raise UsageError(f"`{name}` is given {flags.count(flag(name))} times; give all values behind one of them")
    return _read(kinds, found)


def nearest(word: str, fields: Iterable[str]) -> list[str]:
    """The flags that an unknown one may mean, two at most.

    Args:
        word: flag as it was given, such as `--lr` or `--epoch=3`.
        fields: fields that have a flag.
    """
    asked = word.partition("=")[0].lstrip("-").replace("_", "-").lower()
    if len(asked) < 2:
        return []
    names = [flag(field).removeprefix("--") for field in fields]
    sure = [
        name
        for name in names
        if asked == "".join(part[0] for part in name.split("-")) or name.startswith(asked) or asked.startswith(name)
    ]
    return [f"--{name}" for name in (sure or difflib.get_close_matches(asked, names, 2))[:2]]


def field_docs(kind: type) -> dict[str, str]:
    """What the docstring of a dataclass says of each field."""
    from docstring_parser.google import parse as parse_docstring

    texts = [inspect.cleandoc(one.__doc__ or "") for one in reversed(kind.__mro__) if dataclasses.is_dataclass(one)]
    entries = [entry for text in texts for entry in parse_docstring(text).params]
    return {entry.arg_name: " ".join((entry.description or "").split()).replace("`", "") for entry in entries}


def _default(field: dataclasses.Field) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _kinds(kind: type, skip: Sequence[str]) -> dict[str, Any]:
    """The type of each field that has a flag, those of the dataclasses in it too."""
    kinds: dict[str, Any] = {}
    for name, one in get_type_hints(kind).items():
        if name not in skip:
            kinds |= _kinds(one, skip) if dataclasses.is_dataclass(one) else {name: one}  # type: ignore[arg-type]
    return kinds


def _flags_of(kind: type, skip: Sequence[str], also: Mapping[str, Mapping[str, Any]] | None) -> Any:
    """For tyro: a TypedDict with the fields of a dataclass, and of the dataclasses in it."""
    from tyro.conf import arg

    types, helps, flags = get_type_hints(kind), field_docs(kind), {}
    for field in dataclasses.fields(kind):
        if field.name in skip:
            continue
        if dataclasses.is_dataclass(types[field.name]):
            part = _flags_of(types[field.name], skip, also)  # type: ignore[arg-type]  # a class of dataclasses
            flags[field.name] = Annotated[part, arg(name=field.metadata.get("name"), help=helps[field.name])]
            continue
        required = _default(field) is dataclasses.MISSING and not also
        defaults = {} if _default(field) is dataclasses.MISSING else {"default": shown(_default(field))}
        for name, values in (also or {}).items():
            if field.name in values and shown(values[field.name]) != defaults.get("default"):
                defaults[name] = shown(values[field.name])
        if not defaults.get("default") or (_default(field) is None and "by default" in helps[field.name]):
            defaults.pop("default", None)
        hint = f"({'; '.join(f'{name}: {value}' for name, value in defaults.items())})" if defaults else ""
        flags[field.name] = Annotated[
            types[field.name],
            arg(
                name=flag(field.name).removeprefix("--"),
                help=helps[field.name],
                help_behavior_hint="(required)" if required else hint,
                metavar=field.metadata.get("metavar"),
                aliases=field.metadata.get("aliases"),
            ),
        ]
    return TypedDict(kind.__name__, flags, total=False)  # type: ignore[operator]  # made of what is there


def _words(info: Any) -> Any:
    """For tyro: the words of a flag as they are, for `_read`; flags that are there or not are tyro's."""
    from tyro.constructors import PrimitiveConstructorSpec

    kind = without_none(info.type)[0]
    if get_origin(kind) is Literal:
        metavar = "{" + ",".join(get_args(kind)) + "}"
    elif get_origin(kind) in DICTS:
        metavar = "NAME=X,NAME=X"
    elif get_origin(kind) in (*LISTS, list):
        metavar = LISTED[get_args(kind)[0]]
    elif kind in METAVARS:
        metavar = METAVARS[kind]
    else:
        return None
    return PrimitiveConstructorSpec(
        nargs="*", metavar=metavar, instance_from_str=list, is_instance=lambda _: True, str_from_instance=list
    )  # fmt: skip


def _read(kinds: dict[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    """The values of flags that tyro found."""
    values: dict[str, Any] = {}
    for name, words in found.items():
        if isinstance(words, bool):
            values[name] = words
        elif isinstance(words, dict):
            values[name] = _read(kinds, words)
        elif get_origin(kinds[name]) is list:
            values[name] = [_one(name, get_args(kinds[name])[0], [word]) for word in words] or _one(name, str, [])
        else:
            values[name] = _one(name, kinds[name], words)
    return values


def _one(field: str, kind: Any, words: Sequence[str]) -> Any:
    if len(words) > 1 and get_origin(without_none(kind)[0]) in LISTS:
        raise UsageError(f"`{field}`: separate values by commas: {','.join(word.strip(',') for word in words)}")
    if len(words) != 1:
        expected = f"one value, not {', '.join(map(repr, words))}" if words else described(kind)
        raise UsageError(f"`{field}`: give {expected}")
    try:
        return convert(kind, words[0])
    except ValueError as error:
        raise UsageError(f"`{field}`: {error}") from None
