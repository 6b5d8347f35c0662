"""What a stranger's file, database, record or config must not be able to do."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

import mnistexp
from mnistexp.config import option_files
from mnistexp.config.compose import compose, parse_request, run_config
from mnistexp.config.schema import IdxFile
from mnistexp.data.mnist import fetch
from mnistexp.errors import ConfigError, DataError, StoreError, without_passwords
from mnistexp.search.space import build
from mnistexp.tracking import runs

PACKAGE = Path(mnistexp.__file__).parent
REPOSITORY = PACKAGE.parent


# ---------------------------------------------------------------------------- what a module may import and call

BANNED = [  # names of what runs a stranger's bytes or opens a port
    *("pickle", "cloudpickle", "dill", "shelve", "marshal", "eval", "exec", "unsafe_load", "full_load", "load_model"),
    *("from_pretrained", "instantiate", "bind", "create_server", "HTTPServer", "ThreadingHTTPServer"),
]
ALLOWED = {"commands/ui": ["create_server"], "config/user_code": ["bind", "eval", "exec"]}  # --code
SOURCES = {
    path.relative_to(PACKAGE).with_suffix("").as_posix(): path.read_text(encoding="utf-8")
    for path in sorted(PACKAGE.rglob("*.py"))
}


def dangers(source: str) -> Iterator[str]:
    """What in a module could run a stranger's bytes, or listen."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            words = [part for alias in node.names for part in alias.name.split(".")]
            words += (node.module or "").split(".") if isinstance(node, ast.ImportFrom) else []
        elif isinstance(node, ast.Name | ast.Attribute):
            words = [node.id if isinstance(node, ast.Name) else node.attr]
        elif isinstance(node, ast.keyword) and node.arg in ("allow_pickle", "shell"):
            words = [] if ast.unparse(node.value) == "False" else [f"{node.arg}=True"]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("np.load", "numpy.load"):
            words = [] if any(keyword.arg == "allow_pickle" for keyword in node.keywords) else ["np.load"]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("yaml.load", "joblib.load"):
            words = ["unsafe_load"]
        else:
            continue
        yield from (word for word in words if word in BANNED or word in ("allow_pickle=True", "shell=True", "np.load"))


@pytest.mark.parametrize("module", SOURCES)
def test_no_module_can_run_what_it_reads(module: str) -> None:
    """No module unpickles, evaluates, instantiates from a config, starts a shell or opens a port, except ALLOWED."""
    assert list(dangers(SOURCES[module])) == ALLOWED.get(module, [])


def test_user_code_comes_only_from_the_command_line() -> None:
    """Only the command line reads a file of code; only it and its children set the file that is run."""
    using = {
        name: {module for module, text in SOURCES.items() if re.search(rf"\buser_code\.{name}\(", text)}
        for name in ("read", "use")
    }

    assert using == {"read": {"cli"}, "use": {"cli", "training/worker", "training/inference"}}


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from multiprocessing import pickle",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "yaml.load(text, Loader)",
        "joblib.load(path)",
        "keras.models.load_model(path)",
        "hydra.utils.instantiate(config)",
        "server.bind((host, 0))",
        "subprocess.run(text, shell=True)",
    ],
)
def test_the_scan_sees(line: str) -> None:
    """The rule above can fail."""
    assert list(dangers(line))


# ---------------------------------------------------------------------------------------- nothing runs or escapes


def option(folder: Path, text: str) -> None:
    """Compose with an option file of this content."""
    (folder / "experiments" / "my").mkdir(parents=True, exist_ok=True)
    (folder / "experiments" / "my" / "own.yaml").write_text(text)
    compose(parse_request(["data=digits", "experiments=my/own"], folder))


