"""The ladder: what a console's text proves, and how a watcher comes to a verdict."""

import itertools

import pytest

from vdisk.errors import OptionError
from vdisk.hv.board import Stop
from vdisk.hv.cpu import EmulationFailure, Sample
from vdisk.hv.instructions import name_instruction
from vdisk.hv.keys import parse_keys
from vdisk.hv.signs import Stage, find_failure, find_stages, plain_text
from vdisk.hv.watcher import Watcher


@pytest.mark.parametrize(
    ("text", "stage"),
    [
        ("GRUB loading.\nWelcome to GRUB!\n", Stage.LOADER),
        ("ISOLINUX 6.04 20200816 ETCD Copyright (C) 1994-2015", Stage.LOADER),
        ('BdsDxe: starting Boot0001 "UEFI QEMU HARDDISK QM00003 " from PciRoot(0x0)', Stage.LOADER),
        ("[    0.000000] Linux version 6.1.0-28-amd64 (debian-kernel@lists.debian.org)", Stage.KERNEL),
        ("[    2.712345] EXT4-fs (vda1): mounted filesystem with ordered data mode.", Stage.ROOT),
        ("Welcome to Debian GNU/Linux 12 (bookworm)!\n", Stage.USER_SPACE),
        ("[  OK  ] Started cron.service - Regular background program processing daemon.", Stage.USER_SPACE),
        ("Debian GNU/Linux 12 debian ttyS0\n\ndebian login: ", Stage.LOGIN),
        ("C:\\>", None),
    ],
)
def test_a_text_proves_a_stage(text, stage):
    assert max(find_stages(text), default=None) == stage


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("[    1.5] Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)", "kernel panic"),
        ("ALERT!  UUID=0123 does not exist.  Dropping to a shell!\n(initramfs) ", "no root disk"),
        ("(initramfs) ", "rescue shell"),
        ("error: no such device: 1234.\ngrub rescue> ", "boot loader error"),
        ("BOOTMGR is missing\nPress Ctrl+Alt+Del to restart", "boot loader error"),
        ("Missing operating system", "nothing to boot"),
        ("debian login: ", None),
    ],
)
def test_a_text_tells_of_a_failure(text, kind):
    found = find_failure(text)
    assert (found[0] if found else None) == kind


def test_control_sequences_are_no_text():
    assert plain_text("\x1b[0;32m  OK  \x1b[0m\r\n\x1b[2Jnext") == "  OK  \nnext"


class FakeGuest:
    """A guest by hand."""

    def __init__(self):
        self.serial = self.screen = ""
        self.busy = 0
        self.found = {Stage.FIRMWARE: "firmware"}
        self.at = None
        self.idle = False
        self.times_slower = 1.0
        self.read = ""

    def serial_tail(self, length):
        return self.serial[-length:]

    def screen_text(self):
        return self.screen

    def activity(self):
        return self.busy

    def evidence(self):
        return self.found

    def sample(self):
        return self.at

    def is_idle(self):
        return self.idle

    def slowness(self):
        return self.times_slower

    def last_reads(self):
        return self.read


class Clock:
    def __init__(self):
        self.time = 1000.0

    def __call__(self):
        return self.time


def run(watcher, clock, seconds, change=lambda: None):
    """Look fifty times a second for so long; True once the watcher has come to an end."""
    end = clock.time + seconds
    while clock.time < end:
        change()
        if watcher.look():
            return True
        clock.time += 0.02
    return False


@pytest.fixture
def guest():
    return FakeGuest()


@pytest.fixture
def clock():
    return Clock()


def place(rip, *, cr0=1, efer=0, rflags=0x202):
    return Sample(rip, 0, rflags, 8, 0, cr0, 0, 0, efer, 64 if efer else 32)


def test_a_login_prompt_is_the_goal_when_there_is_no_other(guest, clock):
    watcher = Watcher(guest, None, clock)
    assert not run(watcher, clock, 1)
    guest.screen = "debian login: "
    assert run(watcher, clock, 1)
    assert (watcher.ok, watcher.kind, watcher.stage) == (True, "login prompt", Stage.LOGIN)


def test_an_expected_text_wins_over_everything(guest, clock):
    watcher = Watcher(guest, "GNU GRUB", clock)
    guest.serial = "debian login: "
    assert not run(watcher, clock, 1)
    guest.screen = "   GNU GRUB  version 2.06"
    assert run(watcher, clock, 1)
    assert watcher.kind == "expected text"


