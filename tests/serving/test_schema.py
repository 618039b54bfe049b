"""Requests made from the documentation of the routes, good and bad: every answer is as it says.

`RAYSYS_FUZZ=10000 pytest tests/serving/test_schema.py` sends that many.
"""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, seed, settings
from toy_run import KEY, write_run

from raysys.serving.app import local_app
from raysys.serving.messages import Problem
from raysys.serving.settings import ServeSettings

REQUESTS = int(os.environ.get("RAYSYS_FUZZ", "1500"))
GENERATORS = (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE)


@pytest.fixture(scope="module")
def operations(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    run = write_run(tmp_path_factory.mktemp("serve") / "run")
    doors = {"requests_per_second": 1e6, "burst": 1_000_000}
    app = local_app(ServeSettings.model_validate({"run": run, "doors": doors}), "secret")
    document = app.openapi()
    # The key is in every request here: what happens without one is in test_web.py.
    del document["security"]
    schema = schemathesis.openapi.from_dict(document)
    schema.app = app
    return [operation.ok() for operation in schema.get_all_operations()]


def test_every_answer_is_as_the_documentation_says(operations: list[Any]) -> None:
    asking = [one for one in operations if one.path_parameters or one.query or one.body]
    assert len(asking) >= 6
    found: Counter[tuple[str, int]] = Counter()
    each = -(-REQUESTS // (len(asking) * len(GENERATORS)))
    for operation in asking:
        for mode in GENERATORS:

            @seed(7)
            @given(case=operation.as_strategy(generation_mode=mode))
            @settings(
                max_examples=each,
                deadline=None,
                database=None,
                suppress_health_check=list(HealthCheck),
            )
            def answered(case: Any) -> None:
                answer = case.call(headers=KEY)
                found[case.operation.label, answer.status_code] += 1
                assert answer.status_code < 500 or answer.status_code == 501
                if answer.status_code == 413:  # right, though no schema can say it
                    Problem.model_validate(answer.json())
                else:
                    case.validate_response(answer)

            answered()
    assert found.total() >= REQUESTS * 0.9, found
    for operation in asking:
        assert sum(count for (label, _), count in found.items() if label == operation.label)
    assert {200, 404, 422} <= {status for _, status in found}


def test_paths_without_parameters_answer(operations: list[Any]) -> None:
    plain = [one for one in operations if not (one.path_parameters or one.query or one.body)]
    for operation in plain:
        case = operation.Case()
        case.validate_response(case.call(headers=KEY))
