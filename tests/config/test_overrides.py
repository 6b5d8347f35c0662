from __future__ import annotations

from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given, settings
from hypothesis import strategies as st

from mnistexp.config.overrides import override_text

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.text(st.characters(exclude_categories=["Cs", "Cc"])),
    st.text("ab'\"\\${}[](),:= ~+#/%", max_size=8),
    st.sampled_from(
        ["1e5", "null", "a,b", "${x}", "012", "on", "3:30", "True", "nan", "", " a ", "C:\\a\\", "\\'", "-inf"]
    ),
)


@settings(deadline=None)
@given(st.one_of(scalars, st.lists(st.one_of(scalars, st.lists(scalars, max_size=2)), max_size=3)))
def test_an_overrides_text_reads_back_exactly(value: Any) -> None:
    """Hydra's parser returns every value exactly: floats to the last bit, and texts that look like numbers."""
    override = OverridesParser.create().parse_override(override_text("model.key", value))

    assert override.key_or_group == "model.key"
    assert repr(override.value()) == repr(value)
    assert not override.is_sweep_override()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.1, "k=0.1"),
        (1e-05, "k=1e-05"),
        ("relu", "k=relu"),
        ([300, 100], "k=[300,100]"),
        ("1e5", "k='1e5'"),
        (None, "k=null"),
    ],
)
def test_an_overrides_text_is_short(value: object, text: str) -> None:
    """Only what needs quotes has them."""
    assert override_text("k", value) == text
