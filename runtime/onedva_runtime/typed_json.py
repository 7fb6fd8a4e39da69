"""JSON as typed dataclasses: `parse_as` turns what `json.loads` gave into a frozen dataclass tree, or refuses it by the
name of the first key that is missing, of the wrong type, or has a value that is not known."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from fractions import Fraction
from typing import Any, Literal, cast, get_args, get_origin, get_type_hints

from onedva_runtime.errors import BundleError

__all__ = ["as_mapping", "parse_as", "parse_rational"]

# No exponents: Fraction("1e999999999") would work out every digit.
_RATIONAL = re.compile(r"[0-9]{1,20}(/[0-9]{1,20})?")


def parse_rational(value: object) -> Fraction:
    """A rational above 0 from text such as "24" or "30000/1001"; ValueError for anything else."""
    if not isinstance(value, str) or not _RATIONAL.fullmatch(value):
        raise ValueError("not text such as 24 or 30000/1001, of up to 20 digits")
    top, _, bottom = value.partition("/")
    if not int(top) or not int(bottom or 1):
        raise ValueError("not above 0")
    return Fraction(int(top), int(bottom or 1))


def as_mapping(value: object, where: str) -> dict[str, object]:
    """`value` as a dict with text keys; BundleError, calling it `where`, for anything but an object."""
    if not isinstance(value, Mapping):
        raise BundleError(f"{where} must be an object, got {type(value).__name__}")
    return {str(key): item for key, item in cast(Mapping[object, object], value).items()}


def parse_as(kind: Any, value: object, where: str) -> object:
    """`value` as `kind`: a dataclass, a Literal, tuple[X, ...], dict[str, X], a dataclass or None, a union of plain
    types, a Fraction above 0 from text, or a plain type. where: its name in errors. Raises BundleError."""
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is object:
        return value
    if len(arguments) == 2 and is_dataclass(arguments[0]) and arguments[1] is type(None):
        return None if value is None else parse_as(arguments[0], value, where)
    if is_dataclass(kind):
        mapping, hints, found = as_mapping(value, where), get_type_hints(kind), dict[str, object]()
        for entry in fields(kind):
            if entry.name in mapping:
                found[entry.name] = parse_as(hints[entry.name], mapping[entry.name], f"{where}.{entry.name}")
            elif entry.default is MISSING and entry.default_factory is MISSING:
                raise BundleError(f"{where} lacks {entry.name!r}")
        return cast(type[Any], kind)(**found)
    if origin is dict:
        return {key: parse_as(arguments[1], item, f"{where}.{key}") for key, item in as_mapping(value, where).items()}
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise BundleError(f"{where} must be a list, got {type(value).__name__}")
        items = cast(list[object], value)
        return tuple(parse_as(arguments[0], item, f"{where}[{index}]") for index, item in enumerate(items))
    if origin is Literal:
        if not any(type(value) is type(known) and value == known for known in arguments):
            raise BundleError(
                f"{where} is {value!r}; this version knows {', '.join(repr(known) for known in arguments)}"
            )
        return value
    if kind is Fraction:
        try:
            return parse_rational(value)
        except ValueError as error:
            raise BundleError(f"{where} must be a rational, got {value!r} ({error})") from error
    if kind is float and type(value) is int:
        return float(value)
    kinds: tuple[Any, ...] = arguments or (kind,)
    if type(value) not in kinds:
        raise BundleError(f"{where} must be {' or '.join(k.__name__ for k in kinds)}, got {value!r}")
    return value
