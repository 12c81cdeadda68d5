"""Speed of the supernet, beside the reference implementation where a checkout of it is given."""
