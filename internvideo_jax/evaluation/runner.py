"""The one way from clips to measurements: batches, a forward pass, the rows of all processes.

An evaluator says which fields it needs, what the model makes of them and what follows from that. It
runs in the training loop on the mesh, in `internvideo-jax evaluate` and, without metrics, under
`evaluation.features`.
"""

import abc
import contextlib
import dataclasses
import functools
import math
import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, Sharding

from internvideo_jax.parallel.rules import DEFAULT_RULES
from internvideo_jax.parallel.sharding import partition_spec

if TYPE_CHECKING:
    from internvideo_jax.data.annotations.records import ClipRecord
    from internvideo_jax.saved_model import SavedModel

# Bytes of a process that travel at once: all devices hold those of all processes.
_PIECE = 2**22

PyTree = Any
HostBatch = Mapping[str, np.ndarray]


class Forward(abc.ABC):
    """What a model makes of a batch.

    Subclasses are frozen dataclasses: equal ones share a program.
    """

    @property
    def inputs(self) -> tuple[str, ...]:
        """Fields of a batch that `forward` takes."""
        return ("video",)

    @abc.abstractmethod
    def forward(self, variables: PyTree, batch: Mapping[str, jax.Array]) -> PyTree:
        """A pytree of arrays `[B, ...]` from `inputs` `[B, ...]`, row by row; it is jitted."""


class Evaluator(Forward):
    """What is measured of a model.

    Attributes:
      task: a name for it, as result cards have it.
      merging: how the views of a clip become one, for the card.
      references: fields of a batch that only `metrics` looks at; they stay on the host.
    """

    task: ClassVar[str]
    merging: ClassVar[str]
    references: ClassVar[tuple[str, ...]] = ()

    @property
    def fields(self) -> tuple[str, ...]:
        """Fields that batches must have."""
        return (*self.inputs, *self.references)

    @abc.abstractmethod
    def with_model(self, model: "SavedModel") -> Self:
        """The same measurement of a saved model.

        Raises:
          ValueError: it is of another kind.
        """

    def complete(self, rows: "Rows", variables: PyTree) -> "Rows":
        """What `metrics` and `report` take, of what `collect` gave.

        Args:
          rows: all that there are.
          variables: for evaluators that need more of the model than its forward pass.
        """
        del variables
        return rows

    @abc.abstractmethod
    def metrics(self, rows: "Rows") -> dict[str, float]:
        """Metrics by name.

        Args:
          rows: from `complete`.

        Raises:
          ValueError: there is nothing to measure.
        """

    @abc.abstractmethod
    def report(
        self, rows: "Rows", clips: "Sequence[ClipRecord]", names: Sequence[str], directory: Path
    ) -> str:
        """Writes what belongs beside a result card; returns a text to read.

        Args:
          rows: as in `metrics`.
          clips: that they are of, in their order.
          names: of the classes, where clips have labels.
          directory: where to write.
        """


@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
    """The views of all clips that could be read, each once, by clip, segment and crop.

    Attributes:
      columns: fields and columns of the batches, without the inputs, `[V, ...]`.
      output: what `forward` gave, floating arrays as float32, `[V, ...]`.
      errors: why clips could not be read, by their index, ascending; none of their views is here.
    """

    columns: dict[str, np.ndarray]
    output: PyTree
    errors: dict[int, str]

    @property
    def num_clips(self) -> int:
        """Clips that could be read."""
        return len(np.unique(self.columns["index"]))


def evaluate(
    evaluator: Evaluator,
    variables: PyTree,
    batches: Iterable[HostBatch],
    *,
    on_failed: Callable[[Mapping[int, str]], object] = lambda errors: None,
) -> dict[str, float]:
    """The evaluator's metrics, the number of `clips` measured, and that of the `failed` ones.

    Args and errors are those of `collect` and of `evaluator.metrics`; `on_failed` is told why clips
    could not be read, by their index.
    """
    rows = collect(evaluator, variables, batches)
    on_failed(rows.errors)
    rows = evaluator.complete(rows, variables)
    counts = {"clips": rows.num_clips, "failed": len(rows.errors)}
    return evaluator.metrics(rows) | {name: float(count) for name, count in counts.items()}


