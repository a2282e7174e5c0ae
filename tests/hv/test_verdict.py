"""The ladder: what a console's text proves, and how a watcher comes to a verdict."""

import pytest

from vdisk.errors import OptionError
from vdisk.hv.board import Stop
from vdisk.hv.boot import Watcher
from vdisk.hv.cpu import Sample
from vdisk.hv.instructions import name_instruction
from vdisk.hv.keys import parse_keys
from vdisk.hv.signs import Stage, find_failure, find_stages, plain_text


@pytest.mark.parametrize(
    ("text", "stage"),
    [
        ("GRUB loading.\nWelcome to GRUB!\n", Stage.LOADER),
        ("ISOLINUX 6.04 20200816 ETCD Copyright (C) 1994-2015", Stage.LOADER),
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
