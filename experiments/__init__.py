"""Experiments that are run from a clone, outside the package: the paper's, benchmarks, the GPU check."""
