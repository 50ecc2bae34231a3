"""How models are shown clips of which features are wanted, and what makes features of them."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

import flax.linen as nn
import jax
import numpy as np

from internvideo_jax.data.config import DataConfig
from internvideo_jax.evaluation import runner
from internvideo_jax.models import video_encoder
from internvideo_jax.models.dual_encoder import DualEncoder
from internvideo_jax.models.video_vit import check_num_frames
from internvideo_jax.preprocessing import Resize, VideoPreprocessing, normalize

if TYPE_CHECKING:
    from internvideo_jax.saved_model import SavedModel

Kind = Literal["pooled", "tokens"]
# An embedding is what a model compares with texts.
FeatureKind = Literal[Kind, "embedding"]
Crop = Literal["center", "squash", "three"]

# How frames reach the model's size, and how many squares are taken of them.
_CROPS: dict[Crop, tuple[Resize, int]] = {
    "center": ("bilinear_short_side", 1),
    "squash": ("bicubic_square", 1),
    "three": ("bilinear_short_side", 3),
}


def clip_config(
    model: "SavedModel", num_frames: int | None, crop: Crop | None, kind: FeatureKind
) -> DataConfig:
    """How clips are shown to a model, of which features are wanted; see `extract_features`.

    Raises:
      ValueError: it takes no videos, or its tubelets do not divide the frames.
    """
    video = model.preprocessing.require_video()
    num_frames = num_frames or video.num_frames
    check_num_frames(model.module, num_frames)
    resize, crops = (video.resize, 1) if crop is None else _CROPS[crop]
    return DataConfig(
        # As where embeddings are compared.
        sampling="intervals" if kind == "embedding" else "sparse",
        num_frames=num_frames,
        image_size=video.image_size,
        resize=resize,
        crops=crops,
    )


def clip_encoder(
    model: "SavedModel", kind: FeatureKind, layer: int | None = None
) -> runner.Forward:
    """What makes features of uint8 clips; see `extract_features`.

    Raises:
      ValueError: the model has nothing of that kind, or no such layer.
    """
    module = model.module
    if layer is not None and kind != "tokens":
        raise ValueError(f'expected kind="tokens" with a layer, found {kind!r}; leave one out')
    if kind == "embedding":
        if not isinstance(module, DualEncoder):
            raise ValueError(
                "expected a model that compares clips with texts, found"
                f" {type(module).__name__}, which has no embeddings; take pooled features or tokens"
            )
    else:
        depth = video_encoder(module, model.variables)[0].config.depth
        if layer is not None and not 0 <= layer < depth:
            raise ValueError(f"layer: expected a block from 0 to {depth - 1}, found {layer}")
    return _Encoder(module, model.preprocessing.require_video(), kind, layer)


def merged_views(
    forward: runner.Forward, variables: Any, batches: Iterable[runner.HostBatch], views: int
) -> Iterator[tuple[runner.HostBatch, int, np.ndarray]]:
    """For each clip, whose views follow each other: the batch and row of its middle view, and the
    mean of what the forward pass made of all."""
    seen: list[tuple[runner.HostBatch, int, np.ndarray]] = []
    for batch, output in runner.run(forward, variables, batches):
        for row in range(len(batch["index"])):
            seen.append((batch, row, output[row]))
            if len(seen) == views:
                middle, place, features = seen[views // 2]
                if views > 1:
                    features = np.mean([own for *_, own in seen], axis=0)
                yield middle, place, features
                seen = []


@dataclasses.dataclass(frozen=True)
class _Encoder(runner.Forward):
    """Features of uint8 clips `[B, T, S, S, 3]`: `[B, P]`, `[B, N, D]` or `[B, C]`."""

    module: nn.Module
    preprocessing: VideoPreprocessing
    kind: FeatureKind
    layer: int | None = None

    def forward(self, variables: Any, batch: Mapping[str, jax.Array]) -> jax.Array:
        video = normalize(batch["video"], self.preprocessing)
        output: Any
        if self.kind == "embedding":
            output = self.module.apply(variables, video, method="encode_video")
            return output.embedding
        encoder, encoder_variables = video_encoder(self.module, variables)
        if self.layer is not None:
            output = encoder.apply(encoder_variables, video, hidden_layers=(self.layer,))
            return output.hidden_states[0]
        output = encoder.apply(encoder_variables, video)
        return output.pooled if self.kind == "pooled" else output.tokens
