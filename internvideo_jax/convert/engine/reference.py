"""Reference activations from a PyTorch module: what `verify` compares a converted model with.

The module's code is the user's own or upstream's, and runs here; weights are read without pickle.
"""

import contextlib
import importlib
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from internvideo_jax.convert.engine.upstream import architecture_of
from internvideo_jax.convert.engine.verify import Recipe, find_recipe
from internvideo_jax.convert.files.safetensors_file import write_safetensors_file
from internvideo_jax.convert.files.sources import open_checkpoint
from internvideo_jax.models import build
from internvideo_jax.preprocessing import Preprocessing

BATCH = 2


def make_inputs(
    config: Any, preprocessing: Preprocessing, *, seed: int = 0, video: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Inputs for a reference of a model, in PyTorch's layout.

    Args:
      config: of the model.
      preprocessing: likewise.
      seed: of what is drawn: clips are normal, ids any but the padding's (the
        largest, where that is a word, too).
      video: normalised clips `[B, T, H, W, 3]` in place of drawn ones.

    Returns:
      By name, those that the model's recipe needs: "video" `[B, 3, T, H, W]` (of whole models with
      two towers `[B, T, 3, H, W]`, as upstream's), "mask" `[B, N]` (true where a token is dropped),
      "input_ids" `[B, N]`, "fbank" `[B, T, M]`.
    """
    rng = np.random.default_rng(seed)
    module: Any = build(config)
    recipe = find_recipe(architecture_of(config))
    inputs: dict[str, np.ndarray] = {}
    for name in recipe.inputs:
        if name == "video":
            if video is None:
                size = preprocessing.require_video()
                side = size.image_size
                video = _normal(rng, (BATCH, size.num_frames, side, side, 3))
            inputs[name] = np.ascontiguousarray(np.moveaxis(video, -1, recipe.channel_axis))
        elif name == "mask":
            inputs[name] = _mask(rng, module, len(inputs["video"]))
        elif name == "input_ids":
            text = getattr(config, "text", config)
            shape = build(text).example_inputs(BATCH)[0].shape
            vocabulary = getattr(text, "lm", text).vocab_size
            ids = rng.integers(0, vocabulary - 1, shape)
            inputs[name] = ids + (ids >= getattr(text, "pad_id", vocabulary - 1))
        else:
            inputs[name] = _normal(rng, module.example_inputs(BATCH)[0].shape)
    return inputs


def make_module(where: str, options: Mapping[str, Any], path: Sequence[str] = ()) -> Any:
    """Runs the code that makes a PyTorch module, which ends in evaluation mode and float32.

    Args:
      where: "FILE.py:NAME" of a class or function. A file in a package (folders with
        `__init__.py`) is imported as a part of it.
      options: its keyword arguments.
      path: further folders from which the code may import.

    Raises:
      ValueError: no such file or name, something that it needs cannot be imported, or what it makes
        is no module.
    """
    import torch

    file, _, name = where.rpartition(":")
    source = Path(file).expanduser().resolve()
    if source.suffix != ".py" or not source.is_file() or not name:
        raise ValueError(f"expected FILE.py:NAME of a class or function, found {where!r}")
    parts, root = [source.stem], source.parent
    while (root / "__init__.py").is_file():
        parts, root = [root.name, *parts], root.parent
    with _importing([str(root), *map(str, path)]):
        try:
            module = importlib.import_module(".".join(parts))
        except ImportError as error:
            raise ValueError(
                f"{source} cannot be imported: {error}; install what it needs, or name its folder"
                " with --path"
            ) from error
        made = getattr(module, name, None)
        if not callable(made):
            raise ValueError(f"{source}: expected a class or function {name!r}, found none")
        built = made(**options)
    if not isinstance(built, torch.nn.Module):
        raise ValueError(
            f"{where}: expected it to make a torch.nn.Module, found {type(built).__name__}"
        )
    return built.float().eval()


def load_weights(module: Any, checkpoint: str, key: str | None = None) -> list[str]:
    """Fills a PyTorch module from a checkpoint; executes nothing of it.

    Args:
      module: from `make_module`.
      checkpoint: what `sources.open_checkpoint` takes.
      key: likewise.

    Returns:
      Names in the checkpoint that the module has no use for.

    Raises:
      CheckpointError: the checkpoint cannot be read.
      ValueError: tensors of the module are missing or have other shapes; all are listed.
    """
    import torch

    stored = open_checkpoint(checkpoint, key)
    wanted = module.state_dict()
    prefix = _prefix(wanted, stored)
    errors, state = [], {}
    for name, tensor in wanted.items():
        found = stored.get(prefix + name)
        if found is None:
            errors.append(f"{name}: missing")
        elif tuple(found.shape) != tuple(tensor.shape):
            errors.append(f"{name}: expected shape {tuple(tensor.shape)}, found {found.shape}")
        else:
            array = np.array(found.read())
            is_number = array.dtype.kind in "iub"
            state[name] = torch.from_numpy(array if is_number else array.astype(np.float32))
    if errors:
        raise ValueError(
            f"{len(errors)} tensors of the module do not fit {checkpoint}:\n  "
            + "\n  ".join(errors)
        )
    module.load_state_dict(state)
    return sorted(stored.keys() - {prefix + name for name in wanted})


def run_module(
    module: Any, inputs: Mapping[str, np.ndarray], recipe: Recipe, names: Sequence[str] = ()
) -> dict[str, np.ndarray]:
    """What a PyTorch module makes of inputs: its outputs, and the activations that a recipe knows.

    Args:
      module: called with the inputs in their order.
      inputs: from `make_inputs`.
      recipe: of the model that it will be compared with.
      names: of the outputs, in place of the recipe's.

    Returns:
      Arrays by the names that `verify` knows, floats as float32; outputs without a name are
      "output_0", ...
    """
    import torch

    values: dict[str, np.ndarray] = {}

    def record(name: str, output: Any) -> None:
        # Blocks may return more than their tokens.
        tensor = output[0] if isinstance(output, tuple | list) else output
        if torch.is_tensor(tensor):
            values[name] = _array(tensor)

    handles = [
        submodule.register_forward_hook(lambda *call, name=name: record(name, call[-1]))
        for path, submodule in module.named_modules()
        if (name := _hooked(path, recipe)) is not None
    ]
    try:
        with torch.no_grad():
            result = module(*(torch.from_numpy(array) for array in inputs.values()))
    finally:
        for handle in handles:
            handle.remove()
    for name, tensor in _named(result, names or recipe.outputs):
        if torch.is_tensor(tensor):
            values[name] = _array(tensor)
    return values


def write_reference(
    path: Path, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]
) -> None:
    """Writes the file that `verify.load_reference` reads.

    Raises:
      FileExistsError: the file exists.
      OSError: it cannot be written.
    """
    tensors = {f"in/{name}": array for name, array in inputs.items()}
    tensors |= {f"out/{name}": array for name, array in outputs.items()}
    declared = {name: (array.shape, array.dtype) for name, array in tensors.items()}
    metadata = {"config": json.dumps({"train_mode": False})}
    write_safetensors_file(path, declared, tensors.items(), metadata)


@contextlib.contextmanager
def _importing(folders: Sequence[str]) -> Iterator[None]:
    """Within, these folders are searched first for what is imported."""
    before = list(sys.path)
    sys.path[:0] = folders
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:] = before


def _prefix(wanted: Iterable[str], stored: Iterable[str]) -> str:
    """What stands before the module's names in a checkpoint: "", "module.", ..."""
    names = set(stored)
    first = next(iter(wanted), "")
    found = [name.removesuffix(first) for name in names if f".{name}".endswith(f".{first}")]
    return max(found, key=lambda prefix: sum(prefix + n in names for n in wanted), default="")


