"""DLRM training speed beside its peers; the same as `recloom bench dlrm`, see there: --help."""

import sys

from recloom_dlrm.bench.training import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
