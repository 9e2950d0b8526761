"""What the console's first page says, in words."""

import html
import re


class Board:
    """The board that the page is made of."""

    def __init__(self, markup: str) -> None:
        self._markup = markup

    def __str__(self) -> str:
        return _words(self._markup)

    def tile(self, name: str) -> str:
        """Returns what a tile says."""
        return self._section(rf"<h2>{name}</h2>(.*?)</(?:div|a)>")

    def process(self, name: str) -> str:
        """Returns the row of a process, its cells apart by `|`."""
        return self._section(rf'<th scope="row">{name}</th>(.*?)</tr>')

    def funnel(self, label: str) -> str:
        """Returns how many orders or messages came to a step."""
        return self._section(rf'<span class="number">([^<]*)(?:<span.*?</span>)?</span> {label}<')

    def section(self, name: str) -> str:
        """Returns the section under a heading."""
        return self._section(rf"<h2[^>]*>{name}</h2>(.*?)</section>")

    def _section(self, pattern: str) -> str:
        found = re.search(pattern, self._markup, re.DOTALL)
        assert found is not None, f"{pattern} is not on the board"
        return _words(found[1])


def _words(markup: str) -> str:
    text = html.unescape(re.sub(r"<[^>]+>", " ", markup.replace("</td>", " | ")))
    return " ".join(text.split())
