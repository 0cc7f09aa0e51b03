"""English text without a download: what the Python standard library itself carries.

Three kinds of documents, in a fixed order:
- ``topic``: the language reference's chapters that `help()` shows (`pydoc_data.topics`);
- ``english``: docstrings and comment blocks of the standard library's modules, one document a module;
- ``source``: the modules' sources as they are (these hold their docstrings once more).

Six whole topics, about 60 kB, are held out and written to `models/heldout.txt` and `evals/heldout.txt`.
Topics quote each other and docstrings quote topics, so leaving six out is not enough: every paragraph of any
other document that shares ten consecutive words with the held-out text (or, when shorter, is one of its
paragraphs) is dropped as well. Three more topics are kept away from training in the same way, to choose the
recipe's settings by.

    python -m models.corpus build/corpus/corpus.jsonl.gz     # and the two held-out files
"""

from __future__ import annotations

import argparse
import ast
import gzip
import hashlib
import inspect
import io
import json
import re
import sysconfig
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from pydoc_data.topics import topics

ROOT = Path(__file__).resolve().parent.parent
HELDOUT_FILES = (ROOT / "models" / "heldout.txt", ROOT / "evals" / "heldout.txt")
HELDOUT_TOPICS = ("assignment", "comparisons", "execmodel", "import", "strings", "typesmapping")
VALIDATION_TOPICS = ("calls", "numeric-types", "objects")

# Tests, tables and generated code are little like English; pydoc_data is the topics' own source.
SKIPPED_FOLDERS = frozenset(
    {
        "__pycache__", "dist-packages", "encodings", "ensurepip", "idle_test", "lib-dynload", "pydoc_data",
        "site-packages", "test", "tests", "turtledemo",
    }
)  # fmt: skip
RUN = 10  # words in a row that count as a quotation
SHORTEST = 4  # a paragraph of fewer words ("Note:") quotes nothing


@dataclass(frozen=True)
class Document:
    """One text for training: `kind` is "topic", "english" or "source"."""

    kind: str
    name: str
    text: str


def paragraphs(text: str) -> list[str]:
    """The blocks between blank lines."""
    return [block for block in re.split(r"\n\s*\n", text.strip("\n")) if block.strip()]


def word_runs(paragraph: str) -> Iterator[str]:
    """Every run of `RUN` words of a paragraph, or the whole paragraph when it is shorter."""
    words = re.findall(r"\w+", paragraph.lower())
    if SHORTEST <= len(words) < RUN:
        yield " ".join(words)
    for start in range(len(words) - RUN + 1):
        yield " ".join(words[start : start + RUN])


def all_runs(text: str) -> frozenset[str]:
    return frozenset(run for block in paragraphs(text) for run in word_runs(block))


def without_quotations(text: str, kept_away: frozenset[str]) -> str:
    """`text` less the paragraphs that share a run of words with what is `kept_away`."""
    kept = [block for block in paragraphs(text) if not any(run in kept_away for run in word_runs(block))]
    return "\n\n".join(kept) + "\n" if kept else ""


def joined_topics(names: Iterable[str]) -> str:
    return "\n\n".join(topics[name].strip("\n") for name in names) + "\n"


def heldout_text() -> str:
    return joined_topics(HELDOUT_TOPICS)


def validation_text() -> str:
    return without_quotations(joined_topics(VALIDATION_TOPICS), all_runs(heldout_text()))


def module_sources() -> Iterator[tuple[str, str]]:
    """(name, source) of the standard library's modules, by name."""
    folder = Path(sysconfig.get_path("stdlib"))
    for path in sorted(folder.rglob("*.py")):
        relative = path.relative_to(folder)
        if SKIPPED_FOLDERS.isdisjoint(relative.parts[:-1]) and not path.name.startswith("_sysconfigdata"):
            try:
                yield relative.as_posix(), path.read_text(encoding="utf-8")
            except UnicodeDecodeError:  # a template or a file in an old encoding
                continue


def docstrings(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield inspect.cleandoc(text)


def comment_blocks(source: str) -> Iterator[str]:
    """Comments on lines of their own, adjoining lines together, from two lines on."""
    block: list[str] = []
    last = -1
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT or token.line.lstrip() != token.line[token.start[1] :]:
            continue
        if token.start[0] != last + 1 and block:
            if len(block) > 1:
                yield "\n".join(block)
            block = []
        block.append(token.string.lstrip("#").removeprefix(" "))
        last = token.start[0]
    if len(block) > 1:
        yield "\n".join(block)


def english_of(source: str) -> str:
    """The docstrings and comment blocks of a module; empty when it does not parse."""
    try:
        parts = [*docstrings(source), *comment_blocks(source)]
    except (SyntaxError, tokenize.TokenError):
        return ""
    return "\n\n".join(part.strip("\n") for part in parts if part.strip())


def training_documents(heldout: str) -> Iterator[Document]:
    """Every document to train on, quotations of the held-out and validation text taken out."""
    away = all_runs(heldout) | all_runs(joined_topics(VALIDATION_TOPICS))
    seen: set[str] = set()  # topics hold one another whole: each of their paragraphs counts once
    for name in sorted(
        set(topics) - {*HELDOUT_TOPICS, *VALIDATION_TOPICS}, key=lambda n: (-len(topics[n]), n)
    ):
        fresh = [block for block in paragraphs(topics[name]) if block not in seen]
        seen.update(fresh)
        yield Document("topic", name, without_quotations("\n\n".join(fresh), away))
    for name, source in module_sources():
        yield Document("english", name, without_quotations(english_of(source), away))
        yield Document("source", name, without_quotations(source, away))


def write(path: Path) -> str:
    """Write the corpus as gzipped JSON lines; the SHA-256 of the uncompressed lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with path.open("wb") as raw, gzip.GzipFile(fileobj=raw, mode="wb", filename="", mtime=0) as packed:
        for document in (
            *training_documents(heldout_text()),
            Document("validation", "validation", validation_text()),
        ):
            if document.text:
                line = json.dumps(asdict(document)).encode() + b"\n"
                digest.update(line)
                packed.write(line)
    return digest.hexdigest()


def read(path: Path) -> tuple[list[Document], str]:
    """The documents of a corpus file and the SHA-256 of its uncompressed lines."""
    with gzip.open(path, "rb") as packed:
        content = packed.read()
    return [Document(**json.loads(line)) for line in content.splitlines()], hashlib.sha256(
        content
    ).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description="Build the training corpus and the held-out text.")
    parser.add_argument("corpus", type=Path, help="the file to write, e.g. build/corpus/corpus.jsonl.gz")
    path: Path = parser.parse_args().corpus
    for heldout in HELDOUT_FILES:
        heldout.write_text(heldout_text(), encoding="utf-8")
    digest = write(path)
    sizes: dict[str, int] = {}
    for document in read(path)[0]:
        sizes[document.kind] = sizes.get(document.kind, 0) + len(document.text)
    print(f"{path}: {digest}")
    print(", ".join(f"{kind} {size:,} characters" for kind, size in sizes.items()))
    print(f"held out: {len(heldout_text()):,} characters of {', '.join(HELDOUT_TOPICS)}")


if __name__ == "__main__":
    main()
