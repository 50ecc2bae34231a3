"""What stages that train a module of `models` share: its weights, from nothing or a saved model."""

import dataclasses
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import traverse_util

from internvideo_jax import saved_model
from internvideo_jax.models import ARCHITECTURES, Tower, abstract_variables, build
from internvideo_jax.nn.int8 import Kernel
from internvideo_jax.preprocessing import Preprocessing, VideoPreprocessing
from internvideo_jax.training.stage import Stage, Variables
from internvideo_jax.training.stages.weights import check_weights, load_weights

log = logging.getLogger(__name__)

# What only the machine that trains needs of a config; a saved model runs anywhere.
_PORTABLE = {"remat": "none", "dtype": "float32"}
# Of all linear layers of the family (`nn.linear.default_kernel_init`).
_RELEASED_STD = 0.02


@dataclasses.dataclass(frozen=True)
class TowerStart:
    """A tower that starts from a saved model of its own, or the tower of one.

    Attributes:
      place: where its parameters lie below those of the model, as "vision/encoder".
      path: the saved model; None: it has none.
      config: of the tower.
      may_start_afresh: by path ("params/encoder/cls_token"), whether a parameter may be missing
        there.
    """

    place: str
    path: str | None
    config: Any
    may_start_afresh: Callable[[str], bool] = lambda path: False


