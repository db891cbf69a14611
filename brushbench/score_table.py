"""Scores in long form, read from ``scores.parquet``: every text once, rows as numbers. Imports no torch.

A table of a hundred runs has a million rows, which say the same few thousand texts again and again. Comparing, grouping
and hashing numbers takes a third of the time that texts take.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from brushbench.errors import RunError, UnusableError, printable
from brushbench.files import read_bytes
from brushbench.records import COLUMNS, KEY, SCORE_AGAIN, PictureKey, PictureRow, ScoreRow

if TYPE_CHECKING:
    import pandas

__all__ = ["ScoreTable", "merged", "read_scores", "read_texts", "rows_to_table", "sha256_before", "table_bytes"]

TEXTS = tuple(name for name in COLUMNS if name not in ("repeat", "value"))
JSON = json.JSONEncoder().encode  # json.dumps, without its overhead
OF_IMAGES = (*KEY[:5], "picture_sha256")  # what every column says of the same images

Codes = npt.NDArray[np.int64]
Values = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class ScoreTable:
    """Scores, one row each.

    Attributes:
        codes: by column but ``value``, per row the place of what stands there in ``distinct``: (n,) each.
        distinct: by column, what stands there, each once; absent texts are ``None``.
        values: (n,) float64; NaN where there is no score.
    """

    codes: Mapping[str, Codes]
    distinct: Mapping[str, Values]
    values: npt.NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.values)

    @classmethod
    def of(cls, frame: pandas.DataFrame) -> ScoreTable:
        """Return a frame of scores as a table; it may lack columns that are not asked for."""
        names = [name for name in COLUMNS if name in frame and name != "value"]
        coded = {name: _factorized(frame[name].to_numpy()) for name in names}
        codes, distinct = ({name: pair[i] for name, pair in coded.items()} for i in (0, 1))
        return cls(codes, distinct, frame["value"].to_numpy(dtype=np.float64))

    def frame(self) -> pandas.DataFrame:
        """Return the table as pandas has it: texts as plain objects."""
        import pandas as pd

        index = pd.RangeIndex(len(self))
        arrays = {name: self.distinct[name][codes] for name, codes in self.codes.items()}
        arrays["value"] = self.values.copy()
        # pandas' own type for texts takes three times as long, and has NaN for those that are absent.
        columns = {name: pd.Series(arrays[name], index, arrays[name].dtype) for name in COLUMNS if name in arrays}
        return pd.DataFrame(columns, index)

    def take(self, rows: npt.NDArray[Any]) -> ScoreTable:
        """Return some rows, chosen by numbers or by a mask."""
        return ScoreTable({name: codes[rows] for name, codes in self.codes.items()}, self.distinct, self.values[rows])

    def without(self, rows: npt.NDArray[np.bool_], reason: str) -> ScoreTable:
        """Return the table with no score, and this reason, in some rows."""
        reasons = np.append(self.distinct["reason"], reason)
        codes = {**self.codes, "reason": np.where(rows, len(reasons) - 1, self.codes["reason"])}
        return ScoreTable(codes, {**self.distinct, "reason": reasons}, np.where(rows, np.nan, self.values))

    def is_in(self, name: str, value: object) -> npt.NDArray[np.bool_]:
        """Return per row whether a column holds a value."""
        return np.isin(self.codes[name], np.flatnonzero(self.distinct[name] == value))

    def held(self, name: str) -> list[Any]:
        """Return what a column holds, each once, in the order of the rows."""
        return list(self.distinct[name][self.codes[name][_firsts(self.codes[name])]])

    def parts(self, *names: str) -> Iterator[tuple[tuple[Any, ...], Codes]]:
        """Yield each combination of what columns hold, in the order of the rows, with the numbers of its rows."""
        combined, count = self._combined(names)
        order = np.argsort(combined, kind="stable")
        ends = np.cumsum(np.bincount(combined, minlength=count))
        for rows in np.split(order, ends[:-1]) if count else ():
            yield tuple(self.distinct[name][self.codes[name][rows[0]]] for name in names), rows

    def _combined(self, names: Sequence[str]) -> tuple[Codes, int]:
        """Return one number per row, equal where rows are equal in some columns, from 0 on; and how many there are."""
        rows, count = np.zeros(len(self), dtype=np.int64), min(1, len(self))
        for name in names:
            if (self.codes[name] == self.codes[name][:1]).all():  # one value throughout
                continue
            rows, found = _factorized(rows * len(self.distinct[name]) + self.codes[name])
            count = len(found)
        return rows, count

    def has_twice(self) -> bool:
        """Whether two rows are one score."""
        return self._combined(KEY)[1] < len(self)

    def sha256(self) -> dict[tuple[str, str], str]:
        """Return the SHA-256 over the scores of each column, by metric and protocol, whatever order they are in."""
        ranks = {name: _ranks(self.distinct[name]) for name in KEY[:5]}
        written = {name: np.array([*map(JSON, held.tolist())], dtype=object) for name, held in self.distinct.items()}
        found: dict[tuple[str, str], str] = {}
        images: Values = np.empty(0)
        for column, rows in self.parts("metric", "protocol"):
            own = np.stack([self.codes[name][rows] for name in OF_IMAGES])
            if not np.array_equal(own, images):  # most columns are of the same images: sorted and written once
                images = own
                order = np.lexsort([ranks[name][self.codes[name][rows]] for name in KEY[4::-1]])
                texts = {name: _listed(written[name], self.codes[name][rows[order]]) for name in OF_IMAGES}
            rows = rows[order]
            for name in ("metric", "protocol", "reason"):
                texts[name] = _listed(written[name], self.codes[name][rows])
            digest = hashlib.sha256(f"[{', '.join(texts[name] for name in COLUMNS if name != 'value')}]".encode())
            scores = self.values[rows]
            digest.update(np.where(np.isnan(scores), np.nan, scores).astype("<f8").tobytes())
            found[column] = digest.hexdigest()
        return found

    def is_current(self, pictures: Mapping[PictureKey, PictureRow]) -> npt.NDArray[np.bool_]:
        """Return per row whether it was computed from the picture that is there now.

        Args:
            pictures: what became of every picture, by sample, split and repeat.
        """
        names = ("sample", "split", "repeat", "picture_sha256")
        combined, _ = self._combined(names)
        firsts = _firsts(combined)
        known = []
        for sample, split, repeat, sha256 in zip(
            *(self.distinct[name][self.codes[name][firsts]].tolist() for name in names), strict=True
        ):
            picture = pictures.get((sample, split, repeat))  # earlier releases did not note the SHA-256
            known.append(picture is not None and (not isinstance(sha256, str) or sha256 == picture.sha256))
        return np.array(known, dtype=bool)[combined]


def _factorized(values: Values) -> tuple[Codes, Values]:
    """Return values as places among those that occur, in the order of the rows; absent ones are ``None``."""
    import pandas as pd

    codes, found = pd.factorize(values)
    found = np.asarray(found)
    if (codes < 0).any():
        found = np.array([*found.tolist(), None], dtype=object)
        codes = np.where(codes < 0, len(found) - 1, codes)
    return codes.astype(np.int64, copy=False), found


def _firsts(codes: Codes) -> Codes:
    """Return the number of the first row of each code, in the order of the rows."""
    import pandas as pd

    return np.flatnonzero(~pd.Series(codes).duplicated().to_numpy())


def _ranks(values: Values) -> Codes:
    """Return the place of each value among all of them when sorted; absent texts come last."""
    order = sorted(range(len(values)), key=lambda at: (values[at] is None, 0 if values[at] is None else values[at]))
    ranks = np.empty(len(values), dtype=np.int64)
    ranks[order] = np.arange(len(values))
    return ranks


def _listed(written: Values, codes: Codes) -> str:
    return f"[{', '.join(written[codes].tolist())}]"


def sha256_before(frame: pandas.DataFrame) -> str:
    """Return the SHA-256 over the scores of one column as runs had it before :meth:`ScoreTable.sha256`."""
    columns = [[None if value != value else value for value in frame[name].tolist()] for name in COLUMNS]
    rows = map(list, zip(*columns, strict=True))
    return hashlib.sha256(json.dumps(sorted(map(repr, rows))).encode()).hexdigest()


# The file -------------------------------------------------------------------------------------------------------------


def read_scores(file: Path) -> ScoreTable:
    """Return every score; no rows where there is no file.

    Raises:
        RunError: the file is damaged, or holds a score twice.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not os.path.lexists(file):
        nothing = {name: np.empty(0, dtype=object) for name in COLUMNS if name != "value"}
        return ScoreTable(dict.fromkeys(nothing, np.empty(0, dtype=np.int64)), nothing, np.empty(0))
    try:
        found = pq.read_table(io.BytesIO(read_bytes(file)), read_dictionary=list(TEXTS))
    except (OSError, UnusableError, MemoryError, pa.ArrowException) as error:
        raise RunError(f"{file} cannot be read ({printable(str(error))}). {SCORE_AGAIN}") from None
    if "picture_sha256" not in found.column_names:  # schema 1
        found = found.append_column("picture_sha256", pa.nulls(found.num_rows, pa.string()))
    for name in COLUMNS:
        fits = {"value": pa.types.is_floating, "repeat": pa.types.is_integer}.get(name, _is_text)
        if name not in found.column_names or not fits(found.schema.field(name).type):
            raise RunError(f"{file} has no column {name!r} of its type. {SCORE_AGAIN}")
        if name in KEY and found.column(name).null_count:
            raise RunError(f"{file} has a score without {name!r}. {SCORE_AGAIN}")
    coded = {name: _coded(found[name]) for name in COLUMNS if name != "value"}
    codes, distinct = ({name: pair[i] for name, pair in coded.items()} for i in (0, 1))
    table = ScoreTable(codes, distinct, found["value"].to_numpy().astype(np.float64, copy=False))
    if table.has_twice():
        raise RunError(f"{file} holds a score twice. {SCORE_AGAIN}")
    return table


