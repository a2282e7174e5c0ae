"""/dev/kvm by its ioctls: `Kvm` makes a `Vm`, which makes `Vcpu`s. Nothing here knows what a PC is.

The order that the kernel's documentation asks for is kept by `Machine`; each method is one ioctl (Linux,
Documentation/virt/kvm/api.rst), and a refusal is a `KvmIoctlError` with the ioctl's name. Structures are declared with
ctypes, and their sizes, which are part of the ioctl numbers, are checked when the module loads.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import signal
import struct
from typing import Any, Final

from vdisk.errors import HypervisorError

DEVICE = "/dev/kvm"

EXIT_IO: Final = 2
EXIT_HLT: Final = 5
EXIT_MMIO: Final = 6
EXIT_SHUTDOWN: Final = 8
EXIT_FAIL_ENTRY: Final = 9
EXIT_INTR: Final = 10
EXIT_INTERNAL_ERROR: Final = 17
EXIT_SYSTEM_EVENT: Final = 24

EXIT_NAMES: Final = {
    0: "UNKNOWN",
    EXIT_IO: "IO",
    EXIT_HLT: "HLT",
    EXIT_MMIO: "MMIO",
    EXIT_SHUTDOWN: "SHUTDOWN",
    EXIT_FAIL_ENTRY: "FAIL_ENTRY",
    EXIT_INTR: "INTR",
    EXIT_INTERNAL_ERROR: "INTERNAL_ERROR",
    EXIT_SYSTEM_EVENT: "SYSTEM_EVENT",
}

CAP_NAMES: Final = {
    0: "IRQCHIP",
    3: "USER_MEMORY",
    7: "EXT_CPUID",
    14: "MP_STATE",
    33: "PIT2",
    37: "SET_IDENTITY_MAP_ADDR",
    74: "SYNC_REGS",
    77: "SIGNAL_MSI",
    81: "READONLY_MEM",
    136: "IMMEDIATE_EXIT",
}
"""What this hypervisor cannot do without: capability number to name."""
CAP_COALESCED_MMIO: Final = 15
CAP_MAX_VCPUS: Final = 66
CAP_COALESCED_PIO: Final = 162
CAP_TSC_DEADLINE_TIMER: Final = 72

SYNC_REGS: Final = 1
SYNC_SREGS: Final = 2

MP_RUNNABLE: Final = 0
MP_UNINITIALIZED: Final = 1
MP_HALTED: Final = 3

MEMORY_READONLY: Final = 2

KICK_SIGNAL: Final = signal.SIGRTMIN + 3 if hasattr(signal, "SIGRTMIN") else 0
"""Blocked in vCPU threads except inside KVM_RUN, which it therefore ends. No handler runs, ever."""


class KvmMissing(HypervisorError):
    """/dev/kvm is not there, may not be opened, or is of another API version."""


class KvmIoctlError(HypervisorError):
    """The kernel refused an ioctl: `ioctl` is its name, `errno` the reason."""

    def __init__(self, ioctl: str, number: int) -> None:
        self.ioctl = ioctl
        self.errno = number
        super().__init__(f"KVM: {ioctl}: {os.strerror(number)}")


class Segment(ctypes.Structure):
    """A segment register with its hidden part."""

    _fields_ = (
        ("base", ctypes.c_uint64),
        ("limit", ctypes.c_uint32),
        ("selector", ctypes.c_uint16),
        ("type", ctypes.c_uint8),
        ("present", ctypes.c_uint8),
        ("dpl", ctypes.c_uint8),
        ("db", ctypes.c_uint8),
        ("s", ctypes.c_uint8),
        ("l", ctypes.c_uint8),
        ("g", ctypes.c_uint8),
        ("avl", ctypes.c_uint8),
        ("unusable", ctypes.c_uint8),
        ("padding", ctypes.c_uint8),
    )

    def load_real(self, selector: int) -> None:
        """Make it what a real-mode load of `selector` makes it."""
        self.selector = selector
        self.base = selector << 4
        self.limit = 0xFFFF

    def load_flat(self, selector: int, *, is_code: bool) -> None:
        """Make it a 32-bit segment of the whole 4 GiB, for the kernel's privilege."""
        self.base, self.limit, self.selector = 0, 0xFFFFFFFF, selector
        self.type = 11 if is_code else 3  # execute and read, or read and write; accessed
        self.present, self.dpl, self.db, self.s, self.l, self.g, self.unusable = 1, 0, 1, 1, 0, 1, 0


class DescriptorTable(ctypes.Structure):
    """GDTR or IDTR."""

    _fields_ = (("base", ctypes.c_uint64), ("limit", ctypes.c_uint16), ("padding", ctypes.c_uint16 * 3))


