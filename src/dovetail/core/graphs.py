"""A network's graph without its weights: taken from one model, and filled with those of another that has the same shape.

OpenVINO writes a network as an XML text and a file of constants which that text points into by offset and size. To convert a
U-Net takes seconds; to put weights where the constants were takes none.
"""

import base64
import gzip
import hashlib
import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dovetail.errors import ModelError


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """What is left of a network when its weights are taken out."""

    shape: Mapping[str, Any]  # what a model must be like for its weights to fit: plain data
    xml: str
    size: int  # of the constants, bytes
    places: Mapping[str, list[int]]  # of each weight, by its name: offsets
    rest: Mapping[int, bytes]  # the other constants, by their offsets


def emptied(shape: Mapping[str, Any], xml: str, constants: bytes, weights: Mapping[str, bytes | memoryview]) -> Graph:
    """The graph of a network whose weights, their bytes by name, all differ. Raises ModelError where one is not in it."""
    names = {hashlib.sha256(data).digest(): name for name, data in weights.items()}
    places: dict[str, list[int]] = {name: [] for name in weights}
    rest: dict[int, bytes] = {}
    for node in ElementTree.fromstring(xml).iter("data"):
        if "offset" not in node.attrib:
            continue
        offset, size = int(node.attrib["offset"]), int(node.attrib["size"])
        data = constants[offset : offset + size]
        name = names.get(hashlib.sha256(data).digest())
        if name is None:
            rest[offset] = data
        elif offset not in places[name]:
            places[name].append(offset)
    lost = [name for name, where in places.items() if not where]
    if lost or len(names) < len(weights):
        raise ModelError(
            f"the graph does not have {(lost or ['weights that differ'])[0]} as it is", do="convert the model itself"
        )
    return Graph(shape=shape, xml=xml, size=len(constants), places=places, rest=rest)


def filled(graph: Graph, weights: Mapping[str, bytes | memoryview]) -> bytearray:
    """The constants of that network with these weights. Raises ModelError where they are others than it has places for."""
    if weights.keys() != graph.places.keys():
        raise ModelError("these weights are not those of the graph", do="convert the model itself")
    data = bytearray(graph.size)
    parts = [*graph.rest.items(), *((offset, weights[name]) for name, where in graph.places.items() for offset in where)]
    for offset, part in parts:
        data[offset : offset + len(part)] = part
    if len(data) != graph.size:
        raise ModelError("these weights are larger than the graph has room for", do="convert the model itself")
    return data


def packed(graph: Graph) -> bytes:
    """As the bytes of a file: gzip of JSON, the same for the same graph."""
    rest = {str(offset): base64.b64encode(data).decode() for offset, data in graph.rest.items()}
    told = {"shape": dict(graph.shape), "xml": graph.xml, "size": graph.size, "places": dict(graph.places), "rest": rest}
    return gzip.compress(json.dumps(told, sort_keys=True).encode(), mtime=0)


def unpacked(data: bytes) -> Graph:
    """What `packed` wrote."""
    told = json.loads(gzip.decompress(data))
    rest = {int(offset): base64.b64decode(text) for offset, text in told["rest"].items()}
    return Graph(shape=told["shape"], xml=told["xml"], size=told["size"], places=told["places"], rest=rest)
