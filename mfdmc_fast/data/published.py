"""Names of columns and codes in metadata files that are published without them: MovieLens 100k and 1M."""

from __future__ import annotations

from dataclasses import replace

from mfdmc_fast.data.columns import SourceTable
from mfdmc_fast.data.labels import LabelBlock

_GENRES = (
    *("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama"),
    *("Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"),
)
# as their README files say
_COLUMNS: dict[str, tuple[str, ...]] = {
    "u.item": ("movie id", "title", "release date", "video release date", "IMDb URL", *_GENRES),
    "u.user": ("user id", "age", "gender", "occupation", "zip code"),
    "movies.dat": ("movie id", "title", "genres"),
    "users.dat": ("user id", "gender", "age", "occupation", "zip code"),
}

_OCCUPATIONS = (
    *("other", "academic or educator", "artist", "clerical or admin", "college or graduate student"),
    *("customer service", "doctor or health care", "executive or managerial", "farmer", "homemaker"),
    *("K-12 student", "lawyer", "programmer", "retired", "sales or marketing", "scientist", "self-employed"),
    *("technician or engineer", "tradesman or craftsman", "unemployed", "writer"),
)
_AGES = {"1": "under 18", "18": "18-24", "25": "25-34", "35": "35-44", "45": "45-49", "50": "50-55", "56": "56+"}
_CODES: dict[tuple[str, str], dict[str, str]] = {
    ("users.dat", "age"): _AGES,
    ("users.dat", "occupation"): {str(code): name for code, name in enumerate(_OCCUPATIONS)},
}


def with_published_names(table: SourceTable, file_name: str) -> SourceTable:
    """The table with the published names of its columns, if it has none, and file name and number of columns fit."""
    names = _COLUMNS.get(file_name.lower().removesuffix(".gz"), ())
    return replace(table, names=list(names)) if table.names is None and len(names) == len(table.columns) else table


def with_published_codes(block: LabelBlock, table: SourceTable, file_name: str) -> LabelBlock:
    """The block with codes replaced by what they stand for, in the order of the codes, if the table has codes."""
    name = file_name.lower().removesuffix(".gz")
    codes = _CODES.get((name, block.name), {}) if table.names == list(_COLUMNS.get(name, ())) else {}
    return block._replace(labels=[codes.get(label, label) for label in block.labels])
