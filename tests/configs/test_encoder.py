import pytest

from internvideo_jax import models
from internvideo_jax.config import from_dict
from internvideo_jax.configs import encoder


def model_config(config):
    architecture = models.ARCHITECTURES[config.model.architecture]
    return from_dict(architecture.config_cls, config.model.config)


@pytest.mark.parametrize(
    ("name", "architecture", "gradient"),
    [
        ("6b", "video_vit", True),
        ("b14,encoder", "video_vit", True),
        ("b14,classifier", "video_classifier", True),
        ("1b,student", "stage1_student", True),
        ("s14,distill", "distill_student", True),
        ("1b,teacher", "teacher", False),
        ("internvl_6b", "teacher", False),
        ("videomae_g", "videomae_teacher", False),
    ],
)
def test_kinds(name, architecture, gradient):
    config = encoder.get_config(name)
    assert (config.model.architecture, config.gradient) == (architecture, gradient)
    made = model_config(config)
    encoder_config = getattr(made, "encoder", made)
    assert encoder_config.dtype == "bfloat16"
    assert encoder_config.remat == ("full" if gradient else "none")
    module = models.ARCHITECTURES[architecture].module_cls(made)
    assert module.example_inputs(2)[0].shape[0] == 2


@pytest.mark.parametrize("name", ["2b", "", "1b,", "1b,decoder", "internvl_6b,student"])
def test_unknown_models_are_refused(name):
    with pytest.raises(ValueError, match="expected SIZE.*s14, b14.*student.*videomae_g; found"):
        encoder.get_config(name)
