"""Captions: what counts as one, and how they are cleaned."""

import unicodedata


def cleaned(text: str) -> str:
    """NFC, no control characters, single spaces, no space at the ends. Emoji and any script stay."""
    normal = unicodedata.normalize("NFC", text)
    kept = "".join(" " if c.isspace() else c for c in normal if c.isspace() or unicodedata.category(c) not in ("Cc", "Cs"))
    return " ".join(kept.split())


def fault(caption: str, max_characters: int) -> tuple[str, str] | None:
    """(reason, detail) where a cleaned caption is not usable, else None."""
    if not caption:
        return "no caption", "there is no text beside the picture and none in the metadata"
    if len(caption) > max_characters:
        return "caption too long", f"{len(caption)} characters, at most {max_characters} are taken"
    return None
