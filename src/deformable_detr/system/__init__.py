"""Utilities for the machine: versions, memory, allocator, threads, and a self-test of the operator."""
