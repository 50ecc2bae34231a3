"""Constructor options of the upstream classes, and the configs that mean the same here."""

from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

from internvideo_jax.config import from_dict, nearest_name, to_dict
from internvideo_jax.models import (
    ARCHITECTURES,
    DistillStudentConfig,
    Stage1StudentConfig,
    TeacherConfig,
    VideoClassifierConfig,
    VideoMAEConfig,
    VideoMAETeacherConfig,
    VideoViTConfig,
)
from internvideo_jax.models.stage1 import aligned_layers

_REQUIRED = object()

# Options that choose an implementation, or belong to training, data or tests: no effect here.
_NEUTRAL = {
    *("use_flash_attn", "use_fused_rmsnorm", "fused_mlp_heuristic"),
    *("use_checkpoint", "checkpoint_num", "head_drop_path_rate", "return_attn"),
    *("batch", "frames", "mask_ratio", "train_mode", "loss_ratios_clipmid_clipfinal_mae"),
}


class _Options:
    """Constructor options, each of which must be taken or be neutral."""

    def __init__(self, kind: str, options: Mapping[str, Any], fallback: Mapping[str, Any]) -> None:
        self.kind = kind
        self.options = options
        self.fallback = fallback
        self.known: dict[str, None] = {}

    def take(self, name: str, default: Any = _REQUIRED) -> Any:
        self.known[name] = None
        for source in (self.options, self.fallback):
            if name in source:
                return source[name]
        if default is _REQUIRED:
            raise ValueError(
                f"expected option {name!r} for a model of kind {self.kind!r}, found only"
                f" {sorted(self.options)}; add it"
            )
        return default

    def size(self, name: str, default: Any = _REQUIRED) -> Any:
        """An option that counts something, of which there must be one."""
        value = self.take(name, default)
        if isinstance(value, int) and value < 1:
            raise ValueError(
                f"expected option {name!r} of kind {self.kind!r} to be at least 1, found {value}"
            )
        return value

    def require(self, name: str, *allowed: Any) -> None:
        """Refuses values of an option that this project does not implement."""
        value = self.take(name, allowed[0])
        if value not in allowed:
            raise ValueError(
                f"expected option {name!r} of kind {self.kind!r} to be"
                f" {' or '.join(map(repr, allowed))}, found {value!r}, which is not supported"
            )

    def finish(self) -> None:
        unknown = sorted(self.options.keys() - self.known.keys() - _NEUTRAL)
        if unknown:
            raise ValueError(
                f"unknown options of a model of kind {self.kind!r}: {', '.join(unknown)}"
                f"{nearest_name(unknown[0], self.known)} (known: {', '.join(self.known)})"
            )


def config_from_upstream(
    kind: str, options: Mapping[str, Any], fallback: Mapping[str, Any] | None = None
) -> Any:
    """The config of the model that an upstream class makes of constructor options.

    Args:
      kind: which class, one of `KINDS`.
      options: its constructor's arguments by name ("embed_dim", "clip_return_layer", ...); numbers
        may be fractions in text ("48/11"). `embed_dim`, `depth`, `num_heads` and `mlp_ratio` have
        no default. `mlp_activation` ("gelu_tanh" or "gelu_erf") may say what the fused flags imply.
      fallback: more of them, of less authority; here any other names are passed over.

    Raises:
      ValueError: an unknown kind or option, a missing one, or a value that is not supported.
    """
    if kind not in KINDS:
        raise ValueError(f"expected a kind among {', '.join(KINDS)}, found {kind!r}")
    reader = _Options(kind, options, fallback or {})
    config = KINDS[kind](reader)
    reader.finish()
    # Options come from files, too: the round trip checks their types.
    return from_dict(type(config), to_dict(config), f"options of kind {kind!r}")


