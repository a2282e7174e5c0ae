"""`Machine`: a PC with disks, to be run, looked at and typed into.

::

    with Machine("kvm", [device], memory_bytes=256 << 20) as machine:
        machine.start()
        machine.run(until=lambda m: "login:" in m.console_text(), timeout=60)
        print(machine.screen_text())

What the guest writes to its disks goes to an overlay in memory, unless `write=True`. A reset by the guest switches the
machine off and on again with the same disks. All methods are for one thread, which is not a processor's.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from vdisk.block.device import BlockDevice
from vdisk.block.overlay import Overlay
from vdisk.errors import HypervisorError, OptionError
from vdisk.hv.board import Board, Stop
from vdisk.hv.config import Disk, Kernel, MachineConfig, guess_kind
from vdisk.hv.cpu import ExitCounts, Sample
from vdisk.hv.devices.vga import TextScreen
from vdisk.hv.firmware.bios import BiosLog
from vdisk.hv.keys import Stroke, parse_keys
from vdisk.hv.meter import Meter
from vdisk.hv.powerup import power_up
from vdisk.hv.profiles import DEFAULT_PROFILE, Controller, Profile, find_profile

TICK_SECONDS = 0.02
SERIAL_KEPT_BYTES = 1 << 20
_STROKE_GAP_SECONDS = 0.03
_TEXT_LOOK_SECONDS = 0.2


class Machine:
    """A PC. `disks` are devices or `Disk`s; memory is in bytes; `firmware` is the content of a BIOS file."""

    def __init__(
        self,
        profile: str | Profile = DEFAULT_PROFILE,
        disks: Sequence[BlockDevice | Disk] = (),
        memory_bytes: int = 512 << 20,
        cpus: int = 1,
        *,
        firmware: bytes | None = None,
        option_rom: bytes | None = None,
        kernel: Kernel | None = None,
        controller: Controller | None = None,
        write: bool = False,
        reboots: int = 3,
        on_serial: Callable[[bytes], None] | None = None,
    ) -> None:
        self.overlays: list[Overlay] = []
        self.meters: list[Meter] = []
        """One for each disk: what the guest did with it."""
        attached = []
        for disk in disks:
            row = disk if isinstance(disk, Disk) else Disk(disk, guess_kind(disk), controller)
            if write and not row.device.writable and row.kind != "cdrom":
                raise OptionError(f"write: {row.device.name} is not open for writing")
            meter = Meter(row.device if write or row.kind == "cdrom" else self._protect(row.device))
            self.meters.append(meter)
            attached.append(Disk(meter, row.kind, row.controller))
        self.config = MachineConfig(
            profile if isinstance(profile, Profile) else find_profile(profile),
            tuple(attached),
            memory_bytes,
            cpus,
            firmware,
            option_rom,
            kernel,
        )
        self.board: Board | None = None
        self.stop: Stop | None = None
        """Why the machine stopped, once it has and will not be switched on again."""
        self.resets = 0
        self.serial = bytearray()
        """The last MiB that the guest sent by its serial port."""
        self.serial_bytes = 0
        self.debug = bytearray()
        """What came by the debug ports (E9h, 402h)."""
        self.booted_at: float | None = None
        """When the boot sector was started, on the clock of `time.monotonic`."""
        self.bios_log: BiosLog | None = None
        """What our own firmware saw; None with another one."""
        self._on_serial = on_serial
        self._serial_told = 0
        self._reboots_left = reboots
        self._strokes: deque[Stroke] = deque()
        self._next_stroke_at = 0.0
        self._keys_to_serial = False
        self._serial_awaited = 0
        self._counts: list[ExitCounts] = []

    def _protect(self, device: BlockDevice) -> Overlay:
        overlay = Overlay(device)
        self.overlays.append(overlay)
        return overlay

    # Power -----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Switch on."""
        if self.board is not None or self.stop is not None:
            raise HypervisorError("machine: it was started before")
        self._switch_on()

    def _switch_on(self) -> None:
        board = Board(self.config, self._take_serial, self._take_debug)
        self.board = board
        try:
            bios = power_up(board, self._note_boot)
        except BaseException:
            self._switch_off()
            raise
        self.bios_log = bios.log if bios is not None else None
        self._counts = [cpu.counts for cpu in board.cpus]
        board.start()

    def _switch_off(self) -> None:
        board, self.board = self.board, None
        if board is not None:
            board.close()

    def _note_boot(self) -> None:
        if self.booted_at is None:
            self.booted_at = time.monotonic()

    def close(self) -> None:
        """Switch off. The disks stay open; what went to overlays is kept until they are dropped."""
        self._tell_serial()
        self._switch_off()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _live(self) -> Board:
        if self.board is None:
            raise HypervisorError("machine: it is switched off")
        return self.board

    # Running ---------------------------------------------------------------------------------------------------

    def step(self, seconds: float = TICK_SECONDS) -> bool:
        """Let the guest run for a moment, and serve what does not come from it; False once it has stopped for good."""
        board = self._live()
        if board.has_stopped.wait(seconds):
            self._tell_serial()
            stop = board.stopped
            assert stop is not None
            if stop.reason == "error" and isinstance(stop.detail, BaseException):
                self.stop = stop
                raise stop.detail
            self.resets += stop.reason in ("reset", "triple fault")
            if stop.reason == "reset" and self._reboots_left > 0:
                self._reboots_left -= 1
                self._switch_off()
                self._switch_on()
                return True
            self.stop = stop
            return False
        board.tick()
        self._tell_serial()
        self._type_next(board)
        return True

    def run(self, until: Callable[[Machine], bool] | None = None, timeout: float = 60.0) -> bool:
        """Run until `until` says so (True), the machine has stopped, or `timeout` seconds have gone by (False)."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            alive = self.step()
            if until is not None and until(self):
                return True
            if not alive:
                return False
        return False

    def pause(self) -> None:
        """Make the processors stand still; `resume` lets them go on."""
        self._live().pause()

    def resume(self) -> None:
        """Go on after `pause`."""
        self._live().resume()

    def press_power_button(self) -> None:
        """Ask the guest to shut down (ACPI)."""
        board = self._live()
        with board.lock:
            board.pm.press_power_button()

    # Looking ---------------------------------------------------------------------------------------------------

    def read_memory(self, address: int, length: int) -> bytes:
        """Guest physical memory."""
        return self._live().memory.read(address, length)

    def screen(self) -> TextScreen | None:
        """The text screen; None in a graphics mode or when switched off."""
        board = self.board
        if board is None:
            return None
        with board.lock:
            return board.vga.screen()

    def screen_text(self) -> str:
        """The text screen's lines; empty in a graphics mode."""
        screen = self.screen()
        return screen.text() if screen is not None else ""

    def serial_text(self) -> str:
        """What came by the serial port, as text; what is no UTF-8 is replaced."""
        return self.serial.decode("utf-8", "replace")

    def console_text(self) -> str:
        """Serial port and screen together, for whoever looks for a text."""
        return self.serial_text() + "\n" + self.screen_text()

    def sample(self) -> Sample | None:
        """Where the first processor was at the last tick."""
        board = self.board
        return board.cpus[0].sample if board is not None and board.cpus else None

    def exit_counts(self) -> list[ExitCounts]:
        """How often each processor left the guest, since the last switching on."""
        return self._counts

    def is_idle(self) -> bool:
        """Whether every processor has halted, waits to be started, or jumps on the spot. Pauses it for a moment."""
        board = self._live()
        board.pause()
        try:
            return board.is_idle()
        finally:
            board.resume()

    def live_drivers(self) -> list[str]:
        """Controllers that a driver of the guest has taken over."""
        board = self.board
        if board is None:
            return []
        with board.lock:
            return [name for name, is_live in board.attached.drivers_live if is_live()]

    # Typing ----------------------------------------------------------------------------------------------------

    def type_keys(self, keys: str | Sequence[Stroke], *, to_serial: bool = False) -> None:
        """Type, one stroke after the other as the guest takes them: `keys.parse_keys` says how they are written."""
        self._strokes.extend(parse_keys(keys) if isinstance(keys, str) else keys)
        self._keys_to_serial = to_serial

    def send_serial(self, data: bytes) -> None:
        """Bytes into the guest's serial port."""
        board = self._live()
        with board.lock:
            board.serial.receive(data)

    @property
    def is_typing(self) -> bool:
        """Whether strokes are still waiting."""
        return bool(self._strokes)

    def _type_next(self, board: Board) -> None:
        now = time.monotonic()
        if not self._strokes or now < self._next_stroke_at:
            return
        with board.lock:
            if self._keys_to_serial:
                if not board.serial.is_quiet:
                    return
            elif not board.keyboard.is_quiet:
                return
            stroke = self._strokes[0]
            if stroke.wait_text and not self._has_come(stroke.wait_text):
                self._next_stroke_at = now + _TEXT_LOOK_SECONDS
                return
            self._strokes.popleft()
            if self._keys_to_serial:
                board.serial.receive(stroke.text)
            else:
                board.keyboard.press(stroke.scan)
        self._next_stroke_at = now + max(stroke.wait_seconds, _STROKE_GAP_SECONDS)

    def _has_come(self, text: str) -> bool:
        """Whether `text` is on the screen, or has come by the serial port since the last text waited for."""
        fresh = min(self.serial_bytes - self._serial_awaited, len(self.serial))
        if text in self.screen_text() or (fresh and text.encode() in self.serial[-fresh:]):
            self._serial_awaited = self.serial_bytes
            return True
        return False

    # What the guest sends --------------------------------------------------------------------------------------

    def _take_serial(self, value: int) -> None:
        self.serial.append(value)
        self.serial_bytes += 1

    def _take_debug(self, value: int) -> None:
        self.debug.append(value)
        if len(self.debug) > 2 * SERIAL_KEPT_BYTES:
            del self.debug[:-SERIAL_KEPT_BYTES]

    def _tell_serial(self) -> None:
        """Hand over what has come since the last time, and forget what is old."""
        board = self.board
        if board is None:
            return
        with board.lock:
            fresh = self.serial_bytes - self._serial_told
            data = bytes(self.serial[-fresh:]) if fresh else b""
            self._serial_told = self.serial_bytes
            if len(self.serial) > 2 * SERIAL_KEPT_BYTES:
                del self.serial[:-SERIAL_KEPT_BYTES]
        if data and self._on_serial is not None:
            self._on_serial(data)
