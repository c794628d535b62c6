"""The holder's program (options.program): run as a file, in a Python that finds none of our packages yet."""

import os
import sys

if __name__ == "__main__":
    sys.path[:0] = os.environ.pop("CKPTFSD_HOLDER_ROOTS").split(":")
    from ckptfsd.holder.process import main

    main()