def to_upstream(config: Any) -> dict[str, Any]:
    """Constructor options, JSON-ready, of what the tensors of a model do not show.

    With them `inference.infer_config` reads the same config from a checkpoint of its model.
    """
    encoder = getattr(config, "encoder", config)
    options = {
        "num_heads": encoder.num_heads,
        "img_size": encoder.image_size,
        "init_values": encoder.layer_scale_init or 0.0,
    }
    if isinstance(encoder, VideoMAEConfig):
        options |= {"all_frames": encoder.num_frames, "ln_eps": encoder.norm_epsilon}
    else:
        options |= {
            "num_frames": encoder.num_frames,
            "attn_pool_num_heads": encoder.pooler_heads,
            "mlp_activation": encoder.activation,
            "drop_path_rate": encoder.drop_path_rate,
        }
    match config:
        case VideoClassifierConfig():
            options |= {"fc_drop_rate": config.dropout_rate, "init_scale": config.head_init_scale}
        case Stage1StudentConfig():
            options |= _listed("clip", "student_", config.clip_layers, config.normalization)
            options |= _listed("mae", "student_", config.mae_layers, config.normalization)
        case DistillStudentConfig():
            options |= _listed("clip", "student_", config.clip_layers, config.normalization)
        case TeacherConfig():
            options |= _listed("clip", "", config.layers, config.normalization)
        case VideoMAETeacherConfig():
            options |= _listed("mae", "", config.layers, config.normalization)
    return options


def architecture_of(config: Any) -> str:
    """Name in `models.ARCHITECTURES` of the architecture that a config belongs to."""
    return next(n for n, a in ARCHITECTURES.items() if type(config) is a.config_cls)


def _hidden(options: _Options, width: int) -> int:
    ratio = options.take("mlp_ratio")
    # A float multiplies as a float: the constructors round 1408 * (48 / 11) to 6144 before int().
    return int(width * (Fraction(ratio) if isinstance(ratio, str) else ratio))


def _encoder(
    options: _Options, *, num_frames: int = 8, layer_scale: float = 1e-5
) -> VideoViTConfig:
    width = options.size("embed_dim")
    options.require("in_chans", 3)
    options.require("layerscale_no_force_fp32", False)
    fused = options.take("use_fused_mlp", True)
    init_values = options.take("init_values", layer_scale)
    return VideoViTConfig(
        width=width,
        depth=options.take("depth"),
        num_heads=options.size("num_heads"),
        mlp_dim=_hidden(options, width),
        patch_size=options.size("patch_size", 14),
        tubelet_size=options.size("tubelet_size", 1),
        image_size=options.size("img_size", 224),
        num_frames=options.size("num_frames", num_frames),
        pooled_dim=options.size("clip_embed_dim", 768),
        pooler_heads=options.size("attn_pool_num_heads", 16),
        position_embedding="separable" if options.take("sep_pos_embed", False) else "joint",
        activation=options.take("mlp_activation", "gelu_tanh" if fused else "gelu_erf"),
        qk_norm=options.take("qk_normalization", True),
        qkv_bias=options.take("qkv_bias", False),
        layer_scale_init=init_values if init_values else None,
        drop_path_rate=options.take("drop_path_rate", 0.0),
    )


def _classifier(options: _Options, **head: Any) -> VideoClassifierConfig:
    return VideoClassifierConfig(
        encoder=_encoder(options),
        num_classes=options.size("num_classes", 1000),
        dropout_rate=options.take("fc_drop_rate", 0.0),
        head_init_scale=options.take("init_scale", 0.001),
        **head,
    )


def _concat_classifier(options: _Options) -> VideoClassifierConfig:
    method = options.take("merge_method", "proj")
    norm = options.take("merge_norm", "kaiming_BN")
    if method == "proj":
        # With the pooled feature alone, the class is that of the plain classifier.
        return _classifier(options)
    return _classifier(options, head="concat", merge_method=method, merge_norm=norm.lower())


def _layers(
    options: _Options, depth: int, branch: str, side: str, count: int | None, interval: float
) -> tuple[int, ...]:
    """Aligned blocks: an explicit list, or some number of them stepping back from the last one.

    `branch` and `side` make up the options' names ("clip_return_layer",
    "mae_student_return_interval", ...). A count larger than the model is cut to it.
    """
    count = options.take(f"{branch}_return_layer", _REQUIRED if count is None else count)
    interval = options.take(f"{branch}_{side}return_interval", interval)
    listed = options.take(f"{branch}_{side}return_index", None)
    if listed:
        return tuple(sorted(listed))
    return tuple(i for i in aligned_layers(depth, count, interval) if i >= 0)


