"""The benchmark: what is timed, on which layers, and what the kernels become on GPUs that are not at hand."""
