"""The InternVL-6B image tower, the CLIP-side teacher of stage-1 pre-training.

The released `internvl_c_13b_224px.pth` also holds a text tower and what its training left behind;
the vision keys are those of InternVideo2.
"""

from internvideo_jax.convert.engine.family import Shapes
from internvideo_jax.convert.engine.options import Options
from internvideo_jax.convert.engine.rules import Ignore, Table
from internvideo_jax.convert.families import internvideo2, video_vit
from internvideo_jax.models import TeacherConfig, VideoViTConfig

EXTRAS = (
    Ignore(r"(transformer\..*|text_projection|logit_scale)", "InternVL text tower"),
    Ignore(
        r"target_pos_embed|mask_token|grad_norm_square_momentum_(clip|sim)|norm3\.bn\..*",
        "InternVL training leftovers",
    ),
)

TABLES = {
    name: Table(table.rules, (*table.ignored, *EXTRAS))
    for name, table in internvideo2.TABLES.items()
    if name in ("video_vit", "teacher")
}


def _recognize(shapes: Shapes, architecture: str | None) -> str | None:
    if not internvideo2.is_image_tower(shapes):
        return None
    return "internvl_encoder" if architecture == "video_vit" else "internvl_teacher"


def _encoder(options: Options) -> VideoViTConfig:
    return internvideo2.encoder(options, num_frames=1, layer_scale=0.1)


def _teacher(options: Options) -> TeacherConfig:
    encoder = _encoder(options)
    return TeacherConfig(
        encoder=encoder,
        layers=video_vit.layers(options, encoder.depth, "clip", "", 6, 1),
        per_frame=True,
        normalization=options.take("clip_norm_type", "l2"),
    )


FAMILY = video_vit.family(
    name="internvl",
    recognize=_recognize,
    kinds={"internvl_encoder": _encoder, "internvl_teacher": _teacher},
    tables=TABLES,
    infer=internvideo2.infer,
    to_options=internvideo2.to_options,
)
