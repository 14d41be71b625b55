"""What a page is made of, as a browser would see it."""

from __future__ import annotations

from html.parser import HTMLParser


class Tags(HTMLParser):
    """Names and attributes of every element, and the text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def count(self, kind: str) -> int:
        """Elements whose class is this one alone."""
        return sum(attributes.get("class") == kind for _, attributes in self.tags)

    def outside(self) -> list[str]:
        """What it asks for that is not in it."""
        asked = (attributes.get(name) for _, attributes in self.tags for name in ("src", "href") if name in attributes)
        return [value or "" for value in asked if not (value or "").startswith(("data:", "#"))]
