"""What a checkpoint is created from: one small file per kind, one face (base.py).

- ``base``         the face: Source, Ranged, ByteStream, the kinds of entry
- ``open``         the door: a URI and its options become an opened, pinned Source
- ``uri``          what the user wrote, taken apart; and how it may be shown
- ``limits``       how much and how long; what one opening carries along
- ``listing``      a source whose entries are all known at opening
- ``place``        one file where it lies, which may be an archive
- ``local``        a directory or a file of this node
- ``s3``           a prefix or an object: what is there (``s3_options``: what may be asked,
  ``s3_connect``: options to a client, ``s3_client``: boto3, ``s3_bytes``: urllib3 on signed URLs)
- ``web``          a file behind http(s): probing, redirects, pinning
- ``connection``   pooled connections of one source: which addresses, and hanging up
- ``http_bytes``   ranges of a pinned remote object, checked, into the caller's buffer
- ``http_stream``  a remote file as one stream, where there are no ranges
- ``tries``        what may pass, how long to wait, how slow is too slow
- ``spool``        a remote object fetched into a local file ahead of its reader, resumable
- ``blocks``       small reads served from whole blocks
- ``seekable``     a Ranged as a file, a stream, a part of itself
- ``archive``      what is inside a zip, a tar or a compressed file
"""
