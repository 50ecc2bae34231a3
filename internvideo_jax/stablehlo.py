"""Models as StableHLO programs, which run without this package (`jax.export`)."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax import export

from internvideo_jax.config import to_dict
from internvideo_jax.files import atomic_file, check_free_space, told_of_space, write_json
from internvideo_jax.kernels.attention import prefer
from internvideo_jax.models import video_encoder
from internvideo_jax.models.beats import Beats
from internvideo_jax.models.bert import Bert
from internvideo_jax.models.clip_text import ClipText
from internvideo_jax.models.llama_text import LlamaText
from internvideo_jax.models.video_classifier import VideoClassifier
from internvideo_jax.preprocessing import normalize

if TYPE_CHECKING:
    from internvideo_jax.saved_model import SavedModel

Output = Literal["logits", "features"]
Input = Literal["pixels", "normalized"]
Weights = Literal["inside", "beside"]

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")

# Larger constants make a program slow to read and to compile.
_MAX_BYTES_INSIDE = 256 * 2**20
# What separates two compilers' float32 sums of the same model.
_TOLERANCE = 1e-6

# How `evaluation.prediction.view_config` shows a clip in one view, docs/export.md in code.
_VIEW = {"sampling": "sparse", "segments": 1, "crops": 1}

# A tower's output `[B, D]`, as a function of its weights and inputs.
_Run = Callable[..., jax.Array]


@dataclasses.dataclass(frozen=True)
class Program:
    """An exported model.

    Attributes:
      exported: the program, a function of the weights by name and the inputs.
      weights: arrays by name that lie beside the program; none where they are part of it.
      inputs: shapes and dtypes by name; the batch is None where it may be any.
      output: which output of the model it has, `[B, C]` or `[B, D]` float32.
      reference: the model itself, as a function of the inputs.
      dtype: what the model computes in.
    """

    exported: export.Exported
    weights: dict[str, np.ndarray]
    inputs: dict[str, tuple[tuple[int | None, ...], str]]
    output: Output
    reference: Callable[..., jax.Array]
    dtype: str


class ExportError(ValueError):
    """A model that has no such output, or a program that computes something else."""


def make_program(
    model: "SavedModel",
    *,
    output: Output | None = None,
    pixels: Input = "pixels",
    batch: int | None = None,
    weights: Weights | None = None,
    platforms: Sequence[str] = ("cpu", "cuda", "tpu"),
) -> Program:
    """Makes a program of a model, for inference.

    Attention is XLA's own, so that the program calls nothing that another machine may not have; it
    holds the scores of all pairs of tokens.

    Args:
      model: a classifier, a model with a video encoder, or a tower of texts or sound.
      output: logits of a classifier, or the pooled features that `extract` writes; by default
        logits where the model has them.
      pixels: whether clips come as uint8 `[B, T, S, S, 3]` (RGB, 0..255) and are normalised in the
        program, or as normalised float32.
      batch: B; None leaves it open.
      weights: inside the program or beside it; by default inside up to 256 MiB.
      platforms: what the program is lowered for, of `PLATFORMS`.

    Raises:
      ExportError: the model has no such output.
      ValueError: an unknown platform.
    """
    if not platforms or not set(platforms) <= set(PLATFORMS):
        raise ValueError(
            f"expected platforms of {', '.join(PLATFORMS)}, found {', '.join(platforms) or 'none'}"
        )
    output = output or ("logits" if isinstance(model.module, VideoClassifier) else "features")
    run, variables, inputs = _tower(model, output, pixels)
    flat = traverse_util.flatten_dict(variables, sep="/")
    inside = weights or ("inside" if _bytes(flat) <= _MAX_BYTES_INSIDE else "beside")

    def program(beside: dict[str, jax.Array], *arrays: jax.Array) -> jax.Array:
        arrays_by_name = {name: _from_plain(beside[name], flat[name].dtype) for name in beside}
        tree = traverse_util.unflatten_dict(arrays_by_name or flat, sep="/")
        return run(tree, *arrays)

    beside = {} if inside == "inside" else {name: _plain(array) for name, array in flat.items()}
    size: Any = batch or export.symbolic_shape("batch")[0]
    arguments = [jax.ShapeDtypeStruct((size, *x.shape[1:]), x.dtype) for x in inputs.values()]
    with prefer("reference"):
        exported = export.export(jax.jit(program), platforms=list(platforms))(beside, *arguments)
    return Program(
        exported,
        beside,
        {name: ((batch, *x.shape[1:]), x.dtype.name) for name, x in inputs.items()},
        output,
        functools.partial(jax.jit(run), variables),
        _dtype(model.config),
    )


def write_program(program: Program, model: "SavedModel", path: Path) -> float:
    """Writes `path`, what a loader needs to know to `path`.json, and weights beside to `path`.npz.

    The program is read back and compared with the model before anything appears under its name.

    Returns:
      The largest difference from the model, relative to its largest output.

    Raises:
      ExportError: the program computes something else than the model.
      OSError: the disk is full (`files.DiskFullError`), or a file cannot be written.
    """
    beside = path.with_name(f"{path.name}.npz")
    description = {
        "inputs": [
            {"name": name, "shape": shape, "dtype": dtype}
            for name, (shape, dtype) in program.inputs.items()
        ],
        "output": program.output,
        "platforms": program.exported.platforms,
        "weights": beside.name if program.weights else None,
        "preprocessing": to_dict(model.preprocessing),
        "views": _VIEW if "video" in program.inputs else None,
        "classes": model.classes if program.output == "logits" else None,
    }
    serialized = program.exported.serialize()
    check_free_space(path, len(serialized) + _bytes(program.weights))
    with contextlib.ExitStack() as files:
        # They take their names in the opposite order: the program is the last.
        temporary = files.enter_context(atomic_file(path))
        told = files.enter_context(atomic_file(path.with_name(f"{path.name}.json")))
        write_json(told, description)
        weights: dict[str, np.ndarray] = {}
        if program.weights:
            arrays = files.enter_context(atomic_file(beside, _bytes(program.weights)))
            with open(arrays, "wb") as file:
                np.savez(file, **program.weights)  # type: ignore[arg-type]
            weights = dict(np.load(arrays))
        # A full disk is told of under this file's name, not the last one's.
        with told_of_space(path, len(serialized)):
            temporary.write_bytes(serialized)
        stored = export.deserialize(bytearray(temporary.read_bytes()))
        return _check(stored, weights, program, model)


def _check(
    stored: export.Exported,
    weights: dict[str, np.ndarray],
    program: Program,
    model: "SavedModel",
) -> float:
    """The relative difference of a stored program from the model, on random inputs."""
    if jax.default_backend() not in _backends(stored.platforms):
        raise ExportError(
            f"expected the platform of this machine, {jax.default_backend()}, among those of the"
            f" program, on which it is checked, found {', '.join(stored.platforms)}; add it"
        )
    rng = np.random.default_rng(0)
    vocabulary = getattr(getattr(model.config, "lm", model.config), "vocab_size", 2)
    inputs = []
    for name, (shape, dtype) in program.inputs.items():
        size = [axis or 2 for axis in shape]
        if dtype == "float32":
            inputs.append(rng.standard_normal(size, np.float32))
        else:
            top = {"uint8": 256, "int32": 2 if name == "mask" else vocabulary}[dtype]
            inputs.append(rng.integers(name == "mask", top, size).astype(dtype))
    expected = np.asarray(program.reference(*inputs))
    found = np.asarray(stored.call(weights, *inputs))
    scale = float(np.abs(expected).max()) or 1.0
    error = float(np.abs(found - expected).max()) / scale
    is_wide = program.dtype == "float32"
    allowed = _TOLERANCE if is_wide else 4 * float(jnp.finfo(program.dtype).eps)
    if not error <= allowed:
        raise ExportError(
            f"expected the program to compute what the model does within {allowed:g}, found a"
            f" relative difference of {error:.2g}"
            + ("" if np.isfinite(expected).all() else ": the model's own outputs are not finite")
        )
    return error


def _tower(
    model: "SavedModel", output: Output, pixels: Input
) -> tuple[_Run, dict[str, Any], dict[str, jax.ShapeDtypeStruct]]:
    """What gives the output, its variables, and its inputs with a batch of one."""
    module, variables = model.module, model.variables
    if output == "logits" and not isinstance(module, VideoClassifier):
        raise ExportError(
            f"expected a classifier for logits, found {type(module).__name__}; its features can be"
            " exported"
        )
    if isinstance(module, Bert):
        names = ("text", "mask")

        def text(variables: Any, ids: jax.Array, mask: jax.Array) -> jax.Array:
            encoded: Any = module.apply(variables, ids, mask, mode="text")
            return _float32(encoded.tokens[:, 0])

        return text, variables, dict(zip(names, module.example_inputs(), strict=False))
    if isinstance(module, Beats | ClipText | LlamaText):
        name = "filterbank" if isinstance(module, Beats) else "ids"

        def pooled(variables: Any, array: jax.Array) -> jax.Array:
            encoded: Any = module.apply(variables, array)
            return _float32(encoded.pooled)

        return pooled, variables, {name: module.example_inputs()[0]}

    preprocessing = model.preprocessing.require_video()
    tower: Any = module
    if output == "features":
        tower, variables = video_encoder(module, variables)

    def video(variables: Any, clips: jax.Array) -> jax.Array:
        if pixels == "pixels":
            clips = normalize(clips, preprocessing)
        encoded = tower.apply(variables, clips)
        return _float32(encoded.logits if output == "logits" else encoded.pooled)

    side = preprocessing.image_size
    dtype = jnp.uint8 if pixels == "pixels" else jnp.float32
    clip = jax.ShapeDtypeStruct((1, preprocessing.num_frames, side, side, 3), dtype)
    return video, variables, {"video": clip}


def _backends(platforms: Sequence[str]) -> set[str]:
    """What `jax.default_backend()` is on such platforms."""
    return {"gpu" if name in ("cuda", "rocm") else name for name in platforms}


def _dtype(config: Any) -> str:
    """The compute dtype of a config, or of the tower inside it."""
    parts = (config, *vars(config).values())
    return next(str(part.dtype) for part in parts if hasattr(part, "dtype"))


def _bytes(arrays: dict[str, Any]) -> int:
    return sum(array.nbytes for array in arrays.values())


def _float32(x: jax.Array) -> jax.Array:
    return x.astype(jnp.float32)


def _plain(array: Any) -> np.ndarray:
    """An array in a dtype that every NumPy knows: bfloat16 as the uint16 of its bits."""
    array = np.asarray(array)
    return array.view(np.uint16) if array.dtype == jnp.bfloat16 else array


def _from_plain(array: jax.Array, dtype: Any) -> jax.Array:
    return jax.lax.bitcast_convert_type(array, dtype) if array.dtype != dtype else array
