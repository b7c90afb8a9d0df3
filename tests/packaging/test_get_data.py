"""`scripts/get_data.sh`, with archives in a folder instead of the network."""

from __future__ import annotations

import filecmp
import io
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tests.support.paths import ROOT, data_set

REPOSITORIES = {
    "bccd_voc": ("Shenggan/BCCD_Dataset", "d272fb14cdff6e473fafeeeba32aba5f560e9e43"),
    "tiny_coco": ("lizhogn/tiny_coco_dataset", "68523ddd6c27f9ba5d2f0caf7f6fe95cc2c99311"),
    "aerial_cars": ("jekhor/aerial-cars-dataset", "d2ed927fe2b06e4794e90d6320152b940808ddd9"),
}
pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not here")


def get_data(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(ROOT / "scripts" / "get_data.sh"), *map(str, arguments)]
    environment = {"PYTHON": sys.executable, "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def archive(folder: Path, name: str, files: dict[str, bytes]) -> str:
    """An archive as GitHub gives it, and the URL of the folder that stands in for the host."""
    repository, commit = REPOSITORIES[name]
    path = folder / repository / "tar.gz" / commit
    path.parent.mkdir(parents=True)
    with tarfile.open(path, "w:gz", compresslevel=1) as tar:
        for file, content in files.items():
            entry = tarfile.TarInfo(f"{repository.split('/')[1]}-{commit}/{file}")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return folder.as_uri()


def files_of_the_repository(name: str) -> dict[str, bytes]:
    """The repository's files that the local copy of a data set came from."""
    root = data_set(name)
    files = {
        path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()
    }
    if name == "aerial_cars":  # all in one folder
        files = {path.rpartition("/")[2]: content for path, content in files.items()}
        return {"README.md" if path == "README.origin.md" else path: text for path, text in files.items()}
    inside = {"bccd_voc": "BCCD", "tiny_coco": "tiny_coco"}[name]
    return {
        "LICENSE" if path.startswith("LICENSE") else f"{inside}/{path}": text for path, text in files.items()
    }


@pytest.mark.parametrize(
    ("name", "made"),
    [("bccd_voc", "bccd_voc"), ("bccd_voc", "bccd_coco"), ("tiny_coco",) * 2, ("aerial_cars",) * 2],
)
def test_a_set_is_the_local_copy_to_the_byte(name: str, made: str, tmp_path: Path) -> None:
    url = archive(tmp_path / "host", name, files_of_the_repository(name))
    done = get_data(made, "--from", url, "--to", tmp_path / "data")
    assert done.returncode == 0, done.stderr
    local = data_set(made)
    files = [path.relative_to(local) for path in local.rglob("*") if path.is_file()]
    assert len(files) > 36
    same, different, missing = filecmp.cmpfiles(local, tmp_path / "data" / made, files, shallow=False)
    assert (len(same), different, missing) == (len(files), [], [])


def test_changed_content_is_refused_and_nothing_is_kept(tmp_path: Path) -> None:
    files = {"LICENSE": b"MIT"}
    for split in ("train2017", "val2017"):
        files |= {f"tiny_coco/{split}/1.jpg": b"?", f"tiny_coco/annotations/instances_{split}.json": b"{}"}
    url = archive(tmp_path / "host", "tiny_coco", files)
    done = get_data("tiny_coco", "--from", url, "--to", tmp_path / "data")
    assert done.returncode == 1
    assert "tiny_coco" in done.stderr
    assert "digest" in done.stderr
    assert "Traceback" not in done.stderr
    assert list((tmp_path / "data").iterdir()) == []


def test_an_archive_cannot_write_elsewhere(tmp_path: Path) -> None:
    url = archive(tmp_path / "host", "tiny_coco", {"../../../outside": b"x"})
    done = get_data("tiny_coco", "--from", url, "--to", tmp_path / "data")
    assert done.returncode == 1
    assert "outside" in done.stderr
    assert not list(tmp_path.rglob("outside"))


def test_an_unreachable_host_is_one_sentence(tmp_path: Path) -> None:
    done = get_data("bccd", "--from", (tmp_path / "nowhere").as_uri(), "--to", tmp_path / "data")
    assert done.returncode == 1
    assert "cannot be fetched" in done.stderr
    assert "Traceback" not in done.stderr


def test_what_is_there_is_not_fetched_again(tmp_path: Path) -> None:
    (tmp_path / "bccd_coco").mkdir()
    done = get_data("bccd_coco", "--from", (tmp_path / "nowhere").as_uri(), "--to", tmp_path)
    assert done.returncode == 0
    assert done.stdout == f"{tmp_path / 'bccd_coco'} was there already\n"


def test_docs_and_tests_name_sets_that_can_be_fetched() -> None:
    done = get_data("--help")
    for name in ("bccd", "bccd_coco", "bccd_voc", "tiny_coco", "aerial_cars", "all"):
        assert name in done.stdout.replace(",", " ").split()