def _listed(branch: str, side: str, layers: tuple[int, ...], normalization: str) -> dict[str, Any]:
    """The options that `_layers` reads as these blocks, and how their outputs are normalised."""
    return {
        f"{branch}_return_layer": len(layers),
        f"{branch}_{side}return_index": list(layers),
        f"{branch}_norm_type": normalization,
    }


def _pretrain(options: _Options) -> Stage1StudentConfig:
    encoder = _encoder(options)
    normalization = options.take("clip_norm_type", "l2")
    options.require("mae_norm_type", normalization)
    return Stage1StudentConfig(
        encoder=encoder,
        clip_layers=_layers(options, encoder.depth, "clip", "student_", None, 1),
        mae_layers=_layers(options, encoder.depth, "mae", "student_", None, 1),
        clip_target_dim=options.take("clip_teacher_embed_dim", 3200),
        clip_final_dim=options.take("clip_teacher_final_dim", 768),
        mae_target_dim=options.take("mae_teacher_embed_dim", 1408),
        normalization=normalization,
    )


def _distill(options: _Options) -> DistillStudentConfig:
    encoder = _encoder(options)
    options.require("clip_student_decoder", "MLP_Decoder", "Linear_Decoder")
    decoder = options.take("clip_student_decoder", "MLP_Decoder")
    return DistillStudentConfig(
        encoder=encoder,
        clip_layers=_layers(options, encoder.depth, "clip", "student_", None, 1),
        clip_target_dim=options.take("clip_teacher_embed_dim", 1408),
        clip_final_dim=options.take("clip_teacher_final_dim", 768),
        decoder="mlp" if decoder == "MLP_Decoder" else "linear",
        normalization=options.take("clip_norm_type", "l2"),
    )


def _internvideo2_teacher(options: _Options) -> TeacherConfig:
    encoder = _encoder(options)
    return TeacherConfig(
        encoder=encoder,
        layers=_layers(options, encoder.depth, "clip", "", 6, 3.34),
        normalization=options.take("clip_norm_type", "l2"),
    )


def _internvl_teacher(options: _Options) -> TeacherConfig:
    encoder = _encoder(options, num_frames=1, layer_scale=0.1)
    return TeacherConfig(
        encoder=encoder,
        layers=_layers(options, encoder.depth, "clip", "", 6, 1),
        per_frame=True,
        normalization=options.take("clip_norm_type", "l2"),
    )


def _videomae(options: _Options) -> VideoMAEConfig:
    width = options.size("embed_dim")
    options.require("in_chans", 3)
    return VideoMAEConfig(
        width=width,
        depth=options.take("depth"),
        num_heads=options.size("num_heads"),
        mlp_dim=_hidden(options, width),
        patch_size=options.size("patch_size", 14),
        tubelet_size=options.size("tubelet_size", 2),
        image_size=options.size("img_size", 224),
        num_frames=options.size("all_frames", 16),
        qkv_bias=options.take("qkv_bias", True),
        layer_scale_init=options.take("init_values", 0.0) or None,
        norm_epsilon=options.take("ln_eps", 1e-6),
        learned_position=options.take("pos_embed_is_parameter", False),
    )


def _videomae_teacher(options: _Options) -> VideoMAETeacherConfig:
    encoder = _videomae(options)
    return VideoMAETeacherConfig(
        encoder=encoder,
        layers=_layers(options, encoder.depth, "mae", "", 4, 1),
        normalization=options.take("mae_norm_type", "l2"),
    )


KINDS: dict[str, Callable[[_Options], Any]] = {
    "encoder": _encoder,
    "classify": _classifier,
    "ap": lambda options: _classifier(options, head="attentive"),
    "cat": _concat_classifier,
    "pretrain": _pretrain,
    "distill": _distill,
    "internvideo2_teacher": _internvideo2_teacher,
    "internvl_teacher": _internvl_teacher,
    "videomae": _videomae,
    "videomae_teacher": _videomae_teacher,
}
