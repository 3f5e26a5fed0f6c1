"""`--help` as a manual: every verb says what it does, with an example, and describes each of its options; the shell completes them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import Any

import pytest
from typer.main import get_command

from tocsin import __version__
from tocsin.cli.main import VERBS, app

ROOT: Any = get_command(app)


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_says_what_it_does_with_an_example_and_describes_every_option(verb: str) -> None:
    command = ROOT.get_command(None, verb)
    summary = (command.help or "").split("\n\n")[0]
    assert len(summary) > 20, "the list of verbs shows this line"
    assert re.search(rf"Examples?: `?([A-Z_]+=\S+ )*tocsin {verb}\b", command.help), "an example to copy"
    assert "exit code" in f"{command.help} {command.epilog}".lower(), "what a script can tell from it"
    for parameter in command.params:
        assert parameter.help, f"tocsin {verb}: {parameter.name} has no description"
        assert len(parameter.help) > 8, f"tocsin {verb}: {parameter.name}: {parameter.help}"


def test_the_version_is_the_one_that_is_installed() -> None:
    done = subprocess.run([sys.executable, "-m", "tocsin.cli.main", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"tocsin {__version__}\n"


@pytest.mark.parametrize("typed", ["", "re", "drift --s"])
def test_the_shell_completes_verbs_and_options(typed: str) -> None:
    words = f"tocsin {typed}"
    environment = {**os.environ, "_TOCSIN_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1)}
    program = "import sys; sys.argv = ['tocsin']; from tocsin.cli.main import app; app(prog_name='tocsin')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, env=environment)
    offered = set(done.stdout.split())
    expected = {"": set(VERBS), "re": {"replicate", "replay", "retry"}, "drift --s": {"--show-values", "--state"}}[typed]
    assert expected <= offered, (done.stdout, done.stderr)
    assert all(word.startswith(typed.rsplit(" ", maxsplit=1)[-1]) for word in offered)
