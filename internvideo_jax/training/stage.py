"""What the training loop asks of a stage: weights, teachers, targets, a loss, a saved model."""

import abc
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from internvideo_jax.evaluation.runner import Evaluator
from internvideo_jax.models import Tower
from internvideo_jax.parallel.rules import Rules
from internvideo_jax.preprocessing import Preprocessing

PyTree = Any
Variables = dict[str, Any]
Batch = dict[str, jax.Array]
HostBatch = dict[str, np.ndarray]
# Makes metrics from variables `{"params": ..., ...}` that live on the mesh; may say how far it is.
Evaluation = Callable[[Variables, Callable[[str], None]], dict[str, float]]

# The name among a stage's frozen variables of the trained model with averaged weights.
AVERAGED = "averaged"


class Stage(abc.ABC):
    """A kind of training, as pure functions of arrays.

    Everything that the loop jits (`init`, `init_frozen`, `targets`, `loss`) is traced under the
    current mesh and logical axis rules. Randomness comes from the given keys alone: draw over the
    whole (global) batch at once, then values do not depend on the mesh.

    Attributes:
      module: the trained model; says which parameters decay, and which layer each is of.
      loss_is_mean_over_rows: whether the mean of micro-batches' losses is the loss of the batch. A
        loss over the global batch, as contrastive ones are, says False and is not split.
      media: kinds of media that batches may be of, the first one being those of `example_batch`.
      preprocessing: how the model wants its inputs, where that is known; data must agree with it.
      targets_see_averages: whether `targets` finds the model's variables with averaged weights
        under `AVERAGED` in `frozen`, for self-distillation; needs `train.ema_decay`.
    """

    module: Tower
    loss_is_mean_over_rows: ClassVar[bool] = True
    media: tuple[str, ...] = ("video",)
    preprocessing: Preprocessing | None = None
    targets_see_averages: ClassVar[bool] = False

    @abc.abstractmethod
    def example_batch(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes of the arrays that a step takes, by name: the fields that the data must have.

        The data may have more (`index`, `replaced`): they stay on the host. A uint8 array may come
        as float32 and the other way round: clips travel as bytes or normalised already.

        Args:
          batch_size: rows of the global batch, all augmented copies counted.
        """

    @abc.abstractmethod
    def init(self, key: jax.Array) -> Variables:
        """The trained model's variables `{"params": ..., ["batch_stats": ...]}`, float32.

        Leaves are boxed with their logical axis names, as `module.init` gives them.
        """

    @abc.abstractmethod
    def loss(
        self, params: PyTree, extra: PyTree, batch: Batch, targets: PyTree, key: jax.Array
    ) -> tuple[jax.Array, tuple[dict[str, jax.Array], PyTree]]:
        """The loss to differentiate with respect to `params`.

        Args:
          params: all parameters of the model, frozen ones of it included.
          extra: its other collections, e.g. `{"batch_stats": ...}`, or `{}`.
          batch: as in `targets`.
          targets: what `targets` gave.
          key: for dropout and drop path; independent of that of `targets`.

        Returns:
          A scalar; then scalar metrics by name and the new `extra`.
        """

    @abc.abstractmethod
    def save(
        self,
        variables: Variables,
        directory: Path,
        metadata: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        """Writes a self-describing model (`internvideo_jax.saved_model.save`) to `directory`.

        Args:
          variables: unboxed variables on the mesh. With several processes all call it.
          directory: does not exist yet.
          metadata: further JSON-ready entries of the model's description.
        """

    def of_media(
        self, media: str, num_frames: int | None = None, image_size: int | None = None
    ) -> "Stage":
        """The stage for batches of one kind of media: the same model, other fields and losses.

        Args:
          media: one of `media`.
          num_frames: frames of their clips; None: as `example_batch` of a kind has them.
          image_size: likewise.

        Raises:
          ValueError: the stage has no such kind, or not of that size.
        """
        own = self.example_batch(1)["video"].shape[1:3]
        wanted = num_frames or own[0], image_size or own[1]
        if media not in self.media or wanted != own:
            raise ValueError(
                f"expected media {' or '.join(map(repr, self.media))} of {own[0]} frames of"
                f" {own[1]} pixels, as the stage has, found {media!r} of {wanted[0]} frames of"
                f" {wanted[1]}; correct data.mixture"
            )
        return self

    def targets(self, frozen: PyTree, batch: Batch, key: jax.Array) -> PyTree:
        """What needs no gradient: teachers' features, masks, mixed labels; nothing by default.

        Called once per micro-batch, so that only one micro-batch's features are alive.

        Args:
          frozen: the frozen variables.
          batch: arrays of `example_batch`, one micro-batch of them.
          key: for this micro-batch's draws.
        """
        return {}

    def bounded(self, params: PyTree) -> PyTree:
        """Parameters after an update, kept where they must be; by default anywhere.

        Args:
          params: the trained ones.
        """
        return params

    def trainable(self, path: str) -> bool | np.ndarray:
        """Whether the parameter at a "/"-joined path below `params` is trained; all are by default.

        For a parameter stacked over layers the answer may be a bool for each of them, `[depth]`.
        """
        return True

    @property
    def num_classes(self) -> int | None:
        """Classes that the labels of a batch may have; None if it needs no labels."""
        return None

    def init_frozen(self, key: jax.Array) -> PyTree:
        """Boxed variables of the frozen teachers by name, in their dtypes; `{}` without teachers.

        Used for shapes and shardings only.
        """
        return {}

    def load_frozen(self, mesh: Mesh, rules: Rules) -> PyTree:
        """The teachers' real variables, unboxed and sharded; the tree of `init_frozen`."""
        return {}

    def load_initial(self, variables: Variables) -> Variables:
        """Replaces the variables of `init` by the weights that training starts from.

        Called once, at the start of a run and not when it resumes.

        Args:
          variables: unboxed, on the mesh in their shardings.

        Returns:
          A tree of the same structure and shapes; any floating dtype and sharding will do.
        """
        return variables

    def check_weights(self) -> None:
        """Checks, without reading arrays, that the saved models of `load_frozen` and `load_initial`
        are named, there, and fit.

        Raises:
          ValueError: one of them is not.
        """
        return None

    def check_batch(self, rows: int, devices: int) -> None:
        """Checks, before anything is compiled, that a step can take (micro-)batches of a size.

        Args:
          rows: of the global (micro-)batch, all augmented copies counted.
          devices: that share it.

        Raises:
          ValueError: it cannot; names the field of the config to change.
        """
        return None

    def flops(self) -> dict[str, int]:
        """Analytic FLOPs of a step per row of the batch, by part: teachers, model with gradients.

        For compile reports; `{}` if unknown.
        """
        return {}

    def evaluators(self) -> dict[str, Evaluator]:
        """What can be measured of the model during training, by name; nothing by default."""
        return {}


class Batches(NamedTuple):
    """The batches of one kind of media.

    Attributes:
      stage: what is trained with them (`Stage.of_media`).
      rows: of the global batch, all augmented copies counted.
    """

    stage: Stage
    rows: int
