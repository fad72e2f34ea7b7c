"""What is shown while work goes on: a bar on a terminal, lines elsewhere, tables of text."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios

from curator import progress
from curator.progress import Progress, readable_seconds, table
from tests.conftest import ROOT

SHOW = """\
import time
from curator.progress import Progress
with Progress(100, "measuring [a]") as shown:
    shown.update(done=40)
    time.sleep(0.3)
    shown.note("[bold]in/x[1].tar :smile:[/bold]")
    time.sleep(0.3)
    shown.update(done=60, failed=2)
"""


TOLD = """\
import sys
from curator.cli import main
from curator.progress import Progress, folded, table
print(folded(table("", ["stage", "in", "kept", "dropped", "failed", "seconds"], [["aesthetic", *["1,234"] * 5]])))
Progress.say(" ".join(["words"] * 20) + " /a/path/" + "long" * 20)
with Progress(10, "measuring") as shown:
    shown.note(" ".join(["noted"] * 20))
main(["stages=[partition,read]", "input=" + "nowhere/" * 9 + "a.tar", "output=out", "max_failed=2"])
"""


def on_a_terminal(code: str, **environment: str) -> str:
    """What a process shows on a real pseudo-terminal of 80 columns."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    env = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm-256color", **environment}
    env.pop("COLUMNS", None)
    run = subprocess.Popen([sys.executable, "-c", code], stdout=theirs, stderr=theirs, env=env)
    os.close(theirs)
    said = b""
    try:
        while part := os.read(ours, 65536):
            said += part
    except OSError:  # the other end is closed
        pass
    os.close(ours)
    assert run.wait(30) == 0
    return said.decode()


def test_without_a_terminal_there_are_plain_lines_on_stderr_and_nothing_on_stdout(capsys, monkeypatch):
    """A log stays readable, and results can be piped."""
    monkeypatch.setattr(progress, "EVERY_S", 0.0)
    with Progress(1200, "measuring") as shown:
        shown.update(done=600)
        shown.note("a word between")
        shown.update(done=600, failed=3)
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == ""
    assert re.match(r"measuring: 600 of 1,200 images, [\d,.]+ images/s, .* to go$", lines[0])
    assert lines[1] == "a word between"
    assert re.match(r"measuring: 1,200 of 1,200 images, [\d,.]+ images/s, 3 failed$", lines[-1])
    assert "\x1b" not in err


def test_lines_come_only_now_and_then(capsys):
    """A million updates are not a million lines."""
    with Progress(1000, "measuring") as shown:
        for _ in range(1000):
            shown.update(done=1)
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_more_images_than_were_announced_break_nothing(capsys):
    """A shard that is measured twice, since its object was damaged."""
    with Progress(10, "measuring") as shown:
        shown.update(done=25)
    assert "measuring: 10 of 10 images" in capsys.readouterr().err


def test_nothing_to_do_divides_by_nothing(capsys):
    """No image at all, or none yet."""
    with Progress(0, "measuring"):
        pass
    assert "0 of 0 images" in capsys.readouterr().err


def test_a_bar_on_a_terminal_shows_what_was_meant_and_a_note_stays_whole():
    """Brackets in a label or a path are no markup, and the bar leaves one line behind."""
    said = on_a_terminal(SHOW)
    assert "measuring [a]" in said
    assert "[bold]in/x[1].tar :smile:[/bold]" in said
    assert re.search(r"measuring \[a\]: 100 of 100 images, .* 2 failed\r\n$", said)
    assert "\x1b[?25h" in said  # the cursor is there again


def test_no_color_is_respected():
    """https://no-color.org: no colour code on a terminal either."""
    coloured = re.compile(r"\x1b\[[\d;]*(3[0-8]|9[0-7])[\d;]*m")
    assert coloured.search(on_a_terminal(SHOW, NO_COLOR=""))
    assert not coloured.search(on_a_terminal(SHOW, NO_COLOR="1"))


def test_a_table_shows_its_cells_as_they_are():
    """A key or path with brackets or colons is neither markup nor a picture."""
    text = table("what [was] found", ["shard", "images"], [["in/[bold]/a[1].tar", "3"], [":smile:", "1,200"]])
    assert text.splitlines() == [
        "what [was] found",
        "shard               images",
        "in/[bold]/a[1].tar       3",
        ":smile:              1,200",
    ]


def test_a_table_fits_the_terminal(monkeypatch):
    """Folded at 80 columns, nothing is lost; never wider than 100."""
    rows = [["x" * 150, "1"]]
    for columns, widest in ((80, 80), (200, 100)):
        monkeypatch.setenv("COLUMNS", str(columns))
        lines = table("", ["key", "images"], rows).splitlines()
        assert max(map(len, lines)) <= widest
        assert sum(line.count("x") for line in lines) == 150


def test_on_a_terminal_nothing_breaks_inside_a_word_and_a_narrow_table_not_at_all():
    """Letters are counted and no codes for bold ones; lines on stderr are folded as those on stdout; a path is whole."""
    lines = re.split(r"[\r\n]+", re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", on_a_terminal(TOLD)))
    assert lines[:2] == [
        "stage         in   kept  dropped  failed  seconds", "aesthetic  1,234  1,234    1,234   1,234    1,234"
    ]  # fmt: skip
    for line in lines:
        assert len(line) <= 80 or " " not in line.strip(), line
    words = " ".join(lines).split()
    assert (words.count("words"), words.count("noted")) == (20, 20)
    assert "/a/path/" + "long" * 20 in words
    assert "nowhere/" * 9 + "a.tar:" in words
    assert words.count("curate:") == 2


def test_a_table_has_no_codes_where_colours_are_forced(monkeypatch):
    """It goes into the log as well."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b" not in table("", ["stage", "in"], [["read", "1"]])


def test_seconds_as_people_say_them():
    """From seconds to days."""
    assert [readable_seconds(s) for s in (0.4, 59.4, 59.6, 200, 3599.7, 7500, 360000)] == [
        "0 s", "59 s", "1 min 00 s", "3 min 20 s", "1 h 00 min", "2 h 05 min", "100 h 00 min",
    ]  # fmt: skip
