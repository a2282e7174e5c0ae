"""The bar of long work: on a terminal only, unless asked for."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def bar(title: str, wanted: bool | None) -> Iterator[Callable[[int, int], None] | None]:
    """A progress callback (bytes done, bytes in all) that draws on standard error; None where no bar shall be.

    `wanted` None: where standard error is a terminal.
    """
    if not (sys.stderr.isatty() if wanted is None else wanted):
        yield None
        return
    from tqdm import tqdm

    with tqdm(total=0, desc=title, unit="B", unit_scale=True, unit_divisor=1024, file=sys.stderr, leave=False) as shown:

        def show(done: int, total: int) -> None:
            shown.total = total
            shown.update(done - shown.n)

        yield show
