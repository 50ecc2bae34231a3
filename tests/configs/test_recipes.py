"""Stage-1 recipes: each of upstream's scripts has a config, every config is a run that shards."""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh

from internvideo_jax.config import from_dict
from internvideo_jax.configs.stage1 import distill, finetune, pretrain, probe
from internvideo_jax.convert.engine import registry
from internvideo_jax.data.config import DataConfig
from internvideo_jax.parallel.mesh import AXES
from internvideo_jax.parallel.rules import DEFAULT_RULES
from internvideo_jax.parallel.sharding import abstract_params
from internvideo_jax.training.config import TrainConfig
from internvideo_jax.training.stages import make_stage
from internvideo_jax.training.stages.classify import ClassifyStage

GOLDENS = Path(__file__).parents[1] / "goldens"
RECIPES = json.loads((GOLDENS / "data/internvideo2_stage1/recipes.json").read_text())["recipes"]
FILES = {"pretrain": pretrain, "distill": distill, "finetune": finetune, "probe": probe}
NAMES = [(file, name) for file, module in FILES.items() for name in module.RECIPES]
# data x fsdp of v5e:16x16.
MESH = AbstractMesh((16, 16, 1, 1), AXES)


@pytest.fixture(scope="module")
def checker():
    """The golden's checker, which compares configs with upstream's flags."""
    sys.path.insert(0, str(GOLDENS))
    try:
        from checkers import internvideo2_stage1_recipes
    finally:
        sys.path.remove(str(GOLDENS))
    return internvideo2_stage1_recipes


def test_unlisted_differences_and_stale_entries_are_reported(checker):
    script = "scripts/finetuning/full_tuning/k400/1B_ft_k710_ft_k400_f16.sh"
    changed = {**RECIPES[script], "lr": 2e-5, "batch_size": 16}
    found = checker.problems(script, changed, {"drop_path": "a reason"})
    assert found == [
        f"{script} (finetune.py:1b,k400,f16): --batch_size 16, ours 8",
        f"{script} (finetune.py:1b,k400,f16): --lr 2e-05, ours 1e-05",
        f"{script} (finetune.py:1b,k400,f16): --drop_path is listed as different and is not",
    ]


@pytest.mark.parametrize(
    ("script", "field", "value", "flag"),
    [
        ("pretraining/1B_pt.sh", "train.optimizer.min_lr", 0.0, "min_lr"),
        ("pretraining/1B_pt.sh", "stage.clip_teacher.layers", [1, 2, 3, 4, 5, 6], "interval"),
        ("finetuning/full_tuning/ssv2/1B_ft_ssv2_f8.sh", "data.flip", True, "data_set"),
        ("finetuning/full_tuning/k710/1B_ft_k710_f8.sh", "eval_data.crops", 1, "test_num_crop"),
    ],
)
def test_a_changed_field_is_a_difference(checker, script, field, value, flag):
    script = f"scripts/{script}"
    file, name = checker.config_name(script)
    config = FILES[file].get_config(name)
    config.update_from_flattened_dict({field: value})
    assert any(flag in found for found in checker.differences(config, RECIPES[script]))


@pytest.mark.parametrize(("file", "name"), NAMES)
def test_every_recipe_is_a_stage_a_training_and_data(file, name):
    config = FILES[file].get_config(name)
    stage = make_stage(config.stage)
    train = from_dict(TrainConfig, config.train)
    assert train.lengths(steps_per_epoch=100).total == 100 * config.train.epochs
    from_dict(DataConfig, config.data)
    # A whole number of rows for each of 256 devices.
    assert train.rows % (MESH.size * train.accumulation) == 0
    encoder = stage.module.config.encoder
    assert (encoder.width % 16, encoder.mlp_dim % 16) == (0, 0)
    batch = stage.example_batch(train.rows)
    if isinstance(stage, ClassifyStage):
        views = from_dict(DataConfig, config.eval_data)
        assert views.augmentation == "none"
        assert (train.rows // train.accumulation) % config.stage.mix_group == 0
        start = config.stage.starts_from.removesuffix("+stage2")
        if start.startswith("probe.py:"):
            assert start.removeprefix("probe.py:") in probe.RECIPES
        else:
            assert registry.find(start).sizes["encoder.width"] == encoder.width
    else:
        assert config.eval_data is None
    frames, size = config.data.num_frames, config.data.image_size
    assert batch["video"].shape == (train.rows, frames, size, size, 3)


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("pretrain", "1b"),
        ("distill", "l14"),
        ("finetune", "6b,k400"),
        ("probe", "6b,ap_ssv2"),
        ("probe", "1b,lp_ssv2"),
    ],
)
def test_models_are_sharded_over_16x16_without_being_made(file, name):
    """One of each kind of model and head; other sizes differ in widths, which 16 divides too."""
    stage = make_stage(FILES[file].get_config(name).stage)
    shapes = abstract_params(stage.init, MESH, DEFAULT_RULES, jax.random.key(0))
    kernel = shapes["params"]["encoder"]["blocks"]["mlp"]["fc1"]["kernel"]
    assert kernel.dtype == jnp.float32
    assert kernel.sharding.shard_shape(kernel.shape)[1] == kernel.shape[1] // 16


def test_teachers_are_sharded_and_stay_in_bfloat16():
    stage = make_stage(pretrain.get_config("1b").stage)
    frozen = abstract_params(stage.init_frozen, MESH, DEFAULT_RULES, jax.random.key(0))
    kernels = [frozen[n]["params"]["encoder"]["blocks"]["mlp"]["fc1"]["kernel"] for n in frozen]
    assert [k.shape for k in kernels] == [(48, 3200, 12800), (40, 1408, 6144)]
    assert {k.dtype.name for k in kernels} == {"bfloat16"}


@pytest.mark.parametrize("module", FILES.values(), ids=FILES)
def test_unknown_recipes_are_refused_with_all_names(module):
    with pytest.raises(ValueError, match="found '2b'.*recipes: ") as error:
        module.get_config("2b")
    assert all(name in str(error.value) for name in module.RECIPES)


def test_empty_fields_can_be_set_and_only_to_their_type():
    config = pretrain.get_config("1b")
    config.stage.clip_teacher_path = "teachers/internvl"
    config.train.steps = 10
    config.train.epochs = None
    with pytest.raises(TypeError):
        config.train.steps = "10"
    assert config.data.annotations is None
    train = from_dict(TrainConfig, config.train)
    assert (train.steps, train.epochs) == (10, None)


def test_rates_are_those_of_upstreams_batches():
    # 1B pre-training and the distillation of L14.
    assert pretrain.get_config("1b").train.optimizer.lr == pytest.approx(2.4e-3)
    assert distill.get_config("l14").train.optimizer.lr == pytest.approx(8e-3)
    # Fine-tuning of 1B on K710: 32 x 8 clips, two augmented copies each.
    assert finetune.get_config("1b,k710").train.optimizer.lr == pytest.approx(1e-4)
