"""Writes small sources of captioned pictures, and reads them."""

import io
import tarfile

from PIL import Image

from dalle_mini_impl.data.pair import SkipLog
from dalle_mini_impl.data.readers import read_pairs

SIZE = (13, 7)


def encode(colour="red", kind="PNG", size=SIZE, mode="RGB", **options):
    buffer = io.BytesIO()
    Image.new(mode, size, colour).save(buffer, kind, **options)
    return buffer.getvalue()


def put(folder, name, content):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def put_tar(path, members):
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            content = content if isinstance(content, bytes) else content.encode()
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def read(source, **part):
    log = SkipLog()
    return list(read_pairs(source, log, **part)), log


def texts(pair):
    return [caption.text for caption in pair.captions]


def reasons(log):
    """Category of each skipped sample by the last part of its name."""
    return {name.replace(":", "/").rsplit("/", 1)[-1]: reason.split(":")[0] for name, reason in log.entries}
