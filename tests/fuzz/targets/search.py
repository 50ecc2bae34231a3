"""Indices of search, whole ones and what their headers say."""

import functools
import json
import random
import struct
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from internvideo_jax.checksums import description_sha256, partial_checksum
from internvideo_jax.search.index_file import read_index, write_index
from internvideo_jax.search.moments import find_moments
from internvideo_jax.search.updating import with_clusters
from tests.fuzz.harness import Target
from tests.search.indices import random_index, random_vectors


@functools.cache
def _indices() -> tuple[bytes, ...]:
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for index in (random_index(9), with_clusters(random_index(12), least=1)):
            write_index(Path(folder, "index"), index)
            found.append(Path(folder, "index").read_bytes())
    return tuple(found)


def _search(data: bytes, folder: Path) -> None:
    (folder / "index").write_bytes(data)
    index = read_index(folder / "index")
    # Of any width.
    find_moments(index, random_vectors(1, index.vectors.shape[1]), 3)


def _parts(data: bytes) -> tuple[dict[str, Any], bytes]:
    (length,) = struct.unpack_from("<Q", data)
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def _believed(source: random.Random) -> bytes:
    """An index whose description or numbers were changed by somebody who knows the checksums."""
    header, arrays = _parts(source.choice(_indices()))
    changed = bytearray(arrays)
    for _ in range(source.choice((0, 1, 1, 2, 8))):
        position = source.randrange(0, len(changed) - 8, 4)
        value = source.choice((0, 1, -1, 2**31, 2**62, -(2**63), source.getrandbits(62)))
        changed[position : position + 8] = value.to_bytes(8, "little", signed=True)
    metadata = header["__metadata__"]
    described = json.loads(metadata["description"])
    for _ in range(source.choice((0, 0, 1, 2))):
        values = (0, -1, 10**30, 1e300, "x", None, [], {}, True)
        part = source.choice((described, described["settings"]))
        if isinstance(part, dict):
            part[source.choice((*part, "more"))] = source.choice(values)
    data = np.frombuffer(changed, np.uint8)
    described["checksums"] = {
        name: partial_checksum(
            data[slice(*entry["data_offsets"])].view(np.uint8 if name == "paths" else np.uint32)
        )
        for name, entry in header.items()
        if name != "__metadata__"
    }
    described["sha256"] = description_sha256(described)
    metadata["description"] = json.dumps(described)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + bytes(changed)


TARGETS = (
    Target("search_index", _indices, _search, (b'"vectors"', b'"clustered"', b'"path_ends"')),
    Target("search_index_believed", _indices, _search, generate=_believed),
)
