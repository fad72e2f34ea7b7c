"""LAION's NSFW model as its authors publish it, a zipped Keras SavedModel, read without TensorFlow.

Only the file whose SHA-256 Curator knows comes here, so that what is expected in it can be asserted. Its numbers lie
in a TensorBundle (an index that is a sorted table, and a file of plain little-endian tensors), its vocabularies as
constants in the graph. Formats: tensorflow/core/protobuf (tensor_bundle, saved_model, graph), leveldb's table_format.
"""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from curator.stage import Array

FOLDER = "clip_autokeras_binary_nsfw"
COLUMNS = (180, 316, 413, 440, 644)
FOOTER = 48
SMALLEST_VOCABULARY = 1000


def nsfw_tensors(file: Path) -> dict[str, Array]:
    """`mean`, `variance`, `w1` (out, in) ... `b4`, and `vocab_C` (ids' keys in units of 1e-6) as float32 and int32."""
    with zipfile.ZipFile(file) as archive:
        index = archive.read(f"{FOLDER}/variables/variables.index")
        data = archive.read(f"{FOLDER}/variables/variables.data-00000-of-00001")
        model = archive.read(f"{FOLDER}/saved_model.pb")
    stored = {name: _tensor(entry, data) for name, entry in _entries(index) if name.endswith("VARIABLE_VALUE")}

    def named(layer: int, part: str) -> Array:
        return stored[f"layer_with_weights-{layer}/{part}/.ATTRIBUTES/VARIABLE_VALUE"]

    tensors = {"mean": named(1, "mean"), "variance": named(1, "variance")}
    for n in (1, 2, 3, 4):
        tensors[f"w{n}"], tensors[f"b{n}"] = named(n + 1, "kernel").T.copy(), named(n + 1, "bias")
    vocabularies = list(_vocabularies(model))
    assert len(vocabularies) == len(COLUMNS), "one vocabulary for each categorical column"
    return tensors | {f"vocab_{c}": v for c, v in zip(COLUMNS, vocabularies, strict=True)}


def _varint(buffer: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = buffer[at]
        at += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, at


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Number and value of each field of a protocol buffer message."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(message, at)
            yield key >> 3, value
            continue
        size, at = _varint(message, at) if kind == 2 else ({1: 8, 5: 4}[kind], at)
        yield key >> 3, message[at : at + size]
        at += size


def _parts(message: bytes, number: int) -> Iterator[bytes]:
    """The values of one field that are messages or bytes."""
    return (value for field, value in _fields(message) if field == number and isinstance(value, bytes))


def _entries(index: bytes) -> Iterator[tuple[str, bytes]]:
    """Name and entry of each tensor of a TensorBundle's index."""
    at = len(index) - FOOTER
    for _ in range(2):  # the place of a block that is not used here
        _, at = _varint(index, at)
    offset, at = _varint(index, at)
    size, at = _varint(index, at)
    for _, place in _block(index, offset, size):
        start, used = _varint(place, 0)
        length, _ = _varint(place, used)
        for name, entry in _block(index, start, length):
            yield name.decode(), entry


def _block(index: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    block = index[offset : offset + size]
    end = size - 4 - 4 * struct.unpack("<I", block[-4:])[0]
    at, key = 0, b""
    while at < end:
        shared, at = _varint(block, at)
        fresh, at = _varint(block, at)
        length, at = _varint(block, at)
        key = key[:shared] + block[at : at + fresh]
        at += fresh
        yield key, block[at : at + length]
        at += length


def _tensor(entry: bytes, data: bytes) -> Array:
    """A float32 tensor (others, such as counters, come out as one number nobody asks for)."""
    fields = dict(_fields(entry))
    shape = [dict(_fields(dim)).get(1, 0) for part in _parts(entry, 2) for dim in _parts(part, 2)]
    offset, size = fields.get(4, 0), fields[5]
    assert isinstance(offset, int)
    assert isinstance(size, int)
    return np.frombuffer(data[offset : offset + size], "<f4").reshape([int(n) for n in shape] or -1)


def _vocabularies(model: bytes) -> Iterator[Array]:
    """The long lists of texts among the graph's constants, as whole numbers of 1e-6."""
    for graph in (g for meta in _parts(model, 2) for g in _parts(meta, 2)):
        for node in _parts(graph, 1):
            for attribute in _parts(node, 5):
                for value in _parts(attribute, 2):
                    for tensor in _parts(value, 8):
                        texts = list(_parts(tensor, 8))
                        if len(texts) >= SMALLEST_VOCABULARY:
                            yield np.rint(np.array(texts).astype(np.float64) * 1e6).astype(np.int32)
