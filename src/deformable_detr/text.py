"""Text that comes from files, made safe to show."""

from __future__ import annotations

import unicodedata

# Marks that reorder the text after them, so that a name can pretend to be another one.
_REORDERING = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_HIDDEN = frozenset({"Cc", "Cs", "Zl", "Zp"})  # control characters, surrogates, line and paragraph separators


def visible(text: str, keep: str = "") -> str:
    r"""The text with everything that a terminal could obey shown as an escape: ESC as \x1b.

    Names in data sets and models are other people's: control characters could clear the screen or change the
    title. Bytes of a file name that are not UTF-8 are shown as they are: \xe4. `keep`: control characters
    that the text may have, such as a newline.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(letter if letter in keep or _is_harmless(letter) else _escape(letter) for letter in text)


def _is_harmless(letter: str) -> bool:
    return unicodedata.category(letter) not in _HIDDEN and letter not in _REORDERING


def _escape(letter: str) -> str:
    code = ord(letter)
    if 0xDC80 <= code <= 0xDCFF:  # how Python spells a byte of a file name that is not UTF-8
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
