"""The bridges of the i440FX and 440BX boards: host bridge, ISA bridge, AGP bridge, power management.

Only what guests look at: ids, the PAM and SMRAM registers as plain storage, PIRQ routing, the power management
block's base (Intel 82441FX and 82443BX, 82371SB PIIX3 and 82371AB PIIX4).
"""

from __future__ import annotations

from vdisk.hv.devices.base import Region
from vdisk.hv.devices.pci import Bar, PciFunction

I440FX, I440BX, I440BX_NO_AGP = 0x1237, 0x7190, 0x7192
PIIX3_ISA, PIIX4_ISA, PIIX4_PM, I440BX_AGP = 0x7000, 0x7110, 0x7113, 0x7191
_INTEL = 0x8086
_PIRQ_ROUTING = 0x60
_PAM_FIRST, _PAM_COUNT, _SMRAM = 0x59, 7, 0x72
_PM_BASE, _PM_ENABLE, _SMBUS_BASE, _SMBUS_CONTROL = 0x40, 0x80, 0x90, 0xD2
PM_BLOCK_BYTES = 64


class HostBridge(PciFunction):
    """00:00.0. The shadow RAM registers (59h to 5Fh) hold what is written; C0000h to FFFFFh stays RAM throughout."""

    def __init__(self, device_id: int = I440FX, *, subsystem: tuple[int, int] = (0x1AF4, 0x1100)) -> None:
        revision = 2 if device_id == I440FX else 1
        super().__init__(_INTEL, device_id, 0x060000, revision=revision, subsystem=subsystem)
        for offset in range(_PAM_FIRST, _PAM_FIRST + _PAM_COUNT):
            self.set_config(offset, 1, 0, writable=0x33 if offset != _PAM_FIRST else 0x30)
        self.set_config(_PAM_FIRST, 1, 0x30)
        self.set_config(_SMRAM, 1, 0x02, writable=0x78)

    def reset(self) -> None:
        """Shadow RAM goes back to what a firmware finds: the BIOS segment readable and writable."""
        super().reset()
        self.config[_PAM_FIRST : _PAM_FIRST + _PAM_COUNT] = b"\x30" + bytes(_PAM_COUNT - 1)
        self.config[_SMRAM] = 0x02


class IsaBridge(PciFunction):
    """The PIIX's function 0: its registers 60h to 63h say which ISA interrupt each PCI line leads to."""

    def __init__(self, device_id: int = PIIX3_ISA, *, subsystem: tuple[int, int] = (0x1AF4, 0x1100)) -> None:
        super().__init__(_INTEL, device_id, 0x060100, subsystem=subsystem)
        self.config[0x04] = 0x07  # decoding cannot be turned off
        self.set_config(0x4C, 2, 0x034D, writable=0xFFFF)  # ISA recovery times
        self.set_config(0x4E, 2, 0x0003, writable=0xFFFF)  # X-bus chip selects
        self.set_config(_PIRQ_ROUTING, 4, 0x80808080, writable=0x8F8F8F8F)
        self.set_config(0x69, 1, 0x02, writable=0xFE)  # top of memory

    def reset(self) -> None:
        """Route nothing, as after power-on."""
        super().reset()
        self.config[0x04] = 0x07
        self.set_config(_PIRQ_ROUTING, 4, 0x80808080)
        self.config_written(_PIRQ_ROUTING, 4)

    def config_written(self, offset: int, size: int) -> None:
        """Pass a change of the routing on to the host."""
        if self.host is not None and offset < _PIRQ_ROUTING + 4 and offset + size > _PIRQ_ROUTING:
            self.host.routing[:] = self.config[_PIRQ_ROUTING : _PIRQ_ROUTING + 4]
            self.host.drive_lines()


class PowerManagement(PciFunction):
    """The PIIX4's function 3: shows `block`, the ACPI registers (PM1a, timer), where register 40h says."""

    def __init__(self, block: Region, *, subsystem: tuple[int, int] = (0x1AF4, 0x1100)) -> None:
        super().__init__(_INTEL, PIIX4_PM, 0x068000, revision=3, subsystem=subsystem, interrupt_pin=1)
        self._block = Bar("io", PM_BLOCK_BYTES, block)
        self.config[0x3C] = 9  # the SCI, not routed through PIRQ
        self.set_config(_PM_BASE, 4, 1, writable=0xFFC0)
        self.set_config(_PM_ENABLE, 1, 0, writable=1)
        self.set_config(_SMBUS_BASE, 4, 1, writable=0xFFC0)
        self.set_config(_SMBUS_CONTROL, 1, 0, writable=0x0F)

    def reset(self) -> None:
        """Hide the block."""
        super().reset()
        self.set_config(_PM_BASE, 4, 1)
        self.config[_PM_ENABLE] = 0
        self.config_written(_PM_BASE, 4)

    def config_written(self, offset: int, size: int) -> None:
        """Move the block after its base or its enable bit."""
        if self.host is None:
            return
        base = self.config_read(_PM_BASE, 4) & 0xFFC0
        wanted = base if self.config[_PM_ENABLE] & 1 and base else None
        if wanted == self._block.mapped_at:
            return
        if self._block.mapped_at is not None:
            self.host.unmap_region("io", self._block.mapped_at, PM_BLOCK_BYTES)
        if wanted is not None:
            self.host.map_region("io", wanted, PM_BLOCK_BYTES, self._block.region)
        self._block.mapped_at = wanted


class AgpBridge(PciFunction):
    """The 440BX's PCI-to-AGP bridge, 00:01.0 under VMware: a type 1 header with nothing behind it."""

    def __init__(self) -> None:
        super().__init__(_INTEL, I440BX_AGP, 0x060400, revision=1)
        self.config[0x0E] = 0x01
        self.set_config(0x18, 4, 0, writable=0xFFFFFF)  # bus numbers
        self.set_config(0x1C, 2, 0x01F0, writable=0xF0F0)  # an empty port window
        self.set_config(0x20, 4, 0x0000FFF0, writable=0xFFF0FFF0)  # empty memory windows
        self.set_config(0x24, 4, 0x0000FFF0, writable=0xFFF0FFF0)
        self.set_config(0x3E, 2, 0, writable=0x000F)
        self.set_config(0x04, 2, 0, writable=0x0107)
