"""``fastssl train METHOD``: the settings of a run from the command line, a YAML file, or both."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from pydantic import ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    CliApp,
    CliPositionalArg,
    SettingsConfigDict,
    SettingsError,
)
from rich.console import Console

from fastssl.errors import UserError
from fastssl.evaluation import to_table
from fastssl.training.config import MethodName, TrainConfig, config_from, explain, read_yaml
from fastssl.training.run import train
from fastssl.training.run_dir import read_config


class TrainArguments(TrainConfig, BaseSettings):
    """Train an encoder, on unlabelled images but for supcon. What is not given comes from --config,
    then from the preset, then from the defaults, which are SimCLR's for scikit-learn's digits."""

    model_config = SettingsConfigDict(
        cli_prog_name="fastssl train",
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_avoid_json=True,
        cli_exit_on_error=False,
        cli_hide_none_type=True,
    )

    method: CliPositionalArg[MethodName] = "simclr"
    """what is trained"""
    config: Path | None = None
    """a YAML file of settings"""
    resume: Path | None = None
    """directory of a run to go on with, by its own settings"""

    @model_validator(mode="before")
    @classmethod
    def fill_from_preset(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Not yet: a YAML file counts more than the preset."""
        return values

    @model_validator(mode="after")
    def refuse_what_has_no_effect(self) -> TrainArguments:
        """Not yet: the method may be named in a YAML file."""
        return self

    @classmethod
    def settings_customise_sources(  # type: ignore[override]
        cls, settings_cls: Any, init_settings: Any, **_: Any
    ) -> Any:
        return (init_settings,)  # and the command line: no environment variables


def main(argv: list[str]) -> int:
    """Run ``fastssl train``; the exit status: 0, 2 for what the user can put right, or 130."""
    try:
        config, resume = parse(argv)
        path, report = train(config, resume=resume)
    except UserError as error:
        print(f"fastssl train: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("fastssl train: interrupted; go on with --resume RUN_DIR", file=sys.stderr)
        return 130
    if report:
        Console().print(to_table(report))
    if path:
        print(f"run: {path}")
    return 0


def parse(argv: list[str]) -> tuple[TrainConfig, Path | None]:
    """The settings, and the run to go on with, if any.

    Raises:
        UserError: unknown or wrong settings, or others beside --resume.
    """
    try:
        arguments = CliApp.run(TrainArguments, cli_args=argv)
    except SettingsError as error:
        raise UserError(str(error).removeprefix("error parsing CLI: ")) from error
    except ValidationError as error:
        raise UserError(explain(error)) from error
    given = {name: getattr(arguments, name) for name in arguments.model_fields_set}
    path = given.pop("config", None)
    resume = given.pop("resume", None)
    if resume is not None:
        if path or set(given) - {"method"}:
            raise UserError("--resume takes the run's own settings; give no others")
        return read_config(resume), resume
    if path is None:
        return config_from(given, "settings"), None
    return config_from({**read_yaml(path), **given}, str(path)), None
