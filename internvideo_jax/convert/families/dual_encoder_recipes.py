"""How reference activations are run through models that compare clips with texts."""

from collections.abc import Callable
from typing import Any

import numpy as np

from internvideo_jax.convert.engine.verify import Arrays, Recipe, Reference
from internvideo_jax.models.dual_encoder import cosines


def recipe(
    more: Callable[[Any, Arrays, Arrays, Reference], Arrays] | None = None,
    hooks: tuple[tuple[str, str], ...] = (),
) -> Recipe:
    """The recipe of a whole model, of inputs `video` and `input_ids` `[B, L]`.

    Args:
      more: finds what else references may hold, of module, variables, inputs and reference; None:
        nothing.
      hooks: patterns of paths of upstream's submodules, and the names of what they give.

    Returns:
      A recipe of `vision_embed` and `text_embed` `[B, C]`, not normalised, `sim_cosine` and
      `sim_over_temp` `[B, B]`, `temp_after_clamp` `[]`, and what `more` finds.
    """

    def run(module: Any, variables: Arrays, inputs: Arrays, reference: Reference) -> Arrays:
        inner = {} if more is None else more(module, variables, inputs, reference)
        return inner | _compared(module, variables, inputs)

    return Recipe(
        ("video", "input_ids"),
        run,
        _prepare,
        hooks,
        outputs=("vision_embed", "text_embed"),
        other_names={"text_tokens": "input_ids", "tokens": "input_ids"},
        channel_axis=2,
    )


def _prepare(inputs: Arrays) -> Arrays:
    """Videos `[B, T, H, W, 3]`.

    References have them `[B, T, 3, H, W]`, as upstream's whole models, or `[B, 3, T, H, W]`, as
    towers do; with three frames the former are meant.
    """
    video = inputs["video"]
    return inputs | {"video": np.moveaxis(video, 2 if video.shape[2] == 3 else 1, -1)}


def _compared(module: Any, variables: Arrays, inputs: Arrays) -> Arrays:
    def call(method: str, *args: Any) -> Any:
        return module.apply(variables, *args, method=method)

    video = call("encode_video", inputs["video"]).embedding
    text = call("encode_text", inputs["input_ids"]).embedding
    similarity = cosines(video, text)
    return {
        "vision_embed": video,
        "text_embed": text,
        "temp_after_clamp": call("bounded_temperature"),
        "sim_cosine": similarity,
        "sim_over_temp": similarity * call("cosine_scale"),
    }
