"""Lines of tables in Markdown."""

from collections.abc import Sequence


def head(titles: Sequence[str]) -> list[str]:
    """The first two lines of a table."""
    return [line(titles), "|---" * len(titles) + "|"]


def line(cells: Sequence[str]) -> str:
    """A line of a table."""
    return f"| {' | '.join(cells)} |"
