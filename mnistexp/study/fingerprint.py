"""What makes the trials of a study comparable, and the check that a sweep continues the same study."""

from __future__ import annotations

import json

from mnistexp.config import user_code
from mnistexp.config.compose import identity, run_config
from mnistexp.config.schema import Config
from mnistexp.errors import ConfigError, StoreError
from mnistexp.search.space import Space
from mnistexp.study.trial_attrs import StudyAttrs

CONFIRMATION = "search.candidates"  # a key of a study that repeats the best configs of another study


def fingerprint(space: Space, config: Config, data_fingerprint: str) -> dict[str, str]:
    """Return what makes trials comparable: the space, the data, and the config outside the space."""
    base = {**identity(run_config(config)), "data": data_fingerprint}
    return {
        **{f"search.{name}": text for name, text in space.fingerprint().items()},
        **{key: json.dumps(base[key], sort_keys=True) for key in base},
        **({"--code": digest} if (digest := user_code.sha256()) else {}),  # any trial may use one of its functions
    }


def check_fingerprint(name: str, attrs: StudyAttrs, wanted: dict[str, str]) -> None:
    """Check that new trials would be comparable with the study's. Raises: ConfigError naming what differs."""
    before = attrs.fingerprint
    if before is None:
        raise StoreError(f"study.name={name}: was not made by mnistexp; give another study.name")
    changed = sorted(key for key in wanted.keys() | before.keys() if wanted.get(key) != before.get(key))
    if "--code" in changed:
        raise ConfigError(
            f"study.name={name}: was started with {'other' if '--code' in before else 'no'} code of the user's own "
            f"(--code); MLflow keeps it as the artifact code.py of its run; give that file, or another study.name"
        )
    if changed:
        other = "what it had" if CONFIRMATION in wanted else f"another name, e.g. study.name={name}-2"
        raise ConfigError(
            f"study.name={name}: was started with another {', '.join(changed)}; its trials can't be compared with "
            f"new ones, so give {other}"
        )