def _coded(column: Any) -> tuple[Codes, Values]:
    """Return a column of Arrow's as places among its distinct values."""
    import pyarrow as pa

    if not pa.types.is_dictionary(column.type):
        values = column.to_numpy()
        return _factorized(values if pa.types.is_integer(column.type) else values.astype(object))
    array = column.unify_dictionaries().combine_chunks()
    listed = [*array.dictionary.to_pylist(), None]
    places = {text: place for place, text in reversed(list(enumerate(listed)))}  # a text may be listed twice
    first = np.array([places[text] for text in listed], dtype=np.int64)
    indices = array.indices.cast(pa.int64()).fill_null(len(listed) - 1)
    return first[indices.to_numpy()], np.array(listed, dtype=object)


def read_texts(file: Path, name: str) -> set[str]:
    """Return the texts in one column of the file, such as ``protocol``, without reading the others.

    Raises:
        RunError: the file is damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not file.is_file():
        return set()
    try:
        column = pq.read_table(file, columns=[name])[name]
    except (OSError, pa.ArrowException) as error:
        raise RunError(f"{file} cannot be read ({printable(str(error))}). {SCORE_AGAIN}") from None
    if not _is_text(column.type):
        raise RunError(f"{file} has no column {name!r} of its type. {SCORE_AGAIN}")
    return {text for text in column.unique().to_pylist() if text is not None}


def _is_text(kind: Any) -> bool:
    import pyarrow as pa

    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind))


def _with_none(table: pandas.DataFrame) -> pandas.DataFrame:
    """Return a table whose absent texts are ``None``: pandas turns them into NaN, which equals nothing."""
    texts = [name for name in COLUMNS if name not in ("value", "repeat")]
    plain = table.astype(dict.fromkeys(texts, "object"))
    return plain.assign(**{name: plain[name].where(plain[name].notna(), None) for name in texts})


def table_bytes(table: pandas.DataFrame) -> bytes:
    """Return a table of scores as a Parquet file; equal tables give equal bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema(
        [pa.field(name, {"value": pa.float64(), "repeat": pa.int64()}.get(name, pa.string())) for name in COLUMNS]
    )
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pandas(table, schema=schema, preserve_index=False).replace_schema_metadata(), buffer)
    return buffer.getvalue()


