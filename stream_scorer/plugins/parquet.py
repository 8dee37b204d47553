"""Parquet, measured before it is unpacked: repeated values take next to no room in the file."""

from __future__ import annotations

from io import BytesIO

from stream_scorer.plugins.plugin import InvalidPayload


def check_size(payload: bytes, most_cells: int, most_bytes: int) -> None:
    """Refuse a file that would take too much memory as a table.

    Args:
        payload: the file.
        most_cells: the most values (rows times columns).
        most_bytes: the most bytes of its values, repeated ones counted as often as they stand.

    Raises:
        InvalidPayload: it is no Parquet, or too large.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(BytesIO(payload))
        told = file.metadata
        cells = told.num_rows * told.num_columns
        if cells > most_cells:
            raise InvalidPayload(f"the table has {cells} values, more than {most_cells}")
        texts = [
            field.name
            for field in file.schema_arrow
            if pa.types.is_binary(field.type) or pa.types.is_string(field.type)
        ]
        if not texts:
            return
        # As their dictionaries, since those stand for many.
        read = pq.read_table(BytesIO(payload), columns=texts, read_dictionary=texts)
    except (pa.ArrowException, OSError, KeyError, IndexError) as error:
        raise InvalidPayload(f"the payload is not Parquet: {error}") from None
    size = sum(
        len(chunk) * max((len(value) for value in chunk.dictionary.to_pylist() if value), default=0)
        for column in read.columns
        for chunk in column.chunks
    )
    if size > most_bytes:
        raise InvalidPayload(f"the table's texts may take {size} bytes, more than {most_bytes}")
