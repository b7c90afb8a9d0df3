"""Utilities for the machine: versions, memory, allocator, threads, and a test of deformable attention."""
