"""`vdisk info`."""

from __future__ import annotations

from typing import Any

import click

from vdisk.cli.common import format_text, human_size, json_option, print_json, reading_options, strict_option


@click.command(
    epilog="""\b
Examples:
  vdisk info disk.vmdk
  vdisk info --chain overlay.qcow2
  vdisk info --json disk.vhd | jq '."virtual-size"'"""
)
@click.argument("image", type=click.Path())
@click.option("--chain", "--backing-chain", is_flag=True, help="Show the images behind it too.")
@strict_option
@reading_options
@json_option
def command(image: str, chain: bool, strict: bool, as_json: bool, **how: Any) -> None:
    """Say what IMAGE is: format, sizes, backing file, snapshots, and what its format knows.

    The JSON has the keys of `qemu-img info --output=json`. Without --chain no file but the image's own is opened.
    """
    from vdisk.inspect.info import chain_of, info

    how["references"] = not how.pop("no_references")
    how.pop("secret")  # what an image says of itself is never encrypted
    if chain:
        if strict:
            info(image, strict=True, **how)
        found = chain_of(image, **how)
        if as_json:
            print_json(found)
            return
        for number, one in enumerate(found):
            if number:
                click.echo()
            _show(one)
        return
    one = info(image, strict=strict, **how)
    if as_json:
        print_json(one)
    else:
        _show(one)


def _say(name: str, value: object) -> None:
    """One line. Names come out of the image, and what would steer a terminal is spelt out."""
    text = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in str(value))
    click.echo(f"{name + ':':<18}{text}")


def _show(one: dict[str, Any]) -> None:
    """One image for people."""
    lines = [
        ("image", one["filename"]),
        ("format", format_text(one["format"], one.get("format-guessed-from"))),
        ("virtual size", f"{human_size(one['virtual-size'])} ({one['virtual-size']} bytes)"),
        ("disk size", human_size(one["actual-size"]) if "actual-size" in one else None),
        ("cluster size", one.get("cluster-size")),
        ("encrypted", "yes" if one.get("encrypted") else None),
        ("dirty", "yes: not closed cleanly" if one.get("dirty-flag") else None),
        ("backing file", one.get("backing-filename")),
        ("backing format", one.get("backing-filename-format")),
    ]
    for name, value in lines:
        if value is not None:
            _say(name, value)
    for snapshot in one.get("snapshots", ()):
        _say("snapshot", f"{snapshot['id']} {snapshot['name']}")
    data = one.get("format-specific", {}).get("data", {})
    for name, value in data.items():
        if isinstance(value, list):
            for item in value:
                shown = ", ".join(f"{k} {v}" for k, v in item.items()) if isinstance(item, dict) else item
                _say(name, shown)
        elif isinstance(value, dict):
            _say(name, ", ".join(f"{k} {v}" for k, v in value.items()))
        else:
            shown = ("yes" if value else "no") if isinstance(value, bool) else value
            _say(name, shown)
    for note in one.get("notes", ()):
        _say("note", note)