class Regs(ctypes.Structure):
    """General registers."""

    _fields_ = tuple(
        (name, ctypes.c_uint64)
        for name in [
            "rax",
            "rbx",
            "rcx",
            "rdx",
            "rsi",
            "rdi",
            "rsp",
            "rbp",
            "r8",
            "r9",
            "r10",
            "r11",
            "r12",
            "r13",
            "r14",
            "r15",
            "rip",
            "rflags",
        ]
    )


class Sregs(ctypes.Structure):
    """Segment, control and system registers."""

    _fields_ = (
        *((name, Segment) for name in ["cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt"]),
        ("gdt", DescriptorTable),
        ("idt", DescriptorTable),
        *((name, ctypes.c_uint64) for name in ["cr0", "cr2", "cr3", "cr4", "cr8", "efer", "apic_base"]),
        ("interrupt_bitmap", ctypes.c_uint64 * 4),
    )


class MemoryRegion(ctypes.Structure):
    """KVM_SET_USER_MEMORY_REGION's argument."""

    _fields_ = (
        ("slot", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("guest_phys_addr", ctypes.c_uint64),
        ("memory_size", ctypes.c_uint64),
        ("userspace_addr", ctypes.c_uint64),
    )


class CpuidEntry(ctypes.Structure):
    """One leaf of CPUID."""

    _fields_ = (
        *((name, ctypes.c_uint32) for name in ["function", "index", "flags", "eax", "ebx", "ecx", "edx"]),
        ("padding", ctypes.c_uint32 * 3),
    )


class PicState(ctypes.Structure):
    """One 8259 inside the kernel."""

    _fields_ = tuple(
        (name, ctypes.c_uint8)
        for name in [
            "last_irr",
            "irr",
            "imr",
            "isr",
            "priority_add",
            "irq_base",
            "read_reg_select",
            "poll",
            "special_mask",
            "init_state",
            "auto_eoi",
            "rotate_on_auto_eoi",
            "special_fully_nested_mode",
            "init4",
            "elcr",
            "elcr_mask",
        ]
    )


class PicChip(ctypes.Structure):
    """KVM_GET_IRQCHIP's argument for one of the two 8259s."""

    _fields_ = (
        ("chip_id", ctypes.c_uint32),
        ("pad", ctypes.c_uint32),
        ("pic", PicState),
        ("rest", ctypes.c_uint8 * (512 - 16)),
    )


for _structure, _size in (
    (Segment, 24),
    (DescriptorTable, 16),
    (Regs, 144),
    (Sregs, 312),
    (MemoryRegion, 32),
    (CpuidEntry, 40),
    (PicChip, 520),
):
    if ctypes.sizeof(_structure) != _size:  # the ABI, not a programming detail: checked under -O too
        raise HypervisorError(
            f"KVM: {_structure.__name__} is {ctypes.sizeof(_structure)} bytes, the kernel's is {_size}"
        )

_CREATE_VM = 0xAE01
_CHECK_EXTENSION = 0xAE03
_GET_VCPU_MMAP_SIZE = 0xAE04
_GET_SUPPORTED_CPUID = 0xC008AE05
_CREATE_VCPU = 0xAE41
_SET_USER_MEMORY_REGION = 0x4020AE46
_SET_TSS_ADDR = 0xAE47
_REGISTER_COALESCED_MMIO = 0x4010AE67
_SET_IDENTITY_MAP_ADDR = 0x4008AE48
_CREATE_IRQCHIP = 0xAE60
_IRQ_LINE = 0x4008AE61
_GET_IRQCHIP = 0xC208AE62
_SET_IRQCHIP = 0x8208AE63
_CREATE_PIT2 = 0x4040AE77
_RUN = 0xAE80
_GET_REGS = 0x8090AE81
_SET_REGS = 0x4090AE82
_GET_SREGS = 0x8138AE83
_SET_SREGS = 0x4138AE84
_SET_MSRS = 0x4008AE89
_SET_SIGNAL_MASK = 0x4004AE8B
_GET_LAPIC = 0x8400AE8E
_SET_LAPIC = 0x4400AE8F
_SET_CPUID2 = 0x4008AE90
_GET_MP_STATE = 0x8004AE98
_NMI = 0xAE9A
_SIGNAL_MSI = 0x4020AEA5

_API_VERSION = 12
_PIT_SPEAKER_DUMMY = 1
_CPUID_ENTRIES_MOST = 4096


def _ioctl(file: int, name: str, request: int, argument: Any = 0) -> int:
    # fcntl takes the request as unsigned and an integer argument as a signed int.
    if isinstance(argument, int) and argument >= 1 << 31:
        argument -= 1 << 32
    try:
        result = fcntl.ioctl(file, request, argument)
    except OSError as error:
        raise KvmIoctlError(name, error.errno or 0) from error
    return result if isinstance(result, int) else 0


class Kvm:
    """The opened /dev/kvm. Raises `KvmMissing` where there is none that serves."""

    def __init__(self, path: str = DEVICE) -> None:
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            reason = {
                errno.ENOENT: "there is none: the processor's virtualization is off, or this is a guest without it",
                errno.EACCES: "no permission: join the group that owns it (kvm)",
            }.get(error.errno or 0, error.strerror)
            raise KvmMissing(f"{path}: {reason}") from error
        try:
            version = _ioctl(self._file, "KVM_GET_API_VERSION", 0xAE00)
            if version != _API_VERSION:
                raise KvmMissing(f"{path}: expected API version {_API_VERSION}, found {version}")
            missing = [name for number, name in CAP_NAMES.items() if not self.capability(number)]
            if missing:
                raise KvmMissing(f"{path}: this kernel's KVM lacks {', '.join(missing)}")
        except KvmIoctlError as error:
            os.close(self._file)
            raise KvmMissing(f"{path}: not a KVM device: {error}") from error
        except KvmMissing:
            os.close(self._file)
            raise

    def capability(self, number: int) -> int:
        """KVM_CHECK_EXTENSION: 0 if there is no such thing, else 1 or a count."""
        return _ioctl(self._file, "KVM_CHECK_EXTENSION", _CHECK_EXTENSION, number)

    def supported_cpuid(self) -> list[CpuidEntry]:
        """The CPUID leaves that this kernel can give to a guest."""
        count = 128
        while True:
            buffer = bytearray(8 + count * 40)
            struct.pack_into("<II", buffer, 0, count, 0)
            try:
                _ioctl(self._file, "KVM_GET_SUPPORTED_CPUID", _GET_SUPPORTED_CPUID, buffer)
            except KvmIoctlError as error:
                if error.errno != errno.E2BIG or count >= _CPUID_ENTRIES_MOST:
                    raise
                count *= 2
                continue
            found = struct.unpack_from("<I", buffer)[0]
            return [CpuidEntry.from_buffer_copy(buffer, 8 + 40 * i) for i in range(found)]

    def create_vm(self) -> Vm:
        """A virtual machine with nothing in it."""
        run_bytes = _ioctl(self._file, "KVM_GET_VCPU_MMAP_SIZE", _GET_VCPU_MMAP_SIZE)
        ring_page = self.capability(CAP_COALESCED_MMIO) if self.capability(CAP_COALESCED_PIO) else 0
        return Vm(_ioctl(self._file, "KVM_CREATE_VM", _CREATE_VM), run_bytes, ring_page)

    def close(self) -> None:
        """Close the device; machines made from it live on."""
        os.close(self._file)


class Vm:
    """A virtual machine: its memory slots, interrupt controllers and timer."""

    def __init__(self, file: int, run_bytes: int, ring_page: int = 0) -> None:
        self._file = file
        self._run_bytes = run_bytes
        self._ring_page = ring_page
        self._lines: dict[tuple[int, bool], bytes] = {}
        self._slots = 0

    def set_tss_address(self, address: int) -> None:
        """Three pages that Intel's real-mode support needs, in no other use."""
        _ioctl(self._file, "KVM_SET_TSS_ADDR", _SET_TSS_ADDR, address)

    def set_identity_map_address(self, address: int) -> None:
        """One page for the same purpose."""
        _ioctl(self._file, "KVM_SET_IDENTITY_MAP_ADDR", _SET_IDENTITY_MAP_ADDR, struct.pack("<Q", address))

    def create_irqchip(self) -> None:
        """Two 8259s and an IOAPIC in the kernel, and a local APIC for each vCPU made afterwards."""
        _ioctl(self._file, "KVM_CREATE_IRQCHIP", _CREATE_IRQCHIP)

    def create_pit(self) -> None:
        """An 8254 in the kernel, which also answers port 61h."""
        _ioctl(self._file, "KVM_CREATE_PIT2", _CREATE_PIT2, struct.pack("<I60x", _PIT_SPEAKER_DUMMY))

    def add_memory(self, guest_address: int, host_address: int, length: int, *, readonly: bool = False) -> int:
        """Show `length` bytes of this process's memory at `guest_address`; answers the slot's number.

        A guest's write to a read-only slot is an MMIO exit.
        """
        slot = self._slots
        self._slots += 1
        self.set_memory(slot, guest_address, host_address, length, readonly=readonly)
        return slot

    def set_memory(
        self, slot: int, guest_address: int, host_address: int, length: int, *, readonly: bool = False
    ) -> None:
        """Set slot `slot` anew; a `length` of 0 removes it."""
        region = MemoryRegion(slot, MEMORY_READONLY if readonly else 0, guest_address, length, host_address)
        _ioctl(self._file, "KVM_SET_USER_MEMORY_REGION", _SET_USER_MEMORY_REGION, bytes(region))

    def irq_line(self, number: int, level: bool) -> None:
        """Raise or lower input `number` of the 8259s and the IOAPIC."""
        argument = self._lines.get((number, level))
        if argument is None:
            argument = self._lines[(number, level)] = struct.pack("<II", number, level)
        _ioctl(self._file, "KVM_IRQ_LINE", _IRQ_LINE, argument)

    def signal_msi(self, address: int, data: int) -> None:
        """Deliver a message-signalled interrupt."""
        argument = struct.pack("<IIII16x", address & 0xFFFFFFFF, address >> 32, data, 0)
        _ioctl(self._file, "KVM_SIGNAL_MSI", _SIGNAL_MSI, argument)

    def coalesce_ports(self, port: int, count: int = 1) -> bool:
        """Let writes to `count` ports gather in a ring instead of ending the run; False where the kernel has no ring.

        `Vcpu.drain` takes them, and is to be called after each exit before it is handled: so their order stays.
        """
        if not self._ring_page:
            return False
        zone = struct.pack("<QII", port, count, 1)
        _ioctl(self._file, "KVM_REGISTER_COALESCED_MMIO", _REGISTER_COALESCED_MMIO, zone)
        return True

    def get_pic(self, chip: int) -> PicChip:
        """The state of 8259 number `chip`: 0 the first, 1 the second."""
        state = PicChip(chip_id=chip)
        _ioctl(self._file, "KVM_GET_IRQCHIP", _GET_IRQCHIP, state)
        return state

    def set_pic(self, state: PicChip) -> None:
        """Put back what `get_pic` gave, changed."""
        _ioctl(self._file, "KVM_SET_IRQCHIP", _SET_IRQCHIP, bytes(state))

    def create_vcpu(self, number: int) -> Vcpu:
        """A processor, whose number is its APIC id."""
        file = _ioctl(self._file, "KVM_CREATE_VCPU", _CREATE_VCPU, number)
        return Vcpu(file, number, self._run_bytes, self._ring_page)

    def close(self) -> None:
        """Close the machine; it ends when its vCPUs are closed too."""
        os.close(self._file)


class Vcpu:
    """A processor and the page it shares with the kernel.

    `regs` and `sregs` lie in that page (KVM_CAP_SYNC_REGS): after an exit they hold what `sync` asked for, and after
    `set_dirty` the next run loads them. Reading them costs no system call.
    """

    _RUN_IMMEDIATE_EXIT = 1
    _RUN_VALID = 288
    _RUN_DIRTY = 296
    _RUN_REGS = 304

    _RING_HEAD_BYTES = 8
    _RING_ENTRY_BYTES = 24

    def __init__(self, file: int, number: int, run_bytes: int, ring_page: int = 0) -> None:
        self._file = file
        self.number = number
        self._mapping = mmap.mmap(file, run_bytes, mmap.MAP_SHARED)
        self.run_page = memoryview(self._mapping)
        """kvm_run and the string I/O data behind it."""
        self.words = self.run_page.cast("I")
        """The same as 32-bit words: word 2 is the exit's reason."""
        self.ring = self.run_page[ring_page * 4096 : (ring_page + 1) * 4096].cast("I") if ring_page else None
        """The ring of gathered writes, which all processors share: words 0 and 1 are its first and last entry."""
        self.regs = Regs.from_buffer(self._mapping, self._RUN_REGS)
        self.sregs = Sregs.from_buffer(self._mapping, self._RUN_REGS + ctypes.sizeof(Regs))

    def run(self) -> bool:
        """Run until an exit (True; the run page says which) or until a kick or `immediate_exit` (False)."""
        try:
            fcntl.ioctl(self._file, _RUN, 0)
        except InterruptedError:
            return False
        except OSError as error:
            if error.errno == errno.EAGAIN:  # an uninitialized processor was woken by nothing in particular
                return False
            raise KvmIoctlError("KVM_RUN", error.errno or 0) from error
        return True

    def drain(self) -> list[tuple[int, int, int]]:
        """The gathered writes, in order: port, size, value. Under the machine's lock: the ring is everybody's."""
        ring = self.ring
        if ring is None:
            return []
        entries = (4096 - self._RING_HEAD_BYTES) // self._RING_ENTRY_BYTES
        first, last = ring[0], ring[1]
        writes = []
        while first != last:
            at = 2 + first * 6
            size = ring[at + 2]
            writes.append((ring[at], size, ring[at + 4] & (1 << 8 * size) - 1))
            first = (first + 1) % entries
        ring[0] = first
        return writes

    def finish_io(self) -> None:
        """Let the kernel finish the I/O whose exit was just handled, without running the guest."""
        self.run_page[self._RUN_IMMEDIATE_EXIT] = 1
        try:
            self.run()
        finally:
            self.run_page[self._RUN_IMMEDIATE_EXIT] = 0

    def sync(self, what: int) -> None:
        """Which registers to find in the run page after an exit: SYNC_REGS | SYNC_SREGS, or 0."""
        struct.pack_into("<Q", self._mapping, self._RUN_VALID, what)

    def set_dirty(self, what: int) -> None:
        """Which registers of the run page the next run is to load."""
        offset = self._RUN_DIRTY // 4
        self.words[offset] |= what

    def get_regs(self) -> Regs:
        """The general registers, by a system call."""
        regs = Regs()
        _ioctl(self._file, "KVM_GET_REGS", _GET_REGS, regs)
        return regs

    def set_regs(self, regs: Regs) -> None:
        """Load the general registers."""
        _ioctl(self._file, "KVM_SET_REGS", _SET_REGS, bytes(regs))

    def get_sregs(self) -> Sregs:
        """The system registers, by a system call."""
        sregs = Sregs()
        _ioctl(self._file, "KVM_GET_SREGS", _GET_SREGS, sregs)
        return sregs

    def set_sregs(self, sregs: Sregs) -> None:
        """Load the system registers."""
        _ioctl(self._file, "KVM_SET_SREGS", _SET_SREGS, bytes(sregs))

    def set_cpuid(self, entries: list[CpuidEntry]) -> None:
        """What CPUID says on this processor."""
        # The argument is longer than what fcntl copies for an immutable buffer; a bytearray goes by its address.
        argument = bytearray(struct.pack("<II", len(entries), 0) + b"".join(map(bytes, entries)))
        _ioctl(self._file, "KVM_SET_CPUID2", _SET_CPUID2, argument)

    def set_msrs(self, values: dict[int, int]) -> None:
        """Write model-specific registers; those that this kernel does not know are left out."""
        for index, value in values.items():
            argument = bytearray(struct.pack("<IIIIQ", 1, 0, index, 0, value))
            _ioctl(self._file, "KVM_SET_MSRS", _SET_MSRS, argument)

    def get_lapic(self) -> bytearray:
        """The local APIC's page: 1024 bytes of registers."""
        page = bytearray(1024)
        _ioctl(self._file, "KVM_GET_LAPIC", _GET_LAPIC, page)
        return page

    def set_lapic(self, page: bytearray) -> None:
        """Write the local APIC's registers back."""
        _ioctl(self._file, "KVM_SET_LAPIC", _SET_LAPIC, page)

    def get_mp_state(self) -> int:
        """MP_RUNNABLE, MP_UNINITIALIZED, MP_HALTED or another."""
        state = bytearray(4)
        _ioctl(self._file, "KVM_GET_MP_STATE", _GET_MP_STATE, state)
        return int.from_bytes(state, "little")

    def block_kicks(self) -> None:
        """On the thread that will call `run`: let KICK_SIGNAL end a run, and nothing else happen by it.

        The signal stays blocked outside KVM_RUN, so that a kick which comes between two runs ends the next one.
        """
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {KICK_SIGNAL})
        inside = sum(1 << (number - 1) for number in mask if number != KICK_SIGNAL)
        argument = bytearray(struct.pack("<IQ", 8, inside))
        _ioctl(self._file, "KVM_SET_SIGNAL_MASK", _SET_SIGNAL_MASK, argument)

    @staticmethod
    def take_kick() -> None:
        """Forget the pending kicks of this thread."""
        while signal.sigtimedwait({KICK_SIGNAL}, 0) is not None:
            pass

    def close(self) -> None:
        """Give up the processor and the page."""
        del self.regs, self.sregs
        if self.ring is not None:
            self.ring.release()
        self.words.release()
        self.run_page.release()
        try:
            self._mapping.close()
        except BufferError:  # a caller kept a view of the registers; the page goes with it
            pass
        os.close(self._file)
