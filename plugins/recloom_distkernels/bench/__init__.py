"""`recloom bench distkernels`: the cost of k-NN divergences."""
