"""What the converter must be told of one family of checkpoints; everything else it does itself.

A family is a module of `convert/families` that states `FAMILY = Family(...)`. It is found there:
adding one touches no other file. To write one:

  anchors, prefixes   which key shows that a file is the family's, and what may precede its keys
                      besides the wrappers that all files may have (`recognition`). Without them,
                      and with `spellings` applied, keys are canonical.
  recognize           from canonical shapes, which kind of the family's models a file holds. Of all
                      families that find their anchors exactly one may answer.
  kinds               constructor options of each upstream class -> config (`options.Options`).
  tables              for each architecture the rules (`rules.Table`), or a function of the config
                      that makes them: stacks that begin at another layer (`rules.from_layer`), LoRA
                      folded or kept (`transforms.fold_lora`), keys that repeat others (`Tie`).
  infer, to_options   options that shapes show, and those that they do not show of a config.

The rest has defaults. A model of several towers that come from files of their own states `parts`
(`recognition` puts their keys in place) and makes its table with `rules.under`. A JSON file of the
family's name beside its module lists the checkpoints that upstream names (`registry.Released`).
"""

import dataclasses
import functools
import importlib
import pkgutil
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from internvideo_jax.convert import families
from internvideo_jax.convert.engine.adaptations import Adaptation, Inflation
from internvideo_jax.convert.engine.options import Options
from internvideo_jax.convert.engine.rules import Table
from internvideo_jax.convert.engine.transforms import Shape
from internvideo_jax.preprocessing import Preprocessing

if TYPE_CHECKING:
    from internvideo_jax.convert.engine.verify import Recipe

Shapes = Mapping[str, Shape]


@dataclasses.dataclass(frozen=True)
class Part:
    """A tower of a composite model that comes from a file of its own; one prefix may have several.

    Attributes:
      prefix: what precedes its canonical keys in those of the composite.
      family: whose file it is.
      architecture: what is taken out of that file.
      source: which file that is, for messages.
    """

    prefix: str
    family: str
    architecture: str
    source: str


def keep(config: Any, changes: Mapping[str, int]) -> Any:
    """The `retarget` of families whose models are what their files make them."""
    if changes:
        raise ValueError(
            f"expected nothing to change of {type(config).__name__.removesuffix('Config')}, found"
            f" {', '.join(changes)}; leave that out"
        )
    return config


def fits(*_: Any) -> None:
    """The `fit` of families whose parameters fit as they are."""


@dataclasses.dataclass(frozen=True)
class Family:
    """All that is known of one family's files; functions get canonical keys.

    Attributes:
      name: of the family.
      anchors: keys, any of which shows that and where a file has the family's keys.
      prefixes: what may precede them.
      recognize: kind of the model with these shapes, or None if another family's; the second
        argument is the architecture that is asked for, or None.
      kinds: config of constructor options, by kind. Names of kinds are unique over all families.
      tables: by architecture, the rules or what makes them of a config.
      infer: of (kind, shapes, given options, options stored in the file): options that the tensors
        show, and further ones, of less authority than the stored ones, that released models have.
        Raises ValueError for what must be given.
      to_options: options, JSON-ready, of what the tensors of a config's model do not show.
      preprocessing: what a model's inputs must have gone through; its tokenizer's files are taken
        from beside the checkpoint.
      describe: a config in a few words.
      neutral: options without effect here.
      recorded: what the arguments that a file holds say, by names of constructor options.
      spellings: (pattern, replacement) for keys that files write in several ways.
      retarget: the config with changes such as num_frames, image_size, tubelet_size, num_classes.
      fit: of (path of a parameter, its shape, config of the model that it is of, config of the
        model that it is for, how a kernel is spread over more frames, shape of the tensor that it
        comes from): the change that makes it fit; None where it fits as it is. Raises ValueError
        where nothing makes it fit.
      new_head: architecture that is made of a file for which a new head is asked.
      parts: towers that come from files of their own.
      recipes: by architecture, how reference activations are run.
    """

    name: str
    anchors: tuple[str, ...]
    recognize: Callable[[Shapes, str | None], str | None]
    kinds: Mapping[str, Callable[[Options], Any]]
    tables: Mapping[str, Table | Callable[[Any], Table]]
    infer: Callable[
        [str, Shapes, Mapping[str, Any], Mapping[str, Any]], tuple[dict[str, Any], dict[str, Any]]
    ]
    to_options: Callable[[Any], dict[str, Any]]
    preprocessing: Callable[[Any], Preprocessing]
    describe: Callable[[Any], str]
    prefixes: tuple[str, ...] = ("",)
    neutral: frozenset[str] = frozenset()
    spellings: tuple[tuple[str, str], ...] = ()
    recorded: Callable[[Mapping[str, Any]], dict[str, Any]] = dict
    retarget: Callable[[Any, Mapping[str, int]], Any] = keep
    fit: Callable[[str, Shape, Any, Any, Inflation | None, Shape], Adaptation | None] = fits
    new_head: str | None = None
    parts: tuple[Part, ...] = ()
    recipes: Mapping[str, "Recipe"] = dataclasses.field(default_factory=dict)

    def table(self, architecture: str, config: Any) -> Table:
        """The rules of a config's model."""
        table = self.tables[architecture]
        return table if isinstance(table, Table) else table(config)


@functools.cache
def all_families() -> tuple[Family, ...]:
    """The families stated by the modules of `convert.families`, in the order of their names."""
    modules = (
        importlib.import_module(f"{families.__name__}.{info.name}")
        for info in pkgutil.iter_modules(families.__path__)
    )
    return tuple(module.FAMILY for module in modules if hasattr(module, "FAMILY"))


def family_of(architecture: str) -> Family:
    """A family that has this architecture's rules, its recipe and what fits it to other configs.

    Raises:
      ValueError: there is none.
    """
    for family in all_families():
        if architecture in family.tables:
            return family
    raise ValueError(f"expected an architecture that has a converter, found {architecture!r}")
