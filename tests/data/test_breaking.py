"""What a demanding user met in `rnope data`."""

from pathlib import Path

import pytest

from rnope.data.build import BuildRequest
from rnope.errors import ConfigError


def test_a_tokenizer_too_many_is_named_as_it_was_given():
    with pytest.raises(ConfigError, match="tokenizer = 'web': give either") as error:
        BuildRequest(inputs=("x",), tokenizer=Path("web"), vocab_size=500)
    assert "Path" not in str(error.value)
