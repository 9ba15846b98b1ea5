"""Text as people read it: one normal form, no invisible characters, any usual encoding."""

import codecs
import re
import unicodedata
from collections.abc import Iterable, Iterator

_BLANKS = re.compile("[ \t\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000]+")
_INVISIBLE = re.compile(
    "[\u00ad\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff]"
)
"""Characters without a glyph. The joiners U+200C and U+200D are none: words and emoji need them."""
_UNSEEN_IN_WORDS = re.compile("[\u200c\u200d\ufe0e\ufe0f]")
_SEPARATORS = re.compile(r"[\s_-]+")
_UTF16 = ((codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))


def clean(text: str) -> str:
    """Return text in NFC, without invisible characters, with single blanks, and stripped."""
    if not text.isascii():
        text = _INVISIBLE.sub("", unicodedata.normalize("NFC", text))
    return _BLANKS.sub(" ", text).strip()


def look_key(text: str) -> str:
    """Return a key that two texts share if a reader cannot tell them apart."""
    return _UNSEEN_IN_WORDS.sub("", clean(text))


def word_key(text: str) -> str:
    """Return a key that texts share if they differ only in case, blanks, `_`, `-` or width."""
    folded = unicodedata.normalize("NFKC", look_key(text)).casefold()
    return _SEPARATORS.sub(" ", folded).strip()


def encoding_of(start: bytes) -> str:
    """Return the encoding of a text file from its first bytes: UTF-8 unless it shows UTF-16.

    PowerShell and Excel write UTF-16 with a byte order mark. Without one, the zero bytes of its
    letters show it.
    """
    for mark, name in _UTF16:
        if start.startswith(mark):
            return name
    if start[1:2] == b"\0":
        return "utf-16-le"
    return "utf-16-be" if start[:1] == b"\0" else "utf-8"


def decoded_lines(chunks: Iterable[bytes]) -> Iterator[str]:
    r"""Decode the lines of a list in UTF-8 or UTF-16, as they arrive.

    Args:
        chunks: The bytes, split after each `\n` byte.

    Returns:
        An iterator over the lines without their ends and without a byte order mark. Bytes that are
        not UTF-8 are preserved as surrogates, as in file names.
    """
    chunks = iter(chunks)
    first = next(chunks, b"")
    encoding = encoding_of(first)
    if encoding == "utf-8":
        yield _utf8_line(first.removeprefix(codecs.BOM_UTF8))
        yield from map(_utf8_line, chunks)
        return
    decoder = codecs.getincrementaldecoder(encoding)("replace")
    rest = decoder.decode(first).removeprefix("\ufeff")
    for chunk in chunks:
        *lines, rest = (rest + decoder.decode(chunk)).split("\n")
        yield from (line.rstrip("\r") for line in lines)
    rest += decoder.decode(b"", final=True)
    yield from (line.rstrip("\r") for line in rest.split("\n"))


def _utf8_line(line: bytes) -> str:
    return line.rstrip(b"\r\n").decode("utf-8", "surrogateescape")
