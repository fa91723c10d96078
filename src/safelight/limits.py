"""How large a picture may be, and what is said of one that cannot be used. Imports nothing, so that a header can be read without Pillow."""
from __future__ import annotations

MAX_PIXELS = 89_478_485  # Pillow's own line between a large picture and a decompression bomb


class Unreadable(ValueError):
    """The file is no picture, or a damaged one, or has more than MAX_PIXELS pixels; the message says which."""
