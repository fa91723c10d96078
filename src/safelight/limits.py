"""How large a picture may be, and what is said of one that cannot be used; how far off a caption may be. Imports nothing, so that a
header can be read without Pillow."""
from __future__ import annotations

MAX_PIXELS = 89_478_485  # Pillow's own line between a large picture and a decompression bomb
FAR = 6.0  # median deviations from what captions help; one beyond is doubtful


class Unreadable(ValueError):
    """The file is no picture, or a damaged one, or has more than MAX_PIXELS pixels; the message says which."""
