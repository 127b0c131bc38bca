"""What would break the site, without building it: `make docs` takes an environment of its own."""

import re
from pathlib import Path

import pytest
import yaml

import vla_envs
import vla_train

ROOT = Path(__file__).parents[1]
SITE = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
WRITTEN = sorted((ROOT / "docs").rglob("*.md"))
ELSEWHERE = {"index.md", "contributing.md", "changelog.md", "examples.md"}
"""Pages that docs/hooks.py makes of files outside docs/."""
ON_THE_SITE = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "CITATION.cff", "examples")
"""What outside docs/ may be linked to, since that file brings it along."""
TEXTS = [*WRITTEN, *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"))]
TASKS = ("train_7b", "use_envs", "own_task", "own_env", "own_policy", "evaluate", "timeline", "cluster")
FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def pages_of(nav: object) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    return [page for part in (nav.values() if isinstance(nav, dict) else nav) for page in pages_of(part)]


def links_of(text: Path) -> list[str]:
    return [link for link in re.findall(r"\]\(([^)\s]+)\)", FENCED.sub("", text.read_text())) if "://" not in link]


def anchors_of(text: Path) -> set[str]:
    """Names of a page's headings, as the forge and the site both make them."""
    headings = re.findall(r"^#+ (.+)$", FENCED.sub("", text.read_text()), re.MULTILINE)
    plain = [re.sub(r"[^\w\s-]", "", heading).strip().lower() for heading in headings]
    return {re.sub(r"\s", "-", name) for name in plain} & {re.sub(r"[-\s]+", "-", name) for name in plain}


def test_each_page_is_in_the_navigation_once() -> None:
    written = {path.relative_to(ROOT / "docs").as_posix() for path in WRITTEN}
    assert sorted(pages_of(SITE["nav"])) == sorted(written | ELSEWHERE)


@pytest.mark.parametrize("package", [vla_envs, vla_train], ids=lambda package: package.__name__)
def test_each_public_name_is_in_the_reference_once(package) -> None:
    page = (ROOT / "docs" / "reference" / f"{package.__name__}.md").read_text()
    assert sorted(re.findall(rf"^::: {package.__name__}\.(\w+)$", page, re.MULTILINE)) == sorted(package.__all__)


@pytest.mark.parametrize("text", TEXTS, ids=lambda path: path.name)
def test_a_link_leads_to_a_file_and_a_heading_that_exist(text: Path) -> None:
    for link in links_of(text):
        name, _, heading = link.partition("#")
        target = (text.parent / name).resolve() if name else text
        assert target.exists(), link
        assert target.is_relative_to(ROOT / "docs") or target.relative_to(ROOT).as_posix().startswith(ON_THE_SITE), link
        assert not heading or heading in anchors_of(target), link


def test_the_links_that_are_looked_at_are_many() -> None:
    assert sum(len(links_of(text)) for text in TEXTS) > 80


@pytest.mark.parametrize("task", TASKS)
def test_a_page_about_a_task_is_short(task: str) -> None:
    assert len((ROOT / "docs" / f"{task}.md").read_text().splitlines()) < 80


def test_nothing_of_the_site_is_fetched_from_elsewhere() -> None:
    assert SITE["theme"]["font"] is False
    assert SITE["strict"] is True
