"""`python -m denoising_ebm` is `debm`."""

import sys

from denoising_ebm.cli import main

if __name__ == "__main__":
    sys.exit(main())
