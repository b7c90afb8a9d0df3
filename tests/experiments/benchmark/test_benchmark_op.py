"""`benchmark op` on tiny sizes: what it writes and prints, what it refuses, how it judges targets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from deformable_detr import ops
from experiments.benchmark import op, operators
from experiments.benchmark.__main__ import main
from experiments.benchmark.measure import Timing
from experiments.benchmark.operators import OPERATORS, PEERS, QUICK_CASES, make_inputs, saved_bytes

pytestmark = pytest.mark.skipif(not ops.native_available(), reason=ops.kernels()["cpu"])

QUICK = ["op", "--quick", "--threads", "1", "--repeats", "2"]
OURS = [name for name in OPERATORS if name not in PEERS]


def test_the_command_measures_prints_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "op.json"
    assert main([*QUICK, "--against", "", "--output", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(len(line.rstrip()) for line in lines if "written" not in line) <= 80
    report = json.loads(path.read_text())
    assert report["benchmark"] == "op"
    assert report["settings"] == {"repeats": 2, "threads": [1], "keep_buffers": False, "quick": True}
    assert report["peers"] == report["missing_peers"] == {}
    measured = {(row["case"], row["operator"], row["pass"]) for row in report["timings"]}
    for case in ("encoder", "decoder"):
        for name in OURS:
            assert {(case, name, "forward"), (case, name, "forward_backward")} <= measured
        for limit in ("limit", "limit, 2nd cache", "limit bf16", "limit bf16, 2nd cache"):
            assert {(case, limit, "forward"), (case, limit, "backward")} <= measured
        assert set(report["errors"][case]) == set(OURS)
    assert all(row["median_seconds"] > 0 and row["turns"] == 2 for row in report["timings"])
    assert [row["operator"] for row in report["memory"]] == OURS
    assert report["targets"] == []  # they are about real sizes
    for name in OURS:
        assert any(line.startswith(f"{name} ") for line in lines)


def test_a_missing_peer_is_named_and_the_rest_is_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(op.PEERS, "torch-ms-deform-attn", "deformable-detr-no-such-package")
    path = tmp_path / "op.json"
    assert main([*QUICK, "--against", "torch-ms-deform-attn", "--output", str(path)]) == 0
    sentence = "not installed (pip install deformable-detr-no-such-package)"
    assert f"torch-ms-deform-attn: {sentence}" in " ".join(capsys.readouterr().out.split())
    assert json.loads(path.read_text())["missing_peers"] == {"torch-ms-deform-attn": sentence}


def test_a_peer_that_cannot_be_loaded_is_named_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(inputs: object) -> None:
        raise ImportError("undefined symbol:\n  _ZN3c10")

    monkeypatch.setitem(operators.OPERATORS, "transformers", broken)  # type: ignore[arg-type]
    missing: dict[str, str] = {}
    assert op.load_rivals({"transformers": "5.0"}, missing) == {}
    assert missing == {"transformers": "version 5.0 cannot be loaded: undefined symbol: _ZN3c10"}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["op", "--against", "tensorflow"], "--against tensorflow: no such peer; choose from transformers"),
        (["op", "--threads", "1,few"], "--threads 1,few: must be numbers from 1, or all"),
        (["op", "--threads", "0"], "--threads 0: must be numbers from 1, or all"),
        (["op", "--repeats", "0"], "--repeats 0: at least 1"),
        (["speed"], "there is no benchmark speed: choose one of op"),
        ([], "arguments are required: WHAT"),
    ],
)
def test_wrong_input_is_one_sentence(
    options: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*options]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert sentence in error


def test_without_the_native_operator_there_is_nothing_to_measure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(op.ops, "native_available", lambda: False)
    assert main(QUICK) == 2
    assert "the native operator is not there" in capsys.readouterr().err


def test_wrong_results_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    case, right = QUICK_CASES[0], OPERATORS["ours fused"]

    def wrong(inputs: operators.Inputs) -> operators.Bound:
        run, tensors = right(inputs)
        return (lambda *given: 1.001 * run(*given)), tensors

    assert op.errors_of(case, ["ours fused"])["ours fused"] < 1e-5
    monkeypatch.setitem(operators.OPERATORS, "ours fused", wrong)
    with pytest.raises(RuntimeError, match=r"ours fused is off by 1.0e-03 in the encoder case"):
        op.errors_of(case, ["ours fused"])


def test_the_cases_are_a_coco_image() -> None:
    encoder, decoder = operators.CASES
    assert encoder.tokens == 17_821
    assert encoder.outputs == 17_821 * 8
    assert decoder.outputs == 300 * 8


def test_encoder_queries_sit_at_the_centres_of_their_tokens() -> None:
    inputs = make_inputs(QUICK_CASES[0])
    height, width = QUICK_CASES[0].levels[0]
    assert inputs.reference.shape == (1, QUICK_CASES[0].tokens, 2, 2)
    torch.testing.assert_close(inputs.reference[0, width + 2, 1], torch.tensor([2.5 / width, 1.5 / height]))
    pixels = inputs.offsets.abs()
    assert 0.5 < float(pixels.mean()) < 4


def test_head_major_values_are_the_same_numbers_in_another_order() -> None:
    inputs = make_inputs(QUICK_CASES[0])
    value = OPERATORS["ours fused head-major"](inputs)[1][0]
    assert not value.is_contiguous()
    assert value.transpose(1, 2).is_contiguous()
    assert torch.equal(value, inputs.value)


def test_saved_bytes_are_the_inputs_for_ours_and_more_for_grid_sample() -> None:
    inputs = make_inputs(QUICK_CASES[0])
    kept = (inputs.value, inputs.reference, inputs.offsets, inputs.logits)
    assert saved_bytes("ours fused", inputs) == sum(tensor.nbytes for tensor in kept)
    assert (
        saved_bytes("ours fused bf16", inputs) == saved_bytes("ours fused", inputs) - inputs.value.nbytes // 2
    )
    assert saved_bytes("grid_sample", inputs) > 3 * saved_bytes("ours fused", inputs)


def test_targets_are_ratios_of_medians() -> None:
    def timings(**seconds: float) -> op.Timings:
        by_call = {(name, what): Timing((1.0,)) for name in (*OURS, "limit") for what in PASSES}
        for key, value in seconds.items():
            name, what = key.rsplit("__", 1)
            by_call[name.replace("_", " "), what] = Timing((value,))
        by_call["grid_sample", "forward"] = Timing((90.0,))
        by_call["transformers", "forward"] = Timing((80.0,))
        return by_call

    PASSES = (op.FORWARD, op.BACKWARD, op.FORWARD_BACKWARD)
    encoder = timings(ours_unfused__forward=2.0, ours_fused__backward=2.5)
    memory = [{"operator": "ours fused", "saved_bytes": 46_200_000}]
    targets = {
        target.name: target
        for target in op.targets_of({("encoder", 2): encoder, ("decoder", 2): timings()}, memory, 2)
    }
    over_grid_sample = targets["encoder forward, over grid_sample"]
    assert over_grid_sample.measured == 40.0  # 80 / 2: transformers' is the faster of the two
    assert over_grid_sample.met is True
    assert targets["encoder forward, over torch-ms-deform-attn"].met is None
    assert targets["encoder backward, distance to the limit"].measured == 2.5
    assert targets["encoder backward, distance to the limit"].met is False
    assert targets["encoder, saved for backward"].measured == pytest.approx(46.2)
    assert len(targets) == 11


def test_help_of_the_benchmark_lists_its_options(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["op", "--help"])
    text = capsys.readouterr().out
    for option in ("--against", "--threads", "--repeats", "--output", "--quick", "--keep-buffers"):
        assert option in text
