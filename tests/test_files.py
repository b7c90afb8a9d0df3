"""Files are written whole or not at all; what cannot be written is named, with the reason."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deformable_detr.errors import UserError
from deformable_detr.files import (
    DRAFTS,
    check_output_file,
    check_readable,
    make_output_folder,
    read_json,
    replacing,
    write_json,
    write_text,
    writing,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def fail_in_the_middle(target: Path, error: BaseException) -> None:
    with replacing(target) as draft:
        draft.write_text("half")
        raise error


def test_a_file_is_replaced_when_the_block_ends(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "a.txt"
    for text in ("one", "two"):
        with replacing(target) as draft:
            assert draft.name == "a.txt"
            draft.write_text(text)
            assert not target.exists() or target.read_text() == "one"
        assert target.read_text() == text
    assert names(target.parent) == ["a.txt"]


def test_an_error_leaves_what_was_there(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("before")
    with pytest.raises(ZeroDivisionError):
        fail_in_the_middle(target, ZeroDivisionError())
    with pytest.raises(KeyboardInterrupt):
        fail_in_the_middle(tmp_path / "new" / "b.txt", KeyboardInterrupt())
    assert target.read_text() == "before"
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("name", ["model", "old", "new"])
def test_a_folder_is_replaced(tmp_path: Path, name: str) -> None:
    target = tmp_path / name
    for text in ("one", "two"):
        with replacing(target) as draft:
            draft.mkdir()
            (draft / text).write_text(text)
        assert names(target) == [text]
    assert names(tmp_path) == [name]


def test_a_folder_that_cannot_take_its_place_gives_the_old_one_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "model"
    target.mkdir()
    (target / "weights").write_text("old")
    rename = os.rename

    def failing(source: Path, goal: Path) -> None:
        if Path(source).parent.name == "new":
            raise OSError(errno.ENOSPC, "full", str(source))
        rename(source, goal)

    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(UserError, match=r"model.*no space left"), replacing(target) as draft:
        draft.mkdir()
    assert (target / "weights").read_text() == "old"
    assert names(tmp_path) == ["model"]


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        for target in (tmp_path / "file", tmp_path / "folder"):
            with replacing(target) as draft:
                if target.name == "folder":
                    draft.mkdir()
                    draft /= "file"
                draft.write_text("secret?")
                draft.chmod(0o600)  # as safetensors does
        assert mode(tmp_path / "file") == mode(tmp_path / "folder" / "file") == 0o640
        assert mode(tmp_path / "folder") == 0o750
    finally:
        os.umask(before)


@pytest.mark.parametrize("exists", [True, False])
def test_links_are_written_through(tmp_path: Path, exists: bool) -> None:
    (tmp_path / "disk").mkdir()
    if exists:
        (tmp_path / "disk" / "a.txt").write_text("before")
    link = tmp_path / "link.txt"
    link.symlink_to("disk/a.txt")
    write_text(link, "after")
    assert link.is_symlink()
    assert link.read_text() == "after"
    assert names(tmp_path / "disk") == ["a.txt"]


def test_a_linked_folder_stays_linked(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to("disk")
    with replacing(tmp_path / "link") as draft:
        draft.mkdir()
        (draft / "weights").write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert names(tmp_path / "disk") == ["weights"]


def test_an_output_folder_is_created_where_its_link_leads(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("disk/out")
    make_output_folder(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "disk" / "out").is_dir()
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(UserError, match="loop"):
        make_output_folder(tmp_path / "loop")


def test_a_pipe_in_the_home_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="is a device, a pipe or a socket"):
        check_output_file("~/pipe")


def test_what_is_no_regular_file_is_refused(tmp_path: Path) -> None:
    pipe, loop = tmp_path / "pipe", tmp_path / "loop"
    os.mkfifo(pipe)
    loop.symlink_to(loop)
    for path in (pipe, loop, Path("/dev/null")):
        with pytest.raises(UserError, match=path.name), replacing(path):
            raise AssertionError("the block must not be entered")
        with pytest.raises(UserError, match=path.name):
            check_output_file(path)
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (errno.ENOSPC, "no space left"),
        (errno.EDQUOT, "quota"),
        (errno.EROFS, "read-only"),
        (errno.EACCES, "permission"),
        (errno.EFBIG, "too large"),
    ],
)
def test_the_reason_is_named(tmp_path: Path, code: int, reason: str) -> None:
    with pytest.raises(UserError, match=rf"a\.txt.*{reason}"):
        fail_in_the_middle(tmp_path / "a.txt", OSError(code, os.strerror(code)))
    assert names(tmp_path) == []
    with pytest.raises(UserError, match=rf"log.*{reason}"), writing("log"):
        raise OSError(code, os.strerror(code))


def test_errors_about_other_files_pass(tmp_path: Path) -> None:
    for error in (
        PermissionError(errno.EACCES, "no", str(tmp_path / "picture.jpg")),
        ConnectionError(errno.ECONNRESET, "gone"),
        RuntimeError("bug"),
    ):
        with pytest.raises(type(error)):
            fail_in_the_middle(tmp_path / "a.txt", error)


@pytest.mark.parametrize("writer", ["torch.save(tensors, draft)", "save_file(tensors, draft)"])
def test_libraries_on_a_full_disk(tmp_path: Path, writer: str) -> None:
    program = f"""