def rows_to_table(rows: Sequence[ScoreRow]) -> pandas.DataFrame:
    """Return score rows as a table."""
    import pandas as pd

    table = pd.DataFrame([vars(row) for row in rows], columns=list(COLUMNS))
    return _with_none(table.astype({"value": "float64", "repeat": "int64"}))


def merged(old: pandas.DataFrame, new: pandas.DataFrame, order: Sequence[PictureKey] = ()) -> pandas.DataFrame:
    """Return two tables of scores as one: new ones in place of old ones of the same metric, protocol and variant.

    Args:
        old: as :meth:`ScoreTable.frame` returns it.
        new: likewise; complete for each of its variants.
        order: of the pictures; others come last.
    """
    import pandas as pd

    of = ["metric", "protocol", "variant"]
    kept = old[~pd.MultiIndex.from_frame(old[of]).isin(pd.MultiIndex.from_frame(new[of]))]
    table = pd.concat([frame for frame in (kept, new) if len(frame)] or [new], ignore_index=True)
    places = {key: place for place, key in enumerate(order)}
    keys = zip(table["sample"], table["split"], table["repeat"], strict=True)
    table = table.assign(place=[places.get(key, len(places)) for key in keys])
    return table.sort_values([*of, "place"], kind="stable", ignore_index=True).drop(columns="place")
