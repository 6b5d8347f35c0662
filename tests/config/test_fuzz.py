"""Hundreds of bad inputs: each is accepted, or refused with a clear error, within time and memory.

The examples are the same on every machine. `MNISTEXP_FUZZ=20000 make test ARGS=tests/config/test_fuzz.py` tries that
many random examples of each kind.
"""

from __future__ import annotations

import gzip
import itertools
import json
import os
import re
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mnistexp.config.compose import compose, flatten, parse_request, template
from mnistexp.config.option_files import config_groups
from mnistexp.config.overrides import override_text
from mnistexp.config.schema import NpzData
from mnistexp.data import dataset
from mnistexp.data.mnist import parse
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
    """Two hundred command lines of real and absurd keys and values."""
    play(200, st.lists(overrides, min_size=1, max_size=2), lambda typed: use([SEARCHED, *typed]))


def test_any_distribution_is_accepted_or_refused() -> None:
    """Eight hundred texts for one key. A distribution has a description and boundary values."""
    calls = st.tuples(st.sampled_from(FUNCTIONS), st.lists(atoms, max_size=4))

    def read(text: str) -> None:
        distribution = parse_distribution("model.dropout", text)
        assert str(distribution)
        assert len(list(distribution.boundary_values())) >= 1

    play(800, st.one_of(values, calls.map(lambda call: f"{call[0]}({','.join(call[1])})")), read)


def nested(depth: int, left: str = "[", right: str = "]") -> str:
    """Brackets in brackets."""
    return left * depth + right * depth


WORST = [
    f"trainer.epochs={'[' * 10_000}",
    f"trainer.epochs={nested(10_000)}",
    f"trainer.epochs={nested(2000)}",
    f"trainer.epochs={nested(1000, '{a:', '}')}",
    f"trainer.epochs={nested(500, 'choice(', ')')}",
    f"trainer.epochs={nested(90)}",
    f"trainer.epochs={'9' * 100_000}",
    f"trainer.epochs={'9' * 4300}",
    f"trainer.epochs=interval(1,{'9' * 400})",
    f"trainer.epochs=choice({','.join(map(str, range(2000)))})",
    "trainer.epochs=range(0,1e12)",
    "trainer.epochs=range(0,1000000000000)",
    "trainer.epochs=range(nan,10)",
    "trainer.epochs=range(1,inf)",
    "trainer.epochs=range(1,10,nan)",
    "trainer.epochs=range(1,10,0)",
    "trainer.epochs=int(interval(1,inf))",
    "trainer.max_steps=interval(1,100000000000000000000)",
    "optimizer.learning_rate=interval(1e-400,1e400)",
    "optimizer.learning_rate=range(0,1,1e-300)",
    "optimizer.learning_rate=1e400",
    "model.hidden_units=[" + "1," * 5000 + "1]",
    "optimizer=../../../etc/passwd",
    "optimizer=choice(adam,../../x)",
    "experiments=/etc/passwd",
    "optimizer@model=adam",
    "hydra.run.dir=/tmp/x",
    "+hydra.callbacks.x._target_=os.mkdir",
    "trainer._target_=os.system",
    "trainer.epochs={_target_:os.system}",
    "search._target_=choice(1,2)",
    "search.=choice(1,2)",
    "trainer.epochs=${oc.env:HOME}",
    "trainer.epochs=${trainer.epochs}",
    f"study.storage='{nested(200, '${a:', '}')}'",
    f"study.storage='{'${' * 1900}'",
    "study.storage=${study.storage}",
    "study.storage='a\0b'",
    "data.root='a\0b'",
    "study.name='\x1b[31m\n'",
    "study.name=../x",
    "data.files.train_images.name=..",
    "data.mirrors=['file:///etc/passwd']",
    f"{'a' * 3000}=1",
    f"{'a' * 100_000}=1",
    f"{'.'.join('a' * 1000)}=1",
    ":" * 60_000 + "@",
    "",
    "=",
    "'",
]


@pytest.mark.parametrize("word", WORST, ids=range(len(WORST)))
def test_the_worst_overrides_are_refused(word: str) -> None:
    """What was made to break a parser, an interpolation or a path is refused, in one line."""
    assert faults(lambda: use([SEARCHED, word]))


BATCH = """
import contextlib, io, json, sys
from mnistexp.cli import main
answers = []
for words in json.load(sys.stdin):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(["train", "--cfg", "job", *words])
        except SystemExit as error:  # argparse's
            code = error.code
    answers.append((code, out.getvalue(), err.getvalue()))
json.dump(answers, sys.stdout)
"""


