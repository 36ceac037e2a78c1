"""Pictures on their way in and out: base64 and data URLs, sizes from headers, and those kept to be fetched."""

import base64
import binascii
import io
import re
import secrets
import threading
from collections import OrderedDict

from PIL import Image

from dovetail.edges.app.faults import Fault

MAGIC = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF8", b"RIFF", b"BM")
FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP")
KEPT = 64
DATA_URL = re.compile(r"data:image/[a-zA-Z0-9.+-]+;base64,")
TURNED = (5, 6, 7, 8)  # values of the EXIF orientation that lie on their side


def is_picture(data: bytes) -> bool:
    """Whether bytes begin as a picture does."""
    return data.startswith(MAGIC)


def decoded(text: str, param: str) -> bytes:
    """The bytes of a picture in base64, bare or as a data URL. Raises Fault; nothing is ever fetched from a URL."""
    if re.match(r"\s*(https?|ftp|file):", text, re.IGNORECASE):
        raise Fault(400, f"{param}: pictures are not fetched from URLs, send base64 or a data URL", param, "url_not_allowed")
    head = DATA_URL.match(text)
    try:
        data = base64.b64decode("".join(text[head.end() if head else 0 :].split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise Fault(400, f"{param} is not a picture in base64", param, "invalid_image") from error
    return checked(data, param)


def checked(data: bytes, param: str) -> bytes:
    """The bytes themselves, which begin as a picture's do. Raises Fault."""
    if not is_picture(data):
        raise Fault(400, f"{param} is not a picture (PNG, JPEG, WebP, GIF or BMP)", param, "invalid_image")
    return data


def encoded(png: bytes) -> str:
    """Base64 without a prefix."""
    return base64.b64encode(png).decode()


def size(data: bytes, param: str) -> tuple[int, int]:
    """Width and height of an upright picture, from its header. Raises Fault where it has none."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            width, height = picture.size
            turned = picture.getexif().get(0x0112) in TURNED
    except Exception as error:  # each format has errors of its own, and none of them is ours
        raise Fault(400, f"{param} is not a picture that can be read", param, "invalid_image") from error
    return (height, width) if turned else (width, height)


def texts(data: bytes, param: str) -> dict[str, str]:
    """The text chunks of a PNG. Raises Fault where it is no picture."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            return {k: str(v) for k, v in getattr(picture, "text", picture.info).items() if isinstance(v, str)}
    except Exception as error:
        raise Fault(400, f"{param} is not a picture that can be read", param, "invalid_image") from error


class Kept:
    """The latest pictures, each under a name that nobody can guess."""

    def __init__(self) -> None:
        self._pictures: OrderedDict[str, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def keep(self, png: bytes) -> str:
        """Its name; the oldest makes room."""
        name = f"{secrets.token_hex(16)}.png"
        with self._lock:
            self._pictures[name] = png
            while len(self._pictures) > KEPT:
                self._pictures.popitem(last=False)
        return name

    def find(self, name: str) -> bytes | None:
        """The picture, while it is kept."""
        return self._pictures.get(name)
