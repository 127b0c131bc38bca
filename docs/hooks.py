"""What `make docs` shows besides docs/: README, CONTRIBUTING, CHANGELOG and the examples are pages too, without copies.

Invariant: a link that works where the text stands in the repository leads to the same thing on the site.
"""

import os
import re
from pathlib import Path, PurePosixPath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
PAGES = {"index.md": "README.md", "contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}
"""Page of the site -> file of the repository."""
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
LINK = re.compile(r"(\]\()([^)#:\s]+)(#[^)\s]*)?(?=\))")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that do not stand in docs/."""
    for page, source in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text()))
    files.append(File.generated(config, "examples.md", content=examples()))
    files.append(File.generated(config, "CITATION.cff", content=(ROOT / "CITATION.cff").read_text()))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Turn links between files of the repository into links between pages."""
    uri = page.file.src_uri
    source = PurePosixPath(PAGES.get(uri, f"docs/{uri}"))
    return LINK.sub(lambda match: f"{match[1]}{site_link(source, match[2], match[3] or '', uri)}", markdown)


def site_link(source: PurePosixPath, link: str, heading: str, page: str) -> str:
    """Where a link of a file of the repository leads on the site, as seen from its page."""
    target = os.path.normpath(source.parent / link)
    if target.startswith("examples"):
        heading = heading or ("#" + target.removeprefix("examples/").replace(".", "") if target.endswith(".py") else "")
        target = "examples.md"
    target = {file: name for name, file in PAGES.items()}.get(target, target.removeprefix("docs/"))
    return os.path.relpath(target, PurePosixPath(page).parent) + heading


def examples() -> str:
    """A page of all files in examples/."""
    files = (f"## {path.name}\n\n```python\n{path.read_text()}```\n" for path in EXAMPLES)
    return "# Examples\n\nShort files outside the packages, as yours would be.\n\n" + "\n".join(files)
