"""Totality: a checkpoint fits wholly, or everything that does not is listed."""

import json

import numpy as np
import pytest

from internvideo_jax.convert.engine.plan import CheckpointMisfit, export_plan, target_shapes


def _shapes(state):
    return {key: array.shape for key, array in state.items()}


def test_a_fitting_checkpoint_fills_every_parameter(tiny, make_state, plan_of):
    architecture, config = tiny
    shapes = _shapes(make_state(architecture, config))
    made = plan_of(shapes, config)
    loaded = {target for a in made.loaded for target in a.targets}
    assert loaded == set(target_shapes(architecture, config))
    assert sorted(made.loaded_names) == sorted(shapes)
    assert not made.ignored
    assert not made.initial
    assert made.summary() == f"{len(shapes)} tensors loaded, 0 missing"


def test_nothing_is_allocated():
    from internvideo_jax import models

    config = models.VideoClassifierConfig(models.video_vit.internvideo2_6b(), num_classes=400)
    # 24 GB of parameters.
    assert len(export_plan("video_classifier", config).loaded_names) == 646


def test_all_misfits_are_listed_at_once(configs, make_state, plan_of):
    architecture, config = configs["linear"]
    shapes = _shapes(make_state(architecture, config))
    for layer in (0, 1):
        del shapes[f"blocks.{layer}.attn.proj.bias"]
    del shapes["clip_projector.norm1_q.bias"]
    shapes["blocks.2.norm1.weight"] = (47,)
    shapes["head.weight"] = (9, 20)
    shapes["blocks.3.norm1.weight"] = (48,)
    shapes["surplus"] = (2, 3)
    with pytest.raises(CheckpointMisfit) as caught:
        plan_of(shapes, config)
    error = caught.value
    assert error.missing == {
        "blocks.0.attn.proj.bias": (48,),
        "blocks.1.attn.proj.bias": (48,),
        "clip_projector.norm1_q.bias": (48,),
    }
    assert error.extra == {"blocks.3.norm1.weight": (48,), "surplus": (2, 3)}
    assert error.misshapen == {
        "blocks.2.norm1.weight": ((48,), (47,)),
        "head.weight": ((7, 20), (9, 20)),
    }
    lines = str(error).splitlines()
    assert "3 keys missing, 2 extra, 2 misshapen" in lines[0]
    assert "  missing   blocks.{0-1}.attn.proj.bias  expected [48]" in lines
    assert "  missing   clip_projector.norm1_q.bias  expected [48]" in lines
    assert "  extra     surplus  found [2, 3]" in lines
    assert "  misshapen head.weight  expected [7, 20], found [9, 20]" in lines


def test_keys_that_a_rule_ignores_are_reported_with_its_reason(configs, make_state, plan_of):
    _, student = configs["pretrain"]
    shapes = _shapes(make_state("stage1_student", student))
    made = plan_of(shapes, student.encoder)
    assert set(made.ignored.values()) == {
        "stage-1 decoders, unused downstream",
        "position tables of the stage-1 decoders, unused downstream",
    }
    assert set(made.ignored) | set(made.loaded_names) == set(shapes)
    assert (
        "2 ignored (position tables of the stage-1 decoders, unused downstream)" in made.summary()
    )


def test_a_student_ignores_nothing(configs, make_state, plan_of):
    _, distill = configs["distill"]
    shapes = _shapes(make_state("distill_student", distill))
    shapes["head.weight"] = (7, 20)
    with pytest.raises(CheckpointMisfit, match=r"head\.weight"):
        plan_of(shapes, distill)


def test_fc_norm_may_be_absent_and_starts_as_the_identity(configs, make_state, plan_of):
    architecture, config = configs["linear"]
    shapes = _shapes(make_state(architecture, config))
    del shapes["fc_norm.weight"], shapes["fc_norm.bias"]
    made = plan_of(shapes, config)
    values = {a.targets[0]: (v.name, v.make(a.shapes[0])) for a, v in made.initial}
    assert {name for name, _ in values.values()} == {"ones", "zeros"}
    np.testing.assert_array_equal(values["params/fc_norm/scale"][1], np.ones(20))
    assert made.summary().endswith("0 missing, fc_norm/bias: zeros, fc_norm/scale: ones")


def test_a_head_may_be_absent_only_on_request(configs, make_state, plan_of):
    architecture, config = configs["linear"]
    shapes = _shapes(make_state(architecture, config))
    del shapes["head.weight"], shapes["head.bias"]
    with pytest.raises(CheckpointMisfit, match="head"):
        plan_of(shapes, config)
    made = plan_of(shapes, config, new_head=True)
    fresh = {target for a, _ in made.initial for target in a.targets}
    assert fresh == {"params/head/kernel", "params/head/bias"}


def test_a_new_head_replaces_the_old_one(configs, make_state, plan_of):
    architecture, config = configs["linear"]
    shapes = _shapes(make_state(architecture, config)) | {"head.weight": (99, 20)}
    made = plan_of(shapes, config, new_head=True)
    assert made.ignored == dict.fromkeys(("head.weight", "head.bias"), "head replaced by a new one")
    kernel = next(v.make(a.shapes[0]) for a, v in made.initial if "kernel" in a.targets[0])
    # N(0, 0.02) scaled by 0.001, as upstream starts heads.
    assert 1e-5 < kernel.std() < 3e-5


def test_the_report_is_json_and_uses_the_names_of_the_file(configs, make_state, plan_of):
    _, student = configs["pretrain"]
    shapes = _shapes(make_state("stage1_student", student, "module."))
    report = plan_of(shapes, student.encoder).report()
    assert json.loads(json.dumps(report)) == report
    assert report["prefix"] == "module."
    ignored = [key for keys in report["ignored"].values() for key in keys]
    assert "module.clip_pos_embed" in ignored
    assert report["tensors_loaded"] + len(ignored) == len(shapes)
