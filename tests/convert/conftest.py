"""Checkpoint files in PyTorch's format, made without it; tiny models and their state dicts."""

import contextlib
import dataclasses
import io
import pickle
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from internvideo_jax import models
from internvideo_jax.convert.engine.plan import Plan, export_plan, plan
from internvideo_jax.convert.engine.recognition import recognize
from internvideo_jax.convert.engine.upstream import architecture_of
from tests.fake_hub import FakeHub

STORAGES = {
    "float64": "DoubleStorage",
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "int64": "LongStorage",
    "int32": "IntStorage",
    "int8": "CharStorage",
    "uint8": "ByteStorage",
    "bool": "BoolStorage",
    "complex64": "ComplexFloatStorage",
}


@dataclasses.dataclass(frozen=True)
class Name:
    """A reference to a class or function."""

    module: str
    name: str


@dataclasses.dataclass(frozen=True)
class Call:
    """callee(*args)"""

    callee: object
    args: tuple = ()


@dataclasses.dataclass(frozen=True)
class New:
    """An instance of a class with a state, and items if it is a kind of dict."""

    kind: Name
    state: object = None
    items: dict = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Persistent:
    """A reference to an object outside of the pickle."""

    identity: tuple


class _Pickler(pickle._Pickler):
    """Python's pickler, for classes and functions that are not there."""

    def persistent_id(self, value):
        return value.identity if isinstance(value, Persistent) else None

    def save(self, value, save_persistent_id=True):
        match value:
            case Name():
                self.write(f"c{value.module}\n{value.name}\n".encode())
            case Call():
                self.save(value.callee)
                self.save(value.args)
                self.write(pickle.REDUCE)
            case New():
                self.save(value.kind)
                self.write(pickle.EMPTY_TUPLE + pickle.NEWOBJ)
                for pair in value.items.items():
                    self.save(pair[0])
                    self.save(pair[1])
                    self.write(pickle.SETITEM)
                if value.state is not None:
                    self.save(value.state)
                    self.write(pickle.BUILD)
            case _:
                super().save(value, save_persistent_id)


def pickled(value):
    """Encodes a value by pickle protocol 2, calls of anything included."""
    file = io.BytesIO()
    _Pickler(file, 2).dump(value)
    return file.getvalue()


