"""Every script of upstream's stage 1 against the config that stands for it, flag by flag.

A config is turned back into the flags it amounts to; what upstream got wrong is listed in `KNOWN`
with the reason. Unlisted differences fail, and so do listed ones that are none.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from golden import Golden, checker
from ml_collections import ConfigDict

from internvideo_jax.config import from_dict
from internvideo_jax.configs.stage1 import distill, finetune, pretrain, probe
from internvideo_jax.data.config import DataConfig
from internvideo_jax.models.stage1 import aligned_layers
from internvideo_jax.training.config import TrainConfig
from internvideo_jax.training.stages import STAGES

Flags = Mapping[str, Any]

CONFIGS = {"pretrain": pretrain, "distill": distill, "finetune": finetune, "probe": probe}

# Where the argument parsers of upstream's runners leave a flag that a script does not give.
_CLASSIFIER_DEFAULTS = {
    "min_lr": 1e-6,
    "warmup_lr": 1e-6,
    "opt_eps": 1e-8,
    "clip_grad": None,
    "aa": "rand-m7-n4-mstd0.5-inc1",
    "reprob": 0.25,
    "smoothing": 0.1,
    "mixup": 0.8,
    "cutmix": 1.0,
    "mixup_prob": 1.0,
    "mixup_switch_prob": 0.5,
    "init_scale": 0.001,
    "fc_drop_rate": 0.0,
    "split": " ",
    "no_use_decord": False,
    "eval": False,
    "model_ema": False,
}
_PROBE_DEFAULTS = {
    **_CLASSIFIER_DEFAULTS,
    "open_clip_projector": False,
    "open_block_num": 0,
    "loads_stage2_extra": False,
}
# The runners of pre-training do not hand `warmup_lr` to the schedule, which starts from 0.
_ALIGNMENT_DEFAULTS = {"min_lr": 1e-5, "warmup_lr": 0.0, "layer_decay": 1.0, "model_ema": False}
DEFAULTS: dict[str, dict[str, Any]] = {
    "run_pretraining.py": _ALIGNMENT_DEFAULTS,
    "run_distill.py": _ALIGNMENT_DEFAULTS,
    "run_finetuning.py": _CLASSIFIER_DEFAULTS,
    "run_linear_probing.py": _PROBE_DEFAULTS,
    "run_linear_probing4_2.py": _PROBE_DEFAULTS,
}

# Flags that do not say what is trained.
NO_COUNTERPART = {
    "enable_deepspeed": "DeepSpeed is upstream's way to shard the optimizer",
    "zero_stage": "weights and optimizer are sharded by the mesh",
    "use_checkpoint": "`checkpoint_num` says how many blocks; 0 in the distillation scripts",
    "steps_per_print": "logging",
    "save_ckpt_freq": "checkpoints are written by steps, not epochs",
    "dist_eval": "evaluation is always split over the processes",
    "test_best": "the last weights are evaluated: picking the best epoch on the evaluation data"
    " flatters the result",
    "orig_t_size": "the frames that a position table is for are read off the checkpoint",
    "head_drop_path": "built upstream, never applied",
    "opt": "adamw throughout",
}

# Scripts whose name is not that of the model they are for.
RENAMED = {
    "full_tuning/ssv2/B14_ft_ssv2_f8.sh": (
        "l14,ssv2",
        "swapped with the L14 script: passes the large model and its short recipe",
    ),
    "full_tuning/ssv2/L14_ft_ssv2_f8.sh": (
        "b14,ssv2",
        "swapped with the B14 script: has the long recipe of the small models",
    ),
}

_NO_SUCH_MODEL = "no factory is called vit_6B_patch14_224; the one for classifiers is meant"
_OWN_OUTPUT = "starts from its own output; its siblings start from the K710 probe"
_SIZE_MISMATCH = "a 1B file does not fit a 6B model"
_SMALL_START = "an S14 file does not fit the model"
KNOWN = {
    "distillation/L14_dist_1B_stage2.sh": {
        "model": "passes the small model; the script's name, batch size and zoo entry say L14"
    },
    "attentive_probing/k400/1B_ap_k710_ap_k400_f16.sh": {"init_checkpoint": _OWN_OUTPUT},
    "attentive_probing/k710/6B_ap_k710_f16_loadStage2.sh": {"init_checkpoint": _SIZE_MISMATCH},
    "full_tuning/anet/6B_ft_k710_ft_k400_ap_anet_f8.sh": {"init_checkpoint": _SIZE_MISMATCH},
    "full_tuning/hacs/6B_ft_k710_ft_k400_ap_hacs_f8.sh": {"init_checkpoint": _SIZE_MISMATCH},
    "full_tuning/mit/6B_ft_k710_ft_k400_ft_mit_f8_res224to336.sh": {
        "model": "the factory fixes 224 pixels, so that the forward pass fails on 336",
        "init_checkpoint": "lacks the extension .pth",
    },
    "full_tuning/ssv1/6B_ft_ssv1_f8.sh": {"eval": "a stale flag: the script would not train"},
    "full_tuning/ssv2/B14_ft_ssv2_f8.sh": {"init_checkpoint": _SMALL_START},
    "full_tuning/ssv2/L14_ft_ssv2_f8.sh": {
        "model": "passes the small model, whose own script differs in the batch size only",
        "init_checkpoint": _SMALL_START,
        "eval": "a stale flag: the script would not train",
    },
    "linear_probing/k400/6B_lp_k400_f16.sh": {"model": _NO_SUCH_MODEL},
    "linear_probing/k400/6B_lp_k400_f16_loadStage2.sh": {
        "model": _NO_SUCH_MODEL,
        "entry": "there is no run_linear_probing4_2.py; run_linear_probing.py takes all its flags",
    },
}

_STARTS = {
    **{f"internvideo2-{s}-pretrain": f"{s.upper()}_pt.pth" for s in ("1b", "6b")},
    **{
        f"internvideo2-{s}-distill": f"{s.upper()}_dist_1B_stage2.pth"
        for s in ("s14", "b14", "l14")
    },
    **{
        f"internvideo2-{s}-k710": f"{s.upper()}_ft_k710_f8.pth"
        for s in ("s14", "b14", "l14", "1b", "6b")
    },
    **{f"internvideo2-{s}-k400-f8": f"{s.upper()}_ft_k710_ft_k400_f8.pth" for s in ("1b", "6b")},
    "internvideo2-6b-mit": "6B_ft_k710_ft_k400_ft_mit_f8.pth",
    **{f"probe.py:{s},ap_k710": f"{s.upper()}_ap_k710_f16_loadStage2.pth" for s in ("1b", "6b")},
}
_WIDTHS = {384: "small", 768: "base", 1024: "large", 1408: "1B", 3200: "6B"}
# Format of the lists, sampling and flipping behind upstream's names of data sets.
_READERS = {
    "Kinetics_sparse": ("csv", "sparse", True),
    "mitv1_sparse": ("csv", "sparse", True),
    "ANet": ("csv", "sparse", True),
    "HACS": ("csv", "sparse", True),
    "UCF101": ("csv", "dense", True),
    "HMDB51": ("frames", "tsn_frames", True),
    "SSV2": ("frames", "tsn_frames", False),
}


def config_name(script: str) -> tuple[str, str]:
    """File and argument of the config that stands for a script, from the script's path."""
    short = shorten(script)
    if short in RENAMED:
        return "finetune", RENAMED[short][0]
    group, *folders, stem = short.removesuffix(".sh").split("/")
    size = stem.split("_")[0].lower()
    if group == "pretraining":
        return "pretrain", size
    if group == "distillation":
        return "distill", size
    (dataset,) = folders
    if group == "linear_probing":
        return "probe", f"{size},lp_{dataset}" + (",stage2" if "loadStage2" in stem else "")
    if group == "attentive_probing" or f"_ap_{dataset}" in stem:
        return "probe", f"{size},ap_{dataset}"
    variant = ",336" if stem.endswith("res224to336") else ",f16" if stem.endswith("f16") else ""
    return "finetune", f"{size},{dataset}{variant}"


