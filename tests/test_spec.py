"""What may be asked, in every way to write it, and where a field that is wrong is found."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import get_args

import jsonschema
import pytest
from pydantic import ValidationError

from leadline.interventions import FAMILIES as LATENT
from leadline.schemas import schemas
from leadline.spec import (
    CONDITIONED,
    PROMPTED,
    TEXTS,
    Family,
    RunSpec,
    UserError,
    field_errors,
    field_path,
    json_schema,
    yaml_line,
)

FAMILIES = get_args(Family)
FAMILIES_WANTED = f"'text' is none of {', '.join(FAMILIES)}"
NO_INTEGER = "Input should be a valid integer, unable to parse string as an integer, not 'x'"
COMPUTE = "Auto, or float32 or bfloat16, eager, sdpa or blockwise, and a number of threads, each at most once, not "
SCHEMAS = Path(__file__).parents[1] / "docs" / "schema"


def problem(text_fields: dict[str, object], text: str = "") -> UserError:
    with pytest.raises(ValidationError) as caught:
        RunSpec.model_validate(text_fields)
    return field_errors(caught.value, RunSpec, "spec.yaml", text)


def test_lists_as_people_write_them():
    for sizes in ("1,2,4", " 1, 2 ,4,", [1, 2, 4], (1, 2, 4), ["1", "2", "4"]):
        assert RunSpec(sizes=sizes).sizes == (1, 2, 4)
    assert RunSpec(sizes=8).sizes == (8,)
    assert RunSpec(family="soft_prompt").family == ("soft_prompt",)
    assert RunSpec(family="soft_prompt, soft_subspace").family == ("soft_prompt", "soft_subspace")
    assert set(FAMILIES) == {*LATENT, *TEXTS}
    assert RunSpec(family="all").family == tuple(f for f in FAMILIES if f not in (*CONDITIONED, *PROMPTED))


def test_a_stored_spec_is_read_again():
    spec = RunSpec(sizes="1,2", family="all", threshold=0.5)
    assert RunSpec.model_validate(json.loads(json.dumps(spec.model_dump(mode="json")))) == spec


def test_a_spec_does_not_change():
    with pytest.raises(ValidationError, match="frozen"):
        RunSpec().seeds = 2


@pytest.mark.parametrize(
    ("fields", "what", "where"),
    [
        ({"seeds": 0}, "Input should be greater than or equal to 1, not 0", "field seeds"),
        ({"sizes": [1, 0]}, "Input should be greater than or equal to 1, not 0", "field sizes.1"),
        ({"sizes": [2, 1]}, "Sizes must be increasing, at least one, each once", "field sizes"),
        ({"sizes": []}, "Sizes must be increasing, at least one, each once", "field sizes"),
        (
            {"sizes": "x"},
            "Input should be a valid integer, unable to parse string as an integer, not 'x'",
            "field sizes.0",
        ),
        ({"threshold": 1.01}, "Input should be less than or equal to 1, not 1.01", "field threshold"),
        ({"threshold": float("nan")}, "Input should be less than or equal to 1, not nan", "field threshold"),
        ({"family": "text"}, FAMILIES_WANTED, "field family.0"),
        ({"compute": "float16"}, COMPUTE + "'float16'", "field compute"),
        ({"compute": "float32,bfloat16"}, COMPUTE + "'float32,bfloat16'", "field compute"),
        ({"compute": "0"}, COMPUTE + "'0'", "field compute"),
        ({"sedes": 1}, "There is no such field", "field sedes"),
        ({"draws": 8, "items": 0}, "Input should be greater than or equal to 1, not 0", "field items"),
    ],
)
def test_what_is_wrong_and_where(fields, what, where):
    error = problem(fields)
    assert (error.what, error.where) == (what, f"spec.yaml, {where}")
    assert str(error) == f"{what} (spec.yaml, {where}). {error.how}"
    assert ("1 more" in error.how) == (len(fields) > 1)


def test_lines_of_fields():
    text = "# a comment\nmodel: m\nsizes:\n  - 1\n  -   2\nreply: {text: a,\n  ends: [x, {y: 1}]}\n"
    for place, line in [
        (("model",), 2), (("sizes",), 3), (("sizes", 1), 5), (("sizes", 7), 3), (("reply", "text"), 6),
        (("reply", "ends", 1, "y"), 7), (("reply", "none"), 6), (("sizes", "tuple[int, ...]", 0), 4), (("none",), None),
        ((), None),
    ]:  # fmt: skip
        assert yaml_line(text, place) == line, place
    assert problem({"seeds": 0}, "model: m\nseeds: 0\n").where == "spec.yaml, line 2, field seeds"
    assert field_path(("contexts", "tuple[union[str,tuple[Message, ...]], ...]", 3, "str")) == "contexts.3"


def test_schemas_are_fresh():
    """Written by `python -m leadline.schemas docs/schema`."""
    written = {path.name: path.read_text() for path in SCHEMAS.glob("*.json")}
    assert written == schemas()


def test_schemas_say_what_fields_mean():
    for name, text in schemas().items():
        schema = json.loads(text)
        assert schema["additionalProperties"] is False
        for field, told in schema["properties"].items():
            assert len(told["description"]) > 5, f"{name}: {field}"
    spec = json.loads(schemas()["spec.json"])["properties"]
    defaults = {field: told["default"] for field, told in spec.items()}
    assert defaults == RunSpec().model_dump(mode="json")
    assert re.search("increasing", spec["sizes"]["description"])


def test_a_family_that_is_mistyped_is_told_the_nearest():
    with pytest.raises(ValidationError) as wrong:
        RunSpec(family="soft_promt")
    error = field_errors(wrong.value, RunSpec, "--family")
    assert error.what == "There is no 'soft_promt'; the nearest is soft_prompt"


def test_families_that_are_measured_unasked_are_told_so():
    with pytest.raises(ValidationError, match="prefill is measured unasked"):
        RunSpec(family="soft_prompt,prefill")


@pytest.mark.parametrize(
    "fields", [{"family": "all", "sizes": "1,2"}, {"family": ["lora"], "sizes": 4}, {"sizes": [1, 2]}, {"sizes": None}]
)
def test_the_schema_takes_what_the_spec_takes(fields):
    jsonschema.validate(fields, json_schema(RunSpec))
    assert RunSpec(**fields)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"family": ["loar"]}, json_schema(RunSpec))
