"""Vocabularies of LLaMA, in sentencepiece's format."""

from pathlib import Path

from internvideo_jax.data.llama_tokenizer import LlamaTokenizer
from tests.fuzz.harness import Target
from tests.small_models import sentence_pieces

_TEXTS = ["the red ring moves", "<s> [PAD] 😀 12", ""]


def _read(data: bytes, folder: Path) -> None:
    path = folder / "tokenizer.model"
    path.write_bytes(data)
    tokenizer = LlamaTokenizer(path, 16, "summarize:")
    tokenizer(_TEXTS)
    tokenizer.count_cut(_TEXTS)


TARGETS = (
    Target(
        "sentence_pieces",
        lambda: [sentence_pieces()],
        _read,
        tokens=(b"<unk>", b"<s>", b"</s>", b"<0x00>", b"\x1a\x02\x18\x01"),
    ),
)
