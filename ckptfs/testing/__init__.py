"""The test kit that ships with ckptfs: real counterparts, faults where they happen, and things to store.

- ``radosgw``     a real S3-compatible object store on loopback
- ``httpserver``  a real HTTP server on loopback: files of its own, or a proxy before another server
- ``faults``      what such a server can do wrong, each one counting how often it did
- ``fusectl``     the kernel's files of each FUSE connection
- ``maker``       safetensors files, trees and archives to make checkpoints of
"""
