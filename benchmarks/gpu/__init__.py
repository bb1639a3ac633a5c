"""The GPU job: one command that builds, checks, measures and trains on a bare GPU machine. See docs/gpu.md.

    __main__.py   the command line            job.py        what a stage is told
    runner.py     stages and their clocks     results.py    the file they write, its schema and limits
    worker.py     the process that does one   stages/       one file a stage

Only the standard library is imported up to the worker: the build stage runs before anything else is there.
"""
