"""The trials of a sweep: which settings each of them changes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import numpy as np

from raysys.errors import UserError
from raysys.settings import parse_settings, set_key
from raysys.stages.context import RunSettings
from raysys.store import fingerprint
from raysys.tuning.settings import Range, TuneSettings

#: Key of the run's config → value.
Values = dict[str, Any]


def name_of(values: Values) -> str:
    """The folder name of a trial: the same for the same values."""
    return fingerprint(values)[:12]


def listed(settings: TuneSettings) -> list[Values]:
    """All trials of a grid, or as many drawn ones as asked for, without repetition.

    Raises:
        UserError: the space holds fewer different trials than asked for.
    """
    if settings.search == "grid":
        columns = [values for values in settings.space.values() if isinstance(values, tuple)]
        return [dict(zip(settings.space, row, strict=True)) for row in itertools.product(*columns)]
    draw, found = np.random.default_rng(settings.seed), {}
    wanted = settings.trials or 0
    for _ in range(100 * wanted):
        values = {key: _draw(choices, draw) for key, choices in settings.space.items()}
        found[name_of(values)] = values
        if len(found) == wanted:
            return list(found.values())
    raise UserError(
        f"trials = {wanted}, but the space holds only about {len(found)} different ones: lower "
        '`trials`, or set search = "grid".'
    )


def _draw(choices: tuple[Any, ...] | Range, draw: np.random.Generator) -> Any:
    if not isinstance(choices, Range):
        return choices[int(draw.integers(len(choices)))]
    if choices.whole and not choices.log:
        return int(draw.integers(int(choices.low), int(choices.high) + 1))
    if not choices.log:
        return float(draw.uniform(choices.low, choices.high))
    found = math.exp(draw.uniform(math.log(choices.low), math.log(choices.high)))
    return round(found) if choices.whole else found


def tune_space(settings: TuneSettings) -> dict[str, Any]:
    """The space as Ray Tune's searchers read it; a choice is the number of a value."""
    from ray import tune

    found = {}
    for number, choices in enumerate(settings.space.values()):
        if not isinstance(choices, Range):
            domain: Any = tune.choice(range(len(choices)))
        elif choices.whole:
            draw = tune.lograndint if choices.log else tune.randint
            domain = draw(int(choices.low), int(choices.high) + 1)
        else:
            domain = (tune.loguniform if choices.log else tune.uniform)(choices.low, choices.high)
        found[f"p{number}"] = domain
    return found


def from_tune(settings: TuneSettings, config: Mapping[str, Any]) -> Values:
    """The values that a point of `tune_space` stands for."""
    return {
        key: choices[config[f"p{number}"]]
        if not isinstance(choices, Range)
        else config[f"p{number}"]
        for number, (key, choices) in enumerate(settings.space.items())
    }


def to_tune(settings: TuneSettings, values: Values) -> dict[str, Any] | None:
    """The point of `tune_space` that stands for these values; None where there is none."""
    found: dict[str, Any] = {}
    for number, (key, choices) in enumerate(settings.space.items()):
        if key not in values:
            return None
        value = values[key]
        if isinstance(choices, Range):
            inside = isinstance(value, int | float) and choices.low <= value <= choices.high
            found[f"p{number}"] = value
        else:
            inside = value in choices
            found[f"p{number}"] = choices.index(value) if inside else -1
        if not inside:
            return None
    return found


def trial_config(base: Mapping[str, Any], values: Values) -> dict[str, Any]:
    """The run's config, as read from its file, with a trial's values."""
    config = deepcopy(dict(base))
    for key, value in values.items():
        set_key(config, key, list(value) if isinstance(value, tuple) else value)
    return config


def check_space(settings: TuneSettings, base: Mapping[str, Any]) -> None:
    """Parse every value once, the others as in the run, before hours are spent on the first ones.

    Raises:
        UserError: no such key (with the nearest one), or a value that the run refuses.
    """
    first = {key: _ends(choices)[0] for key, choices in settings.space.items()}
    for key, choices in settings.space.items():
        for value in _ends(choices):
            config = trial_config(base, first | {key: value})
            parse_settings(RunSettings, config, source=f"space.'{key}' = {value!r}")


def _ends(choices: tuple[Any, ...] | Range) -> tuple[Any, ...]:
    """All values of a list, both ends of a range."""
    if not isinstance(choices, Range):
        return choices
    ends = (choices.low, choices.high)
    return tuple(int(end) for end in ends) if choices.whole else ends