def test_an_error_of_the_loader_counts_only_if_nothing_follows(guest, clock):
    watcher = Watcher(guest, None, clock)
    guest.serial = "error: file `/boot/grub/x.mo' not found.\n"
    assert not run(watcher, clock, 2)
    guest.serial += "Loading Linux 6.1.0 ...\n[    0.000000] Linux version 6.1.0\n" + "x" * 5000
    assert not run(watcher, clock, 10)
    guest.serial += "\ngrub rescue> "
    assert run(watcher, clock, 5)
    assert watcher.kind == "boot loader error"


def test_a_processor_at_one_place_is_halted_only_if_it_is_idle(guest, clock):
    watcher = Watcher(guest, None, clock)
    guest.at = place(0x9000)
    assert not run(watcher, clock, 10)
    guest.idle = True
    assert run(watcher, clock, 2)
    assert watcher.kind == "halted"


def test_a_processor_that_goes_round_is_a_loop(guest, clock):
    watcher = Watcher(guest, None, clock)
    state = {"rip": 0x9000}

    def change():
        state["rip"] = 0x9000 + (state["rip"] + 8) % 256
        guest.at = place(state["rip"])

    assert run(watcher, clock, 70, change)
    assert watcher.kind == "stuck in a loop"
    assert watcher.is_conclusive


def go_round(guest, *, interrupt_each=0):
    """A change that moves the processor around in 256 bytes, and now and then to an interrupt's code far away."""
    turns = itertools.count()

    def change():
        turn = next(turns)
        is_elsewhere = interrupt_each and turn % interrupt_each == 0
        guest.at = place(0xF0000 if is_elsewhere else 0x9000 + turn * 8 % 256)

    return change


def test_a_loop_with_interrupts_is_one_too(guest, clock):
    watcher = Watcher(guest, None, clock)
    assert run(watcher, clock, 70, go_round(guest, interrupt_each=40))
    assert watcher.kind == "stuck in a loop"


def test_code_that_moved_on_within_the_quiet_minute_is_no_loop(guest, clock):
    watcher = Watcher(guest, None, clock)
    guest.at = place(0x9000)
    assert not run(watcher, clock, 1)
    guest.at = place(0x100000)
    assert not run(watcher, clock, 35, lambda: setattr(guest, "at", place(0x100000 + int(clock.time * 50) % 256)))
    assert not run(watcher, clock, 35, go_round(guest))


def test_a_slow_guest_is_not_a_stuck_one(guest, clock):
    # An emulated KVM takes a minute for what GRUB does in a tenth of a second before it reads on.
    watcher = Watcher(guest, None, clock)
    guest.times_slower = 20.0
    assert not run(watcher, clock, 180, go_round(guest))
    watcher.has_timed_out(180)
    assert (watcher.ok, watcher.kind, watcher.is_conclusive) == (False, "timeout", False)
    assert "20 times too slow" in watcher.reason


def test_a_timeout_on_a_host_that_is_fast_enough_is_the_images(guest, clock):
    watcher = Watcher(guest, "login:", clock)
    run(watcher, clock, 10)
    watcher.has_timed_out(10)
    assert (watcher.kind, watcher.is_conclusive) == ("timeout", True)


def test_the_hosts_pace_is_measured_only_where_silence_is_judged(guest, clock):
    watcher = Watcher(guest, None, clock)
    guest.slowness = lambda: pytest.fail("nobody was silent")
    guest.screen = "debian login: "
    assert run(watcher, clock, 1)


def silent(guest, watcher, clock):
    guest.at = place(0xFFFFFFFF81000000, cr0=0x80000001, efer=0x500)
    assert run(watcher, clock, 100)


def halted(guest, watcher, clock):
    guest.at, guest.idle = place(0x9000), True
    assert run(watcher, clock, 10)


def looping(guest, watcher, clock):
    assert run(watcher, clock, 70, go_round(guest))


def timed_out(guest, watcher, clock):
    run(watcher, clock, 5)
    watcher.has_timed_out(5)


@pytest.mark.parametrize(
    ("come_to", "kind"),
    [(silent, "silence"), (halted, "halted"), (looping, "stuck in a loop"), (timed_out, "timeout")],
)
def test_a_silent_guest_is_told_by_its_last_reads(guest, clock, come_to, kind):
    watcher = Watcher(guest, None, clock)
    guest.read = "the last reads fell in partition 1 (ext4), and ended at byte 5"
    come_to(guest, watcher, clock)
    assert watcher.kind == kind
    assert watcher.reason.endswith("; the last reads fell in partition 1 (ext4), and ended at byte 5")


