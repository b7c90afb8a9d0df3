"""The machine: its versions, memory and allocator, and a self-test of the operator."""
