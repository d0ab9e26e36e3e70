"""Completion in the shells themselves: bash, zsh and fish load what fedsim prints for them, and complete a word."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

BASH = """
eval "$(_FEDSIM_COMPLETE=source_bash fedsim)"
read -r -a COMP_WORDS <<< "$1"
COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
function=$(complete -p fedsim | sed 's/.*-F \\([^ ]*\\).*/\\1/')
"$function" fedsim
printf '%s\\n' "${COMPREPLY[@]}"
"""
FISH = """
_FEDSIM_COMPLETE=source_fish fedsim | source
complete -C $argv[1]
"""
ZSH_INSIDE = """
PROMPT=
autoload -Uz compinit
compinit -u -D
source <(_FEDSIM_COMPLETE=source_zsh fedsim)
complete-and-tell() { zle complete-word; print -r -- "completed:$BUFFER:" }
zle-line-init() { print -r -- "asks: " }
zle -N complete-and-tell
zle -N zle-line-init
bindkey '^I' complete-and-tell
"""
ZSH = """
zmodload zsh/zpty
zpty inside zsh -f -i
zpty -w inside "source inside.zsh"
zpty -r -m inside said '*asks: *'
zpty -w -n inside "$1"$'\\t'
zpty -r -m inside said '*completed:*:*'
print -r -- "${${said##*completed:}%%:*}"
zpty -d inside
"""
"""zsh completes at a terminal alone: one within it, which tells what stands in its line after the tab."""


@pytest.fixture(autouse=True)
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``fedsim`` on the path, of this Python, and a home without settings."""
    file = tmp_path / "bin" / "fedsim"
    file.parent.mkdir()
    file.write_text(f"#!/bin/sh\nexec '{sys.executable}' -c 'from fedsim.cli import main; main()' \"$@\"\n")
    file.chmod(0o755)
    monkeypatch.setenv("PATH", f"{file.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path or os.getcwd() for path in sys.path))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TERM", "dumb")
    (tmp_path / "inside.zsh").write_text(ZSH_INSIDE)
    monkeypatch.chdir(tmp_path)


def completed(shell: str, line: str) -> list[str]:
    """The words that the shell makes of the last one."""
    if shutil.which(shell) is None:
        pytest.skip(f"needs {shell}, which is not installed (apt-get install {shell})")
    calls = {
        "bash": ["bash", "--norc", "-c", BASH, "bash", line],
        "fish": ["fish", "--no-config", "-c", FISH, line],
        "zsh": ["zsh", "-f", "-c", ZSH, "zsh", line],
    }
    done = subprocess.run(calls[shell], capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    found = [each.partition("\t")[0].strip() for each in done.stdout.splitlines()]  # fish tells what a word means, too
    return [each.split()[-1] for each in found if each]  # zsh shows its whole line


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
@pytest.mark.parametrize(
    ("line", "expected"), [("fedsim ben", "bench"), ("fedsim run quick", "quickstart"), ("fedsim list def", "defense")]
)
def test_a_shell_completes_a_command_a_scenario_and_a_kind(shell: str, line: str, expected: str) -> None:
    assert completed(shell, line) == [expected]
