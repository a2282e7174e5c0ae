"""A picture of the text screen: as text, or drawn by Pillow (an extra: `pip install vdisk-toolkit[pictures]`).

Letters come from Pillow's own font; lines, corners and blocks, which it lacks, are drawn here, so that frames close.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from vdisk.errors import OptionError, StorageError
from vdisk.hv.devices.vga import TextScreen, decode_cells

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw

_CELL_WIDTH, _CELL_HEIGHT = 9, 16
_FONT_SIZE = 13
_COLOURS = (
    *((0, 0, 0), (0, 0, 170), (0, 170, 0), (0, 170, 170), (170, 0, 0), (170, 0, 170), (170, 85, 0), (170, 170, 170)),
    *((85, 85, 85), (85, 85, 255), (85, 255, 85), (85, 255, 255), (255, 85, 85), (255, 85, 255), (255, 255, 85)),
    (255, 255, 255),
)
_LEFT, _RIGHT, _UP, _DOWN = 1, 2, 4, 8
_LINES = {
    **dict.fromkeys("─═", _LEFT | _RIGHT),
    **dict.fromkeys("│║", _UP | _DOWN),
    **dict.fromkeys("┌╒╓╔", _RIGHT | _DOWN),
    **dict.fromkeys("┐╕╖╗", _LEFT | _DOWN),
    **dict.fromkeys("└╘╙╚", _RIGHT | _UP),
    **dict.fromkeys("┘╛╜╝", _LEFT | _UP),
    **dict.fromkeys("├╞╟╠", _RIGHT | _UP | _DOWN),
    **dict.fromkeys("┤╡╢╣", _LEFT | _UP | _DOWN),
    **dict.fromkeys("┬╤╥╦", _LEFT | _RIGHT | _DOWN),
    **dict.fromkeys("┴╧╨╩", _LEFT | _RIGHT | _UP),
    **dict.fromkeys("┼╪╫╬", _LEFT | _RIGHT | _UP | _DOWN),
}
_BLOCKS = {  # the filled part of the cell: left, top, right, bottom as fractions
    "█": (0.0, 0.0, 1.0, 1.0),
    "▀": (0.0, 0.0, 1.0, 0.5),
    "▄": (0.0, 0.5, 1.0, 1.0),
    "▌": (0.0, 0.0, 0.5, 1.0),
    "▐": (0.5, 0.0, 1.0, 1.0),
    "■": (0.2, 0.3, 0.8, 0.7),
}
_SHADES = {"░": 4, "▒": 2, "▓": 1}


def save_screenshot(screen: TextScreen | None, path: str | Path) -> None:
    """Write the screen to `path`: text if it ends in .txt, else a picture in the format of its suffix.

    Raises `OptionError` without Pillow or for a screen that is in a graphics mode.
    """
    path = Path(path)
    if screen is None:
        raise OptionError("screenshot: the screen is in a graphics mode")
    try:
        if path.suffix.lower() == ".txt":
            path.write_text(screen.text() + "\n", encoding="utf-8")
        else:
            draw_screen(screen).save(path)
    except OSError as error:
        raise StorageError(path, "write", error) from error
    except ValueError as error:
        raise OptionError(f"screenshot: {path.name}: {error}") from error


def draw_screen(screen: TextScreen) -> Any:
    """The screen as a `PIL.Image.Image`, 9 by 16 pixels a character."""
    try:
        from PIL import Image, ImageDraw, ImageFont
    except ImportError:
        raise OptionError("screenshot: a picture needs Pillow: pip install 'vdisk-toolkit[pictures]'") from None
    image = Image.new("RGB", (screen.columns * _CELL_WIDTH, screen.rows * _CELL_HEIGHT))
    canvas = ImageDraw.Draw(image)
    font = ImageFont.load_default(_FONT_SIZE)
    for row in range(screen.rows):
        for column in range(screen.columns):
            at = (row * screen.columns + column) * 2
            code, attribute = screen.cells[at], screen.cells[at + 1]
            x, y = column * _CELL_WIDTH, row * _CELL_HEIGHT
            paper, ink = _COLOURS[attribute >> 4 & 7], _COLOURS[attribute & 15]
            canvas.rectangle((x, y, x + _CELL_WIDTH - 1, y + _CELL_HEIGHT - 1), fill=paper)
            character = decode_cells(bytes((code,)))
            if not _draw_shape(canvas, character, x, y, ink) and character != " ":
                canvas.text((x + _CELL_WIDTH / 2, y + 12), character, fill=ink, font=font, anchor="ms")
    if screen.cursor is not None:
        row, column = screen.cursor
        x, y = column * _CELL_WIDTH, row * _CELL_HEIGHT
        canvas.rectangle((x, y + 13, x + _CELL_WIDTH - 1, y + 14), fill=_COLOURS[7])
    return image


def _draw_shape(canvas: ImageDraw, character: str, x: int, y: int, ink: tuple[int, int, int]) -> bool:
    """Draw a line, a block or a shade; False if the character is none."""
    lines = _LINES.get(character)
    middle_x, middle_y = x + _CELL_WIDTH // 2, y + _CELL_HEIGHT // 2
    if lines is not None:
        right, bottom = x + _CELL_WIDTH - 1, y + _CELL_HEIGHT - 1
        for bit, end in (
            (_LEFT, (x, middle_y)),
            (_RIGHT, (right, middle_y)),
            (_UP, (middle_x, y)),
            (_DOWN, (middle_x, bottom)),
        ):
            if lines & bit:
                canvas.line((middle_x, middle_y, *end), fill=ink)
        return True
    block = _BLOCKS.get(character)
    if block is not None:
        left, top, right_part, bottom_part = block
        canvas.rectangle(
            (
                x + left * _CELL_WIDTH,
                y + top * _CELL_HEIGHT,
                x + right_part * _CELL_WIDTH - 1,
                y + bottom_part * _CELL_HEIGHT - 1,
            ),
            fill=ink,
        )
        return True
    step = _SHADES.get(character)
    if step is not None:
        for dy in range(_CELL_HEIGHT):
            for dx in range(dy % 2, _CELL_WIDTH, max(step, 2)):
                canvas.point((x + dx, y + dy), fill=ink)
        return True
    return False
