"""The command `deformable-detr doctor`."""

from __future__ import annotations

from argparse import Namespace

from .options import Parser

SUMMARY = "show versions, devices and kernels, and run a self-test"


def add_arguments(parser: Parser) -> None:
    parser.description = "Show versions, devices and kernels in use, and test the operator."


def run(arguments: Namespace) -> int:
    from ..system.doctor import diagnose

    diagnosis = diagnose()
    width = max(len(name) for name in (*diagnosis.facts, *diagnosis.tests))
    for name, fact in diagnosis.facts.items():
        print(f"{name:<{width}}  {fact}")
    for name, error in diagnosis.tests.items():
        print(f"{name:<{width}}  largest error against a direct computation {error:.1e}")
    print("healthy" if diagnosis.healthy else "NOT healthy: the operator computes wrong results here")
    return 0 if diagnosis.healthy else 1
