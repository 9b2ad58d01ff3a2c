"""The documents name files that exist, and nothing in them waits to be written."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document):
    targets = re.findall(r"\]\(([^)#\s]+)", document.read_text(encoding="utf-8"))
    local = [target for target in targets if "://" not in target]
    assert not [target for target in local if not (document.parent / target).exists()]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_nothing_is_left_to_be_written(document):
    assert not re.findall(r"TODO|TBD|FIXME|XXX|@@|to be measured", document.read_text(encoding="utf-8"))


def test_scripts_that_the_documents_name_exist():
    text = "\n".join(path.read_text(encoding="utf-8") for path in DOCUMENTS)
    named = set(re.findall(r"python ([\w/]+\.py)", text))
    assert named
    assert not [name for name in named if not (ROOT / name).exists()]
