"""CPUID as the guest sees it: what KVM supports, with this processor's APIC id and every vCPU a package of its own."""

from __future__ import annotations

from vdisk.hv.kvm import CpuidEntry

_HYPERVISOR = 1 << 31
_TSC_DEADLINE = 1 << 24
_HYPERTHREADING = 1 << 28
_TOPOLOGY_LEAVES = (0x0B, 0x1F)


def cpuid_for(supported: list[CpuidEntry], apic_id: int, cpus: int, *, tsc_deadline: bool) -> list[CpuidEntry]:
    """The leaves for one vCPU of `cpus`. Neither the Hyper-V nor the Xen signature is among KVM's, nor added.

    Leaves that describe a topology below the package are rewritten to say one core, one thread.
    """
    leaves = []
    for entry in supported:
        leaf = CpuidEntry.from_buffer_copy(bytes(entry))
        function = leaf.function
        if function == 1:
            leaf.ebx = leaf.ebx & 0x0000FFFF | 1 << 16 | apic_id << 24
            leaf.ecx |= _HYPERVISOR
            if tsc_deadline:
                leaf.ecx |= _TSC_DEADLINE
            leaf.edx &= ~_HYPERTHREADING
        elif function == 4:
            leaf.eax &= 0x00003FFF  # one thread shares each cache, one core in the package
        elif function in _TOPOLOGY_LEAVES:
            leaf.edx = apic_id
            if leaf.index <= 1:
                leaf.eax = 0
                leaf.ebx = 1
                leaf.ecx = leaf.index | (leaf.index + 1) << 8
        elif function == 0x80000008:
            leaf.ecx &= ~0xF0FF
        elif function == 0x8000001E:
            leaf.eax, leaf.ebx, leaf.ecx = apic_id, apic_id, 0
        leaves.append(leaf)
    return leaves
