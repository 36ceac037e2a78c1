"""A graph without its weights, and with others."""

import pytest

from dovetail.core import graphs
from dovetail.errors import ModelError

XML = (
    '<net><layer><data offset="0" size="4"/></layer><layer><data offset="4" size="2"/></layer><data offset="8" size="4"/></net>'
)
CONSTANTS = b"aaaaxy\0\0bbbb"
WEIGHTS = {"first": b"aaaa", "second": b"bbbb"}


def a_graph() -> graphs.Graph:
    return graphs.emptied({"layers": 2}, XML, CONSTANTS, WEIGHTS)


def test_its_own_weights_make_it_whole_again_and_others_take_their_places() -> None:
    graph = a_graph()
    assert graphs.filled(graph, WEIGHTS) == CONSTANTS
    assert graphs.filled(graph, {"first": b"cccc", "second": b"dddd"}) == b"ccccxy\0\0dddd"


def test_written_and_read_it_is_the_same_and_the_same_bytes() -> None:
    packed = graphs.packed(a_graph())
    assert graphs.unpacked(packed) == a_graph() and graphs.packed(graphs.unpacked(packed)) == packed


@pytest.mark.parametrize("weights", [{**WEIGHTS, "third": b"cccc"}, {**WEIGHTS, "third": b"aaaa"}], ids=["lost", "alike"])
def test_weights_that_cannot_be_told_apart_or_are_not_there_make_no_graph(weights: dict[str, bytes]) -> None:
    with pytest.raises(ModelError, match="as it is"):
        graphs.emptied({}, XML, CONSTANTS, weights)


@pytest.mark.parametrize("weights", [{"first": b"aaaa"}, {**WEIGHTS, "more": b"a"}, {**WEIGHTS, "second": b"b" * 9}])
def test_other_weights_than_it_has_places_for_are_refused(weights: dict[str, bytes]) -> None:
    with pytest.raises(ModelError, match="these weights"):
        graphs.filled(a_graph(), weights)