def _hooked(path: str, recipe: Recipe) -> str | None:
    """The name of a submodule's output in references, if it is one that they hold."""
    for pattern, name in recipe.hooks:
        if match := re.fullmatch(pattern, path):
            return match.expand(name)
    return None


def _named(result: Any, names: Sequence[str]) -> list[tuple[str, Any]]:
    """A module's outputs by name."""
    if isinstance(result, Mapping):
        return list(result.items())
    values = result if isinstance(result, tuple | list) else [result]
    more = [f"output_{i}" for i in range(len(names), len(values))]
    return list(zip((*names, *more), values, strict=False))


def _array(tensor: Any) -> np.ndarray:
    tensor = tensor.detach().cpu()
    return np.array((tensor.float() if tensor.is_floating_point() else tensor).numpy())


def _normal(rng: np.random.Generator, shape: Sequence[int]) -> np.ndarray:
    return rng.standard_normal(shape, np.float32)


def _mask(rng: np.random.Generator, module: Any, batch: int) -> np.ndarray:
    """A mask of as many tokens as the recipes drop, the same number of each frame."""
    encoder = module.config.encoder
    steps = encoder.grid[0]
    size = (encoder.num_tokens - 1) // steps
    order = rng.random((batch, steps, size)).argsort(-1)
    dropped = order < module.num_masked() // steps
    return np.concatenate([np.zeros((batch, 1), bool), dropped.reshape(batch, -1)], axis=1)
