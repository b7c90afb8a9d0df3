"""The command and the function behind it: sentences for what is wrong, and how a process ends."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from deformable_detr.cli import main
from deformable_detr.errors import UserError
from deformable_detr.serve import ServeSettings, create_app, serve
from deformable_detr.serve.server import TOKEN_VARIABLE, ServerProcess, read_token
from tests.support.serving import (
    form,
    in_a_thread,
    picture,
    png,
    tiny_detector,
    until,
    watch,
)

PNG = png(picture())


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_detector().save(tmp_path_factory.mktemp("model") / "tiny")


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["serve", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    return captured.err


def test_wrong_options_are_reported_in_a_sentence(
    capsys: pytest.CaptureFixture[str], model: Path, tmp_path: Path
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"127.0.0.1:{port} cannot be taken" in refused(capsys, str(model), "--port", str(port))
    assert "no address 'no.such.host.invalid'" in refused(
        capsys, str(model), "--host", "no.such.host.invalid"
    )
    assert "--port must be" in refused(capsys, str(model), "--port", "70000")
    assert "max_batch must be at least 1" in refused(capsys, str(model), "--max-batch", "0")
    assert "queue_size (2) must hold" in refused(capsys, str(model), "--queue-size", "2")
    assert "timeout_s must be" in refused(capsys, str(model), "--timeout", "0")
    assert "root_path must start" in refused(capsys, str(model), "--root-path", "detr")
    assert "cannot be read" in refused(capsys, str(model), "--token-file", str(tmp_path / "none"))
    assert "there is no" in refused(capsys, str(tmp_path / "nothing"), "--port", "0")


def test_the_token_comes_from_a_file_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    assert read_token(None) is None
    monkeypatch.setenv(TOKEN_VARIABLE, "of-the-environment")
    assert read_token(None) == "of-the-environment"
    (tmp_path / "token").write_text("of-the-file\n")
    assert read_token(tmp_path / "token") == "of-the-file"
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(UserError, match="is empty"):
        read_token(tmp_path / "empty")
    for wrong in ("short", "with a blank", "größer-als"):
        with pytest.raises(UserError, match="token"):
            ServeSettings(token=wrong)
    assert "secret-token" not in repr(ServeSettings(token="secret-token"))


def test_a_missing_extra_is_reported_in_a_sentence() -> None:
    script = (
        "import sys; sys.modules['uvicorn'] = None\n"
        "from deformable_detr.cli import main\n"
        "sys.exit(main(['serve', 'x']))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    sentence = 'serve needs uvicorn, which is not installed: pip install "deformable-detr[serve]".'
    assert done.stderr == f"deformable-detr: {sentence}\n"


def test_a_signal_ends_it_behind_the_last_answer() -> None:
    detector = tiny_detector()
    watched = watch(detector)
    process = ServerProcess(create_app(detector), "", access_log=False)

    async def scenario(address: str) -> None:
        async with httpx.AsyncClient(base_url=address, timeout=300) as client:
            await until(lambda: process.app.engine.state == "ready")
            watched.go.clear()
            accepted = asyncio.create_task(client.post("/v1/detect", files=form(PNG)))
            await until(lambda: process.app.engine.accepted == 1)
            process.handle_exit(signal.SIGTERM, None)
            for path, method in (("/readyz", "GET"), ("/v1/detect", "POST")):
                answer = await client.request(method, path)
                assert answer.status_code == 503
                assert answer.json()["error"]["kind"] == "stopping"
            assert (await client.get("/healthz")).status_code == 200
            assert not accepted.done()
            watched.go.set()
            assert (await accepted).status_code == 200

    with in_a_thread(process) as (address, thread):
        asyncio.run(scenario(address))
        thread.join(100)
        assert not thread.is_alive()


def test_a_body_over_the_limit_is_answered_to_a_sender_who_is_still_writing() -> None:
    process = ServerProcess(create_app(tiny_detector(), ServeSettings(max_body_bytes=10_000)), "", False)
    with in_a_thread(process) as (address, _), httpx.Client(base_url=address, timeout=300) as client:
        while client.get("/readyz").status_code != 200:
            time.sleep(0.05)
        for _ in range(3):
            answer = client.post("/v1/detect", files=form(b"x" * 20_000_000))
            assert answer.status_code == 413
            assert answer.json()["error"]["kind"] == "body_too_large"


def test_a_model_that_does_not_work_ends_the_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    detector = tiny_detector()

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no memory")

    monkeypatch.setattr(detector, "predict", fail)
    with pytest.raises(RuntimeError, match="could not be warmed up"):
        serve(detector, port=0)
    assert "http://127.0.0.1:" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_the_process_exits_with_0(model: Path, sent: signal.Signals) -> None:
    command = [sys.executable, "-m", "deformable_detr", "serve", str(model), "--port", "0"]
    environment = {**os.environ, TOKEN_VARIABLE: "a-secret-token"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        address = line.split(" at ")[1].split()[0]
        headers = {"authorization": "Bearer a-secret-token"}
        with httpx.Client(base_url=address, timeout=300, headers=headers) as client:
            while client.get("/readyz").status_code != 200:
                time.sleep(0.05)
            assert client.get("/v1/model").json()["name"] == "tiny"
            assert client.post("/v1/detect", files=form(PNG)).status_code == 200
            shown = Path(f"/proc/{process.pid}/cmdline").read_text()
            assert "a-secret-token" not in shown
            process.send_signal(sent)
            assert process.wait(300) == 0
        assert process.stderr is not None
        assert process.stderr.read() == ""