def collect(
    model: Forward,
    variables: PyTree,
    batches: Iterable[HostBatch],
    *,
    on_clips: Callable[[int], object] = lambda count: None,
) -> Rows:
    """Runs a model over one pass of batches and puts the rows of all processes together.

    Args:
      model: an evaluator, or what else has a forward pass.
      variables: as in `run`.
      batches: as in `run`; rows with index -1 are filling.
      on_clips: told with every batch how many clips are new in it.

    Raises:
      ValueError: there are no batches.
    """
    parts: list[tuple[dict[str, np.ndarray], PyTree]] = []
    errors: dict[int, str] = {}
    seen = {-1}
    for batch, output in run(model, variables, batches):
        fresh = set(batch["index"].tolist()) - seen
        seen |= fresh
        on_clips(len(fresh))
        for row in np.flatnonzero(~batch["valid"] & (batch["index"] >= 0)):
            errors.setdefault(int(batch["index"][row]), str(batch["error"][row]))
        left = {name: x for name, x in batch.items() if name not in (*model.inputs, "error")}
        # A copy of the rows, so that no batch of clips stays alive.
        kept = batch["valid"].nonzero()[0]
        parts.append(jax.tree.map(lambda x, kept=kept: x[kept], (left, output)))
    if not parts:
        raise ValueError("expected at least one batch of views, found none; check the annotations")
    table = jax.tree.map(lambda *x: np.concatenate(x), *parts)
    shares = _gather((table, errors))
    columns, output = jax.tree.map(lambda *x: np.concatenate(x), *(t for t, _ in shares))
    errors = dict(sorted(item for _, share in shares for item in share.items()))
    first = distinct_views(columns["index"], columns["segment"], columns["crop"])
    first = first[~np.isin(columns["index"][first], list(errors))]
    columns, output = jax.tree.map(lambda x: x[first], (columns, output))
    return Rows(columns, output, errors)


def distinct_views(index: np.ndarray, segment: np.ndarray, crop: np.ndarray) -> np.ndarray:
    """Rows `[V]` of different views by clip, segment and crop, whatever their order.

    A view that occurs again (distributed evaluation may pad with repetitions) counts once.
    """
    return np.unique(np.stack([index, segment, crop], axis=1), axis=0, return_index=True)[1]


def run(
    model: Forward, variables: PyTree, batches: Iterable[HostBatch]
) -> Iterator[tuple[HostBatch, PyTree]]:
    """Runs a model over this process's batches; all processes do so together.

    Args:
      model: what to run.
      variables: on a device or a mesh.
      batches: as `data.pipeline.eval_batches` gives them, of any numbers of rows: see
        `rows_per_program`. They are closed at the end.

    Yields:
      Each batch, and what `forward` made of its rows: NumPy arrays, floating ones float32.
    """
    apply = functools.partial(_forward, model=model, rules=nn.get_logical_axis_rules())
    sharding = getattr(jax.tree.leaves(variables)[0], "sharding", None)
    full = 0
    with contextlib.ExitStack() as stack:
        stack.callback(getattr(batches, "close", lambda: None))
        for batch in batches:
            inputs = {name: batch[name] for name in model.inputs}
            if isinstance(sharding, NamedSharding):
                full = full or len(batch["index"])
                yield batch, _on_mesh(apply, variables, inputs, sharding, full)
            else:
                yield batch, _on_device(apply, variables, inputs, sharding)


def rows_per_program(count: int, platform: str) -> int:
    """How many of `count` rows one device takes at once; fewer are filled up to as many.

    A CPU takes one after the other: it then keeps the activations of a row in its caches, and one
    program serves batches of all sizes. Accelerators take powers of two, so that few programs do.
    """
    return 1 if platform == "cpu" else 1 << (count - 1).bit_length()


