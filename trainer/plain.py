"""Settings as plain values, for YAML, and back."""

import dataclasses
import difflib
import os
from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from trainer.command import DICTS, LISTS, convert
from trainer.errors import FieldError, UsageError

T = TypeVar("T")


def to_plain(settings: Any) -> Any:
    """A dataclass as a dict of numbers, words, lists and dicts."""
    if dataclasses.is_dataclass(settings):
        return {field.name: to_plain(getattr(settings, field.name)) for field in dataclasses.fields(settings)}
    if isinstance(settings, Mapping):
        return dict(settings)
    return list(settings) if isinstance(settings, tuple) else settings


def from_plain(kind: type[T], content: dict[str, Any], where: str) -> T:
    """The dataclass of a dict; fields that it leaves out have their default.

    Args:
        kind: the dataclass.
        content: values of its fields, and dicts where they are dataclasses.
        where: file they come from, for errors.

    Raises:
        UsageError: if a name is unknown, and the nearest is named, or a value is of another kind.
    """
    types, fields = get_type_hints(kind), {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    values = {}
    for name, value in content.items():
        if name not in fields:
            near = difflib.get_close_matches(str(name), fields, 1)
            raise UsageError(f"{where}: {name} is unknown{f'; did you mean {near[0]}?' if near else ''}")
        if dataclasses.is_dataclass(types[name]):
            if not isinstance(value, dict):
                raise UsageError(f"{where}: {name} holds {value!r}; give its settings, indented")
            values[name] = from_plain(types[name], value, where)
            continue
        try:
            values[name] = _value(types[name], value)
        except ValueError as error:
            raise UsageError(f"{where}: {name}: {error}") from None
    missing = [name for name, field in fields.items() if name not in values and _is_needed(field)]
    if missing:
        raise UsageError(f"{where}: {missing[0]} is missing")
    return kind(**values)


WORDS = {int: "a whole number", float: "a number", bool: "True or False", str: "a string", NoneType: "None"}


def set_types(settings: Any) -> None:
    """Give each field of a dataclass the type that it should have: paths become strings, lists tuples.

    Raises:
        FieldError: naming the field, if its value is of another type.
    """
    for name, kind in get_type_hints(type(settings)).items():
        value = getattr(settings, name)
        try:
            object.__setattr__(settings, name, _typed(kind, value))
        except TypeError as error:
            raise FieldError(name, repr(value), f"give {error}") from None


def _typed(kind: Any, value: Any) -> Any:
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        expected = []
        for one in args:
            try:
                return _typed(one, value)
            except TypeError as error:
                expected.append(str(error))
        raise TypeError(" or ".join(expected))
    if origin in LISTS:
        if isinstance(value, list | tuple):
            return tuple(_typed(args[0], one) for one in value)
        raise TypeError(f"a tuple, each of it {WORDS[args[0]]}")
    if origin in DICTS:
        if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
            return {key: _typed(args[1], one) for key, one in value.items()}
        raise TypeError("a mapping from names to numbers")
    if origin is Literal:
        kind = str
    if kind is str and isinstance(value, os.PathLike):
        return os.fspath(value)
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    raise TypeError(WORDS.get(kind, f"a {getattr(kind, '__name__', kind)}"))


def _is_needed(field: dataclasses.Field) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _value(kind: Any, value: Any) -> Any:
    if get_origin(kind) in (Union, UnionType):
        if value is None and NoneType in get_args(kind):
            return None
        kinds = [one for one in get_args(kind) if one is not NoneType]
        if type(value) in kinds:
            return value
        kind = kinds[-1]
    if get_origin(kind) in LISTS and isinstance(value, list | tuple):
        return tuple(_value(get_args(kind)[0], one) for one in value)
    if get_origin(kind) in DICTS and isinstance(value, dict):
        if wrong := [name for name in value if not isinstance(name, str)]:
            raise ValueError(f"{wrong[0]!r} is no name")
        return {name: _value(get_args(kind)[1], one) for name, one in value.items()}
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind in (int, float, bool, str) and type(value) is kind:
        return value
    if get_origin(kind) is Literal and isinstance(value, str):
        return value  # the dataclass knows its choices
    if isinstance(value, str) and kind is not bool:
        return convert(kind, value)  # YAML takes 1e-4, and 8/255, for words
    raise ValueError(f"{value!r} is of another kind; give {getattr(kind, '__name__', kind)}")
