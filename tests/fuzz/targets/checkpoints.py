"""PyTorch files, safetensors files, indices of shards, and what is read off their shapes."""

import functools
import io
import json
import random
import struct
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from internvideo_jax import models
from internvideo_jax.convert.engine.plan import export_plan, plan
from internvideo_jax.convert.engine.recognition import recognize
from internvideo_jax.convert.engine.upstream import infer, to_upstream
from internvideo_jax.convert.files.sources import open_checkpoint
from internvideo_jax.files import parse_json
from tests.convert.conftest import TorchFile, pickled
from tests.fuzz.harness import Target
from tests.small_models import BEATS, BERT, LLAMA_TEXT, STAGE2, VICLIP

_ENCODER = models.VideoViTConfig(
    width=48, depth=2, num_heads=3, mlp_dim=80, patch_size=2, image_size=8, num_frames=4,
    pooled_dim=20, pooler_heads=4,
)  # fmt: skip
_MODELS: tuple[Any, ...] = (
    models.VideoClassifierConfig(_ENCODER, num_classes=7),
    models.TeacherConfig(_ENCODER, layers=(0, 1)),
    models.VideoMAEConfig(
        width=32, depth=2, num_heads=2, mlp_dim=48, patch_size=2, image_size=8, num_frames=4,
        learned_position=True,
    ),
    *(BERT, BEATS, LLAMA_TEXT, STAGE2["visual"], VICLIP),
)  # fmt: skip


def _read_tensors(path: Path) -> None:
    checkpoint = open_checkpoint(path)
    json.dumps(checkpoint.metadata)
    for tensor in checkpoint.values():
        tensor.read()


# ---- PyTorch


def _torch_values(file: TorchFile) -> list[Any]:
    weights = {
        "blocks.0.weight": file.tensor(np.ones((2, 3), np.float32)),
        "bias": file.tensor(np.arange(4, dtype=np.float16)),
    }
    arguments = TorchFile.New(
        TorchFile.Name("argparse", "Namespace"), {"lr": 1e-3, "size": [224, 224], "name": "b14"}
    )
    return [
        weights,
        {"model": weights, "epoch": 3, "args": arguments},
        {
            "module": weights,
            "optimizer": {"state": {0: {"step": 1}}, "param_groups": [{"lr": 0.1}]},
        },
        {"state_dict": weights, ("a", 1): {1, 2}, None: frozenset({3}), b"k": 1 << 70, 2.5: ()},
    ]


def _pickles() -> list[bytes]:
    return [pickled(value) for value in _torch_values(TorchFile())]


def _torch_file(pickle: bytes) -> bytes:
    """A whole file around a pickle."""
    file = TorchFile()
    _torch_values(file)
    content = io.BytesIO()
    file.save_pickle(content, pickle)
    return content.getvalue()


def _open_torch(data: bytes, folder: Path) -> None:
    (folder / "a.pth").write_bytes(data)
    _read_tensors(folder / "a.pth")


_OPCODES = tuple(
    bytes([code]) for code in b"(.0123DFGIJKLMNPQRSTUVX])abcdeghijlopqrstu}\x80\x85\x86"
)
_GLOBALS = (
    b"cos\nsystem\n", b"cbuiltins\neval\n", b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"ccollections\nOrderedDict\n", b"ctorch\nFloatStorage\n", b"c__builtin__\ngetattr\n",
    b"(tR", b")R", b"}b", b")\x81", b"q\x00h\x00\x86", b"\x85", b"\x91", b"\x8f\x90",
)  # fmt: skip

# ---- safetensors


def _safetensors() -> list[bytes]:
    tensors = {"w": np.ones((2, 3), np.float32), "b": np.arange(4, dtype=np.int8)}
    return [save(tensors), save(tensors, {"config": '{"num_heads": 3}', "format": "pt"})]


def _headers() -> list[bytes]:
    files = _safetensors()
    return [file[8 : 8 + struct.unpack("<Q", file[:8])[0]] for file in files]


