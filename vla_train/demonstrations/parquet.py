"""Parquet, and with it pyarrow: the only module that imports it.

Tables are mappings of columns. What is written goes through memory: a disk that fills then fails in one place (`files`).
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

_MISSING = "datasets of demonstrations need pyarrow: pip install 'vla-train[data]'"


def require_pyarrow() -> ModuleType:
    """pyarrow's `parquet`.

    Raises:
        ImportError: It is not installed; the message says what to install.
    """
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(_MISSING) from error
    return pyarrow.parquet


def encode_frames(
    before: tuple[Path, int] | None, columns: Mapping[str, Any], *, features: Mapping[str, Mapping[str, Any]]
) -> bytes:
    """A data file: the first episodes of an earlier version of it, then one more. Each is a row group of its own.

    Args:
        before: The earlier version, and how many of its row groups to keep.
        columns: The episode: (T, ...) arrays by feature, or T encoded pictures.
        features: As in info.json.
    """
    parquet = require_pyarrow()
    import pyarrow as pa

    schema = pa.schema(
        [pa.field(name, _arrow_type(feature)) for name, feature in features.items()],
        metadata={"huggingface": json.dumps({"info": {"features": _huggingface_features(features)}})},
    )
    arrays = [_arrow_array(columns[field.name], field.type) for field in schema]
    sink = pa.BufferOutputStream()
    with parquet.ParquetWriter(sink, schema, compression="none", use_dictionary=False) as writer:
        if before is not None:
            file, num_groups = before
            with parquet.ParquetFile(file) as earlier:
                for group in range(num_groups):
                    writer.write_table(earlier.read_row_group(group), row_group_size=_ALL)
        writer.write_table(pa.Table.from_arrays(arrays, schema=schema), row_group_size=_ALL)
    return sink.getvalue().to_pybytes()


_ALL = 1 << 30


def encode_rows(rows: Sequence[Mapping[str, Any]], *, types: Mapping[str, str]) -> bytes:
    """A table of rows; `types` are pyarrow's names of the columns' types, "list<double>" and deeper ones included."""
    parquet = require_pyarrow()
    import pyarrow as pa

    schema = pa.schema([pa.field(name, _named_type(kind)) for name, kind in types.items()])
    sink = pa.BufferOutputStream()
    parquet.write_table(pa.Table.from_pylist([dict(row) for row in rows], schema=schema), sink)
    return sink.getvalue().to_pybytes()


def encode_tasks(instructions: Sequence[str]) -> bytes:
    """The table of tasks, as pandas would write it: the instruction is the index, which LeRobot looks up."""
    parquet = require_pyarrow()
    import pyarrow as pa

    column = {"name": "task_index", "field_name": "task_index", "pandas_type": "int64", "numpy_type": "int64", "metadata": None}
    index = {"name": "task", "field_name": "task", "pandas_type": "unicode", "numpy_type": "object", "metadata": None}
    pandas = {"index_columns": ["task"], "column_indexes": [], "columns": [column, index], "pandas_version": "2.0.0"}
    schema = pa.schema([("task_index", pa.int64()), ("task", pa.string())], metadata={"pandas": json.dumps(pandas)})
    table = pa.table({"task_index": list(range(len(instructions))), "task": list(instructions)}, schema=schema)
    sink = pa.BufferOutputStream()
    parquet.write_table(table, sink)
    return sink.getvalue().to_pybytes()


def read_rows(file: Path) -> list[dict[str, Any]]:
    """All rows of a table.

    Raises:
        ValueError: The file is no complete parquet file.
    """
    with _open(file) as opened:
        return opened.read().to_pylist()


def read_columns(file: Path, columns: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of a table, with these columns only; errors as for `read_rows`."""
    with _open(file) as opened:
        return opened.read(list(columns)).to_pylist()


@dataclass(frozen=True, kw_only=True, slots=True)
class RowGroup:
    """A part of a file that is read as a whole."""

    num_rows: int
    num_bytes: int


def read_row_groups(file: Path) -> list[RowGroup]:
    """The row groups of a file, in their order.

    Raises:
        ValueError: The file is no complete parquet file.
    """
    with _open(file) as opened:
        metadata = opened.metadata
    groups = map(metadata.row_group, range(metadata.num_row_groups))
    return [RowGroup(num_rows=group.num_rows, num_bytes=group.total_byte_size) for group in groups]


def count_rows(file: Path) -> tuple[int, set[str]]:
    """How many rows a table has, and the names of its columns.

    Raises:
        ValueError: The file is no complete parquet file.
    """
    with _open(file) as opened:
        return opened.metadata.num_rows, set(opened.schema_arrow.names)