def test_the_worst_command_lines_end_with_a_message(tmp_path: Path) -> None:
    """The same as command lines, in a process of their own: exit code 2, `mnistexp:` and no traceback on stderr."""
    lines = [[word] for word in WORST if "search" not in word and not re.match(r"[\w.]+=(choice|interval|range)", word)]
    lines += [["--config-dir", str(tmp_path / "nowhere")], ["--config-dir", "/proc"], ["--nope"], ["-x=1"]]

    done = subprocess.run(
        [sys.executable, "-c", BATCH],
        input=json.dumps(lines),
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(dataset.__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )

    assert done.returncode == 0, done.stderr[-2000:]
    answers = json.loads(done.stdout)
    assert len(answers) == len(lines) >= 36
    for line, (code, out, err) in zip(lines, answers, strict=True):
        assert (code, out) == (2, ""), (line, err)
        assert "mnistexp" in err
        assert "Traceback" not in err


# ---------------------------------------------------------------------------------------------- option files

HEADERS = [*["# @package _global_\n"] * 4, "", "# @package hydra.callbacks.x\n", "# @package ..\n", "# @package\n"]
yaml_scalars = st.one_of(
    st.sampled_from(words("null true 1 0.1 1e400 .nan relu ??? ${seed} ${oc.env:HOME} ${ 012 3:30 2020-01-01 '' \"")),
    st.sampled_from(["!!python/object/apply:os.system [x]", "!!binary xx", "!x y", "&a b", "*a", "_target_", "- -"]),
    st.text(max_size=8),
)
yaml_keys = st.one_of(
    st.sampled_from(words("defaults _target_ name learning_rate momentum search hydra study optimizer <<")),
    st.sampled_from(["1", "null", "? [a]", '"a.b"', "", "~"]),
)
yaml_values = st.recursive(
    yaml_scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda parts: f"[{', '.join(parts)}]"),
        st.lists(st.tuples(yaml_keys, inner), max_size=3).map(
            lambda pairs: f"{{{', '.join(f'{key}: {value}' for key, value in pairs)}}}"
        ),
    ),
    max_leaves=5,
)
NODES = {
    node: sorted(plain)
    for node, plain in template(parse_request(["data=digits"])).plain.items()
    if isinstance(plain, dict)
}


def _node(node: str) -> st.SearchStrategy[str]:
    """One node of the config with a few of its settings, or anything in its place."""
    known = st.sampled_from([key for key in NODES[node] if re.fullmatch(r"\w+", key)] or ["seed", "trainer.epochs"])
    pairs = st.lists(st.tuples(st.one_of(known, known, yaml_keys), yaml_values), min_size=1, max_size=3)
    lines = pairs.map(lambda found: "".join(f"\n  {key}: {value}" for key, value in found))
    return st.one_of(lines, lines, yaml_values).map(lambda text: f"{node}: {text}")


yaml_lines = st.one_of(st.sampled_from(sorted(NODES)).flatmap(_node), st.tuples(yaml_keys, yaml_values).map(": ".join))
yaml_files = st.one_of(
    st.tuples(st.sampled_from(HEADERS), st.lists(yaml_lines, min_size=1, max_size=2).map("\n".join)).map(
        lambda parts: "".join(parts).encode("utf-8", "surrogatepass")
    ),
    st.tuples(st.sampled_from(HEADERS), st.binary(max_size=40)).map(lambda parts: parts[0].encode() + parts[1]),
)
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


def test_any_option_file_is_accepted_or_refused(tmp_path: Path) -> None:
    """150 files that are hardly YAML, or YAML that is hardly a config."""
    play(150, yaml_files, lambda content: option(tmp_path, content))


@pytest.mark.parametrize(
    "search", ["5", "[1]", "{seed: 5}", "{seed: [1]}", "{1: 2}", "{_target_: os.system}", "{seed: {a: 1}}", "x"]
)
def test_a_search_of_the_wrong_shape_is_refused(search: str, tmp_path: Path) -> None:
    """What an option file puts in place of the search is judged as what a user types."""
    with pytest.raises(ConfigError, match=r"search|Cannot merge DictConfig with ListConfig"):
        option(tmp_path, f"# @package _global_\nsearch: {search}\n".encode())