class TorchFile:
    """Builds a file as `torch.save` would: `save(path, {"model": {"w": file.tensor(array)}})`."""

    Name, Call, New, Persistent = Name, Call, New, Persistent

    def __init__(self):
        self.storages = []

    def storage(self, array, dtype=None, length=None):
        """Adds a storage record; dtype and length are what the pickle says of it."""
        self.storages.append(np.ascontiguousarray(array).tobytes())
        kind = Name("torch", STORAGES[dtype or array.dtype.name])
        length = array.size if length is None else length
        return Persistent(("storage", kind, str(len(self.storages) - 1), "cpu", length))

    def view(self, storage, offset, shape, strides):
        args = (storage, offset, tuple(shape), tuple(strides), False, Call(_ORDERED_DICT))
        return Call(Name("torch._utils", "_rebuild_tensor_v2"), args)

    def tensor(self, array):
        strides = [step // array.itemsize for step in np.ascontiguousarray(array).strides]
        return self.view(self.storage(array), 0, array.shape, strides if array.ndim else [])

    def save(self, path, value, **options):
        return self.save_pickle(path, pickled(value), **options)

    def save_pickle(self, path, data, byte_order=b"little", compression=zipfile.ZIP_STORED):
        with zipfile.ZipFile(path, "w", compression) as archive:
            archive.writestr("archive/data.pkl", data)
            archive.writestr("archive/byteorder", byte_order)
            for number, storage in enumerate(self.storages):
                archive.writestr(f"archive/data/{number}", storage)
            archive.writestr("archive/version", b"3\n")
        return path


_ORDERED_DICT = Name("collections", "OrderedDict")


@pytest.fixture
def torch_file():
    return TorchFile()


@pytest.fixture
def rng():
    return np.random.default_rng(0)


_ENCODER = models.VideoViTConfig(
    width=48,
    depth=3,
    num_heads=3,
    mlp_dim=80,
    patch_size=2,
    image_size=8,
    num_frames=4,
    pooled_dim=20,
    pooler_heads=4,
)
_SEPARABLE = dataclasses.replace(
    _ENCODER, position_embedding="separable", qkv_bias=True, qk_norm=False, layer_scale_init=None
)
_VIDEOMAE = models.VideoMAEConfig(
    width=32, depth=2, num_heads=2, mlp_dim=48, patch_size=2, image_size=8, num_frames=4
)


def _classifier(**options: Any) -> models.VideoClassifierConfig:
    return models.VideoClassifierConfig(_ENCODER, num_classes=7, **options)


_CONFIGS: dict[str, Any] = {
    "encoder": _ENCODER,
    "separable": _SEPARABLE,
    "linear": _classifier(),
    "attentive": _classifier(head="attentive"),
    "concat_kaiming": _classifier(head="concat", merge_method="cls_avg1"),
    "concat_bn": _classifier(head="concat", merge_method="cls_avgN", merge_norm="bn"),
    "concat_ln": _classifier(head="concat", merge_method="cls_avgN_proj", merge_norm="ln"),
    "pretrain": models.Stage1StudentConfig(
        _ENCODER, clip_layers=(1, 2), mae_layers=(2,), clip_target_dim=24, mae_target_dim=28
    ),
    "pretrain_without_final": models.Stage1StudentConfig(
        _SEPARABLE, clip_layers=(0, 2), mae_layers=(2,), clip_target_dim=24, clip_final_dim=0
    ),
    "distill": models.DistillStudentConfig(_ENCODER, clip_layers=(1, 2)),
    "distill_linear": models.DistillStudentConfig(_ENCODER, clip_layers=(2,), decoder="linear"),
    "teacher": models.TeacherConfig(_ENCODER, layers=(1, 2)),
    "videomae": _VIDEOMAE,
    "videomae_teacher": models.VideoMAETeacherConfig(
        dataclasses.replace(_VIDEOMAE, learned_position=True, layer_scale_init=0.1), layers=(1,)
    ),
}

# What tensors do not show of these models; see `upstream.infer_config`.
_OPTIONS = {"num_heads": 3, "attn_pool_num_heads": 4, "num_frames": 4}


@pytest.fixture(params=_CONFIGS)
def tiny(request: pytest.FixtureRequest) -> Any:
    """The config of each tiny model in turn."""
    return _CONFIGS[request.param]


@pytest.fixture
def configs() -> dict[str, Any]:
    """The configs of the tiny models by name."""
    return _CONFIGS


@pytest.fixture
def options() -> dict[str, Any]:
    """Constructor options that the tensors of the tiny video ViTs do not show."""
    return dict(_OPTIONS)


@pytest.fixture
def shapes_of() -> Callable[..., dict[str, tuple[int, ...]]]:
    """Makes the keys and shapes of a model's checkpoint: `shapes_of(config)`."""

    def make(config: Any, prefix: str = "") -> Any:
        made = export_plan(config, prefix)
        return {
            made.names[key]: shape
            for assignment in made.loaded
            for key, shape in zip(assignment.keys, assignment.source_shapes, strict=True)
        }

    return make


@pytest.fixture
def make_state(shapes_of) -> Callable[..., dict[str, np.ndarray]]:
    """Makes the state dict of a model with random values: `make_state(config)`."""

    def make(config: Any, prefix: str = "", dtype: Any = np.float32) -> Any:
        rng = np.random.default_rng(0)
        shapes = shapes_of(config, prefix)
        return {key: rng.normal(size=shape).astype(dtype) for key, shape in shapes.items()}

    return make


@pytest.fixture
def tiny_state(make_state) -> Callable[..., tuple[Any, dict[str, np.ndarray]]]:
    """Makes the config and the state dict of a tiny model: `tiny_state(name)`."""

    def make(name: str, **options: Any) -> Any:
        config = _CONFIGS[name]
        return config, make_state(config, **options)

    return make


@pytest.fixture
def plan_of() -> Callable[..., Plan]:
    """Plans the conversion of tensors, or of their shapes: `plan_of(state, config)`."""

    def make(state: Any, config: Any, **options: Any) -> Plan:
        shapes = {key: getattr(x, "shape", x) for key, x in state.items()}
        return plan(recognize(shapes, architecture=architecture_of(config)), config, **options)

    return make


@pytest.fixture
def hub(tmp_path, monkeypatch):
    constants = pytest.importorskip("huggingface_hub.constants")
    fake = FakeHub()
    monkeypatch.setenv("HF_ENDPOINT", fake.url)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    yield fake
    with contextlib.suppress(OSError):
        fake.stop()


@pytest.fixture
def offline(monkeypatch):
    """Calling it does what HF_HUB_OFFLINE=1 does for a new process."""
    constants = pytest.importorskip("huggingface_hub.constants")
    return lambda: monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