def test_reads_of_the_disk_are_signs_of_life(guest, clock):
    watcher = Watcher(guest, None, clock)

    def change():
        guest.busy += 1

    assert not run(watcher, clock, 120, change)


def test_a_kernel_may_be_silent_for_longer_and_its_idle_loop_is_no_halt(guest, clock):
    watcher = Watcher(guest, None, clock)
    guest.at = place(0xFFFFFFFF81000000, cr0=0x80000001, efer=0x500)
    guest.idle = True
    assert not run(watcher, clock, 80)
    assert watcher.stage == Stage.KERNEL
    assert run(watcher, clock, 20)
    assert watcher.kind == "silence"


def test_a_halt_with_interrupts_off_is_final(guest, clock):
    watcher = Watcher(guest, None, clock)
    guest.at = place(0xFFFFFFFF81000000, cr0=0x80000001, efer=0x500, rflags=2)
    guest.idle = True
    assert run(watcher, clock, 20)
    assert (watcher.kind, "interrupts off" in watcher.reason) == ("halted", True)


def test_drivers_of_a_firmware_do_not_count(guest, clock):
    watcher = Watcher(guest, None, clock)
    guest.found = {Stage.DRIVER: "ahci"}
    run(watcher, clock, 1)
    assert watcher.stage == Stage.NOTHING
    guest.serial = "[    0.000000] Linux version 6"
    run(watcher, clock, 1)
    assert watcher.stage == Stage.DRIVER


def test_time_that_is_up_is_a_success_in_user_space_only(guest, clock):
    watcher = Watcher(guest, None, clock)
    guest.serial = "Welcome to Debian GNU/Linux 12 (bookworm)!\n"
    run(watcher, clock, 1)
    watcher.has_timed_out(60)
    assert watcher.ok
    other = Watcher(guest, "login:", clock)
    run(other, clock, 1)
    other.has_timed_out(60)
    assert (other.ok, other.kind) == (False, "timeout")


@pytest.mark.parametrize(
    ("reason", "kind"), [("triple fault", "triple fault"), ("reset", "reset loop"), ("power off", "power off")]
)
def test_a_machine_that_stops_says_why(guest, clock, reason, kind):
    watcher = Watcher(guest, None, clock)
    watcher.has_stopped(Stop(reason), 4)
    assert (watcher.ok, watcher.kind) == (False, kind)


@pytest.mark.parametrize(
    ("code", "bits", "name"),
    [
        ("f3480fb8c7", 64, "popcnt"),
        ("480fc70f", 64, "cmpxchg16b"),
        ("0fc70f", 32, "cmpxchg8b"),
        ("0f01d0", 64, "xgetbv"),
        ("cc", 64, "int3"),
        ("0f2800", 64, "an SSE instruction"),
        ("480fae2f", 64, "xrstor"),
        ("c5f877", 64, "an AVX instruction"),
        ("9bdbe3", 64, "fwait"),
        ("27", 16, "daa"),
    ],
)
def test_instructions_have_names(code, bits, name):
    assert name_instruction(bytes.fromhex(code), bits).startswith(name)


def test_an_emulation_failure_tells_the_instruction_and_the_state():
    failure = EmulationFailure(1, place(0x1234, rflags=0x46), bytes.fromhex("f30fb8c7"), {"rax": 0xBEEF, "rip": 0x1234})
    assert str(failure) == "the host's KVM cannot emulate popcnt (f3 0f b8 c7) at 0008:1234 in protected mode"
    assert failure.state() == "KVM's suberror 1 at rax=beef rip=1234"


def test_keys_are_text_escapes_and_names():
    strokes = parse_keys("aB\\n<up><wait 2><ctrl-alt-del>")
    assert [stroke.scan.hex() for stroke in strokes[:4]] == ["1e9e", "2a30b0aa", "1c9c", "e048e0c8"]
    assert strokes[4].wait_seconds == 2
    assert strokes[5].scan.hex() == "1d38e053e0d3b89d"
    assert [stroke.text for stroke in strokes[:4]] == [b"a", b"B", b"\r", b"\x1b[A"]


@pytest.mark.parametrize("text", ["é", "<nokey>", "<hyper-x>", "<wait long>"])
def test_a_key_that_there_is_not_is_refused(text):
    with pytest.raises(OptionError):
        parse_keys(text)
