"""Word lists from plain text."""


def words(text: str) -> frozenset[str]:
    """Words separated by white space."""
    return frozenset(text.split())


def rows(text: str) -> tuple[frozenset[str], ...]:
    """For each line, its phrases, separated by commas."""
    return tuple(frozenset(one.strip() for one in line.split(",")) for line in text.strip().splitlines())


def phrases(text: str) -> tuple[tuple[str, ...], ...]:
    """Phrases separated by commas, each as its words; longer ones first."""
    return tuple(sorted((tuple(phrase.split()) for phrase in text.split(",")), key=len, reverse=True))
