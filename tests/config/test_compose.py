from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mnistexp.config import option_files
from mnistexp.config.compose import (
    NO_EFFECT,
    compose,
    flatten,
    identity,
    parse_request,
    rebuild,
    run_config,
    signature,
    template,
)
from mnistexp.config.option_files import config_groups
from mnistexp.config.overrides import ParsedOverrides
from mnistexp.config.schema import Config
from mnistexp.errors import ConfigError

GROUPS = config_groups()
NEEDS = {"data=npz": ["data.root=mine.npz"]}
"""What an option can't do without."""


def composed(*overrides: str, config_dir: Path | None = None) -> Config:
    """What a command line composes."""
    return compose(parse_request(overrides, config_dir))


def faults(*overrides: str, config_dir: Path | None = None) -> list[str]:
    """Every fault of a command line."""
    with pytest.raises(ConfigError) as caught:
        composed(*overrides, config_dir=config_dir)
    return list(caught.value.faults)


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A config folder of the user's: an optimizer that never heard of ours, written as ours are."""
    write_option(tmp_path, "optimizer/mine", "optimizer:", ADAM, "  warmup_epochs: ${trainer.epochs}")
    return tmp_path


ADAM = """
  name: adam
  learning_rate: 0.002
  beta_1: 0.8
  beta_2: 0.99
  epsilon: 1e-6
  schedule: cosine
  weight_decay: 0.0
"""


def write_option(folder: Path, name: str, *parts: str) -> Path:
    """Write one option file."""
    path = folder / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(["# @package _global_", *parts]))
    return path


# ------------------------------------------------------------------------------------------ every option


DEFAULT = flatten(template(ParsedOverrides()).plain)


@pytest.mark.parametrize("choice", [f"{group}={option}" for group, options in GROUPS.items() for option in options])
def test_every_option_composes(choice: str) -> None:
    """Each option is a valid config on top of the defaults, and sets nothing but its own node and the search."""
    found = flatten(template(parse_request([choice, *NEEDS.get(choice, [])])).plain)

    group = choice.partition("=")[0]
    differing = {key for key in DEFAULT | found if DEFAULT.get(key) != found.get(key)}
    if group != "experiments":  # which may set anything
        assert all(key.startswith((f"{group.replace('/', '.')}.", "search")) for key in differing)


def test_a_config_and_its_signature_are_the_same_in_every_process(tmp_path: Path) -> None:
    """Another working folder and another hash seed of Python change neither, and no file is written."""
    code = (
        "from mnistexp.config.compose import *; config = compose(parse_request(['seed=3', 'data=digits'])); "
        "print(config.model_dump_json(), signature(run_config(config)), sep='\\n')"
    )
    environment = {**os.environ, "PYTHONPATH": str(option_files.PACKAGE.parent), "PYTHONHASHSEED": "7"}

    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )

    expected = composed("seed=3", "data=digits")
    text, found = done.stdout.splitlines()
    assert Config.model_validate_json(text) == expected
    assert found == signature(run_config(expected))
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------ faults


def test_all_faults_come_in_one_message() -> None:
    """What Hydra, the schema and we ourselves refuse is told together, so that it is mended in one go."""
    found = faults("+x=1", "trainer.epochs=-5", "optimizer.learnig_rate=1", "model.activation=rleu", "study/sampler=tp")

    starts = [fault.partition(":")[0] for fault in found]
    assert starts == [
        "+x=1",
        "study/sampler=tp",
        "optimizer.learnig_rate=1",
        "model.activation=rleu",
        "trainer.epochs=-5",
    ]


