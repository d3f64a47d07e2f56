"""`python -m mfdmc_fast` is `mfdmc`."""

from mfdmc_fast.cli import main

if __name__ == "__main__":
    main()
