"""Deformable DETR: see README.md."""
