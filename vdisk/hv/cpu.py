"""A vCPU's run loop: run, see why the guest stopped, let the bus answer, run again.

Each vCPU has a thread. All devices are called under the machine's lock. Another thread that wants the processor to
stand still sets a request and kicks it: the signal ends KVM_RUN, and the loop parks until it may go on.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from vdisk.errors import HypervisorError
from vdisk.hv import kvm, layout
from vdisk.hv.bus import Bus
from vdisk.hv.instructions import name_instruction
from vdisk.hv.memory import GuestMemory, GuestMemoryError

CR0_PROTECTED = 1
CR0_PAGING = 1 << 31
CR4_PAE = 1 << 5
CR4_LA57 = 1 << 12
EFER_LONG_ACTIVE = 1 << 10
RFLAGS_INTERRUPTS = 1 << 9
_KERNEL_HALF = 1 << 63
_CODE_BYTES = 16


@dataclass(frozen=True, slots=True)
class Sample:
    """What a processor was doing at one moment."""

    rip: int
    rsp: int
    rflags: int
    cs_selector: int
    cs_base: int
    cr0: int
    cr3: int
    cr4: int
    efer: int
    bits: int
    """16, 32 or 64: how the code segment's bytes are read."""

    @property
    def mode(self) -> str:
        """real, protected, paged or long."""
        if self.efer & EFER_LONG_ACTIVE:
            return "long"
        if self.cr0 & CR0_PROTECTED:
            return "paged" if self.cr0 & CR0_PAGING else "protected"
        return "real"

    @property
    def is_in_kernel_half(self) -> bool:
        """Whether the code is a 64-bit kernel's: in the upper half of the address space."""
        return self.mode == "long" and bool(self.rip & _KERNEL_HALF)

    @property
    def interrupts_on(self) -> bool:
        """Whether the processor takes interrupts."""
        return bool(self.rflags & RFLAGS_INTERRUPTS)

    def __str__(self) -> str:
        return f"{self.cs_selector:04x}:{self.rip:x} in {self.mode} mode"


def take_sample(regs: kvm.Regs, sregs: kvm.Sregs) -> Sample:
    """The registers that tell a mode and a place."""
    long = sregs.efer & EFER_LONG_ACTIVE and sregs.cs.l
    return Sample(
        regs.rip,
        regs.rsp,
        regs.rflags,
        sregs.cs.selector,
        sregs.cs.base,
        sregs.cr0,
        sregs.cr3,
        sregs.cr4,
        sregs.efer,
        64 if long else 32 if sregs.cs.db else 16,
    )


def translate(memory: GuestMemory, sample: Sample, linear: int) -> int | None:
    """The guest physical address of a linear one, by the guest's own page tables; None where nothing is mapped."""
    if not sample.cr0 & CR0_PAGING:
        return linear
    try:
        if not sample.cr4 & CR4_PAE:
            entry = memory.read_u32((sample.cr3 & 0xFFFFF000) + (linear >> 22 & 0x3FF) * 4)
            if not entry & 1:
                return None
            if entry & 0x80:
                return entry & 0xFFC00000 | linear & 0x3FFFFF
            entry = memory.read_u32((entry & 0xFFFFF000) + (linear >> 12 & 0x3FF) * 4)
            return entry & 0xFFFFF000 | linear & 0xFFF if entry & 1 else None
        is_long = bool(sample.efer & EFER_LONG_ACTIVE)
        shift = (57 if sample.cr4 & CR4_LA57 else 48) if is_long else 39
        table = sample.cr3 & (0xFFFFFFFFFF000 if is_long else 0xFFFFFFE0)
        while shift > 12:
            shift -= 9
            index = linear >> shift & (0x1FF if is_long or shift < 30 else 3)
            entry = memory.read_u64(table + index * 8)
            if not entry & 1:
                return None
            if entry & 0x80 and (shift == 21 or (shift == 30 and is_long)):
                mask = (1 << shift) - 1
                return entry & 0xFFFFFFFFFF000 & ~mask | linear & mask
            table = entry & 0xFFFFFFFFFF000
        return table | linear & 0xFFF
    except GuestMemoryError:
        return None


