"""The devices of the old PC: serial port, clock, keyboard controller, VGA, power management, fw_cfg."""

import calendar

import pytest

from tests.hv.devices.device_rig import FakeMemory, Line
from vdisk.hv.devices.acpi_pm import AcpiPm
from vdisk.hv.devices.fw_cfg import FwCfg
from vdisk.hv.devices.i8042 import COMMAND, DATA, I8042, SystemControlA
from vdisk.hv.devices.rtc import Rtc
from vdisk.hv.devices.serial import Serial
from vdisk.hv.devices.vga import Vga


@pytest.fixture
def serial():
    port = Serial(Line(), bytearray().append)
    port.line = port._irq
    port.sent = port._send.__self__
    return port


def test_what_the_guest_sends_comes_out(serial):
    for byte in b"hello":
        assert serial.read(5, 1) & 0x20
        serial.write(0, 1, byte)
    assert bytes(serial.sent) == b"hello"


def test_the_divisor_hides_the_data_register(serial):
    serial.write(3, 1, 0x80)
    serial.write(0, 1, 0x01)
    serial.write(1, 1, 0x02)
    assert (serial.read(0, 1), serial.read(1, 1)) == (1, 2)
    serial.write(3, 1, 0x03)
    assert not serial.sent


def test_an_empty_transmitter_interrupts_once_until_the_next_byte(serial):
    serial.write(4, 1, 0x08)
    serial.write(1, 1, 0x02)
    assert serial.line.level
    assert serial.read(2, 1) & 0xF == 0x02
    assert not serial.line.level
    assert serial.read(2, 1) & 0xF == 0x01
    serial.write(0, 1, 0x41)
    assert serial.line.level


def test_received_bytes_interrupt_until_they_are_read(serial):
    serial.write(4, 1, 0x08)
    serial.write(1, 1, 0x01)
    serial.receive(b"ab")
    assert serial.line.level
    assert serial.read(5, 1) & 1
    assert bytes((serial.read(0, 1), serial.read(0, 1))) == b"ab"
    assert not serial.line.level
    assert serial.is_quiet


def test_without_out2_no_interrupt_leaves_the_port(serial):
    serial.write(1, 1, 0x03)
    assert not serial.line.level


def test_loopback_gives_back_what_is_sent(serial):
    serial.write(4, 1, 0x10)
    serial.write(0, 1, 0x5A)
    assert serial.read(0, 1) == 0x5A
    assert not serial.sent


def clock_at(when):
    time = [calendar.timegm(when)]
    line = Line()
    rtc = Rtc(line, lambda: time[0])
    return rtc, line, time


def cmos(rtc, register):
    rtc.write(0, 1, register)
    return rtc.read(1, 1)


def test_the_clock_gives_the_time_in_bcd():
    rtc, _, _ = clock_at((2031, 12, 25, 23, 59, 58, 0, 0, 0))
    assert [cmos(rtc, at) for at in (0, 2, 4, 7, 8, 9, 0x32)] == [0x58, 0x59, 0x23, 0x25, 0x12, 0x31, 0x20]
    assert rtc.now_bcd() == (0x20, 0x31, 0x12, 0x25, 0x23, 0x59, 0x58)


def test_setting_the_clock_keeps_the_difference():
    rtc, _, time = clock_at((2031, 1, 1, 0, 0, 0, 0, 0, 0))
    rtc.write(0, 1, 0x0B)
    rtc.write(1, 1, 0x82)
    for register, value in ((0, 0x30), (2, 0x15), (4, 0x12), (7, 0x04), (8, 0x07), (9, 0x26), (0x32, 0x20)):
        rtc.write(0, 1, register)
        rtc.write(1, 1, value)
    rtc.write(0, 1, 0x0B)
    rtc.write(1, 1, 0x02)
    time[0] += 5
    assert rtc.now_bcd() == (0x20, 0x26, 0x07, 0x04, 0x12, 0x15, 0x35)


def test_a_second_that_passes_interrupts_until_register_c_is_read():
    rtc, line, time = clock_at((2031, 1, 1, 0, 0, 0, 0, 0, 0))
    rtc.write(0, 1, 0x0A)
    rtc.write(1, 1, 0x20)
    rtc.write(0, 1, 0x0B)
    rtc.write(1, 1, 0x12)
    rtc.tick()
    assert not line.level
    time[0] += 1
    rtc.tick()
    assert line.level
    assert cmos(rtc, 0x0C) & 0x90 == 0x90
    assert not line.level


@pytest.fixture
def keyboard():
    resets = []
    controller = I8042(Line(), lambda: resets.append(1))
    controller.line = controller._irq
    controller.resets = resets
    return controller


