"""docs/performance.md and its picture: what is between the marks is made from bench/results.

``python -m bench.page`` (or ``python -m bench.read --render``) makes them again; ``--check`` only says
whether they agree with the results, with exit status 1 if not.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import sys
from pathlib import Path

from bench import picture, tables
from bench.harness import RESULTS

BENCH = Path(__file__).parent
DOCS = Path(__file__).parents[1] / "docs"
PAGE = "performance.md"
PICTURE = "performance.svg"

_BLOCK = re.compile(r"(<!-- bench:(\w+) -->\n).*?(<!-- end -->)", re.DOTALL)

#: The block of all results that have none of their own.
OTHERS = "others"


def made(docs: Path, results: Path) -> dict[Path, str]:
    """path -> what it must hold. Raises FileNotFoundError for a result that is wanted and not there."""
    text = (docs / PAGE).read_text()
    own = {match[2] for match in _BLOCK.finditer(text)} - {OTHERS}
    all_results = {path.stem: json.loads(path.read_text()) for path in sorted(results.glob("*.json"))}
    if missing := own - set(all_results):
        raise FileNotFoundError(f"{results} has no result of: {', '.join(sorted(missing))}")

    def block(match: re.Match[str]) -> str:
        if match[2] != OTHERS:
            return match[1] + tables.of(all_results[match[2]]) + match[3]
        others = (_section(name, result) for name, result in all_results.items() if name not in own)
        return match[1] + "\n".join(others) + match[3]

    return {docs / PAGE: _BLOCK.sub(block, text), docs / PICTURE: picture.of(all_results["read"])}


def _section(name: str, result: tables.Result) -> str:
    return f"### bench.{name}\n\n{_first_paragraph(name)}\n\n{tables.of(result)}"


def _first_paragraph(name: str) -> str:
    """Of what the benchmark says of itself, not imported: the page needs nothing that is installed."""
    module = BENCH / f"{name}.py"
    source = module if module.exists() else BENCH / name / "__init__.py"
    words = ast.get_docstring(ast.parse(source.read_text())) or ""
    return words.split("\n\n")[0].replace("\n", " ").replace("``", "`")


def render(docs: Path = DOCS, results: Path = RESULTS) -> None:
    for path, text in made(docs, results).items():
        path.write_text(text)
        print(f"written: {path}")


def differing(docs: Path = DOCS, results: Path = RESULTS) -> list[Path]:
    return [
        path for path, text in made(docs, results).items() if not path.exists() or path.read_text() != text
    ]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--docs", type=Path, default=DOCS, help="default: %(default)s")
    arguments.add_argument("--results", type=Path, default=RESULTS, help="default: %(default)s")
    arguments.add_argument("--check", action="store_true", help="write nothing")
    options = arguments.parse_args()
    if not options.check:
        render(options.docs, options.results)
        return
    stale = differing(options.docs, options.results)
    for path in stale:
        print(f"{path} does not agree with {options.results}: run python -m bench.page", file=sys.stderr)
    sys.exit(bool(stale))


if __name__ == "__main__":
    main()