def read_code(memory: GuestMemory, sample: Sample, length: int = _CODE_BYTES) -> bytes:
    """Up to `length` bytes from RIP on; fewer where the guest has mapped no more."""
    code = bytearray()
    linear = sample.rip if sample.bits == 64 else (sample.cs_base + sample.rip) & 0xFFFFFFFF
    for at in range(linear, linear + length):
        physical = translate(memory, sample, at)
        try:
            code += memory.view(physical, 1) if physical is not None else b""
        except GuestMemoryError:
            break
        if physical is None:
            break
    return bytes(code)


@dataclass(frozen=True, slots=True)
class EmulationFailure:
    """KVM_EXIT_INTERNAL_ERROR: the host's KVM met an instruction that it does not emulate. Not the guest's fault."""

    suberror: int
    sample: Sample
    code: bytes
    registers: dict[str, int]

    @property
    def instruction(self) -> str:
        """Its name, as far as it has one here."""
        return name_instruction(self.code, self.sample.bits)

    def __str__(self) -> str:
        return f"the host's KVM cannot emulate {self.instruction} at {self.sample}"

    def state(self) -> str:
        """The registers in one line."""
        values = " ".join(f"{name}={value:x}" for name, value in self.registers.items())
        return f"KVM's suberror {self.suberror} at {values}"


@dataclass(slots=True)
class ExitCounts:
    """How often the guest stopped, and where: I/O by port, MMIO by page, the rest by KVM's reason."""

    ports: dict[int, int] = field(default_factory=dict)
    pages: dict[int, int] = field(default_factory=dict)
    others: dict[str, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self.ports.values()) + sum(self.pages.values()) + sum(self.others.values())


