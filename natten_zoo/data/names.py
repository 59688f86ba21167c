"""Names of classes as people mean them: one spelling, and which names of two lists are the same."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence

# What is in a name without being seen: byte order marks, joints, marks of direction.
_UNSEEN = dict.fromkeys(
    map(ord, "\u00ad\u200b\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2060\ufeff")
)
_JOINERS = "\u200c\u200d"  # which mean something between letters only
_NUMBER = re.compile(r"\s*\d+\s*", re.ASCII)


def plain(name: str) -> str:
    r"""A name in one spelling: composed, without outer spaces and what cannot be seen.

    macOS hands out decomposed file names, spreadsheets keep spaces, editors leave marks.

    Examples:
        >>> plain(" cafe\u0301 \ufeff") == "caf\u00e9"
        True
    """
    text = unicodedata.normalize("NFC", name).translate(_UNSEEN)
    return " ".join(text.split()).strip(_JOINERS) or name


def loose(name: str) -> str:
    """A name without capitals, and with single spaces for whatever is no letter or digit.

    Examples:
        >>> loose("T-shirt/top"), loose("T_Shirt top")
        ('t shirt top', 't shirt top')
    """
    text = unicodedata.normalize("NFKC", plain(name)).casefold().replace("_", " ")
    return " ".join(re.findall(r"[\w+#]+", text)) or plain(name)


def in_order(names: set[str]) -> list[str]:
    """Sorted names; numbers by their size, so that they are what they say.

    Examples:
        >>> in_order({"10", "9", "0"})
        ['0', '9', '10']
    """
    if all(map(is_number, names)):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)


def is_number(name: str) -> bool:
    """Whether a name is a whole number, zeros before it or not."""
    return _NUMBER.fullmatch(plain(name)) is not None


def find(names: Sequence[str], known: Sequence[str]) -> list[int | None]:
    """The place of each name among known ones, `None` of those that are not known.

    A name is found as it is written, else by [`plain`][], else, if only one name on each side
    reads so, as a number, by [`loose`][], and so without a number before it.

    Examples:
        >>> find(["T-shirt_top", "bag ", "001.Sandal", "Hat"], ["Bag", "Sandal", "T-shirt/top"])
        [2, 0, 1, None]
    """
    places: list[int | None] = [None] * len(names)
    for reading, only in _READINGS:
        theirs, ours = [reading(name) for name in known], [reading(name) for name in names]
        counts, mine = Counter(theirs), Counter(ours)
        index = {key: at for at, key in enumerate(theirs) if not only or counts[key] == 1}
        places = [
            index.get(key) if place is None and not (only and mine[key] > 1) else place
            for place, key in zip(places, ours, strict=True)
        ]
    return places


def _as_number(name: str) -> str:
    return str(int(plain(name))) if is_number(name) else name


def _unnumbered(name: str) -> str:
    return loose(re.sub(r"^\s*\d+[\s._-]+(?=\S)", "", plain(name)))


# Each with whether no two names of a list may read the same.
_READINGS: tuple[tuple[Callable[[str], str], bool], ...] = (
    (str, False),
    (plain, False),
    (_as_number, True),
    (loose, True),
    (_unnumbered, True),
)
