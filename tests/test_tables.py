"""How results are printed: tables of any length, and JSON that every reader takes."""

import json

from zoo.cli import tables


def test_a_long_table_has_the_lines_of_a_short_one(capsys, monkeypatch):
    head, rows = ["name", "macs", "note"], [["a", "1.5G", ""], ["long_name", "-", "\x1b[31m模型"], ["b", "300M", "x y"]]
    tables.table(head, rows)
    short = capsys.readouterr().out
    monkeypatch.setattr(tables, "LONG", 2)
    tables.table(head, rows)

    assert [line.strip() for line in short.splitlines() if line.strip()] == [
        line.strip() for line in capsys.readouterr().out.splitlines()
    ]
    assert r"\x1b[31m模型" in short


def test_json_has_null_for_what_is_no_number(capsys):
    tables.say_json({"a": [float("nan"), -float("inf"), 1.5, "é\x7f"], "b": {}})
    out = capsys.readouterr().out

    assert json.loads(out) == {"a": [None, None, 1.5, "é\x7f"], "b": {}}
    assert r'"\u00e9\u007f"' in out
