"""Totality: a checkpoint fits wholly, or everything that does not is listed."""

import dataclasses
import json

import numpy as np
import pytest

from internvideo_jax.convert.engine.misfit import CheckpointMisfit
from internvideo_jax.convert.engine.plan import export_plan, plan
from internvideo_jax.convert.engine.recognition import recognize
from internvideo_jax.convert.engine.rules import Tie
from internvideo_jax.convert.engine.state_dict import to_tree


def test_nothing_is_allocated():
    from internvideo_jax import models

    config = models.VideoClassifierConfig(models.video_vit.internvideo2_6b(), num_classes=400)
    # 24 GB of parameters.
    assert len(export_plan(config).loaded_names) == 646


def test_all_misfits_are_listed_at_once(shapes_of, configs, plan_of):
    config = configs["linear"]
    shapes = shapes_of(config)
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


def test_keys_that_a_rule_ignores_are_reported_with_its_reason(shapes_of, configs, plan_of):
    student = configs["pretrain"]
    shapes = shapes_of(student)
    made = plan_of(shapes, student.encoder)
    assert set(made.ignored.values()) == {
        "stage-1 decoders, unused downstream",
        "position tables of the stage-1 decoders, unused downstream",
    }
    assert set(made.ignored) | set(made.loaded_names) == set(shapes)
    assert (
        "2 ignored (position tables of the stage-1 decoders, unused downstream)" in made.summary()
    )


def test_a_student_ignores_nothing(shapes_of, configs, plan_of):
    distill = configs["distill"]
    shapes = shapes_of(distill)
    shapes["head.weight"] = (7, 20)
    with pytest.raises(CheckpointMisfit, match=r"head\.weight"):
        plan_of(shapes, distill)


def test_fc_norm_may_be_absent_and_starts_as_the_identity(shapes_of, configs, plan_of):
    config = configs["linear"]
    shapes = shapes_of(config)
    del shapes["fc_norm.weight"], shapes["fc_norm.bias"]
    made = plan_of(shapes, config)
    values = {a.targets[0]: (v.name, v.make(a.shapes[0])) for a, v in made.initial}
    assert {name for name, _ in values.values()} == {"ones", "zeros"}
    np.testing.assert_array_equal(values["params/fc_norm/scale"][1], np.ones(20))
    assert made.summary().endswith("0 missing, fc_norm/bias: zeros, fc_norm/scale: ones")


def test_a_head_may_be_absent_only_on_request(shapes_of, configs, plan_of):
    config = configs["linear"]
    shapes = shapes_of(config)
    del shapes["head.weight"], shapes["head.bias"]
    with pytest.raises(CheckpointMisfit, match="head"):
        plan_of(shapes, config)
    made = plan_of(shapes, config, new_head=True)
    fresh = {target for a, _ in made.initial for target in a.targets}
    assert fresh == {"params/head/kernel", "params/head/bias"}


def test_a_new_head_replaces_the_old_one(shapes_of, configs, plan_of):
    config = configs["linear"]
    shapes = shapes_of(config) | {"head.weight": (99, 20)}
    made = plan_of(shapes, config, new_head=True)
    assert made.ignored == dict.fromkeys(("head.weight", "head.bias"), "head replaced by a new one")
    kernel = next(v.make(a.shapes[0]) for a, v in made.initial if "kernel" in a.targets[0])
    # N(0, 0.02) scaled by 0.001, as upstream starts heads.
    assert 1e-5 < kernel.std() < 3e-5


def test_the_report_is_json_and_uses_the_names_of_the_file(shapes_of, configs, plan_of):
    student = configs["pretrain"]
    shapes = shapes_of(student, "module.")
    report = plan_of(shapes, student.encoder).report()
    assert json.loads(json.dumps(report)) == report
    assert report["prefix"] == "module."
    ignored = [key for keys in report["ignored"].values() for key in keys]
    assert "module.clip_pos_embed" in ignored
    assert report["tensors_loaded"] + len(ignored) == len(shapes)


@pytest.fixture
def tied(configs, shapes_of):
    """A file whose class token is repeated, and its config."""
    config = configs["encoder"]
    copies = {"copy.0.token": (1, 1, 48), "copy.1.token": (1, 1, 48)}
    found = recognize(shapes_of(config, "module.") | copies)
    table = found.family.tables["video_vit"]
    table = dataclasses.replace(table, tied=(Tie(r"copy\.\d\.token", "cls_token"),))
    family = dataclasses.replace(found.family, tables={"video_vit": table})
    return dataclasses.replace(found, family=family), config


def _state(made, shapes):
    rng = np.random.default_rng(0)
    state = {made.names[k]: rng.normal(size=s).astype(np.float32) for k, s in shapes.items()}
    return state | dict.fromkeys(("copy.0.token", "copy.1.token"), state["module.cls_token"])


def test_tied_keys_are_told_and_compared_when_they_are_read(tied):
    found, config = tied
    made = plan(found, config)
    assert made.tied == dict.fromkeys(("copy.0.token", "copy.1.token"), "cls_token")
    assert "2 the same as cls_token" in made.summary()
    assert made.report()["tied"]["copy.0.token"] == "module.cls_token"
    state = _state(made, found.shapes)
    to_tree(state, made)
    with pytest.raises(ValueError, match=r"copy\.1\.token and module\.cls_token"):
        to_tree(state | {"copy.1.token": state["module.cls_token"] + 1}, made)


def test_a_tied_tensor_stands_in_for_the_one_that_is_not_there(tied):
    found, config = tied
    shapes = {k: s for k, s in found.shapes.items() if k != "cls_token"}
    keys = {k: number for k, number in found.keys.items() if k != "cls_token"}
    made = plan(dataclasses.replace(found, shapes=shapes, keys=keys), config)
    assert made.names["cls_token"] == "copy.0.token"
    assert made.tied == {"copy.1.token": "cls_token"}
    # An export gives every key its name back.
    report = made.report()
    names = export_plan(config, report["prefix"], report["names"]).names
    assert names["cls_token"] == "copy.0.token"
    assert names["pos_embed"] == "module.pos_embed"


def test_tied_tensors_have_one_shape(tied):
    found, config = tied
    shapes = found.shapes | {"copy.1.token": (1, 48)}
    with pytest.raises(CheckpointMisfit) as caught:
        plan(dataclasses.replace(found, shapes=shapes), config)
    assert caught.value.misshapen == {"copy.1.token": ((1, 1, 48), (1, 48))}
