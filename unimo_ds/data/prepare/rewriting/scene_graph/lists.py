"""Lists of words, written as plain text."""


def words(text: str) -> frozenset[str]:
    """The words of a text that white space parts."""
    return frozenset(text.split())


def rows(text: str) -> tuple[frozenset[str], ...]:
    """Of each line the phrases that commas part."""
    return tuple(frozenset(one.strip() for one in line.split(",")) for line in text.strip().splitlines())


def phrases(text: str) -> tuple[tuple[str, ...], ...]:
    """Phrases that commas part, each as its words; longer ones first."""
    return tuple(sorted((tuple(phrase.split()) for phrase in text.split(",")), key=len, reverse=True))
