"""Many bad inputs: each is accepted, or refused with a clear error, within time and memory.

The examples are the same on every machine. `MNISTEXP_FUZZ=20000 make test ARGS=tests/config/test_fuzz.py` tries that
many random examples of each kind.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mnistexp.config.compose import compose, flatten, parse_request, template
from mnistexp.config.option_files import config_groups
from mnistexp.config.overrides import override_text
from mnistexp.errors import ConfigError, MnistexpError
from mnistexp.search.distributions import parse_distribution
from mnistexp.search.space import build

pytestmark = pytest.mark.timeout(900)  # what hangs fails

HUNT = int(os.environ.get("MNISTEXP_FUZZ", "0"))
MEMORY = 500_000_000  # bytes that bad input may cost at any moment


def faults(call: Callable[[], object]) -> tuple[str, ...]:
    """What a call is refused with, each fault in one printable line; none if it goes well. Anything else is raised."""
    try:
        call()
    except MnistexpError as error:
        found = error.faults if isinstance(error, ConfigError) else (str(error),)
    else:
        return ()
    assert found
    for line in found:
        assert line.strip(), found
        assert line.isprintable(), line
        assert len(line) < 3000
    return found


def play(examples: int, strategy: st.SearchStrategy[Any], use: Callable[[Any], object]) -> None:
    """Use each example: some are accepted and some are refused. The examples are fixed, unless MNISTEXP_FUZZ is set."""
    refused: list[bool] = []

    @settings(
        deadline=None,
        derandomize=not HUNT,
        database=None,
        max_examples=HUNT or examples,
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def one(example: Any) -> None:
        refused.append(bool(faults(lambda: use(example))))

    one()

    assert len(refused) >= 0.75 * examples
    assert set(refused) == {True, False}


def _status(key: str) -> int:
    """A size in /proc/self/status, in bytes."""
    found = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


@pytest.fixture(autouse=True)
def within_memory() -> Iterator[None]:
    """No test here makes the process grow by half a gigabyte, not for a moment (where Linux can tell)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")  # sets the peak back to what is in use
    except OSError:
        yield
        return
    before = _status("VmRSS")
    yield
    assert _status("VmHWM") - before < MEMORY


# ------------------------------------------------------------------------------------------ the config's grammar


def words(text: str) -> list[str]:
    """A text's words, to be drawn from."""
    return text.split()


KEYS = [*flatten(template(parse_request(())).plain), *config_groups()]
FUNCTIONS = words("choice interval range tag sort shuffle glob int float str bool json_str extend_list nope")
BITS = words(
    r"""1 0 -1 0.1 1e-3 1e400 -1e400 inf nan null true relu adam sgd mlp log ??? .. ../x /etc/passwd * _target_
    ${seed} ${oc.env:HOME} ${study.storage} ${ } ' " \ \' [ ] { } ( ) , : = == @ # ~ + ++ hydra 012 3:30 a/b a.b"""
)

atoms = st.one_of(
    st.sampled_from([*BITS, "", " ", "\0", "\n", "\x1b[31m", "\u202e", "\udcff", "9" * 400, "9" * 4050, "a" * 5000]),
    st.integers().map(str),
    st.floats().map(repr),
    st.text(max_size=12),
    st.sampled_from(KEYS),
)