def _with_data(header: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + bytes(28)


def _open_safetensors(data: bytes, folder: Path) -> None:
    (folder / "a.safetensors").write_bytes(data)
    _read_tensors(folder / "a.safetensors")


# ---- index


def _indices() -> list[bytes]:
    shards = {"w": "one.safetensors", "b": "one.safetensors"}
    return [json.dumps({"metadata": {"total_size": 28}, "weight_map": shards}).encode()]


def _open_index(data: bytes, folder: Path) -> None:
    (folder / "one.safetensors").write_bytes(_safetensors()[0])
    (folder / "model.safetensors.index.json").write_bytes(data)
    _read_tensors(folder)


# ---- what shapes and recorded arguments say


@functools.cache
def _described() -> list[dict[str, Any]]:
    described = []
    for config in _MODELS:
        made = export_plan(config)
        shapes = {
            made.names[key]: list(shape)
            for a in made.loaded
            for key, shape in zip(a.keys, a.written_shapes, strict=True)
        }
        described.append({"tensors": shapes, "stored": to_upstream(config)})
    return described


_SIZES = (0, 1, 2, 3, 7, 16, 48, 65, 257, 2048, 2049, 1408, 2**20)
_VALUES = (
    *(None, True, 0, 1, -1, 2, 7, 32, 448, 10**9, 10**30, 0.0, -0.5, 1e300, "", "8", "48/0"),
    *([], [224, 224], [1, "a"], {}, {"num_heads": 3}),
)
_NAMES = (
    *("num_frames", "num_segments", "input_size", "img_size", "tubelet_size", "num_heads", "depth"),
    *("clip_return_layer", "clip_return_interval", "clip_return_index", "mlp_ratio", "llama"),
    *("num_attention_heads", "max_distance", "lora_r", "lora_alpha", "lora_targets", "rope_theta"),
)
_PIECES = ("_orig_mod.", "module.", "model.", "blocks.7.", "blocks.200000000.", "layers.9.", "x.")


def _changed(source: random.Random) -> bytes:
    """A model of which shapes, names or recorded arguments were changed."""
    model = source.choice(_described())
    shapes, stored = dict(model["tensors"]), dict(model["stored"])
    for _ in range(source.choice((1, 1, 2, 4, 8))):
        key = source.choice(list(shapes))
        match source.randrange(6):
            case 0:
                shapes[key] = [source.choice(_SIZES) for _ in range(source.randrange(6))]
            case 1 if shapes[key]:
                shape = list(shapes[key])
                shape[source.randrange(len(shape))] = source.choice(_SIZES)
                shapes[key] = shape
            case 2 if len(shapes) > 1:
                del shapes[key]
            case 3:
                at = source.choice([0, *(i + 1 for i, c in enumerate(key) if c == ".")])
                shapes[key[:at] + source.choice(_PIECES) + key[at:]] = shapes.pop(key)
            case 4:
                shapes |= source.choice(_described())["tensors"]
            case _:
                name = source.choice((*_NAMES, *stored))
                stored[name] = source.choice(_VALUES)
    return json.dumps({"tensors": shapes, "stored": stored}).encode()


def _plan(data: bytes, folder: Path) -> None:
    content = parse_json(data, "input")
    parts = [content.get(n) if isinstance(content, dict) else None for n in ("tensors", "stored")]
    if not all(isinstance(part, dict) for part in parts):
        return
    shapes = {}
    for key, shape in content["tensors"].items():
        if not isinstance(shape, list) or any(type(n) is not int or n < 0 for n in shape):
            return
        shapes[key] = tuple(shape)
    found = recognize(shapes)
    config = infer(found, stored=content["stored"]).config
    # Others take long to trace.
    if config in _MODELS:
        plan(found, config)


TARGETS = (
    Target("torch_pickle", _pickles, _open_torch, (*_OPCODES, *_GLOBALS), _torch_file),
    Target(
        "torch_file", lambda: [_torch_file(p) for p in _pickles()], _open_torch, (b"PK\x01\x02",)
    ),
    Target("safetensors", _safetensors, _open_safetensors),
    Target(
        "safetensors_header",
        _headers,
        _open_safetensors,
        (b'"F32"', b'"dtype"', b'"shape"', b'"data_offsets"', b'"__metadata__"'),
        _with_data,
    ),
    Target(
        "checkpoint_index", _indices, _open_index, (b"../", b'"weight_map"', b"one.safetensors")
    ),
    Target(
        "checkpoint_plan",
        lambda: [json.dumps(model).encode() for model in _described()],
        _plan,
        generate=_changed,
        weight=1,
    ),
)