def shorten(script: str) -> str:
    """A script's path without the folders that all have in common."""
    return re.sub("^scripts/(finetuning/)?", "", script)


def _same(*values: Any) -> Any:
    """A value that a config holds in several places."""
    first, *others = (tuple(v) if isinstance(v, list) else v for v in values)
    return first if all(v == first for v in others) else values


def _if_layers(interval: float, layers: Any, depth: int) -> Any:
    """The interval if it makes these layers of that depth, else the layers."""
    expected = aligned_layers(depth, len(layers), interval)
    return interval if tuple(layers) == expected else tuple(layers)


def _per_gpu(config: ConfigDict, flags: Flags) -> int:
    if config.stage.kind == "classify":
        return config.stage.mix_group // config.train.num_sample
    return config.train.batch_size // flags["gpus"]


def _model(config: ConfigDict, flags: Flags) -> str:
    stage = config.stage
    encoder = stage.model.encoder if stage.kind == "classify" else stage.student.encoder
    prefix = {"pretrain": "pretrain_", "distill": "distill_", "classify": ""}[stage.kind]
    head = ""
    if stage.kind == "classify":
        head = {"linear": "", "attentive": "ap_", "concat": "cat_"}[stage.model.head]
    size = f"patch{encoder.patch_size}_{encoder.image_size}"
    return f"{prefix}internvideo2_{head}{_WIDTHS[encoder.width]}_{size}"