def _extended(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    several = st.lists(inner, max_size=4)
    return st.one_of(
        several.map(lambda parts: f"[{','.join(parts)}]"),
        st.tuples(st.sampled_from(FUNCTIONS), several).map(lambda call: f"{call[0]}({','.join(call[1])})"),
        st.tuples(inner, inner).map(lambda pair: f"{{{pair[0]}:{pair[1]}}}"),
        st.tuples(inner, inner).map("".join),
        inner.map(lambda text: f"'{text}'"),
        st.tuples(inner, st.sampled_from([50, 1000])).map(lambda pair: pair[0][:1] * pair[1]),
    )


values = st.recursive(atoms, _extended, max_leaves=8)
keys = st.one_of(st.sampled_from(KEYS), st.sampled_from(KEYS).map("search.{}".format), atoms)
marks = st.sampled_from(["", "", "", "", "", "+", "++", "~"])
signs = st.sampled_from(["=", "=", "=", "=", "=", "", "==", "@x=", ".x="])
absurd = st.tuples(marks, keys, signs, values).map("".join)
DEFAULTS = flatten(template(parse_request(["data=digits"])).plain)
allowed = st.sampled_from([override_text(key, DEFAULTS[key]) for key in DEFAULTS if key.startswith("trainer.")])
overrides = st.one_of(absurd, absurd, absurd, allowed)


SEARCHED = "search.seed=choice(1,2)"
"""So that there is something to search, and the fault is another's."""


def use(typed: list[str], config_dir: Path | None = None) -> None:
    """All that a sweep does with its command line before it trains."""
    request = parse_request(["data=digits", "search=none", *typed], config_dir)
    compose(request)
    build(request)


def test_any_override_is_accepted_or_refused() -> None:
    """Sixty command lines of real and absurd keys and values."""
    play(60, st.lists(overrides, min_size=1, max_size=2), lambda typed: use([SEARCHED, *typed]))


def test_any_distribution_is_accepted_or_refused() -> None:
    """Three hundred texts for one key. A distribution has a description and boundary values."""
    calls = st.tuples(st.sampled_from(FUNCTIONS), st.lists(atoms, max_size=4))

    def read(text: str) -> None:
        distribution = parse_distribution("model.dropout", text)
        assert str(distribution)
        assert len(list(distribution.boundary_values())) >= 1

    play(300, st.one_of(values, calls.map(lambda call: f"{call[0]}({','.join(call[1])})")), read)


def nested(depth: int, left: str = "[", right: str = "]") -> str:
    """Brackets in brackets."""
    return left * depth + right * depth


WORST = [
    f"trainer.epochs={'[' * 10_000}",
    f"trainer.epochs={nested(2000)}",
    f"trainer.epochs={nested(1000, '{a:', '}')}",
    f"trainer.epochs={nested(90)}",
    f"trainer.epochs={'9' * 100_000}",
    f"trainer.epochs={'9' * 4300}",
    f"trainer.epochs=interval(1,{'9' * 400})",
    f"trainer.epochs=choice({','.join(map(str, range(2000)))})",
    "trainer.epochs=range(0,1e12)",
    "trainer.epochs=range(0,1000000000000)",
    "trainer.max_steps=interval(1,100000000000000000000)",
    "optimizer.learning_rate=range(0,1,1e-300)",
    "optimizer.learning_rate=1e400",
    "model.hidden_units=[" + "1," * 5000 + "1]",
    "optimizer=../../../etc/passwd",
    "experiments=/etc/passwd",
    "trainer.epochs={_target_:os.system}",
    "search._target_=choice(1,2)",
    "trainer.epochs=${trainer.epochs}",
    f"study.storage='{nested(200, '${a:', '}')}'",
    f"study.storage='{'${' * 1900}'",
    "study.storage=${study.storage}",
    "data.root='a\0b'",
    "study.name='\x1b[31m\n'",
    "data.files.train_images.name=..",
    f"{'a' * 3000}=1",
    f"{'a' * 100_000}=1",
    f"{'.'.join('a' * 1000)}=1",
    ":" * 60_000 + "@",
    "",
    "=",
]


@pytest.mark.parametrize("word", WORST, ids=range(len(WORST)))
def test_the_worst_overrides_are_refused(word: str) -> None:
    """What was made to break a parser, an interpolation or a path is refused, in one line."""
    assert faults(lambda: use([SEARCHED, word]))


# ---------------------------------------------------------------------------------------------- option files

numbers = itertools.count()


def option(folder: Path, content: bytes) -> None:
    """Use a file that may set anything, under another name each time: what was composed is kept by its name."""
    name = f"mine{next(numbers)}"
    path = folder / "experiments" / "my" / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    try:
        use([f"experiments=my/{name}", "search.trainer.epochs=choice(1,2)"], folder)
    finally:
        path.unlink()


@pytest.mark.parametrize("search", ["5", "[1]", "{seed: 5}", "{1: 2}", "{_target_: os.system}"])
def test_a_search_of_the_wrong_shape_is_refused(search: str, tmp_path: Path) -> None:
    """What an option file puts in place of the search is judged as what a user types."""
    with pytest.raises(ConfigError, match=r"search|Cannot merge DictConfig with ListConfig"):
        option(tmp_path, f"# @package _global_\nsearch: {search}\n".encode())


BOMBS = {
    "aliases": "a: &a [x,x,x,x,x,x,x,x,x,x]\n"
    + "".join(f"{c}: &{c} [{','.join(['*' + p] * 10)}]\n" for p, c in zip("abcdefghi", "bcdefghij")),
    "deep-lists": "a: " + nested(30_000),
    "deep-maps": "a: " + nested(15_000, "{a: ", "}"),
    "a-long-number": "learning_rate: " + "9" * 60_000,
    "too-long": "#" * 70_000,
    "interpolations": f"learning_rate: '{nested(3000, '${a:', '}')}'\n",
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_yaml_bombs_are_refused(bomb: str, tmp_path: Path) -> None:
    """A small file that stands for billions of values, or is nested past any stack, is refused unexpanded."""
    assert faults(lambda: option(tmp_path, BOMBS[bomb].encode()))
