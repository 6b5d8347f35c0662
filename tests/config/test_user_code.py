"""Data sets and models of one's own: a folder outside the repository, YAML and one function each."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import runs

from mnistexp import cli
from mnistexp.config import user_code
from mnistexp.config.compose import compose, parse_request, run_config, signature
from mnistexp.config.overrides import ParsedOverrides
from mnistexp.config.schema import Config, UserCode, recorded_config
from mnistexp.data import dataset as data
from mnistexp.errors import ConfigError
from mnistexp.search import space as search_space
from mnistexp.study.progress import fingerprint
from mnistexp.tracking.run_context import run_name
from mnistexp.training.messages import Setup
from mnistexp.workers.process import LocalPool

CODE = '''
import numpy as np

open("executed", "a").close()  # so that a test sees whether this was run


def squares(*, images: int = 400, root: str | None = None) -> dict[str, np.ndarray]:
    """8x8 images: where the bright square is, is the class, from 0 to 3."""
    draw = np.random.default_rng(0)
    labels = draw.integers(0, 4, images)
    pictures = draw.integers(0, 60, (images, 8, 8))
    for picture, label in zip(pictures, labels):
        row, column = 4 * (label // 2), 4 * (label % 2)
        picture[row : row + 4, column : column + 4] += 150
    pictures = pictures.astype(np.uint8)
    return {"x_train": pictures[100:], "y_train": labels[100:], "x_test": pictures[:100], "y_test": labels[:100]}


def residual(features: int, classes: int, *, units: int = 32, blocks: int = 1):
    import keras

    inputs = keras.Input((features,))
    signal = keras.layers.Dense(units)(inputs)
    for _ in range(blocks):
        inner = keras.layers.BatchNormalization(momentum=0.8)(signal)
        inner = keras.layers.Dense(units)(keras.layers.Activation("relu")(inner))
        signal = keras.layers.Add()([signal, keras.layers.Dropout(0.1)(inner)])
    return keras.Model(inputs, keras.layers.Dense(classes)(signal))


def broken(*, deep: bool = True):
    values = {}
    return values["no such key"]


def needy(features, classes, *, width):
    """Has a setting without a default."""


def narrow(features):
    """Takes too little."""
'''

DATA = """\
name: custom
function: squares
settings:
  images: 400
root: null
validation_size: 100
split: stratified
split_seed: 0
"""

MODEL = """\
# @package _global_
model:
  name: custom
  function: residual
  settings: {units: 32, blocks: 1}
search:
  model.settings.units: choice(16, 32)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of the user, as working folder; this process uses its file."""
    for name, text in (("mine/data/squares.yaml", DATA), ("mine/model/residual.yaml", MODEL), ("functions.py", CODE)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    user_code.use(user_code.read(Path("functions.py")))
    yield tmp_path
    user_code.use(None)


def request(*overrides: str) -> ParsedOverrides:
    """A request with the options of the user's folder."""
    return parse_request(overrides, Path("mine").resolve())


def composed(*overrides: str) -> Config:
    """What it composes to."""
    return compose(request(*overrides))


