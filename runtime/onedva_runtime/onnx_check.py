"""What may stand in a bundle's graph, checked before any inference library opens it and without the onnx package: a
walk over the protobuf bytes. Allowed: operators of the standard domain, no control flow, no random operators, and
external data only in the bundle's one weights file, within its bounds. Field numbers are those of onnx.proto3
(github.com/onnx/onnx)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from onedva_runtime.errors import BundleError

__all__ = ["GraphFacts", "check_graph"]

STANDARD_DOMAINS = frozenset({"", "ai.onnx"})
RANDOM_OPERATORS = {
    "Bernoulli",
    "Multinomial",
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
}
FORBIDDEN_OPERATORS = frozenset({"If", "Loop", "Scan", "SequenceMap"} | RANDOM_OPERATORS)
MAX_DEPTH = 32  # nesting of messages: our graphs need 5, a hostile file could exhaust the stack

# message -> field number -> message found there. A bytes field that is not listed is skipped unread.
_CHILDREN: dict[str, dict[int, str]] = {
    "model": {7: "graph", 8: "opset", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 9: "opset", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}
# Singular message fields: protobuf merges repeated ones, which would let a check of each half miss the whole.
_SINGULAR = {("model", 7), ("attribute", 5), ("attribute", 6), ("attribute", 22), ("sparse", 1), ("sparse", 2)}


@dataclass
class GraphFacts:
    """What a walk found, for the checks against the manifest."""

    ir_version: int = 0
    """IR version of the model."""
    opset: int = 0
    """Version of the standard operator set."""
    operators: set[str] = field(default_factory=set[str])
    """Names of the operators used."""


def check_graph(data: bytes, *, name: str, weights_name: str, weights_bytes: int) -> GraphFacts:
    """Walk the serialized ONNX model `data` and return what it holds.

    name: how errors call the graph. weights_name, weights_bytes: the only external data file allowed, and its size.
    Raises BundleError for bytes that are not a model, a foreign operator domain, a forbidden operator, a training
    section, or external data elsewhere than in the weights file.
    """
    facts = GraphFacts()
    walker = _Walker(name, weights_name, weights_bytes, facts)
    try:
        walker.walk(memoryview(data), "model", 0)
    except (ValueError, UnicodeDecodeError) as error:
        raise BundleError(f"{name} is not a readable ONNX model: {error}") from None
    if not facts.operators:
        raise BundleError(f"{name} is not a readable ONNX model: it has no operators")
    return facts


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    """The unsigned varint at `position` and the position after it; ValueError where it does not end."""
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            raise ValueError("cut off inside a number")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, position
    raise ValueError("a number of more than 10 bytes")


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield (field number, varint or bytes) of one message; fixed-width fields are skipped; ValueError if malformed."""
    position = 0
    while position < len(data):
        key, position = _varint(data, position)
        number, wire = key >> 3, key & 7
        if number == 0:
            raise ValueError("field number 0")
        if wire == 0:
            value, position = _varint(data, position)
            yield number, value
            continue
        if wire == 2:
            length, position = _varint(data, position)
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire}")
        if length > len(data) - position:
            raise ValueError("cut off inside a field")
        if wire == 2:
            yield number, data[position : position + length]
        position += length


@dataclass
class _Walker:
    name: str
    weights_name: str
    weights_bytes: int
    facts: GraphFacts

    def walk(self, data: memoryview, kind: str, depth: int) -> None:
        """Check one message of `kind` and all below it."""
        if depth > MAX_DEPTH:
            raise ValueError(f"messages nested deeper than {MAX_DEPTH}")
        if kind == "training":
            raise BundleError(f"{self.name} has a training section; a bundle's graphs have none")
        children = _CHILDREN.get(kind, {})
        seen: set[int] = set()
        entries: list[tuple[str, str]] = []
        external = False
        opset_domain, opset_version = "", 0
        for number, value in _fields(data):
            if isinstance(value, int):
                if kind == "model" and number == 1:
                    self.facts.ir_version = value
                elif kind == "opset" and number == 2:
                    opset_version = value
                elif kind == "tensor" and number == 14:
                    external = external or value == 1
                continue
            child = children.get(number)
            if child == "entry":
                entries.append(_entry(value))
            elif child is not None:
                if (kind, number) in _SINGULAR and number in seen:
                    raise ValueError(f"field {number} of {kind} stands twice")
                seen.add(number)
                self.walk(value, child, depth + 1)
            elif kind == "node" and number == 4:
                self.operator(_text(value))
            elif (kind, number) in (("node", 7), ("function", 10)):
                self.domain(_text(value), kind)
            elif kind == "opset" and number == 1:
                opset_domain = _text(value)
                self.domain(opset_domain, "opset import")
        if kind == "opset":
            self.facts.opset = max(self.facts.opset, opset_version)
        if external or entries:
            self.external_data(entries)

    def operator(self, operator: str) -> None:
        """Note an operator; refuse one that a bundle may not use."""
        if operator in FORBIDDEN_OPERATORS:
            raise BundleError(
                f"{self.name} uses the operator {operator}, which a bundle may not (no control flow, no random numbers)"
            )
        self.facts.operators.add(operator)

    def domain(self, domain: str, where: str) -> None:
        """Refuse an operator domain other than the standard one."""
        if domain not in STANDARD_DOMAINS:
            raise BundleError(
                f"{self.name} has a {where} of the foreign operator domain {domain!r}; only standard ONNX is allowed"
            )

    def external_data(self, entries: list[tuple[str, str]]) -> None:
        """Check where an external tensor's bytes are."""
        keys = [key for key, _ in entries]
        if len(set(keys)) != len(keys) or not set(keys) <= {"location", "offset", "length"}:
            raise BundleError(
                f"{self.name} has external data with the keys {keys}; allowed, once each: location, offset, length"
            )
        values = dict(entries)
        location = values.get("location")
        if location != self.weights_name:
            raise BundleError(
                f"{self.name} points to external data in {location!r}; only {self.weights_name!r} is allowed"
            )
        numbers: dict[str, int] = {}
        for key in ("offset", "length"):
            text = values.get(key, "")
            if not (text.isascii() and text.isdigit() and len(text) < 20):
                raise BundleError(f"{self.name} has external data with the {key} {text!r}, not a number of bytes")
            numbers[key] = int(text)
        end = numbers["offset"] + numbers["length"]
        if end > self.weights_bytes:
            raise BundleError(
                f"{self.name} points to byte {end} of {self.weights_name}, which has {self.weights_bytes}"
            )


def _text(value: memoryview) -> str:
    return bytes(value).decode("utf-8")


def _entry(data: memoryview) -> tuple[str, str]:
    """The (key, value) of a StringStringEntryProto."""
    texts = {1: "", 2: ""}
    for number, value in _fields(data):
        if number in texts and not isinstance(value, int):
            texts[number] = _text(value)
    return texts[1], texts[2]
