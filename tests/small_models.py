"""Small models of each architecture, and weights for them, for tests of what lies around them."""

import dataclasses
import functools
import gzip
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import sentencepiece

from internvideo_jax import models, saved_model
from internvideo_jax.models.beats import BeatsConfig
from internvideo_jax.models.bert import BertConfig
from internvideo_jax.models.clip_text import ClipTextConfig
from internvideo_jax.models.clip_vision import ClipVisionConfig
from internvideo_jax.models.decoder_lm import DecoderLMConfig
from internvideo_jax.models.internvideo2_clip import InternVideo2ClipConfig
from internvideo_jax.models.llama_text import LlamaTextConfig
from internvideo_jax.models.stage2 import Stage2Config
from internvideo_jax.models.viclip import ViClipConfig
from internvideo_jax.nn.lora import LoRAConfig
from internvideo_jax.preprocessing import (
    AudioPreprocessing,
    Preprocessing,
    TextPreprocessing,
    VideoPreprocessing,
)
from internvideo_jax.saved_model import SavedModel

ENCODER = models.VideoViTConfig(
    width=32,
    depth=2,
    num_heads=2,
    mlp_dim=48,
    patch_size=4,
    image_size=8,
    num_frames=2,
    pooled_dim=8,
    pooler_heads=4,
)
VIDEOMAE = models.VideoMAEConfig(
    width=32, depth=2, num_heads=2, mlp_dim=48, patch_size=4, image_size=8, num_frames=4
)
CONFIGS: dict[str, Any] = {
    "video_vit": ENCODER,
    "video_classifier": models.VideoClassifierConfig(ENCODER, num_classes=5, head="attentive"),
    "stage1_student": models.Stage1StudentConfig(ENCODER, (0, 1), (1,), 12, 8, 20),
    "distill_student": models.DistillStudentConfig(ENCODER, (0, 1), 12, 8),
    "teacher": models.TeacherConfig(ENCODER, (0, 1)),
    "videomae": VIDEOMAE,
    "videomae_teacher": models.VideoMAETeacherConfig(VIDEOMAE, (0, 1)),
}

BERT = BertConfig(
    width=16,
    depth=3,
    num_heads=2,
    mlp_dim=24,
    vocab_size=20,
    max_length=8,
    fusion_layer=2,
    cross_width=12,
)
BEATS = BeatsConfig(
    width=16,
    depth=2,
    num_heads=2,
    mlp_dim=24,
    num_frames=21,
    num_mels=8,
    patch_size=4,
    patch_width=12,
    conv_size=6,
    conv_groups=4,
    num_buckets=8,
    max_distance=6,
)
DECODER_LM = DecoderLMConfig(
    width=16,
    depth=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=4,
    mlp_dim=24,
    vocab_size=30,
    qkv_bias=True,
    proj_bias=True,
)
LLAMA_TEXT = LlamaTextConfig(
    dataclasses.replace(DECODER_LM, head="none"), projection_dim=6, max_length=8
)
CLIP_TEXT = ClipTextConfig(
    width=16, depth=2, num_heads=2, mlp_dim=64, vocab_size=30, max_length=8, projection_dim=6
)
CLIP_VISION = ClipVisionConfig(
    width=32,
    depth=2,
    num_heads=2,
    mlp_dim=128,
    patch_size=4,
    image_size=8,
    num_frames=2,
    projection_dim=6,
)
# Towers of text and sound, and CLIP's of clips.
TOWERS: dict[str, Any] = {
    "bert": BERT,
    "beats": BEATS,
    "decoder_lm": DECODER_LM,
    "llama_text": LLAMA_TEXT,
    "clip_text": CLIP_TEXT,
    "clip_vision": CLIP_VISION,
}
VICLIP = ViClipConfig(CLIP_VISION, CLIP_TEXT)

# The two layouts of stage 2.
STAGE2 = {
    "visual": Stage2Config(
        models.DistillStudentConfig(
            dataclasses.replace(ENCODER, image_positions="own"), (0, 1), 12, 8, decoder="linear"
        ),
        dataclasses.replace(BERT, cross_width=32),
        embed_dim=6,
    ),
    "audiovisual": Stage2Config(
        models.DistillStudentConfig(
            dataclasses.replace(ENCODER, image_positions="mean"), (1,), 12, 8, decoder="linear"
        ),
        dataclasses.replace(BERT, cross_width=10),
        BEATS,
        embed_dim=6,
        media_width=10,
        match_heads=("video", "audio", "audio_video"),
    ),
}

