"""`python -m experiments.gpu WHAT …`: the parts of scripts/gpu_check.sh, each in a separate process."""

from __future__ import annotations

import argparse
import os
import sys
from functools import partial
from importlib import import_module
from pathlib import Path

from . import STEPS


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.gpu", description=__doc__)
    commands = parser.add_subparsers(dest="what", required=True)

    def command(name: str, summary: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=summary)
        added.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
        added.add_argument("--quick", action="store_true")
        added.add_argument("--seed", type=int, default=0)
        added.add_argument("--work", type=Path, default=Path("build/gpu_check"))
        added.add_argument("--output", type=Path, default=Path("build/gpu_check/out"))
        return added

    command("machine", "note what machine it is, and draw the small data set")
    step = command("step", "one step")
    step.add_argument("letter", choices=tuple(STEPS))
    step.add_argument("--sweep", action="store_true", help="step e also looks for better cuts of the kernels")
    step.add_argument("--seconds", type=float, default=600.0, help="its time box")
    command("summary", "print the summary; exit code 1 if a step that proves something failed").add_argument(
        "letters", help="the steps that were to run, as in abc"
    )
    command("draw", "draw the data set of step d")
    cuts = command("compile-cuts", "compile some of the cuts that step e measures")
    cuts.add_argument("part", type=int)
    cuts.add_argument("parts", type=int)
    command("compile-variant", "compile a model that step f measures")
    command("small-calls", "calls of the operator, to be watched by compute-sanitizer")
    command("kernels", "the operator's two kernels at full size, to be watched by ncu")
    return run(parser.parse_args())


def run(chosen: argparse.Namespace) -> int:
    if chosen.what == "step":
        return _step(chosen)
    if chosen.what == "summary":
        from .summary import write_summary

        return write_summary(chosen.work, chosen.output, chosen.letters)
    if chosen.what == "machine":
        import torch

        from .jobs import draw_small
        from .machine import note_machine

        note_machine(torch.device(chosen.device), chosen.work, chosen.seed)
        draw_small(chosen.work, chosen.quick)
    elif chosen.what == "draw":
        from .jobs import draw_large

        draw_large(chosen.work)
    elif chosen.what == "compile-cuts":
        from .bench_op import compile_cuts

        compile_cuts(chosen.part, chosen.parts)
    elif chosen.what == "compile-variant":
        from .bench_infer import compile_variant

        compile_variant()
    elif chosen.what == "kernels":
        from .bench_op import launch_kernels

        launch_kernels()
    else:
        from .operator import small_calls

        small_calls(chosen.seed)
    return 0


def _step(chosen: argparse.Namespace) -> int:
    import torch

    from .report import Job, Report

    report = Report(chosen.letter, chosen.work, chosen.output, chosen.seconds)
    if chosen.device == "cpu":
        torch.set_num_threads(min(torch.get_num_threads(), os.cpu_count() or 1))
    job = Job(
        torch.device(chosen.device),
        chosen.quick,
        chosen.seed,
        chosen.work,
        chosen.output,
        report,
        chosen.sweep,
    )
    try:
        import_module(f".{STEPS[chosen.letter].module}", __package__).run(job)
    except Exception as error:  # an error outside all findings becomes a finding
        report.find("the step itself", partial(_raise, error))
    report.finish()
    return 0 if report.ok or not STEPS[chosen.letter].proves else 1


def _raise(error: Exception, finding: object) -> None:
    raise error


if __name__ == "__main__":
    sys.exit(main())
