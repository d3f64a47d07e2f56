"""Files appear whole or not at all, and what stands in the way is named before the work begins."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from mfdmc_fast.errors import DataError
from mfdmc_fast.files import check_writable, replacing


def write(path: str | Path, text: str = "new") -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@pytest.mark.parametrize("kind", [str, Path])
def test_a_new_file_gets_the_content_and_nothing_else_is_left(tmp_path: Path, kind: Callable[[Path], str]) -> None:
    target = tmp_path / "model.safetensors"
    write(kind(target))
    assert target.read_text() == "new"
    assert list(tmp_path.iterdir()) == [target]


def test_a_name_without_a_folder_is_in_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write("result.csv")
    assert (tmp_path / "result.csv").read_text() == "new"


def test_the_target_changes_only_at_the_end(tmp_path: Path) -> None:
    target = tmp_path / "model"
    target.write_text("old")
    with replacing(target) as temporary:
        temporary.write_text("new")
        assert temporary.parent == target.parent  # renaming is atomic only within a file system
        assert temporary != target
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize(
    "error", [RuntimeError("boom"), KeyboardInterrupt(), SystemExit(3)], ids=lambda e: type(e).__name__
)
@pytest.mark.parametrize("exists", [True, False], ids=["replacing", "creating"])
def test_a_failure_leaves_the_old_file_and_no_temporary_one(tmp_path: Path, error: BaseException, exists: bool) -> None:
    target = tmp_path / "model"
    if exists:
        target.write_text("old")
    with pytest.raises(type(error)), replacing(target) as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise error
    assert [p.name for p in tmp_path.iterdir()] == (["model"] if exists else [])
    assert not exists or target.read_text() == "old"


def test_a_full_disk_is_a_data_error_with_the_reason(tmp_path: Path) -> None:
    target = tmp_path / "model"
    with pytest.raises(DataError, match=r"model: cannot be written: No space left on device"), replacing(target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert list(tmp_path.iterdir()) == []


def test_file_and_folder_are_flushed_around_the_renaming(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    flush, rename = os.fsync, os.replace

    def flushed(handle: int) -> None:
        done.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file")
        flush(handle)

    def renamed(source: Path, target: Path) -> None:
        done.append("renaming")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(os, "replace", renamed)
    write(tmp_path / "model")
    assert done == ["file", "renaming", "folder"]


def test_a_failing_rename_is_a_data_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: object, target: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(DataError, match="cannot be written: Input/output error"):
        write(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_no_room_for_the_temporary_file_is_a_data_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    monkeypatch.setattr(tempfile, "mkstemp", refuse)
    with pytest.raises(DataError, match="cannot be written"):
        write(tmp_path / "model")


def test_a_name_of_the_greatest_length_can_be_written(tmp_path: Path) -> None:
    target = tmp_path / ("x" * 255)
    write(target)
    assert target.read_text() == "new"


@pytest.mark.parametrize("mask", [0o022, 0o077], ids=["umask-022", "umask-077"])
def test_permissions_are_those_of_any_new_file(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        write(tmp_path / "model")
        assert stat.S_IMODE((tmp_path / "model").stat().st_mode) == 0o666 & ~mask
        assert os.umask(mask) == mask  # asking for the mask has not changed it
    finally:
        os.umask(before)


def test_what_a_target_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is a folder; give the name of a file"):
        check_writable(tmp_path)
    with pytest.raises(DataError, match=r"the folder .*missing does not exist; create it first") as caught:
        check_writable(tmp_path / "missing" / "model")
    assert caught.value.source == str(tmp_path / "missing" / "model")
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="does not exist"):
        check_writable(tmp_path / "file" / "model")
    with pytest.raises(DataError, match="is a folder"), replacing(tmp_path):
        pytest.fail("the body must not run")  # pragma: no cover


def test_a_folder_without_write_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # the superuser may write everywhere, so the answer of the system is put in its mouth
    monkeypatch.setattr(os, "access", lambda path, mode: not (Path(path) == tmp_path and mode == os.W_OK))
    with pytest.raises(DataError, match="cannot be written; choose another"):
        check_writable(tmp_path / "model")


def test_check_writable_creates_nothing(tmp_path: Path) -> None:
    check_writable(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_a_device_or_pipe_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(DataError, match="not a regular file"):
        write(pipe)
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    write(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"
