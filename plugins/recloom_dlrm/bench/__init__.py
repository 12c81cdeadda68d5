"""`recloom bench dlrm`: training speed beside the reference implementation and FBGEMM."""
