"""The holder's program (options.program): run as a file, in a Python that finds none of our packages yet."""

import os
import sys

if __name__ == "__main__":
    roots = os.environ.pop("CKPTFSD_HOLDER_ROOTS", "")
    if not roots:
        sys.exit("ckptfsd holder: error: it is started by `ckptfsd run`, not by hand")
    sys.path[:0] = roots.split(":")
    from ckptfsd.holder.process import main

    main()