@pytest.mark.parametrize(
    "text",
    [
        "# @package hydra.callbacks.x\n_target_: pathlib.Path.touch\nself: {proof}\n",
        "# @package _global_\nhydra: {{callbacks: {{x: {{_target_: os.mkdir, path: {proof}}}}}}}\n",
        "# @package _global_\noptimizer: {{_target_: os.mkdir, path: {proof}}}\n",
        "# @package _global_\nmodel:\n  name: !!python/object/apply:os.mkdir [{proof}]\n",
        "# @package _global_\nsearch: {{seed: {{_target_: os.mkdir, path: {proof}}}}}\n",
    ],
)
def test_no_config_names_code_that_runs(text: str, tmp_path: Path) -> None:
    """Callbacks, `_target_`s and YAML tags in an option file make nothing, whether they are refused or passed over."""
    proof = tmp_path / "proof"
    try:
        option(tmp_path / "options", text.format(proof=proof))
    except ConfigError as error:
        refused = str(error)
    else:
        refused = ""

    assert not proof.exists()
    assert refused or "hydra" in text  # Hydra's own settings are passed over


@pytest.mark.parametrize(
    "defaults",
    ["../../../outside", "/../../outside@_global_", "../../../outside@_here_", "${oc.env:HOME}/x", "/a/../../x"],
)
def test_an_option_file_reads_no_other_folder(defaults: str, tmp_path: Path) -> None:
    """Defaults that lead out of the folder are refused: what lies there is no config of ours, and would be shown."""
    (tmp_path / "outside.yaml").write_text("# @package _global_\nseed: 77\n")

    with pytest.raises(ConfigError, match="its defaults hold"):
        option(tmp_path / "options", f"defaults:\n  - {defaults}\n")


def test_a_pipe_in_a_folder_of_options_is_refused(tmp_path: Path) -> None:
    """Reading it would never end."""
    (tmp_path / "optimizer").mkdir()
    os.mkfifo(tmp_path / "optimizer" / "mine.yaml")

    with pytest.raises(ConfigError, match=r"mine\.yaml: an option is a file of at most"):
        parse_request(["seed=1"], tmp_path)


def test_a_whole_disk_is_no_folder_of_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with more files than options could have is refused before all of them are read."""
    monkeypatch.setattr(option_files, "MAX_ENTRIES", 20)
    for number in range(21):
        (tmp_path / str(number)).touch()

    with pytest.raises(ConfigError, match="has over 20 files"):
        parse_request(["seed=1"], tmp_path)


@pytest.mark.parametrize("name", ["..", ".hidden", "../x", "/etc/passwd", "a\\b", "", "a\nb", "x" * 101])
def test_names_of_files_stay_in_their_folder(name: str) -> None:
    """A data set's files, from the config or from a run's record, are named without folders."""
    with pytest.raises(ValueError, match="name"):
        IdxFile(name=name, bytes=1, md5="0" * 32, sha256="0" * 64)


# ------------------------------------------------------------------------------------------------- passwords

SECRET = "s3cr3t"
URLS = [
    f"postgresql://me:{SECRET}@db/studies",
    f"postgresql+psycopg://me:{SECRET}@127.0.0.1:5432/studies?sslmode=require",
    f"postgresql://me:a/{SECRET}@db/studies",
    f"postgresql://me:a {SECRET}@db/studies",
    f"postgresql:/me:{SECRET}@db/studies",
    f"postgresql//me:{SECRET}@db/studies",
    f"postgresql://db/studies?user=me&password={SECRET}",
    f"postgresql://db/studies?sslpassword={SECRET}&x=1",
]


def plan(words: list[str]) -> None:
    """All that a sweep does with its command line before it trains."""
    request = parse_request(words)
    compose(request)
    build(request)


@pytest.mark.parametrize("url", URLS)
def test_no_message_shows_a_password(url: str) -> None:
    """Whatever the mistake around an address with a password, what is said of it has *** in its place."""
    mistakes = [
        [f"study.storge={url}"],
        [f"study.storage='{url}"],
        [f"study.storage={url}["],
        [f"+study.storage={url}"],
        [f"study.storage@x={url}"],
        [f"study.name='{url}'"],
        [f"optimizer='{url}'"],
        [f"data.mirrors=['{url}']", "data=mnist", "study.trials=0"],
        [f"model.activation=choice(relu,'{url}')"],
        [f"search.study.storage=choice('{url}')"],
        [f"study.storage='{url}'", "study.name='${study.storage}'"],
        [f"study.storage='{url} ${{'"],
    ]
    for words in mistakes:
        with pytest.raises(ConfigError) as caught:
            plan(["data=digits", "search=none", "search.seed=choice(1,2)", *words])

        assert SECRET not in str(caught.value), words
        assert SECRET not in "".join(caught.value.faults), words
    assert SECRET not in without_passwords(url)
    assert SECRET not in str(StoreError(f"{url}: can't be reached"))
    assert SECRET not in without_passwords(yaml.safe_dump({"study": {"storage": url}}))


@pytest.mark.parametrize("url", [url for url in URLS if "://" in url])
def test_no_run_records_a_password(url: str) -> None:
    """What a run keeps of a command line and a config has nothing of the databases' addresses."""
    words = ["data=digits", f"study.storage='{url}'", f"tracking.uri='{url}'", "seed=1"]
    request = parse_request(words)
    config = compose(request)

    recorded = [*request.run_overrides, json.dumps(runs.params(run_config(config)))]
    recorded += [run_config(config).model_dump_json()]

    assert config.study.storage == config.tracking.uri == url
    assert request.run_overrides == ("data=digits", "seed=1")
    assert not any(SECRET in text for text in recorded)


