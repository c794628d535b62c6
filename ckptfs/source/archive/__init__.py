"""What is inside an archive, wherever it lies. Nothing is ever extracted to a path.

- ``detect``   which form a file has, by its content, and whether it is to be opened
- ``open``     from one file to the source of what is in it
- ``codec``    compressed bytes as a stream of plain ones, bounded
- ``ahead``    a stream decompressed ahead of its reader, by a thread
- ``crc``      a zip member's CRC, checked whichever way it is read
- ``zip``      members of a zip: stored ones as ranges, others as streams, all with their CRC checked
- ``tar``      members of a plain tar, as ranges
- ``tar_stream`` members of a compressed tar, in order
- ``members``  what tar headers mean, for both
- ``single``   one compressed file
"""