import resource
import torch
from safetensors.torch import save_file
from deformable_detr.errors import UserError
from deformable_detr.files import replacing

resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
tensors = {{"weight": torch.zeros(2**20)}}
try:
    with replacing("weights") as draft:
        {writer}
except UserError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "weights cannot be written" in done.stdout
    assert "too large" in done.stdout
    assert names(tmp_path) == []


def test_a_path_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/a\.txt"):
        write_text(tmp_path / "file" / "a.txt", "")
    with pytest.raises(UserError, match=r"file/a\.txt"):
        check_output_file(tmp_path / "file" / "a.txt")
    with pytest.raises(UserError, match="is a folder"):
        check_output_file(tmp_path)
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="folder"):
        write_text(tmp_path / "folder", "")
    assert check_output_file(tmp_path / "new" / "a.txt") == tmp_path / "new" / "a.txt"
    assert names(tmp_path) == ["file", "folder"]


WAITING = """
import sys
from collections.abc import Callable
from deformable_detr.files import replacing

with replacing(sys.argv[1]) as draft:
    draft.write_text("half")
    print("ready", flush=True)
    sys.stdin.read()
"""


def start_writing(target: Path) -> subprocess.Popen[bytes]:
    """A process in the middle of writing, which ends when its input is closed."""
    writer = subprocess.Popen(
        [sys.executable, "-c", WAITING, str(target)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert writer.stdout is not None
    assert writer.stdout.readline() == b"ready\n"
    return writer


def test_drafts_of_killed_writers_are_removed_and_no_others(tmp_path: Path) -> None:
    with start_writing(tmp_path / "killed") as killed, start_writing(tmp_path / "alive"):
        killed.kill()
        killed.wait()
        with replacing(tmp_path / "mine") as draft:
            draft.write_text("whole")
            assert sorted(path.name for path in (tmp_path / DRAFTS).rglob("new/*")) == ["alive", "mine"]
    assert names(tmp_path) == ["alive", "mine"]


def test_an_old_folder_survives_a_kill_between_the_renames(tmp_path: Path) -> None:
    aside = tmp_path / DRAFTS / "a1" / "old" / "model"
    aside.mkdir(parents=True)
    (aside / "weights").write_text("old")
    (tmp_path / DRAFTS / "a1.lock").write_text("")
    write_text(tmp_path / "a.txt", "")
    assert (tmp_path / "model" / "weights").read_text() == "old"
    assert names(tmp_path) == ["a.txt", "model"]


def test_another_writer_removes_the_folder_of_drafts_at_the_worst_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, calls = os.mkdir, 0

    def mkdir(path: Any, *args: Any, **keywords: Any) -> None:
        nonlocal calls
        if Path(path).name == DRAFTS and (calls := calls + 1) == 1:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))  # it is gone by now
        make(path, *args, **keywords)

    monkeypatch.setattr(os, "mkdir", mkdir)
    write_text(tmp_path / "a.txt", "new")
    assert calls == 2
    assert (tmp_path / "a.txt").read_text() == "new"
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("kind", ["file", "dangling link", "pipe"])
def test_something_else_has_the_name_of_the_folder_of_drafts(tmp_path: Path, kind: str) -> None:
    place = tmp_path / DRAFTS
    if kind == "file":
        place.write_text("")
    elif kind == "pipe":
        os.mkfifo(place)
    else:
        place.symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match="cannot be written"):
        write_text(tmp_path / "a.txt", "new")
    assert names(tmp_path) == [DRAFTS]


def test_many_writers_at_once(tmp_path: Path) -> None:
    program = """
import sys
from collections.abc import Callable
from deformable_detr.files import write_text

for number in range(200):
    write_text(f"{sys.argv[1]}_{number % 7}.txt", "x" * 1000)
"""
    writers = [subprocess.Popen([sys.executable, "-c", program, str(i)], cwd=tmp_path) for i in range(3)]
    assert [writer.wait(600) for writer in writers] == [0, 0, 0]
    assert len(names(tmp_path)) == 21
    assert all(path.stat().st_size == 1000 for path in tmp_path.iterdir())


def test_a_folder_of_drafts_that_vanishes_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / DRAFTS).mkdir()

    def after_another_writer(read: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def reading(folder: Any) -> Any:
            if isinstance(folder, Path) and folder.name == DRAFTS:
                folder.rmdir()
            return read(folder)

        return reading

    for name in ("scandir", "listdir"):
        monkeypatch.setattr(os, name, after_another_writer(getattr(os, name)))
    write_text(tmp_path / "a.txt", "whole")
    assert (tmp_path / "a.txt").read_text() == "whole"


def test_json(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"name": "naïve"})
    assert read_json(path) == {"name": "naïve"}
    assert path.read_text(encoding="utf-8").endswith("}\n")
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"AP": float("nan")})
    path.write_text("[]")
    with pytest.raises(UserError, match=r"a\.json contains a JSON list"):
        read_json(path)
    for broken in ("{", "[" * 100_000):
        path.write_text(broken)
        with pytest.raises(UserError, match=r"a\.json cannot be read as JSON"):
            read_json(path)


def test_missing_and_forbidden_files_are_distinguished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="No such file"):
        check_readable(tmp_path / "a")

    def forbidden(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "open", forbidden)  # the tests may run as root, who may read everything
    with pytest.raises(UserError, match="may not be read"):
        check_readable(tmp_path / "a")
