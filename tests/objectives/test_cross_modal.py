import jax
import jax.numpy as jnp
import pytest

from internvideo_jax import models
from internvideo_jax.objectives.cross_modal import CrossModalOptions, Draws, cross_modal_losses
from internvideo_jax.objectives.masked_lm import Vocabulary
from tests.small_models import STAGE2

ALL = ("vtc", "atc", "avc", "avtc", "vtm", "atm", "avtm", "mlm", "amlm", "avmlm")
OPTIONS = CrossModalOptions(match_group=2, vocabulary=Vocabulary(20, 0, 1, 3))


def losses(media, captions, names=("a", "b")):
    """Shapes of the losses of a batch of four, by term; nothing is computed."""
    module = models.build(STAGE2["audiovisual"])

    def run(model, inputs, ids):
        encoded = {}
        if "video" in media:
            encoded["video"] = model.encode_video(inputs["video"])
        if "audio" in media:
            encoded["audio"] = model.encode_audio(inputs["audio"])
        texts = dict.fromkeys(names, (inputs["ids"], inputs["mask"]))
        draws = Draws(jax.random.key(0))
        return cross_modal_losses(model, encoded, texts, ids, captions, draws, OPTIONS)

    video, ids, mask, audio = module.example_inputs(4)
    inputs = {"video": video, "ids": ids, "mask": mask, "audio": audio}
    variables = models.abstract_variables(module)
    return jax.eval_shape(
        lambda *x: module.apply(x[0], *x[1:], method=run), variables, inputs, ids.update(shape=(4,))
    )


@pytest.mark.parametrize(
    ("media", "found"),
    [
        (("video",), ("vtc", "vtm", "mlm")),
        (("audio",), ("atc", "atm", "amlm")),
        pytest.param(("video", "audio"), ALL, marks=pytest.mark.slow),
    ],
)
def test_losses_are_those_of_the_media_that_a_batch_has(media, found):
    captions = {term: "ab"[i % 2] for i, term in enumerate(ALL)}
    shapes = losses(media, captions)
    assert shapes == dict.fromkeys(found, jax.ShapeDtypeStruct((), jnp.float32))


@pytest.mark.parametrize("captions", [{"vtc": "c"}, {"vtx": "a"}])
def test_unknown_terms_and_captions_are_named(captions):
    with pytest.raises(ValueError, match="found (c|vtx)"):
        losses(("video",), captions)
