"""The model that most tests of sampling use."""

import pytest
from helpers.models import make_transformer


@pytest.fixture(scope="module")
def model():
    """A small random transformer and its stream."""
    return make_transformer("rope")
