"""What is said while a command works: every step stands, above its bar on a terminal, with its time elsewhere."""

import os
import re
import select
import sys
import termios

from zoo.cli.building import saying
from zoo.cli.tables import say
from zoo.progress import shown


def on_a_terminal(work, monkeypatch):
    """What is written to a terminal in the place of stderr."""
    master, slave = os.openpty()
    termios.tcsetwinsize(slave, (24, 80))
    with open(slave, "w", encoding="utf-8", buffering=1) as stream, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", stream)
        work()
        stream.flush()
        written = ""
        while select.select([master], [], [], 0.2)[0]:  # the terminal gives it piece by piece
            written += os.read(master, 1 << 20).decode()
    os.close(master)
    return written


def screen(text):
    """The lines that are seen in the end: a return goes back to the line's beginning, and what follows overwrites."""
    lines = []
    for line in text.replace("\r\n", "\n").split("\n"):
        seen = ""
        for part in line.split("\r"):
            seen = part + seen[len(part) :]
        lines.append(seen.rstrip())
    return lines


def work():
    """Two steps with bars, of which the first says something and is said to take no time."""
    with saying() as tell:
        tell("1 evaluate the base on digits")
        for number in shown(range(3), "evaluate"):
            if number == 1:
                say("drawn", err=True)
        tell("dense: top1 0.9")
        tell("2 prune")
        list(shown(range(3), "prune"))
        tell("macs 12")


def untimed(lines):
    return [line if not line.endswith(" s") else f"{line.rpartition('  ')[0]}  0 s" for line in lines]


def test_on_a_terminal_bars_erase_no_line_and_are_gone_in_the_end(monkeypatch):
    written = on_a_terminal(work, monkeypatch)

    assert re.search(r"evaluate: +\d+%.*/3 \[\d\d:\d\d<", written)  # and the time that is left
    assert untimed(screen(written)) == [
        "1 evaluate the base on digits ...",
        "drawn",
        "  0 s",
        "dense: top1 0.9",
        "2 prune ...",
        "  0 s",
        "macs 12",
        "",
    ]


def test_elsewhere_there_is_no_bar_and_the_time_ends_the_line_of_its_step(capsys):
    work()

    assert untimed(capsys.readouterr().err.splitlines()) == [
        "1 evaluate the base on digits ...",
        "drawn",
        "  0 s",
        "dense: top1 0.9",
        "2 prune ...  0 s",
        "macs 12",
    ]


def test_an_error_stands_on_a_line_of_its_own(capsys):
    with saying() as tell:
        tell("1 load the base")
        say("error: no such base", err=True)

    assert capsys.readouterr().err == "1 load the base ...\nerror: no such base\n"
