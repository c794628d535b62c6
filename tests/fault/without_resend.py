"""Run ckptfsd as on a kernel that cannot send a dead worker's requests again (before Linux 6.9).

A prefix of its command line. What differs is one option of the holder, which is there for this.
"""

from __future__ import annotations

import sys
from typing import Any

from ckptfsd import __main__ as program
from ckptfsd import launch
from ckptfsd.holder.options import Options

_as_usual = launch.holder_options


def _without_resend(*arguments: Any) -> Options:
    return _as_usual(*arguments)._replace(resend=False)


if __name__ == "__main__":
    launch.holder_options = _without_resend
    sys.argv = ["ckptfsd", *sys.argv[sys.argv.index("ckptfsd") + 1 :]]
    program.main()
