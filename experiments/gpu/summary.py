"""The summary of the findings on one screen."""

from __future__ import annotations

from pathlib import Path

from deformable_detr.words import one_line

from . import STEPS
from .report import Facts, merge

WIDTH = 110


def write_summary(work: Path, output: Path, letters: str) -> int:
    """Print the summary and write it to `summary.txt`. Return 1 if a step that proves something failed, was
    cut off or never began, and otherwise 0."""
    content = merge(work, output)
    lines = [_machine(content["machine"])]
    failed = False
    for letter in letters:
        step = content["steps"].get(letter)
        lines += _step(letter, step)
        failed |= STEPS[letter].proves and not _passed(step)
    lines.append("FAILED" if failed else "passed")
    text = "\n".join(line[:WIDTH] for line in lines) + "\n"
    (output / "summary.txt").write_text(text, encoding="utf-8")
    print(text, end="")
    return int(failed)


def _passed(step: Facts | None) -> bool:
    if not step or not step["finished"]:
        return False
    return all(finding["ok"] for finding in step["findings"])


def _machine(facts: Facts) -> str:
    packages = facts.get("packages", {})
    return (
        f"{facts.get('card', 'CPU')}, driver {facts.get('driver')}, torch {packages.get('torch')}, "
        f"triton {packages.get('triton')}, commit {str(facts.get('commit'))[:10]}, seed {facts.get('seed')}"
    )


def _step(letter: str, step: Facts | None) -> list[str]:
    title = STEPS[letter].title
    if not step:
        return [f"{letter}  {title}: never began"]
    findings = step["findings"]
    good = sum(finding["ok"] for finding in findings)
    skipped = sum("skipped" in finding for finding in findings)
    end = "" if step["finished"] else ", CUT OFF"
    lines = [
        f"{letter}  {title}: {good} of {len(findings)} good, {skipped} skipped, {step['seconds']:.0f} s{end}"
    ]
    lines += [
        f"     NOT GOOD {finding['name']}: {_why(finding)}" for finding in findings if not finding["ok"]
    ]
    lines += [
        f"     SKIPPED {finding['name']}: {finding['skipped']}"
        for finding in findings
        if "skipped" in finding
    ]
    return lines + [f"     {line}" for line in _numbers(letter, findings)]


def _why(finding: Facts) -> str:
    text = finding.get("error") or finding.get("error_text") or "?"
    return one_line(text)


def _numbers(letter: str, findings: list[Facts]) -> list[str]:
    by_name = {finding["name"]: finding for finding in findings}
    if letter == "d" and "AP" in by_name.get("lite", {}):
        lite = by_name["lite"]
        return [
            f"AP {lite['AP']:.3f}, AP50 {lite['AP50']:.3f}: {lite['epochs']} epochs in "
            f"{lite['seconds_of_training']:.0f} s, {lite['images_per_second']:.0f} images/s"
        ]
    if letter == "e":
        return _side_by_side(_operator(by_name)) + _targets(by_name)
    if letter in "fg":
        return _side_by_side(_speeds(findings, by_name)) + _targets(by_name)
    return []


def _operator(by_name: dict[str, Facts]) -> list[str]:
    """Return each operator's milliseconds, from a CUDA graph if there is one, and the best cuts."""
    items = []
    for name, finding in by_name.items():
        if "forward_ms" in finding:
            forward, both = (
                finding.get(f"{which}_graph_ms", finding[f"{which}_ms"])
                for which in ("forward", "forward_backward")
            )
            items.append(f"{name} {forward:.3f} / {both:.3f} ms")
        if name.startswith("cuts") and finding.get("best"):
            items.append(
                f"{name} {finding['usual_ms']:.3f} → {finding['best_ms']:.3f} ms ({finding['best']})"
            )
    return items


def _speeds(findings: list[Facts], by_name: dict[str, Facts]) -> list[str]:
    """Return the speed, the milliseconds (also the host's) and the peak memory of each finding that has them.

    The numbers of times that the host waits follow.
    """
    items = []
    for finding in findings:
        rate = finding.get("pictures_per_second") or finding.get("images_per_second")
        if rate and finding["name"] != "targets":
            host = f", host {finding['host_ms']:.0f}" if "host_ms" in finding else ""
            size = f", {finding['peak_bytes'] / 1e9:.1f} GB" if "peak_bytes" in finding else ""
            items.append(f"{finding['name']} {rate:.1f}/s ({finding['ms']:.1f} ms{host}{size})")
        if "first_ms" in finding:
            first, later = (
                " ".join(f"{value:.0f}" for value in finding[key]) for key in ("first_ms", "later_ms")
            )
            items.append(f"{finding['name']}: first {first} ms, later {later} ms")
        for name, value in finding.items():
            if finding["name"] == "one picture to detections" and name.endswith("_ms"):
                items.append(f"one picture to detections, {name.removesuffix('_ms')} {value:.1f} ms")
    for name in ("where the host waits", "where the host waits in `train`"):
        waits = by_name.get(name, {})
        count = waits.get("waits", waits.get("waits_per_update"))
        if count is not None:
            items.append(f"{name}: {count:g} times")
    return items


def _targets(by_name: dict[str, Facts]) -> list[str]:
    targets = by_name.get("targets", {})
    return _side_by_side(
        [
            f"{name} {value:.2f}"
            for name, value in targets.items()
            if isinstance(value, float) and name != "seconds"
        ]
    )


def _side_by_side(items: list[str]) -> list[str]:
    """Join the items into lines with as many items as fit into WIDTH."""
    lines: list[str] = []
    for item in items:
        if lines and len(lines[-1]) + len(item) + 8 < WIDTH:
            lines[-1] += f" | {item}"
        else:
            lines.append(item)
    return lines