class Cpu:
    """One processor of the machine.

    `stop(reason, detail)` is called on this processor's thread when it cannot or shall not go on: "triple fault",
    "emulation failure", "reset", "error". `trap(cpu)` serves the firmware's OUT, if the machine has such a firmware.
    """

    def __init__(
        self,
        vcpu: kvm.Vcpu,
        bus: Bus,
        memory: GuestMemory,
        lock: threading.RLock,
        stop: Callable[[str, object], None],
    ) -> None:
        self.vcpu = vcpu
        self.bus = bus
        self.memory = memory
        self.counts = ExitCounts()
        self.trap: Callable[[Cpu], None] | None = None
        self.sample: Sample | None = None
        """The latest one, taken at a kick."""
        self._lock = lock
        self._stop = stop
        self._wanted = threading.Event()
        self._parked = threading.Event()
        self._resume = threading.Event()
        self._ending = False
        self._thread: threading.Thread | None = None
        self._kick_lock = threading.Lock()
        self._is_kickable = False

    # Called by other threads -----------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to run the guest, on a thread of its own."""
        self._thread = threading.Thread(target=self._main, name=f"vcpu {self.vcpu.number}", daemon=True)
        self._thread.start()

    def kick(self) -> None:
        """Make the guest stop for a moment; the loop takes a sample."""
        with self._kick_lock:
            if self._is_kickable and self._thread is not None and self._thread.ident is not None:
                signal.pthread_kill(self._thread.ident, kvm.KICK_SIGNAL)

    def request_pause(self) -> None:
        """Ask the processor to stand still; `wait_paused` waits until it does."""
        self._resume.clear()
        self._wanted.set()
        self.kick()

    def wait_paused(self) -> None:
        """Wait until the processor stands still."""
        thread = self._thread
        while thread is not None and thread.is_alive() and not self._parked.wait(0.05):
            self.kick()

    def resume(self) -> None:
        """Let it go on."""
        self._wanted.clear()
        self._parked.clear()
        self._resume.set()

    def end(self) -> None:
        """End the thread. Not to be called on it."""
        self._ending = True
        self.resume()
        thread = self._thread
        while thread is not None and thread.is_alive():
            self.kick()
            thread.join(0.05)
        self._thread = None

    def finish_soon(self) -> None:
        """Make the loop end after what it is doing, on whichever thread this is called."""
        self._ending = True
        self._resume.set()
        self.kick()

    # On the processor's thread ---------------------------------------------------------------------------------

    def _main(self) -> None:
        try:
            self.vcpu.block_kicks()
            self._is_kickable = True
            self.vcpu.sync(kvm.SYNC_REGS | kvm.SYNC_SREGS)
            self._loop()
        except HypervisorError as error:
            self._stop("error", error)
        except Exception as error:  # a fault of ours in a device: it belongs to whoever runs the machine
            self._stop("error", error)
        finally:
            with self._kick_lock:
                self._is_kickable = False

    def _loop(self) -> None:
        vcpu, lock, words = self.vcpu, self._lock, self.vcpu.words
        run, counts = vcpu.run, self.counts
        ports, pages = counts.ports, counts.pages
        ring = vcpu.ring
        while not self._ending:
            is_exit = run()
            if ring is not None and ring[0] != ring[1]:
                self._drain()
            if not is_exit:
                self._on_kick()
                continue
            reason = words[2]
            if reason == kvm.EXIT_IO:
                port = words[8] >> 16
                ports[port] = ports.get(port, 0) + 1
                with lock:
                    self._on_io(words[8] & 0xFF, words[8] >> 8 & 0xFF, port, words[9], words[10])
            elif reason == kvm.EXIT_MMIO:
                address = words[8] | words[9] << 32
                page = address >> 12
                pages[page] = pages.get(page, 0) + 1
                with lock:
                    self._on_mmio(address, words[12] & 0xFF, bool(words[13] & 0xFF))
            else:
                self._on_other(reason)
            if self._wanted.is_set():
                vcpu.finish_io()
                self._on_kick()

    def _drain(self) -> None:
        """Do the writes that the kernel has gathered, before whatever came after them."""
        with self._lock:
            for port, size, value in self.vcpu.drain():
                self.bus.port_write(port, size, value)

    def _on_io(self, is_out: int, size: int, port: int, count: int, data_offset: int) -> None:
        page = self.vcpu.run_page
        end = data_offset + size * count
        if is_out:
            if port == layout.FIRMWARE_TRAP and self.trap is not None:
                self.trap(self)
            elif count == 1:
                self.bus.port_write(port, size, int.from_bytes(page[data_offset:end], "little"))
            else:
                self.bus.port_write_block(port, size, bytes(page[data_offset:end]))
        elif count == 1:
            value = self.bus.port_read(port, size) & ((1 << 8 * size) - 1)
            page[data_offset:end] = value.to_bytes(size, "little")
        else:
            page[data_offset:end] = self.bus.port_read_block(port, size, count)

    def _on_mmio(self, address: int, size: int, is_write: bool) -> None:
        page = self.vcpu.run_page
        if is_write:
            self.bus.memory_write(address, size, int.from_bytes(page[40 : 40 + size], "little"))
        else:
            value = self.bus.memory_read(address, size) & ((1 << 8 * size) - 1)
            page[40 : 40 + size] = value.to_bytes(size, "little")

    def _on_kick(self) -> None:
        self.vcpu.take_kick()
        self.sample = take_sample(self.vcpu.regs, self.vcpu.sregs)
        while self._wanted.is_set() and not self._ending:
            self._parked.set()
            self._resume.wait()

    def _on_other(self, reason: int) -> None:
        name = kvm.EXIT_NAMES.get(reason, str(reason))
        self.counts.others[name] = self.counts.others.get(name, 0) + 1
        if reason == kvm.EXIT_INTR:
            self._on_kick()
        elif reason == kvm.EXIT_SHUTDOWN:
            # Under SVM the registers are those of a reset by now: the sample of the last kick says more.
            self._finish("triple fault", self.sample)
        elif reason == kvm.EXIT_INTERNAL_ERROR:
            self._finish("emulation failure", self._failure())
        elif reason == kvm.EXIT_FAIL_ENTRY:
            code = self.vcpu.words[8] | self.vcpu.words[9] << 32
            self._finish("error", HypervisorError(f"KVM: the processor refused the guest's state, reason {code:#x}"))
        elif reason == kvm.EXIT_SYSTEM_EVENT:
            self._finish("reset", "a system event")
        else:
            self._finish("error", HypervisorError(f"KVM: unexpected exit {name}"))

    def _failure(self) -> EmulationFailure:
        regs, sregs = self.vcpu.get_regs(), self.vcpu.get_sregs()
        sample = take_sample(regs, sregs)
        registers = {name: getattr(regs, name) for name, *_ in kvm.Regs._fields_}
        return EmulationFailure(self.vcpu.words[8], sample, read_code(self.memory, sample), registers)

    def _finish(self, reason: str, detail: object) -> None:
        self._ending = True
        self._stop(reason, detail)

    # State -----------------------------------------------------------------------------------------------------

    def state(self) -> tuple[kvm.Regs, kvm.Sregs]:
        """Copies of the registers; only while the processor stands still or before it starts."""
        return self.vcpu.get_regs(), self.vcpu.get_sregs()
