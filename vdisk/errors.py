"""Every error that vdisk raises on purpose.

::

    VdiskError
     +-- ImageError            an image's content: names the file, the field, what was expected and what was found
     |    +-- NotThisFormat    the signature of another format: the opener tries the next one
     |    +-- Corrupt          the right format, a wrong value
     |    +-- Unsupported      a valid variant that this version does not handle, by its name
     +-- StorageError          the operating system refused to read or write a file
     +-- PolicyError           an image names a file that the gate does not let it open
     +-- InUse                 another program has the image open, in a way that does not go with ours
     +-- OptionError           the caller asked for something that makes no sense (exit status 2 in the shell)
     +-- HypervisorError       /dev/kvm, the machine or its guest

Each error prints as one line: ``disk.vdi: block_size: expected a power of two, found 1000``.
"""

from __future__ import annotations

_LONGEST_VALUE = 120


def _plain(value: object) -> str:
    """`value` as printable text on one line: it may come out of a hostile file and go to a terminal."""
    text = value if isinstance(value, str) else repr(value)
    text = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)
    return text if len(text) <= _LONGEST_VALUE else text[: _LONGEST_VALUE - 3] + "..."


class VdiskError(Exception):
    """The root of the tree: catch it to catch all that vdisk raises on purpose."""


class ImageError(VdiskError):
    """Something in an image's content.

    Either ``ImageError(file, field, expected=..., found=...)`` or ``ImageError(file, field, "a sentence")``.
    """

    def __init__(
        self,
        file: object,
        field: str,
        message: str | None = None,
        *,
        expected: object = None,
        found: object = None,
    ) -> None:
        self.file = str(file)
        self.field = field
        self.expected = expected
        self.found = found
        if message is None:
            message = f"expected {_plain(expected)}, found {_plain(found)}"
        self.message = message
        super().__init__(f"{_plain(self.file)}: {field}: {_plain_sentence(message)}")


def _plain_sentence(text: str) -> str:
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


class NotThisFormat(ImageError):
    """The file does not carry the signature of the format it was opened as."""


class Corrupt(ImageError):
    """The file is of this format, and a value in it cannot be right."""


class Unsupported(ImageError):
    """A valid variant or feature that this version of vdisk does not handle.

    ``Unsupported(file, "vmdk", "seSparse writing")`` prints ``disk.vmdk: Unsupported: vmdk: seSparse writing``.
    """

    def __init__(self, file: object, format_name: str, feature: str) -> None:
        super().__init__(file, "Unsupported", f"{format_name}: {feature}")
        self.format_name = format_name
        self.feature = feature


class StorageError(VdiskError):
    """The operating system refused: missing file, no permission, no space, a read error."""

    def __init__(self, file: object, action: str, reason: object) -> None:
        self.file = str(file)
        self.action = action
        self.reason = reason
        why = reason.strerror if isinstance(reason, OSError) and reason.strerror else str(reason)
        super().__init__(f"{_plain(self.file)}: {action}: {_plain_sentence(why)}")


class PolicyError(VdiskError):
    """An image names another file, and the gate's policy does not let it open that file."""

    def __init__(self, file: object, field: str, name: str, reason: str, remedy: str | None = None) -> None:
        self.file = str(file)
        self.field = field
        self.name = name
        self.reason = reason
        self.remedy = remedy
        text = f"{_plain(self.file)}: {field}: {_plain(name)}: {reason}"
        super().__init__(f"{text}; {remedy}" if remedy else text)


class InUse(VdiskError):
    """Another program has the image open, and the two uses do not go together; see `vdisk.storage.locks`."""

    def __init__(self, file: object, what: str, *, may_share: bool = False) -> None:
        """`what` the other one does with it; `may_share`: it could be read all the same with force_share."""
        self.file = str(file)
        remedy = "stop it first"
        if may_share:
            remedy += ", or read it all the same with --force-share (what is read may be inconsistent)"
        super().__init__(f"{_plain(self.file)}: is in use by another program that {what}; {remedy}")


class OptionError(VdiskError):
    """The caller asked for something that makes no sense: an unknown option, a size below zero."""


class HypervisorError(VdiskError):
    """/dev/kvm is missing or refused, or the virtual machine cannot go on."""
