"""A stage on a machine that shares no path with the control plane: `python -m executors.remote STORE KEY`.

STORE is the address of an artifact store (fsspec: `file:///…`, `s3://…`), KEY the place of one attempt in it. The
attempt's document names inputs by digest; they are pulled into a cache of this machine and verified. The stage runs as
it does beside the control plane (`executors.host`, in a process group of its own). Its log goes to standard output,
its progress there too, as messages between the lines. Outputs are pushed by digest: what is there already is not sent
again; unfinished work is, every now and then, so that another attempt goes on from it anywhere.
"""
