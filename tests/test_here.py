"""What a process keeps for its tasks."""

from __future__ import annotations

from curator.here import keep, keep_one


class Thing:
    """Knows whether it was closed."""

    closed = False

    def close(self):
        self.closed = True


def test_of_what_there_is_room_for_once_the_other_goes_before_the_next_is_made():
    """Coordinates take a quarter of a GPU: those of an earlier search must not lie there too."""
    first = keep_one("room", 1, Thing)
    other = keep(("another", 1), Thing)
    assert keep_one("room", 1, Thing) is first
    gone_before = []
    second = keep_one("room", 2, lambda: gone_before.append(first.closed) or Thing())
    assert gone_before == [True]
    assert keep_one("room", 2, Thing) is second
    assert not other.closed