def column_names(file: Path) -> list[str]:
    """Names of a table's columns.

    Raises:
        ValueError: The file is no complete parquet file.
    """
    with _open(file) as opened:
        return list(opened.schema_arrow.names)


def read_vectors(file: Path, column: str, *, dim: int) -> np.ndarray:
    """(rows, D) float32, of a column of numbers or of lists of D numbers.

    Raises:
        ValueError: It holds something else, or the file is no complete parquet file.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    values = _read_column(file, column)
    kind = values.type
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    of = kind.value_type if is_list else kind
    if not (pa.types.is_integer(of) or pa.types.is_floating(of) or pa.types.is_boolean(of)):
        raise ValueError(f"{file}: {column} holds {kind}, and no numbers")
    lengths = pc.list_value_length(values).fill_null(0).to_numpy(zero_copy_only=False) if is_list else np.ones(len(values), int)
    numbers = values.flatten() if is_list else values
    if (lengths != dim).any():
        raise ValueError(f"{file}: {column} does not hold {dim} numbers in each row")
    return numbers.to_numpy(zero_copy_only=False).astype(np.float32).reshape(len(values), dim)


def read_integers(file: Path, column: str) -> np.ndarray:
    """(rows,) int64; -1 where there is none.

    Raises:
        ValueError: It holds something else, or the file is no complete parquet file.
    """
    import pyarrow as pa

    values = _read_column(file, column)
    if not pa.types.is_integer(values.type):
        raise ValueError(f"{file}: {column} holds {values.type}, and no whole numbers")
    return values.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)


def _read_column(file: Path, column: str) -> Any:
    with _open(file) as opened:
        return opened.read([column]).column(column).combine_chunks()


def read_pictures(file: Path, column: str, row_group: int) -> list[bytes]:
    """The encoded pictures of one row group.

    Raises:
        ValueError: They are not stored in the file, or it cannot be read.
    """
    import pyarrow as pa

    with _open(file) as opened:
        values = opened.read_row_group(row_group, [column]).column(column).combine_chunks()
    is_struct = pa.types.is_struct(values.type)
    files = values.field("bytes") if is_struct and values.type.get_field_index("bytes") >= 0 else values
    if not (pa.types.is_binary(files.type) or pa.types.is_large_binary(files.type)):
        raise ValueError(f"{file}: {column} holds {files.type}, and no pictures")
    pictures = files.to_pylist()
    if None in pictures:
        named = is_struct and values.type.get_field_index("path") >= 0 and values[pictures.index(None)]["path"].is_valid
        what = "names files of pictures instead of holding them" if named else "lacks a picture"
        raise ValueError(f"{file}: {column} {what}")
    return pictures


@contextmanager
def _open(file: Path) -> Iterator[Any]:
    """The file, to be read in this block.

    Raises:
        ValueError: It is missing, or cannot be read.
    """
    parquet = require_pyarrow()
    import pyarrow as pa

    try:
        with parquet.ParquetFile(file) as opened:
            yield opened
    except FileNotFoundError:
        raise ValueError(f"{file} is missing") from None
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{file} is damaged or half-written ({' '.join(str(error).split())})") from None


def _arrow_type(feature: Mapping[str, Any]) -> Any:
    import pyarrow as pa

    if feature["dtype"] == "image":
        return pa.struct({"bytes": pa.binary(), "path": pa.string()})
    plain = _named_type(feature["dtype"])
    return plain if feature["shape"] == [1] else pa.list_(plain, feature["shape"][0])  # as LeRobot does


def _huggingface_features(features: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The same in the words of Hugging Face's `datasets`, which would take pictures for structs without it."""

    def named(feature: Mapping[str, Any]) -> dict[str, Any]:
        if feature["dtype"] == "image":
            return {"_type": "Image"}
        value = {"dtype": feature["dtype"], "_type": "Value"}
        if feature["shape"] == [1]:
            return value
        return {"feature": value, "length": feature["shape"][0], "_type": "Sequence"}

    return {name: named(feature) for name, feature in features.items()}


def _arrow_array(values: Any, kind: Any) -> Any:
    import pyarrow as pa

    if pa.types.is_struct(kind):
        files = pa.array(values, pa.binary())
        return pa.StructArray.from_arrays([files, pa.nulls(len(values), pa.string())], fields=list(kind))
    if pa.types.is_fixed_size_list(kind):
        return pa.FixedSizeListArray.from_arrays(pa.array(np.ravel(values), kind.value_type), type=kind)
    return pa.array(np.ravel(values), kind)


def _named_type(name: str) -> Any:
    import pyarrow as pa

    if name.startswith("list<"):
        return pa.list_(_named_type(name[len("list<") : -1]))
    return pa.type_for_alias(name)
