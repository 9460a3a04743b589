"""Two names exchanged in one step, which Python's os lacks: renameat2 of Linux, renamex_np of macOS."""

import errno
import os
import sys
from pathlib import Path

_LACKING = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP}  # the kernel, or the file system
_HERE = -100  # AT_FDCWD
_RENAME_EXCHANGE = _RENAME_SWAP = 2


def exchanged(one: Path, other: Path) -> bool:
    """Exchange what two names stand for, if that can be done here.

    Args:
        one: exists, as does the other; both on one file system.
        other: the other.

    Returns:
        Whether it was done: False where the system, or this file system, can't.

    Raises:
        OSError: it was refused.
    """
    import ctypes

    first, second = os.fsencode(one), os.fsencode(other)
    try:
        system = ctypes.CDLL(None, use_errno=True)
        if sys.platform == "darwin":
            failed = system.renamex_np(first, second, _RENAME_SWAP)
        else:
            failed = system.renameat2(_HERE, first, _HERE, second, _RENAME_EXCHANGE)
    except (AttributeError, OSError, TypeError):  # no such call; of Windows, no such library
        return False
    if not failed:
        return True
    number = ctypes.get_errno()
    if number in _LACKING:
        return False
    raise OSError(number, os.strerror(number), str(one), None, str(other))
