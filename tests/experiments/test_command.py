"""The command `metarl`: which script it runs, and what it says without one."""

import re
import sys

import pytest

from metarl.experiments import command


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """The exit code and both outputs."""
    code = 0
    try:
        command.main(list(arguments))
    except SystemExit as end:
        code = int(end.code or 0)
    return code, *capsys.readouterr()


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",)])
def test_the_scripts_are_listed(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, *arguments)
    assert (code, err) == (0, "")
    assert out.startswith("usage: metarl NAME")
    assert [line.split()[0] for line in out.splitlines() if line.startswith("  ")] == list(command.SCRIPTS)


def test_an_unknown_script_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "trian")
    assert (code, out) == (2, "")
    assert re.fullmatch(r"error: the script must be one of .*, got 'trian'; did you mean 'train'\?\n", err)


@pytest.mark.parametrize("name", command.SCRIPTS)
def test_help_names_the_command(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, name, "--help")
    assert (code, err) == (0, "")
    assert re.match(rf"usage: metarl {name}\b", out)


def test_help_of_a_problem_shows_what_applies(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "train-supervised", "sinusoid", "--help")
    assert code == 0
    assert out.startswith("usage: metarl train-supervised sinusoid")
    assert "--shots" in out
    assert not re.search("--(inner-batch|ways|problem)", out)


def test_the_arguments_are_those_of_the_program(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["metarl", "train", "--outer", "mamel"])
    with pytest.raises(SystemExit) as end:
        command.main()
    assert end.value.code == 2
    assert "outer must be one of" in capsys.readouterr().err
