"""What is noteworthy of the classes of clips: one alone, names that look alike, single clips."""

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping

from internvideo_jax.data.annotations.records import ClipRecord

Label = int | str | None

# Classes that are named one by one.
_MAX_NAMED = 20


def count_labels(records: Iterable[ClipRecord]) -> Counter[Label]:
    """How many clips have each label; of a clip with several, each counts."""
    counts: Counter[Label] = Counter()
    for record in records:
        counts.update(record.label if isinstance(record.label, tuple) else (record.label,))
    return counts


def class_warnings(counts: Mapping[Label, int]) -> list[str]:
    """A line for each thing about some classes that is hardly meant; none of clips without labels.

    Args:
      counts: as `count_labels` gives them.
    """
    known = {label: count for label, count in counts.items() if label is not None and count}
    warnings = []
    if known and (without := counts.get(None, 0)):
        clips = "1 clip has" if without == 1 else f"{without} clips have"
        warnings.append(
            f"{clips} no label, which training and evaluation refuse: `scan` with --classes=FILE"
            " or --num_classes=N names the lines"
        )
    if len(known) == 1:
        warnings.append(f"all clips are of one class, {named(known)}: there is nothing to tell")
    groups = defaultdict(list)
    for label in known:
        if isinstance(label, str):
            groups[_looks(label)].append(label)
    warnings += [
        f"names of different classes look alike: {named(alike)}; write them alike if they are one"
        for alike in groups.values()
        if len(alike) > 1
    ]
    single = [label for label, count in known.items() if count == 1]
    if single and len(known) > 1:
        warnings.append(
            "classes of a single clip cannot be both trained and evaluated on:"
            f" {named(single)}; add clips"
        )
    return warnings


def named(labels: Iterable[Label]) -> str:
    """The labels in order, or the first of many, as a text."""
    ordered = sorted(labels, key=lambda label: (isinstance(label, str), label))
    more = f" and {len(ordered) - _MAX_NAMED} more" if len(ordered) > _MAX_NAMED else ""
    return ", ".join(map(repr, ordered[:_MAX_NAMED])) + more


def _looks(name: str) -> str:
    """The same for names that differ in case, white space or encoding only."""
    return " ".join(unicodedata.normalize("NFKC", name).casefold().split())
