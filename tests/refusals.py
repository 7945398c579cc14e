"""What a test holds of a mistake's answer: the type of the error and the values it names, not the words around them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from jaxmlp.errors import ConfigError


def assert_names(message: str, *values: object) -> None:
    """The message has each value in it, not as a part of a longer word or number."""
    for value in values:
        assert re.search(rf"(?<!\w){re.escape(str(value))}(?!\w)", message), f"{value} is not named in: {message}"


@contextmanager
def refused[E: Exception](error: type[E] | tuple[type[E], ...], *values: object) -> Iterator[pytest.ExceptionInfo[E]]:
    """The block raises `error`, whose message names each value. The first value of a ConfigError is its field."""
    with pytest.raises(error) as raised:
        yield raised
    if isinstance(raised.value, ConfigError):
        assert raised.value.field == values[0], raised.value.field
    assert_names(str(raised.value), *values)
