"""How far a function has got that takes long, for who looks on at a terminal or in a notebook."""

import warnings
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")

# What takes less, in seconds, shows nothing.
_PATIENCE = 2.0


def watched(results: Iterable[T], total: int, unit: str) -> Iterator[T]:
    """Results as they come, with a bar that counts them.

    Args:
      results: any.
      total: how many there will be.
      unit: what one is, in the singular: "clip".
    """
    with progress_bar(total, unit) as bar:
        for result in results:
            bar.update()
            yield result


def progress_bar(total: int, unit: str) -> Any:
    """A bar of tqdm, as a context manager with `update`."""
    from tqdm import TqdmWarning

    with warnings.catch_warnings():
        # A notebook without ipywidgets shows no bar, and need not be told of it.
        warnings.simplefilter("ignore", TqdmWarning)
        from tqdm.auto import tqdm
        from tqdm.notebook import tqdm_notebook

    # Notebooks are no terminals, and show it all the same.
    is_hidden = False if issubclass(tqdm, tqdm_notebook) else None
    return tqdm(total=total, unit=unit, delay=_PATIENCE, leave=False, disable=is_hidden)
