"""What a checkpoint is created from: one small file per kind, one face (base.py).

- ``base``       the face: Source, Ranged, ByteStream, the kinds of entry
- ``open``       the door: a URI and its options become an opened, pinned Source
- ``limits``     how much and how long: Limits, and what bounds a stream
- ``place``      where bytes lie: a Source of whole files, or one object that may be an archive
- ``local``      a directory or a file of this node
- ``s3``         a prefix or an object of an S3-compatible store (boto3: listing, pinning, presigning)
- ``s3_bytes``   the bytes of those objects (urllib3 on presigned URLs)
- ``web``        a file behind http(s): probing, redirects, pinning
- ``http_bytes`` one HTTP exchange into the caller's buffer: checks, retries, deadlines
- ``spool``      a remote object fetched into a local file first, resumable
- ``seekable``   a Ranged as a binary file object, for zipfile and tarfile
- ``archive``    what is inside a zip, a tar or a compressed file
"""
