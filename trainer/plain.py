"""Settings as plain values, for YAML and the command line, and back."""

import dataclasses
import difflib
import json
import os
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import suppress
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from trainer.errors import FieldError, UsageError

T = TypeVar("T")

LISTS, DICTS = (tuple, Sequence), (dict, Mapping)


def to_plain(settings: Any) -> Any:
    """A dataclass as a dict of numbers, words, lists and dicts."""
    if dataclasses.is_dataclass(settings):
        return {field.name: to_plain(getattr(settings, field.name)) for field in dataclasses.fields(settings)}
    if isinstance(settings, Mapping):
        return dict(settings)
    return list(settings) if isinstance(settings, tuple) else settings


def from_plain(kind: type[T], content: dict[str, Any], where: str, flags: Container[str] = ()) -> T:
    """The dataclass of a dict; fields that it leaves out have their default.

    Args:
        kind: the dataclass.
        content: values of its fields, and dicts where they are dataclasses.
        where: file they come from, for errors.
        flags: fields whose values are of the command line, not of the file.

    Raises:
        UsageError: if a name is unknown, and the nearest is named, or a value cannot be.
    """
    types, fields = get_type_hints(kind), {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    values = {}
    for name, value in content.items():
        if name not in fields:
            if place := _place(kind, name):
                raise UsageError(f"{where}: {name} belongs under {' and '.join(f'{one}:' for one in place)}, indented")
            near = difflib.get_close_matches(str(name), fields, 1)
            raise UsageError(f"{where}: there is no setting {name}{f'; did you mean {near[0]}?' if near else ''}")
        try:
            if not dataclasses.is_dataclass(types[name]):
                values[name] = _typed(types[name], value, YAML)
            elif isinstance(value, dict):
                values[name] = from_plain(types[name], value, where, flags)
            else:
                raise TypeError("its settings, indented")
        except TypeError as error:
            raise UsageError(f"{where}: {name}: give {error}, not {_in_yaml(value)}") from None
    missing = [name for name, field in fields.items() if name not in values and _is_needed(field)]
    if missing:
        raise UsageError(f"{where}: {missing[0]} is missing")
    try:
        return kind(**values)
    except FieldError as error:
        if error.field in flags or error.field not in _names(content):
            raise
        raise UsageError(f"{where}: {error}") from None


def _place(kind: type, name: str) -> list[str]:
    """The fields, from the outside in, whose dataclass has this field; empty where none has."""
    for outer, one in get_type_hints(kind).items():
        if dataclasses.is_dataclass(one):
            within = [] if name in get_type_hints(one) else _place(one, name)  # type: ignore[arg-type]  # a class
            if within or name in get_type_hints(one):
                return [outer, *within]
    return []


# How types are called: in Python, and in a file.
PYTHON = {
    int: "a whole number", float: "a number", bool: "True or False", str: "a string", NoneType: "None",
    tuple: "a tuple of {}", dict: "a mapping from names to numbers",
}  # fmt: skip
YAML = PYTHON | {
    bool: "true or false", str: "text (in quotes)", NoneType: "null", tuple: "a list of {}",
    dict: "names and numbers, indented",
}  # fmt: skip
MANY = {int: "whole numbers", float: "numbers", str: "names"}


def set_types(settings: Any) -> None:
    """Give each field of a dataclass the type that it should have: paths become strings, lists tuples.

    Raises:
        FieldError: naming the field, if its value is of another type, or nothing where a word should be.
    """
    for name, kind in get_type_hints(type(settings)).items():
        value = getattr(settings, name)
        try:
            object.__setattr__(settings, name, _typed(kind, value, PYTHON))
        except TypeError as error:
            raise FieldError(name, repr(value), f"give {error}") from None


def _typed(kind: Any, value: Any, words: dict[type, str]) -> Any:
    """The value as that kind; in YAML 1e-4, and 8/255, are words.

    Raises:
        TypeError: with what it should be, in these words.
    """
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        expected = []
        for one in args:
            try:
                return _typed(one, value, words)
            except TypeError as error:
                expected.append(str(error))
        raise TypeError(" or ".join(expected))
    if origin in LISTS:
        if isinstance(value, list | tuple):
            return tuple(_typed(args[0], one, words) for one in value)
        raise TypeError(words[tuple].format(MANY[args[0]]))
    if origin in DICTS:
        if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
            return {key: _typed(args[1], one, words) for key, one in value.items()}
        raise TypeError(words[dict])
    if origin is Literal:
        if isinstance(value, str):
            return value  # `check_choices` names the nearest
        raise TypeError(one_of(args))
    if kind is str and isinstance(value, os.PathLike):
        return os.fspath(value)
    if kind is str and isinstance(value, str) and not value.strip():
        raise TypeError("text that is not empty")
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    if words is YAML and kind in (int, float) and isinstance(value, str):
        with suppress(ValueError):
            return convert(kind, value)
    raise TypeError(words.get(kind, f"a {getattr(kind, '__name__', kind)}"))


def _is_needed(field: dataclasses.Field) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _names(content: dict[str, Any]) -> Iterator[str]:
    for name, value in content.items():
        yield name
        if isinstance(value, dict):
            yield from _names(value)


def _in_yaml(value: Any) -> str:
    return json.dumps(value, default=str, ensure_ascii=False)


def convert(kind: Any, text: str) -> Any:
    """The value that a word of the command line stands for.

    Args:
        kind: int, float (fractions such as 8/255 too), str, a Literal, a tuple of these, a dict of names and numbers,
            or one of them or None, which is `none`.
        text: the word.

    Raises:
        ValueError: if it is none.
    """
    kind, optional = without_none(kind)
    if optional and text.lower() == "none":
        return None
    try:
        if get_origin(kind) in LISTS:
            kinds, words = get_args(kind), [word.strip() for word in text.split(",")]
            kinds = kinds[:1] * len(words) if len(kinds) == 1 or ... in kinds else kinds
            return tuple(convert(one, word) for one, word in zip(kinds, words, strict=True))
        if get_origin(kind) in DICTS:
            pairs = [word.partition("=") for word in text.split(",")]
            values = {name.strip(): convert(get_args(kind)[1], value) for name, _, value in pairs}
            if "" in values or len(values) < len(pairs):
                raise ValueError
            return values
        if get_origin(kind) is Literal:
            return get_args(kind)[get_args(kind).index(text)]
        if not text.strip():
            raise ValueError
        if kind is float:
            above, _, below = text.partition("/")
            return float(above) / float(below or 1)
        return kind(text)
    except (ValueError, ZeroDivisionError):
        near = difflib.get_close_matches(text.lower(), get_args(kind), 1) if get_origin(kind) is Literal else []
        meant = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"give {described(kind)}, not {text!r}{meant}") from None


def described(kind: Any) -> str:
    """What `convert` reads as this kind."""
    kind = without_none(kind)[0]
    if get_origin(kind) in LISTS:
        return f"{'names' if get_args(kind)[0] is str else 'numbers'} with commas between"
    if get_origin(kind) in DICTS:
        return "names, each once, and numbers, such as a=1,b=2"
    if get_origin(kind) is Literal:
        return one_of(get_args(kind))
    return {int: "a whole number", float: "a number, or a fraction such as 8/255"}.get(kind, "a value")


def without_none(kind: Any) -> tuple[Any, bool]:
    """The kind alone, and whether None may stand for it."""
    if get_origin(kind) not in (Union, UnionType):
        return kind, False
    (alone,) = (one for one in get_args(kind) if one is not NoneType)
    return alone, True


def one_of(choices: Sequence[str]) -> str:
    """Such as `a, b or c`."""
    return " or ".join(filter(None, (", ".join(choices[:-1]), choices[-1])))
