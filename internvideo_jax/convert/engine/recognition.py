"""Whose files these are: prefixes, spellings, and the towers of a model put together.

Wrappers of training libraries leave their names in keys, anywhere and any number of times:
torch.compile `_orig_mod`, DistributedDataParallel, DataParallel and DeepSpeed `module`, FSDP
`_fsdp_wrapped_module` (fairscale's: `_fpw_module`), checkpointed blocks
`_checkpoint_wrapped_module`, Lightning's strategies `_forward_module`; and its modules, which hold
a model as `model`, in front.
"""

import dataclasses
import re
from collections.abc import Collection, Iterable, Mapping, Sequence

from internvideo_jax.config import nearest_name
from internvideo_jax.convert.engine.family import Family, Part, Shapes, all_families
from internvideo_jax.convert.engine.transforms import Shape
from internvideo_jax.models import ARCHITECTURES

_WRAPPERS = re.compile(
    r"(?<![^.])(_orig_mod|module|_fsdp_wrapped_module|_fpw_module|_checkpoint_wrapped_module"
    r"|_forward_module)\."
)
# In front of the rest, as often as modules were nested.
_OUTER = tuple("model." * times for times in range(4))


@dataclasses.dataclass(frozen=True)
class Recognized:
    """One or several files that make one model.

    Attributes:
      family: whose files they are.
      kind: which of the family's models they hold.
      shapes: shape of every tensor by its canonical key.
      keys: number of the file and key in it, by canonical key.
      spelled: keys of a composite as one file would have them, in the spelling of its files, by
        canonical key; those that are missing have the canonical one.
    """

    family: Family
    kind: str
    shapes: dict[str, Shape]
    keys: dict[str, tuple[int, str]]
    spelled: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def names(self) -> dict[str, str]:
        """Keys as the file has them, by canonical key; of several files, as one would have them."""
        is_one = all(number == 0 for number, _ in self.keys.values())
        if is_one:
            return {key: name for key, (_, name) in self.keys.items()}
        return {key: self.spelled.get(key, key) for key in self.keys}


def recognize(*files: Shapes, architecture: str | None = None) -> Recognized:
    """The family of a checkpoint, and its tensors by canonical key.

    Of several files of one family, later ones add to and replace the tensors of earlier ones; one
    that has none of the family's anchors (a head alone) is taken as it is. Files of the parts of a
    composite are put in their places, whatever their order, before those that add to them.

    Args:
      files: shape of every tensor, by its key, of each file.
      architecture: what is to be made of them, if it is not to be all that they hold.

    Raises:
      ValueError: an unknown architecture, files of no family or of several, two keys that become
        one, or parts of a composite without a file.
    """
    if architecture not in (None, *ARCHITECTURES):
        raise ValueError(
            f"expected an architecture among {', '.join(ARCHITECTURES)}, found {architecture!r}"
            f"{nearest_name(str(architecture), ARCHITECTURES)}"
        )
    if not any(files):
        raise ValueError("expected a checkpoint, found a file without any tensor; fetch it again")
    families = [f for f in all_families() if architecture in (None, *f.tables)]
    # A composite's files hold its parts', so that the parts' families are asked after it.
    for group in ([f for f in families if f.parts], [f for f in families if not f.parts]):
        answers = [a for family in group if (a := _read_as(family, files, architecture))]
        if len(answers) == 1:
            return answers[0]
        if answers:
            makes = ", ".join(f"{a.family.name} ({', '.join(a.family.tables)})" for a in answers)
            raise ValueError(
                f"expected the checkpoint of one model, found several: {makes}; say with"
                " --architecture=NAME which of their models to make"
            )
    keys = [key for file in files for key in file]
    _refuse_sharded(keys)
    wanted = "\n  ".join(f"{f.name}: {_wanted(f, keys)}" for f in families)
    raise ValueError(
        f"expected a checkpoint of a known family, found {len(keys)} keys such as"
        f" {', '.join(keys[:3])}: this is another kind of model. Looked for one tensor of\n"
        f"  {wanted}"
    )


def find_prefix(family: Family, keys: Iterable[str]) -> str | None:
    """What precedes a family's canonical keys; None if there is no anchor or several."""
    keys = {_respelled(family, key) for key in keys}
    prefixes = (outer + prefix for outer in _OUTER for prefix in family.prefixes)
    found = [p for p in prefixes if any(p + anchor in keys for anchor in family.anchors)]
    return found[0] if len(found) == 1 else None


def canonical_names(family: Family, keys: Iterable[str], prefix: str) -> dict[str, str]:
    """A file's keys by canonical key; those without the prefix only lose wrappers and spelling.

    Args:
      family: whose keys they are.
      keys: of the file.
      prefix: from `find_prefix`.

    Raises:
      ValueError: two keys that become one.
    """
    names: dict[str, str] = {}
    for key in keys:
        canonical = _respelled(family, unwrapped(key).removeprefix(prefix))
        if canonical in names:
            raise ValueError(
                f"expected distinct keys, found {key!r} and {names[canonical]!r}, which are the"
                " same without the names of wrappers"
                + (f" and the prefix {prefix!r}" if prefix else "")
                + "; keep one of them"
            )
        names[canonical] = key
    return names


