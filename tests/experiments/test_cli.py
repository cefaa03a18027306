"""What the scripts share on the command line, where no script is needed to see it."""

import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from metarl.experiments.common import cli


class Finalised:
    """Sends a signal to its own process while it is removed, where Python drops exceptions."""

    def __init__(self, number: signal.Signals) -> None:
        self.number = number

    def __del__(self) -> None:
        os.kill(os.getpid(), self.number)
        time.sleep(0)  # the handler runs here


def wait_after(finalised: Finalised) -> None:
    """Remove it, and wait."""
    del finalised
    time.sleep(5)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_a_signal_in_a_finalizer_is_not_lost(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    number = signal.Signals[name]
    # the tests may run under nohup or in the background, where some signals are ignored
    usual = signal.default_int_handler if name == "SIGINT" else signal.SIG_DFL
    before = signal.signal(number, usual)
    try:
        with pytest.raises(SystemExit) as end, cli.one_line_errors():
            wait_after(Finalised(number))
    finally:
        signal.signal(number, before)
    assert end.value.code == 128 + number
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_numpy_says_in_other_words_that_memory_does_not_suffice(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end, cli.one_line_errors():
        np.random.default_rng(0).uniform(size=2**62)
    assert end.value.code == 2
    assert "do not fit into memory" in capsys.readouterr().err


def test_plugins_may_lie_in_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for the installed command, whose path lacks that folder."""
    (tmp_path / "plugin_of_this_folder.py").write_text("HERE = True\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(tmp_path))])
    cli.import_plugins(["plugin_of_this_folder"])
    assert sys.modules.pop("plugin_of_this_folder").HERE


def test_other_value_errors_are_faults_of_the_program() -> None:
    with pytest.raises(ValueError, match="mine"), cli.one_line_errors():
        raise ValueError("mine")