def rows_on_mesh(count: int, shares: int, platform: str) -> int:
    """To how many rows those of a process are filled up, of which its devices have equal shares.

    Those of accelerators are powers of two, as in `rows_per_program`.
    """
    share = -(-count // shares)
    return shares * (share if platform == "cpu" else rows_per_program(share, platform))


@functools.partial(jax.jit, static_argnames=("model", "rules"))
def _forward(
    variables: PyTree, inputs: dict[str, jax.Array], *, model: Forward, rules: object
) -> PyTree:
    """`rules` are flax's current ones, of which jit's cache knows nothing."""
    output = model.forward(variables, inputs)
    return jax.tree.map(
        lambda x: x.astype(jnp.float32) if jnp.issubdtype(x.dtype, jnp.floating) else x, output
    )


def _on_device(
    apply: Any, variables: PyTree, inputs: dict[str, np.ndarray], sharding: Sharding | None
) -> PyTree:
    """Rows through a model on one device."""
    device = next(iter(sharding.device_set)) if sharding is not None else jax.local_devices()[0]
    count = _num_rows(inputs)
    size = rows_per_program(count, device.platform)
    outputs = []
    for start in range(0, count, size):
        rows = {name: _filled(x[start : start + size], size) for name, x in inputs.items()}
        outputs.append(jax.device_get(apply(variables, jax.device_put(rows, sharding))))
    return jax.tree.map(lambda *parts: np.concatenate(parts)[:count], *outputs)


def _on_mesh(
    apply: Any, variables: PyTree, inputs: dict[str, np.ndarray], like: NamedSharding, full: int
) -> PyTree:
    """This process's rows through a model on a mesh, filled up to `full` ones (so that one program
    serves) and to what the devices divide."""
    mesh = like.mesh
    split = NamedSharding(mesh, partition_spec(("batch",), DEFAULT_RULES))
    ways = math.prod(mesh.shape[axis] for axis in split.spec[0])
    count = _num_rows(inputs)
    shares = max(ways // jax.process_count(), 1)
    size = rows_on_mesh(max(full, count), shares, mesh.devices.flat[0].platform)

    def put(rows: np.ndarray) -> jax.Array:
        return jax.make_array_from_process_local_data(split, _filled(rows, size))

    output = apply(variables, {name: put(rows) for name, rows in inputs.items()})
    return jax.tree.map(lambda x: _own_rows(x)[:count], _constrained(output, sharding=split))


def _own_rows(x: jax.Array) -> np.ndarray:
    """The rows of a split array on this process's devices, in the order in which
    `jax.make_array_from_process_local_data` puts a process's rows there."""
    # Where the mesh has other axes, several devices have the same rows.
    parts = {shard.index[0].start or 0: shard.data for shard in x.addressable_shards}
    return np.concatenate(jax.device_get([parts[start] for start in sorted(parts)]))


def _num_rows(inputs: Mapping[str, np.ndarray]) -> int:
    return len(next(iter(inputs.values())))


def _filled(rows: np.ndarray, size: int) -> np.ndarray:
    """At least `size` rows: repetitions of the first make up for those that are missing."""
    missing = size - len(rows)
    return np.concatenate([rows, np.repeat(rows[:1], missing, axis=0)]) if missing > 0 else rows


@functools.partial(jax.jit, static_argnames="sharding")
def _constrained(x: PyTree, *, sharding: NamedSharding) -> PyTree:
    return jax.lax.with_sharding_constraint(x, sharding)


def _gather(share: Any) -> list[Any]:
    """What every process has, in the order of their numbers, in all of them."""
    if jax.process_count() == 1:
        return [share]
    data = np.frombuffer(pickle.dumps(share), np.uint8)
    # Two numbers, as JAX's integers end at 2 GiB.
    sizes = multihost_utils.process_allgather(np.array(divmod(len(data), _PIECE), np.int32))
    lengths = [_PIECE * int(pieces) + int(rest) for pieces, rest in sizes]
    piece = min(_PIECE, max(lengths))
    padded = np.pad(data, (0, -(-max(lengths) // piece) * piece - len(data)))
    everything = np.concatenate(
        [multihost_utils.process_allgather(part) for part in padded.reshape(-1, piece)], axis=1
    )
    return [pickle.loads(x[:n].tobytes()) for x, n in zip(everything, lengths, strict=True)]