def test_a_mirror_with_a_password_is_refused() -> None:
    """A run records its mirrors, so one with a password is no mirror; neither is a local file."""
    for mirror in (f"https://me:{SECRET}@host/x", "file:///etc/", "ftp://host/", "https://"):
        with pytest.raises(ConfigError, match=r"data\.mirrors\.0=.*: must match pattern") as caught:
            compose(parse_request(["data=mnist", f"data.mirrors=['{mirror}']"]))
        assert SECRET not in str(caught.value)

    assert compose(parse_request(["data=mnist", "data.mirrors=['http://127.0.0.1:80/a/b']"]))


@pytest.mark.parametrize(
    "text",
    [
        "sqlite:///optuna.db",
        "http://127.0.0.1:5000: no MLflow server answers there; write an @ as %40",
        "study.storage=optuna.db: must be like postgresql://USER:PASSWORD@HOST/DATABASE",
        "optimizer@model=adam: the config takes no new, removed or moved keys",
    ],
)
def test_other_messages_stay_as_they_are(text: str) -> None:
    """A message without a password loses nothing."""
    assert without_passwords(text) == text
    assert str(ConfigError(text)) == text


@pytest.mark.timeout(60)  # in quadratic time it would be hours
def test_hiding_passwords_takes_no_time_to_speak_of() -> None:
    """Colons, at signs and question marks by the hundred thousand are no way to stall the program."""
    for word in (":" * 100_000 + "@", "://" * 40_000 + "@ ", "?key" * 30_000, "? " * 60_000, "@:" * 60_000):
        assert len(str(ConfigError(word))) < 2000


# --------------------------------------------------------------------------------------- telemetry, downloads


def test_telemetry_is_off() -> None:
    """MLflow reports no telemetry after mnistexp.tracking is imported."""
    code = (
        "import mnistexp.tracking.runs; from mlflow.telemetry import utils; utils._IS_IN_CI_ENV_OR_TESTING = False; "
        "utils._IS_MLFLOW_DEV_VERSION = False; print(utils.is_telemetry_disabled())"
    )
    settings = {"MLFLOW_DISABLE_TELEMETRY", "DO_NOT_TRACK"}
    environment = {key: value for key, value in os.environ.items() if key not in settings}

    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**environment, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=True,
    )

    assert done.stdout.strip() == "True"


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "kmnist"])
def test_every_download_has_a_sha256(name: str) -> None:
    """Each of the four files of each data set is compared by SHA-256, the mirrors that speak plain http above all."""
    files = compose(parse_request([f"data={name}"])).data.files  # type: ignore[union-attr]

    digests = [file["sha256"] for file in files.model_dump().values()]

    assert len(set(digests)) == 4
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in digests)


def test_nothing_is_downloaded_unchecked(tmp_path: Path) -> None:
    """A file that only an MD5 is known of is not fetched at all."""
    file = IdxFile(name="x.gz", bytes=1, md5="0" * 32, sha256=None)

    with pytest.raises(DataError, match=r"x\.gz can't be downloaded: data\.files gives no sha256"):
        fetch(tmp_path / "cache", [file], ["http://127.0.0.1:9/"], 1.0)

    assert not (tmp_path / "cache").exists()
