"""What commands share: the options that say how an image is opened, sizes, JSON."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from vdisk.formats.options import parse_size

if TYPE_CHECKING:
    from vdisk.formats.image import Image, Writer

_F = TypeVar("_F", bound=Callable[..., Any])


class Size(click.ParamType[int]):
    """A number of bytes with an optional suffix: 512, 64K, 10G, 1MiB."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        return parse_size(value, param.human_readable_name.lower() if param else "size")


SIZE = Size()


def format_option(*names: str, help: str) -> Callable[[_F], _F]:
    """An option that takes a format's name; the completion offers the names."""

    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
        from vdisk.formats import FORMATS

        return [row.name for row in FORMATS if row.name.startswith(incomplete)]

    return click.option(*names, metavar="FORMAT", shell_complete=complete, help=help)


def reference_options(function: _F) -> _F:
    """`--allow-external` and `--no-references`: which of the files that an image names may be opened."""
    function = click.option(
        "--no-references", is_flag=True, help="Open none of the files that an image names (backing files, extents)."
    )(function)
    return allow_option(function)


def reading_options(function: _F) -> _F:
    """`image_options`, and `--force-share` for a command that only reads the image."""
    return image_options(share_option(function))


def share_option(function: _F) -> _F:
    """`--force-share`: read an image that another program writes to."""
    return click.option(
        "-U",
        "--force-share",
        is_flag=True,
        help="Read the image even while another program writes to it; what is read may be inconsistent.",
    )(function)


def strict_option(function: _F) -> _F:
    """`--strict`, as in `vdisk.formats.open`."""
    return click.option(
        "--strict",
        is_flag=True,
        help="Refuse a file that could be taken for another format, or that names another file.",
    )(function)


def allow_option(function: _F) -> _F:
    """`--allow-external` alone, for commands that cannot do without the files that an image names."""
    return click.option(
        "--allow-external",
        "allow",
        multiple=True,
        type=click.Path(file_okay=False, exists=True),
        metavar="DIR",
        help="Let images name files in DIR too, not only in their own folder. May be repeated.",
    )(function)


def image_options(function: _F) -> _F:
    """The options of a command that opens an image to change it: pass them on to `open_image`."""
    function = reference_options(function)
    function = secret_option(function)
    function = format_option("--backing-format", help="Format of the backing file, where the image does not name it.")(
        function
    )
    return format_option("-f", "--format", help="Format of the image; without it, its mark decides.")(function)


def secret_option(function: _F) -> _F:
    """`--secret`: where the secret of an encrypted image is, never the secret itself."""

    def read(ctx: click.Context, param: click.Parameter, where: str | None) -> bytes | None:
        if where is None:
            return None
        if where == "prompt":
            secret: str = click.prompt("Secret", hide_input=True, err=True)
            return secret.encode()
        from vdisk.formats.qcow2.encryption import secret_from

        return secret_from(where)

    return click.option(
        "--secret",
        callback=read,
        metavar="WHERE",
        help="Secret of an encrypted image: file:PATH, env:NAME of a variable, or prompt.",
    )(function)


def progress_option(function: _F) -> _F:
    """`--progress`, for `vdisk.cli.progress.bar`."""
    return click.option("--progress/--no-progress", default=None, help="Show a bar; by default on a terminal only.")(
        function
    )


def json_option(function: _F) -> _F:
    """`--json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(function)


def open_image(
    path: str,
    *,
    format: str | None,
    backing_format: str | None,
    allow: Sequence[str],
    no_references: bool,
    secret: bytes | None,
    force_share: bool = False,
    writable: bool = False,
    backing: bool = True,
) -> Image:
    """Open an image by the values of `image_options` or `reading_options`."""
    from vdisk import formats

    return formats.open(
        path,
        format=format,
        backing_format=backing_format,
        allow=allow,
        references=not no_references,
        secret=secret,
        force_share=force_share,
        writable=writable,
        backing=backing,
    )


def parse_o(ctx: click.Context, param: click.Parameter, values: Sequence[str]) -> dict[str, str]:
    """`-o key=value,key=value`, repeated, as a dict; a bare key is "on", as in qemu-img. A comma in a value is ",,"."""
    options: dict[str, str] = {}
    for text in values:
        for item in text.replace(",,", "\0").split(","):
            key, equals, value = item.replace("\0", ",").partition("=")
            if not key.strip():
                raise click.BadParameter(f"expected key=value, found {text!r}", ctx, param)
            options[key.strip()] = value if equals else "on"
    return options


def creation_options(function: _F) -> _F:
    """`-o key=value[,...]`; `-o help` lists what the target's format knows (see `show_creation_options`)."""
    return click.option(
        "-o",
        "options",
        multiple=True,
        callback=parse_o,
        metavar="KEY=VALUE[,...]",
        help="Options of the new image; -o help lists those of its format. May be repeated.",
    )(function)


def asks_for_help(options: Mapping[str, str]) -> bool:
    """Whether `-o help` was given."""
    return "help" in options or "?" in options


def show_creation_options(writer: type[Writer]) -> None:
    """Print what `-o` takes for a format."""
    name, known = writer.FORMAT_NAME, writer.OPTIONS
    click.echo(f"Options of {name}:" if known else f"{name} has no options.")
    for option in known:
        choices = f" ({', '.join(option.choices)})" if option.choices else ""
        default = "" if option.default is None else f" [default: {_shown(option.default)}]"
        click.echo(f"  {option.name:<20} {option.help}{choices}{default}")


def _shown(value: Any) -> str:
    return {True: "on", False: "off"}.get(value, str(value)) if isinstance(value, bool) else str(value)


def format_text(name: str, guessed_from: str | None) -> str:
    """A format, and from what it was guessed."""
    return name if guessed_from is None else f"{name} (guessed from {guessed_from})"


def print_json(value: Any) -> None:
    """Print `value` as JSON that a person can read too."""
    import json

    json.dump(value, sys.stdout, indent=4)
    sys.stdout.write("\n")


def human_size(size: int) -> str:
    """A size for people: 1.5 GiB."""
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB", "PiB"):
        if value < 1024 or unit == "PiB":
            return f"{size} B" if unit == "B" else f"{value:.3g} {unit}" if value < 1000 else f"{value:.0f} {unit}"
        value /= 1024
    raise AssertionError("unreachable")
