"""Data configs composed from conf/data alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from pydantic import TypeAdapter

from mnistexp.config.schema import DataConfig

CONF = Path(__file__).resolve().parents[2] / "conf"


def config(name: str, *overrides: str, **values: Any) -> Any:
    """Compose conf/data/NAME.yaml; `values` set keys of data that no override can spell."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        composed = compose(None, [f"+data={name}", *overrides])
    plain = OmegaConf.to_container(composed.data, resolve=True)
    return TypeAdapter(DataConfig).validate_python({**plain, **values})  # type: ignore[dict-item]
