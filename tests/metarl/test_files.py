"""Files are written whole or not at all."""

import os
from pathlib import Path
from typing import IO

import pytest

from metarl.files import write_atomically, write_json


class Crash(Exception):
    pass


@pytest.mark.parametrize("error", [Crash, KeyboardInterrupt, SystemExit])
def test_a_crash_while_writing_leaves_the_old_file(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "file"
    write_atomically(path, lambda file: file.write(b"old"))

    def crash(file: IO[bytes]) -> None:
        file.write(b"ne")
        raise error

    with pytest.raises(error):
        write_atomically(path, crash)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_folders_are_made_and_files_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file.json"
    for value in ({"x": 1}, [2]):
        write_json(path, value)
    assert path.read_text() == "[\n  2\n]\n"
    assert os.listdir(path.parent) == ["file.json"]
