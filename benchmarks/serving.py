"""A model's latency under load and its highest rates; the same as `recloom bench serve`, see --help."""

import sys

from recloom.online.bench import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