class ModelStage(Stage):
    """A stage whose model is one of `models.ARCHITECTURES`."""

    preprocessing: Preprocessing

    def __init__(
        self,
        module: Any,
        *,
        initial: str | None,
        starts_from: str = "",
        towers: Sequence[TowerStart] = (),
        preprocessing: Preprocessing | None = None,
        tokenizer_files: Mapping[str, str] = MappingProxyType({}),
        new_head: bool | None = False,
        fan_in: Sequence[str] = (),
        classes: Sequence[str] | None = None,
    ) -> None:
        """Sets up the stage.

        Args:
          module: the module to train.
          initial: saved model to start from; None starts from nothing.
          starts_from: what a recipe wants `initial` to be; "" allows to start from nothing.
          towers: that do not start from `initial`, but from models of their own.
          preprocessing: of the model's inputs; None: of clips as its config's video `encoder` takes
            them.
          tokenizer_files: of its texts, by name, where they lie.
          new_head: start an untrained last layer although the saved model has one; None does so
            where that is of other classes.
          fan_in: towers that start, where they start from nothing, by the function `fan_in`.
          classes: names of a classifier's classes in the order of the logits, if they have any.
        """
        self.module = module
        self.preprocessing = preprocessing or Preprocessing(clips_of(module.config.encoder))
        self.tokenizer_files = tokenizer_files
        self.initial, self.new_head, self.fan_in = initial, new_head, fan_in
        self._starts_from = starts_from
        self._towers = [tower for tower in towers if tower.path]
        self.classes = classes

    def init(self, key: jax.Array) -> Variables:
        inputs = (jnp.zeros(x.shape, x.dtype) for x in self.module.example_inputs())
        return dict(self.module.init(key, *inputs))

    def load_initial(self, variables: Variables) -> Variables:
        self._check_start()
        loaded = self._load_whole(variables)
        if not self._towers:
            return loaded
        params = traverse_util.flatten_dict(loaded["params"], sep="/")
        for tower in self._towers:
            prefix = f"{tower.place}/"
            own = {n.removeprefix(prefix): x for n, x in params.items() if n.startswith(prefix)}
            found = load_weights(
                str(tower.path),
                tower.config,
                {"params": traverse_util.unflatten_dict(own, sep="/")},
                name=f"{tower.place.partition('/')[0]} tower",
                dtype="float32",
                may_start_afresh=tower.may_start_afresh,
            )["params"]
            flat = traverse_util.flatten_dict(found, sep="/")
            params |= {f"{prefix}{name}": x for name, x in flat.items()}
        return {**loaded, "params": traverse_util.unflatten_dict(params, sep="/")}

    def _load_whole(self, variables: Variables) -> Variables:
        """Those of `initial`, or where there is none the ones that are given."""
        if self.initial is None:
            return fan_in(variables, self.module, self.fan_in) if self.fan_in else variables
        loaded: Variables = load_weights(
            self.initial,
            self.module.config,
            variables,
            name="model",
            dtype="float32",
            may_start_afresh=self.may_start_afresh,
            new_head=self._starts_new_head(),
        )
        return loaded

    def check_weights(self) -> None:
        self._check_start()
        if self.initial is not None:
            check_weights(
                self.initial,
                self.module.config,
                abstract_variables(self.module),
                may_start_afresh=self.may_start_afresh,
                new_head=self._starts_new_head(),
            )
        for tower in self._towers:
            shapes = abstract_variables(build(tower.config))
            afresh = tower.may_start_afresh
            check_weights(str(tower.path), tower.config, shapes, may_start_afresh=afresh)

    def _check_start(self) -> None:
        """Raises ValueError where a start is missing that the stage cannot do without."""
        if self.initial is None and self._starts_from:
            raise ValueError(
                "expected a saved model in stage.initial, found none: this recipe starts from"
                f" {self._starts_from} (docs/stage1.md, docs/stage2.md and docs/clip_training.md"
                " name the checkpoints); convert it with `internvideo-jax convert` and set"
                " --config.stage.initial=DIR, or set --config.stage.starts_from= to start from"
                " nothing"
            )

    def may_start_afresh(self, path: str) -> bool:
        """Whether a parameter ("params/head/kernel") may be missing in the saved model."""
        return not path.startswith("params/encoder/")

    def _starts_new_head(self) -> bool:
        """Whether the last layer starts untrained; says so where that was not asked for."""
        if self.new_head is not None or self.initial is None:
            return bool(self.new_head)
        saved = saved_model.read_description(epath.Path(self.initial).expanduser())
        found = saved["config"].get("num_classes")
        names = saved.get("classes")
        wanted = None if self.classes is None else list(self.classes)
        if found is None or (found == self.module.config.num_classes and names == wanted):
            return False
        log.info(
            "the last layer starts untrained: %s knows %d %s",
            self.initial,
            found,
            _difference(names, wanted),
        )
        return True

    def save(
        self,
        variables: Variables,
        directory: Path,
        metadata: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        modules = {a.module_cls: name for name, a in ARCHITECTURES.items()}
        saved_model.save(
            directory,
            modules[type(self.module)],
            portable(self.module.config),
            self.preprocessing,
            variables,
            metadata,
            tokenizer_files=self.tokenizer_files,
            classes=self.classes,
        )


def _difference(saved: Sequence[str] | None, wanted: Sequence[str] | None) -> str:
    """What a saved model's classes are beside those that are wanted."""
    if saved is None:
        return "classes without names"
    if set(saved) == set(wanted or ()):
        return "classes of the same names in another order"
    return "other classes"


def fan_in(variables: Variables, module: Tower, towers: Sequence[str] = ("encoder",)) -> Variables:
    """Rescales the kernels of towers from the released deviation to 1 / sqrt(inputs).

    The released 0.02 is made for widths in the thousands; a narrow network is nearly linear at it.
    What does not start from it stays: patch embeddings, and all outside of the towers, which starts
    from its inputs anyway, is normalised or starts small.

    Args:
      variables: unboxed.
      module: that they are of.
      towers: paths below `params` of its towers, as "vision/encoder".
    """
    prefixes = tuple(f"params/{tower}/" for tower in towers)
    boxed = traverse_util.flatten_dict(abstract_variables(module, boxed=True), sep="/")

    def rescale(path: str, leaf: jax.Array) -> jax.Array:
        box = boxed[path]
        if not (isinstance(box, Kernel) and path.startswith(prefixes)):
            return leaf
        inputs = math.prod(leaf.shape[dim] for dim in box.input_dims)
        return leaf * np.float32(inputs**-0.5 / _RELEASED_STD)

    flat = traverse_util.flatten_dict(variables, sep="/")
    return traverse_util.unflatten_dict({p: rescale(p, x) for p, x in flat.items()}, sep="/")


def clips_of(encoder: Any) -> VideoPreprocessing:
    """The clips that a video encoder's config asks for."""
    return VideoPreprocessing(image_size=encoder.image_size, num_frames=encoder.num_frames)


def portable(config: Any) -> Any:
    """The config without what only the machine that trains needs, float32 and without remat."""
    changes = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            changes[field.name] = portable(value)
        elif field.name in _PORTABLE:
            changes[field.name] = _PORTABLE[field.name]
    return dataclasses.replace(config, **changes)
