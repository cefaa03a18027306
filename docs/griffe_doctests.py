"""An extension of griffe for `make docs`: doctests in docstrings become fenced code, which Markdown would misread."""

import re
from typing import Any

import griffe

DOCTEST = re.compile(r"^( *)>>> .*(?:\n\1(?! *$).*)*", flags=re.MULTILINE)
"""From a prompt to the next empty line, or to the first line that is indented less."""


class FenceDoctests(griffe.Extension):
    """Puts every doctest between fences."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite the docstring of `obj`."""
        if obj.docstring is not None:
            obj.docstring.value = DOCTEST.sub(fence, obj.docstring.value)


def fence(match: re.Match[str]) -> str:
    """The doctest with a fence above and below."""
    indent = match[1]
    return f"{indent}```pycon\n{match[0]}\n{indent}```"
