"""Operators, floors, locality of RMC1-3, the gather beside FBGEMM's; the same as `recloom bench rmc`, see --help."""

import sys

from recloom_rmc.bench.sweep import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