def test_a_wrong_option_hides_its_settings() -> None:
    """optimizer.beta_1 may be right for the misspelt optimizer, so only the option is a fault."""
    (found,) = faults("optimizer=adamm", "optimizer.beta_1=0.5")

    assert found.startswith("optimizer=adamm: must be one of adam, adamw,")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("optimizer=ADAM", "did you mean adam?"),
        ("optimzer=adam", "did you mean optimizer?"),
        ("experiments=blog_2017/basline", "did you mean blog_2017/baseline?"),
        ("model.activatoin=relu", "did you mean model.activation?"),
        ("epochs=3", "did you mean trainer.epochs?"),
        (
            "optimizer.epochs=3",
            "optimizer has learning_rate, momentum, name, nesterov, schedule, warmup_epochs, weight_decay; did",
        ),
        ("optimizer.sgd.momentum=0.5", "did you mean optimizer.momentum?"),
        ("optimizer=null", "must be one of adam, adamw, lion"),
        ("optimizer.name=x", "must be one of sgd, adam, adamw, nadam, rmsprop, lion"),
        ("executor.workers=x", "must be a whole number, or must be auto"),
        ("model={}", "must be one of mlp"),
        ("data.files={test_images: 1}", "data.files has settings of its own"),
        ("study.sampler=random", "study.sampler is a config group; write study/sampler=OPTION"),
        ("optimizer.name=adam", "write optimizer=adam, which sets the other settings"),
        ("data.files=3", "data.files has settings of its own; give them one by one; data.files has test_images.bytes"),
        ("search.=choice(1)", "write search.KEY=DISTRIBUTION"),
        ("search.seed", "or ~search.KEY to leave a key out"),
    ],
)
def test_a_wrong_override_says_what_is_allowed(override: str, words: str) -> None:
    """The only fault starts with the override and has the allowed values or the closest known word."""
    (found,) = faults(override)

    assert found.startswith(f"{override}: ")
    assert words in found


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            ("optimizer.warmup_epochs=11",),
            "optimizer.warmup_epochs=11.0: longer than the training; at most trainer.epochs=10",
        ),
        (("model.hidden_units=[]", "model.dropout=0.5"), "there is no hidden layer to drop from; give 0"),
        (
            ("optimizer.schedule=one_cycle", "optimizer.warmup_epochs=1.0"),
            "optimizer.schedule=one_cycle has its own warm-up, 30 % of the run; give 0",
        ),
        (
            ("model.hidden_units=[]", "model.batch_normalization=true"),
            "there is no hidden layer to normalise; give false",
        ),
        (("data=npz",), "data=npz: needs a file; give data.root=FILE.npz"),
        (("optimizer=nesterov", "optimizer.momentum=0"), "give e.g. optimizer.momentum=0.9"),
    ],
)
def test_what_cannot_stand_together_is_refused(overrides: tuple[str, ...], words: str) -> None:
    """Values that are each allowed but make no sense together get a sentence of their own."""
    (found,) = faults(*overrides)

    assert words in found
    composed("optimizer.warmup_epochs=10", "model.hidden_units=[]", "data=npz", "data.root=x.npz")


# ---------------------------------------------------------------------------------------- what is refused


def test_nothing_is_added_moved_or_run() -> None:
    """Overrides that would change the config's shape or make a library run code are refused one and all."""
    words = [
        "+x=1",
        "++seed=3",
        "~seed",
        "optimizer@foo=adam",
        "hydra.run.dir=/tmp/x",
        "+hydra.callbacks.x._target_=os.mkdir",
        "hydra.searchpath=[file:///tmp]",
        "model._target_=os.mkdir",
        "_target_=os.mkdir",
        "model={_target_:os.mkdir}",
        "model.hidden_units=[{_target_:os.mkdir}]",
    ]

    found = faults(*words)

    reasons = (
        "takes no new, removed or moved keys",
        "can't be overridden here",
        "mnistexp runs no code that a config names",
    )
    for word, fault in zip(words, found, strict=True):
        assert fault.startswith(f"{word}: ")
        assert any(reason in fault for reason in reasons)


