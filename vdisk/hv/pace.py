"""How fast guests run here: silence tells of a guest that is stuck only where one that works would have spoken.

A KVM which itself runs without hardware support goes through a guest's code in an emulator, at some five million
instructions a second. GRUB then checks and unpacks itself for as long as a whole system takes to boot elsewhere.
"""

from __future__ import annotations

import mmap
import time
from typing import Final

from vdisk.errors import HypervisorError
from vdisk.hv import kvm, layout
from vdisk.hv.memory import host_address

GOOD_PACE: Final = 100e6
"""Instructions a second from which on a minute of silence is one. A processor of today runs twenty times as many."""

_CODE = b"\x49\x75\xfd\xf4"  # again: dec ecx; jnz again; hlt
_CODE_AT, _MEMORY_BYTES = 0, 4096
_FIRST_ROUNDS, _MOST_ROUNDS = 20_000, 1 << 30
_LONG_ENOUGH_SECONDS = 0.05
_SELECTOR = 8
_PROTECTED = 1


def slowness() -> float:
    """How many times slower than `GOOD_PACE` a guest runs on this host now; 1 where it is not."""
    return max(1.0, GOOD_PACE / instructions_per_second())


def instructions_per_second() -> float:
    """Measured by a machine of a few lines that counts down, in protected mode, for a twentieth of a second or more."""
    device = kvm.Kvm()
    try:
        vm = device.create_vm()
    finally:
        device.close()
    memory = mmap.mmap(-1, _MEMORY_BYTES)
    memory[_CODE_AT : _CODE_AT + len(_CODE)] = _CODE
    try:
        vm.set_identity_map_address(layout.KVM_IDENTITY_MAP)
        vm.set_tss_address(layout.KVM_TSS)
        vm.add_memory(0, host_address(memory), _MEMORY_BYTES)
        vcpu = vm.create_vcpu(0)
        try:
            return _count_down(vcpu)
        finally:
            vcpu.close()
    finally:
        vm.close()
        memory.close()


def _count_down(vcpu: kvm.Vcpu) -> float:
    sregs = vcpu.get_sregs()
    sregs.cs.load_flat(_SELECTOR, is_code=True)
    for segment in (sregs.ds, sregs.es, sregs.ss):
        segment.load_flat(_SELECTOR, is_code=False)
    sregs.cr0 |= _PROTECTED
    vcpu.set_sregs(sregs)
    rounds = _FIRST_ROUNDS
    while True:
        regs = vcpu.get_regs()
        regs.rip, regs.rcx, regs.rflags = _CODE_AT, rounds, 2
        vcpu.set_regs(regs)
        start = time.perf_counter()
        while not vcpu.run():
            pass
        seconds = time.perf_counter() - start
        if vcpu.words[2] != kvm.EXIT_HLT:
            reason = vcpu.words[2]
            raise HypervisorError(f"KVM: unexpected exit {kvm.EXIT_NAMES.get(reason, reason)}")
        if seconds >= _LONG_ENOUGH_SECONDS or rounds >= _MOST_ROUNDS:
            return 2 * rounds / seconds
        rounds *= 4