def _entry(config: ConfigDict, flags: Flags) -> str:
    if config.stage.kind != "classify":
        return {"pretrain": "run_pretraining.py", "distill": "run_distill.py"}[config.stage.kind]
    return "run_linear_probing.py" if config.stage.probe else "run_finetuning.py"


def _clip_teacher(config: ConfigDict) -> ConfigDict:
    stage = config.stage
    return stage.clip_teacher if stage.kind == "pretrain" else stage.teacher


def _clip_teacher_name(config: ConfigDict, flags: Flags) -> str:
    teacher = _clip_teacher(config)
    names = {
        (3200, 48, 1, True): "internvl_clip_6b",
        (1408, 40, 8, False): "teacher_internvideo2_stage2_1B",
    }
    encoder = teacher.encoder
    return names[encoder.width, encoder.depth, encoder.num_frames, teacher.per_frame]


def _mae_teacher_name(config: ConfigDict, flags: Flags) -> str:
    encoder = config.stage.mae_teacher.encoder
    assert not encoder.as_released
    return {(1408, 40): "mae_g14_hybrid"}[encoder.width, encoder.depth]


def _checkpoint_num(config: ConfigDict, flags: Flags) -> int:
    """All blocks are recomputed or none; how many of them is a matter of memory."""
    encoder = (config.stage.get("model") or config.stage.get("student")).encoder
    recomputes = encoder.remat != "none"
    return flags["checkpoint_num"] if recomputes == (flags["checkpoint_num"] > 0) else -1


def _sampling_rate(config: ConfigDict, flags: Flags) -> int:
    # Without effect where frames are spread over the whole clip.
    return flags["sampling_rate"] if config.data.sampling == "sparse" else config.data.sampling_rate


def _num_frames(config: ConfigDict, flags: Flags) -> Any:
    if config.stage.kind == "classify":
        return _same(
            config.stage.model.encoder.num_frames,
            config.data.num_frames,
            config.eval_data.num_frames,
        )
    if config.stage.kind == "pretrain":
        return _same(config.data.num_frames, config.stage.mae_teacher.encoder.num_frames)
    return _same(config.data.num_frames, config.stage.student.encoder.num_frames)


def _data_set(config: ConfigDict, flags: Flags) -> Any:
    data = config.data
    found = data.format, data.sampling, data.flip
    return flags["data_set"] if _READERS[flags["data_set"]] == found else found


def _encoder(config: ConfigDict) -> ConfigDict:
    stage = config.stage
    return stage.model.encoder if stage.kind == "classify" else stage.student.encoder


def _per_256_rows(name: str) -> Callable[[ConfigDict, Flags], float]:
    """Upstream's runners scale the rate that they are given; all batches are powers of two."""

    def rate(config: ConfigDict, flags: Flags) -> float:
        rows = config.train.batch_size * config.train.num_sample
        return config.train.optimizer[name] * 256 / rows

    return rate


def _merge(name: str, names: Mapping[str, str]) -> Callable[[ConfigDict, Flags], str]:
    def find(config: ConfigDict, flags: Flags) -> str:
        assert config.stage.model.head == "concat"
        return names[config.stage.model[name]]

    return find


