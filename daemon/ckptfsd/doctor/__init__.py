"""Is everything here that the daemon needs, and what to do about what is not.

- ``run``: asks all questions, each with a time limit, so that a hung disk is an answer too
- ``fuse``: the kernel's side: device, module, rights, version, mountpoint
- ``node``: the store's file system, libraries, limits
"""

from ckptfsd.doctor.run import Running, diagnose

__all__ = ["Running", "diagnose"]
