"""Entries of JSON: a line of `jsonl`, which is our own format, or an item of a list of `json`.

Source of `json`: upstream's `InternVideo2/multi_modality/dataset`.
"""

import contextlib
import itertools
from collections.abc import Iterator
from typing import Annotated, Any, TypeVar

import msgspec
import numpy as np

from internvideo_jax.data.annotations.entries import (
    FRAME_PATTERN,
    Entry,
    EntryError,
    Labels,
    quote,
)
from internvideo_jax.data.annotations.lines import parse_json
from internvideo_jax.data.decode.paths import AUDIO_EXTENSIONS

# msgspec refuses numbers of other kinds: true and 1.0 are none.
_Index = Annotated[int, msgspec.Meta(ge=0, lt=2**31)]

_Texts = str | list[str]
# Captions, or captions by their names.
_Captions = _Texts | dict[str, _Texts] | None


class _JsonLine(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """A line of the format jsonl; null stands for nothing."""

    video: str | None = None
    audio: str | None = None
    label: _Index | str | list[_Index | str] | None = None
    caption: _Captions = None
    start: float | None = None
    end: float | None = None
    id: str | None = None
    num_frames: _Index | None = None
    frame_pattern: str | None = None
    source: str | None = None


class _Stage2Item(msgspec.Struct):
    """An item of the format json; has other keys as well."""

    video: str | None = None
    image: str | None = None
    audio: str | None = None
    caption: _Texts | None = None
    captions: _Texts | None = None
    video_start_frame: Any = None
    video_end_frame: Any = None


_EXPECTED = {
    "label": "an integer from 0 or the name of a class, or a list of different ones",
    "caption": "a string, a list of strings, or an object with these by name",
    "captions": "a string, or a list of strings",
    "start": "seconds",
    "end": "seconds",
    "num_frames": "an integer",
}

_DECODER = msgspec.json.Decoder(_JsonLine)


def plain_jsonl_entries(block: bytes) -> list[Entry] | None:
    """The entries of lines that have nothing unusual; of others, None."""
    num_lines = _count(block, b"\n")
    # The decoder would take several objects on a line, or one on several; texts have no line ends.
    if not block.startswith(b"{") or _count(block, b"\n{") != num_lines - 1:
        return None
    try:
        objects = _DECODER.decode_lines(block)
        stated = list(map(msgspec.structs.astuple, objects))
        # Of equal keys, it would take the last. Quotes within texts are escaped.
        values = list(itertools.chain.from_iterable(stated))
        num_keys = len(values) - values.count(None)
        names = [name for o in objects if isinstance(o.caption, dict) for name in o.caption]
        num_keys += len(names)
        escaped = block.count(b'\\":') if b"\\" in block else 0
        if len(objects) != num_lines or _count(block, b'":') - escaped != num_keys:
            return None
        # Before whose last quote there may be a backslash that escapes none.
        if "\\" in "".join(names):
            return None
        return list(itertools.starmap(jsonl_entry, stated))
    except (msgspec.DecodeError, UnicodeDecodeError, EntryError):
        return None


def _count(block: bytes, part: bytes) -> int:
    """`bytes.count`, which takes five times as long where there is much to count: of one byte, or
    of two different ones."""
    numbers = np.frombuffer(block, np.uint8)
    found = numbers == part[0]
    if len(part) == 2:
        found = found[:-1] & (numbers[1:] == part[1])
    return int(np.count_nonzero(found))


def parse_jsonl(line: str) -> Entry:
    """The entry of a line of jsonl.

    Raises:
      EntryError: it is wrong.
    """
    return jsonl_entry(*msgspec.structs.astuple(_convert(parse_json(line), _JsonLine)))


def jsonl_entry(
    video: str | None,
    audio: str | None,
    label: int | str | list[int | str] | None,
    caption: _Captions,
    start: float | None,
    end: float | None,
    id: str | None,
    num_frames: int | None,
    frame_pattern: str | None,
    source: str | None,
) -> Entry:
    """The entry of the values of jsonl's keys; None is a key that is not there.

    Raises:
      EntryError: they contradict each other.
    """
    path = video if audio is None and video is not None else _only(video=video, audio=audio)
    if isinstance(label, list):
        if len(set(label)) < len(label) or len(set(map(type, label))) > 1:
            raise EntryError(f'"label": {_EXPECTED["label"]}', quote(label))
        labels: Labels = tuple(label)
    else:
        labels = label
    if id == "":
        raise EntryError('"id": a string that is not empty', quote(id))
    if num_frames is None:
        if frame_pattern is not None:
            raise EntryError('"num_frames" beside "frame_pattern"', "none")
    else:
        if audio is not None:
            raise EntryError('no "num_frames" beside "audio"', quote(num_frames))
        frame_pattern = FRAME_PATTERN if frame_pattern is None else frame_pattern
    captions, names = _captions(caption)
    return Entry(
        *(path, labels, start, end, captions, id, num_frames, frame_pattern, source or "", names)
    )


def stage2_entry(value: Any) -> Entry:
    """The entry of an item of a list of json.

    Raises:
      EntryError: it is wrong.
    """
    item = _convert(value, _Stage2Item)
    path = _only(video=item.video, image=item.image, audio=item.audio)
    if item.video_start_frame is not None or item.video_end_frame is not None:
        raise EntryError('"start" and "end" in seconds, as jsonl has them', "numbers of frames")
    unnamed = item.captions if item.caption is None else item.caption
    named = {key: texts for key, texts in value.items() if _names_captions(key, texts)}
    with _whole_characters():
        msgspec.msgpack.encode(named)
    captions, names = _captions({"": unnamed or [], **named} if named else unnamed)
    return Entry(path, captions=captions, caption_names=names)


def _names_captions(key: str, value: Any) -> bool:
    """Whether a key of the format json, such as `audio_captions`, has captions under its name."""
    if "caption" not in key or key in ("caption", "captions"):
        return False
    is_list = isinstance(value, list) and all(isinstance(text, str) for text in value)
    return is_list or isinstance(value, str)


_Json = TypeVar("_Json", bound=msgspec.Struct)


def _convert(value: Any, kind: type[_Json]) -> _Json:
    """What a JSON object states.

    Raises:
      EntryError: it does not fit.
    """
    if not isinstance(value, dict):
        raise EntryError("a JSON object", quote(value))
    try:
        with _whole_characters():
            known = msgspec.convert(value, kind)
            msgspec.msgpack.encode(known)
    except msgspec.ValidationError as error:
        name = str(error).rpartition("`$.")[2].rstrip("`").partition("[")[0]
        if name in value:
            expected = _EXPECTED.get(name, "a string of Unicode text")
            raise EntryError(f'"{name}": {expected}', quote(value[name])) from None
        known_names = sorted(kind.__struct_fields__)
        name = min(value.keys() - set(known_names))
        raise EntryError(
            f"the keys {', '.join(known_names)}", quote(name), name, known_names
        ) from None
    return known


@contextlib.contextmanager
def _whole_characters() -> Iterator[None]:
    """Refuses texts with half a character, which escapes may name, where they are encoded."""
    try:
        yield
    except UnicodeEncodeError as error:
        raise EntryError("strings of Unicode text", quote(error.object)) from None


def _only(**paths: str | None) -> str:
    """The one path that is stated."""
    stated = [name for name, path in paths.items() if path is not None]
    if len(stated) != 1:
        expected = " or ".join(f'"{name}"' for name in paths)
        raise EntryError(f"a key {expected}", " and ".join(stated) or "none")
    path = str(paths[stated[0]])
    if stated == ["audio"] and not path.lower().endswith(AUDIO_EXTENSIONS):
        raise EntryError(f'"audio": a file of sound ({", ".join(AUDIO_EXTENSIONS)})', quote(path))
    return path


def _captions(stated: _Captions) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Captions, and the name of each where they have names."""
    if isinstance(stated, str):
        return (stated,), ()
    if not isinstance(stated, dict):
        return tuple(stated or ()), ()
    texts: list[str] = []
    names: list[str] = []
    for name, some in stated.items():
        if isinstance(some, str):
            texts.append(some)
            names.append(name)
        else:
            texts += some
            names += [name] * len(some)
    return tuple(texts), tuple(names)
