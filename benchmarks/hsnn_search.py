"""CPU time of a query by index, beside its floor and faiss's own; the same as `recloom bench hsnn`, see --help."""

import sys

from recloom_hsnn.bench.search import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