BOMBS = {
    "aliases": "a: &a [x,x,x,x,x,x,x,x,x,x]\n"
    + "".join(f"{c}: &{c} [{','.join(['*' + p] * 10)}]\n" for p, c in zip("abcdefghi", "bcdefghij")),
    "merges": "a: &a {x: 1}\n"
    + "".join(f"{c}: &{c} {{<<: [{','.join(['*' + p] * 10)}]}}\n" for p, c in zip("abcdefghi", "bcdefghij")),
    "a-ring": "a: &a [*a]\n",
    "deep-lists": "a: " + nested(30_000),
    "deep-maps": "a: " + nested(15_000, "{a: ", "}"),
    "deep-blocks": "".join(f"{' ' * i}a:\n" for i in range(340)),
    "a-long-number": "learning_rate: " + "9" * 60_000,
    "colons": "a: " + "?:" * 30_000,
    "too-long": "#" * 70_000,
    "interpolations": f"learning_rate: '{nested(3000, '${a:', '}')}'\n",
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_yaml_bombs_are_refused(bomb: str, tmp_path: Path) -> None:
    """A small file that stands for billions of values, or is nested past any stack, is refused unexpanded."""
    assert faults(lambda: option(tmp_path, BOMBS[bomb].encode()))


# ------------------------------------------------------------------------------------------------- IDX and gzip

IMAGES = np.random.default_rng(0).integers(0, 256, (4, 28, 28), dtype=np.uint8)
RAW = struct.pack(">4I", 2051, *IMAGES.shape) + IMAGES.tobytes()
GOOD = gzip.compress(RAW, mtime=0)

edits = st.lists(
    st.one_of(
        st.tuples(st.just("cut"), st.integers(0, 4000), st.just(0)),
        st.tuples(st.just("set"), st.one_of(st.integers(0, 40), st.integers(0, 4000)), st.integers(0, 255)),
        st.tuples(st.just("add"), st.integers(0, 4000), st.integers(0, 255)),
        st.tuples(st.just("drop"), st.integers(0, 4000), st.integers(1, 300)),
        st.tuples(st.just("twice"), st.just(0), st.just(0)),
    ),
    min_size=1,
    max_size=3,
)


def edited(content: bytes, changes: list[tuple[str, int, int]]) -> bytes:
    """Bytes with some cut off, set, added, left out, or the whole repeated."""
    for kind, place, value in changes:
        place %= len(content) + 1
        match kind:
            case "cut":
                content = content[:place]
            case "set":
                content = content[:place] + bytes([value]) + content[place + 1 :]
            case "add":
                content = content[:place] + bytes([value]) + content[place:]
            case "drop":
                content = content[:place] + content[place + value :]
            case _:
                content += content
    return content


@pytest.mark.parametrize("content", [GOOD, RAW], ids=["gzip", "idx"])
def test_any_idx_file_is_accepted_or_refused(content: bytes) -> None:
    """Six hundred damaged files, and six hundred files that are damaged below a correct gzip."""

    def read(changes: list[tuple[str, int, int]]) -> None:
        damaged = edited(content, changes)
        found = parse(damaged if content is GOOD else gzip.compress(damaged, 1), (28, 28))
        assert found.shape[1:] == (28, 28)
        assert found.dtype == np.uint8

    play(600, edits, read)


@pytest.mark.parametrize("count", [1, 171_196, 171_197, 2**31, 2**32 - 1])
@pytest.mark.parametrize("size", [0, 784, 300_000_000])
def test_gzip_bombs_are_refused(count: int, size: int) -> None:
    """Whatever a header announces and however much follows it, no more is unpacked than the largest honest file."""
    header = struct.pack(">4I", 2051, count, 28, 28)
    bomb = gzip.compress(header, 1)[:-8] if size == 0 else gzip.compress(header + bytes(min(size, 784)), 1)
    if size > 784:  # joined from parts, as writing 300 MB at once would be our own half gigabyte
        bomb = _zeros_behind(header, size)

    refused = faults(lambda: parse(bomb, (28, 28)))

    assert bool(refused) == ((count, size) != (1, 784))


def _zeros_behind(header: bytes, size: int) -> bytes:
    import zlib

    packer = zlib.compressobj(9, wbits=31)
    parts = [packer.compress(header), *(packer.compress(bytes(1_000_000)) for _ in range(size // 1_000_000))]
    return b"".join([*parts, packer.flush()])


# ---------------------------------------------------------------------------------------------------------- npz

ARRAYS: dict[str, Any] = {
    "x_train": np.arange(24, dtype=np.uint8).reshape(6, 2, 2),
    "y_train": np.array([0, 1, 2, 0, 1, 2]),
    "x_test": np.ones((2, 2, 2), np.uint8),
    "y_test": np.array([2, 0]),
}


def load(path: Path) -> dataset.Dataset:
    """The data set of an .npz file, split and fingerprinted."""
    return dataset.load(NpzData(name="npz", root=str(path), validation_size=1, split="first", split_seed=0))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_any_npz_file_is_accepted_or_refused(save: Callable[..., None], tmp_path: Path) -> None:
    """Four hundred damaged archives of each kind. An error has the name of the file."""
    path = tmp_path / "mine.npz"
    save(path, **ARRAYS)
    good = path.read_bytes()

    def read(changes: list[tuple[str, int, int]]) -> None:
        path.write_bytes(edited(good, changes))
        try:
            load(path)
        except MnistexpError as error:
            if str(path) not in str(error):
                pytest.fail(f"the error has no file name: {error}")
            raise

    play(400, edits, read)


dtypes = st.sampled_from(words("u1 u2 u8 i1 i4 i8 f2 f4 f8 g c16 ? S3 U3 V4 M8[s] m8[s] O i4,f8 >f4 >i8 U0"))
shapes = st.lists(st.integers(0, 4), max_size=4).map(tuple)


def test_any_arrays_are_accepted_or_refused(tmp_path: Path) -> None:
    """Four hundred archives in which one array has any type and shape."""
    path = tmp_path / "mine.npz"

    def read(example: tuple[str, str, tuple[int, ...], int]) -> None:
        name, dtype, shape, fill = example
        array = np.zeros(shape, dtype)
        if array.dtype.kind in "uif":
            array += np.array(fill).astype(array.dtype)
        np.savez(path, **{**ARRAYS, name: array})
        load(path)

    play(400, st.tuples(st.sampled_from(sorted(ARRAYS)), dtypes, shapes, st.integers(-1, 3)), read)
