"""Fuzzing led by coverage: atheris changes the bases' metadata and keeps what reaches code that nothing reached before.

`make fuzz-guided` (`python -m tests.hostile.guided --seconds 600`); atheris is an extra of its own (`.[fuzz]`).

An input is not an image, for some of those are megabytes: it is the number of a base, flags, and patches to the base's
metadata, four bytes and more each: position (2, among the bytes of the base's `spans`), length (1), the bytes.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_SEAL, _REPAIR = 0x80, 0x40
_MOST_PATCHES = 32
_MOST_PATCH_BYTES = 16
_SLOWEST_SECONDS = 10


def _patches(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    for _ in range(_MOST_PATCHES):
        if at + 4 > len(data):
            return
        length = 1 + data[at + 2] % _MOST_PATCH_BYTES
        yield int.from_bytes(data[at : at + 2], "little"), data[at + 3 : at + 3 + length]
        at += 3 + length


def places_of(base: Any) -> list[int]:
    """Where a base's metadata lies: every offset in its spans."""
    return [place for offset, length in base.spans for place in range(offset, min(offset + length, len(base.data)))]


def image_of(base: Any, places: list[int], data: bytes) -> bytearray:
    """The base with the patches of an input in it."""
    image = bytearray(base.data)
    for position, patch in _patches(data):
        start = places[position % len(places)]
        image[start : start + len(patch)] = patch
    return image


def seeds(number: int, base: Any, places: list[int]) -> Iterator[bytes]:
    """Inputs to begin with: the base as it is, and some of it with its own values, for them to be changed."""
    yield bytes((number, _SEAL))
    for at in range(0, min(len(places), 1 << 16), max(8, len(places) // 16)):
        yield bytes((number, _SEAL)) + at.to_bytes(2, "little") + b"\7" + base.data[places[at] : places[at] + 8]


def main() -> None:
    """Fuzz for some seconds; what escapes ends it with a traceback and a file that reproduces it."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0, help="0: another one each time")
    parser.add_argument("--only", default="", help="base images whose name has this in it")
    given = parser.parse_args()
    import atheris

    with atheris.instrument_imports(include=["vdisk"]):
        from tests.hostile.bases import bases
        from tests.hostile.mutate import attempt
        from tests.torture.processes import import_all

        import_all()
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder, "corpus")
        corpus.mkdir()
        every = [base for base in bases(Path(folder)) if given.only in base.name]
        places = [places_of(base) for base in every]
        for number, base in enumerate(every):
            for count, seed in enumerate(seeds(number, base, places[number])):
                (corpus / f"{base.name}-{count}").write_bytes(seed)

        def one(data: bytes) -> None:
            if len(data) < 2:
                return
            number = data[0] % len(every)
            base = every[number]
            image = image_of(base, places[number], data[2:])
            if base.seal is not None and data[1] & _SEAL:
                base.seal(image)
            attempt(base, image, repair=bool(data[1] & _REPAIR))

        options = [f"-max_total_time={given.seconds}", f"-timeout={_SLOWEST_SECONDS}", "-rss_limit_mb=2048"]
        options += [f"-seed={given.seed}", "-max_len=512", "-len_control=0", "-print_final_stats=1", "-verbosity=1"]
        atheris.Setup([sys.argv[0], *options, str(corpus)], one)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
