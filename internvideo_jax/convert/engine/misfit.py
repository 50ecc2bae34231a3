"""Everything about a checkpoint that does not fit, in one message."""

import re
from collections import defaultdict
from collections.abc import Mapping

from internvideo_jax.convert.engine.transforms import Pattern, Shape


class CheckpointMisfit(ValueError):
    """A checkpoint that is not wholly and exactly what a model needs.

    Attributes:
      missing: shapes of the keys that the model needs and the checkpoint lacks.
      extra: shapes of the keys that no rule uses or ignores.
      misshapen: (expected, found) shapes of the keys that have another shape.
    """

    def __init__(
        self,
        description: str,
        missing: Mapping[str, Pattern],
        extra: Mapping[str, Shape],
        misshapen: Mapping[str, tuple[Pattern, Shape]],
    ) -> None:
        self.missing, self.extra, self.misshapen = dict(missing), dict(extra), dict(misshapen)
        lines = [
            f"the checkpoint does not fit {description}: {len(missing)} keys missing,"
            f" {len(extra)} extra, {len(misshapen)} misshapen"
        ]
        lines += _listing("missing", {k: f"expected {list(v)}" for k, v in missing.items()})
        lines += _listing("extra", {k: f"found {list(v)}" for k, v in extra.items()})
        lines += _listing(
            "misshapen",
            {k: f"expected {list(s)}, found {list(f)}" for k, (s, f) in misshapen.items()},
        )
        lines.append("check that this is the right file, and the options that describe its model")
        super().__init__("\n".join(lines))


def _listing(title: str, messages: Mapping[str, str]) -> list[str]:
    """Lines for keys and messages, one for all layers of which the same is said."""
    groups: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for key, message in messages.items():
        head, *rest = re.split(r"(?<=\.)([0-9]{1,6})(?=\.)", key, maxsplit=1)
        number, tail = rest or ("-1", "")
        groups[head, tail, message].append(int(number))
    lines = []
    for (head, tail, message), numbers in groups.items():
        span = _ranges(numbers) if tail else ""
        lines.append(f"  {title:<10}{head}{span}{tail}  {message}")
    return lines


def _ranges(numbers: list[int]) -> str:
    """`7`, or `{0-3,5}`."""
    runs: list[list[int]] = []
    for n in sorted(numbers):
        if runs and n == runs[-1][1] + 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    text = ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
    return text if len(numbers) == 1 else f"{{{text}}}"
