/* What _channel.c, which makes the module, takes from _splice.c. Python.h comes first. */
extern PyMethodDef ckptfs_reads_methods[];
