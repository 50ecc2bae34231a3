"""What stages that train a module of `models` share: its weights, from nothing or a saved model."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from internvideo_jax import saved_model
from internvideo_jax.models import ARCHITECTURES
from internvideo_jax.preprocessing import Preprocessing, VideoPreprocessing
from internvideo_jax.training.stage import Stage, Variables
from internvideo_jax.training.stages.weights import load_weights

# What only the machine that trains needs of a config; a saved model runs anywhere.
_PORTABLE = {"remat": "none", "dtype": "float32"}


class ModelStage(Stage):
    """A stage whose model is one of `models.ARCHITECTURES`."""

    def __init__(self, module: Any, *, initial: str | None, new_head: bool = False) -> None:
        """Sets up the stage.

        Args:
          module: the module to train, whose config has a video `encoder`.
          initial: saved model to start from; None starts from nothing.
          new_head: start an untrained last layer although the saved model has one.
        """
        self.module = module
        encoder = module.config.encoder
        self.preprocessing = Preprocessing(
            VideoPreprocessing(image_size=encoder.image_size, num_frames=encoder.num_frames)
        )
        self.initial, self.new_head = initial, new_head

    def init(self, key: jax.Array) -> Variables:
        inputs = (jnp.zeros(x.shape, x.dtype) for x in self.module.example_inputs())
        return dict(self.module.init(key, *inputs))

    def load_initial(self, variables: Variables) -> Variables:
        if self.initial is None:
            return variables
        loaded: Variables = load_weights(
            self.initial,
            self.module.config,
            variables,
            name="model",
            dtype="float32",
            may_start_afresh=lambda path: not path.startswith("params/encoder/"),
            new_head=self.new_head,
        )
        return loaded

    def save(self, variables: Variables, directory: Path) -> None:
        modules = {a.module_cls: name for name, a in ARCHITECTURES.items()}
        saved_model.save(
            directory,
            modules[type(self.module)],
            _portable(self.module.config),
            self.preprocessing,
            variables,
        )


def _portable(config: Any) -> Any:
    changes = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            changes[field.name] = _portable(value)
        elif field.name in _PORTABLE:
            changes[field.name] = _PORTABLE[field.name]
    return dataclasses.replace(config, **changes)