@pytest.mark.parametrize("key", ["study.storage", "tracking.uri", "data.root"])
def test_addresses_may_come_from_the_environment(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A password needn't stand on the command line: what addresses resolve to is never logged."""
    monkeypatch.setenv("OUR_ADDRESS", "sqlite:///secret.db")

    assert flatten(composed(f"{key}=${{oc.env:OUR_ADDRESS}}").model_dump())[key] == "sqlite:///secret.db"


def test_a_variable_that_is_not_set_is_named() -> None:
    """The message says which setting wanted which variable."""
    (found,) = faults("tracking.uri=${oc.env:NOT_SET_ANYWHERE}")

    assert found == "tracking.uri=${oc.env:NOT_SET_ANYWHERE}: Environment variable 'NOT_SET_ANYWHERE' not found"


@pytest.mark.parametrize(
    "override",
    [
        "study.name=${oc.env:SECRET}",
        "seed='${oc.decode:${oc.env:SECRET}}'",
        "data.mirrors=['${oc.env:SECRET}']",
        "search.model.activation='choice(${oc.env:SECRET}, relu)'",
        "study.name=${oc.select:seed}",
    ],
)
def test_no_other_setting_reads_the_environment(override: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be logged: every other key refuses resolvers, in lists and distributions as well."""
    monkeypatch.setenv("SECRET", "hunter2")

    (found,) = faults(override)

    assert "only study.storage, tracking.uri, data.root may use ${resolver:…}" in found
    assert "hunter2" not in found


def test_a_value_may_refer_to_another() -> None:
    """Plain interpolation works on the command line, and what it refers to must exist."""
    assert composed("trainer.epochs=7", "optimizer.warmup_epochs=${trainer.epochs}").optimizer.warmup_epochs == 7
    assert faults("seed=${nothing}") == ["seed=${nothing}: Interpolation key 'nothing' not found"]


# ------------------------------------------------------------------------------------- the user's own files


def test_own_options_stand_beside_ours(own: Path) -> None:
    """An option under --config-dir is composed by name, and its references resolve in the whole config."""
    config = composed("optimizer=mine", "trainer.epochs=4", config_dir=own)

    assert (config.optimizer.learning_rate, config.optimizer.warmup_epochs) == (0.002, 4)
    assert "mine" in config_groups(own)["optimizer"]
    assert "must be one of" in faults("optimizer=mine")[0]


def test_references_follow_a_trials_values(own: Path) -> None:
    """A template filled in with values is what composing anew with them gives, references included."""
    base = template(parse_request(["optimizer=mine"], own))

    filled = base.config({"trainer.epochs": 6, "optimizer.learning_rate": 0.25})

    assert filled.optimizer.warmup_epochs == 6
    assert filled == composed("optimizer=mine", "trainer.epochs=6", "optimizer.learning_rate=0.25", config_dir=own)


def test_a_folder_may_have_any_name(tmp_path: Path) -> None:
    """Quotes, commas, braces and spaces in a path are not grammar."""
    folder = tmp_path / "it's {a}, [b] $c = d"
    write_option(folder, "model/tiny", "model:", "  hidden_units: [3]", "defaults:", "  - mlp")
    (folder / "model" / "tiny.yaml").write_text("defaults:\n  - mlp\nhidden_units: [3]\n")

    assert composed("model=tiny", config_dir=folder).model.hidden_units == (3,)


def test_an_option_of_ones_own_under_a_built_in_name_is_refused(tmp_path: Path) -> None:
    """Hydra would take ours and pass the user's over in silence."""
    path = write_option(tmp_path, "optimizer/adam", "")

    (found,) = faults("optimizer=adam", config_dir=tmp_path)

    assert found == f"{path}: has the name of mnistexp's own optimizer/adam.yaml; rename it"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"a: [", "bad.yaml"),
        (b"a:\n\t- b", "cannot start any token"),
        (b"a: 1\na: 2", "found duplicate key a"),
        (b"a: !!python/object:os.system {}", "could not determine a constructor"),
        (b"a: \xff", "can't decode byte 0xff"),
        (b"defaults: 3", "defaults must be a list"),
        (b"defaults:\n  - nope", "optimizer/nope"),
        (b"", "optimizer: needs a name"),
        (b"- 1", "must be a node with settings of its own"),
        (b"# @package _other_\na: 1", "_other_: the config has no such key"),
        (b"# @package ..\n~: []\nmodel: &a b", "ConfigCompositionException"),
    ],
)
def test_a_broken_option_file_is_one_clear_fault(
    tmp_path: Path, content: bytes, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fault has one line, also where OmegaConf makes an error its own cause, as it does under a debugger."""
    monkeypatch.setenv("OC_CAUSE", "1")
    (tmp_path / "optimizer").mkdir()
    (tmp_path / "optimizer/bad.yaml").write_bytes(content)

    found = faults("optimizer=bad", config_dir=tmp_path)

    assert any(words in fault for fault in found)
    assert all("\n" not in fault for fault in found)


# ------------------------------------------------------------------------------------ requests and identity


def test_fixed_keys_leave_the_search() -> None:
    """A plain value for a key or group ends its being searched; the rest of the space stays."""
    space = composed("optimizer=adam", "trainer.batch_size=64").search

    assert set(composed().search) - set(space) == {"optimizer", "trainer.batch_size"}
    assert "optimizer.learning_rate" in space


def test_a_distribution_joins_the_search() -> None:
    """KEY=choice(…) and search.KEY=choice(…) are the same. A later value replaces them; an earlier one is kept."""
    bare, prefixed = (parse_request([f"{prefix}model.dropout=choice(0,0.5)"]) for prefix in ("", "search."))
    fixed = parse_request(["model.dropout=choice(0,0.5)", "model.dropout=0.25"])
    swept = parse_request(["model.dropout=0.25", "model.dropout=choice(0,0.5)"])

    assert compose(bare) == compose(prefixed)
    assert compose(bare).search["model.dropout"] == "choice(0,0.5)"
    assert "model.dropout" not in compose(fixed).search
    assert compose(swept).search["model.dropout"] == "choice(0,0.5)"
    assert compose(swept).model.dropout == 0.25  # type: ignore[union-attr]


@pytest.mark.parametrize("override", ["search.model.dropout=null", "~search.model.dropout", "~search.model.dropout=x"])
def test_a_key_can_be_taken_out_of_the_search(override: str) -> None:
    """Three ways to write it, one meaning: the key keeps its value and is not searched."""
    assert set(composed().search) - set(composed(override).search) == {"model.dropout"}


def test_the_identity_is_the_config_without_what_has_no_effect() -> None:
    """The keys of NO_EFFECT are missing, if the data set has them, and no other key."""
    no_effect = {f"{node}.{key}" for node, keys in NO_EFFECT.items() for key in keys}
    for data, missing in (("mnist", no_effect), ("digits", {"data.root", "trainer.timeout"})):
        config = run_config(composed(f"data={data}"))
        whole = flatten(config.model_dump(mode="json"))

        assert flatten(identity(config)) == {key: value for key, value in whole.items() if key not in missing}
        assert missing <= set(whole)


def test_the_signature_is_that_of_the_identity() -> None:
    """It ignores what has no effect, and differs with the last bit of a hyperparameter and with the seed."""
    elsewhere = ("data.root=/x", "data.mirrors=[http://x/]", "data.timeout=1", "study.trials=99", "trainer.timeout=7")
    mnist = template(parse_request(["data=mnist"]))
    config = run_config(mnist.config())

    other = [
        signature(run_config(mnist.config({key: value})))
        for key, value in {"optimizer.learning_rate": 0.05000000000000001, "seed": 1, "data.split_seed": 1}.items()
    ]

    assert signature(run_config(composed("data=mnist", *elsewhere))) == signature(config)
    assert len({signature(config), *other}) == 4
    assert signature(config, seed=False) == signature(run_config(mnist.config({"seed": 1})), seed=False)


# -------------------------------------------------------------------------------------------------- rebuild


def test_rebuild_returns_the_recorded_overrides_or_says_what_changed(tmp_path: Path) -> None:
    """A changed value, a new setting and a lost option in the user's folder are each named."""
    option = tmp_path / "optimizer/mine.yaml"
    write_option(tmp_path, "optimizer/mine", "optimizer:", ADAM, "  warmup_epochs: 0.0")
    overrides = ("optimizer=mine", "data=digits", "seed=7", "optimizer.beta_1=0.25")
    recorded = run_config(composed(*overrides, config_dir=tmp_path))
    elsewhere = run_config(composed("data=mnist", "data.root=/then", "trainer.timeout=5"))

    assert rebuild(recorded, overrides, tmp_path) == overrides
    assert rebuild(elsewhere, ("data=mnist",)) == ("data=mnist",)  # where the data are has no effect
    later = recorded.model_copy(update={"optimizer": recorded.optimizer.model_copy(update={"weight_decay": 0.5})})
    with pytest.raises(ConfigError, match=r"^optimizer\.weight_decay: changed in conf/ or --config-dir since"):
        rebuild(later, overrides, tmp_path)
    option.unlink()
    with pytest.raises(ConfigError, match="optimizer=mine: must be one of adam, adamw"):
        rebuild(recorded, overrides, tmp_path)
