"""Conversion table of the InternVL-6B image tower, the CLIP-side teacher of stage-1 pre-training.

The released `internvl_c_13b_224px.pth` also holds a text tower and what its training left behind;
the vision keys are those of InternVideo2.
"""

from internvideo_jax.convert.engine.rules import Ignore, Table, nested
from internvideo_jax.convert.families.internvideo2 import ENCODER, VIDEO_VIT

EXTRAS = (
    Ignore(r"(transformer\..*|text_projection|logit_scale)", "InternVL text tower"),
    Ignore(
        r"target_pos_embed|mask_token|grad_norm_square_momentum_(clip|sim)|norm3\.bn\..*",
        "InternVL training leftovers",
    ),
)

TEACHER = Table(nested(ENCODER, "encoder"), (*VIDEO_VIT.ignored, *EXTRAS))
