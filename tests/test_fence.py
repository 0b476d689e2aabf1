"""A file that does not answer holds nobody up."""

from __future__ import annotations

import os
import time

from wsi_ips.fence import survey


def test_answers_come_in_order():
    assert survey([3, 1, 2], lambda n: n * 10, otherwise=-1) == [30, 10, 20]
    assert survey([], lambda n: n, otherwise=0) == []


def test_one_that_hangs_is_given_up_and_the_others_are_not(tmp_path):
    os.mkfifo(tmp_path / "hangs")
    for name in "ab":
        (tmp_path / name).write_text(name)
    began = time.monotonic()
    found = survey(
        [tmp_path / n for n in ("hangs", "a", "b")], lambda p: p.read_text(), otherwise="?", patience_s=0.5, threads=2
    )
    assert found == ["?", "a", "b"]
    assert time.monotonic() - began < 20
    (tmp_path / "hangs").write_text("let it go")
