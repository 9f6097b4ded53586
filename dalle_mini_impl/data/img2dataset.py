"""What img2dataset writes beside pictures: how many could not be downloaded."""

import re

from dalle_mini_impl.data.pair import SkipLog
from dalle_mini_impl.data.remote import SourcePath
from dalle_mini_impl.data.sample import MAX_JSON_BYTES, UnusableSample, fields_from_json, read_bytes

STATS_FILE = re.compile(r"\d+_stats\.json")
"""Name of the file of figures beside the tar, or the folder of pictures, that has the same number."""
SHARD_NAME = re.compile(r"\d+\.tar")
"""Name of a tar that may have one."""
FAILURES = ("failed_to_download", "failed_to_resize")
"""Fields of a file of figures: numbers of pictures that are missing."""


def log_failures_of_tar(tar: SourcePath, log: SkipLog) -> None:
    """Record how many pictures of a tar were not downloaded, if a file beside it says so."""
    if SHARD_NAME.fullmatch(tar.name):
        log_failures(tar.parent / f"{tar.stem}_stats.json", log)


def log_failures(stats: SourcePath, log: SkipLog) -> None:
    """Record how many pictures were not downloaded, as a file of figures says; nothing if it cannot be read."""
    try:
        fields = fields_from_json(read_bytes(stats, MAX_JSON_BYTES))
    except UnusableSample:
        return
    for name in FAILURES:
        count = fields.get(name)
        if type(count) is int and count > 0:
            log.add(str(stats), f"{name.replace('_', ' ')}: {count} of {fields.get('count')} pictures", count)
