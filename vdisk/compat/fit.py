"""`convert_for`: make of an image one that a target takes, in its format, variant, size and package."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from vdisk.compat import find_target
from vdisk.compat.examine import examine
from vdisk.compat.model import Recipe
from vdisk.compat.packages import pack, work_folder
from vdisk.compat.rules import Verdict
from vdisk.converter import Conversion, convert
from vdisk.errors import OptionError


class Fitted(NamedTuple):
    """What was made, and what the target says to it."""

    conversion: Conversion
    verdict: Verdict | None
    """None for a dry run, which leaves nothing to look at."""


def convert_for(
    source: str | os.PathLike[str],
    target_path: str | os.PathLike[str],
    target_name: str,
    *,
    options: Mapping[str, Any] | None = None,
    compress: bool = False,
    dry_run: bool = False,
    flush: bool | None = None,
    **how: Any,
) -> Fitted:
    """Convert the image at `source` to one at `target_path` that the target called `target_name` takes.

    Format, variant, size and package are the target's (`Target.recipe`); `options` go before the recipe's own where
    they do not decide whether the image fits. `how` is that of `vdisk.converter.convert`. The verdict on the result
    tells what no conversion can mend: a disk too long, or one that boots by the other kind of firmware.

    Raises a `VdiskError`; nothing of the target is left then.
    """
    target = find_target(target_name)
    recipe, given = target.recipe, dict(options or {})
    _refuse_other_variant(recipe, given, target_name)
    options = {**dict(recipe.options), **given}
    path = Path(target_path)
    sizes = {"size_multiple": recipe.size_multiple, "smallest_bytes": target.smallest_bytes or 0}
    settings = {**how, **sizes, "compress": compress or recipe.compress, "dry_run": dry_run}
    if recipe.package in ("", "ova"):
        made = "ova" if recipe.package else recipe.format
        if recipe.package:
            options.pop("subformat", None)
        _refuse_wrong_name(path, target_name, recipe)
        done = convert(source, path, target_format=made, options=options, flush=flush, **settings)
    elif how.get("resume"):
        raise OptionError(f"{path}: what {target_name} takes is packed after it was converted, and cannot be resumed")
    else:
        with work_folder(path) as folder:
            disk = folder / f"disk.{recipe.format}"
            done = convert(source, disk, target_format=recipe.format, options=options, flush=False, **settings)
            if not dry_run:
                pack(recipe.package, disk, done.size_bytes, path)
    return Fitted(done, None if dry_run else examine(path, [target_name]).verdicts[0])


def _refuse_other_variant(recipe: Recipe, given: Mapping[str, Any], target_name: str) -> None:
    """A user's option that contradicts the recipe would make an image that does not fit."""
    for name, value in recipe.options:
        if name != "adapter_type" and name in given and str(given[name]) != value:
            raise OptionError(f"{name}={given[name]}: {target_name} takes {name}={value}")


def _refuse_wrong_name(path: Path, target_name: str, recipe: Recipe) -> None:
    """Names by which a target goes: Hyper-V's suffixes, the folder that a Parallels bundle is."""
    wanted = {"hyper-v": ".vhd", "hyper-v-gen2": ".vhdx", "parallels": ".hdd", "ova": ".ova"}.get(target_name)
    if wanted is not None and path.suffix.lower() != wanted:
        raise OptionError(f"{path}: {target_name} goes by the name, which must end in {wanted}")
