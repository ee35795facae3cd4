"""A vector index in Amazon S3 Vectors: one index per model in a vector bucket, which must exist.

The index of a model is named `<prefix>-<digest of the model>`, and a vector's key is `<created_at>/<ticket_id>`. The
service has no transactions: entries are put first, and the mark, a tag of the vector bucket, last, so that a process
that is killed in between only reads some tickets again.

Batches are as large as the API allows. Queries are approximate, and return at most 100 results.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any, Final

from botocore.exceptions import ClientError

from handler.tickets.repository import RepositoryError
from handler.tickets.search.index import DIMENSIONS, Entry, Key, Neighbour, Stored

__all__ = ["S3VectorsIndex"]

_PUT, _GET, _LIST, _MOST = 500, 100, 1000, 100  # vectors per call: limits of the API
_VERSION: Final = "version_id"
_CREATED: Final = "created_at"


class S3VectorsIndex:
    """The indexes of a vector bucket whose names begin with `prefix`. As VectorIndex; thread-safe.

    `client` is boto3's s3vectors client. Methods raise botocore's errors, and RepositoryError without a vector bucket.
    """

    def __init__(self, client: Any, bucket: str, prefix: str) -> None:
        self._client = client
        self._bucket = bucket
        self._prefix = prefix

    @property
    def place(self) -> str:
        """As in VectorIndex."""
        return f"s3vectors://{self._bucket}/{self._prefix}"

    @property
    def most(self) -> int:
        """As in VectorIndex."""
        return _MOST

    def put(self, entries: Sequence[Entry], mark: int | None = None) -> None:
        """As in VectorIndex, but not in one transaction: the mark is written last."""
        names = self._names()
        for model, group in groupby(sorted(entries, key=lambda entry: entry.model), lambda entry: entry.model):
            name, mine = self._name(model), list(group)
            if name not in names:
                self._create(name)
            for part in _parts(mine, _PUT):
                self._client.put_vectors(
                    vectorBucketName=self._bucket, indexName=name, vectors=[_vector(entry) for entry in part]
                )
            self._remove([entry.key for entry in mine], names - {name})
        if mark is not None:
            self._client.tag_resource(resourceArn=self._arn(), tags={self._tag: str(mark)})

    def remove(self, keys: Sequence[Key]) -> None:
        """As in VectorIndex."""
        self._remove(keys, self._names())

    def mark(self) -> int | None:
        """As in VectorIndex."""
        tags = self._client.list_tags_for_resource(resourceArn=self._arn())["tags"]
        return int(tags[self._tag]) if tags.get(self._tag, "").isdigit() else None

    def stored(self, keys: Sequence[Key]) -> dict[Key, Stored]:
        """As in VectorIndex; of a model, only the digest is known. A ticket in two indexes has no version: "".

        Then a process was killed between putting the entry of one model and removing that of the other.
        """
        found: dict[Key, Stored] = {}
        for name in sorted(self._names()):
            for part in _parts(keys, _GET):
                answer = self._client.get_vectors(
                    vectorBucketName=self._bucket,
                    indexName=name,
                    keys=[_text(key) for key in part],
                    returnMetadata=True,
                )
                for vector in answer["vectors"]:
                    key = _key(vector["key"])
                    version_id = "" if key in found else vector["metadata"][_VERSION]
                    found[key] = Stored(version_id, name.removeprefix(f"{self._prefix}-"))
        return found

    def all_keys(self) -> Iterator[Key]:
        """As in VectorIndex."""
        for name in sorted(self._names()):
            for vector in self._listed(name):
                yield _key(vector["key"])

    def models(self) -> list[str]:
        """As in VectorIndex: their digests, which stand for the models in all methods."""
        return [name.removeprefix(f"{self._prefix}-") for name in sorted(self._names())]

    def has(self, model: str) -> bool:
        """As in VectorIndex."""
        return self._name(model) in self._names()

    def entries(self, model: str, since: int = 0) -> Iterator[Entry]:
        """As in VectorIndex."""
        name = self._name(model)
        if name not in self._names():
            return
        for vector in self._listed(name, returnData=True, returnMetadata=True):
            key = _key(vector["key"])
            if key.created_at >= since:
                yield Entry(key, vector["metadata"][_VERSION], model, vector["data"]["float32"])

    def nearest(
        self, model: str, vector: Sequence[float], limit: int, *, since: int | None = None, until: int | None = None
    ) -> list[Neighbour]:
        """As in VectorIndex."""
        bounds = {"$gte": since, "$lte": until}
        conditions = [{_CREATED: {name: bound}} for name, bound in bounds.items() if bound is not None]
        answer = self._client.query_vectors(
            vectorBucketName=self._bucket,
            indexName=self._name(model),
            topK=limit,
            queryVector={"float32": list(vector)},
            returnDistance=True,
            returnMetadata=True,
            **({"filter": {"$and": conditions}} if conditions else {}),
        )
        found = [
            Neighbour(_key(each["key"]), each["metadata"][_VERSION], 1 - each["distance"]) for each in answer["vectors"]
        ]
        return sorted(found, key=lambda neighbour: -neighbour.cosine)

    @property
    def _tag(self) -> str:
        return f"tickets-read-until:{self._prefix}"

    def _name(self, model: str) -> str:
        return f"{self._prefix}-{model.rpartition('@')[2]}"

    def _names(self) -> set[str]:
        """The indexes that exist."""
        pages = self._client.get_paginator("list_indexes").paginate(
            vectorBucketName=self._bucket, prefix=f"{self._prefix}-"
        )
        pattern = re.compile(re.escape(self._prefix) + "-[0-9a-f]{12}")
        with self._bucket_must_exist():
            names = [index["indexName"] for page in pages for index in page["indexes"]]
        return {name for name in names if pattern.fullmatch(name)}

    def _create(self, name: str) -> None:
        try:
            self._client.create_index(
                vectorBucketName=self._bucket,
                indexName=name,
                dataType="float32",
                dimension=DIMENSIONS,
                distanceMetric="cosine",
                metadataConfiguration={"nonFilterableMetadataKeys": [_VERSION]},
            )
        except ClientError as error:
            if error.response["Error"]["Code"] != "ConflictException":  # another process has created it
                raise

    def _remove(self, keys: Sequence[Key], names: set[str]) -> None:
        for name in sorted(names):
            for part in _parts(keys, _PUT):
                self._client.delete_vectors(
                    vectorBucketName=self._bucket, indexName=name, keys=[_text(key) for key in part]
                )

    def _arn(self) -> str:
        with self._bucket_must_exist():
            bucket = self._client.get_vector_bucket(vectorBucketName=self._bucket)["vectorBucket"]
        return str(bucket["vectorBucketArn"])

    @contextmanager
    def _bucket_must_exist(self) -> Iterator[None]:
        try:
            yield
        except ClientError as error:
            if error.response["Error"]["Code"] != "NotFoundException":
                raise
            raise RepositoryError(
                f"there is no vector bucket {self._bucket}; create it: "
                f"aws s3vectors create-vector-bucket --vector-bucket-name {self._bucket}"
            ) from error

    def _listed(self, name: str, **returned: bool) -> Iterator[Any]:
        pages = self._client.get_paginator("list_vectors").paginate(
            vectorBucketName=self._bucket, indexName=name, maxResults=_LIST, **returned
        )
        for page in pages:
            yield from page["vectors"]


def _parts(values: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (values[start : start + size] for start in range(0, len(values), size))


def _text(key: Key) -> str:
    return f"{key.created_at}/{key.ticket_id}"


def _key(text: str) -> Key:
    created_at, _, ticket_id = text.partition("/")
    return Key(ticket_id, int(created_at))


def _vector(entry: Entry) -> dict[str, Any]:
    metadata = {_CREATED: entry.key.created_at, _VERSION: entry.version_id}
    return {"key": _text(entry.key), "data": {"float32": list(entry.vector)}, "metadata": metadata}
