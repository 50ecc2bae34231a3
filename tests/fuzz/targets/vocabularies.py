"""CLIP's vocabulary, compressed and not."""

import functools
import gzip
from pathlib import Path

from internvideo_jax.data.clip_bpe import ClipBpe
from tests.fuzz.harness import Target

LINES = ("version", "i n", "in g</w>", "r ing</w>", "e d</w>", "r ed</w>", "Ã ©</w>")


def _seeds() -> list[bytes]:
    return ["\n".join(lines).encode() for lines in (LINES, (*LINES, ""), LINES[:1])]


_packed = functools.partial(gzip.compress, mtime=0)


def _read(data: bytes, folder: Path) -> None:
    (folder / "a.txt.gz").write_bytes(data)
    tokenizer = ClipBpe(folder / "a.txt.gz", max_length=8)
    ids, _ = tokenizer(["Red ring", "café"])
    assert ids.max() < tokenizer.vocab_size


TARGETS = (
    Target("clip_vocabulary", lambda: [_packed(text) for text in _seeds()], _read),
    Target(
        "clip_vocabulary_text",
        _seeds,
        _read,
        tokens=(b"\n", b" ", b"</w>", b"\r\n", b"in ", b"\xc3\xa3"),
        finish=_packed,
    ),
)