def test_each_scan_code_is_an_edge(keyboard):
    keyboard.press(b"\x1e\x9e")
    assert keyboard.line.rises == 1
    assert keyboard.read(COMMAND, 1) & 1
    assert keyboard.read(DATA, 1) == 0x1E
    assert keyboard.line.rises == 2
    assert keyboard.read(DATA, 1) == 0x9E
    assert not keyboard.line.level
    assert keyboard.is_quiet


def test_self_test_and_identity(keyboard):
    keyboard.write(COMMAND, 1, 0xAA)
    assert keyboard.read(DATA, 1) == 0x55
    keyboard.write(DATA, 1, 0xF2)
    assert [keyboard.read(DATA, 1) for _ in range(3)] == [0xFA, 0xAB, 0x41]
    keyboard.write(DATA, 1, 0xED)
    keyboard.write(DATA, 1, 0x02)
    assert [keyboard.read(DATA, 1) for _ in range(2)] == [0xFA, 0xFA]


def test_a_disabled_keyboard_keeps_its_keys(keyboard):
    keyboard.write(COMMAND, 1, 0xAD)
    keyboard.press(b"\x1e")
    assert not keyboard.read(COMMAND, 1) & 1
    keyboard.write(COMMAND, 1, 0xAE)
    assert keyboard.read(DATA, 1) == 0x1E


def test_every_way_to_pulse_the_reset_line(keyboard):
    keyboard.write(COMMAND, 1, 0xFE)
    keyboard.write(COMMAND, 1, 0xD1)
    keyboard.write(DATA, 1, 0x02)
    assert len(keyboard.resets) == 2
    port = SystemControlA(lambda: keyboard.resets.append(1))
    port.write(0, 1, 0x02)
    assert len(keyboard.resets) == 2
    port.write(0, 1, 0x03)
    assert len(keyboard.resets) == 3
    assert port.read(0, 1) & 2


@pytest.fixture
def vga():
    return Vga(FakeMemory(), 0xB8000)


def write_crtc(vga, register, value):
    vga.write(0x24, 1, register)
    vga.write(0x25, 1, value)


def test_the_screen_is_what_memory_holds(vga):
    vga._memory.write(0xB8000, b"H\x07i\x07")
    vga._memory.write(0xB8000 + 160, b"\xb3\x1f!\x1f")
    screen = vga.screen()
    assert (screen.columns, screen.rows) == (80, 25)
    assert screen.text() == "Hi\n│!"


def test_start_and_cursor_follow_the_registers(vga):
    vga._memory.write(0xB8000 + 160, b"X\x07")
    write_crtc(vga, 0x0D, 80)
    write_crtc(vga, 0x0F, 82)
    screen = vga.screen()
    assert screen.text() == "X"
    assert screen.cursor == (0, 2)
    write_crtc(vga, 0x0A, 0x20)
    assert vga.screen().cursor is None


def test_a_graphics_mode_has_no_text(vga):
    vga.write(0x1E, 1, 6)
    vga.write(0x1F, 1, 0x05)
    assert vga.screen() is None


def test_eight_line_characters_make_fifty_rows(vga):
    vga.set_rows(8)
    assert vga.screen().rows == 50


def test_reading_the_status_resets_the_attribute_flip_flop(vga):
    vga.write(0x10, 1, 0x01)
    vga.read(0x2A, 1)
    vga.write(0x10, 1, 0x02)
    vga.write(0x10, 1, 0x3F)
    vga.write(0x10, 1, 0x02)
    assert vga.read(0x11, 1) == 0x3F


def test_sleep_type_5_switches_off_and_the_button_interrupts():
    events, line = [], Line()
    pm = AcpiPm(line, lambda: events.append("off"))
    pm.press_power_button()
    assert not line.level
    pm.write(2, 2, 0x100)
    assert line.level
    pm.write(0, 2, 0x100)
    assert not line.level
    pm.write(4, 2, 5 << 10)
    assert not events
    pm.write(4, 2, 5 << 10 | 1 << 13)
    assert events == ["off"]
    assert pm.read(4, 2) & 1


def test_the_timer_runs():
    pm = AcpiPm(Line(), lambda: None)
    first = pm.read(8, 4)
    while pm.read(8, 4) == first:
        pass
    assert pm.read(8, 4) < 1 << 24


def test_fw_cfg_lists_its_files_and_gives_their_bytes():
    device = FwCfg(2, {"etc/one": b"first", "etc/two": b"second"})
    device.write(0, 2, 0)
    assert device.read_block(1, 1, 4) == b"QEMU"
    device.write(0, 2, 0x19)
    assert device.read_block(1, 1, 4) == b"\0\0\0\2"
    device.read_block(1, 1, 64)
    entry = device.read_block(1, 1, 64)
    assert entry[8:15] == b"etc/two"
    device.write(0, 2, int.from_bytes(entry[4:6], "big"))
    assert device.read_block(1, 1, 8) == b"second\0\0"
