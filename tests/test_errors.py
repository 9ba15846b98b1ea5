import pytest

from tltools.errors import first_line


@pytest.mark.parametrize(
    ("error", "line"),
    [
        pytest.param(ValueError("no\nat all"), "no", id="lines"),
        pytest.param(ValueError("\n  no  \nat all"), "no", id="space"),
        pytest.param(ValueError(), "ValueError", id="nothing"),
        pytest.param(OSError(" \n "), "OSError", id="blank"),
        pytest.param("said\nmore", "said", id="text"),
    ],
)
def test_the_first_line_of_an_error_is_its_message_or_its_type(error, line):
    assert first_line(error) == line
