"""Recognize a full disk, whichever library reports it, and say what to do."""

import errno
import os
from typing import Final

FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
REMEDY: Final = "free space there ('srpo clean --delete', 'srpo gc --delete'), then run the same command again: it resumes"


def is_full(error: BaseException) -> bool:
    """Whether an error is that of a full disk or quota; torch and safetensors raise errors of their own with its text."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in FULL
    return any(os.strerror(number) in str(error) for number in FULL)