AS_FLAG: dict[str, Callable[[ConfigDict, Flags], Any]] = {
    "aa": lambda c, f: c.data.rand_augment,
    "batch_size": _per_gpu,
    "bf16": lambda c, f: _encoder(c).dtype == "bfloat16",
    "checkpoint_num": _checkpoint_num,
    "clip_grad": lambda c, f: c.train.optimizer.max_grad_norm,
    "clip_input_resolution": lambda c, f: _clip_teacher(c).encoder.image_size,
    "clip_loss_ratio": lambda c, f: (c.stage.clip_middle_weight, c.stage.clip_final_weight),
    "clip_norm_type": lambda c, f: _same(
        c.stage.student.normalization, _clip_teacher(c).normalization
    ),
    "clip_return_attn": lambda c, f: c.stage.mask.kind == "attention",
    "clip_return_layer": lambda c, f: _same(
        len(c.stage.student.clip_layers), len(_clip_teacher(c).layers)
    ),
    "clip_student_decoder": lambda c, f: {"mlp": "MLP_Decoder", "linear": "Linear_Decoder"}[
        c.stage.student.decoder
    ],
    "clip_student_return_interval": lambda c, f: _if_layers(
        f["clip_student_return_interval"], c.stage.student.clip_layers, _encoder(c).depth
    ),
    "clip_teacher": _clip_teacher_name,
    "clip_teacher_embed_dim": lambda c, f: _same(
        c.stage.student.clip_target_dim, _clip_teacher(c).encoder.width
    ),
    "clip_teacher_final_dim": lambda c, f: c.stage.student.clip_final_dim,
    "clip_teacher_return_interval": lambda c, f: _if_layers(
        f["clip_teacher_return_interval"], _clip_teacher(c).layers, _clip_teacher(c).encoder.depth
    ),
    "cutmix": lambda c, f: c.stage.mix.cutmix_alpha,
    "data_set": _data_set,
    "drop_path": lambda c, f: _encoder(c).drop_path_rate,
    "entry": _entry,
    "epochs": lambda c, f: c.train.epochs,
    "eval": lambda c, f: False,
    "fc_drop_rate": lambda c, f: c.stage.model.dropout_rate,
    "filename_tmpl": lambda c, f: _same(c.data.frame_pattern, c.eval_data.frame_pattern),
    "flip": lambda c, f: c.data.flip,
    "gpus": lambda c, f: c.train.batch_size // _per_gpu(c, f),
    "init_checkpoint": lambda c, f: _STARTS[c.stage.starts_from.removesuffix("+stage2")],
    "init_scale": lambda c, f: c.stage.model.head_init_scale,
    "input_size": lambda c, f: _same(
        _encoder(c).image_size, c.data.image_size, c.eval_data.image_size
    ),
    "layer_decay": lambda c, f: c.train.optimizer.layer_decay,
    "layer_scale_init_value": lambda c, f: _encoder(c).layer_scale_init,
    "loads_stage2_extra": lambda c, f: c.stage.starts_from.endswith("+stage2"),
    "lr": _per_256_rows("lr"),
    "mae_loss_ratio": lambda c, f: c.stage.mae_weight,
    "mae_norm_type": lambda c, f: _same(
        c.stage.student.normalization, c.stage.mae_teacher.normalization
    ),
    "mae_return_layer": lambda c, f: _same(
        len(c.stage.student.mae_layers), len(c.stage.mae_teacher.layers)
    ),
    "mae_student_return_interval": lambda c, f: _if_layers(
        f["mae_student_return_interval"], c.stage.student.mae_layers, _encoder(c).depth
    ),
    "mae_teacher": _mae_teacher_name,
    "mae_teacher_embed_dim": lambda c, f: _same(
        c.stage.student.mae_target_dim, c.stage.mae_teacher.encoder.width
    ),
    "mae_teacher_return_interval": lambda c, f: _if_layers(
        f["mae_teacher_return_interval"],
        c.stage.mae_teacher.layers,
        c.stage.mae_teacher.encoder.depth,
    ),
    "mae_tubelet_size": lambda c, f: c.stage.mae_teacher.encoder.tubelet_size,
    "mask_ratio": lambda c, f: c.stage.mask.ratio,
    "mask_type": lambda c, f: c.stage.mask.kind,
    "merge_method": _merge("merge_method", {"cls_avgN_proj": "cls_avgN_proj"}),
    "merge_norm": _merge("merge_norm", {"ln": "LN", "bn": "BN", "kaiming_bn": "kaiming_BN"}),
    "min_lr": _per_256_rows("min_lr"),
    "mixup": lambda c, f: c.stage.mix.mixup_alpha,
    "mixup_prob": lambda c, f: c.stage.mix.probability,
    "mixup_switch_prob": lambda c, f: c.stage.mix.switch_probability,
    "model": _model,
    "model_ema": lambda c, f: c.train.ema_decay is not None,
    "nb_classes": lambda c, f: _same(c.stage.model.num_classes, c.data.num_classes),
    "no_use_decord": lambda c, f: _same(c.data.format == "frames", c.eval_data.format == "frames"),
    "num_frames": _num_frames,
    "num_sample": lambda c, f: _same(c.train.num_sample, c.data.num_sample),
    "num_segments": _num_frames,
    "open_block_num": lambda c, f: c.stage.probe.open_block_num,
    "open_clip_projector": lambda c, f: c.stage.probe.open_clip_projector,
    "opt_betas": lambda c, f: c.train.optimizer.betas,
    "opt_eps": lambda c, f: c.train.optimizer.eps,
    "reprob": lambda c, f: c.data.erase_probability,
    "sampling_rate": _sampling_rate,
    "short_side_size": lambda c, f: c.eval_data.image_size,
    "smoothing": lambda c, f: c.stage.mix.label_smoothing,
    "split": lambda c, f: _same(c.data.separator, c.eval_data.separator),
    "test_num_crop": lambda c, f: c.eval_data.crops,
    "test_num_segment": lambda c, f: c.eval_data.segments,
    "tubelet_size": lambda c, f: _encoder(c).tubelet_size,
    "warmup_epochs": lambda c, f: c.train.warmup_epochs,
    "warmup_lr": _per_256_rows("warmup_lr"),
    "weight_decay": lambda c, f: c.train.optimizer.weight_decay,
}


