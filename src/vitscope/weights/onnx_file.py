"""Weights in an ONNX file, read as data: no code of ONNX, and nothing of the graph is run.

Source: onnx.proto of the ONNX specification (field numbers) and the wire format of Protocol
Buffers.
"""

from collections import defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

_MODEL_GRAPH = 7
_GRAPH_NODE, _GRAPH_INITIALISER = 1, 5
_NODE_INPUT, _NODE_NAME = 1, 3
_TENSOR_SHAPE, _TENSOR_NAME, _TENSOR_BYTES = 1, 8, 9


class OnnxGraph(NamedTuple):
    """The weights of a graph, and where they are used."""

    weights: dict[str, np.ndarray]  # by name; views of the file's bytes
    users: dict[str, str]  # name of a node that takes the value, by the value's name


def read_graph(content: bytes) -> OnnxGraph:
    """Read the float32 weights of an ONNX model, and which nodes use them."""
    (model,) = _read_message(memoryview(content))[_MODEL_GRAPH]
    graph = _read_message(model)
    nodes = [_read_message(node) for node in graph[_GRAPH_NODE]]
    return OnnxGraph(
        weights=dict(_read_tensor(_read_message(each)) for each in graph[_GRAPH_INITIALISER]),
        users={
            _text(name): _text(*node[_NODE_NAME]) for node in nodes for name in node[_NODE_INPUT]
        },
    )


def _read_tensor(tensor: dict[int, list[Any]]) -> tuple[str, np.ndarray]:
    name = _text(tensor[_TENSOR_NAME][0])
    (raw,) = tensor[_TENSOR_BYTES]
    return name, np.frombuffer(raw, dtype="<f4").reshape(tensor[_TENSOR_SHAPE])


def _text(content: memoryview) -> str:
    return str(content, "utf-8")


def _read_message(content: memoryview) -> dict[int, list[Any]]:
    """Values of a message by the number of their field: integers, or the bytes of all else."""
    values: dict[int, list[Any]] = defaultdict(list)
    for field, value in _iterate_fields(content):
        values[field].append(value)
    return values


def _iterate_fields(content: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    at = 0
    while at < len(content):
        key, at = _read_integer(content, at)
        field, kind = key >> 3, key & 7
        value, at = _read_integer(content, at) if kind in {0, 2} else ({1: 8, 5: 4}[kind], at)
        if kind == 0:
            yield field, value
            continue
        yield field, content[at : at + value]
        at += value


def _read_integer(content: memoryview, at: int) -> tuple[int, int]:
    """An integer in groups of seven bits, the lowest first, and where it ends."""
    value = shift = 0
    while True:
        value |= (content[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if content[at - 1] < 0x80:
            return value, at