def fault(*words: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What a command says that ends with the exit code for what the user can mend."""
    assert cli.main([*words]) == 2
    return capsys.readouterr().err


# ------------------------------------------------------------------------------------------------- the journey


@pytest.mark.slow
def test_confirm_and_predict_use_the_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A custom network on custom data is searched, confirmed, registered and served, with a copy of its code."""
    code = ("--code", "functions.py")
    short = ("data=squares", "model=residual", "optimizer=adam", "trainer.batch_size=32", "trainer.epochs=2")
    study = ("study.trials=1", "study/pruner=none", "executor.workers=1")
    write_picture(folder / "corner.png")

    for words in (
        ("sweep", *code, "--config-dir", "mine", *short, *study),
        ("confirm", "-q", *code, "study.name=squares", "top=1", "seeds=2", "executor.workers=1"),
        ("predict", *code, "corner.png", "data=squares", "--config-dir", "mine"),
    ):
        assert cli.main(words) == 0
    printed = capsys.readouterr().out

    assert re.search(r"residual units=(16|32) blocks=1 b=32", printed)
    assert re.search(r"corner\.png +\d +\d", printed)
    assert {kept.read_text() for kept in (folder / "mlruns").rglob("code.py")} == {CODE}


def write_picture(path: Path) -> None:
    """A dark blot on light paper."""
    from PIL import Image

    paper = np.full((64, 64), 255, np.uint8)
    paper[8:30, 8:30] = 0
    Image.fromarray(paper).save(path)


def test_an_edit_in_between_changes_nothing_that_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker has the text that the command read, whatever is in the file when the worker starts."""
    for name, value in runs.SCRIPTED.items():
        monkeypatch.setenv(name, value)
    config = composed("data=squares")
    dataset = data.load(config.data)
    Path("functions.py").write_text("def squares():\n    raise ValueError\n")

    setup = Setup(data=config.data, threads=1, device="cpu", code=user_code.code())
    with closing(LocalPool(setup, workers=1, at_most=1, fingerprint=dataset.fingerprint)) as executor:
        runs.wait_idle(executor, 1)
        assert executor.worker_info["fingerprint"] == dataset.fingerprint


# --------------------------------------------------------------------------------------------- data and models


def test_the_data_are_what_the_function_returns(folder: Path) -> None:
    """The arrays are split into three splits, and the settings of the config reach the function."""
    made = data.load(composed("data=squares", "data.settings.images=300").data)

    assert (made.name, made.classes, made.image_shape, made.scale) == ("squares", 4, (8, 8), 1 / 255)
    assert [len(split.labels) for split in (made.train, made.validation, made.test)] == [100, 100, 100]
    assert made.source == "squares() of functions.py"


def test_root_is_an_argument_but_no_part_of_the_identity(folder: Path) -> None:
    """Configs with different roots have one signature, and root can't be a setting."""
    here, there = (composed("data=squares", f"data.root={root}") for root in ("/here", "/there"))
    Path("mine/data/rooted.yaml").write_text(DATA.replace("images: 400", "root: here"))

    assert here.data.keywords == {"images": 400, "root": "/here"}  # type: ignore[union-attr]
    assert signature(run_config(here)) == signature(run_config(there))
    with pytest.raises(ConfigError, match=r"data\.settings\.root: give it as data\.root"):
        composed("data=rooted")


def test_the_hash_of_the_file_is_part_of_the_identity(folder: Path) -> None:
    """One changed letter is another run, and a recorded config is read back unchanged."""
    before = run_config(composed("data=squares", "model=residual"))
    user_code.use(UserCode(name="functions.py", text=f"{CODE}# changed\n"))
    after = run_config(composed("data=squares", "model=residual"))

    assert before.model.code == before.data.code != after.model.code  # type: ignore[union-attr]
    assert signature(before) != signature(after)
    assert recorded_config(before.model_dump_json()) == before


def test_line_ends_and_a_byte_order_mark_make_no_difference(folder: Path) -> None:
    """A file that was saved on Windows is the same file."""
    (folder / "other.py").write_bytes(b"\xef\xbb\xbf" + CODE.replace("\n", "\r\n").encode())

    assert user_code.read(Path("other.py")).text == CODE


def test_settings_of_a_model_are_searched_and_those_of_the_mlp_are_not(folder: Path) -> None:
    """With the user's model, the default space loses the settings of the multilayer perceptron."""
    space = composed("model=residual", "model.settings.blocks=choice(1, 2)").search

    assert {key for key in space if key.startswith("model.")} == {"model.settings.units", "model.settings.blocks"}
    assert "optimizer.learning_rate" in space


def test_a_run_is_named_after_the_function_and_its_settings(folder: Path) -> None:
    """The name shows what was built."""
    name = run_name(run_config(composed("model=residual", "optimizer=adam", "model.settings.units=64")), 7)

    assert name == "007 adam lr=0.001 residual units=64 blocks=1 b=128"


# -------------------------------------------------------------------------------------------- nothing runs unasked


def test_no_code_runs_without_the_option(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An option file may name a function, but only --code makes it run."""
    message = fault("train", "--config-dir", "mine", "data=squares", "model=residual", capsys=capsys)

    assert "squares: is a function of your own file; give --code FILE.py" in message
    assert "residual: is a function of your own file; give --code FILE.py" in message
    assert not Path("executed").exists()


@pytest.mark.parametrize("key", ["code=/tmp/evil.py", "file=evil.py", "_target_=os.system"])
def test_an_option_file_cannot_name_a_file(key: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Only the command line names the file."""
    name, _, value = key.partition("=")
    Path("mine/data/squares.yaml").write_text(f"{DATA}{name}: {value}\n")

    said = fault("train", "--config-dir", "mine", "--code", "functions.py", "data=squares", capsys=capsys)

    assert re.search(rf"data\.{name}.*(is filled in from --code FILE; leave it out|has no such key)", said)
    assert not Path("executed").exists()


def test_a_record_needs_its_own_file(folder: Path) -> None:
    """Without the file, or with another one, the message says which it was and where a copy is. Nothing runs."""
    recorded = recorded_config(run_config(composed("data=squares")).model_dump_json())

    user_code.use(None)
    with pytest.raises(ConfigError, match=r"squares: is a function of your own file \(SHA-256 \w{12}…\).*code\.py"):
        data.load(recorded.data)
    user_code.use(UserCode(name="new.py", text=CODE.replace("150", "140")))
    with pytest.raises(ConfigError, match=r"squares: is a function of your own file \(SHA-256 \w{12}…\).*code\.py"):
        user_code.require_for(recorded)

    assert not Path("executed").exists()


def test_the_file_is_part_of_the_question_of_a_study(folder: Path) -> None:
    """Trials of two versions of a model are not comparable, nor are those of a model and of none."""
    asked = request("model=residual", "data=digits", "search=none", "model.settings.units=choice(8, 16)")
    found = []
    for code in (user_code.code(), UserCode(name="functions.py", text=f"{CODE}#")):
        user_code.use(code)
        found.append(fingerprint(search_space.build(asked), compose(asked), "data").get("--code"))
    user_code.use(None)
    asked = request("data=digits", "search=none", "model.activation=choice(relu, tanh)")
    found.append(fingerprint(search_space.build(asked), compose(asked), "data").get("--code"))

    assert len(set(found)) == 3


def test_a_file_that_nothing_needs_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file without effect is an error."""
    said = fault("train", "--code", "functions.py", "data=digits", capsys=capsys)

    assert "--code functions.py: no function of it is used; leave it out" in said


# ------------------------------------------------------------------------------------------------ each mistake


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "--code no.py: is not a Python file"),
        ("folder", "--code no.py: is not a Python file"),
        (b"#" * (user_code.MAX_BYTES + 1), "--code no.py: is not a Python file of at most 262144 bytes"),
        (b"def f(:\n", "no.py: is not Python (SyntaxError: "),
        (b"x = '\xff'\n", "--code no.py: can't be read"),
        (b"x = '\0'\n", "no.py"),
        (b"x = " + b"(" * 5000, "no.py"),
    ],
)
def test_a_wrong_file_is_one_sentence(
    content: bytes | str | None, message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The sentence has the line where there is one."""
    path = Path("no.py")
    if isinstance(content, str):
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)

    said = fault("train", "--code", "no.py", "data=digits", capsys=capsys)

    assert said.startswith(f"mnistexp: {message}")
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            ["model.function=residul"],
            ["no function 'residul'", "squares, residual, broken", "did you mean residual?"],
        ),
        (["model.function=narrow"], ["narrow(features) can't be called with 2 positional arguments"]),
        (["model.function=needy"], ["needy(features, classes, *, width) can't be called", "units, blocks", "'width'"]),
        (["model.function='os.system'"], ["model.function=os.system: must match pattern"]),
        (["model.settings.unit=3"], ["did you mean model.settings.units?"]),
        (["model.settings.units=null"], ["model.settings.units=null: must be true or false, or must be a whole"]),
        (["model.settings.units=choice(1, [a])"], ["model.settings.units=choice(1, [a]): ", "must be a whole number"]),
        (["model.hidden_units=[3]"], ["the config has no model.hidden_units; model has "]),
    ],
)
def test_a_function_that_does_not_fit_is_refused(
    overrides: list[str], words: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Names and settings are checked before anything runs, and the message has what is allowed."""
    Path("mine/model/residual.yaml").write_text(MODEL.partition("search:")[0])
    command = "sweep" if "choice" in overrides[0] else "train"

    said = fault(command, "--config-dir", "mine", "--code", "functions.py", "model=residual", *overrides, capsys=capsys)

    assert all(each in said for each in words), said
    assert not Path("executed").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            'def squares(*, images):\n    found = {}\n    return found["x"]\n',
            "functions.py:3: KeyError: 'x'",
        ),
        ("def squares(*, images):\n    raise SystemExit(3)\n", "functions.py:2: SystemExit: 3"),
        ("import no_such_module\n\n\ndef squares(*, images): ...\n", "functions.py:1: ModuleNotFoundError: "),
        ("def squares(*, images): ...\n\n\nreturn 1\n", "functions.py: SyntaxError: "),
        ("def squares(*, images): ...\n\n\ndel squares\n", "functions.py: AttributeError: "),
        (
            "def squares(*, images): ...\n",
            "squares() of functions.py returned a NoneType; it must return a dict of NumPy arrays named",
        ),
        (
            "def squares(*, images):\n    return {'x': 1}\n",
            "squares() of functions.py returned ['x']; it must return",
        ),
        (
            "import numpy as np\n\n\ndef squares(*, images):\n    return {'x_train': np.ma.zeros(3)}\n",
            "squares() of functions.py: x_train is a MaskedArray; use a NumPy array: numpy.asarray(…).",
        ),
    ],
)
def test_a_function_that_fails_is_told_with_its_own_line(
    text: str, message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The user's file and line, the error's type and text; never a traceback through ours."""
    Path("functions.py").write_text(text)

    said = fault("train", "--config-dir", "mine", "--code", "functions.py", "data=squares", capsys=capsys)

    assert said.startswith(f"mnistexp: {message}")
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("signature", "arguments", "settings", "taken"),
    [
        ("a, b, *, c=1", 2, {"c": 2}, True),
        ("a, b, c=1", 2, {"c": 2}, True),
        ("*things, **named", 2, {"any": 1}, True),
        ("a, b, /, c=1", 2, {"c": 2}, True),
        ("a, b, c, /", 2, {"c": 2}, False),
        ("a, b, c", 2, {}, False),
        ("a, b, *, c", 2, {"c": 1}, True),
        ("a, b=1, *, c", 2, {"b": 1, "c": 1}, False),
        ("a", 2, {}, False),
        ("", 0, {}, True),
        ("**named", 0, {"x": 1}, True),
        ("c=1, /", 0, {}, True),
        ("a, b, **named", 2, {"a": 1}, False),
        ("a, b, /, **named", 2, {"a": 1}, True),
        ('a: int, b: "x" = 1, c: int = len("c")', 2, {"c": 1}, True),
    ],
)
def test_the_check_of_a_signature_agrees_with_python(
    signature: str, arguments: int, settings: dict[str, Any], taken: bool, folder: Path
) -> None:
    """The check refuses exactly what the call would refuse."""
    user_code.use(UserCode(name="f.py", text=f"def f({signature}):\n    return 'made'\n"))
    namespace: dict[str, Any] = {}
    exec(f"def f({signature}):\n    return 'made'\n", namespace)

    said = ""
    try:
        found = user_code.call("f", *range(arguments), settings=settings) == "made"
    except ConfigError as error:
        found, said = False, str(error)
    try:
        expected = namespace["f"](*range(arguments), **settings) == "made"
    except TypeError:
        expected = False

    assert found == expected == taken
    assert "TypeError" not in said