# InternVideo2-CLIP with its two text towers.
_STILL = dataclasses.replace(ENCODER, layer_scale_init=0.1, image_positions="mean")
INTERNVIDEO2_CLIP = {
    "llama": InternVideo2ClipConfig(
        _STILL,
        LlamaTextConfig(
            dataclasses.replace(LLAMA_TEXT.lm, qkv_bias=False, proj_bias=False),
            projection_dim=8,
            max_length=8,
        ),
    ),
    "mobileclip": InternVideo2ClipConfig(
        _STILL,
        ClipTextConfig(
            width=16,
            depth=2,
            num_heads=2,
            mlp_dim=32,
            vocab_size=30,
            max_length=8,
            projection_dim=6,
            activation="gelu_erf",
            other_lengths="resized",
        ),
        align_dim=6,
    ),
}

# Words of texts about rendered clips, one-letter pieces of all others.
WORDS = (
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "ring", "circle", "square", "cross"),
    *("red", "green", "blue", "cyan", "moves", "left", "right", "up", "down", "."),
    *"abcdefghijklmnopqrstuvwxyz0123456789",
    *(f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz0123456789"),
)

# Of clips that are written to files.
CLIP_ENCODER = models.VideoViTConfig(
    width=32,
    depth=2,
    num_heads=2,
    mlp_dim=64,
    patch_size=8,
    tubelet_size=2,
    image_size=32,
    num_frames=4,
    pooled_dim=16,
    pooler_heads=2,
)


def noise_like(shapes: Any, seed: int, scale: float = 0.1) -> Any:
    """Normal values of these shapes and dtypes, positive ones for variances."""
    rng = np.random.default_rng(seed)

    def draw(path: Any, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        values = rng.normal(0, scale, leaf.shape)
        return jnp.asarray(np.abs(values) if path[-1].key == "var" else values, leaf.dtype)

    return jax.tree.map_with_path(draw, shapes)


def noise(init: Callable[[jax.Array], Any], seed: int) -> Any:
    """Values for the variables that `init` makes, without compiling it."""
    with nn.logical_axis_rules(()):
        return noise_like(nn.unbox(jax.eval_shape(init, jax.random.key(0))), seed)


def clip_model(config: Any) -> SavedModel:
    """An encoder or a model around it, with weights wide enough to tell clips apart."""
    module = models.build(config)
    variables = noise_like(models.abstract_variables(module), 0, 0.3)
    size = VideoPreprocessing(image_size=32, num_frames=4)
    return SavedModel(module, variables, config, Preprocessing(size), {})


def clip_stage2(medium: str) -> Stage2Config:
    """A stage-2 model of `STAGE2` for clips and sounds in files, and for texts of `WORDS`."""
    small = STAGE2[medium]
    encoder = dataclasses.replace(
        CLIP_ENCODER, tubelet_size=1, image_positions=small.vision.encoder.image_positions
    )
    text = dataclasses.replace(
        small.text,
        vocab_size=len(WORDS),
        max_length=64,
        cross_width=small.media_width or encoder.width,
    )
    vision = dataclasses.replace(small.vision, encoder=encoder)
    return dataclasses.replace(small, vision=vision, text=text)


@functools.cache
def sentence_pieces() -> bytes:
    """A sentencepiece model of a LLaMA's kind: byte pairs of texts about rendered clips, bytes."""
    texts = [
        f"the {color} {shape} moves {way}"
        for color in ("red", "green", "blue")
        for shape in ("ring", "circle", "square", "cross")
        for way in ("left", "right", "up", "down")
    ]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*texts, "summarize: 0123456789"]),
        model_writer=model,
        model_type="bpe",
        vocab_size=330,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        user_defined_symbols=["[PAD]"],
        minloglevel=2,
    )
    return model.getvalue()


def write_words(folder: Path) -> Path:
    """Writes the vocabulary of `WORDS` to a folder; returns its path."""
    path = folder / "vocab.txt"
    path.write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    return path


