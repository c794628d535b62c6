"""`python -m ckptfs` is `ckptfs`."""

from ckptfs.cli.main import main

if __name__ == "__main__":
    main()
