"""Search by meaning: a vector index of the enriched tickets, and what follows, searches and groups it.

index       the port, and what is stored per ticket
sqlite      a file on this machine
s3vectors   Amazon S3 Vectors
location    which of them, and where (VECTOR_INDEX)
indexer     brings an index up to date with the table
query       tickets by words, or like another ticket
duplicates  groups of nearly equal tickets
"""
