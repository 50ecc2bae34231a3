"""InternVideo in JAX: train, convert and use the InternVideo family of video models.

The public names are imported when first used: `import internvideo_jax` by itself loads no JAX.
"""

import os
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.machinery import ModuleSpec, PathFinder
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from internvideo_jax import (
        convert,
        data,
        evaluation,
        kernels,
        models,
        nn,
        objectives,
        parallel,
        search,
        training,
    )
    from internvideo_jax.loading import load

__version__ = "0.1.0"
__all__ = [
    "convert",
    "data",
    "evaluation",
    "kernels",
    "load",
    "models",
    "nn",
    "objectives",
    "parallel",
    "search",
    "training",
]


class _CheckoutFolders:
    """Finds `internvideo_jax.{kernels,configs,launch}` in the folders of a source checkout.

    It serves one made-up entry of `__path__`. The checkout's root itself in that place would make
    `internvideo_jax.internvideo_jax` importable and keep package walkers walking.
    """

    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    entry = os.path.join(root, "<kernels configs launch>")
    names = ("configs", "kernels", "launch")

    def __init__(self, entry: str) -> None:
        if entry != self.entry:
            raise ImportError(f"only for {self.entry}", path=entry)

    def find_spec(self, fullname: str, target: object = None) -> ModuleSpec | None:
        is_ours = fullname.rpartition(".")[2] in self.names
        return PathFinder.find_spec(fullname, [self.root]) if is_ours else None

    def iter_modules(self, prefix: str = "") -> Iterator[tuple[str, bool]]:
        """The listing that `pkgutil` asks a path entry for."""
        return ((prefix + name, True) for name in self.names)


# An installed package holds the three folders itself, and no pyproject.toml lies beside it.
if os.path.isfile(os.path.join(_CheckoutFolders.root, "pyproject.toml")):
    sys.path_hooks.append(_CheckoutFolders)
    __path__.append(_CheckoutFolders.entry)


def __getattr__(name: str) -> object:
    if name == "load":
        return import_module("internvideo_jax.loading").load
    if name in __all__:
        return import_module(f"internvideo_jax.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
