import os
import subprocess
import sys
import threading

import numpy as np
import pytest

from megabert import storage
from megabert.storage import atomic_file, atomic_folder, atomic_write, replace_folder, save_array


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    file = tmp_path / "a.txt"
    atomic_write(file, "old")
    with pytest.raises(ValueError, match="stop"), atomic_file(file) as opened:
        opened.write(b"new")
        raise ValueError("stop")
    assert (file.read_text(), names(tmp_path)) == ("old", ["a.txt"])
    with atomic_file(file) as opened:
        opened.write(b"new")
        assert file.read_text() == "old"
    assert (file.read_text(), names(tmp_path)) == ("new", ["a.txt"])


def test_a_leftover_of_a_killed_process_is_overwritten(tmp_path):
    leftover = tmp_path / ".a.txt.tmp-0"
    leftover.write_text("a longer content than the new one")
    atomic_write(tmp_path / "a.txt", "new")
    assert ((tmp_path / "a.txt").read_text(), names(tmp_path)) == ("new", ["a.txt"])


def test_two_writers_of_one_file_do_not_mix(tmp_path):
    file = tmp_path / "a.txt"
    with atomic_file(file) as first:
        first.write(b"first")
        atomic_write(file, "second")
        assert file.read_text() == "second"
    assert (file.read_text(), names(tmp_path)) == ("first", ["a.txt"])

    def write(number):
        for _ in range(30):
            atomic_write(file, str(number) * 100)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert file.read_text() in {str(number) * 100 for number in range(4)}
    assert names(tmp_path) == ["a.txt"]


def test_a_leftover_folder_is_removed_and_one_in_use_is_not(tmp_path):
    (tmp_path / "a.tmp-dead").mkdir()
    with atomic_folder(tmp_path / "a") as first:
        with atomic_folder(tmp_path / "a") as second:
            (second / "x").write_text("second")
        assert names(tmp_path) == ["a", first.name]
        (first / "x").write_text("first")
    assert names(tmp_path) == ["a"]
    assert (tmp_path / "a" / "x").read_text() == "first"


@pytest.mark.parametrize("has_exchange", [True, False])
def test_a_folder_is_replaced(tmp_path, monkeypatch, has_exchange):
    if not has_exchange:
        monkeypatch.setattr(storage, "_exchange", lambda first, second: False)
    for content in ("old", "new"):
        complete = tmp_path / "complete"
        complete.mkdir()
        (complete / "x").write_text(content)
        replace_folder(complete, tmp_path / "final")
    assert ((tmp_path / "final" / "x").read_text(), names(tmp_path)) == ("new", ["final"])


def test_a_rename_that_fails_leaves_the_old_folder(tmp_path, monkeypatch):
    for name in ("complete", "final"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(storage, "_exchange", lambda first, second: False)
    rename = os.rename

    def fail(source, target, **more):
        if str(source).endswith("complete"):
            raise OSError(28, "No space left on device")
        rename(source, target, **more)

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(OSError, match="No space"):
        replace_folder(tmp_path / "complete", tmp_path / "final")
    assert names(tmp_path) == ["complete", "final"]


def test_files_follow_the_umask(tmp_path):
    before = os.umask(0o022)
    try:
        atomic_write(tmp_path / "a.txt", "x")
    finally:
        os.umask(before)
    assert oct((tmp_path / "a.txt").stat().st_mode & 0o777) == "0o644"


@pytest.mark.skipif(sys.platform == "win32", reason="limits of a process are POSIX")
def test_an_array_for_which_the_disk_has_no_room_is_an_error(tmp_path):
    # numpy.save leaves the last bytes to a buffer of C, whose error on closing it does not look at.
    program = (
        "import resource, sys; from pathlib import Path; import numpy; from megabert.storage import save_array\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))\n"
        "save_array(Path(sys.argv[1]), numpy.arange(400))\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "x.npy")], capture_output=True, check=False)
    assert b"File too large" in done.stderr
    for array in (np.arange(400), np.zeros((0, 3), np.float16), np.asfortranarray(np.arange(6).reshape(2, 3))):
        save_array(tmp_path / "x.npy", array)
        loaded = np.load(tmp_path / "x.npy", mmap_mode="r" if array.size else None)
        assert loaded.dtype == array.dtype
        np.testing.assert_array_equal(loaded, array)