def save_stage2(directory: Path, medium: str = "visual") -> Path:
    """Writes the model of `clip_stage2` with its vocabulary; returns its folder.

    Args:
      directory: an empty folder, which gets the model and its vocabulary.
      medium: "visual" or "audiovisual".
    """
    config, model = clip_stage2(medium), directory / "model"
    video = VideoPreprocessing(image_size=32, num_frames=4, resize="bicubic_square")
    audio = None
    if config.audio is not None:
        audio = AudioPreprocessing(
            num_mels=config.audio.num_mels, num_frames=config.audio.num_frames
        )
    preprocessing = Preprocessing(
        video, audio, TextPreprocessing("wordpiece", ("vocab.txt",), max_length=16)
    )
    variables = noise_like(models.abstract_variables(models.build(config)), 0, 0.3)
    files = {"vocab.txt": write_words(directory)}
    saved_model.save(model, "stage2", config, preprocessing, variables, tokenizer_files=files)
    return model


def save_clip(directory: Path) -> Path:
    """Writes a small InternVideo2-CLIP with a LLaMA for clips in files; returns its folder.

    Args:
      directory: an empty folder, which gets the model and its vocabulary.
    """
    small, model = INTERNVIDEO2_CLIP["llama"], directory / "model"
    pieces = directory / "tokenizer.model"
    pieces.write_bytes(sentence_pieces())
    vocab_size = sentencepiece.SentencePieceProcessor(model_file=str(pieces)).get_piece_size()
    config = InternVideo2ClipConfig(
        dataclasses.replace(CLIP_ENCODER, tubelet_size=1, image_positions="mean"),
        LlamaTextConfig(
            dataclasses.replace(small.text.lm, vocab_size=vocab_size), projection_dim=16
        ),
    )
    preprocessing = Preprocessing(
        VideoPreprocessing(image_size=32, num_frames=4, resize="bicubic_square"),
        text=TextPreprocessing("sentencepiece", ("tokenizer.model",), 16, "summarize:"),
    )
    variables = noise_like(models.abstract_variables(models.build(config)), 0, 0.3)
    files = {pieces.name: pieces}
    saved_model.save(
        model, "internvideo2_clip", config, preprocessing, variables, tokenizer_files=files
    )
    return model


def fold_lora(params: Any, config: LoRAConfig) -> Any:
    """The parameters of the same tower without adapters, whose kernels hold what those added."""
    if not isinstance(params, dict):
        return params
    folded = {n: fold_lora(x, config) for n, x in params.items() if not n.startswith("lora_")}
    if "lora_a" in params:
        a, b, kernel = params["lora_a"], params["lora_b"], params["kernel"]
        # Inputs and outputs may each be several dimensions, behind an axis of layers or none.
        layers = a.shape[: a.ndim + b.ndim - kernel.ndim - 2]
        a, b = a.reshape(*layers, -1, config.rank), b.reshape(*layers, config.rank, -1)
        product = np.matmul(np.asarray(a), np.asarray(b)).reshape(kernel.shape)
        folded["kernel"] = kernel + config.scale * product
    return folded


# Pairs of letters of words about rendered clips, as CLIP joins them.
MERGES = ("i n", "in g</w>", "r ing</w>", "b l", "bl u", "blu e</w>", "r e", "re d</w>", "t h")


def write_merges(folder: Path) -> Path:
    """Writes a vocabulary of `MERGES` to a folder; returns its path."""
    path = folder / "bpe_simple_vocab_16e6.txt.gz"
    path.write_bytes(gzip.compress("\n".join(("version", *MERGES, "")).encode(), mtime=0))
    return path


def clip_viclip() -> ViClipConfig:
    """A ViCLIP for clips in files, and for texts of `MERGES`."""
    vision = dataclasses.replace(CLIP_VISION, patch_size=8, image_size=32, num_frames=4)
    text = dataclasses.replace(CLIP_TEXT, vocab_size=514 + len(MERGES), max_length=32)
    return ViClipConfig(vision, text)


def save_viclip(directory: Path) -> Path:
    """Writes the model of `clip_viclip` with its vocabulary to an empty folder; returns its own."""
    config, model, vocabulary = clip_viclip(), directory / "model", write_merges(directory)
    preprocessing = Preprocessing(
        VideoPreprocessing(image_size=32, num_frames=4, resize="bicubic_square"),
        text=TextPreprocessing("clip_bpe", (vocabulary.name,), max_length=32),
    )
    variables = noise_like(models.abstract_variables(models.build(config)), 0, 0.3)
    files = {vocabulary.name: vocabulary}
    saved_model.save(model, "viclip", config, preprocessing, variables, tokenizer_files=files)
    return model