def _read_as(
    family: Family, files: Sequence[Shapes], architecture: str | None
) -> Recognized | None:
    spelled: dict[str, str] = {}
    of_parts: dict[str, tuple[int, str]] = {}
    own: dict[str, tuple[int, str]] = {}
    # An add-on may hold nothing that a composite could be told by.
    is_found = bool(family.parts) and architecture is not None
    may_be_part = is_found or len(files) > 1
    for number, file in enumerate(files):
        prefix = find_prefix(family, file)
        is_found |= prefix is not None
        placed = _in_places(family, file) if prefix is None and may_be_part else {}
        for key, (name, one) in placed.items():
            of_parts[key], spelled[key] = (number, name), one
        names = {} if placed else canonical_names(family, file, prefix or "")
        own |= {key: (number, name) for key, name in names.items()}
        if family.parts:
            spelled |= {k: unwrapped(n).removeprefix(prefix or "") for k, n in names.items()}
    is_found |= bool(of_parts) and not _absent_parts(family, of_parts)
    if not is_found:
        return None
    keys = of_parts | own
    shapes = {key: tuple(files[number][name]) for key, (number, name) in keys.items()}
    kind = family.recognize(shapes, architecture)
    if kind is None:
        return None
    _expect_parts(family, shapes)
    return Recognized(family, kind, shapes, keys, spelled)


def _in_places(composite: Family, file: Shapes) -> dict[str, tuple[str, str]]:
    """Keys of the file of a part, or of several, by the composite's canonical keys.

    What the file of one part holds besides the tower has the part's prefix, too.

    Returns:
      The file's key, and how a file of the composite would spell it.
    """
    placed: dict[str, tuple[str, str]] = {}
    others: dict[str, str] = {}
    prefixes = []
    for part in composite.parts:
        family = _named(part.family)
        prefix = find_prefix(family, file)
        if prefix is None:
            continue
        names = canonical_names(family, file, prefix)
        if family.recognize({k: file[n] for k, n in names.items()}, part.architecture) is None:
            continue
        prefixes.append(part.prefix)
        for key, name in names.items():
            bare = unwrapped(name)
            if bare.startswith(prefix):
                placed[part.prefix + key] = name, part.prefix + bare.removeprefix(prefix)
            else:
                others[key] = name
    used = {name for name, _ in placed.values()}
    place = prefixes[0] if len(prefixes) == 1 else ""
    left = {place + key: (name, place + key) for key, name in others.items() if name not in used}
    return left | placed


def _expect_parts(family: Family, shapes: Shapes) -> None:
    absent = _absent_parts(family, shapes)
    if absent:
        raise ValueError(
            f"expected the files of all parts of {family.name}, found none for"
            f" {' and '.join(absent)}; pass every file as a SOURCE"
        )


def _absent_parts(family: Family, keys: Collection[str]) -> list[str]:
    """What of a composite no key shows, and which files would."""
    wanted: dict[str, list[Part]] = {}
    for part in family.parts:
        wanted.setdefault(part.prefix, []).append(part)
    return [
        f"{prefix}* ({' or '.join(part.source for part in parts)})"
        for prefix, parts in wanted.items()
        if not any(
            prefix + anchor in keys for part in parts for anchor in _named(part.family).anchors
        )
    ]


def _named(name: str) -> Family:
    return next(family for family in all_families() if family.name == name)


def unwrapped(key: str) -> str:
    """A key without what wrappers have put into it."""
    return _WRAPPERS.sub("", key)


def _refuse_sharded(keys: Sequence[str]) -> None:
    flat = [key for key in keys if re.search(r"(?<![^.])_?flat_param(_\d+)?$", key)]
    if flat:
        raise ValueError(
            f"expected parameters by name, found {len(flat)} flattened ones such as {flat[0]}:"
            " PyTorch's FSDP has put the parameters of whole modules into one, in shards; save the"
            " full state dict where they were trained"
            " (torch.distributed.checkpoint.state_dict.get_model_state_dict with"
            " StateDictOptions(full_state_dict=True), StateDictType.FULL_STATE_DICT before 2.2)"
        )


def _respelled(family: Family, key: str) -> str:
    key = unwrapped(key)
    for pattern, replacement in family.spellings:
        key = re.sub(pattern, replacement, key)
    return key


def _wanted(family: Family, keys: Sequence[str]) -> str:
    found = [key for key in keys if key.endswith(family.anchors)]
    prefixes = ", ".join(p for p in family.prefixes if p)
    after = f", alone or after {prefixes}" if prefixes else ""
    return f"{' or '.join(family.anchors)}{after}; found {', '.join(found[:3]) or 'none'}"
