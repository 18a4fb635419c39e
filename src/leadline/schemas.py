"""JSON Schemas of the files that people write, for editors: python -m leadline.schemas FOLDER.

Knows nothing of what is in the files beyond their pydantic classes.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from pydantic import BaseModel

from leadline.behaviour import Behaviour
from leadline.spec import RunSpec, json_schema
from leadline.suite_spec import SuiteSpec

KINDS: dict[str, type[BaseModel]] = {"behaviour.json": Behaviour, "spec.json": RunSpec, "suite.json": SuiteSpec}


def schemas() -> dict[str, str]:
    """File names and texts of the JSON Schemas."""
    return {name: json.dumps(json_schema(kind), indent=1) + "\n" for name, kind in KINDS.items()}


def main() -> None:
    """Writes them into the folder that is named."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, schema in schemas().items():
        (folder / name).write_text(schema, "ascii")


if __name__ == "__main__":
    main()