def differences(config: ConfigDict, flags: Flags) -> dict[str, tuple[Any, Any]]:
    """Flags, given or left at their defaults, that a config does not amount to: (theirs, ours)."""
    flags = {**DEFAULTS[flags["entry"]], **flags}
    found = {}
    for flag, theirs in flags.items():
        if flag in NO_COUNTERPART:
            continue
        theirs = tuple(theirs) if isinstance(theirs, list) else theirs
        ours = AS_FLAG[flag](config, flags)
        if theirs != ours:
            found[flag] = theirs, ours
    return found


def problems(script: str, flags: Flags, known: Mapping[str, str]) -> list[str]:
    """What is wrong with a script's config: unlisted differences, and listed ones that are none."""
    file, name = config_name(script)
    config = CONFIGS[file].get_config(name)
    from_dict(TrainConfig, config.train)
    for data in filter(None, (config.data, config.eval_data)):
        from_dict(DataConfig, data)
    fields = {key: value for key, value in config.stage.items() if key != "kind"}
    from_dict(STAGES[config.stage.kind][0], fields)
    found = differences(config, flags)
    where = f"{script} ({file}.py:{name})"
    return [
        f"{where}: --{flag} {theirs!r}, ours {ours!r}"
        for flag, (theirs, ours) in found.items()
        if flag not in known
    ] + [
        f"{where}: --{flag} is listed as different and is not"
        for flag in known
        if flag not in found
    ]


@checker("internvideo2_stage1.recipes")
def check_recipes(golden: Golden) -> None:
    recipes: dict[str, Flags] = golden.table["recipes"]
    wrong = []
    for script, flags in recipes.items():
        wrong += problems(script, flags, KNOWN.get(shorten(script), {}))
    scripts = {shorten(script) for script in recipes}
    wrong += [f"{name} is listed and is no script" for name in sorted({*KNOWN, *RENAMED} - scripts)]
    flags = {flag for given in recipes.values() for flag in given}
    wrong += [f"--{flag} is listed and no flag" for flag in sorted(set(NO_COUNTERPART) - flags)]
    standing_for = sorted(config_name(script) for script in recipes)
    ours = sorted((file, name) for file, m in CONFIGS.items() for name in m.RECIPES)
    if standing_for != ours:
        wrong.append(f"scripts stand for {standing_for}, there are {ours}")
    assert not wrong, "\n".join(wrong)
